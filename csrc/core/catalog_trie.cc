#include "core/catalog_trie.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <new>

#include "core/atomic_file.h"
#include "core/catalog_trie_format.h"
#include "core/errors.h"
#include "core/hash.h"

namespace gr2 {

using catalog_trie_format::Header;

namespace {

constexpr std::align_val_t kAlignment{RangeTable::kBlockBytes};
constexpr std::size_t kWritten = std::size_t{1} << 20;

}  // namespace

void CatalogTrie::AlignedDelete::operator()(std::byte* memory) const {
  ::operator delete[](memory, kAlignment);
}

CatalogTrie::Memory CatalogTrie::allocate(std::size_t bytes) {
  return Memory(static_cast<std::byte*>(::operator new[](bytes, kAlignment)));
}

std::shared_ptr<const CatalogTrie> CatalogTrie::open(const std::string& path) {
  return std::shared_ptr<const CatalogTrie>(new CatalogTrie(path));
}

CatalogTrie::CatalogTrie(const std::string& path) : file_(std::make_unique<MappedFile>(path)), bytes_(file_->bytes()) {
  if (bytes_.size() < sizeof(Header)) {
    throw FormatError(path, "not a catalogue trie: " + std::to_string(bytes_.size()) +
                                " bytes, and the header alone has " + std::to_string(sizeof(Header)));
  }
  check_header(path);
  if (lay_out() != bytes_.size()) throw FormatError(path, "damaged: the file's size is not what its header says");
  if (hash_bytes(bytes_.data() + sizeof(Header), bytes_.size() - sizeof(Header)) != header().body_checksum) {
    throw FormatError(path, "damaged: the checksum of its content does not match");
  }
  check_body(path);
}

CatalogTrie::CatalogTrie(Memory memory, std::size_t bytes) : memory_(std::move(memory)), bytes_(memory_.get(), bytes) {
  [[maybe_unused]] const std::uint64_t expected = lay_out();
  assert(expected == bytes);
}

const Header& CatalogTrie::header() const {
  return *reinterpret_cast<const Header*>(bytes_.data());
}

void CatalogTrie::check_header(const std::string& path) const {
  const Header& header = this->header();
  if (std::memcmp(header.magic, catalog_trie_format::kMagic, sizeof header.magic) != 0) {
    throw FormatError(path, "not a catalogue trie: it does not start with GR2TRIES");
  }
  if (header.byte_order != catalog_trie_format::kByteOrder) {
    throw FormatError(path, "written on a machine of another byte order, or damaged");
  }
  if (header.version != catalog_trie_format::kVersion) {
    throw FormatError(path, "catalogue trie version " + std::to_string(header.version) +
                                ", and this gr2 reads version " + std::to_string(catalog_trie_format::kVersion));
  }
  if (hash_bytes(&header, catalog_trie_format::kCheckedHeaderBytes) != header.header_checksum) {
    throw FormatError(path, "damaged: the checksum of its header does not match");
  }
  const auto require = [&path](bool holds, const char* what) {
    if (!holds) throw FormatError(path, std::string("damaged: ") + what);
  };
  require(header.levels >= 1 && header.levels <= kMaxLevels, "number of levels out of range");
  require(header.level_size >= 1 && header.level_size <= catalog_trie_format::kMaxLevelSize, "level size out of range");
  require(header.code_bytes == catalog_trie_format::code_bytes(header.level_size), "wrong size of a code");
  require(header.items <= catalog_trie_format::kMaxItems, "too many items");
  require(header.items == 0 ? header.edges[0] == 0 : header.edges[0] >= 1, "a root without children");
  for (std::size_t level = 0; level < header.levels; ++level) {
    const bool last = level + 1 == header.levels;
    const std::uint64_t here = header.edges[level], next = last ? header.items : header.edges[level + 1];
    const std::uint32_t width = header.end_bytes[level];
    require(here <= next, "fewer edges than nodes");
    require(here == next ? width == 0 : width == 1 || width == 2 || width == 4, "wrong size of a range");
  }
}

std::uint64_t CatalogTrie::lay_out() {
  const Header& header = this->header();
  items_ = header.items;
  levels_ = header.levels;
  level_size_ = header.level_size;
  code_bytes_ = header.code_bytes;
  nodes_[0] = 1;
  // No number overflows: there are at most 2^32 edges a level, and 8 levels.
  std::uint64_t position = sizeof(Header);
  for (std::size_t level = 0; level < levels_; ++level) {
    const std::size_t depth = level + 1;
    nodes_[depth] = header.edges[level];
    first_node_[depth] = first_node_[level] + nodes_[level];
    codes_[level] = bytes_.data() + position;
    position += catalog_trie_format::padded(nodes_[depth] * code_bytes_);
    const std::uint64_t next = depth == levels_ ? items_ : header.edges[depth];
    ranges_[depth] = RangeTable(bytes_.data() + position, nodes_[depth], next, header.end_bytes[level]);
    position += RangeTable::bytes(nodes_[depth], header.end_bytes[level]);
  }
  return position;
}

void CatalogTrie::check_body(const std::string& path) const {
  for (std::size_t depth = 1; depth <= levels_; ++depth) {
    if (!ranges_[depth].valid()) throw FormatError(path, "damaged: the ranges of a depth do not follow each other");
  }
  for (std::size_t level = 0; level < levels_; ++level) {
    if (!(narrow() ? ascending(level, narrow_codes(level)) : ascending(level, wide_codes(level))))
      throw FormatError(path, "damaged: the codes of a node do not ascend, or one is not below the level size");
  }
}

// Without a branch that depends on the data: the places where a code is not larger than the one before are counted,
// and of the first children those are, and the numbers must agree.
template <typename Code>
bool CatalogTrie::ascending(std::size_t level, const Code* codes) const {
  const std::uint64_t count = nodes_[level + 1];
  Code largest = 0;
  for (std::uint64_t edge = 0; edge < count; ++edge) largest = std::max(largest, codes[edge]);
  std::uint64_t drops = 0;
  for (std::uint64_t edge = 1; edge < count; ++edge) drops += codes[edge] <= codes[edge - 1];
  if (level > 0) {
    for (std::uint64_t node = 1; node < nodes_[level]; ++node) {
      const std::uint64_t first = ranges_[level][node].begin;
      drops -= codes[first] <= codes[first - 1];
    }
  }
  return drops == 0 && largest < level_size_;
}

void CatalogTrie::save(const std::string& path) const {
  Header header = this->header();
  const std::span<const std::byte> body = bytes_.subspan(sizeof header);
  header.body_checksum = hash_bytes(body.data(), body.size());
  header.header_checksum = hash_bytes(&header, catalog_trie_format::kCheckedHeaderBytes);
  AtomicFile file(path);
  file.append(&header, sizeof header);
  for (std::span<const std::byte> left = body; !left.empty();) {
    const std::span<const std::byte> part = left.first(std::min(left.size(), kWritten));
    file.append(part.data(), part.size());
    left = left.subspan(part.size());
  }
  file.commit();
}

}  // namespace gr2
