// CatalogTrie::build. Each row's first code that differs from the row before says where it leaves the tree so far.
#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/catalog_trie.h"
#include "core/catalog_trie_format.h"
#include "core/simd.h"

namespace gr2 {
namespace {

using catalog_trie_format::Header;
using catalog_trie_format::padded;

// Rows that are copied at once: few enough for the fastest cache.
constexpr std::size_t kBlock = 512;

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument(message);
}

std::string place(std::size_t row, std::size_t level) {
  return "codes row " + std::to_string(row) + " level " + std::to_string(level);
}

// How many codes two rows share from the front on, and whether the first that differs is larger in the later row.
struct Step {
  std::size_t shared;
  bool ascends;
};

template <std::size_t kLevels>
Step compare(const std::uint16_t* before, const std::uint16_t* here) {
  std::uint64_t left[2] = {}, right[2] = {};
  std::memcpy(left, before, 2 * kLevels);
  std::memcpy(right, here, 2 * kLevels);
  const auto word = [&](std::size_t i) {
    const auto shift = static_cast<std::size_t>(std::countr_zero(left[i] ^ right[i])) & ~std::size_t{15};
    // A shift by all bits, of equal words, is not defined; whatever it gives is equal on both sides.
    const auto code = [&](std::uint64_t from) { return static_cast<std::uint16_t>(from >> (shift & 63)); };
    return Step{shift / 16, code(left[i]) <= code(right[i])};
  };
  Step step = word(0);
  if constexpr (kLevels > 4) {
    if (step.shared == 4) {
      step = word(1);
      step.shared += 4;
    }
  }
  step.shared = std::min(step.shared, kLevels);
  return step;
}

}  // namespace

class CatalogTrieBuild {
 public:
  CatalogTrieBuild(std::span<const std::uint16_t> codes, std::size_t levels, std::uint32_t level_size)
      : codes_(codes), levels_(levels), rows_(levels == 0 ? 0 : codes.size() / levels) {
    if (levels < 1 || levels > CatalogTrie::kMaxLevels)
      fail("codes must have 1 to 8 levels, got " + std::to_string(levels));
    if (level_size < 1 || level_size > catalog_trie_format::kMaxLevelSize)
      fail("level_size must be 1 to 65536, got " + std::to_string(level_size));
    if (rows_ > catalog_trie_format::kMaxItems) fail("at most 4294967295 items, got " + std::to_string(rows_));
    assert(codes.size() == rows_ * levels);
    std::memcpy(header_.magic, catalog_trie_format::kMagic, sizeof header_.magic);
    header_.version = catalog_trie_format::kVersion;
    header_.byte_order = catalog_trie_format::kByteOrder;
    header_.levels = static_cast<std::uint32_t>(levels);
    header_.level_size = level_size;
    header_.code_bytes = catalog_trie_format::code_bytes(level_size);
    header_.items = rows_;
  }

  // The caller's rows are read once, into a block of our own: another thread that changes them meanwhile may change
  // what is built, but not whether it is a trie.
  std::shared_ptr<const CatalogTrie> build() {
    // Room for as many edges as there are rows; memory that is never written to takes none.
    for (std::size_t level = 0; level < levels_; ++level) {
      parts_[level].codes = std::make_unique_for_overwrite<std::byte[]>(rows_ * header_.code_bytes);
      parts_[level].ends = std::make_unique_for_overwrite<std::uint32_t[]>(rows_);
    }
    with_levels([&]<std::size_t kLevels>() {
      header_.code_bytes == 1 ? write_edges<kLevels, std::uint8_t>() : write_edges<kLevels, std::uint16_t>();
    });
    return assemble();
  }

 private:
  template <typename Action>
  void with_levels(Action&& action) const {
    switch (levels_) {
      case 1:
        return action.template operator()<1>();
      case 2:
        return action.template operator()<2>();
      case 3:
        return action.template operator()<3>();
      case 4:
        return action.template operator()<4>();
      case 5:
        return action.template operator()<5>();
      case 6:
        return action.template operator()<6>();
      case 7:
        return action.template operator()<7>();
      default:
        return action.template operator()<8>();
    }
  }

  void check_range() const {
    for (std::size_t i = 0; i < codes_.size(); ++i) {
      const std::uint32_t code = codes_[i];
      if (code < header_.level_size) continue;
      fail(place(i / levels_, i % levels_) + " is " + std::to_string(code) + ", level_size is " +
           std::to_string(header_.level_size));
    }
  }

  // The codes that each of `count` rows shares with the one before, from the second on; false if one is out of order.
  template <std::size_t kLevels>
  static bool compare_rows(const std::uint16_t* rows, std::size_t count, std::uint8_t* shared) {
    if constexpr (kLevels == 4) return simd().shared_codes(rows, count, shared);
    bool sorted = true;
    for (std::size_t i = 1; i < count; ++i, rows += kLevels) {
      const Step step = compare<kLevels>(rows, rows + kLevels);
      shared[i] = static_cast<std::uint8_t>(step.shared);
      sorted &= step.ascends;
    }
    return sorted;
  }

  template <std::size_t kLevels>
  [[noreturn]] void report_order() const {
    check_range();
    for (std::size_t i = 1; i < rows_; ++i) {
      const std::uint16_t *here = codes_.data() + i * levels_, *before = here - levels_;
      const Step step = compare<kLevels>(before, here);
      if (step.ascends) continue;
      fail(place(i, step.shared) + " is " + std::to_string(here[step.shared]) + " and " +
           std::to_string(before[step.shared]) + " in the row before: rows must be in lexicographic order");
    }
    fail("codes were changed while they were read");
  }

