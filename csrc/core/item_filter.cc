#include "core/item_filter.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>

namespace gr2 {
namespace {

std::vector<std::uint32_t> sorted_rows(std::span<const std::int64_t> rows, std::uint64_t items, const char* name) {
  std::vector<std::uint32_t> sorted(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || static_cast<std::uint64_t>(rows[i]) >= items) {
      throw std::invalid_argument(std::string(name) + " row " + std::to_string(i) + " is " + std::to_string(rows[i]) +
                                  ", the catalogue has " + std::to_string(items) + " items");
    }
    sorted[i] = static_cast<std::uint32_t>(rows[i]);
  }
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  return sorted;
}

// The nodes at `depth` under which listed edges lie: any of them, or all that the node has.
std::vector<std::uint32_t> owners(const CatalogTrie& trie, std::size_t depth, std::span<const std::uint32_t> listed,
                                  bool all) {
  std::vector<std::uint32_t> nodes;
  for (auto next = listed.begin(); next != listed.end();) {
    const std::uint64_t node = trie.above(depth, *next);
    const Range range = trie.below(depth, node);
    const auto end = std::lower_bound(next, listed.end(), range.end);
    if (!all || static_cast<std::uint64_t>(end - next) == range.size())
      nodes.push_back(static_cast<std::uint32_t>(node));
    next = end;
  }
  return nodes;
}

}  // namespace

ItemFilter::ItemFilter(std::shared_ptr<const CatalogTrie> trie, std::optional<std::span<const std::int64_t>> allow,
                       std::span<const std::int64_t> deny)
    : trie_(std::move(trie)), lists_allowed_(allow.has_value()) {
  const std::size_t levels = trie_->levels();
  lists_[levels] = sorted_rows(deny, trie_->size(), "deny");
  if (allow) {
    const std::vector<std::uint32_t> allowed = sorted_rows(*allow, trie_->size(), "allow"),
                                     denied = std::move(lists_[levels]);
    lists_[levels].clear();
    std::set_difference(allowed.begin(), allowed.end(), denied.begin(), denied.end(),
                        std::back_inserter(lists_[levels]));
  }
  for (std::size_t depth = levels; depth > 0; --depth)
    lists_[depth - 1] = owners(*trie_, depth, lists_[depth], !lists_allowed_);
}

std::span<const std::uint32_t> ItemFilter::listed(std::size_t level, Range range) const {
  const std::vector<std::uint32_t>& list = lists_[level];
  const auto begin = std::lower_bound(list.begin(), list.end(), range.begin);
  return {begin, std::lower_bound(begin, list.end(), range.end)};
}

std::uint64_t ItemFilter::size() const {
  const std::uint64_t count = lists_[trie_->levels()].size();
  return lists_allowed_ ? count : trie_->size() - count;
}

}  // namespace gr2
