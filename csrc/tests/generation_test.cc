// Generation and sampling under the sanitisers: every walk ends, each candidate comes out once, and draws are pinned.
#include "core/generation.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/candidate_trie.h"
#include "core/sampling.h"
#include "tests/check.h"

namespace {

using gr2::CandidateDecoder;
using gr2::CandidateTrie;
using gr2::Choice;
using gr2::Normalization;
using gr2::tests::throws;

bool is_permutation(std::vector<std::int32_t> order) {
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] != static_cast<std::int32_t>(i)) return false;
  }
  return true;
}

struct Slate {
  std::size_t levels;
  std::uint32_t level_size;
  std::vector<std::uint16_t> codes;
  std::vector<std::uint8_t> known;
  std::shared_ptr<const CandidateTrie> trie;
};

Slate random_slate(std::mt19937& generator, int round) {
  const std::size_t levels = 1 + generator() % 8, size = round % 20 == 0 ? generator() % 1025 : generator() % 20;
  const std::uint32_t level_size = round % 9 == 0 ? 65536 : static_cast<std::uint32_t>(1 + generator() % 40);
  Slate slate{levels, level_size, std::vector<std::uint16_t>(size * levels), std::vector<std::uint8_t>(size), nullptr};
  const std::uint32_t used = std::min(level_size, static_cast<std::uint32_t>(1 + generator() % 6));
  for (auto& code : slate.codes) code = static_cast<std::uint16_t>(level_size - 1 - generator() % used);
  for (auto& flag : slate.known) flag = generator() % 5 != 0;
  slate.trie = std::make_shared<const CandidateTrie>(slate.codes, slate.known, levels, level_size);
  return slate;
}

// A brute-force count of the candidates with the prefix that were not emitted.
std::size_t remaining(const Slate& slate, const std::vector<bool>& emitted, std::span<const std::uint16_t> prefix) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < slate.known.size(); ++i) {
    const auto* row = slate.codes.data() + i * slate.levels;
    count += slate.known[i] != 0 && !emitted[i] && std::equal(prefix.begin(), prefix.end(), row);
  }
  return count;
}

void check_allowed(const Slate& slate, const CandidateDecoder& decoder) {
  std::vector<bool> emitted(slate.known.size());
  for (const std::int32_t candidate : decoder.order()) emitted[static_cast<std::size_t>(candidate)] = true;
  const std::size_t depth = decoder.codes().size() % slate.levels;
  const auto path = decoder.codes().last(depth);
  std::vector<std::uint16_t> prefix(path.begin(), path.end());
  prefix.push_back(0);
  std::vector<std::uint16_t> expected;
  for (std::uint32_t code = slate.level_size - std::min(slate.level_size, 7u); code < slate.level_size; ++code) {
    prefix.back() = static_cast<std::uint16_t>(code);
    if (remaining(slate, emitted, prefix) > 0) expected.push_back(prefix.back());
  }
  CHECK(expected.size() > 1);
  CHECK(std::equal(expected.begin(), expected.end(), decoder.allowed().begin(), decoder.allowed().end()));
}

void test_random_generation() {
  std::mt19937 generator(11);
  for (int round = 0; round < 400; ++round) {
    const Slate slate = random_slate(generator, round);
    const std::size_t size = slate.known.size();
    if (slate.level_size == 65536 && size > 100) continue;
    gr2::GenerationOptions options;
    options.choice = round % 2 == 0 ? Choice::kGreedy : Choice::kSample;
    options.seed = generator();
    options.temperature = round % 3 == 0 ? 0.001 : 1.0;
    if (round % 4 == 0) options.top_n = 1 + generator() % 5;
    CandidateDecoder decoder(slate.trie, options);
    const auto known = static_cast<std::size_t>(std::count(slate.known.begin(), slate.known.end(), 1));
    const bool masked = round % 7 == 0;
    std::vector<float> logits(slate.level_size), scores(size);
    std::size_t taken = decoder.append().size();
    bool stopped = false;
    for (int step = 0; !decoder.done(); ++step) {
      if (size < 25) check_allowed(slate, decoder);
      for (float& value : logits) value = static_cast<float>(generator() % 100) / 10.0f;
      if (masked) logits[generator() % logits.size()] = -std::numeric_limits<float>::infinity();
      if (step % 5 == 4) {
        decoder.accept(decoder.allowed().back(), {});
      } else {
        const std::vector<std::uint16_t> allowed(decoder.allowed().begin(), decoder.allowed().end());
        const std::int32_t code = decoder.push(logits);
        stopped = code == -1;
        CHECK(stopped || std::binary_search(allowed.begin(), allowed.end(), static_cast<std::uint16_t>(code)));
      }
      const std::vector<float> forced(decoder.forced_count() * slate.level_size, 1.0f);
      decoder.score_forced(forced);
      taken += decoder.append().size();
    }
    CHECK(taken == decoder.codes().size() && decoder.node() == -1);
    CHECK(stopped || decoder.order().size() == std::min(known, options.top_n));
    for (float& value : scores) value = static_cast<float>(generator() % 3);
    std::vector<std::int32_t> order(size);
    decoder.ranking(scores, order);
    CHECK(is_permutation(order));
    for (std::size_t i = 0; i < size; ++i) CHECK(slate.known[static_cast<std::size_t>(order[i])] == (i < known));
    std::vector<float> sums(decoder.order().size());
    decoder.item_log_probs(Normalization::kLocal, sums);
    decoder.reset(1);
    CHECK(decoder.append().size() == decoder.codes().size());
  }
}

