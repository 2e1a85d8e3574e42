// What is known of pairs of items, looked up for the candidates of a request against its history.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/mapped_file.h"

namespace gr2 {

// The memory file: a header, then arrays of N items, each at the next multiple of 64 bytes. All numbers are
// little-endian. `codes` u16 (N, L); `popularity` f32 (N); `co`, `following` and `titles`, each i32 (N, M) items, of
// which -1 is none and no other is twice in a row, and f32 (N, M) weights; `together` and `text` f32 (N, D).
struct ItemMemoryHeader {
  static constexpr char kMagic[8] = {'G', 'R', '2', 'M', 'E', 'M', 'O', 'R'};
  static constexpr std::uint32_t kVersion = 1;

  char magic[8];
  std::uint32_t version;
  std::uint32_t levels;
  std::uint64_t items;
  std::uint32_t neighbours[3];  // M of co, following and titles
  std::uint32_t widths[2];      // D of together and text
  float decay;                  // of an event's weight with each event after it
};
static_assert(sizeof(ItemMemoryHeader) == 48);

// The columns of gr2/models/memory.py for each candidate, from the mapped file. Immutable and thread-safe.
class ItemMemory {
 public:
  static constexpr std::size_t kColumns = 25;

  // Throws FileError and FormatError.
  explicit ItemMemory(const std::string& path);

  std::size_t items() const { return items_; }
  std::size_t levels() const { return levels_; }
  // The row of the first item that has the codes, `items()` if none has: of each row of `codes` (n, levels).
  void find(std::span<const std::uint16_t> codes, std::span<std::int64_t> rows) const;
  // Fills `columns` (K, kColumns) for candidates with rows `own` (K) and `own_codes` (K, levels) after the history,
  // oldest first, with rows `past` (T) and `past_codes` (T, levels). A row of items() is an item that is not known.
  void columns(std::span<const std::int64_t> past, std::span<const std::uint16_t> past_codes,
               std::span<const std::int64_t> own, std::span<const std::uint16_t> own_codes,
               std::span<float> columns) const;

 private:
  // Rows of other items with weights: (N, width).
  struct Neighbours {
    std::span<const std::int32_t> items;
    std::span<const float> weights;
    std::size_t width = 0;
  };
  struct Vectors {
    std::span<const float> values;
    std::size_t width = 0;
  };
  class Slate;

  void index_codes();
  void add_neighbours(std::span<const std::int64_t> past, std::span<const float> decay, const Slate& slate,
                      std::span<float> columns) const;
  void add_prefixes(std::span<const std::uint16_t> past_codes, std::span<const std::uint16_t> own_codes,
                    std::span<float> columns) const;
  void add_products(const Vectors& vectors, std::span<const std::int64_t> past, std::span<const float> decay,
                    std::span<const std::int64_t> own, std::span<float> columns, std::size_t first) const;

  MappedFile file_;
  std::size_t items_ = 0, levels_ = 0;
  float decay_ = 0.0f;
  std::span<const std::uint16_t> codes_;
  std::span<const float> popularity_;
  Neighbours co_, following_, titles_;
  Vectors together_, text_;
  std::vector<std::uint32_t> places_;  // open addressing by the hash of codes: a row plus 1, or 0
};

}  // namespace gr2
