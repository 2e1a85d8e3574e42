// The codebook's file: header, slots, index, string pool. All numbers are little-endian.
//
//   slots   slot_count slots of slot_bytes: key u64, for string IDs the pool offset u64, then `levels` codes u16, zero
//           padding. An int64 ID is its own key; a string's key is its hash. An empty slot holds `empty_key` and zeros.
//           The slot of a key is the first free one from scale(hash, capacity); nothing wraps around, and the last slot
//           is always empty, so that a probe ends inside the table.
//   index   from codes to slots: index_count numbers of index_width bytes, a slot's place plus 1, or 0. Entries lie as
//           slots do, by the hash of their slot's codes and index_capacity; items with the same codes follow each
//           other.
//   pool    for each string: length u32, then its UTF-8 bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
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

// The key that stands for a string; 0 marks empty slots.
inline std::uint64_t string_key(std::string_view text) {
  const std::uint64_t hash = hash_bytes(text.data(), text.size());
  return hash == 0 ? 1 : hash;
}

}  // namespace gr2::codebook_format
