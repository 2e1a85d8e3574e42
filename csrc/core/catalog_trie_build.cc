// CatalogTrie::build. Each row's first code that differs from the row before says where it leaves the tree so far.
#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/catalog_trie.h"
#include "core/catalog_trie_format.h"
#include "core/hash.h"

namespace gr2 {
namespace {

using catalog_trie_format::Header;
using catalog_trie_format::padded;

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument(message);
}

std::string place(std::size_t row, std::size_t level) {
  return "codes row " + std::to_string(row) + " level " + std::to_string(level);
}

// How many codes two rows share from the front on.
template <std::size_t kLevels>
std::size_t shared_codes(const std::uint16_t* a, const std::uint16_t* b) {
  std::uint64_t left[2] = {}, right[2] = {};
  std::memcpy(left, a, 2 * kLevels);
  std::memcpy(right, b, 2 * kLevels);
  const auto equal = [&](std::size_t word) {
    return static_cast<std::size_t>(std::countr_zero(left[word] ^ right[word])) / 16;
  };
  std::size_t shared = equal(0);
  if constexpr (kLevels > 4) shared += shared == 4 ? equal(1) : 0;
  return std::min(shared, kLevels);
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

  std::shared_ptr<const CatalogTrie> build() {
    check_range();
    shared_.resize(rows_);
    with_levels([&]<std::size_t kLevels>() { compare_rows<kLevels>(); });
    count_edges();
    for (std::size_t depth = 1; depth <= levels_; ++depth) write_ranges(depth);
    const std::size_t bytes = total_bytes();
    CatalogTrie::Memory memory = CatalogTrie::allocate(bytes);
    fill(std::span(memory.get(), bytes));
    return std::shared_ptr<const CatalogTrie>(new CatalogTrie(std::move(memory), bytes));
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
    std::uint16_t largest = 0;
    for (const std::uint16_t code : codes_) largest = std::max(largest, code);
    if (codes_.empty() || largest < header_.level_size) return;
    const auto bad = static_cast<std::size_t>(
        std::find_if(codes_.begin(), codes_.end(), [&](std::uint16_t code) { return code >= header_.level_size; }) -
        codes_.begin());
    fail(place(bad / levels_, bad % levels_) + " is " + std::to_string(codes_[bad]) + ", level_size is " +
         std::to_string(header_.level_size));
  }

  template <std::size_t kLevels>
  void compare_rows() {
    bool sorted = true;
    const std::uint16_t* row = codes_.data();
    for (std::size_t i = 1; i < rows_; ++i) {
      const std::uint16_t *before = row, *here = row += kLevels;
      const std::size_t shared = shared_codes<kLevels>(before, here), level = std::min(shared, kLevels - 1);
      shared_[i] = static_cast<std::uint8_t>(shared);
      sorted &= before[level] <= here[level];
    }
    if (!sorted) report_order();
  }

  [[noreturn]] void report_order() const {
    for (std::size_t i = 1;; ++i) {
      const std::uint16_t *here = codes_.data() + i * levels_, *before = here - levels_;
      const std::size_t level = shared_[i];
      if (level == levels_ || before[level] <= here[level]) continue;
      fail(place(i, level) + " is " + std::to_string(here[level]) + " and " + std::to_string(before[level]) +
           " in the row before: rows must be in lexicographic order");
    }
  }

  void count_edges() {
    std::array<std::uint64_t, CatalogTrie::kMaxLevels + 1> rows{};
    for (const std::uint8_t shared : shared_) ++rows[shared];
    std::uint64_t edges = 0;
    for (std::size_t level = 0; level < levels_; ++level) header_.edges[level] = edges += rows[level];
  }

  // Where the range of each node at `depth` ends, written over and over until the next node begins: cheaper than a
  // branch that nobody can predict.
  void write_ranges(std::size_t depth) {
    const std::uint64_t nodes = header_.edges[depth - 1];
    if (nodes == (depth == levels_ ? rows_ : header_.edges[depth])) return;
    ends_.resize(nodes);
    std::size_t begun = 0;
    std::uint32_t below = 0;
    for (const std::uint8_t shared : shared_) {
      begun += shared < depth;
      below += shared <= depth;
      ends_[begun - 1] = below;
    }
    const std::uint32_t width = RangeTable::end_bytes(ends_);
    ranges_[depth].resize(RangeTable::bytes(nodes, width));
    RangeTable::write(ends_, width, ranges_[depth].data());
    header_.end_bytes[depth - 1] = static_cast<std::uint8_t>(width);
  }

  std::size_t total_bytes() const {
    std::size_t total = sizeof(Header);
    for (std::size_t level = 0; level < levels_; ++level)
      total += padded(header_.edges[level] * header_.code_bytes) + ranges_[level + 1].size();
    return total;
  }

  void fill(std::span<std::byte> memory) {
    std::array<std::byte*, CatalogTrie::kMaxLevels> starts{};
    std::byte* position = memory.data() + sizeof(Header);
    for (std::size_t level = 0; level < levels_; ++level) {
      starts[level] = position;
      const std::uint64_t bytes = header_.edges[level] * header_.code_bytes;
      std::fill(position + bytes, position + padded(bytes), std::byte{0});
      position += padded(bytes);
      position = std::copy(ranges_[level + 1].begin(), ranges_[level + 1].end(), position);
    }
    with_levels([&]<std::size_t kLevels>() {
      header_.code_bytes == 1 ? write_codes<kLevels, std::uint8_t>(starts)
                              : write_codes<kLevels, std::uint16_t>(starts);
    });
    header_.body_checksum = hash_bytes(memory.data() + sizeof(Header), memory.size() - sizeof(Header));
    header_.header_checksum = hash_bytes(&header_, catalog_trie_format::kCheckedHeaderBytes);
    std::memcpy(memory.data(), &header_, sizeof header_);
  }

  // Codes that a row shares with the one before are written again where they are.
  template <std::size_t kLevels, typename Code>
  void write_codes(const std::array<std::byte*, CatalogTrie::kMaxLevels>& starts) const {
    std::array<Code*, kLevels> last;
    for (std::size_t level = 0; level < kLevels; ++level) last[level] = reinterpret_cast<Code*>(starts[level]) - 1;
    const std::uint16_t* row = codes_.data();
    for (const std::uint8_t shared : shared_) {
      for (std::size_t level = 0; level < kLevels; ++level) {
        last[level] += shared <= level;
        *last[level] = static_cast<Code>(row[level]);
      }
      row += kLevels;
    }
  }

  std::span<const std::uint16_t> codes_;
  std::size_t levels_, rows_;
  Header header_{};
  std::vector<std::uint8_t> shared_;  // codes that row i shares with row i - 1
  std::vector<std::uint32_t> ends_;   // of one depth
  std::array<std::vector<std::byte>, CatalogTrie::kMaxLevels + 1> ranges_;
};

std::shared_ptr<const CatalogTrie> CatalogTrie::build(std::span<const std::uint16_t> codes, std::size_t levels,
                                                      std::uint32_t level_size) {
  return CatalogTrieBuild(codes, levels, level_size).build();
}

}  // namespace gr2
