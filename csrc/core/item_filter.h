// Which items of a catalogue a search may return.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/catalog_trie.h"

namespace gr2 {

// Holds as much as the sets, whatever the catalogue's size: of the allowed items every edge on their paths, or of the
// denied ones the edges that lead to no other item. Immutable.
class ItemFilter {
 public:
  // Rows in any order, repeated or not; with `allow` all other items are denied. Throws std::invalid_argument that
  // names a row that the catalogue does not have.
  ItemFilter(std::shared_ptr<const CatalogTrie> trie, std::optional<std::span<const std::int64_t>> allow,
             std::span<const std::int64_t> deny);

  const CatalogTrie& trie() const { return *trie_; }
  // Whether `listed` names what is allowed, and not what is denied.
  bool lists_allowed() const { return lists_allowed_; }
  // The listed edges of `level`, or items at L, that lie in the range; they ascend.
  std::span<const std::uint32_t> listed(std::size_t level, Range range) const;
  // Number of items that may be returned.
  std::uint64_t size() const;

 private:
  std::shared_ptr<const CatalogTrie> trie_;
  bool lists_allowed_;
  std::array<std::vector<std::uint32_t>, CatalogTrie::kMaxLevels + 1> lists_;
};

}  // namespace gr2
