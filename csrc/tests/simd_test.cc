// The loops of each generation of vector instructions that the processor has, against their definitions.
#include "core/simd.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "core/logsumexp.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check(bool holds, const char* what, int line) {
  if (holds) return;
  std::fprintf(stderr, "simd_test.cc:%d: %s\n", line, what);
  std::exit(1);
}
#define CHECK(condition) check((condition), #condition, __LINE__)

// Codes at both ends of their range, in which few rows are out of order, and none.
void test_rows_are_compared(const gr2::SimdKernels& kernels) {
  using Row = std::array<std::uint16_t, 4>;
  constexpr std::uint16_t kCodes[] = {0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff};
  std::mt19937 generator(6);
  for (const std::size_t size : {0u, 1u, 2u, 9u, 70u, 1000u}) {
    std::vector<Row> rows(size);
    for (Row& row : rows) std::generate(row.begin(), row.end(), [&] { return kCodes[generator() % 6]; });
    std::sort(rows.begin(), rows.end());
    for (const bool swapped : {false, true}) {
      if (swapped && size >= 2) std::swap(rows[generator() % (size - 1)], rows[size - 1]);
      std::vector<std::uint8_t> shared(size, 9), expected(size, 9);
      for (std::size_t i = 1; i < size; ++i) {
        const auto end = std::mismatch(rows[i].begin(), rows[i].end(), rows[i - 1].begin()).first;
        expected[i] = static_cast<std::uint8_t>(end - rows[i].begin());
      }
      const auto* codes = reinterpret_cast<const std::uint16_t*>(rows.data());
      CHECK(kernels.shared_codes(codes, size, shared.data()) == std::is_sorted(rows.begin(), rows.end()));
      CHECK(shared == expected);
    }
  }
}

// Each loop against its definition in float64, on sizes around those of the vectors, at every offset from a cache line.
void test_loops_of(const gr2::SimdKernels& kernels) {
  gr2::use_simd(kernels);
  std::mt19937 generator(5);
  for (const std::size_t size : {1u, 2u, 3u, 4u, 7u, 8u, 15u, 16u, 17u, 31u, 33u, 100u, 256u, 513u, 4099u, 65536u}) {
    for (const float spread : {0.0f, 1.0f, 20.0f, 1e4f}) {
      std::normal_distribution<float> normal(0.0f, 1.0f);
      std::vector<float> memory(size + 16);
      for (float& value : memory) value = spread * normal(generator);
      const std::span<float> values = std::span(memory).subspan(generator() % 16, size);
      const float top = *std::max_element(values.begin(), values.end());
      double total = 0.0, sum = 0.0, magnitude = 0.0;
      for (const float value : values) {
        total += static_cast<double>(value);
        magnitude += std::abs(static_cast<double>(value));
        sum += std::exp(static_cast<double>(value) - static_cast<double>(top));
      }
      const gr2::RowSummary summary = kernels.summarize(values.data(), size);
      CHECK(summary.largest == top);
      CHECK(std::abs(static_cast<double>(summary.sum) - total) <= 1e-7 * static_cast<double>(size) * magnitude);
      CHECK(std::abs(gr2::log_sum_above(summary) - std::log(sum)) < 1e-5);
      CHECK(std::abs(gr2::logsumexp(values) - (static_cast<double>(top) + std::log(sum))) < 1e-5);

      for (std::size_t wanted = 1; wanted <= std::min(size, gr2::kGroups); ++wanted) {
        if (size < gr2::kGroups) break;
        const float reached = kernels.reached_by(values.data(), size, wanted);
        const auto many = std::count_if(values.begin(), values.end(), [&](float value) { return value >= reached; });
        CHECK(many >= static_cast<std::ptrdiff_t>(wanted));
        CHECK(spread == 0.0f || wanted > gr2::kGroups / 2 || many <= 60);
      }

      std::vector<std::uint32_t> places(size), expected;
      const float limit = values[generator() % size];
      for (std::uint32_t i = 0; i < size; ++i) {
        if (values[i] > limit) expected.push_back(i);
      }
      places.resize(kernels.find_above(values.data(), size, limit, places.data()));
      CHECK(places == expected);

      const std::size_t at = generator() % size;
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
        const float before = values[at];
        values[at] = bad;
        const float marked = kernels.summarize(values.data(), size).sum;
        CHECK((marked < kInfinity) == (bad == -kInfinity));
        CHECK(kernels.any_nonfinite(values.data(), size) && std::isnan(gr2::logsumexp(values)));
        values[at] = before;
      }
      CHECK(!kernels.any_nonfinite(values.data(), size));
    }
  }
  // Masked codes weigh nothing, and the largest alone weighs exactly one, wherever it is.
  for (const std::size_t at : {0u, 37u, 90u, 99u}) {
    std::vector<float> masked(100, -kInfinity);
    CHECK(kernels.summarize(masked.data(), masked.size()).exponentials == 0.0);
    masked[at] = 5.0f;
    CHECK(gr2::log_sum_above(kernels.summarize(masked.data(), masked.size())) == 0.0);
  }
}

}  // namespace

int main() {
  for (const gr2::SimdKernels* kernels : gr2::supported_simd()) {
    test_rows_are_compared(*kernels);
    test_loops_of(*kernels);
  }
}
