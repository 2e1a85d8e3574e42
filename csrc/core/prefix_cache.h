// What was computed from a prefix, kept until its bytes are needed: a user's encoded history, keyed by the history.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/hash.h"

namespace gr2 {

// Values by key, least recently used first out. A key is compared whole, its hash only finds it. Thread-safe.
class PrefixCache {
 public:
  using Value = std::shared_ptr<const void>;

  struct Counts {
    std::uint64_t hits, misses, evicted;
    std::size_t entries, bytes;
  };

  // Bytes that an entry takes beside its key and its value.
  static constexpr std::size_t kOverhead = 192;

  // Holds `capacity` bytes at most, everything an entry takes included; with 0 it keeps nothing. `seed` makes the
  // hashes of one process unknown to those who choose keys.
  PrefixCache(std::size_t capacity, std::uint64_t seed);

  std::size_t capacity() const { return capacity_; }
  // The value of `key`, now the most recently used; null if there is none.
  Value find(std::string_view key);
  // Keeps a value that takes `bytes`; one that alone is beyond the capacity is not kept. Of two for one key, which
  // threads computed at once, the later stays.
  void insert(std::string_view key, Value value, std::size_t bytes);
  // Drops every entry; the counts go on.
  void clear();
  Counts counts() const;

 private:
  struct Entry {
    std::string key;
    Value value;
    std::size_t bytes;
  };
  struct Hash {
    std::uint64_t seed;
    std::size_t operator()(std::string_view key) const { return hash_bytes(key.data(), key.size(), seed); }
  };
  using Entries = std::list<Entry>;

  void drop(Entries::iterator entry, Entries& dropped);

  const std::size_t capacity_;
  mutable std::mutex mutex_;
  Entries entries_;  // the most recently used first
  std::unordered_map<std::string_view, Entries::iterator, Hash> places_;
  std::size_t bytes_ = 0;
  std::uint64_t hits_ = 0, misses_ = 0, evicted_ = 0;
};

}  // namespace gr2
