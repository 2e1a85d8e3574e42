// What is computed for each pair of a candidate and a history item, by the widest registers that the processor has.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace gr2 {

// Vectors of equal width take turns by so many values, and candidates are multiplied so many at a time.
inline constexpr std::size_t kQuad = 4;

// Of the products of a candidate with each history vector: the last one, their sum, the largest, if above 0, and their
// weighted sum. One value for each of kQuad candidates.
struct ProductSums {
  std::array<float, kQuad> last{}, total{}, largest{}, weighted{};
};

// `own` has kQuad candidates, four values of each in turn, and `past` vectors of `quads` times four values, a weight
// each. The sums are made in their order.
ProductSums sum_products(const float* own, std::span<const float> past, std::span<const float> weights,
                         std::size_t quads);

// A set of rows that may hold others too: one bit for the rows of equal hash.
class RowMarks {
 public:
  static constexpr std::size_t kTogether = 64;

  void add(std::int32_t row) { words_[place(row) / 32] |= std::uint32_t{1} << place(row) % 32; }
  // A bit for each of at most kTogether rows: whether it may be in the set. A row below 0 is not.
  std::uint64_t find(std::span<const std::int32_t> rows) const;

 private:
  static constexpr std::size_t kBits = 11;

  static std::uint32_t place(std::int32_t row) { return static_cast<std::uint32_t>(row) * 0x9e3779b1u >> (32 - kBits); }
  std::uint64_t find_wide(std::span<const std::int32_t> rows) const;

  std::array<std::uint32_t, (std::size_t{1} << kBits) / 32> words_{};
};

}  // namespace gr2
