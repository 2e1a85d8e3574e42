// The loops over rows of logits and of codes, compiled once for each generation of x86-64; the processor's own are
// used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gr2 {

// The largest value, and the sum, which is NaN or +infinity if any value is; a large finite sum may overflow to it,
// too.
// The exponentials are exp(values - offset), of an offset near the largest value; they say nothing if the sum is NaN or
// +infinity, and are 0 if the largest value is -infinity.
struct RowSummary {
  float largest;
  float sum;
  float offset;
  double exponentials;
};

inline constexpr std::size_t kGroups = 32;

// A matrix is packed as panels of so many columns, each row by row; the last one is filled up with zeros.
inline constexpr std::size_t kPanelColumns = 16;

// out (rows, width) = a (rows, depth) * panels + bias, and + out with `add`. The width is that of all panels, the bias
// as long, or null; strides are in values.
struct Product {
  const float* a;
  std::size_t a_stride, rows, depth;
  const float* panels;
  const float* bias;
  std::size_t width;
  float* out;
  std::size_t out_stride;
  bool add = false;
};

// The same of a = scales * (bytes - zeros), by rows, and a matrix of steps * values, by columns, that add up to `sums`.
// The depth is a multiple of 4, and the panels hold four rows at a time, the four values of a column side by side. No
// value of the matrix is beyond 63, so that two products of bytes fit into 16 bits.
struct RoundedProduct {
  const std::uint8_t* a;
  const float* scales;
  const std::int32_t* zeros;
  std::size_t rows, depth;
  const std::int8_t* panels;
  const float* steps;
  const std::int32_t* sums;
  const float* bias;
  std::size_t width;
  float* out;
  std::size_t out_stride;
  bool add = false;
};

// What the layers of a network compute. Rows of floats take a whole number of panels, zeros included, unless said.
struct LayerKernels {
  void (*multiply)(const Product& product);
  void (*multiply_rounded)(const RoundedProduct& product);
  // Rows (rows, depth) as bytes (rows, padded): x = scale * (byte - zero).
  void (*round_rows)(const float* x, std::size_t stride, std::size_t rows, std::size_t depth, std::size_t padded,
                     std::uint8_t* rounded, float* scales, std::int32_t* zeros);
  // Rows with mean 0 and variance 1 over `depth` values, times weight plus bias, both (stride).
  void (*normalize)(const float* x, std::size_t rows, std::size_t stride, std::size_t depth, const float* weight,
                    const float* bias, float epsilon, float* out);
  // In place, of a multiple of kPanelColumns.
  void (*gelu)(float* values, std::size_t count);
  // In place exp(values - the largest); returns the reciprocal of their sum. What follows, up to a multiple of
  // kPanelColumns, is overwritten.
  float (*exponentiate)(float* values, std::size_t count);
};

struct SimdKernels {
  const char* name;
  std::size_t lanes;  // floats of a register
  bool (*any_nonfinite)(const float* values, std::size_t count);
  RowSummary (*summarize)(const float* values, std::size_t count);
  // A value that at least `wanted` of the values reach, which is 1 to kGroups, as `count` is at least. Not many more
  // do.
  float (*reached_by)(const float* values, std::size_t count, std::size_t wanted);
  // Writes the places of the values above `limit` in ascending order, and returns their number. `places` has room for
  // `count`.
  std::size_t (*find_above)(const float* values, std::size_t count, float limit, std::uint32_t* places);
  // The product of two vectors.
  float (*dot)(const float* a, const float* b, std::size_t count);
  // Writes how many codes each of `count` rows of four shares with the row before from the front on, but not of the
  // first row; returns whether the rows are in lexicographic order.
  bool (*shared_codes)(const std::uint16_t* rows, std::size_t count, std::uint8_t* shared);
  LayerKernels layers;
};

// Those in use: of the highest generation that the processor has.
const SimdKernels& simd();

// All that the processor can run, the lowest generation first; and a choice among them.
std::vector<const SimdKernels*> supported_simd();
void use_simd(const SimdKernels& kernels);

}  // namespace gr2
