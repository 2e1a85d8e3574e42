// Where the children of each node lie, for millions of nodes in little more than a byte a node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace gr2 {

// The half-open range [begin, end).
struct Range {
  std::uint64_t begin = 0, end = 0;
  std::uint64_t size() const { return end - begin; }
};

// Non-empty ranges that lie one after the other and fill 0 to `total`. A block of one cache line holds where the first
// of its ranges begins, and where each of its 56, 28 or 14 ranges ends from there on, in 1, 2 or 4 bytes. Where there
// are as many ranges as values, range i is just i, and there are no blocks: `end_bytes` is 0. A view.
class RangeTable {
 public:
  static constexpr std::size_t kBlockBytes = 64;

  RangeTable() = default;
  // `blocks` is 8-byte aligned and has `bytes(count, end_bytes)` bytes.
  RangeTable(const std::byte* blocks, std::uint64_t count, std::uint64_t total, std::uint32_t end_bytes)
      : blocks_(blocks), count_(count), total_(total), end_bytes_(end_bytes) {}

  Range operator[](std::uint64_t index) const {
    switch (end_bytes_) {
      case 0:
        return {index, index + 1};
      case 1:
        return read<std::uint8_t>(index);
      case 2:
        return read<std::uint16_t>(index);
      default:
        return read<std::uint32_t>(index);
    }
  }
  // The range that holds `value`, which is below the total.
  std::uint64_t find(std::uint64_t value) const;
  void prefetch(std::uint64_t index) const {
    if (end_bytes_ != 0) __builtin_prefetch(blocks_ + index / per_block(end_bytes_) * kBlockBytes);
  }
  std::uint64_t count() const { return count_; }
  // Whether the ranges are not empty, follow each other and fill 0 to `total`, and the last block ends as `write` ends
  // it.
  bool valid() const;

  // The bytes of the blocks of `count` ranges.
  static std::uint64_t bytes(std::uint64_t count, std::uint32_t end_bytes);
  // The fewest bytes that hold each range's end; `ends[i]` is where range i ends.
  static std::uint32_t end_bytes(std::span<const std::uint32_t> ends);
  static void write(std::span<const std::uint32_t> ends, std::uint32_t end_bytes, std::byte* blocks);

 private:
  static constexpr std::uint64_t per_block(std::uint32_t end_bytes) { return (kBlockBytes - 8) / end_bytes; }

  template <typename End>
  struct Block {
    static constexpr std::uint64_t kRanges = (kBlockBytes - 8) / sizeof(End);
    std::uint64_t begin;
    End ends[kRanges];
  };
  template <typename End>
  const Block<End>& block(std::uint64_t index) const {
    static_assert(sizeof(Block<End>) == kBlockBytes);
    return reinterpret_cast<const Block<End>*>(blocks_)[index];
  }
  template <typename End>
  Range read(std::uint64_t index) const {
    const Block<End>& from = block<End>(index / Block<End>::kRanges);
    const std::uint64_t place = index % Block<End>::kRanges;
    return {from.begin + (place == 0 ? End{0} : from.ends[place - 1]), from.begin + from.ends[place]};
  }
  template <typename End>
  std::uint64_t find_in_block(std::uint64_t value, std::uint64_t index) const;
  template <typename End>
  bool valid_as() const;
  template <typename End>
  static void write_as(std::span<const std::uint32_t> ends, std::byte* blocks);
  std::uint64_t block_begin(std::uint64_t index) const { return block<std::uint32_t>(index).begin; }
  std::uint64_t find_block(std::uint64_t value) const;

  const std::byte* blocks_ = nullptr;
  std::uint64_t count_ = 0, total_ = 0;
  std::uint32_t end_bytes_ = 0;
};

}  // namespace gr2
