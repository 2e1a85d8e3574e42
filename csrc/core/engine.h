// One bundle, answering requests: bytes that were parsed to the bytes of the reply.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/codebook.h"
#include "core/reply_message.h"
#include "core/request_message.h"
#include "core/slate_model.h"

namespace gr2 {

using Clock = std::chrono::steady_clock;

// What became of a request. The last three carry the reason.
enum class Outcome {
  kAnswered,
  kFallback,    // the incoming order
  kInvalid,     // it breaks a rule
  kFull,        // as many requests as may wait do
  kLate,        // it could not have been answered by its deadline
  kExpired,     // its deadline passed
  kCancelled,   // the caller has gone
  kOverflow,    // its features are too large for the model
  kUnrankable,  // the model gave a value that is not finite
  kFailed,      // onnxruntime failed
};
inline constexpr std::size_t kOutcomes = 10;

// Memory that one request after another uses; one thread at a time.
struct Workspace {
  std::vector<std::uint16_t> past, codes;
  std::vector<std::uint8_t> past_known, known;
  std::vector<float> features, scores;
  std::vector<std::int32_t> order;
  ModelBuffers model;
};

struct EngineSpec {
  ModelSpec model;
  RequestLimits limits;
  // Whether the model is told of the pre-ranker's scores.
  bool uses_scores = true;
  std::string version;
  // (max_candidates, r): what scores say of a candidate, by its rank among them.
  std::vector<float> rank_features;
};

// Immutable, but for the memory of onnxruntime: any number of threads may use it at once.
class Engine {
 public:
  Engine(std::shared_ptr<const OnnxRuntime> runtime, const Graphs& graphs, std::shared_ptr<const Codebook> codebook,
         EngineSpec spec, int threads, std::size_t cache_bytes = 0);

  const EngineSpec& spec() const { return spec_; }
  const SlateModel& model() const { return model_; }

  // Ranks a request that keeps the rules: `out` is the reply if the outcome is kAnswered, and else the reason. The
  // timings of parsing, waiting and the start come with `started` and `timings`; the rest are filled in.
  Outcome rank(const RequestMessage& request, Clock::time_point started, Timings& timings, Workspace& space,
               std::string& out) const;

 private:
  std::size_t look_up(const RequestMessage& request, Workspace& space) const;
  void fill_features(const RequestMessage& request, Workspace& space) const;

  EngineSpec spec_;
  std::shared_ptr<const Codebook> codebook_;
  SlateModel model_;
};

// Fills `ranks` (K): how many scores are higher than each; `order` is memory to sort in.
void rank_scores(std::span<const float> scores, std::span<std::uint32_t> ranks);

}  // namespace gr2
