#include "core/generation.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/logsumexp.h"
#include "core/sampling.h"

namespace gr2 {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNotGiven = std::numeric_limits<float>::quiet_NaN();

float clamped(double value) {
  constexpr double kLimit = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kLimit, kLimit));
}

}  // namespace

CandidateDecoder::CandidateDecoder(std::shared_ptr<const CandidateTrie> trie, const GenerationOptions& options)
    : trie_(std::move(trie)), options_(options) {
  check_temperature(options.temperature);
  if (options.top_n < 1) throw std::invalid_argument("top_n must be at least 1, got 0");
  const std::size_t items = std::min(options.top_n, trie_->sorted().size());
  order_.reserve(items);
  codes_.reserve(items * trie_->levels());
  forced_.reserve(items * trie_->levels());
  local_.reserve(items * trie_->levels());
  raw_.reserve(items * trie_->levels());
  reset(options.seed);
}

void CandidateDecoder::reset(std::uint64_t seed) {
  options_.seed = seed;
  cum_.resize(trie_->sorted().size() + 1);
  std::iota(cum_.begin(), cum_.end(), std::int16_t{0});
  order_.clear();
  codes_.clear();
  forced_.clear();
  local_.clear();
  raw_.clear();
  decisions_ = 0;
  fresh_ = 0;
  node_ = depth_ = 0;
  end_ = trie_->sorted().size();
  advance();
}

std::size_t CandidateDecoder::child_end(std::size_t child) const {
  return child + 1 < trie_->first_child(node_ + 1) ? trie_->first_candidate(child + 1) : end_;
}

// Fills the children that still have a candidate; true if there is a choice between them.
bool CandidateDecoder::collect_children() {
  allowed_.clear();
  children_.clear();
  std::size_t begin = trie_->first_candidate(node_);
  for (std::size_t child = trie_->first_child(node_); child < trie_->first_child(node_ + 1); ++child) {
    const std::size_t end = child_end(child);
    if (cum_[end] > cum_[begin]) {
      children_.push_back(static_cast<std::int32_t>(child));
      allowed_.push_back(trie_->code(child));
    }
    begin = end;
  }
  return children_.size() > 1;
}

void CandidateDecoder::advance() {
  for (;;) {
    if (depth_ == trie_->levels()) emit();
    if (cum_.back() == 0 || order_.size() == options_.top_n) return stop();
    if (collect_children()) return;
    descend(static_cast<std::size_t>(children_[0]), true, 0.0f, kNotGiven);
  }
}

void CandidateDecoder::descend(std::size_t child, bool forced, float local, float raw) {
  end_ = child_end(child);
  node_ = child;
  ++depth_;
  codes_.push_back(trie_->code(child));
  forced_.push_back(forced);
  local_.push_back(local);
  raw_.push_back(raw);
}

// Candidates of a leaf go in order, so the number that is left says which one is next.
void CandidateDecoder::emit() {
  const auto left = static_cast<std::size_t>(cum_[end_] - cum_[trie_->first_candidate(node_)]);
  const std::size_t place = end_ - left;
  order_.push_back(trie_->sorted()[place]);
  for (std::size_t i = place + 1; i < cum_.size(); ++i) cum_[i] = static_cast<std::int16_t>(cum_[i] - 1);
  node_ = depth_ = 0;
  end_ = trie_->sorted().size();
}

void CandidateDecoder::stop() {
  allowed_.clear();
  children_.clear();
}

std::int32_t CandidateDecoder::first_remaining(std::size_t child) const {
  std::int32_t first = std::numeric_limits<std::int32_t>::max();
  const std::size_t end = child_end(child);
  for (std::size_t i = trie_->first_candidate(child); i < end; ++i) {
    if (cum_[i + 1] > cum_[i]) first = std::min(first, trie_->sorted()[i]);
  }
  return first;
}

void CandidateDecoder::check_due() const {
  if (done()) throw std::logic_error("no decision is due: the decoder is done");
}

void CandidateDecoder::check_logits(std::span<const float> logits, std::size_t row) const {
  assert(logits.size() == trie_->level_size());
  if (all_finite(logits)) return;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == kInfinity) {
      throw std::invalid_argument("logits row " + std::to_string(row) + " column " + std::to_string(i) + " is " +
                                  std::to_string(logits[i]));
    }
  }
}

double CandidateDecoder::key(std::size_t child, std::span<const float> logits) const {
  const std::uint16_t code = trie_->code(child);
  const auto logit = static_cast<double>(logits[code]);
  if (options_.choice == Choice::kGreedy) return logit;
  return logit / options_.temperature + gumbel(options_.seed, decisions_, code);
}

