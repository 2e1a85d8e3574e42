// Beam search over a whole catalogue: the items that a model finds most likely.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/candidate_trie.h"
#include "core/catalog_trie.h"
#include "core/item_filter.h"
#include "core/simd.h"
#include "core/top_keys.h"

namespace gr2 {

// Logits (batch, beams, level_size), row-major.
struct LogitsView {
  std::span<const float> values;
  std::size_t batch, beams, level_size;
};

// A search that owns its state: `start`, then `step` once a level, then `finish`. At every level each of `batch`
// searches keeps the M children with the highest scores among those that lead to a permitted item,
//
//   score(child) = (logit - top) + float32(score(parent) - log(sum(exp(logits - top))))    in float32,
//
// where the top and the sum are those of the normalisation. Equal scores are ordered by the parent's rank, then by
// code. A code with the logit -infinity, or a score below float32's range, is masked. Where there are fewer than M
// children, the last beams are dead: node -1 and score -infinity. Calls from several threads wait for each other.
class Retriever {
 public:
  static constexpr std::size_t kMaxBeams = 4096;
  static constexpr std::size_t kMaxBatch = 65536;
  static constexpr std::size_t kMaxSlots = std::size_t{1} << 24;  // beams of a batch: some hundred bytes each

  // Throws std::invalid_argument on a number of beams, M, that is not 1 to 4096.
  Retriever(std::size_t beams, Normalization normalization);

  // Begins anew, on a trie that the search keeps until the next start. There is no filter, one for all of the batch, or
  // one each; null permits every item. Throws std::invalid_argument on a filter of another trie and on sizes out of
  // range, of which one is batch * M.
  void start(std::shared_ptr<const CatalogTrie> trie, std::size_t batch,
             std::vector<std::shared_ptr<const ItemFilter>> filters);

  // Of each new beam, best first: the rank of its parent, the code and the score, (batch, M); 0, 0 and -infinity where
  // it is dead. Before the first step there is one beam. The logits of dead beams are not read.
  // Throws std::invalid_argument on logits of another shape, and on one that is NaN or +infinity, naming its batch,
  // beam and column: the search is then where it was. Throws std::logic_error after the last level.
  void step(const LogitsView& logits, std::span<std::int64_t> parents, std::span<std::int64_t> codes,
            std::span<float> scores);

  // The M best items of each search, (batch, M): those of the best leaf first, the items of a leaf in row order with
  // its score; -1 and -infinity where there are fewer. Throws std::logic_error before the last level.
  void finish(std::span<std::int64_t> items, std::span<float> scores) const;

  // The beams' nodes, (batch, M), numbered breadth-first over the whole trie; -1 of dead ones.
  void nodes(std::span<std::int64_t> nodes) const;

  // The codes on the beams' paths so far, (batch, M, level); zeros of dead ones.
  void paths(std::span<std::uint16_t> codes) const;

  std::size_t beams() const { return beams_; }
  // Beams of each search at this moment: 1 before the first step.
  std::size_t width() const;
  std::size_t batch() const;
  // Levels done.
  std::size_t level() const;

 private:
  struct Beam {
    std::int64_t node;  // at its depth
    float score;
  };
  static constexpr Beam kDead{-1, -std::numeric_limits<float>::infinity()};
  // The logits of the children that may be chosen. Without `positions` child i is the i-th of its parent.
  struct Children {
    std::span<const float> logits;
    const std::uint32_t* positions;
  };

  std::size_t width_at(std::size_t level) const { return level == 0 ? 1 : beams_; }
  const ItemFilter* filter(std::size_t search) const;
  void require_started() const;
  void check_shape(const LogitsView& logits) const;
  void find_ranges();
  // `logits` begin with those of this search.
  void advance(std::size_t search, std::span<const float> logits);
  // Of the live rows; returns how many those are.
  std::size_t summarize(std::size_t search, std::span<const float> logits);
  void expand(std::size_t search, std::size_t rank, std::span<const float> row);
  Children children(const ItemFilter* filter, std::span<const float> row, Range range);
  template <typename Code>
  Children gather(const ItemFilter* filter, std::span<const float> row, Range range, const Code* codes);
  void offer(const Children& children, std::size_t rank, float top, float base);
  // The first items of a leaf that the filter permits; returns how many.
  std::size_t take_items(const ItemFilter* filter, std::int64_t leaf, std::span<std::int64_t> items) const;

  const std::size_t beams_;
  const Normalization normalization_;
  mutable std::mutex mutex_;
  std::shared_ptr<const CatalogTrie> trie_;
  std::vector<std::shared_ptr<const ItemFilter>> filters_;
  std::size_t batch_ = 0, level_ = 0;
  std::vector<Beam> current_, next_;
  // Of all levels done, so that a beam's path can be read back.
  std::vector<std::uint16_t> parents_, codes_;

  // Of one step: the children of each beam, as edges.
  std::vector<Range> ranges_;

  // Of one search.
  std::vector<RowSummary> rows_;

  // Of one expansion.
  TopKeys best_;
  std::vector<float> logits_;
  std::vector<std::uint32_t> positions_, places_;
};

}  // namespace gr2
