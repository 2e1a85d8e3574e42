#include "core/engine.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "core/logsumexp.h"

namespace gr2 {
namespace {

template <typename T>
std::size_t count_unknown(const std::vector<T>& known) {
  return static_cast<std::size_t>(std::count(known.begin(), known.end(), T{0}));
}

// Moves the rows of known items together.
void keep_known(std::vector<std::uint16_t>& rows, const std::vector<std::uint8_t>& known, std::size_t levels) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < known.size(); ++i) {
    if (known[i] == 0) continue;
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(i * levels), levels,
                rows.begin() + static_cast<std::ptrdiff_t>(kept++ * levels));
  }
  rows.resize(kept * levels);
}

}  // namespace

void rank_scores(std::span<const float> scores, std::span<std::uint32_t> ranks) {
  std::vector<std::uint32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return scores[a] > scores[b]; });
  for (std::size_t i = 0; i < order.size(); ++i) {
    const bool tied = i > 0 && scores[order[i]] == scores[order[i - 1]];
    ranks[order[i]] = tied ? ranks[order[i - 1]] : static_cast<std::uint32_t>(i);
  }
}

Engine::Engine(std::shared_ptr<const OnnxRuntime> runtime, const Graphs& graphs,
               std::shared_ptr<const Codebook> codebook, EngineSpec spec, int threads, std::size_t cache_bytes)
    : spec_(std::move(spec)),
      codebook_(std::move(codebook)),
      model_(std::move(runtime), graphs, spec_.model, threads, cache_bytes) {
  const std::size_t columns = spec_.model.columns - spec_.limits.feature_width;
  if (spec_.rank_features.size() != spec_.limits.max_candidates * columns) {
    throw std::invalid_argument("rank_features must be (max_candidates, " + std::to_string(columns) + "), got " +
                                std::to_string(spec_.rank_features.size()) + " values");
  }
}

std::size_t Engine::look_up(const RequestMessage& request, Workspace& space) const {
  const std::size_t levels = spec_.model.levels;
  const auto one = [&](const ItemIds& ids, std::vector<std::uint16_t>& codes, std::vector<std::uint8_t>& known) {
    codes.resize(ids.size() * levels);
    known.resize(ids.size());
    if (spec_.limits.string_ids) {
      codebook_->lookup(std::span<const std::string_view>(ids.strings), codes, known);
    } else {
      codebook_->lookup(std::span<const std::int64_t>(ids.ints), codes, known);
    }
  };
  one(request.history, space.past, space.past_known);
  one(request.candidates, space.codes, space.known);
  const std::size_t unknown = count_unknown(space.past_known);
  if (unknown != 0) keep_known(space.past, space.past_known, levels);
  return unknown;
}

void Engine::fill_features(const RequestMessage& request, Workspace& space) const {
  const std::size_t count = request.candidates.size(), width = spec_.limits.feature_width;
  const std::size_t columns = spec_.model.columns, from_rank = columns - width;
  space.features.assign(count * columns, 0.0f);
  if (spec_.uses_scores && !request.scores.empty()) {
    std::vector<std::uint32_t> ranks(count);
    rank_scores(request.scores, ranks);
    for (std::size_t i = 0; i < count; ++i) {
      std::copy_n(spec_.rank_features.data() + ranks[i] * from_rank, from_rank, space.features.data() + i * columns);
    }
  }
  if (request.features.empty()) return;
  for (std::size_t i = 0; i < count; ++i) {
    std::copy_n(request.features.data() + i * width, width, space.features.data() + i * columns + from_rank);
  }
}

Outcome Engine::rank(const RequestMessage& request, Clock::time_point started, Timings& timings, Workspace& space,
                     std::string& out) const {
  Clock::time_point last = Clock::now();
  const auto mark = [&](Phase phase) {
    const Clock::time_point now = Clock::now();
    timings[static_cast<std::size_t>(phase)] = now - std::exchange(last, now);
  };
  const std::size_t count = request.candidates.size(), levels = spec_.model.levels;
  const std::size_t listed = request.top_n == 0 ? count : std::min<std::size_t>(request.top_n, count);
  const std::size_t unknown_history = look_up(request, space);
  std::span<const std::uint16_t> past(space.past);
  past = past.last(std::min(past.size(), spec_.model.max_history * levels));
  space.order.resize(count);
  space.scores.resize(count);
  mark(Phase::kLookup);
  if (count_unknown(space.known) == count) {
    std::iota(space.order.begin(), space.order.end(), 0);
  } else {
    const CandidateTrie trie(space.codes, space.known, levels, spec_.model.level_size);
    if (model_.run_bytes(past.size() / levels, trie.node_count(), count) > spec_.model.memory.most) {
      return Outcome::kInvalid;
    }
    fill_features(request, space);
    try {
      model_.run({past, space.codes, space.known, space.features}, trie, space.model, [&] { mark(Phase::kTrie); });
      mark(Phase::kModel);
      trie.score(space.model.logits, space.model.prior, spec_.model.normalization, space.order, space.scores);
    } catch (const OnnxError& error) {
      out = error.what();
      return Outcome::kFailed;
    } catch (const std::invalid_argument& error) {
      out = error.what();
      return !request.features.empty() && !all_finite(space.model.prior) ? Outcome::kOverflow : Outcome::kUnrankable;
    }
    space.model.trim();
  }
  mark(Phase::kRank);
  timings[static_cast<std::size_t>(Phase::kTotal)] = last - started;
  const RankedSlate slate{std::span(space.order).first(listed), space.scores, space.known, unknown_history};
  write_reply(request, slate, spec_.version, timings, out);
  return Outcome::kAnswered;
}

}  // namespace gr2
