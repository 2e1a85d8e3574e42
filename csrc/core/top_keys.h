// The best of many scored candidates, as 64-bit keys whose order is the rule for ties.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace gr2 {

// The smaller key is the better candidate: the higher score, then the lower parent, then the lower position.
constexpr std::uint64_t candidate_key(float score, std::uint32_t parent, std::uint32_t position) {
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 becomes 0
  const std::uint32_t descending = (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
  return std::uint64_t{descending} << 32 | parent << 16 | position;
}
constexpr float key_score(std::uint64_t key) {
  const auto descending = static_cast<std::uint32_t>(key >> 32);
  return std::bit_cast<float>((descending & 0x80000000u) != 0 ? descending : ~descending & 0x7fffffffu);
}
constexpr std::uint32_t key_parent(std::uint64_t key) {
  return static_cast<std::uint32_t>(key >> 16) & 0xffffu;
}
constexpr std::uint32_t key_position(std::uint64_t key) {
  return static_cast<std::uint32_t>(key) & 0xffffu;
}

// Keeps the `capacity` smallest of the keys that it is offered.
class TopKeys {
 public:
  void reset(std::size_t capacity) {
    capacity_ = capacity;
    keys_.clear();
    keys_.reserve(capacity);
    worst_ = std::numeric_limits<std::uint64_t>::max();
  }
  // A key that is not below this one cannot enter.
  std::uint64_t worst() const { return worst_; }
  bool full() const { return keys_.size() == capacity_; }
  void offer(std::uint64_t key) {
    if (key >= worst_) return;
    if (full()) {
      std::pop_heap(keys_.begin(), keys_.end());
      keys_.back() = key;
    } else {
      keys_.push_back(key);
    }
    std::push_heap(keys_.begin(), keys_.end());
    if (full()) worst_ = keys_.front();
  }
  // The keys in order, best first; afterwards only `reset` may be called.
  std::span<const std::uint64_t> sorted() {
    std::sort_heap(keys_.begin(), keys_.end());
    return keys_;
  }

 private:
  std::size_t capacity_ = 0;
  std::vector<std::uint64_t> keys_;
  std::uint64_t worst_ = 0;
};

}  // namespace gr2
