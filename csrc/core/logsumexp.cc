#include "core/logsumexp.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "core/simd.h"

namespace gr2 {
namespace {

// Sums of this many exponentials are added up in float32, and those in float64.
constexpr std::size_t kBlock = 512;

}  // namespace

bool all_finite(std::span<const float> values) {
  return !simd().any_nonfinite(values.data(), values.size());
}

double logsumexp_below(std::span<const float> values, float offset) {
  const SimdKernels& kernels = simd();
  double sum = 0.0;
  for (std::size_t start = 0; start < values.size(); start += kBlock) {
    const std::size_t count = std::min(kBlock, values.size() - start);
    sum += static_cast<double>(kernels.sum_exp(values.data() + start, count, offset));
  }
  return std::log(sum);
}

double logsumexp(std::span<const float> values) {
  if (!all_finite(values)) return std::numeric_limits<double>::quiet_NaN();
  const float offset = simd().summarize(values.data(), values.size()).largest;
  return static_cast<double>(offset) + logsumexp_below(values, offset);
}

}  // namespace gr2
