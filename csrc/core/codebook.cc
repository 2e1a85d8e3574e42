#include "core/codebook.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

#include "core/codebook_format.h"
#include "core/errors.h"
#include "core/hash.h"

namespace gr2 {

using codebook_format::codes_offset;
using codebook_format::Header;
using codebook_format::kInt64Keys;
using codebook_format::kStringKeys;
using codebook_format::StringKey;

namespace {

// IDs whose slots are fetched at once: enough to hide a memory access, few enough to stay in the first-level cache.
constexpr std::size_t kBlock = 64;

std::uint64_t load64(const std::byte* from) {
  std::uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::uint32_t load32(const std::byte* from) {
  std::uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::uint16_t load16(const std::byte* from) {
  std::uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

StringKey load_key(const std::byte* from) {
  StringKey key;
  std::memcpy(&key, from, sizeof key);
  return key;
}

}  // namespace

Codebook::Codebook(const std::string& path) : file_(path) {
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < sizeof(Header)) {
    throw FormatError(path, "not a codebook: " + std::to_string(bytes.size()) + " bytes, and the header alone has " +
                                std::to_string(sizeof(Header)));
  }
  header_ = reinterpret_cast<const Header*>(bytes.data());
  check_header(path);
  slots_ = bytes.data() + header_->slots_offset;
  index_ = bytes.data() + header_->index_offset;
  pool_ = bytes.data() + header_->pool_offset;
  if (hash_bytes(slots_, bytes.size() - sizeof(Header)) != header_->body_checksum) {
    throw FormatError(path, "damaged: the checksum of its content does not match");
  }
  check_slots(path);
  check_index(path);
}

void Codebook::check_header(const std::string& path) const {
  const Header& header = *header_;
  if (std::memcmp(header.magic, codebook_format::kMagic, sizeof header.magic) != 0) {
    throw FormatError(path, "not a codebook: it does not start with GR2CODES");
  }
  if (header.byte_order != codebook_format::kByteOrder) {
    throw FormatError(path, "written on a machine of another byte order, or damaged");
  }
  if (header.version != codebook_format::kVersion) {
    throw FormatError(path, "codebook version " + std::to_string(header.version) + ", and this gr2 reads version " +
                                std::to_string(codebook_format::kVersion));
  }
  if (hash_bytes(&header, codebook_format::kCheckedHeaderBytes) != header.header_checksum) {
    throw FormatError(path, "damaged: the checksum of its header does not match");
  }
  const auto require = [&path](bool holds, const char* what) {
    if (!holds) throw FormatError(path, std::string("damaged: ") + what);
  };
  require(header.key_type == kInt64Keys || header.key_type == kStringKeys, "unknown type of item ID");
  require(header.levels >= 1 && header.levels <= codebook_format::kMaxLevels, "number of levels out of range");
  require(header.level_size >= 1 && header.level_size <= codebook_format::kMaxLevelSize, "level size out of range");
  require(header.slot_bytes == codebook_format::slot_bytes(header.key_type, header.levels), "wrong size of a slot");
  require(header.slots_offset == sizeof(Header), "the slots do not follow the header");
  const std::uint64_t body = file_.bytes().size() - sizeof(Header);
  require(header.slot_count >= 1 && header.slot_count <= body / header.slot_bytes, "more slots than the file can hold");
  require(header.capacity >= 1 && header.capacity <= header.slot_count, "capacity out of range");
  require(header.count < header.slot_count, "more items than slots");
  const std::uint64_t slot_bytes = header.slot_count * header.slot_bytes;
  require(header.index_offset == sizeof(Header) + slot_bytes, "the index does not follow the slots");
  require(header.index_width == codebook_format::index_width(header.slot_count), "wrong size of an index entry");
  require(header.index_count >= 1 && header.index_count <= (body - slot_bytes) / header.index_width,
          "more index entries than the file can hold");
  require(header.index_capacity >= 1 && header.index_capacity <= header.index_count, "index capacity out of range");
  const std::uint64_t index_bytes = header.index_count * header.index_width;
  require(header.pool_offset == header.index_offset + index_bytes, "the string pool does not follow the index");
  require(header.pool_bytes == body - slot_bytes - index_bytes, "the file's size is not what its header says");
}

void Codebook::check_slots(const std::string& path) const {
  const Header& header = *header_;
  const std::uint32_t offset = codes_offset(header.key_type);
  const std::uint64_t slot_count = header.slot_count, stride = header.slot_bytes;
  // Of strings the second word of the key is never 0, as its last byte is not.
  const std::uint64_t empty_key = has_string_ids() ? 0 : header.empty_key, word = has_string_ids() ? 8 : 0;
  // Both without a branch that depends on the data, which would be mispredicted at every other slot. Slots are padded
  // with zeros to a multiple of four codes.
  std::uint64_t count = 0;
  std::array<std::uint16_t, 4> largest{};
  const std::byte* entry = slots_;
  for (std::uint64_t i = 0; i < slot_count; ++i, entry += stride) {
    count += load64(entry + word) != empty_key;
    for (std::uint64_t at = offset; at < stride; at += 8) {
      for (std::uint64_t j = 0; j < 4; ++j) largest[j] = std::max(largest[j], load16(entry + at + 2 * j));
    }
  }
  if (count != header.count) throw FormatError(path, "damaged: the number of used slots is not the number of items");
  if (*std::max_element(largest.begin(), largest.end()) >= header.level_size)
    throw FormatError(path, "damaged: a code is not below the level size");
  if (occupied(slot(header.slot_count - 1))) throw FormatError(path, "damaged: the last slot is not empty");
  if (has_string_ids()) check_keys(path);
}

void Codebook::check_index(const std::string& path) const {
  std::uint64_t count = 0, largest = 0;
  const auto scan = [&]<typename Entry>(Entry) {
    for (std::uint64_t i = 0; i < header_->index_count; ++i) {
      Entry entry;
      std::memcpy(&entry, index_ + i * sizeof entry, sizeof entry);
      count += entry != 0;
      largest = std::max<std::uint64_t>(largest, entry);
    }
  };
  header_->index_width == 4 ? scan(std::uint32_t{}) : scan(std::uint64_t{});
  if (count != header_->count) throw FormatError(path, "damaged: the index has not one entry an item");
  if (largest > header_->slot_count) throw FormatError(path, "damaged: the index points outside the slots");
  if (index_entry(header_->index_count - 1) != 0) throw FormatError(path, "damaged: the last index entry is not empty");
}

void Codebook::check_keys(const std::string& path) const {
  const std::uint64_t pool_bytes = header_->pool_bytes;
  for (std::uint64_t i = 0; i < header_->slot_count; ++i) {
    const StringKey key = load_key(slot(i));
    if (!key.pooled()) {
      if (key.tag() > StringKey::kInlineBytes + 1 || (key.tag() == 0 && key != StringKey{}))
        throw FormatError(path, "damaged: a string is longer than its slot");
      continue;
    }
    const std::uint64_t start = key.place();
    if (pool_bytes < 4 || start > pool_bytes - 4 || load32(pool_ + start) > pool_bytes - 4 - start)
      throw FormatError(path, "damaged: a string lies outside the pool");
  }
}

std::uint64_t Codebook::size() const {
  return header_->count;
}
std::uint32_t Codebook::levels() const {
  return header_->levels;
}
std::uint32_t Codebook::level_size() const {
  return header_->level_size;
}
bool Codebook::has_string_ids() const {
  return header_->key_type == kStringKeys;
}

std::string Codebook::fingerprint() const {
  std::string text;
  for (const std::uint64_t half : header_->fingerprint) {
    for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[(half >> shift) & 15];
  }
  return text;
}

const std::byte* Codebook::slot(std::uint64_t index) const {
  return slots_ + index * header_->slot_bytes;
}

std::string_view Codebook::pool_string(std::uint64_t offset) const {
  return {reinterpret_cast<const char*>(pool_ + offset + 4), load32(pool_ + offset)};
}

std::uint64_t Codebook::index_entry(std::uint64_t place) const {
  const std::byte* entry = index_ + place * header_->index_width;
  return header_->index_width == 4 ? load32(entry) : load64(entry);
}

std::int64_t Codebook::int64_id(std::uint64_t slot_index) const {
  return static_cast<std::int64_t>(load64(slot(slot_index)));
}

std::string_view Codebook::string_id(std::uint64_t slot_index) const {
  const std::byte* entry = slot(slot_index);
  const StringKey key = load_key(entry);
  if (key.pooled()) return pool_string(key.place());
  return {reinterpret_cast<const char*>(entry), static_cast<std::size_t>(key.tag() - 1)};
}

Codebook::Items Codebook::items(std::span<const std::uint16_t> codes) const {
  assert(codes.size() % levels() == 0);
  const std::size_t row_bytes = 2 * std::size_t{levels()}, rows = codes.size() / levels();
  Items found{{0}, {}};
  found.offsets.reserve(rows + 1);
  for (std::size_t row = 0; row < rows; ++row) {
    const std::uint16_t* wanted = codes.data() + row * levels();
    for (std::uint64_t place = scale(hash_bytes(wanted, row_bytes), header_->index_capacity);; ++place) {
      const std::uint64_t entry = index_entry(place);
      if (entry == 0) break;
      const std::byte* candidate = slot(entry - 1);
      // Only a forged index points at an empty slot.
      if (!occupied(candidate)) continue;
      if (std::memcmp(candidate + codes_offset(header_->key_type), wanted, row_bytes) == 0)
        found.slots.push_back(entry - 1);
    }
    found.offsets.push_back(found.slots.size());
  }
  return found;
}

bool Codebook::occupied(const std::byte* entry) const {
  return has_string_ids() ? load_key(entry).tag() != 0 : load64(entry) != header_->empty_key;
}

template <std::uint32_t kLevels>
void Codebook::lookup_int64(std::span<const std::int64_t> ids, std::uint16_t* codes, std::uint8_t* known) const {
  const std::uint64_t capacity = header_->capacity, empty_key = header_->empty_key;
  const std::uint32_t levels = kLevels == 0 ? header_->levels : kLevels;
  const std::size_t stride = kLevels == 0 ? header_->slot_bytes : codebook_format::slot_bytes(kInt64Keys, kLevels);
  std::array<const std::byte*, kBlock> entries;
  while (!ids.empty()) {
    const std::size_t block = std::min(kBlock, ids.size());
    for (std::size_t i = 0; i < block; ++i) {
      entries[i] = slots_ + scale(mix64(static_cast<std::uint64_t>(ids[i])), capacity) * stride;
      __builtin_prefetch(entries[i]);
    }
    for (std::size_t i = 0; i < block; ++i) {
      const auto key = static_cast<std::uint64_t>(ids[i]);
      const std::byte* entry = entries[i];
      std::uint64_t found = load64(entry);
      while (found != key && found != empty_key) found = load64(entry += stride);
      // An empty slot holds zero codes, which is what an unknown item gets.
      known[i] = found != empty_key;
      std::memcpy(codes + i * levels, entry + codes_offset(kInt64Keys), 2 * levels);
    }
    ids = ids.subspan(block);
    codes += block * levels;
    known += block;
  }
}

template <std::uint32_t kLevels>
void Codebook::lookup_string(std::span<const std::string_view> ids, std::uint16_t* codes, std::uint8_t* known) const {
  const std::uint64_t capacity = header_->capacity;
  const std::uint32_t levels = kLevels == 0 ? header_->levels : kLevels;
  const std::size_t stride = kLevels == 0 ? header_->slot_bytes : codebook_format::slot_bytes(kStringKeys, kLevels);
  std::array<StringKey, kBlock> keys;
  std::array<const std::byte*, kBlock> entries;
  while (!ids.empty()) {
    const std::size_t block = std::min(kBlock, ids.size());
    for (std::size_t i = 0; i < block; ++i) {
      keys[i] = StringKey::of(ids[i]);
      entries[i] = slots_ + scale(keys[i].hash(), capacity) * stride;
    }
    // In a loop of its own, so that the processor has many in flight. A slot may lie across two cache lines.
    for (std::size_t i = 0; i < block; ++i) {
      __builtin_prefetch(entries[i]);
      __builtin_prefetch(entries[i] + stride - 1);
    }
    for (std::size_t i = 0; i < block; ++i) {
      const StringKey wanted = keys[i];
      const std::byte* entry = entries[i];
      StringKey found = load_key(entry);
      while (found.tag() != 0 && !matches(found, wanted, ids[i])) found = load_key(entry += stride);
      // An empty slot holds zero codes, which is what an unknown item gets.
      known[i] = found.tag() != 0;
      std::memcpy(codes + i * levels, entry + codes_offset(kStringKeys), 2 * levels);
    }
    ids = ids.subspan(block);
    codes += block * levels;
    known += block;
  }
}

bool Codebook::matches(const StringKey& found, const StringKey& wanted, std::string_view id) const {
  if (!wanted.pooled()) return found == wanted;
  return found.pooled() && found.low == wanted.low && pool_string(found.place()) == id;
}

void Codebook::lookup(std::span<const std::int64_t> ids, std::span<std::uint16_t> codes,
                      std::span<std::uint8_t> known) const {
  assert(!has_string_ids() && codes.size() == ids.size() * levels() && known.size() == ids.size());
  switch (levels()) {
    case 3:
      return lookup_int64<3>(ids, codes.data(), known.data());
    case 4:
      return lookup_int64<4>(ids, codes.data(), known.data());
    default:
      return lookup_int64<0>(ids, codes.data(), known.data());
  }
}

void Codebook::lookup(std::span<const std::string_view> ids, std::span<std::uint16_t> codes,
                      std::span<std::uint8_t> known) const {
  assert(has_string_ids() && codes.size() == ids.size() * levels() && known.size() == ids.size());
  switch (levels()) {
    case 3:
      return lookup_string<3>(ids, codes.data(), known.data());
    case 4:
      return lookup_string<4>(ids, codes.data(), known.data());
    default:
      return lookup_string<0>(ids, codes.data(), known.data());
  }
}

}  // namespace gr2