std::int32_t CandidateDecoder::push(std::span<const float> logits, std::size_t row) {
  check_due();
  check_logits(logits, row);
  auto best = static_cast<std::size_t>(children_[0]);
  double best_key = key(best, logits);
  for (std::size_t i = 1; i < children_.size(); ++i) {
    const auto child = static_cast<std::size_t>(children_[i]);
    const double each = key(child, logits);
    if (each > best_key || (each == best_key && first_remaining(child) < first_remaining(best))) {
      best = child;
      best_key = each;
    }
  }
  if (best_key == -std::numeric_limits<double>::infinity()) {
    fresh_ = codes_.size();
    stop();
    return -1;
  }
  const std::uint16_t code = trie_->code(best);
  take(best, logits);
  return code;
}

void CandidateDecoder::accept(std::uint16_t code, std::span<const float> logits) {
  check_due();
  const auto place = std::lower_bound(allowed_.begin(), allowed_.end(), code);
  if (place == allowed_.end() || *place != code) {
    throw std::invalid_argument("code " + std::to_string(code) + " is not allowed at level " + std::to_string(depth_));
  }
  if (!logits.empty()) {
    check_logits(logits, 0);
    if (logits[code] == -kInfinity) throw std::invalid_argument("code " + std::to_string(code) + " is masked");
  }
  take(static_cast<std::size_t>(children_[static_cast<std::size_t>(place - allowed_.begin())]), logits);
}

// log softmax(logits / temperature)[code] over the level; masked codes add nothing.
float CandidateDecoder::raw_log_prob(std::span<const float> logits, std::uint16_t code) {
  if (logits[code] == -kInfinity) return -kInfinity;
  if (options_.temperature == 1.0) {
    const double sum = logsumexp(logits);
    if (!std::isnan(sum)) return clamped(static_cast<double>(logits[code]) - sum);
  }
  scaled_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    scaled_[i] = clamped(static_cast<double>(logits[i]) / options_.temperature);
  }
  return clamped(static_cast<double>(scaled_[code]) - logsumexp(scaled_));
}

void CandidateDecoder::take(std::size_t child, std::span<const float> logits) {
  float local = kNotGiven, raw = kNotGiven;
  if (!logits.empty()) {
    const auto logit = [&](std::uint16_t code) { return static_cast<double>(logits[code]) / options_.temperature; };
    const double own = logit(trie_->code(child));
    double top = own, sum = 0.0;
    for (const std::uint16_t code : allowed_) top = std::max(top, logit(code));
    for (const std::uint16_t code : allowed_) sum += std::exp(logit(code) - top);
    local = clamped(own - top - std::log(sum));
    // Above, float32 exponentials of the whole level may sum to less than the allowed ones by a rounding error.
    raw = std::min(raw_log_prob(logits, trie_->code(child)), local);
  }
  fresh_ = codes_.size();
  ++decisions_;
  descend(child, false, local, raw);
  advance();
}

void CandidateDecoder::score_forced(std::span<const float> logits) {
  const std::size_t rows = forced_count(), columns = trie_->level_size(), first = codes_.size() - rows;
  assert(logits.size() == rows * columns);
  for (std::size_t row = 0; row < rows; ++row) check_logits(logits.subspan(row * columns, columns), row);
  for (std::size_t row = 0; row < rows; ++row) {
    raw_[first + row] = raw_log_prob(logits.subspan(row * columns, columns), codes_[first + row]);
  }
}

void CandidateDecoder::item_log_probs(Normalization normalization, std::span<float> sums) const {
  assert(sums.size() == order_.size());
  auto next = log_probs(normalization).begin();
  for (float& sum : sums) {
    double total = 0.0;
    for (std::size_t level = 0; level < trie_->levels(); ++level) total += static_cast<double>(*next++);
    sum = std::isfinite(total) ? clamped(total) : static_cast<float>(total);
  }
}

void CandidateDecoder::ranking(std::span<const float> scores, std::span<std::int32_t> order) const {
  assert(order.size() == trie_->size() && (scores.empty() || scores.size() == trie_->size()));
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::isnan(scores[i])) throw std::invalid_argument("scores row " + std::to_string(i) + " is nan");
  }
  const std::size_t left = remaining();
  if (left > 1 && scores.empty()) {
    throw std::invalid_argument("scores are needed: " + std::to_string(left) + " candidates were not generated");
  }
  enum : std::uint8_t { kUnknown, kLeft, kEmitted };
  std::vector<std::uint8_t> state(trie_->size(), kUnknown);
  for (const std::int32_t candidate : trie_->sorted()) state[static_cast<std::size_t>(candidate)] = kLeft;
  for (const std::int32_t candidate : order_) state[static_cast<std::size_t>(candidate)] = kEmitted;
  const auto place = [&](auto to, std::uint8_t wanted) {
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (state[i] == wanted) *to++ = static_cast<std::int32_t>(i);
    }
    return to;
  };
  const auto tail = std::copy(order_.begin(), order_.end(), order.begin());
  const auto unknown = place(tail, kLeft);
  std::stable_sort(tail, unknown, [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  place(unknown, kUnknown);
}

std::size_t CandidateDecoder::bytes() const {
  return cum_.size() * sizeof cum_[0] + allowed_.capacity() * sizeof allowed_[0] +
         children_.capacity() * sizeof children_[0];
}

}  // namespace gr2
