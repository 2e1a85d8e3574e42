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

struct SimdKernels {
  const char* name;
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
};

// Those in use: of the highest generation that the processor has.
const SimdKernels& simd();

// All that the processor can run, the lowest generation first; and a choice among them.
std::vector<const SimdKernels*> supported_simd();
void use_simd(const SimdKernels& kernels);

}  // namespace gr2
