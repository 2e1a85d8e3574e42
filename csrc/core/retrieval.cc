#include "core/retrieval.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/logsumexp.h"
#include "core/simd.h"

namespace gr2 {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Logits that are compared with one limit, the first and the most: as many as were compared before, because a limit
// that was set by n lets about M of the next n pass.
constexpr std::size_t kFirstChunk = 32, kLargestChunk = 1024;
// Children of which the limit for the first ones is found by rank, and not by taking them all.
constexpr std::size_t kRanked = 128;

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument(message);
}

// Asks the memory for the row behind the first one. The processor guesses that only as far as the end of a page, and
// computing the exponentials of one row takes as long as fetching the next.
void prefetch(std::span<const float> rows, std::size_t columns) {
  constexpr std::size_t kCacheLine = 64 / sizeof(float);
  for (std::size_t i = columns; i < std::min(2 * columns, rows.size()); i += kCacheLine)
    __builtin_prefetch(rows.data() + i);
}

// Only called on rows whose sum is suspicious; large finite logits get there, too.
void check_row(std::span<const float> row, std::size_t search, std::size_t rank) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (!(row[i] < kInfinity)) {
      fail("logits batch " + std::to_string(search) + " beam " + std::to_string(rank) + " column " + std::to_string(i) +
           " is " + (std::isnan(row[i]) ? "NaN" : "+infinity"));
    }
  }
}

// Logits up to this one do not lead to a score above `score`; some that are larger do not, either.
float limit_for(float score, float top, float base) {
  constexpr double kLargest = std::numeric_limits<float>::max(), kRounding = 5e-7;
  if (score == -kInfinity) return -kInfinity;
  const auto wanted = static_cast<double>(score), offset = static_cast<double>(base);
  const auto highest = static_cast<double>(top);
  const double limit =
      highest + (wanted - offset) - kRounding * (std::abs(highest) + std::abs(wanted) + std::abs(offset));
  return limit < -kLargest ? -kInfinity : static_cast<float>(std::min(limit, kLargest));
}

}  // namespace

Retriever::Retriever(std::size_t beams, Normalization normalization) : beams_(beams), normalization_(normalization) {
  if (beams < 1 || beams > kMaxBeams) fail("beams must be 1 to 4096, got " + std::to_string(beams));
}

void Retriever::start(std::shared_ptr<const CatalogTrie> trie, std::size_t batch,
                      std::vector<std::shared_ptr<const ItemFilter>> filters) {
  if (batch < 1 || batch > kMaxBatch) fail("batch must be 1 to 65536, got " + std::to_string(batch));
  if (batch * beams_ > kMaxSlots) {
    fail("batch times beams must be at most 16777216, got " + std::to_string(batch) + " times " +
         std::to_string(beams_));
  }
  if (filters.size() > 1 && filters.size() != batch) {
    fail("filters must be one or " + std::to_string(batch) + ", one for each of the batch, got " +
         std::to_string(filters.size()));
  }
  for (std::size_t i = 0; i < filters.size(); ++i) {
    if (filters[i] != nullptr && &filters[i]->trie() != trie.get())
      fail(std::string("filter ") + std::to_string(i) + " is of another trie");
  }
  const std::scoped_lock lock(mutex_);
  // Until all memory is there, there is no search.
  trie_ = nullptr;
  ranges_.resize(batch * beams_);
  current_.resize(batch * beams_);
  next_.resize(batch * beams_);
  parents_.resize(trie->levels() * batch * beams_);
  codes_.resize(trie->levels() * batch * beams_);
  logits_.resize(trie->level_size());
  positions_.resize(trie->level_size());
  places_.resize(kLargestChunk);
  rows_.resize(beams_);
  std::fill(current_.begin(), current_.end(), Beam{0, 0.0f});
  trie_ = std::move(trie);
  filters_ = std::move(filters);
  batch_ = batch;
  level_ = 0;
}

