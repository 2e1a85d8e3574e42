#include <algorithm>
#include <concepts>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/codebook.h"
#include "core/codebook_format.h"
#include "core/hash.h"

namespace gr2 {
namespace {

using codebook_format::Header;

struct Entry {
  std::uint64_t hash;
  std::size_t row;
};

std::uint64_t hash_of(std::int64_t id) {
  return mix64(static_cast<std::uint64_t>(id));
}
std::uint64_t hash_of(std::string_view id) {
  return codebook_format::string_key(id);
}
std::string show(std::int64_t id) {
  return std::to_string(id);
}
std::string show(std::string_view id) {
  return "'" + std::string(id) + "'";
}

void check_codes(std::span<const std::uint16_t> codes, std::size_t rows, std::uint32_t levels,
                 std::uint32_t level_size) {
  if (levels < 1 || levels > codebook_format::kMaxLevels) {
    throw std::invalid_argument("codes must have 1 to 8 levels, got " + std::to_string(levels));
  }
  if (level_size < 1 || level_size > codebook_format::kMaxLevelSize) {
    throw std::invalid_argument("level_size must be 1 to 65536, got " + std::to_string(level_size));
  }
  if (codes.size() != rows * levels) {
    throw std::invalid_argument("codes has " + std::to_string(codes.size() / levels) + " rows for " +
                                std::to_string(rows) + " item IDs");
  }
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] >= level_size) {
      throw std::invalid_argument("codes row " + std::to_string(i / levels) + " level " + std::to_string(i % levels) +
                                  " is " + std::to_string(codes[i]) + ", level_size is " + std::to_string(level_size));
    }
  }
}

// The entries in the order of their hashes, which is the order of their slots; equal hashes in the order of their IDs.
template <typename Id>
std::vector<Entry> sorted_entries(std::span<const Id> ids) {
  std::vector<Entry> entries(ids.size());
  for (std::size_t row = 0; row < ids.size(); ++row) entries[row] = {hash_of(ids[row]), row};
  std::sort(entries.begin(), entries.end(), [ids](const Entry& a, const Entry& b) {
    if (a.hash != b.hash) return a.hash < b.hash;
    if (ids[a.row] != ids[b.row]) return ids[a.row] < ids[b.row];
    return a.row < b.row;
  });
  for (std::size_t i = 1; i < entries.size(); ++i) {
    const std::size_t first = entries[i - 1].row, second = entries[i].row;
    if (ids[first] == ids[second]) {
      throw std::invalid_argument("item_ids must be unique, " + show(ids[first]) + " is at " + std::to_string(first) +
                                  " and at " + std::to_string(second));
    }
  }
  return entries;
}

// A key that no item has. An int64's hash is a bijection, so the sorted hashes say which IDs exist.
std::uint64_t unused_key(std::span<const std::int64_t>, const std::vector<Entry>& entries) {
  auto key = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::min());
  const auto used = [&entries](std::uint64_t hash) {
    const auto found = std::lower_bound(entries.begin(), entries.end(), hash,
                                        [](const Entry& entry, std::uint64_t value) { return entry.hash < value; });
    return found != entries.end() && found->hash == hash;
  };
  while (used(mix64(key))) ++key;
  return key;
}
std::uint64_t unused_key(std::span<const std::string_view>, const std::vector<Entry>&) {
  return 0;
}

// Appends the string to the pool and returns the slot's bytes before the codes.
std::uint64_t fill_key(std::byte* slot, std::int64_t id, std::uint64_t, std::byte*, std::uint64_t) {
  std::memcpy(slot, &id, sizeof id);
  return 0;
}
std::uint64_t fill_key(std::byte* slot, std::string_view id, std::uint64_t hash, std::byte* pool,
                       std::uint64_t offset) {
  const auto length = static_cast<std::uint32_t>(id.size());
  std::memcpy(slot, &hash, sizeof hash);
  std::memcpy(slot + 8, &offset, sizeof offset);
  std::memcpy(pool + offset, &length, sizeof length);
  if (!id.empty()) std::memcpy(pool + offset + 4, id.data(), id.size());
  return 4 + id.size();
}

