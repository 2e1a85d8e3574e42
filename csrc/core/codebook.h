// The map between item IDs and semantic-ID codes, in a file that worker processes share through the page cache.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"

namespace gr2 {

namespace codebook_format {
struct Header;
struct StringKey;
}  // namespace codebook_format

// A codebook file, mapped read-only. Immutable: any number of threads may look up at once.
class Codebook {
 public:
  // Checks the whole file before use: header, sizes, checksums, and each slot's codes and string. Throws FileError or
  // FormatError.
  explicit Codebook(const std::string& path);

  std::uint64_t size() const;
  std::uint32_t levels() const;
  std::uint32_t level_size() const;
  bool has_string_ids() const;
  // 32 hexadecimal digits that identify the set of items with their codes, whatever the file's layout.
  std::string fingerprint() const;

  // Fills `codes`, (ids, levels) row-major, and `known`, 0 or 1; the codes of unknown items are 0.
  // The ID type must be the codebook's own.
  void lookup(std::span<const std::int64_t> ids, std::span<std::uint16_t> codes, std::span<std::uint8_t> known) const;
  void lookup(std::span<const std::string_view> ids, std::span<std::uint16_t> codes,
              std::span<std::uint8_t> known) const;

  // The items of each row of `codes`, (n, levels) row-major: those of row i are `slots[offsets[i]]` to
  // `slots[offsets[i + 1]]`, to be read by `int64_id` or `string_id`. A row that no item has is empty. The order of a
  // row's items is that of their hashes.
  struct Items {
    std::vector<std::uint64_t> offsets, slots;
  };
  Items items(std::span<const std::uint16_t> codes) const;
  std::int64_t int64_id(std::uint64_t slot) const;
  std::string_view string_id(std::uint64_t slot) const;

 private:
  const std::byte* slot(std::uint64_t index) const;
  std::string_view pool_string(std::uint64_t offset) const;
  std::uint64_t index_entry(std::uint64_t place) const;
  bool occupied(const std::byte* entry) const;
  bool matches(const codebook_format::StringKey& found, const codebook_format::StringKey& wanted,
               std::string_view id) const;
  void check_header(const std::string& path) const;
  void check_slots(const std::string& path) const;
  void check_index(const std::string& path) const;
  void check_keys(const std::string& path) const;
  template <std::uint32_t kLevels>
  void lookup_int64(std::span<const std::int64_t> ids, std::uint16_t* codes, std::uint8_t* known) const;
  template <std::uint32_t kLevels>
  void lookup_string(std::span<const std::string_view> ids, std::uint16_t* codes, std::uint8_t* known) const;

  MappedFile file_;
  const codebook_format::Header* header_ = nullptr;
  const std::byte* slots_ = nullptr;
  const std::byte* index_ = nullptr;
  const std::byte* pool_ = nullptr;
};

}  // namespace gr2
