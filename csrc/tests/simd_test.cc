// The loops of each generation of vector instructions that the processor has, against their definitions.
#include "core/simd.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "core/dense.h"
#include "core/logsumexp.h"
#include "tests/check.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

std::vector<float> draw(std::size_t count, std::mt19937& generator) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Sizes {
  std::size_t rows, in, out;
};
constexpr Sizes kSizes[] = {{1, 1, 1}, {2, 3, 16}, {5, 20, 17}, {6, 64, 64}, {13, 33, 100}, {50, 64, 256}};

// The largest value of some, less the least, of which 0 is one.
double range_of(std::span<const float> values) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return std::max(static_cast<double>(*most), 0.0) - std::min(static_cast<double>(*least), 0.0);
}

// Products of rows and weights against sums in float64; with bytes, within what rounding both may change.
void test_products_of(const gr2::SimdKernels& kernels) {
  gr2::use_simd(kernels);
  std::mt19937 generator(7);
  gr2::RoundedRows rounded;
  for (const auto& [rows, in, out] : kSizes) {
    const std::vector<float> a = draw(rows * in, generator), weight = draw(out * in, generator);
    const std::vector<float> bias = draw(out, generator);
    const std::size_t width = gr2::padded(out);
    const std::vector<float> before = draw(rows * width, generator);
    for (const auto arithmetic : {gr2::Arithmetic::kFloat, gr2::Arithmetic::kInt8}) {
      const gr2::Dense dense(weight, bias, in, arithmetic);
      std::vector<float> found(rows * width), added = before;
      dense.apply(a.data(), in, rows, found.data(), width, rounded);
      dense.apply(a.data(), in, rows, added.data(), width, rounded, true);
      for (std::size_t i = 0; i < rows * width; ++i) {
        const bool inside = i % width < out;
        const std::span<const float> row = std::span(a).subspan(i / width * in, in);
        const std::span<const float> own = std::span(weight).subspan(inside ? i % width * in : 0, in);
        // The zero is rounded, too, so that a row's values may be off by a whole step.
        const double step = range_of(row) / 255, columns = 2 * range_of(own) / 63;
        double expected = inside ? static_cast<double>(bias[i % width]) : 0.0, error = 1e-4;
        for (std::size_t k = 0; inside && k < in; ++k) {
          expected += static_cast<double>(row[k]) * static_cast<double>(own[k]);
          if (arithmetic == gr2::Arithmetic::kFloat) continue;
          error += (std::abs(static_cast<double>(row[k])) + step) * columns / 2 +
                   std::abs(static_cast<double>(own[k])) * step;
        }
        CHECK(std::abs(static_cast<double>(found[i]) - expected) <= error);
        CHECK(std::abs(added[i] - found[i] - before[i]) <= 1e-4f);
      }
    }
  }
}

// Rows whose range no byte can hold: nearly nothing rounds to nothing, and what is not finite stays so.
void test_extreme_rows_of(const gr2::SimdKernels& kernels) {
  constexpr std::size_t kDepth = 20;
  for (const auto& [value, finite] : {std::pair{1e-42f, true}, {kInfinity, false}, {-kInfinity, false}}) {
    std::vector<float> row(kDepth, 0.0f);
    row[3] = value;
    std::vector<std::uint8_t> bytes(kDepth);
    float scale = 0.0f;
    std::int32_t zero = -1;
    kernels.layers.round_rows(row.data(), kDepth, 1, kDepth, kDepth, bytes.data(), &scale, &zero);
    CHECK(zero >= 0 && zero <= 255);
    CHECK(std::isfinite(scale) == finite);
    if (finite) CHECK(scale * static_cast<float>(bytes[3] - zero) == 0.0f);
  }
}

// Sums of products of bytes are exact: the same in all generations.
void test_byte_sums_of(const gr2::SimdKernels& kernels) {
  std::mt19937 generator(8);
  for (const auto& [rows, in, out] : kSizes) {
    const std::size_t depth = (in + 3) / 4 * 4, width = gr2::padded(out);
    std::vector<std::uint8_t> a(rows * depth);
    std::vector<std::int8_t> panels(depth * width);
    for (std::uint8_t& value : a) value = generator() % 3 == 0 ? 255 : static_cast<std::uint8_t>(generator() % 256);
    for (std::int8_t& value : panels) {
      value = static_cast<std::int8_t>(generator() % 3 == 0 ? 63 : static_cast<int>(generator() % 127) - 63);
    }
    const std::vector<float> ones(std::max(rows, width), 1.0f);
    std::vector<std::int32_t> zeros(rows, 3), sums(width, 5);
    std::vector<float> found(rows * width);
    kernels.layers.multiply_rounded({a.data(), ones.data(), zeros.data(), rows, depth, panels.data(), ones.data(),
                                     sums.data(), nullptr, width, found.data(), width});
    for (std::size_t i = 0; i < rows * width; ++i) {
      const std::size_t column = i % width, panel = column / gr2::kPanelColumns * gr2::kPanelColumns;
      int expected = -15;
      for (std::size_t k = 0; k < depth; ++k) {
        const std::size_t place =
            panel * depth + k / 4 * 4 * gr2::kPanelColumns + column % gr2::kPanelColumns * 4 + k % 4;
        expected += int{a[i / width * depth + k]} * int{panels[place]};
      }
      CHECK(found[i] == static_cast<float>(expected));
    }
  }
}

// What lies between products, on one row of 20 values that is filled up to 32.
void test_layers_of(const gr2::SimdKernels& kernels) {
  std::mt19937 generator(9);
  constexpr std::size_t kCount = 20, kPadded = 32;
  std::vector<float> x = draw(kCount, generator), weight = draw(kCount, generator), bias = draw(kCount, generator);
  for (std::vector<float>* const each : {&x, &weight, &bias}) each->resize(kPadded);
  double mean = 0.0, variance = 0.0, largest = -kInfinity, sum = 0.0;
  for (std::size_t k = 0; k < kCount; ++k) mean += static_cast<double>(x[k]) / kCount;
  for (std::size_t k = 0; k < kCount; ++k) variance += (x[k] - mean) * (x[k] - mean) / kCount;
  std::vector<float> normed(kPadded), curved = x, shares = x;
  kernels.layers.normalize(x.data(), 1, kPadded, kCount, weight.data(), bias.data(), 1e-5f, normed.data());
  kernels.layers.gelu(curved.data(), kPadded);
  const double scale = static_cast<double>(kernels.layers.exponentiate(shares.data(), kCount));
  for (std::size_t k = 0; k < kCount; ++k) largest = std::max(largest, static_cast<double>(x[k]));
  for (std::size_t k = 0; k < kCount; ++k) sum += std::exp(static_cast<double>(x[k]) - largest);
  for (std::size_t k = 0; k < kPadded; ++k) {
    const double value = x[k];
    CHECK(std::abs(normed[k] - ((value - mean) / std::sqrt(variance + 1e-5) * weight[k] + bias[k])) <= 1e-5);
    CHECK(std::abs(curved[k] - value * 0.5 * std::erfc(-value / std::sqrt(2.0))) <= 1e-6);
    if (k < kCount) CHECK(std::abs(shares[k] * scale - std::exp(value - largest) / sum) <= 1e-6);
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
    test_products_of(*kernels);
    test_extreme_rows_of(*kernels);
    test_byte_sums_of(*kernels);
    test_layers_of(*kernels);
  }
}
