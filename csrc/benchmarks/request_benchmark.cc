// The work of one request beside what bounds it from below, interleaved in one process; answers are checked first.
// Prints one JSON object: medians of the rounds' ratios and microseconds.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/candidate_trie.h"
#include "core/logsumexp.h"

namespace {

constexpr std::size_t kSlates = 512, kSize = 100, kLevels = 4, kRounds = 41;
constexpr std::uint32_t kLevelSize = 256;

volatile double sink = 0.0;

struct Slate {
  std::vector<std::uint16_t> codes;
  std::vector<std::uint8_t> known = std::vector<std::uint8_t>(kSize, 1);
  std::vector<std::uint64_t> keys;
};

Slate make_slate(std::mt19937_64& generator) {
  Slate slate;
  for (std::size_t i = 0; i < kSize; ++i) {
    std::uint64_t key = 0;
    for (std::size_t level = 0; level < kLevels; ++level) {
      slate.codes.push_back(static_cast<std::uint16_t>(generator() % kLevelSize));
      key = key << 8 | slate.codes.back();
    }
    slate.keys.push_back(key);
  }
  return slate;
}

double microseconds(const std::function<void()>& action) {
  const auto began = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Every round measures the base and then ours; prints both medians and that of the ratio.
void compare(const char* name, double calls, const std::function<void()>& base, const std::function<void()>& ours,
             const char* end) {
  std::vector<double> bases, times, ratios;
  for (std::size_t round = 0; round < kRounds; ++round) {
    bases.push_back(microseconds(base) / calls);
    times.push_back(microseconds(ours) / calls);
    ratios.push_back(times.back() / bases.back());
  }
  std::printf("\"%s\": {\"base_us\": %.3f, \"us\": %.3f, \"ratio\": %.3f}%s", name, median(bases), median(times),
              median(ratios), end);
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong answer: %s\n", what);
  std::exit(1);
}

void compare_build(const std::vector<Slate>& slates) {
  const auto sort = [&] {
    for (const Slate& slate : slates) {
      std::vector<std::uint64_t> keys = slate.keys;
      std::sort(keys.begin(), keys.end());
      sink = sink + static_cast<double>(keys[kSize / 2]);
    }
  };
  const auto build = [&] {
    for (const Slate& slate : slates) {
      const gr2::CandidateTrie trie(slate.codes, slate.known, kLevels, kLevelSize);
      sink = sink + static_cast<double>(trie.node_count());
    }
  };
  for (const Slate& slate : slates) {
    const gr2::CandidateTrie trie(slate.codes, slate.known, kLevels, kLevelSize);
    for (const std::size_t depth : {1u, 2u, 3u}) {
      std::vector<std::uint64_t> prefixes;
      for (const std::uint64_t key : slate.keys) prefixes.push_back(key >> (8 * (kLevels - depth)));
      std::sort(prefixes.begin(), prefixes.end());
      prefixes.erase(std::unique(prefixes.begin(), prefixes.end()), prefixes.end());
      const auto nodes = trie.nodes(depth);
      check(std::equal(nodes.begin(), nodes.end(), prefixes.begin(), prefixes.end(),
                       [](std::uint16_t code, std::uint64_t prefix) { return code == (prefix & 255); }),
            "nodes of the trie");
    }
  }
  compare("build", static_cast<double>(slates.size()), sort, build, ", ");
}

void compare_score(const Slate& slate, gr2::Normalization normalization, const char* name, const char* end) {
  constexpr std::size_t kRepeats = 64;
  const gr2::CandidateTrie trie(slate.codes, slate.known, kLevels, kLevelSize);
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(trie.node_count() * kLevelSize), scores(kSize);
  for (float& value : logits) value = normal(generator);
  std::vector<std::int32_t> order(kSize);
  const auto sums = [&] {
    for (std::size_t repeat = 0; repeat < kRepeats; ++repeat) {
      for (std::size_t node = 0; node < trie.node_count(); ++node) {
        sink = sink + gr2::logsumexp(std::span(logits).subspan(node * kLevelSize, kLevelSize));
      }
    }
  };
  const auto score = [&] {
    for (std::size_t repeat = 0; repeat < kRepeats; ++repeat) {
      trie.score(logits, {}, normalization, order, scores);
      sink = sink + static_cast<double>(scores[0]);
    }
  };
  score();
  for (std::size_t i = 1; i < kSize; ++i) {
    check(scores[static_cast<std::size_t>(order[i - 1])] >= scores[static_cast<std::size_t>(order[i])], "order");
  }
  compare(name, kRepeats, sums, score, end);
}

}  // namespace

int main() {
  std::mt19937_64 generator(0);
  std::vector<Slate> slates;
  for (std::size_t i = 0; i < kSlates; ++i) slates.push_back(make_slate(generator));
  std::printf("{");
  compare_build(slates);
  compare_score(slates[0], gr2::Normalization::kRaw, "score_raw", ", ");
  compare_score(slates[0], gr2::Normalization::kLocal, "score_local", "");
  std::printf("}\n");
}
