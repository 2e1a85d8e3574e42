#include "core/pair_kernels.h"

#include <cassert>
#include <cstring>

#include "core/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gr2 {
namespace {

using Four [[gnu::vector_size(16)]] = float;

template <typename Vector>
[[gnu::always_inline]] inline void load(const void* from, Vector& into) {
  std::memcpy(&into, from, sizeof into);
}

struct Sums {
  void add(const Four& products, float weight) {
    last = products;
    total += products;
    largest = products > largest ? products : largest;
    weighted += products * weight;
  }
  Four last{}, total{}, largest{}, weighted{};
};

// Each of four values is summed for itself, and these then: the outer two and the inner two, and both.
void sum_plain(const float* own, const float* past, std::span<const float> weights, std::size_t quads, Sums& sums) {
  for (std::size_t t = 0; t < weights.size(); ++t) {
    Four parts[kQuad]{};
    for (std::size_t k = 0; k < quads; ++k) {
      Four value;
      load(past + (t * quads + k) * kQuad, value);
      for (std::size_t i = 0; i < kQuad; ++i) {
        Four candidate;
        load(own + (k * kQuad + i) * kQuad, candidate);
        parts[i] += candidate * value;
      }
    }
    Four products;
    for (std::size_t i = 0; i < kQuad; ++i) products[i] = (parts[i][0] + parts[i][2]) + (parts[i][1] + parts[i][3]);
    sums.add(products, weights[t]);
  }
}

#if defined(__x86_64__)
#define GR2_V4 __attribute__((target("avx512f,avx512dq,avx512vl,fma")))
using Sixteen [[gnu::vector_size(64)]] = float;

// The same with all four candidates in one register, and kVectors history vectors in turn.
template <std::size_t kVectors>
GR2_V4 inline void add_wide(const float* own, const float* past, const float* weights, std::size_t quads, Sums& sums) {
  Sixteen parts[kVectors]{};
  for (std::size_t k = 0; k < quads; ++k) {
    Sixteen candidates;
    load(own + k * kQuad * kQuad, candidates);
#pragma GCC unroll 4
    for (std::size_t j = 0; j < kVectors; ++j) {
      // The plain intrinsics of GCC 12 read what they call undefined.
      const __m512 value = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(past + (j * quads + k) * kQuad));
      parts[j] += candidates * reinterpret_cast<Sixteen>(value);
    }
  }
#pragma GCC unroll 4
  for (std::size_t j = 0; j < kVectors; ++j) {
    const Sixteen& own_parts = parts[j];
    const Sixteen halves =
        own_parts + __builtin_shufflevector(own_parts, own_parts, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const Sixteen all =
        halves + __builtin_shufflevector(halves, halves, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    sums.add(__builtin_shufflevector(all, all, 0, 4, 8, 12), weights[j]);
  }
}

GR2_V4 void sum_wide(const float* own, const float* past, std::span<const float> weights, std::size_t quads,
                     Sums& sums) {
  const std::size_t count = weights.size();
  std::size_t t = 0;
  for (; t + 4 <= count; t += 4) add_wide<4>(own, past + t * quads * kQuad, weights.data() + t, quads, sums);
  for (; t < count; ++t) add_wide<1>(own, past + t * quads * kQuad, weights.data() + t, quads, sums);
}
#endif

bool wide() {
  return simd().lanes == 16;
}

}  // namespace

ProductSums sum_products(const float* own, std::span<const float> past, std::span<const float> weights,
                         std::size_t quads) {
  assert(past.size() == weights.size() * quads * kQuad);
  Sums sums;
#if defined(__x86_64__)
  const auto sum = wide() ? sum_wide : sum_plain;
#else
  const auto sum = sum_plain;
#endif
  sum(own, past.data(), weights, quads, sums);
  ProductSums found;
  for (std::size_t i = 0; i < kQuad; ++i) {
    found.last[i] = sums.last[i];
    found.total[i] = sums.total[i];
    found.largest[i] = sums.largest[i];
    found.weighted[i] = sums.weighted[i];
  }
  return found;
}

#if defined(__x86_64__)
// All words are held in four registers, of which each row picks its own: a gather takes several times as long.
GR2_V4 std::uint64_t RowMarks::find_wide(std::span<const std::int32_t> rows) const {
  static_assert(sizeof words_ == 4 * sizeof(__m512i));
  using Words [[gnu::vector_size(64)]] = std::uint32_t;
  constexpr std::size_t kLanes = 16;
  const std::uint32_t* const words = words_.data();
  const __m512i first = _mm512_loadu_si512(words), second = _mm512_loadu_si512(words + kLanes),
                third = _mm512_loadu_si512(words + 2 * kLanes), fourth = _mm512_loadu_si512(words + 3 * kLanes);
  std::uint64_t found = 0;
  for (std::size_t i = 0; i < rows.size(); i += kLanes) {
    const std::size_t left = rows.size() - i;
    const auto some = static_cast<__mmask16>(left < kLanes ? (1u << left) - 1 : 0xffffu);
    const __m512i own = _mm512_maskz_loadu_epi32(some, rows.data() + i);
    const Words places = reinterpret_cast<Words>(own) * 0x9e3779b1u >> (32 - kBits);
    const Words bits = (Words{} + 1) << (places % 32);
    const auto word = reinterpret_cast<__m512i>(places / 32);
    const __mmask16 upper = _mm512_cmpge_epu32_mask(word, _mm512_set1_epi32(2 * kLanes));
    const __m512i picked = _mm512_mask_mov_epi32(_mm512_permutex2var_epi32(first, word, second), upper,
                                                 _mm512_permutex2var_epi32(third, word, fourth));
    const __mmask16 real = _mm512_mask_cmpge_epi32_mask(some, own, _mm512_setzero_si512());
    found |= std::uint64_t{_mm512_mask_test_epi32_mask(real, picked, reinterpret_cast<__m512i>(bits))} << i;
  }
  return found;
}
#endif

std::uint64_t RowMarks::find(std::span<const std::int32_t> rows) const {
  assert(rows.size() <= kTogether);
#if defined(__x86_64__)
  if (wide()) return find_wide(rows);
#endif
  std::uint64_t found = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::uint32_t at = place(rows[i]);
    found |= std::uint64_t{rows[i] >= 0 ? words_[at / 32] >> at % 32 & 1 : 0} << i;
  }
  return found;
}

}  // namespace gr2