void Retriever::require_started() const {
  if (trie_ == nullptr) throw std::logic_error("the search has not been started");
}

std::size_t Retriever::width() const {
  const std::scoped_lock lock(mutex_);
  return width_at(level_);
}

std::size_t Retriever::batch() const {
  const std::scoped_lock lock(mutex_);
  return batch_;
}

std::size_t Retriever::level() const {
  const std::scoped_lock lock(mutex_);
  return level_;
}

const ItemFilter* Retriever::filter(std::size_t search) const {
  return filters_.empty() ? nullptr : filters_[filters_.size() == 1 ? 0 : search].get();
}

void Retriever::check_shape(const LogitsView& logits) const {
  const std::size_t width = width_at(level_);
  if (logits.batch == batch_ && logits.beams == width && logits.level_size == trie_->level_size()) return;
  const auto shape = [](std::size_t batch, std::size_t beams, std::size_t columns) {
    return std::string("(") + std::to_string(batch) + ", " + std::to_string(beams) + ", " + std::to_string(columns) +
           ")";
  };
  fail("logits of level " + std::to_string(level_) + " must be float32 " + shape(batch_, width, trie_->level_size()) +
       ", got " + shape(logits.batch, logits.beams, logits.level_size));
}

void Retriever::step(const LogitsView& logits, std::span<std::int64_t> parents, std::span<std::int64_t> codes,
                     std::span<float> scores) {
  const std::scoped_lock lock(mutex_);
  require_started();
  if (level_ == trie_->levels()) throw std::logic_error("the search is over: all levels are done");
  check_shape(logits);
  const std::size_t slots = batch_ * beams_, values = width_at(level_) * trie_->level_size();
  if (parents.size() != slots || codes.size() != slots || scores.size() != slots) fail("the batch has changed");
  find_ranges();
  for (std::size_t search = 0; search < batch_; ++search) advance(search, logits.values.subspan(search * values));
  std::swap(current_, next_);
  ++level_;
  const std::size_t done = (level_ - 1) * slots;
  std::copy_n(parents_.data() + done, slots, parents.begin());
  std::copy_n(codes_.data() + done, slots, codes.begin());
  std::transform(current_.begin(), current_.end(), scores.begin(), [](const Beam& beam) { return beam.score; });
}

// Of the whole batch at once, so that the codes are on their way while the first searches are done.
void Retriever::find_ranges() {
  for (std::size_t slot = 0; slot < current_.size(); ++slot) {
    if (current_[slot].node < 0 || slot % beams_ >= width_at(level_)) continue;
    ranges_[slot] = trie_->below(level_, static_cast<std::uint64_t>(current_[slot].node));
    trie_->prefetch_codes(level_, ranges_[slot].begin);
  }
}

void Retriever::advance(std::size_t search, std::span<const float> logits) {
  const std::size_t first = search * beams_, columns = trie_->level_size();
  const std::size_t live = summarize(search, logits);
  best_.reset(beams_);
  for (std::size_t rank = 0; rank < live; ++rank) expand(search, rank, logits.subspan(rank * columns, columns));

  std::size_t slot = first;
  std::uint16_t *parents = parents_.data() + level_ * batch_ * beams_,
                *codes = codes_.data() + level_ * batch_ * beams_;
  for (const std::uint64_t key : best_.sorted()) {
    const std::size_t parent = key_parent(key);
    const std::uint64_t edge = ranges_[first + parent].begin + key_position(key);
    trie_->prefetch_below(level_ + 1, edge);
    next_[slot] = {static_cast<std::int64_t>(edge), key_score(key)};
    parents[slot] = static_cast<std::uint16_t>(parent);
    codes[slot++] = trie_->code(level_, edge);
  }
  for (; slot < first + beams_; ++slot) {
    next_[slot] = kDead;
    parents[slot] = codes[slot] = 0;
  }
}

