#include "core/item_memory.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/array_reader.h"
#include "core/errors.h"
#include "core/hash.h"
#include "core/pair_kernels.h"

namespace gr2 {
namespace {

// Columns, in the order of gr2/models/memory.py.
enum Column : std::size_t {
  kCoWeighted,
  kCoRecent,
  kCoLastWeighted,
  kCo,
  kCoLast,
  kCoShare,
  kPopularity,
  kPrefixMean,
  kPrefixMax,
  kPrefixLast,
  kFollowingLastWeighted,
  kFollowingRecentWeighted,
  kFollowingLast,
  kFollowing,
  kTitleMean,
  kTitleMax,
  kTitleLast,
  kTogether,
  kText = kTogether + 4,
  kEnd = kText + 4
};
static_assert(kEnd == ItemMemory::kColumns);

std::vector<float> decays(float decay, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(std::pow(static_cast<double>(decay), static_cast<double>(count - 1 - i)));
  }
  return values;
}

}  // namespace

// The candidates of a request by their rows.
class ItemMemory::Slate {
 public:
  Slate(std::span<const std::int64_t> own, std::size_t items)
      : mask_(std::bit_ceil(4 * own.size() + 1) - 1), keys_(mask_ + 1, -1), first_(mask_ + 1), next_(own.size(), -1) {
    for (std::size_t i = own.size(); i-- > 0;) {
      if (own[i] >= static_cast<std::int64_t>(items)) continue;
      const auto row = static_cast<std::int32_t>(own[i]);
      const std::size_t place = find_place(row);
      next_[i] = keys_[place] == row ? first_[place] : -1;
      keys_[place] = row;
      first_[place] = static_cast<std::int32_t>(i);
      marks_.add(row);
    }
  }

  // Which of the rows may be candidates': nearly all that are asked for are none's.
  std::uint64_t marked(std::span<const std::int32_t> rows) const { return marks_.find(rows); }
  // The first candidate with the row, -1 if there is none; `next` gives the others.
  std::int32_t first(std::int32_t row) const {
    const std::size_t place = find_place(row);
    return keys_[place] == row ? first_[place] : -1;
  }
  std::int32_t next(std::int32_t candidate) const { return next_[static_cast<std::size_t>(candidate)]; }

 private:
  std::size_t find_place(std::int32_t row) const {
    std::size_t place = (static_cast<std::uint32_t>(row) * 0x9e3779b1u >> 7) & mask_;
    while (keys_[place] >= 0 && keys_[place] != row) place = (place + 1) & mask_;
    return place;
  }

  std::size_t mask_;
  std::vector<std::int32_t> keys_, first_, next_;
  RowMarks marks_;
};

ItemMemory::ItemMemory(const std::string& path) : file_(path) {
  ItemMemoryHeader header;
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < sizeof header) throw FormatError(path, "not a memory file: it is too short");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, ItemMemoryHeader::kMagic, sizeof header.magic) != 0 ||
      header.version != ItemMemoryHeader::kVersion) {
    throw FormatError(path, "not a memory file of version " + std::to_string(ItemMemoryHeader::kVersion));
  }
  if (header.levels < 1 || header.levels > 8 || header.items >= std::numeric_limits<std::int32_t>::max()) {
    throw FormatError(path, "levels or items are out of range");
  }
  if (!(header.decay >= 0.0f && header.decay <= 1.0f)) throw FormatError(path, "the decay is not in [0, 1]");
  items_ = header.items;
  levels_ = header.levels;
  decay_ = header.decay;
  ArrayReader reader(path, "memory", bytes, sizeof header);
  codes_ = reader.take<std::uint16_t>(items_, levels_);
  popularity_ = reader.take<float>(items_, 1);
  Neighbours* const neighbours[] = {&co_, &following_, &titles_};
  for (std::size_t i = 0; i < 3; ++i) {
    neighbours[i]->width = header.neighbours[i];
    neighbours[i]->items = reader.take<std::int32_t>(items_, header.neighbours[i]);
    neighbours[i]->weights = reader.take<float>(items_, header.neighbours[i]);
  }
  together_ = {reader.take<float>(items_, header.widths[0]), header.widths[0]};
  text_ = {reader.take<float>(items_, header.widths[1]), header.widths[1]};
  reader.finish();
  index_codes();
}