  // Raises if one of the block's codes is not below the level size.
  void check_block(const std::uint16_t* codes, std::size_t count) const {
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < count; ++i) bits |= codes[i];
    if (bits < header_.level_size) return;
    std::uint16_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, codes[i]);
    if (largest < header_.level_size) return;
    check_range();
    fail("codes were changed while they were read");
  }

  template <std::size_t kLevels, typename Code>
  void write_edges() {
    if (rows_ == 0) return;
    // At most so many nodes of depth 1, if the rows are sorted.
    const std::size_t first = codes_.front(), last = codes_[codes_.size() - kLevels];
    const bool few = last >= first && last - first < rows_ / 64;
    few ? write_edges<kLevels, Code, true>() : write_edges<kLevels, Code, false>();
  }

  // A row that leads to the same nodes as the one before writes their codes, and where their ranges end by now, once
  // more: cheaper than a branch that nobody can predict.
  // Where there are few edges of level 0, a branch tells when one begins; the loop leaves that level out.
  template <std::size_t kLevels, typename Code, bool kFewFirst>
  void write_edges() {
    std::array<Code*, kLevels> codes;
    std::array<std::uint32_t*, kLevels> ends;
    std::array<std::uint32_t, kLevels + 1> count{};
    for (std::size_t level = 0; level < kLevels; ++level) {
      codes[level] = reinterpret_cast<Code*>(parts_[level].codes.get());
      ends[level] = parts_[level].ends.get();
    }
    // The last row of the block before, and the block.
    constexpr std::size_t kCodes = kLevels * (kBlock + 1);
    std::array<std::uint16_t, kCodes> rows;
    std::array<std::uint8_t, kBlock + 1> shared;
    for (std::size_t start = 0; start < rows_; start += kBlock) {
      constexpr std::size_t kFirst = kFewFirst ? 1 : 0;
      const std::size_t size = std::min(kBlock, rows_ - start);
      std::memcpy(rows.data() + kLevels, codes_.data() + start * kLevels, 2 * kLevels * size);
      check_block(rows.data() + kLevels, kLevels * size);
      shared[1] = 0;
      const bool sorted = start == 0 ? compare_rows<kLevels>(rows.data() + kLevels, size, shared.data() + 1)
                                     : compare_rows<kLevels>(rows.data(), size + 1, shared.data());
      if (!sorted) report_order<kLevels>();
      const std::uint16_t* next = rows.data();
      for (std::size_t i = 1; i <= size; ++i) {
        next += kLevels;
        std::array<std::uint64_t, 2> row{};
        std::memcpy(row.data(), next, 2 * kLevels);
        const auto code = [&](std::size_t level) { return static_cast<Code>(row[level / 4] >> level % 4 * 16); };
        if (kFewFirst && shared[i] == 0) [[unlikely]] {
          if (count[0] > 0) ends[0][count[0] - 1] = count[1];
          codes[0][count[0]++] = code(0);
        }
        for (std::size_t level = kFirst; level < kLevels; ++level) count[level] += shared[i] <= level;
        ++count[kLevels];
        for (std::size_t level = kFirst; level < kLevels; ++level) {
          codes[level][count[level] - 1] = code(level);
          ends[level][count[level] - 1] = count[level + 1];
        }
      }
      std::memcpy(rows.data(), next, 2 * kLevels);
    }
    if (kFewFirst) ends[0][count[0] - 1] = count[1];
    for (std::size_t level = 0; level < kLevels; ++level) header_.edges[level] = count[level];
  }

  std::shared_ptr<const CatalogTrie> assemble() {
    std::size_t total = sizeof(Header);
    for (std::size_t level = 0; level < levels_; ++level) {
      const std::uint32_t width = RangeTable::end_bytes(ends(level));
      header_.end_bytes[level] = static_cast<std::uint8_t>(width);
      total += padded(header_.edges[level] * header_.code_bytes) + RangeTable::bytes(header_.edges[level], width);
    }
    CatalogTrie::Memory memory = CatalogTrie::allocate(total);
    std::memcpy(memory.get(), &header_, sizeof header_);
    std::byte* position = memory.get() + sizeof(Header);
    for (std::size_t level = 0; level < levels_; ++level) {
      const std::uint64_t bytes = header_.edges[level] * header_.code_bytes;
      std::byte* end = std::copy_n(parts_[level].codes.get(), bytes, position);
      std::fill(end, position += padded(bytes), std::byte{0});
      RangeTable::write(ends(level), header_.end_bytes[level], position);
      position += RangeTable::bytes(header_.edges[level], header_.end_bytes[level]);
    }
    return std::shared_ptr<const CatalogTrie>(new CatalogTrie(std::move(memory), total));
  }

  std::span<const std::uint32_t> ends(std::size_t level) const {
    return {parts_[level].ends.get(), header_.edges[level]};
  }

  // The edges of a level: their codes, and where the ranges of the nodes that they lead to end.
  struct Part {
    std::unique_ptr<std::byte[]> codes;
    std::unique_ptr<std::uint32_t[]> ends;
  };

  std::span<const std::uint16_t> codes_;
  std::size_t levels_, rows_;
  Header header_{};
  std::array<Part, CatalogTrie::kMaxLevels> parts_;
};

std::shared_ptr<const CatalogTrie> CatalogTrie::build(std::span<const std::uint16_t> codes, std::size_t levels,
                                                      std::uint32_t level_size) {
  return CatalogTrieBuild(codes, levels, level_size).build();
}

}  // namespace gr2
