// The kernels of one generation. Included once for each, inside a namespace that has `kLanes`, the values in a vector,
// and `above_bits`, which compares so many, and with GR2_TARGET set to the attribute that compiles a function for it.

// A vector, and comparisons of its values: all ones where they hold.
using Floats [[gnu::vector_size(4 * kLanes)]] = float;
using Words [[gnu::vector_size(4 * kLanes)]] = std::uint32_t;
using Quad [[gnu::vector_size(16)]] = float;

GR2_TARGET inline Floats load(const float* values) {
  Floats loaded;
  std::memcpy(&loaded, values, sizeof loaded);
  return loaded;
}

GR2_TARGET inline void store(float* into, Floats values) {
  std::memcpy(into, &values, sizeof values);
}

GR2_TARGET inline Floats larger_of(Floats a, Floats b) {
  return a > b ? a : b;
}

// Halves to halves, as the instructions go; one value after the other would wait for each addition.
GR2_TARGET inline float sum_of(Floats values) {
  Quad quads[kLanes / 4];
  std::memcpy(quads, &values, sizeof values);
  for (std::size_t count = kLanes / 8; count > 0; count /= 2) {
    for (std::size_t i = 0; i < count; ++i) quads[i] += quads[i + count];
  }
  return (quads[0][0] + quads[0][2]) + (quads[0][1] + quads[0][3]);
}

GR2_TARGET inline float largest_of(Floats values) {
  Quad quads[kLanes / 4];
  std::memcpy(quads, &values, sizeof values);
  for (std::size_t count = kLanes / 8; count > 0; count /= 2) {
    for (std::size_t i = 0; i < count; ++i) quads[i] = quads[i] > quads[i + count] ? quads[i] : quads[i + count];
  }
  const float left = quads[0][0] > quads[0][2] ? quads[0][0] : quads[0][2];
  const float right = quads[0][1] > quads[0][3] ? quads[0][1] : quads[0][3];
  return left > right ? left : right;
}

// exp(x) for x <= 64, to about 2 units in the last place where x is near 0, and exp(0) = 1.
// exp(x) = 2^k 2^f with k = round(x / ln 2) and |f| <= 1/2, where a polynomial of degree 5 suffices.
GR2_TARGET inline Floats exponentials(Floats x) {
  constexpr float kSmallest = -87.0f;    // below, 2^k would leave the normal numbers; exp is 0 to any purpose here
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the lowest bits
  constexpr float kLog2E = 1.44269504f;
  x = larger_of(x, Floats{} + kSmallest);
  const Floats shifted = x * kLog2E + kRound;
  const Floats f = x * kLog2E - (shifted - kRound);
  Floats p = 0.00132647273f * f + 0.00967151299f;
  p = p * f + 0.0555073358f;
  p = p * f + 0.240222424f;
  p = p * f + 0.693147004f;
  p = p * f + 1.0f;
  return __builtin_bit_cast(Floats, __builtin_bit_cast(Words, p) + (__builtin_bit_cast(Words, shifted) << 23));
}

GR2_TARGET bool any_nonfinite(const float* values, std::size_t count) {
  constexpr std::uint32_t kExponent = 0x7f800000;
  std::uint32_t found = 0;
#pragma omp simd reduction(| : found)
  for (std::size_t i = 0; i < count; ++i) {
    found |= (std::bit_cast<std::uint32_t>(values[i]) & kExponent) == kExponent ? 1u : 0u;
  }
  return found != 0;
}

// Exponentials that are added up in float32; their sums are in float64.
constexpr std::size_t kBlock = 512;

// The first values, filled up to a vector.
GR2_TARGET inline Floats load_some(const float* values, std::size_t count, float rest) {
  float filled[kLanes];
  for (float& each : filled) each = rest;
  for (std::size_t i = 0; i < count; ++i) filled[i] = values[i];
  return load(filled);
}

// The sum of exp(values - offset); no value is above the offset.
GR2_TARGET double sum_exp(const float* values, std::size_t count, float offset) {
  const std::size_t whole = count - count % kLanes;
  double total = 0.0;
  for (std::size_t start = 0; start < whole; start += kBlock) {
    Floats sum{};
    const std::size_t end = start + kBlock < whole ? start + kBlock : whole;
    for (std::size_t i = start; i < end; i += kLanes) sum += exponentials(load(values + i) - offset);
    total += static_cast<double>(sum_of(sum));
  }
  if (whole == count) return total;
  const float masked = -std::numeric_limits<float>::infinity();
  return total + static_cast<double>(sum_of(exponentials(load_some(values + whole, count - whole, masked) - offset)));
}

