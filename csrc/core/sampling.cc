#include "core/sampling.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/hash.h"

namespace gr2 {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;
constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr float kMasked = -std::numeric_limits<float>::infinity();

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == kNever ? a : a + std::log1p(std::exp(b - a));
}

struct Draw {
  double score;  // over the temperature
  double key;    // minus the logarithm of the time of arrival
  std::int32_t candidate;
  bool follows;  // the draw before it is of the same path
};

// The candidates of one path as a queue: each arrives after the one before, at its own rate exp(score). Until the next
// arrival anywhere, each queue's head is what it was, so arrivals come in the order that the header promises.
void draw_path(std::span<const std::int32_t> candidates, std::span<const float> scores, std::uint64_t seed,
               double temperature, std::vector<Draw>& draws) {
  const std::size_t begin = draws.size();
  for (const std::int32_t candidate : candidates) {
    const float score = scores[static_cast<std::size_t>(candidate)];
    if (std::isnan(score) || score == std::numeric_limits<float>::infinity()) {
      throw std::invalid_argument("scores row " + std::to_string(candidate) + " is " + std::to_string(score));
    }
    if (std::isinf(score)) continue;
    draws.push_back({static_cast<double>(score) / temperature, 0.0, candidate, false});
  }
  std::stable_sort(draws.begin() + static_cast<std::ptrdiff_t>(begin), draws.end(),
                   [](const Draw& a, const Draw& b) { return a.score > b.score; });
  double time = kNever;  // its logarithm
  for (std::size_t i = begin; i < draws.size(); ++i) {
    draws[i].follows = i > begin;
    const double wait = portable_log(exponential(seed, 0, static_cast<std::uint64_t>(draws[i].candidate)));
    time = log_add(time, wait - draws[i].score);
    draws[i].key = -time;
  }
}

}  // namespace

std::uint64_t random_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return mix64(mix64(mix64(seed + kGolden) + stream + kGolden) + kGolden * index);
}

double portable_log(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);  // 1 <= m < 2
  if (m * m >= 2.0) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double sum = 0.0;
  for (int odd = 23; odd >= 1; odd -= 2) sum = sum * square + 1.0 / odd;
  return 2.0 * s * sum + exponent * 0.693147180559945309417;
}

double exponential(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const auto whole = static_cast<double>(random_bits(seed, stream, index) >> 12);
  return -portable_log((whole + 0.5) * 0x1p-52);
}

double gumbel(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return -portable_log(exponential(seed, stream, index));
}

void check_temperature(double temperature) {
  if (temperature >= 1e-3 && temperature <= 1e3) return;
  throw std::invalid_argument("temperature must be 0.001 to 1000, got " + std::to_string(temperature));
}

void sample_paths(const CandidateTrie& trie, std::span<const float> scores, std::uint64_t seed, double temperature,
                  std::span<std::int32_t> order, std::span<float> log_probs) {
  assert(scores.size() == trie.size() && order.size() == trie.size() && log_probs.size() == trie.size());
  check_temperature(temperature);
  const std::span<const std::int32_t> sorted = trie.sorted();
  const std::span<const std::uint16_t> leaves = trie.leaf_begins();
  std::vector<Draw> draws;
  draws.reserve(sorted.size());
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    const std::size_t begin = leaves[i], end = i + 1 < leaves.size() ? leaves[i + 1] : sorted.size();
    draw_path(sorted.subspan(begin, end - begin), scores, seed, temperature, draws);
  }
  std::vector<std::uint16_t> places(draws.size());
  std::iota(places.begin(), places.end(), std::uint16_t{0});
  std::sort(places.begin(), places.end(), [&](std::uint16_t a, std::uint16_t b) {
    return draws[a].key != draws[b].key ? draws[a].key > draws[b].key : a < b;
  });
  std::fill(log_probs.begin(), log_probs.end(), kMasked);
  // Backwards, the rates of the heads add up, and a head that takes the place of a slower one adds the difference.
  double total = kNever;
  for (std::size_t i = places.size(); i-- > 0;) {
    const Draw& draw = draws[places[i]];
    const bool replaces = places[i] + 1u < draws.size() && draws[places[i] + 1u].follows;
    const double slower = replaces ? draws[places[i] + 1u].score - draw.score : kNever;
    if (slower < 0.0) total = log_add(total, draw.score + std::log1p(-std::exp(slower)));
    order[i] = draw.candidate;
    constexpr double kLeast = std::numeric_limits<float>::lowest();
    log_probs[static_cast<std::size_t>(draw.candidate)] = static_cast<float>(std::max(draw.score - total, kLeast));
  }
  std::size_t next = draws.size();
  for (std::size_t i = 0; next < order.size(); ++i) {
    if (log_probs[i] == kMasked) order[next++] = static_cast<std::int32_t>(i);
  }
}

}  // namespace gr2
