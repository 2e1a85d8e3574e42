#include "core/range_table.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

namespace gr2 {

std::uint64_t RangeTable::bytes(std::uint64_t count, std::uint32_t end_bytes) {
  if (end_bytes == 0) return 0;
  const std::uint64_t ranges = per_block(end_bytes);
  return (count + ranges - 1) / ranges * kBlockBytes;
}

std::uint32_t RangeTable::end_bytes(std::span<const std::uint32_t> ends) {
  if (ends.empty() || ends.size() == ends.back()) return 0;
  for (const std::uint32_t width : {1u, 2u}) {
    const std::uint64_t ranges = per_block(width), largest = (std::uint64_t{1} << 8 * width) - 1;
    bool fits = true;
    for (std::uint64_t start = 0; fits && start < ends.size(); start += ranges) {
      const std::uint32_t begin = start == 0 ? 0 : ends[start - 1];
      fits = ends[std::min(start + ranges, ends.size()) - 1] - begin <= largest;
    }
    if (fits) return width;
  }
  return 4;
}

template <typename End>
void RangeTable::write_as(std::span<const std::uint32_t> ends, std::byte* blocks) {
  constexpr std::size_t kRanges = Block<End>::kRanges;
  std::uint32_t begin = 0;
  for (std::size_t start = 0; start < ends.size(); start += kRanges, blocks += kBlockBytes) {
    const std::size_t count = std::min(kRanges, ends.size() - start);
    Block<End> block{};
    block.begin = begin;
    for (std::size_t i = 0; i < count; ++i) block.ends[i] = static_cast<End>(ends[start + i] - begin);
    // What is left of the last block ends where the last range does, so that a search in it stops.
    std::fill(block.ends + count, block.ends + kRanges, block.ends[count - 1]);
    std::memcpy(blocks, &block, sizeof block);
    begin = ends[start + count - 1];
  }
}

void RangeTable::write(std::span<const std::uint32_t> ends, std::uint32_t end_bytes, std::byte* blocks) {
  switch (end_bytes) {
    case 0:
      return;
    case 1:
      return write_as<std::uint8_t>(ends, blocks);
    case 2:
      return write_as<std::uint16_t>(ends, blocks);
    default:
      return write_as<std::uint32_t>(ends, blocks);
  }
}

template <typename End>
bool RangeTable::valid_as() const {
  constexpr std::uint64_t kRanges = Block<End>::kRanges;
  std::uint64_t next = 0;
  bool holds = true;
  for (std::uint64_t start = 0; start < count_; start += kRanges) {
    const Block<End>& here = block<End>(start / kRanges);
    const std::uint64_t count = std::min(kRanges, count_ - start);
    holds &= here.begin == next && here.ends[0] > 0;
    for (std::uint64_t i = 1; i < count; ++i) holds &= here.ends[i] > here.ends[i - 1];
    // A search counts what fills up the last block, too.
    for (std::uint64_t i = count; i < kRanges; ++i) holds &= here.ends[i] == here.ends[count - 1];
    next = here.begin + here.ends[count - 1];
  }
  return holds && next == total_;
}

bool RangeTable::valid() const {
  switch (end_bytes_) {
    case 0:
      return count_ == total_;
    case 1:
      return valid_as<std::uint8_t>();
    case 2:
      return valid_as<std::uint16_t>();
    default:
      return valid_as<std::uint32_t>();
  }
}

// Ranges are mostly of a like size: the search begins where the value would lie if all were, and widens from there.
std::uint64_t RangeTable::find_block(std::uint64_t value) const {
  const std::uint64_t blocks = bytes(count_, end_bytes_) / kBlockBytes;
  const auto share = static_cast<double>(value) / static_cast<double>(total_);
  const auto guess = std::min(static_cast<std::uint64_t>(share * static_cast<double>(blocks)), blocks - 1);
  std::uint64_t low = guess, high = guess, step = 1;
  if (block_begin(guess) <= value) {
    while (low + step < blocks && block_begin(low + step) <= value) {
      low += step;
      step *= 2;
    }
    high = std::min(low + step, blocks);
  } else {
    while (high > step && block_begin(high - step) > value) {
      high -= step;
      step *= 2;
    }
    low = high > step ? high - step : 0;
  }
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    (block_begin(middle) <= value ? low : high) = middle;
  }
  return low;
}

template <typename End>
std::uint64_t RangeTable::find_in_block(std::uint64_t value, std::uint64_t index) const {
  const Block<End>& here = block<End>(index);
  std::uint64_t place = 0;
  for (const End end : here.ends) place += here.begin + end <= value;
  return index * Block<End>::kRanges + place;
}

std::uint64_t RangeTable::find(std::uint64_t value) const {
  assert(value < total_);
  if (end_bytes_ == 0) return value;
  const std::uint64_t index = find_block(value);
  switch (end_bytes_) {
    case 1:
      return find_in_block<std::uint8_t>(value, index);
    case 2:
      return find_in_block<std::uint16_t>(value, index);
    default:
      return find_in_block<std::uint32_t>(value, index);
  }
}

}  // namespace gr2
