// The catalogue trie's file: header, then a section for each depth. All numbers are little-endian.
//
// Depth 0 is the root. Depth d > 0 has edges[d - 1] nodes, one for each distinct prefix of d codes, in the order of the
// prefixes; those at depth L are the leaves. Node i of depth d + 1 is where edge i of level d leads, so that no edge
// says where it leads. In the file follow each other, each section filled up with zeros to a multiple of 64 bytes:
//
//   codes   of level 0, one a root's child
//   ranges  a RangeTable of depth 1: the edges of level 1 that leave each of its nodes
//   codes   of level 1, and so on to those of level L - 1
//   ranges  a RangeTable of depth L: the items of each leaf, which are row numbers
//
// Codes have code_bytes bytes. The codes of a node's children ascend.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace gr2::catalog_trie_format {

static_assert(std::endian::native == std::endian::little, "the trie is mapped as it lies on disk");

inline constexpr char kMagic[8] = {'G', 'R', '2', 'T', 'R', 'I', 'E', 'S'};
inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::uint32_t kByteOrder = 0x01020304;
inline constexpr std::uint32_t kMaxLevels = 8;
inline constexpr std::uint32_t kMaxLevelSize = 65536;
inline constexpr std::uint64_t kMaxItems = 0xffffffffu;

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t byte_order;
  std::uint32_t levels;
  std::uint32_t level_size;
  std::uint32_t code_bytes;
  std::uint32_t reserved;
  std::uint64_t items;
  std::uint64_t edges[kMaxLevels];
  // Of the RangeTable of depth d + 1.
  std::uint8_t end_bytes[kMaxLevels];
  std::uint64_t body_checksum;
  std::uint64_t header_checksum;
};
static_assert(sizeof(Header) == 128 && std::is_trivially_copyable_v<Header>);

inline constexpr std::size_t kCheckedHeaderBytes = offsetof(Header, header_checksum);

constexpr std::uint32_t code_bytes(std::uint32_t level_size) {
  return level_size <= 256 ? 1 : 2;
}

constexpr std::uint64_t padded(std::uint64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace gr2::catalog_trie_format