// One pass, with the largest of the first values as the offset; a second one only where the row rises far above it.
GR2_TARGET RowSummary summarize(const float* values, std::size_t count) {
  constexpr float kMasked = -std::numeric_limits<float>::infinity(), kFar = 16.0f;
  constexpr std::size_t kFirst = 4 * kLanes;
  const std::size_t whole = count - count % kLanes;
  Floats top = Floats{} + kMasked, all{};
  if (whole < count) {
    top = load_some(values + whole, count - whole, kMasked);
    all = load_some(values + whole, count - whole, 0.0f);
  }
  double total = 0.0;
  const Floats rest = top;
  for (std::size_t i = 0; i < (whole < kFirst ? whole : kFirst); i += kLanes) top = larger_of(load(values + i), top);
  const float offset = largest_of(top);
  for (std::size_t start = 0; start < whole; start += kBlock) {
    Floats sum{};
    const std::size_t end = start + kBlock < whole ? start + kBlock : whole;
    for (std::size_t i = start; i < end; i += kLanes) {
      const Floats here = load(values + i);
      top = larger_of(here, top);
      all += here;
      sum += exponentials(here - offset);
    }
    total += static_cast<double>(sum_of(sum));
  }
  if (whole < count) total += static_cast<double>(sum_of(exponentials(rest - offset)));
  const float largest = largest_of(top);
  if (largest == kMasked) return {largest, sum_of(all), largest, 0.0};
  if (largest - offset <= kFar) return {largest, sum_of(all), offset, total};
  return {largest, sum_of(all), largest, sum_exp(values, count, largest)};
}

// The best of each of 32 interleaved groups, and of those the one that `wanted` reach: found by counting, which needs
// no branch.
GR2_TARGET float reached_by(const float* values, std::size_t count, std::size_t wanted) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float best[kGroups];
  for (float& each : best) each = -kInfinity;
  for (std::size_t i = 0; i + kGroups <= count; i += kGroups) {
#pragma omp simd
    for (std::size_t group = 0; group < kGroups; ++group)
      best[group] = values[i + group] > best[group] ? values[i + group] : best[group];
  }
  std::uint32_t larger[kGroups] = {};
  for (const float other : best) {
#pragma omp simd
    for (std::size_t group = 0; group < kGroups; ++group) larger[group] += other > best[group] ? 1u : 0u;
  }
  float least = kInfinity;
  for (std::size_t group = 0; group < kGroups; ++group)
    least = larger[group] < wanted && best[group] < least ? best[group] : least;
  return least;
}

GR2_TARGET std::size_t find_above(const float* values, std::size_t count, float limit, std::uint32_t* places) {
  std::size_t found = 0, i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::uint32_t bits = above_bits(values + i, limit); bits != 0; bits &= bits - 1)
      places[found++] = static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(std::countr_zero(bits));
  }
  // The last values, or few children, pass or do not at random: without a branch.
  for (; i < count; ++i) {
    places[found] = static_cast<std::uint32_t>(i);
    found += values[i] > limit ? 1u : 0u;
  }
  return found;
}

GR2_TARGET float dot(const float* a, const float* b, std::size_t count) {
  Floats sums{};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += load(a + i) * load(b + i);
  float sum = sum_of(sums);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// Four codes to a word, the first in its lowest bits, and each code's answer in its highest bit: whether it differs
// from the one before, then whether any up to it does, and whether it is the first one and smaller.
GR2_TARGET bool shared_codes(const std::uint16_t* rows, std::size_t count, std::uint8_t* shared) {
  constexpr std::uint64_t kHighest = 0x8000800080008000u;
  std::uint64_t wrong = 0;
#pragma omp simd reduction(| : wrong)
  for (std::size_t i = 1; i < count; ++i) {
    std::uint64_t before, here;
    std::memcpy(&before, rows + 4 * (i - 1), sizeof before);
    std::memcpy(&here, rows + 4 * i, sizeof here);
    const std::uint64_t differs = before ^ here;
    std::uint64_t apart = (((differs & ~kHighest) + ~kHighest) | differs) & kHighest;
    apart |= apart << 16;
    apart |= apart << 32;
    const std::uint64_t not_below = (here | kHighest) - (before & ~kHighest);
    const std::uint64_t smaller = (before & ~here) | ~(differs | not_below);
    wrong |= apart & ~(apart << 16) & smaller;
    std::uint64_t apart_codes = apart >> 15;
    apart_codes += apart_codes >> 32;
    apart_codes += apart_codes >> 16;
    shared[i] = static_cast<std::uint8_t>(4 - (apart_codes & 7));
  }
  return wrong == 0;
}

#include "core/layer_kernels.h"
