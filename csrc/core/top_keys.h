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

// Keeps the `capacity` smallest of the keys that it is offered: few in order, many in a heap.
class TopKeys {
 public:
  void reset(std::size_t capacity) {
    ordered_ = capacity <= kOrdered;
    held_ = 0;
    keys_.assign(capacity, kNone);
  }
  // A key that is not below this one cannot enter.
  std::uint64_t worst() const { return ordered_ ? keys_.back() : keys_.front(); }
  bool full() const { return held_ == keys_.size(); }
  void offer(std::uint64_t key) {
    held_ = std::min(held_ + 1, keys_.size());
    if (ordered_) {
      insert(key);
    } else if (key < keys_.front()) {
      std::pop_heap(keys_.begin(), keys_.end());
      keys_.back() = key;
      std::push_heap(keys_.begin(), keys_.end());
    }
  }
  // The keys in order, best first; afterwards only `reset` may be called.
  std::span<const std::uint64_t> sorted() {
    if (!ordered_) std::sort_heap(keys_.begin(), keys_.end());
    return {keys_.data(), held_};
  }

 private:
  static constexpr std::size_t kOrdered = 32;
  // Of no candidate: its score would be NaN.
  static constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();

  // Every key moves or stays, and the last one falls out, without a branch: where a new one belongs, or whether it does
  // at all, cannot be predicted.
  void insert(std::uint64_t key) {
    for (std::size_t i = keys_.size() - 1; i > 0; --i) keys_[i] = std::min(keys_[i], std::max(keys_[i - 1], key));
    keys_[0] = std::min(keys_[0], key);
  }

  bool ordered_ = true;
  std::size_t held_ = 0;
  std::vector<std::uint64_t> keys_;
};

}  // namespace gr2
