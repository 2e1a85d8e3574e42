// The kernels of one generation. Included once for each, inside a namespace that has `kLanes`, the values in a vector,
// and `above_bits`, which compares so many, and with GR2_TARGET set to the attribute that compiles a function for it.

// exp(x) for x <= 0, to about 2 units in the last place, and exp(0) = 1; written so that a loop over it vectorises.
// exp(x) = 2^k 2^f with k = round(x / ln 2) and |f| <= 1/2, where a polynomial of degree 5 suffices.
GR2_TARGET inline float exp_nonpositive(float x) {
  constexpr float kSmallest = -87.0f;    // below, 2^k would leave the normal numbers; exp is 0 to any purpose here
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the lowest bits
  constexpr float kLog2E = 1.44269504f;
  x = x > kSmallest ? x : kSmallest;
  const float shifted = x * kLog2E + kRound;
  const float f = x * kLog2E - (shifted - kRound);
  float p = 0.00132647273f;
  p = p * f + 0.00967151299f;
  p = p * f + 0.0555073358f;
  p = p * f + 0.240222424f;
  p = p * f + 0.693147004f;
  p = p * f + 1.0f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23));
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

// Two halves side by side: one alone would wait for its own last addition.
GR2_TARGET RowSummary summarize(const float* values, std::size_t count) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const std::size_t half = count / 2;
  const float *left = values, *right = values + half;
  float largest0 = kLowest, largest1 = kLowest, sum0 = 0.0f, sum1 = 0.0f;
#pragma omp simd reduction(max : largest0, largest1) reduction(+ : sum0, sum1)
  for (std::size_t i = 0; i < half; ++i) {
    const float a = left[i], b = right[i];
    largest0 = a > largest0 ? a : largest0;
    largest1 = b > largest1 ? b : largest1;
    sum0 += a;
    sum1 += b;
  }
  if (count % 2 != 0) {
    largest0 = values[count - 1] > largest0 ? values[count - 1] : largest0;
    sum0 += values[count - 1];
  }
  return {largest0 > largest1 ? largest0 : largest1, sum0 + sum1};
}

GR2_TARGET float sum_exp(const float* values, std::size_t count, float offset) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) sum += exp_nonpositive(values[i] - offset);
  return sum;
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
