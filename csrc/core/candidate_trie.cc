#include "core/candidate_trie.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/logsumexp.h"

namespace gr2 {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument(message);
}

void check_finite(std::span<const float> row, const std::string& where, const char* unit) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (!std::isfinite(row[i])) fail(where + unit + std::to_string(i) + " is " + std::to_string(row[i]));
  }
}

// The logarithm of the softmax's denominator over the children alone. A lone child costs nothing.
double log_sum_children(std::span<const float> row, std::span<const std::uint16_t> children) {
  if (children.size() == 1) return static_cast<double>(row[children[0]]);
  float top = row[children[0]];
  for (const std::uint16_t code : children) top = std::max(top, row[code]);
  double sum = 0.0;
  for (const std::uint16_t code : children) sum += std::exp(static_cast<double>(row[code]) - static_cast<double>(top));
  return static_cast<double>(top) + std::log(sum);
}

// The bits of a float such that unsigned order is descending order of the values.
std::uint32_t descending_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);  // -0 becomes 0
  return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

}  // namespace

CandidateTrie::CandidateTrie(std::span<const std::uint16_t> codes, std::span<const std::uint8_t> known,
                             std::size_t levels, std::uint32_t level_size)
    : size_(known.size()), levels_(levels), level_size_(level_size) {
  if (levels < 1 || levels > kMaxLevels) fail("codes must have 1 to 8 levels, got " + std::to_string(levels));
  if (level_size < 1 || level_size > 65536) fail("level_size must be 1 to 65536, got " + std::to_string(level_size));
  if (size_ > kMaxCandidates) fail("at most 1024 candidates, got " + std::to_string(size_));
  assert(codes.size() == size_ * levels_);
  for (std::size_t i = 0; i < size_; ++i) {
    for (std::size_t level = 0; known[i] != 0 && level < levels; ++level) {
      const std::uint32_t code = codes[i * levels + level];
      if (code >= level_size) {
        fail("codes of candidate " + std::to_string(i) + " at level " + std::to_string(level) + " are " +
             std::to_string(code) + ", level_size is " + std::to_string(level_size));
      }
    }
  }
  sort_candidates(codes, known);
  build_levels(codes);
}

void CandidateTrie::sort_candidates(std::span<const std::uint16_t> codes, std::span<const std::uint8_t> known) {
  sorted_.reserve(size_);
  for (std::size_t i = 0; i < size_; ++i) {
    if (known[i] != 0) sorted_.push_back(static_cast<std::int32_t>(i));
  }
  shared_.resize(sorted_.size(), 0);
  const auto bits = static_cast<std::size_t>(std::bit_width(level_size_ - 1));
  const auto position_bits = static_cast<std::size_t>(std::bit_width(kMaxCandidates - 1));
  const auto row = [&](std::int32_t candidate) { return codes.data() + static_cast<std::size_t>(candidate) * levels_; };
  if (levels_ * bits + position_bits <= 64) {
    // The path and the position in one word, which also settles the order of equal paths.
    std::vector<std::uint64_t> keys(sorted_.size());
    for (std::size_t i = 0; i < sorted_.size(); ++i) {
      std::uint64_t key = 0;
      for (std::size_t level = 0; level < levels_; ++level) key = key << bits | row(sorted_[i])[level];
      keys[i] = key << position_bits | static_cast<std::uint64_t>(sorted_[i]);
    }
    std::sort(keys.begin(), keys.end());
    for (std::size_t i = 0; i < keys.size(); ++i) {
      sorted_[i] = static_cast<std::int32_t>(keys[i] & (kMaxCandidates - 1));
    }
  } else {
    std::sort(sorted_.begin(), sorted_.end(), [&](std::int32_t a, std::int32_t b) {
      const auto order = std::lexicographical_compare_three_way(row(a), row(a) + levels_, row(b), row(b) + levels_);
      return order != 0 ? order < 0 : a < b;
    });
  }
  for (std::size_t i = 1; i < sorted_.size(); ++i) {
    const std::uint16_t *here = row(sorted_[i]), *before = row(sorted_[i - 1]);
    shared_[i] = static_cast<std::uint8_t>(std::mismatch(here, here + levels_, before).first - here);
  }
}

void CandidateTrie::build_levels(std::span<const std::uint16_t> codes) {
  const std::size_t most = 1 + sorted_.size() * levels_;
  parents_.reserve(most);
  codes_.reserve(most);
  begin_.reserve(most);
  first_child_.reserve(most + 1);
  parents_.push_back(-1);
  codes_.push_back(0);
  begin_.push_back(0);
  leaf_.assign(sorted_.size(), 0);
  for (std::size_t depth = 1; depth <= levels_; ++depth) {
    level_begin_[depth] = parents_.size();
    for (std::size_t i = 0; i < sorted_.size(); ++i) {
      if (i == 0 || shared_[i] < depth) {
        const auto node = static_cast<std::int32_t>(parents_.size());
        const std::int32_t parent = leaf_[i];
        if (parents_.back() != parent) first_child_.push_back(node);
        parents_.push_back(parent);
        codes_.push_back(codes[static_cast<std::size_t>(sorted_[i]) * levels_ + depth - 1]);
        begin_.push_back(static_cast<std::uint16_t>(i));
      }
      leaf_[i] = static_cast<std::int32_t>(parents_.size()) - 1;
    }
  }
  level_begin_[levels_ + 1] = parents_.size();
  first_child_.resize(node_count() + 1, static_cast<std::int32_t>(parents_.size()));
}

