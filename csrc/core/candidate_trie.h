// The trie of one request's candidates, and the exact score of each of them from one forward pass over its nodes.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace gr2 {

enum class Normalization {
  kRaw,    // log softmax over the level's whole vocabulary: the joint log-likelihood
  kLocal,  // log softmax over the node's children: the policy that can only choose candidates
};

// The inner nodes are numbered breadth-first: the root is 0, then depth 1 to L - 1, within a depth by code path. The
// distinct full paths, the leaves, follow. Candidates with equal codes share a leaf. Immutable.
class CandidateTrie {
 public:
  static constexpr std::size_t kMaxCandidates = 1024;
  static constexpr std::size_t kMaxLevels = 8;
  // What `fill_mask` writes where a node does not see another.
  static constexpr float kMasked = -1e9f;

  // `codes` is (K, levels) row-major, `known` (K) is 0 or not; the codes of unknown candidates are not read. Throws
  // std::invalid_argument on a code that is not below `level_size` and on sizes out of range.
  CandidateTrie(std::span<const std::uint16_t> codes, std::span<const std::uint8_t> known, std::size_t levels,
                std::uint32_t level_size);

  std::size_t size() const { return size_; }
  std::size_t levels() const { return levels_; }
  std::size_t level_size() const { return level_size_; }
  // Inner nodes, the root among them: at least 1.
  std::size_t node_count() const { return level_begin_[levels_]; }
  // The codes of the inner nodes at `depth`, 1 to L - 1.
  std::span<const std::uint16_t> nodes(std::size_t depth) const;
  // The parent of each inner node; the root's is -1.
  std::span<const std::int32_t> parents() const { return {parents_.data(), node_count()}; }
  // For walking: the children of inner node i are the nodes first_child(i) to first_child(i + 1), in order of their
  // codes, and node i has the candidates sorted()[first_candidate(i)] and on, up to its next sibling's, or, if it is
  // the last, its parent's end. The root has all of `sorted`: the known candidates by code path, then by position.
  std::span<const std::int32_t> sorted() const { return sorted_; }
  std::size_t first_child(std::size_t node) const { return static_cast<std::size_t>(first_child_[node]); }
  std::size_t first_candidate(std::size_t node) const { return begin_[node]; }
  // The first sorted candidate of each leaf.
  std::span<const std::uint16_t> leaf_begins() const { return std::span(begin_).subspan(node_count()); }
  std::uint16_t code(std::size_t node) const { return codes_[node]; }
  // Bytes of its arrays.
  std::size_t bytes() const;
  // `mask` is (n, n) row-major: 0 where the row's node sees the column's, that is itself and its ancestors.
  void fill_mask(std::span<float> mask) const;
  // The inner nodes below the root, m = n - 1 of them. `tokens` (m) is level_size * (depth - 1) + code. `ancestors`
  // (m, L - 1) row-major is a node's own number, its parent's and so on, counted without the root; -1 from there on.
  void fill_tokens(std::span<std::int64_t> tokens) const;
  void fill_ancestors(std::span<std::int64_t> ancestors) const;

  // score(candidate) = sum over its path's nodes of log p(code | node) + prior(candidate).
  // `logits` is (n, level_size) row-major, `prior` (K) or empty. `order` (K) receives the candidates best first, ties
  // in incoming order, the unknown ones last; `scores` (K) by candidate, -infinity for the unknown.
  // Throws std::invalid_argument if a value is NaN or infinite.
  void score(std::span<const float> logits, std::span<const float> prior, Normalization normalization,
             std::span<std::int32_t> order, std::span<float> scores) const;

 private:
  void sort_candidates(std::span<const std::uint16_t> codes, std::span<const std::uint8_t> known);
  void build_levels(std::span<const std::uint16_t> codes);
  std::span<const std::uint16_t> child_codes(std::size_t node) const;
  std::vector<double> path_scores(std::span<const float> logits, Normalization normalization) const;

  std::size_t size_;
  std::size_t levels_;
  std::uint32_t level_size_;
  std::vector<std::int32_t> sorted_;   // known candidates by code path, then by position
  std::vector<std::uint8_t> shared_;   // levels that sorted candidate i shares with i - 1
  std::vector<std::int32_t> leaf_;     // node of each sorted candidate
  std::vector<std::int32_t> parents_;  // inner nodes and leaves
  std::vector<std::uint16_t> codes_;   // inner nodes and leaves
  std::vector<std::uint16_t> begin_;   // first sorted candidate of inner nodes and leaves
  std::vector<std::int32_t>
      first_child_;  // inner nodes and one more: node i has the children first_child_[i] to [i + 1]
  std::array<std::size_t, kMaxLevels + 2> level_begin_{};  // first node of each depth 0 to L, and the number of all
};

}  // namespace gr2
