#include "core/simd.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Each generation's functions carry the attribute themselves, so that no function of a header, of which the linker
// keeps one copy, is ever compiled for a processor that may not be there.
namespace gr2 {
namespace {

#if defined(__x86_64__)

namespace v4 {
#define GR2_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2,prefer-vector-width=512")))
constexpr std::size_t kLanes = 16;
GR2_TARGET inline std::uint32_t above_bits(const float* values, float limit) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(limit), _CMP_GT_OQ);
}
#include "core/simd_kernels.h"
#undef GR2_TARGET
}  // namespace v4

namespace v3 {
#define GR2_TARGET __attribute__((target("avx2,fma,bmi,bmi2")))
constexpr std::size_t kLanes = 8;
GR2_TARGET inline std::uint32_t above_bits(const float* values, float limit) {
  const __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(values), _mm256_set1_ps(limit), _CMP_GT_OQ);
  return static_cast<std::uint32_t>(_mm256_movemask_ps(above));
}
#include "core/simd_kernels.h"
#undef GR2_TARGET
}  // namespace v3

namespace v2 {
#define GR2_TARGET __attribute__((target("sse4.2,popcnt")))
constexpr std::size_t kLanes = 4;
GR2_TARGET inline std::uint32_t above_bits(const float* values, float limit) {
  return static_cast<std::uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(_mm_loadu_ps(values), _mm_set1_ps(limit))));
}
#include "core/simd_kernels.h"
#undef GR2_TARGET
}  // namespace v2

#endif

namespace base {
#define GR2_TARGET
constexpr std::size_t kLanes = 4;
inline std::uint32_t above_bits(const float* values, float limit) {
  std::uint32_t bits = 0;
  for (std::uint32_t i = 0; i < kLanes; ++i) bits |= std::uint32_t{values[i] > limit} << i;
  return bits;
}
#include "core/simd_kernels.h"
#undef GR2_TARGET
}  // namespace base

constexpr SimdKernels kBase{"base",           base::any_nonfinite, base::summarize,   base::reached_by,
                            base::find_above, base::dot,           base::shared_codes};
#if defined(__x86_64__)
constexpr SimdKernels kV2{"x86-64-v2",    v2::any_nonfinite, v2::summarize,   v2::reached_by,
                          v2::find_above, v2::dot,           v2::shared_codes};
constexpr SimdKernels kV3{"x86-64-v3",    v3::any_nonfinite, v3::summarize,   v3::reached_by,
                          v3::find_above, v3::dot,           v3::shared_codes};
constexpr SimdKernels kV4{"x86-64-v4",    v4::any_nonfinite, v4::summarize,   v4::reached_by,
                          v4::find_above, v4::dot,           v4::shared_codes};
#endif

// Until the best ones are found, when the library is loaded, the lowest.
constinit std::atomic<const SimdKernels*> in_use{&kBase};
const bool chosen = (use_simd(*supported_simd().back()), true);

}  // namespace

std::vector<const SimdKernels*> supported_simd() {
  std::vector<const SimdKernels*> supported{&kBase};
#if defined(__x86_64__)
  const auto all = [](auto... present) { return (... && (present != 0)); };
  const bool v2 = all(__builtin_cpu_supports("sse4.2"), __builtin_cpu_supports("popcnt"));
  if (v2) supported.push_back(&kV2);
  const bool v3 = v2 && all(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"),
                            __builtin_cpu_supports("bmi"), __builtin_cpu_supports("bmi2"));
  if (v3) supported.push_back(&kV3);
  if (v3 &&
      all(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512cd"),
          __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"))) {
    supported.push_back(&kV4);
  }
#endif
  return supported;
}

const SimdKernels& simd() {
  return *in_use.load(std::memory_order_relaxed);
}

void use_simd(const SimdKernels& kernels) {
  in_use.store(&kernels, std::memory_order_relaxed);
}

}  // namespace gr2
