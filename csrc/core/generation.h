// Emits a request's candidates one after the other under a model that sees what was emitted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/candidate_trie.h"

namespace gr2 {

enum class Choice {
  kGreedy,  // the largest logit, ties by the lowest position that the child still has
  kSample,  // the largest logit / temperature + Gumbel draw: a sample of the local policy
};

struct GenerationOptions {
  Choice choice = Choice::kGreedy;
  std::uint64_t seed = 0;
  double temperature = 1.0;  // 0.001 to 1000
  std::size_t top_n = 1024;  // items to emit at most, at least 1
};

// At the start and after each decision the decoder walks on by itself while only one code is allowed, through any
// number of items: those codes are forced. It stops at a node with several allowed codes, where a decision is due, or
// is done. An item that was emitted leaves the set; among candidates with equal codes it is the first.
//
// The state is `cum`, where cum[i] counts the remaining of the first i sorted candidates: a node over [lo, hi) is
// allowed iff cum[hi] > cum[lo], and removing candidate i takes 1 from cum[i + 1] and on. Not thread-safe.
class CandidateDecoder {
 public:
  // Throws std::invalid_argument on options out of range.
  CandidateDecoder(std::shared_ptr<const CandidateTrie> trie, const GenerationOptions& options);
  // Back to the start.
  void reset(std::uint64_t seed);

  const CandidateTrie& trie() const { return *trie_; }
  // No decision is due: all was emitted, or top_n items, or nothing may be chosen.
  bool done() const { return children_.empty(); }
  // Where the coming decision is due; -1 if none is.
  std::int32_t node() const { return done() ? -1 : static_cast<std::int32_t>(node_); }
  // The codes since the last decision, with the one it chose: what the context must take in before the next.
  std::span<const std::uint16_t> append() const { return std::span(codes_).subspan(fresh_); }
  // The codes that the coming decision may choose, ascending; empty if done.
  std::span<const std::uint16_t> allowed() const { return allowed_; }

  // Chooses by the level's `logits` (V), of which -infinity masks a code, and returns the code. If all allowed codes
  // are masked it is -1: nothing is emitted, and the decoder is done. Throws std::invalid_argument on NaN and
  // +infinity, naming `row` and column, and std::logic_error if done.
  std::int32_t push(std::span<const float> logits, std::size_t row = 0);
  // Takes a choice made elsewhere; `logits` (V) or empty. Throws as `push` does, std::invalid_argument also if `code`
  // is not allowed or masked.
  void accept(std::uint16_t code, std::span<const float> logits);
  // The raw log-probabilities of the forced codes in `append`, from the logits that predict them, (forced, V)
  // row-major.
  void score_forced(std::span<const float> logits);
  // Nothing more is emitted.
  void stop();
  // Of the codes in `append`: all but a chosen first one.
  std::size_t forced_count() const { return codes_.size() - fresh_ - (fresh_ < codes_.size() && !forced_[fresh_]); }

  // Known candidates that were not emitted.
  std::size_t remaining() const { return static_cast<std::size_t>(cum_.back()); }
  // The emitted candidates, in order.
  std::span<const std::int32_t> order() const { return order_; }
  // Every code since the start, `levels` an item; and for each whether it was forced, and its log-probability under
  // logits / temperature: local is over the codes allowed, 0 if forced; raw is over the whole level, NaN where no
  // logits were given.
  std::span<const std::uint16_t> codes() const { return codes_; }
  std::span<const std::uint8_t> forced() const { return forced_; }
  std::span<const float> log_probs(Normalization normalization) const {
    return normalization == Normalization::kRaw ? raw_ : local_;
  }
  // For each emitted candidate the sum over its codes; `sums` has the size of `order`.
  void item_log_probs(Normalization normalization, std::span<float> sums) const;
  // All candidates: the emitted, the other known ones by `scores` (K), best first, ties in incoming order, and the
  // unknown in incoming order. `scores` may be empty if at most one known candidate is left. Throws
  // std::invalid_argument on NaN, and on scores that are needed and missing.
  void ranking(std::span<const float> scores, std::span<std::int32_t> order) const;

  // Bytes that generation changes beside the record of codes: `cum` and the codes allowed.
  std::size_t bytes() const;

 private:
  void advance();
  bool collect_children();
  void descend(std::size_t child, bool forced, float local, float raw);
  void emit();
  std::size_t child_end(std::size_t child) const;
  std::int32_t first_remaining(std::size_t child) const;
  void check_due() const;
  void check_logits(std::span<const float> logits, std::size_t row) const;
  double key(std::size_t child, std::span<const float> logits) const;
  float raw_log_prob(std::span<const float> logits, std::uint16_t code);
  void take(std::size_t child, std::span<const float> logits);

  std::shared_ptr<const CandidateTrie> trie_;
  GenerationOptions options_;
  std::vector<std::int16_t> cum_;               // K + 1
  std::vector<std::uint16_t> allowed_;          // codes and
  std::vector<std::int32_t> children_;          // nodes that the coming decision may choose
  std::size_t node_ = 0, depth_ = 0, end_ = 0;  // where the walk is, and the end of the node's candidates
  std::uint64_t decisions_ = 0;
  std::size_t fresh_ = 0;  // codes before the last decision
  std::vector<std::int32_t> order_;
  std::vector<std::uint16_t> codes_;
  std::vector<std::uint8_t> forced_;
  std::vector<float> local_, raw_, scaled_;
};

}  // namespace gr2