std::uint64_t pool_size(std::span<const std::int64_t>) {
  return 0;
}
std::uint64_t pool_size(std::span<const std::string_view> ids) {
  std::uint64_t total = 0;
  for (const std::string_view id : ids) {
    if (id.size() > std::numeric_limits<std::uint32_t>::max()) throw std::invalid_argument("an item ID has over 4 GiB");
    total += 4 + id.size();
  }
  return total;
}

// Sums one hash an item, so that the order of the items and the layout of the file play no part.
template <typename Id>
std::uint64_t fingerprint(std::span<const Id> ids, const std::vector<Entry>& entries,
                          std::span<const std::uint16_t> codes, const Header& header, std::uint64_t seed) {
  const std::uint32_t shape[4] = {header.key_type, header.levels, header.level_size, 0};
  std::uint64_t sum = hash_bytes(shape, sizeof shape, seed);
  for (const Entry& entry : entries) {
    std::uint64_t item = entry.hash;
    if constexpr (std::same_as<Id, std::string_view>)
      item = hash_bytes(ids[entry.row].data(), ids[entry.row].size(), seed);
    sum += hash_bytes(codes.data() + entry.row * header.levels, 2 * header.levels, item ^ seed);
  }
  return mix64(sum);
}

template <typename Id>
void write(const std::string& path, std::span<const Id> ids, std::span<const std::uint16_t> codes, std::uint32_t levels,
           std::uint32_t level_size) {
  check_codes(codes, ids.size(), levels, level_size);
  const std::vector<Entry> entries = sorted_entries(ids);

  Header header{};
  std::memcpy(header.magic, codebook_format::kMagic, sizeof header.magic);
  header.version = codebook_format::kVersion;
  header.byte_order = codebook_format::kByteOrder;
  header.key_type = std::same_as<Id, std::int64_t> ? codebook_format::kInt64Keys : codebook_format::kStringKeys;
  header.levels = levels;
  header.level_size = level_size;
  header.slot_bytes = codebook_format::slot_bytes(header.key_type, levels);
  header.count = ids.size();
  // A load of at most 0.6, and at least one slot more than the last one used.
  header.capacity = std::max<std::uint64_t>(1, (ids.size() * 5 + 2) / 3);
  std::vector<std::uint64_t> places(entries.size());
  std::uint64_t next = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    places[i] = std::max(next, scale(entries[i].hash, header.capacity));
    next = places[i] + 1;
  }
  header.slot_count = std::max(header.capacity, next + 1);
  header.slots_offset = sizeof(Header);
  header.pool_offset = sizeof(Header) + header.slot_count * header.slot_bytes;
  header.pool_bytes = pool_size(ids);
  header.empty_key = unused_key(ids, entries);
  header.fingerprint[0] = fingerprint(ids, entries, codes, header, 0x243f6a8885a308d3u);
  header.fingerprint[1] = fingerprint(ids, entries, codes, header, 0x13198a2e03707344u);

  std::vector<std::byte> file(header.pool_offset + header.pool_bytes);
  std::byte* slots = file.data() + header.slots_offset;
  std::byte* pool = file.data() + header.pool_offset;
  for (std::uint64_t i = 0; i < header.slot_count; ++i) {
    std::memcpy(slots + i * header.slot_bytes, &header.empty_key, sizeof header.empty_key);
  }
  std::uint64_t pooled = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    std::byte* slot = slots + places[i] * header.slot_bytes;
    pooled += fill_key(slot, ids[entries[i].row], entries[i].hash, pool, pooled);
    std::memcpy(slot + codebook_format::codes_offset(header.key_type), codes.data() + entries[i].row * levels,
                2 * levels);
  }
  header.body_checksum = hash_bytes(slots, file.size() - sizeof(Header));
  header.header_checksum = hash_bytes(&header, codebook_format::kCheckedHeaderBytes);
  std::memcpy(file.data(), &header, sizeof header);
  write_file_atomic(path, file);
}

}  // namespace

void write_codebook(const std::string& path, std::span<const std::int64_t> ids, std::span<const std::uint16_t> codes,
                    std::uint32_t levels, std::uint32_t level_size) {
  write(path, ids, codes, levels, level_size);
}

void write_codebook(const std::string& path, std::span<const std::string_view> ids,
                    std::span<const std::uint16_t> codes, std::uint32_t levels, std::uint32_t level_size) {
  write(path, ids, codes, levels, level_size);
}

}  // namespace gr2