void ItemMemory::index_codes() {
  places_.assign(std::bit_ceil(2 * items_ + 1), 0);
  const std::size_t bytes = levels_ * sizeof codes_[0], mask = places_.size() - 1;
  for (std::size_t row = 0; row < items_; ++row) {
    const std::uint16_t* const own = codes_.data() + row * levels_;
    std::size_t place = hash_bytes(own, bytes) & mask;
    while (places_[place] != 0 && std::memcmp(codes_.data() + (places_[place] - 1) * levels_, own, bytes) != 0) {
      place = (place + 1) & mask;
    }
    if (places_[place] == 0) places_[place] = static_cast<std::uint32_t>(row + 1);
  }
}

void ItemMemory::find(std::span<const std::uint16_t> codes, std::span<std::int64_t> rows) const {
  assert(codes.size() == rows.size() * levels_);
  const std::size_t bytes = levels_ * sizeof codes[0], mask = places_.size() - 1;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::uint16_t* const wanted = codes.data() + i * levels_;
    std::size_t place = hash_bytes(wanted, bytes) & mask;
    while (places_[place] != 0 && std::memcmp(codes_.data() + (places_[place] - 1) * levels_, wanted, bytes) != 0) {
      place = (place + 1) & mask;
    }
    rows[i] = static_cast<std::int64_t>(places_[place] == 0 ? items_ : places_[place] - 1);
  }
}

void ItemMemory::columns(std::span<const std::int64_t> past, std::span<const std::uint16_t> past_codes,
                         std::span<const std::int64_t> own, std::span<const std::uint16_t> own_codes,
                         std::span<float> columns) const {
  assert(past_codes.size() == past.size() * levels_ && own_codes.size() == own.size() * levels_);
  assert(columns.size() == own.size() * kColumns);
  std::fill(columns.begin(), columns.end(), 0.0f);
  const std::vector<float> decay = decays(decay_, past.size());
  add_neighbours(past, decay, Slate(own, items_), columns);
  add_prefixes(past_codes, own_codes, columns);
  add_products(together_, past, decay, own, columns, kTogether);
  add_products(text_, past, decay, own, columns, kText);
  const float size = static_cast<float>(std::max<std::size_t>(past.size(), 1));
  for (std::size_t i = 0; i < own.size(); ++i) {
    float* const row = columns.data() + i * kColumns;
    const auto item = static_cast<std::size_t>(own[i]);
    const float popularity = item < items_ ? popularity_[item] : 0.0f;
    const float norm = std::sqrt(1.0f + popularity);
    row[kCoWeighted] = std::log1p(row[kCo] / norm);
    row[kCoRecent] = std::log1p(row[kCoRecent] / norm);
    row[kCoLastWeighted] = std::log1p(row[kCoLast] / norm);
    row[kCo] = std::log1p(row[kCo]);
    row[kCoLast] = std::log1p(row[kCoLast]);
    row[kCoShare] /= size;
    row[kPopularity] = std::log1p(popularity);
    row[kPrefixMean] /= size;
    row[kFollowingLastWeighted] = std::log1p(row[kFollowingLast] / norm);
    row[kFollowingRecentWeighted] = std::log1p(row[kFollowingRecentWeighted] / norm);
    row[kFollowingLast] = std::log1p(row[kFollowingLast]);
    row[kFollowing] = std::log1p(row[kFollowing]);
    row[kTitleMean] /= size;
    for (const std::size_t space : {kTogether, kText}) row[space + 1] /= size;
  }
}

