// Layers of a network over rows of floats: products with a weight that was packed once, in float32 or rounded to bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/simd.h"

namespace gr2 {

// As many values as the panels of so many columns have.
constexpr std::size_t padded(std::size_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

enum class Arithmetic {
  kFloat,
  kInt8,  // rows have 8 bits, each by its own range, and weights 7, each column by its own; sums are exact
};

// Memory of rounded rows, that one product after another uses.
struct RoundedRows {
  std::vector<std::uint8_t> bytes;
  std::vector<float> scales;
  std::vector<std::int32_t> zeros;
};

// Room for at least so many values.
inline void grow(std::vector<float>& values, std::size_t size) {
  if (values.size() < size) values.resize(size);
}

// Packs a matrix whose value in row k and column j is values[k * row + j * column].
void pack_panels(const float* values, std::size_t row, std::size_t column, std::size_t rows, std::size_t columns,
                 float* panels);

// rows * weight^T + bias. Immutable.
class Dense {
 public:
  Dense() = default;
  // `weight` is (out, in), `bias` (out) or empty.
  Dense(std::span<const float> weight, std::span<const float> bias, std::size_t in, Arithmetic arithmetic);

  // The values of a row that `apply` writes: padded(out), zeros after the first.
  std::size_t width() const { return width_; }
  // Rows at `a`, of `stride` values, become rows of `out_stride` values at `out`, to which they are added with `add`.
  void apply(const float* a, std::size_t stride, std::size_t rows, float* out, std::size_t out_stride,
             RoundedRows& rounded, bool add = false) const;

 private:
  void round_weight(std::span<const float> weight);

  std::size_t in_ = 0, out_ = 0, width_ = 0;
  std::vector<float> panels_, bias_, steps_;
  std::vector<std::int8_t> bytes_;
  std::vector<std::int32_t> sums_;
};

// The normalisation of rows. Immutable.
class Norm {
 public:
  Norm() = default;
  Norm(std::span<const float> weight, std::span<const float> bias, float epsilon);

  // Rows at `x` to rows at `out`, both of padded(size) values.
  void apply(const float* x, std::size_t rows, float* out) const;

 private:
  std::size_t size_ = 0;
  float epsilon_ = 0.0f;
  std::vector<float> weight_, bias_;
};

}  // namespace gr2
