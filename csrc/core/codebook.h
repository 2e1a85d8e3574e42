// The map from item IDs to semantic-ID codes, in a file that worker processes share through the page cache.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/mapped_file.h"

namespace gr2 {

namespace codebook_format {
struct Header;
}

// Writes a codebook file atomically. Its bytes depend on the set of items alone, not on their order.
// `codes` is (ids, levels) row-major. Throws std::invalid_argument on duplicate IDs, on a code that is not below
// `level_size`, and on sizes that do not fit together; FileError on failure to write.
void write_codebook(const std::string& path, std::span<const std::int64_t> ids, std::span<const std::uint16_t> codes,
                    std::uint32_t levels, std::uint32_t level_size);
void write_codebook(const std::string& path, std::span<const std::string_view> ids,
                    std::span<const std::uint16_t> codes, std::uint32_t levels, std::uint32_t level_size);

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

 private:
  const std::byte* slot(std::uint64_t index) const;
  std::string_view pool_string(std::uint64_t offset) const;
  const std::byte* find(std::string_view id, std::uint64_t key) const;
  void check_header(const std::string& path) const;
  void check_slots(const std::string& path) const;
  void check_strings(const std::string& path) const;
  template <std::uint32_t kLevels>
  void lookup_int64(std::span<const std::int64_t> ids, std::uint16_t* codes, std::uint8_t* known) const;

  MappedFile file_;
  const codebook_format::Header* header_ = nullptr;
  const std::byte* slots_ = nullptr;
  const std::byte* pool_ = nullptr;
};

}  // namespace gr2