std::span<const std::uint16_t> CandidateTrie::nodes(std::size_t depth) const {
  assert(depth >= 1 && depth < levels_);
  return std::span(codes_).subspan(level_begin_[depth], level_begin_[depth + 1] - level_begin_[depth]);
}

std::size_t CandidateTrie::bytes() const {
  const auto size = [](const auto& values) { return values.size() * sizeof values[0]; };
  return size(sorted_) + size(shared_) + size(leaf_) + size(parents_) + size(codes_) + size(begin_) +
         size(first_child_);
}

std::span<const std::uint16_t> CandidateTrie::child_codes(std::size_t node) const {
  const auto begin = static_cast<std::size_t>(first_child_[node]),
             end = static_cast<std::size_t>(first_child_[node + 1]);
  return std::span(codes_).subspan(begin, end - begin);
}

void CandidateTrie::fill_mask(std::span<float> mask) const {
  const std::size_t n = node_count();
  assert(mask.size() == n * n);
  std::fill(mask.begin(), mask.end(), kMasked);
  for (std::size_t row = 0; row < n; ++row) {
    for (auto node = static_cast<std::int32_t>(row); node >= 0; node = parents_[static_cast<std::size_t>(node)]) {
      mask[row * n + static_cast<std::size_t>(node)] = 0.0f;
    }
  }
}

void CandidateTrie::fill_tokens(std::span<std::int64_t> tokens) const {
  assert(tokens.size() == node_count() - 1);
  for (std::size_t depth = 1; depth < levels_; ++depth) {
    const auto first = static_cast<std::int64_t>((depth - 1) * level_size_);
    for (std::size_t node = level_begin_[depth]; node < level_begin_[depth + 1]; ++node) {
      tokens[node - 1] = first + codes_[node];
    }
  }
}

void CandidateTrie::fill_ancestors(std::span<std::int64_t> ancestors) const {
  assert(ancestors.size() == (node_count() - 1) * (levels_ - 1));
  std::fill(ancestors.begin(), ancestors.end(), -1);
  for (std::size_t node = 1; node < node_count(); ++node) {
    std::size_t place = (node - 1) * (levels_ - 1);
    for (auto at = static_cast<std::int32_t>(node); at > 0; at = parents_[static_cast<std::size_t>(at)]) {
      ancestors[place++] = at - 1;
    }
  }
}

std::vector<double> CandidateTrie::path_scores(std::span<const float> logits, Normalization normalization) const {
  std::vector<double> scores(parents_.size(), 0.0);
  for (std::size_t node = 0; node < node_count(); ++node) {
    const std::span<const float> row = logits.subspan(node * level_size_, level_size_);
    const std::span<const std::uint16_t> children = child_codes(node);
    double denominator = std::numeric_limits<double>::quiet_NaN();
    if (normalization == Normalization::kRaw) {
      denominator = logsumexp(row);
    } else if (all_finite(row)) {
      denominator = children.empty() ? 0.0 : log_sum_children(row, children);
    }
    if (std::isnan(denominator)) check_finite(row, "logits row " + std::to_string(node), " column ");
    for (std::size_t i = 0; i < children.size(); ++i) {
      const auto child = static_cast<std::size_t>(first_child_[node]) + i;
      scores[child] = scores[node] + (static_cast<double>(row[children[i]]) - denominator);
    }
  }
  return scores;
}

void CandidateTrie::score(std::span<const float> logits, std::span<const float> prior, Normalization normalization,
                          std::span<std::int32_t> order, std::span<float> scores) const {
  assert(logits.size() == node_count() * level_size_ && (prior.empty() || prior.size() == size_));
  assert(order.size() == size_ && scores.size() == size_);
  if (!all_finite(prior)) check_finite(prior, "prior", " row ");
  const std::vector<double> paths = path_scores(logits, normalization);

  constexpr double kLimit = std::numeric_limits<float>::max();
  std::fill(scores.begin(), scores.end(), -std::numeric_limits<float>::infinity());
  std::vector<std::uint64_t> keys(sorted_.size());
  for (std::size_t i = 0; i < sorted_.size(); ++i) {
    const auto candidate = static_cast<std::size_t>(sorted_[i]);
    double total = paths[static_cast<std::size_t>(leaf_[i])];
    if (!prior.empty()) total += static_cast<double>(prior[candidate]);
    scores[candidate] = static_cast<float>(std::clamp(total, -kLimit, kLimit));
    keys[i] = std::uint64_t{descending_bits(scores[candidate])} << 32 | candidate;
  }
  std::sort(keys.begin(), keys.end());
  std::size_t next = 0;
  for (const std::uint64_t key : keys) order[next++] = static_cast<std::int32_t>(key & 0xffffffffu);
  for (std::size_t i = 0; next < size_; ++i) {
    if (scores[i] == -std::numeric_limits<float>::infinity()) order[next++] = static_cast<std::int32_t>(i);
  }
}

}  // namespace gr2
