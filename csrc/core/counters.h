// What was done since the start, counted without locks and read while it is counted.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "core/engine.h"

namespace gr2 {

// Durations in the buckets of gr2.serving.observing.histogram: two for each power of two, cut at one and a half
// times it.
class Histogram {
 public:
  static constexpr std::size_t kBuckets = 96;

  static std::size_t bucket(std::uint64_t ns) {
    const auto bits = static_cast<std::size_t>(std::bit_width(ns));
    return std::min(kBuckets - 1, 2 * bits + (bits > 1 ? ns >> (bits - 2) & 1 : 0));
  }
  void record(std::chrono::nanoseconds duration) {
    const auto value = static_cast<std::uint64_t>(std::max<std::int64_t>(duration.count(), 0));
    counts_[bucket(value)].fetch_add(1, std::memory_order_relaxed);
    sum_.fetch_add(value, std::memory_order_relaxed);
  }
  std::uint64_t count(std::size_t bucket) const { return counts_[bucket].load(std::memory_order_relaxed); }
  std::uint64_t sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<std::uint64_t>, kBuckets> counts_{};
  std::atomic<std::uint64_t> sum_{0};
};

class Counters {
 public:
  void record(Outcome outcome) { outcomes_[static_cast<std::size_t>(outcome)].fetch_add(1, std::memory_order_relaxed); }
  // Of an answered request; the phases that it had.
  void record(const Timings& timings) {
    for (std::size_t i = 0; i < kPhases; ++i) phases_[i].record(timings[i]);
  }
  std::uint64_t outcomes(std::size_t outcome) const { return outcomes_[outcome].load(std::memory_order_relaxed); }
  const Histogram& phase(std::size_t phase) const { return phases_[phase]; }

 private:
  std::array<std::atomic<std::uint64_t>, kOutcomes> outcomes_{};
  std::array<Histogram, kPhases> phases_{};
};

}  // namespace gr2