// All rows first, and then the choice: of its branches nobody knows the outcome, and they would keep the processor from
// beginning the next row while it waits for the sums of one.
std::size_t Retriever::summarize(std::size_t search, std::span<const float> logits) {
  const std::size_t first = search * beams_, width = width_at(level_), columns = trie_->level_size();
  std::size_t live = 0;
  for (; live < width && current_[first + live].node >= 0; ++live) {
    const std::span<const float> row = logits.subspan(live * columns, columns);
    prefetch(logits.subspan(live * columns), columns);
    // A beam with all children needs none of their codes.
    const Range range = ranges_[first + live];
    if (range.size() < columns) trie_->prefetch_codes(level_, range);
    rows_[live] = simd().summarize(row.data(), row.size());
    if (!(rows_[live].sum < kInfinity)) check_row(row, search, live);
  }
  return live;
}

// The choice is left out where the best child of the beam would not enter.
void Retriever::expand(std::size_t search, std::size_t rank, std::span<const float> row) {
  const Range range = ranges_[search * beams_ + rank];
  const bool raw = normalization_ == Normalization::kRaw;
  // The best of many children is hardly below the row's best: they are only collected once they are needed.
  const bool many = raw && range.size() > row.size() / 8;
  Children found = many ? Children{} : children(filter(search), row, range);
  if (found.logits.empty() && !many) return;
  const RowSummary norm = raw ? rows_[rank] : simd().summarize(found.logits.data(), found.logits.size());
  if (norm.largest == -kInfinity) return;

  const auto parent = static_cast<double>(current_[search * beams_ + rank].score);
  const auto base = static_cast<float>(parent - log_sum_above(norm));
  if (best_.full() && base <= key_score(best_.worst())) return;
  if (many) found = children(filter(search), row, range);
  offer(found, rank, norm.largest, base);
}

Retriever::Children Retriever::children(const ItemFilter* filter, std::span<const float> row, Range range) {
  if (filter == nullptr && range.size() == row.size()) return {row, nullptr};
  return trie_->narrow() ? gather(filter, row, range, trie_->narrow_codes(level_))
                         : gather(filter, row, range, trie_->wide_codes(level_));
}

template <typename Code>
Retriever::Children Retriever::gather(const ItemFilter* filter, std::span<const float> row, Range range,
                                      const Code* codes) {
  float* logits = logits_.data();
  std::uint32_t* positions = positions_.data();
  const auto take = [&](std::uint64_t edge) {
    *logits++ = row[codes[edge]];
    *positions++ = static_cast<std::uint32_t>(edge - range.begin);
  };
  std::span<const std::uint32_t> listed;
  if (filter != nullptr) listed = filter->listed(level_, range);
  if (filter != nullptr && filter->lists_allowed()) {
    for (const std::uint32_t edge : listed) take(edge);
  } else if (!listed.empty()) {
    auto denied = listed.begin();
    for (std::uint64_t edge = range.begin; edge < range.end; ++edge) {
      denied != listed.end() && *denied == edge ? static_cast<void>(++denied) : take(edge);
    }
  } else {
    for (std::uint64_t edge = range.begin; edge < range.end; ++edge) *logits++ = row[codes[edge]];
    return {{logits_.data(), logits}, nullptr};
  }
  return {{logits_.data(), logits}, positions_.data()};
}

