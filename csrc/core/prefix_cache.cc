#include "core/prefix_cache.h"

#include <iterator>
#include <utility>

namespace gr2 {

PrefixCache::PrefixCache(std::size_t capacity, std::uint64_t seed) : capacity_(capacity), places_(0, Hash{seed}) {}

PrefixCache::Value PrefixCache::find(std::string_view key) {
  const std::lock_guard lock(mutex_);
  const auto place = places_.find(key);
  if (place == places_.end()) {
    ++misses_;
    return nullptr;
  }
  ++hits_;
  entries_.splice(entries_.begin(), entries_, place->second);
  return place->second->value;
}

void PrefixCache::insert(std::string_view key, Value value, std::size_t bytes) {
  bytes += key.size() + kOverhead;
  if (bytes > capacity_) return;
  // Made before and destroyed after the lock is held: what a value's destructor waits for may wait for the lock.
  Entries added, dropped;
  added.push_back({std::string(key), std::move(value), bytes});
  const std::lock_guard lock(mutex_);
  if (const auto place = places_.find(key); place != places_.end()) drop(place->second, dropped);
  while (bytes_ + bytes > capacity_) {
    drop(std::prev(entries_.end()), dropped);
    ++evicted_;
  }
  places_.emplace(added.front().key, added.begin());
  entries_.splice(entries_.begin(), added);
  bytes_ += bytes;
}

void PrefixCache::clear() {
  Entries dropped;
  const std::lock_guard lock(mutex_);
  places_.clear();
  dropped.swap(entries_);
  bytes_ = 0;
}

PrefixCache::Counts PrefixCache::counts() const {
  const std::lock_guard lock(mutex_);
  return {hits_, misses_, evicted_, entries_.size(), bytes_};
}

void PrefixCache::drop(Entries::iterator entry, Entries& dropped) {
  bytes_ -= entry->bytes;
  places_.erase(entry->key);
  dropped.splice(dropped.begin(), entries_, entry);
}

}  // namespace gr2
