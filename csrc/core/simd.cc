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

std::int32_t four_bytes(const std::uint8_t* bytes) {
  std::int32_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

namespace v4_vnni {
#define GR2_TARGET \
  __attribute__((  \
      target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx2,fma,bmi,bmi2,prefer-vector-width=512")))
constexpr std::size_t kLanes = 16;
GR2_TARGET inline std::uint32_t above_bits(const float* values, float limit) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(limit), _CMP_GT_OQ);
}
using Ints [[gnu::vector_size(4 * kLanes)]] = std::int32_t;
GR2_TARGET inline Ints add_products(Ints sum, const std::uint8_t* a, const std::int8_t* b) {
  const __m512i bytes = _mm512_set1_epi32(four_bytes(a));
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), bytes, _mm512_loadu_si512(b)));
}
#include "core/simd_kernels.h"
#undef GR2_TARGET
}  // namespace v4_vnni

namespace v4 {
#define GR2_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2,prefer-vector-width=512")))
constexpr std::size_t kLanes = 16;
GR2_TARGET inline std::uint32_t above_bits(const float* values, float limit) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(limit), _CMP_GT_OQ);
}
using Ints [[gnu::vector_size(4 * kLanes)]] = std::int32_t;
GR2_TARGET inline Ints add_products(Ints sum, const std::uint8_t* a, const std::int8_t* b) {
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(four_bytes(a)), _mm512_loadu_si512(b));
  return sum + reinterpret_cast<Ints>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
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
using Ints [[gnu::vector_size(4 * kLanes)]] = std::int32_t;
GR2_TARGET inline Ints add_products(Ints sum, const std::uint8_t* a, const std::int8_t* b) {
  const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(four_bytes(a)), own);
  return sum + reinterpret_cast<Ints>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
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
using Ints [[gnu::vector_size(4 * kLanes)]] = std::int32_t;
GR2_TARGET inline Ints add_products(Ints sum, const std::uint8_t* a, const std::int8_t* b) {
  const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
  const __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi32(four_bytes(a)), own);
  return sum + reinterpret_cast<Ints>(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
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
using Ints [[gnu::vector_size(4 * kLanes)]] = std::int32_t;
inline Ints add_products(Ints sum, const std::uint8_t* a, const std::int8_t* b) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    for (std::size_t k = 0; k < 4; ++k) sum[i] += int{a[k]} * int{b[4 * i + k]};
  }
  return sum;
}
#include "core/simd_kernels.h"
#undef GR2_TARGET
}  // namespace base

// clang-format off
#define GR2_KERNELS(label, ns)                                                                                     \
  {label, ns::kLanes, ns::any_nonfinite, ns::summarize, ns::reached_by, ns::find_above, ns::dot, ns::shared_codes, \
   {ns::multiply, ns::multiply_rounded, ns::round_rows, ns::normalize, ns::gelu, ns::exponentiate}}
// clang-format on
constexpr SimdKernels kBase = GR2_KERNELS("base", base);
#if defined(__x86_64__)
constexpr SimdKernels kV2 = GR2_KERNELS("x86-64-v2", v2);
constexpr SimdKernels kV3 = GR2_KERNELS("x86-64-v3", v3);
constexpr SimdKernels kV4 = GR2_KERNELS("x86-64-v4", v4);
constexpr SimdKernels kV4Vnni = GR2_KERNELS("x86-64-v4-vnni", v4_vnni);
#endif
#undef GR2_KERNELS

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
  const bool v4 = v3 && all(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                            __builtin_cpu_supports("avx512cd"), __builtin_cpu_supports("avx512dq"),
                            __builtin_cpu_supports("avx512vl"));
  if (v4) supported.push_back(&kV4);
  if (v4 && all(__builtin_cpu_supports("avx512vnni"))) supported.push_back(&kV4Vnni);
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
