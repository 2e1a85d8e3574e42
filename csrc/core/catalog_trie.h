// The trie of a whole catalogue's semantic IDs, in memory or in a file that processes share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/mapped_file.h"
#include "core/range_table.h"

namespace gr2 {

namespace catalog_trie_format {
struct Header;
}  // namespace catalog_trie_format

// Level d, 0 to L - 1, has one edge for each distinct prefix of d + 1 codes, in their order; edge i of level d leads to
// node i of depth d + 1, and a leaf, a node of depth L, holds the items with its path. Items are row numbers of the
// sorted codes. Immutable: any number of threads may search at once, and who holds the pointer keeps the memory.
class CatalogTrie {
 public:
  static constexpr std::size_t kMaxLevels = 8;

  // `codes` is (items, levels) row-major, its rows in lexicographic order; equal rows share a leaf. Throws
  // std::invalid_argument that names the row and level of a code that is not below `level_size` or not in order, and on
  // sizes out of range.
  static std::shared_ptr<const CatalogTrie> build(std::span<const std::uint16_t> codes, std::size_t levels,
                                                  std::uint32_t level_size);
  // Maps the file and checks all of it. Throws FileError or FormatError.
  static std::shared_ptr<const CatalogTrie> open(const std::string& path);
  // Writes the file atomically; its bytes depend on the codes alone. Throws FileError.
  void save(const std::string& path) const;

  std::uint64_t size() const { return items_; }
  std::size_t levels() const { return levels_; }
  std::uint32_t level_size() const { return level_size_; }
  // Bytes of the whole index, which are also the file's.
  std::uint64_t byte_size() const { return bytes_.size(); }

  // The nodes at `depth`, 0 to L; the root is the only one at depth 0.
  std::uint64_t node_count(std::size_t depth) const { return nodes_[depth]; }
  // The nodes of all depths before `depth`: what to add for numbers that are breadth-first over the whole trie.
  std::uint64_t first_node(std::size_t depth) const { return first_node_[depth]; }
  // The children of a node at `depth` below L, as edges of level `depth`; the items of a leaf at depth L.
  Range below(std::size_t depth, std::uint64_t node) const {
    return depth == 0 ? Range{0, nodes_[1]} : ranges_[depth][node];
  }
  // The node at `depth`, 1 to L, under which an edge of level `depth`, or an item at L, lies.
  std::uint64_t above(std::size_t depth, std::uint64_t edge) const { return ranges_[depth].find(edge); }
  std::uint16_t code(std::size_t level, std::uint64_t edge) const {
    return code_bytes_ == 1 ? narrow_codes(level)[edge] : wide_codes(level)[edge];
  }
  // Asks the memory for what `below`, and then the scan of a range of edges, will read.
  void prefetch_below(std::size_t depth, std::uint64_t node) const {
    if (depth != 0) ranges_[depth].prefetch(node);
  }
  void prefetch_codes(std::size_t level, std::uint64_t edge) const {
    __builtin_prefetch(codes_[level] + edge * code_bytes_);
  }
  void prefetch_codes(std::size_t level, Range edges) const {
    const std::byte* end = codes_[level] + edges.end * code_bytes_;
    for (const std::byte* line = codes_[level] + edges.begin * code_bytes_; line < end; line += 64)
      __builtin_prefetch(line);
  }

  // The codes of a level's edges: narrow where codes fit into a byte, that is up to a level size of 256.
  bool narrow() const { return code_bytes_ == 1; }
  const std::uint8_t* narrow_codes(std::size_t level) const {
    return reinterpret_cast<const std::uint8_t*>(codes_[level]);
  }
  const std::uint16_t* wide_codes(std::size_t level) const {
    return reinterpret_cast<const std::uint16_t*>(codes_[level]);
  }

 private:
  // Memory that begins at a cache line.
  struct AlignedDelete {
    void operator()(std::byte* memory) const;
  };
  using Memory = std::unique_ptr<std::byte[], AlignedDelete>;
  static Memory allocate(std::size_t bytes);

  explicit CatalogTrie(const std::string& path);
  CatalogTrie(Memory memory, std::size_t bytes);
  // Sets what follows from the header at the front of `bytes_`, and returns the bytes that the whole index takes.
  std::uint64_t lay_out();
  const catalog_trie_format::Header& header() const;
  void check_header(const std::string& path) const;
  void check_body(const std::string& path) const;
  template <typename Code>
  bool ascending(std::size_t level, const Code* codes) const;

  std::unique_ptr<MappedFile> file_;
  Memory memory_;
  std::span<const std::byte> bytes_;
  std::uint64_t items_ = 0;
  std::size_t levels_ = 0;
  std::uint32_t level_size_ = 0;
  std::uint32_t code_bytes_ = 0;
  std::array<const std::byte*, kMaxLevels> codes_{};
  std::array<RangeTable, kMaxLevels + 1> ranges_;
  std::array<std::uint64_t, kMaxLevels + 1> nodes_{};
  std::array<std::uint64_t, kMaxLevels + 1> first_node_{};

  friend class CatalogTrieBuild;
};

}  // namespace gr2