// Sums over the history: of counts, of how many are above 0, and of what the newest item has.
void ItemMemory::add_neighbours(std::span<const std::int64_t> past, std::span<const float> decay, const Slate& slate,
                                std::span<float> columns) const {
  for (std::size_t t = 0; t < past.size(); ++t) {
    const auto item = static_cast<std::size_t>(past[t]);
    if (item >= items_) continue;
    const bool newest = t + 1 == past.size();
    const auto visit = [&](const Neighbours& near, auto add) {
      const std::size_t end = (item + 1) * near.width;
      for (std::size_t start = item * near.width; start < end; start += RowMarks::kTogether) {
        const std::size_t count = std::min(RowMarks::kTogether, end - start);
        for (std::uint64_t left = slate.marked(near.items.subspan(start, count)); left != 0; left &= left - 1) {
          const std::size_t j = start + static_cast<std::size_t>(std::countr_zero(left));
          for (std::int32_t c = slate.first(near.items[j]); c >= 0; c = slate.next(c)) {
            add(columns.data() + static_cast<std::size_t>(c) * kColumns, near.weights[j]);
          }
        }
      }
    };
    visit(co_, [&](float* row, float weight) {
      row[kCo] += weight;
      row[kCoRecent] += weight * decay[t];
      row[kCoShare] += weight > 0.0f ? 1.0f : 0.0f;
      if (newest) row[kCoLast] += weight;
    });
    visit(following_, [&](float* row, float weight) {
      row[kFollowing] += weight;
      row[kFollowingRecentWeighted] += weight * decay[t];
      if (newest) row[kFollowingLast] += weight;
    });
    visit(titles_, [&](float* row, float weight) {
      row[kTitleMean] += weight;
      row[kTitleMax] = std::max(row[kTitleMax], weight);
      if (newest) row[kTitleLast] += weight;
    });
  }
}

void ItemMemory::add_prefixes(std::span<const std::uint16_t> past_codes, std::span<const std::uint16_t> own_codes,
                              std::span<float> columns) const {
  const float levels = static_cast<float>(levels_);
  for (std::size_t i = 0; i * levels_ < own_codes.size(); ++i) {
    const std::uint16_t* const own = own_codes.data() + i * levels_;
    float* const row = columns.data() + i * kColumns;
    std::size_t total = 0, largest = 0, last = 0;
    for (std::size_t start = 0; start < past_codes.size(); start += levels_) {
      last = 0;
      while (last < levels_ && past_codes[start + last] == own[last]) ++last;
      total += last;
      largest = std::max(largest, last);
    }
    row[kPrefixMean] = static_cast<float>(total) / levels;
    row[kPrefixMax] = static_cast<float>(largest) / levels;
    row[kPrefixLast] = static_cast<float>(last) / levels;
  }
}

// The product with the newest item, the sum of all products, the largest of them, if above 0, and their decayed sum.
void ItemMemory::add_products(const Vectors& vectors, std::span<const std::int64_t> past, std::span<const float> decay,
                              std::span<const std::int64_t> own, std::span<float> columns, std::size_t first) const {
  if (vectors.width == 0) return;
  const std::size_t quads = (vectors.width + kQuad - 1) / kQuad, stride = quads * kQuad;
  const auto vector = [&](std::size_t item) { return vectors.values.data() + item * vectors.width; };
  std::vector<float> rows, weights;
  bool newest = false;
  for (std::size_t t = 0; t < past.size(); ++t) {
    const auto item = static_cast<std::size_t>(past[t]);
    newest = item < items_;
    if (!newest) continue;
    rows.resize(rows.size() + stride);
    std::copy_n(vector(item), vectors.width, rows.end() - static_cast<std::ptrdiff_t>(stride));
    weights.push_back(decay[t]);
  }
  std::vector<float> packed(stride * kQuad);
  for (std::size_t start = 0; start < own.size(); start += kQuad) {
    const std::size_t count = std::min(kQuad, own.size() - start);
    std::fill(packed.begin(), packed.end(), 0.0f);
    for (std::size_t i = 0; i < count; ++i) {
      const auto item = static_cast<std::size_t>(own[start + i]);
      if (item >= items_) continue;
      // Of a fixed size, which is one instruction; the rest of the last four is a call.
      std::size_t k = 0;
      for (; k + kQuad <= vectors.width; k += kQuad)
        std::copy_n(vector(item) + k, kQuad, packed.data() + (k + i) * kQuad);
      if (k < vectors.width) std::copy_n(vector(item) + k, vectors.width - k, packed.data() + (k + i) * kQuad);
    }
    const ProductSums sums = sum_products(packed.data(), rows, weights, quads);
    for (std::size_t i = 0; i < count; ++i) {
      if (static_cast<std::size_t>(own[start + i]) >= items_) continue;
      float* const row = columns.data() + (start + i) * kColumns + first;
      if (newest) row[0] = sums.last[i];
      row[1] = sums.total[i];
      row[2] = sums.largest[i];
      row[3] = sums.weighted[i];
    }
  }
}

}  // namespace gr2
