// A gr2.v1.RerankResponse, written as its bytes.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/request_message.h"

namespace gr2 {

// What a reply's timings are of, as numbered in gr2.v1.Timings.
enum class Phase { kParse, kLookup, kTrie, kModel, kRank, kTotal, kQueue };
inline constexpr std::size_t kPhases = 7;
using Timings = std::array<std::chrono::nanoseconds, kPhases>;

// A ranked slate of K candidates. `order` lists the best; `scores` and `known` (K) are by candidate, and the scores of
// the unknown are not read.
struct RankedSlate {
  std::span<const std::int32_t> order;
  std::span<const float> scores;
  std::span<const std::uint8_t> known;
  std::size_t unknown_history = 0;
};

// The bytes are those of the official serialiser.
void write_reply(const RequestMessage& request, const RankedSlate& slate, std::string_view version,
                 const Timings& timings, std::string& out);
// The incoming order, which nothing was looked up for.
void write_fallback(const RequestMessage& request, std::string_view version, const Timings& timings, std::string& out);

}  // namespace gr2
