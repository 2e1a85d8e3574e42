#include "core/logsumexp.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

// The loops are compiled once for each generation of x86-64, and the loader picks the one that the processor has.
// ThreadSanitizer cannot start a program with such functions, and only glibc resolves them.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__)
#define GR2_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define GR2_MULTIVERSION
#endif

namespace gr2 {
namespace {

// Sums of this many exponentials are added up in float32, and those in float64.
constexpr std::size_t kBlock = 512;

// exp(x) for x <= 0, to about 2 units in the last place; written so that a loop over it vectorises.
// exp(x) = 2^k exp(r) with k = round(x / ln 2) and |r| <= ln(2) / 2, where a polynomial of degree 6 suffices.
inline float exp_nonpositive(float x) {
  constexpr float kSmallest = -87.0f;    // below, 2^k would leave the normal numbers; exp is 0 to any purpose here
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > kSmallest ? x : kSmallest;
  const float k = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((static_cast<std::int32_t>(k) + 127) << 23);
}

GR2_MULTIVERSION bool any_nonfinite(const float* values, std::size_t count) {
  constexpr std::uint32_t kExponent = 0x7f800000;
  std::uint32_t found = 0;
#pragma omp simd reduction(| : found)
  for (std::size_t i = 0; i < count; ++i) {
    found |= (std::bit_cast<std::uint32_t>(values[i]) & kExponent) == kExponent ? 1u : 0u;
  }
  return found != 0;
}

GR2_MULTIVERSION float largest(const float* values, std::size_t count) {
  float result = std::numeric_limits<float>::lowest();
#pragma omp simd reduction(max : result)
  for (std::size_t i = 0; i < count; ++i) result = values[i] > result ? values[i] : result;
  return result;
}

GR2_MULTIVERSION float sum_exp(const float* values, std::size_t count, float offset) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) sum += exp_nonpositive(values[i] - offset);
  return sum;
}

}  // namespace

bool all_finite(std::span<const float> values) {
  return !any_nonfinite(values.data(), values.size());
}

double logsumexp(std::span<const float> values) {
  if (!all_finite(values)) return std::numeric_limits<double>::quiet_NaN();
  const float offset = largest(values.data(), values.size());
  double sum = 0.0;
  for (std::size_t start = 0; start < values.size(); start += kBlock) {
    sum += static_cast<double>(sum_exp(values.data() + start, std::min(kBlock, values.size() - start), offset));
  }
  return static_cast<double>(offset) + std::log(sum);
}

}  // namespace gr2