void test_random_sampling() {
  std::mt19937 generator(12);
  for (int round = 0; round < 300; ++round) {
    const Slate slate = random_slate(generator, round);
    const std::size_t size = slate.known.size();
    std::vector<float> scores(size), log_probs(size);
    std::vector<std::int32_t> order(size);
    for (float& value : scores) {
      value = static_cast<float>(generator() % 100) / 10.0f;
      if (generator() % 10 == 0) value = -std::numeric_limits<float>::infinity();
      if (generator() % 10 == 0) value = std::numeric_limits<float>::max();
    }
    gr2::sample_paths(*slate.trie, scores, generator(), round % 2 == 0 ? 1.0 : 0.001, order, log_probs);
    CHECK(is_permutation(order));
    for (std::size_t i = 0; i < size; ++i) {
      const bool drawn = slate.known[i] != 0 && std::isfinite(scores[i]);
      CHECK(std::isfinite(log_probs[i]) == drawn && log_probs[i] <= 1e-6f);
    }
  }
}

// Decoders of several threads may share a trie.
void test_threads_share_a_trie() {
  std::mt19937 generator(13);
  const Slate slate = random_slate(generator, 1);
  const std::vector<float> logits(slate.level_size, 0.5f);
  std::vector<std::vector<std::int32_t>> orders(4);
  std::vector<std::thread> threads;
  for (auto& order : orders) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        CandidateDecoder decoder(slate.trie, {Choice::kSample, 7, 1.0, 1024});
        while (!decoder.done()) decoder.push(logits);
        order.assign(decoder.order().begin(), decoder.order().end());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& order : orders) CHECK(order == orders[0]);
}

// With a seed, the draws do not depend on compiler, processor or C library.
void test_draws_are_pinned() {
  CHECK(gr2::random_bits(0, 0, 0) == 0x03ac57dcba1769aeu);
  CHECK(gr2::random_bits(1, 2, 3) == 0xc8379c5e657930e4u);
  CHECK(gr2::exponential(1, 2, 3) == 0x1.f758a17d8736bp-3);
  CHECK(gr2::gumbel(1, 2, 3) == 0x1.674156f4f88e8p+0);
  std::mt19937_64 generator(3);
  for (int round = 0; round < 10000; ++round) {
    const double x = static_cast<double>((generator() >> 12) + 1) * 0x1p-46;
    CHECK(std::abs(gr2::portable_log(x) - std::log(x)) <= 1e-15 * std::max(1.0, std::abs(std::log(x))));
  }
  double sum = 0.0;
  for (std::uint64_t index = 0; index < 100'000; ++index) sum += gr2::exponential(5, 0, index);
  CHECK(std::abs(sum / 1e5 - 1.0) < 0.02);
}

void test_wrong_input_changes_nothing() {
  const std::vector<std::uint16_t> codes = {0, 1, 1, 1, 2, 0};
  const std::vector<std::uint8_t> known = {1, 1, 1};
  const auto trie = std::make_shared<const CandidateTrie>(codes, known, 2, 3);
  CandidateDecoder decoder(trie, {});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> logits = {0.0f, bad, 0.0f};
    CHECK(throws<std::invalid_argument>([&] { decoder.push(logits); }));
    CHECK(throws<std::invalid_argument>([&] { decoder.accept(0, logits); }));
  }
  CHECK(decoder.codes().empty() && decoder.allowed().size() == 3);
  CHECK(throws<std::invalid_argument>([&] { CandidateDecoder(trie, {Choice::kGreedy, 0, 0.0, 1}); }));
  CHECK(throws<std::invalid_argument>([&] { CandidateDecoder(trie, {Choice::kGreedy, 0, 1.0, 0}); }));
  std::vector<std::int32_t> order(3);
  CHECK(throws<std::invalid_argument>([&] { decoder.ranking({}, order); }));
  decoder.stop();
  CHECK(throws<std::logic_error>([&] { decoder.accept(0, {}); }));
}

}  // namespace

int main() {
  test_random_generation();
  test_random_sampling();
  test_threads_share_a_trie();
  test_draws_are_pinned();
  test_wrong_input_changes_nothing();
}