void Retriever::offer(const Children& children, std::size_t rank, float top, float base) {
  const std::span<const float> logits = children.logits;
  std::size_t size = best_.full() ? kLargestChunk : kFirstChunk;
  float floor = -kInfinity;
  if (!best_.full() && beams_ <= kGroups && logits.size() >= kRanked) {
    // Scores below one that M of these children reach are not among the best M; an equal one may be.
    const float reached = (simd().reached_by(logits.data(), logits.size(), beams_) - top) + base;
    floor = limit_for(std::nextafter(reached, -kInfinity), top, base);
    size = kLargestChunk;
  }
  for (std::size_t start = 0; start < logits.size(); start += size) {
    if (start > 0) size = std::min(start, kLargestChunk);
    const std::span<const float> chunk = logits.subspan(start, std::min(size, logits.size() - start));
    const float limit = best_.full() ? limit_for(key_score(best_.worst()), top, base) : floor;
    const std::size_t count = simd().find_above(chunk.data(), chunk.size(), limit, places_.data());
    for (std::size_t i = 0; i < count; ++i) {
      const float score = (chunk[places_[i]] - top) + base;
      if (score == -kInfinity) continue;
      const auto place = static_cast<std::uint32_t>(start) + places_[i];
      const std::uint32_t position = children.positions == nullptr ? place : children.positions[place];
      best_.offer(candidate_key(score, static_cast<std::uint32_t>(rank), position));
    }
  }
}

void Retriever::finish(std::span<std::int64_t> items, std::span<float> scores) const {
  const std::scoped_lock lock(mutex_);
  require_started();
  const std::size_t levels = trie_->levels();
  if (level_ != levels) {
    throw std::logic_error("the search is not over: " + std::to_string(level_) + " of " + std::to_string(levels) +
                           " levels are done");
  }
  if (items.size() != batch_ * beams_ || scores.size() != items.size()) fail("the batch has changed");
  std::fill(items.begin(), items.end(), -1);
  std::fill(scores.begin(), scores.end(), -kInfinity);
  for (std::size_t search = 0; search < batch_; ++search) {
    const std::size_t first = search * beams_;
    std::size_t done = 0;
    for (std::size_t rank = 0; rank < beams_ && current_[first + rank].node >= 0; ++rank) {
      const std::span<std::int64_t> left = items.subspan(first + done, beams_ - done);
      const std::size_t count = take_items(filter(search), current_[first + rank].node, left);
      std::fill_n(scores.begin() + static_cast<std::ptrdiff_t>(first + done), count, current_[first + rank].score);
      done += count;
    }
  }
}

std::size_t Retriever::take_items(const ItemFilter* filter, std::int64_t leaf, std::span<std::int64_t> items) const {
  const std::size_t levels = trie_->levels();
  const Range range = trie_->below(levels, static_cast<std::uint64_t>(leaf));
  std::span<const std::uint32_t> listed;
  if (filter != nullptr) listed = filter->listed(levels, range);
  std::size_t count = 0;
  if (filter != nullptr && filter->lists_allowed()) {
    for (; count < std::min(items.size(), listed.size()); ++count) items[count] = listed[count];
    return count;
  }
  auto denied = listed.begin();
  for (std::uint64_t item = range.begin; item < range.end && count < items.size(); ++item) {
    denied != listed.end() && *denied == item ? static_cast<void>(++denied)
                                              : static_cast<void>(items[count++] = static_cast<std::int64_t>(item));
  }
  return count;
}

void Retriever::paths(std::span<std::uint16_t> codes) const {
  const std::scoped_lock lock(mutex_);
  require_started();
  const std::size_t slots = batch_ * width_at(level_);
  if (codes.size() != slots * level_) fail("the batch has changed");
  for (std::size_t slot = 0; slot < slots && level_ > 0; ++slot) {
    const std::size_t search = slot / beams_;
    for (std::size_t at = slot, level = level_; level-- > 0;) {
      const std::size_t place = level * slots + at;
      codes[slot * level_ + level] = current_[slot].node < 0 ? std::uint16_t{0} : codes_[place];
      at = search * beams_ + parents_[place];
    }
  }
}

void Retriever::nodes(std::span<std::int64_t> nodes) const {
  const std::scoped_lock lock(mutex_);
  require_started();
  const std::size_t width = width_at(level_);
  if (nodes.size() != batch_ * width) fail("the batch has changed");
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const std::int64_t node = current_[i / width * beams_ + i % width].node;
    nodes[i] = node < 0 ? -1 : node + static_cast<std::int64_t>(trie_->first_node(level_));
  }
}

}  // namespace gr2
