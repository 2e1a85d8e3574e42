// The codebook's file: header, slots, index, string pool. All numbers are little-endian.
//
//   slots   slot_count slots of slot_bytes: the key, then `levels` codes u16, zero padding. An int64 ID is its own key,
//           and an empty slot holds `empty_key`. A string's key is a StringKey, all zeros in an empty slot. The codes
//           of an empty slot are zeros. The slot of an item is the first free one from scale(hash, capacity); nothing
//           wraps around, and the last slot is always empty, so that a probe ends inside the table.
//   index   from codes to slots: index_count numbers of index_width bytes, a slot's place plus 1, or 0. Entries lie as
//           slots do, by the hash of their slot's codes and index_capacity; items with the same codes follow each
//           other.
//   pool    for each string that is too long for its slot: length u32, then its UTF-8 bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "core/hash.h"

namespace gr2::codebook_format {

static_assert(std::endian::native == std::endian::little, "the codebook is mapped as it lies on disk");

inline constexpr char kMagic[8] = {'G', 'R', '2', 'C', 'O', 'D', 'E', 'S'};
inline constexpr std::uint32_t kVersion = 2;
inline constexpr std::uint32_t kByteOrder = 0x01020304;
inline constexpr std::uint32_t kInt64Keys = 0;
inline constexpr std::uint32_t kStringKeys = 1;
inline constexpr std::uint32_t kMaxLevels = 8;
inline constexpr std::uint32_t kMaxLevelSize = 65536;

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t byte_order;
  std::uint32_t key_type;
  std::uint32_t levels;
  std::uint32_t level_size;
  std::uint32_t slot_bytes;
  std::uint64_t count;
  std::uint64_t capacity;
  std::uint64_t slot_count;
  std::uint64_t slots_offset;
  std::uint64_t index_offset;
  std::uint64_t index_capacity;
  std::uint64_t index_count;
  std::uint64_t index_width;
  std::uint64_t pool_offset;
  std::uint64_t pool_bytes;
  std::uint64_t empty_key;
  std::uint64_t fingerprint[2];
  std::uint64_t body_checksum;
  std::uint64_t reserved[5];
  std::uint64_t header_checksum;
};
static_assert(sizeof(Header) == 192 && std::is_trivially_copyable_v<Header>);

inline constexpr std::size_t kCheckedHeaderBytes = offsetof(Header, header_checksum);

constexpr std::uint32_t codes_offset(std::uint32_t key_type) {
  return key_type == kStringKeys ? 16 : 8;
}

constexpr std::uint32_t slot_bytes(std::uint32_t key_type, std::uint32_t levels) {
  return (codes_offset(key_type) + 2 * levels + 7) / 8 * 8;
}

// Four bytes say the place of a slot as long as there are so few.
constexpr std::uint64_t index_width(std::uint64_t slot_count) {
  return slot_count < 0xffffffffu ? 4 : 8;
}

// The key of a string ID. Up to 15 bytes lie in it, filled up with zeros, and the last byte is their number plus 1; of
// a longer string it holds the hash, the place in the pool in 56 bits, and the last byte is 255.
struct StringKey {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const StringKey&) const = default;
  std::uint64_t tag() const { return high >> 56; }
  bool pooled() const { return tag() == kPooled; }
  std::uint64_t place() const { return high & ~(kPooled << 56); }
  std::uint64_t hash() const { return pooled() ? low : mix64(low ^ mix64(high)); }

  static constexpr std::uint64_t kPooled = 255;
  static constexpr std::size_t kInlineBytes = 15;

  // With place 0 where the string is pooled.
  static StringKey of(std::string_view text) {
    const char* from = text.data();
    const std::size_t size = text.size();
    if (size > kInlineBytes) return {hash_bytes(from, size), kPooled << 56};
    StringKey key{0, (size + 1) << 56};
    if (size > 8) {
      key.low = load<std::uint64_t>(from);
      key.high |= load<std::uint64_t>(from + size - 8) >> 8 * (16 - size);
    } else if (size >= 4) {
      const std::uint64_t end = load<std::uint32_t>(from + size - 4);
      key.low = load<std::uint32_t>(from) | end << 8 * (size - 4);
    } else {
      for (std::size_t i = 0; i < size; ++i) key.low |= std::uint64_t{static_cast<unsigned char>(from[i])} << 8 * i;
    }
    return key;
  }

 private:
  template <typename Word>
  static Word load(const char* from) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
  }
};
static_assert(sizeof(StringKey) == 16);

}  // namespace gr2::codebook_format
