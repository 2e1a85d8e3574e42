// Sums over the history and marks of rows, by each generation of vector instructions, against their definitions.
#include "core/pair_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "core/simd.h"
#include "tests/check.h"

namespace {

std::vector<float> draw(std::mt19937& generator, std::size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(generator); });
  return values;
}

void test_products_are_summed() {
  std::mt19937 generator(3);
  for (const std::size_t quads : {1u, 2u, 16u}) {
    for (const std::size_t events : {0u, 1u, 3u, 4u, 50u}) {
      const std::size_t width = quads * gr2::kQuad;
      const auto own = draw(generator, width * gr2::kQuad), past = draw(generator, events * width);
      const auto weights = draw(generator, events);
      const gr2::ProductSums found = gr2::sum_products(own.data(), past, weights, quads);
      for (std::size_t i = 0; i < gr2::kQuad; ++i) {
        double last = 0, total = 0, largest = 0, weighted = 0;
        for (std::size_t t = 0; t < events; ++t) {
          last = 0;
          for (std::size_t k = 0; k < width; ++k) {
            last += double{own[(k / gr2::kQuad * gr2::kQuad + i) * gr2::kQuad + k % gr2::kQuad]} * past[t * width + k];
          }
          total += last;
          largest = std::max(largest, last);
          weighted += last * weights[t];
        }
        const auto close = [&](float value, double expected) { return std::abs(value - expected) < 1e-3; };
        CHECK(close(found.last[i], last) && close(found.total[i], total));
        CHECK(close(found.largest[i], largest) && close(found.weighted[i], weighted));
      }
    }
  }
}

void test_marked_rows_are_found_and_few_others() {
  std::mt19937 generator(4);
  gr2::RowMarks marks;
  std::set<std::int32_t> members;
  for (int i = 0; i < 50; ++i) members.insert(static_cast<std::int32_t>(generator() % 1'000'000));
  for (const std::int32_t row : members) marks.add(row);
  std::vector<std::int32_t> rows(members.begin(), members.end());
  for (int i = 0; i < 20'000; ++i) rows.push_back(static_cast<std::int32_t>(generator() % 1'000'000));
  for (int i = 0; i < 500; ++i) rows.push_back(-1 - static_cast<std::int32_t>(generator() % 1'000'000));
  std::shuffle(rows.begin(), rows.end(), generator);
  std::size_t others = 0;
  for (std::size_t start = 0; start < rows.size(); start += gr2::RowMarks::kTogether) {
    const std::size_t count = std::min(gr2::RowMarks::kTogether, rows.size() - start);
    const std::uint64_t found = marks.find(std::span<const std::int32_t>(rows).subspan(start, count));
    CHECK(count == gr2::RowMarks::kTogether || found >> count == 0);
    for (std::size_t i = 0; i < count; ++i) {
      const bool marked = (found >> i & 1) != 0;
      if (members.contains(rows[start + i])) CHECK(marked);
      if (rows[start + i] < 0) CHECK(!marked);
      others += marked && !members.contains(rows[start + i]) ? 1 : 0;
    }
  }
  CHECK(others < rows.size() / 20);
}

}  // namespace

int main() {
  for (const gr2::SimdKernels* const kernels : gr2::supported_simd()) {
    gr2::use_simd(*kernels);
    test_products_are_summed();
    test_marked_rows_are_found_and_few_others();
  }
  return 0;
}
