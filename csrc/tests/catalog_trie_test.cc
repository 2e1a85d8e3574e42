// The catalogue's trie and the search on it under the sanitisers: files that are damaged but carry valid checksums,
// threads, and each generation of vector instructions that the processor has.
#include "core/catalog_trie.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/catalog_trie_format.h"
#include "core/errors.h"
#include "core/hash.h"
#include "core/item_filter.h"
#include "core/range_table.h"
#include "core/retrieval.h"
#include "core/simd.h"
#include "core/top_keys.h"
#include "tests/check.h"
#include "tests/temporary_folder.h"

namespace {

using gr2::CatalogTrie;
using gr2::catalog_trie_format::Header;
using gr2::tests::read;
using gr2::tests::TemporaryFolder;
using gr2::tests::throws;
using gr2::tests::write;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Makes the checksums fit again after a change, and writes the file.
void reseal(std::vector<char> content, const std::string& path) {
  Header header;
  std::memcpy(&header, content.data(), sizeof header);
  header.body_checksum = gr2::hash_bytes(content.data() + sizeof header, content.size() - sizeof header);
  header.header_checksum = gr2::hash_bytes(&header, gr2::catalog_trie_format::kCheckedHeaderBytes);
  std::memcpy(content.data(), &header, sizeof header);
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
}

// Rows in lexicographic order; `wide` makes nodes of very different degrees, and codes that take two bytes.
std::shared_ptr<const CatalogTrie> make_trie(std::size_t items, bool wide, std::uint32_t seed) {
  std::mt19937 generator(seed);
  const std::uint32_t level_size = wide ? 3000 : 7;
  std::vector<std::array<std::uint16_t, 3>> rows(items);
  for (auto& row : rows) {
    for (auto& code : row) code = static_cast<std::uint16_t>(generator() % level_size);
    if (wide && generator() % 2 != 0) row[0] = row[1] = 5;
  }
  if (items > 1) rows[1] = rows[0];
  std::sort(rows.begin(), rows.end());
  std::vector<std::uint16_t> codes;
  for (const auto& row : rows) codes.insert(codes.end(), row.begin(), row.end());
  return CatalogTrie::build(codes, 3, level_size);
}

struct Found {
  std::vector<std::int64_t> items;
  std::vector<float> scores;
};

// A search with random logits; every answer must lie inside the catalogue, whatever its file said.
Found search(const std::shared_ptr<const CatalogTrie>& trie, gr2::Retriever& retriever, std::uint32_t seed,
             std::shared_ptr<const gr2::ItemFilter> filter = nullptr) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  const std::size_t beams = retriever.beams(), batch = 2;
  retriever.start(trie, batch, {std::move(filter)});
  std::vector<std::int64_t> parents(batch * beams), codes(batch * beams);
  Found found{std::vector<std::int64_t>(batch * beams), std::vector<float>(batch * beams)};
  for (std::size_t level = 0; level < trie->levels(); ++level) {
    const std::size_t width = level == 0 ? 1 : beams;
    std::vector<float> logits(batch * width * trie->level_size());
    for (float& logit : logits) logit = normal(generator);
    retriever.step({logits, batch, width, trie->level_size()}, parents, codes, found.scores);
    for (const std::int64_t code : codes) CHECK(code >= 0 && code < static_cast<std::int64_t>(trie->level_size()));
    for (const std::int64_t parent : parents) CHECK(parent >= 0 && parent < static_cast<std::int64_t>(beams));
  }
  std::vector<std::int64_t> nodes(batch * beams);
  retriever.nodes(nodes);
  std::vector<std::uint16_t> paths(batch * beams * trie->levels());
  retriever.paths(paths);
  retriever.finish(found.items, found.scores);
  for (const std::int64_t item : found.items) CHECK(item >= -1 && item < static_cast<std::int64_t>(trie->size()));
  return found;
}

// Everything that a caller can do with a trie.
void use(const std::shared_ptr<const CatalogTrie>& trie) {
  std::vector<std::int64_t> rows;
  for (std::uint64_t row = 0; row < trie->size(); row += 3) rows.push_back(static_cast<std::int64_t>(row));
  for (const auto normalization : {gr2::Normalization::kRaw, gr2::Normalization::kLocal}) {
    gr2::Retriever retriever(7, normalization);
    search(trie, retriever, 1);
    search(trie, retriever, 2, std::make_shared<gr2::ItemFilter>(trie, std::nullopt, rows));
    search(trie, retriever, 3, std::make_shared<gr2::ItemFilter>(trie, rows, std::span<const std::int64_t>()));
  }
}

void test_sealed_damage_is_refused_or_safe(const TemporaryFolder& folder) {
  const std::uint64_t values[] = {0,  1,   2,   3,     4,     7,          8,          9,          50,        56,
                                  57, 255, 256, 65535, 65536, 1ull << 31, 1ull << 32, 1ull << 60, ~0ull - 7, ~0ull};
  for (const bool wide : {false, true}) {
    const std::string path = folder.file("sealed"), bad = folder.file("bad");
    make_trie(200, wide, 1)->save(path);
    const std::vector<char> content = read(path);
    std::size_t refused = 0, opened = 0;
    for (std::size_t field = offsetof(Header, levels); field < offsetof(Header, body_checksum);) {
      const bool byte = field >= offsetof(Header, end_bytes);
      const std::size_t width = byte ? 1 : field < offsetof(Header, items) ? 4 : 8;
      for (const std::uint64_t value : values) {
        std::vector<char> changed = content;
        std::memcpy(changed.data() + field, &value, width);
        if (changed == content) continue;
        reseal(changed, bad);
        try {
          use(CatalogTrie::open(bad));
          ++opened;
        } catch (const gr2::FormatError&) {
          ++refused;
        }
      }
      field += width;
    }
    CHECK(refused > 100 && opened > 0);
  }
}

void test_sealed_bodies_are_refused_or_safe(const TemporaryFolder& folder) {
  std::mt19937_64 generator(7);
  for (const bool wide : {false, true}) {
    const std::string path = folder.file("body");
    make_trie(300, wide, 2)->save(path);
    const std::vector<char> content = read(path);
    for (int round = 0; round < 700; ++round) {
      std::vector<char> changed = content;
      for (int change = 0; change < 1 + round % 4; ++change) {
        const std::size_t at = sizeof(Header) + generator() % (content.size() - sizeof(Header));
        changed[at] = static_cast<char>(round % 2 != 0 ? generator() : static_cast<unsigned>(changed[at]) + 1u);
      }
      if (round % 50 == 0) {
        for (std::size_t at = sizeof(Header); at < changed.size(); ++at) changed[at] = static_cast<char>(generator());
      }
      reseal(changed, path);
      try {
        use(CatalogTrie::open(path));
      } catch (const gr2::FormatError&) {
      }
    }
  }
}

void test_ranges_are_found_by_value() {
  std::mt19937 generator(3);
  for (const std::uint32_t largest : {1u, 3u, 40u, 5000u, 100000u}) {
    for (const std::size_t count : {1u, 13u, 14u, 55u, 56u, 57u, 1000u}) {
      std::vector<std::uint32_t> ends(count);
      std::uint32_t end = 0;
      for (auto& each : ends) each = end += 1 + static_cast<std::uint32_t>(generator() % largest);
      const std::uint32_t width = gr2::RangeTable::end_bytes(ends);
      std::vector<std::uint64_t> blocks(gr2::RangeTable::bytes(count, width) / 8 + 1);
      auto* bytes = reinterpret_cast<std::byte*>(blocks.data());
      gr2::RangeTable::write(ends, width, bytes);
      const gr2::RangeTable table(bytes, count, end, width);
      CHECK(table.valid());
      for (std::uint64_t i = 0; i < count; ++i) {
        const gr2::Range range = table[i];
        CHECK(range.begin == (i == 0 ? 0 : ends[i - 1]) && range.end == ends[i]);
        CHECK(table.find(range.begin) == i && table.find(range.end - 1) == i);
      }
    }
  }
}

// A search for a value counts the ends of a whole block, also those behind the last range.
void test_a_forged_end_of_the_last_block_is_refused() {
  const std::uint32_t ends[] = {5, 9, 300, 70000};
  for (const std::uint32_t width : {1u, 2u, 4u}) {
    const std::span<const std::uint32_t> some = std::span(ends).first(width == 4 ? 4 : width + 1);
    std::vector<std::uint64_t> blocks(gr2::RangeTable::bytes(some.size(), width) / 8);
    auto* bytes = reinterpret_cast<std::byte*>(blocks.data());
    gr2::RangeTable::write(some, width, bytes);
    const gr2::RangeTable table(bytes, some.size(), some.back(), width);
    CHECK(table.valid());
    for (std::size_t at = 8 + some.size() * width; at < gr2::RangeTable::kBlockBytes; ++at) {
      const std::byte before = bytes[at];
      bytes[at] ^= std::byte{1};
      CHECK(!table.valid());
      bytes[at] = before;
    }
  }
}

void test_the_best_keys_are_kept_in_order() {
  std::mt19937_64 generator(4);
  for (const std::size_t capacity : {1u, 2u, 10u, 32u, 33u, 200u}) {
    for (const std::size_t offered : {0u, 1u, 9u, 500u}) {
      std::vector<std::uint64_t> keys(offered);
      for (auto& key : keys) key = generator() >> 1;
      gr2::TopKeys best;
      best.reset(capacity);
      for (const std::uint64_t key : keys) best.offer(key);
      std::sort(keys.begin(), keys.end());
      keys.resize(std::min(capacity, offered));
      const std::span<const std::uint64_t> sorted = best.sorted();
      CHECK(std::equal(sorted.begin(), sorted.end(), keys.begin(), keys.end()));
    }
  }
  const float scores[] = {kInfinity, 3.5f, 0.0f, -1e-40f, -2.0f, std::numeric_limits<float>::lowest()};
  for (std::size_t i = 0; i + 1 < std::size(scores); ++i) {
    CHECK(gr2::candidate_key(scores[i], 4095, 65535) < gr2::candidate_key(scores[i + 1], 0, 0));
    CHECK(gr2::key_score(gr2::candidate_key(scores[i], 1, 2)) == scores[i]);
  }
  CHECK(gr2::candidate_key(-0.0f, 1, 2) == gr2::candidate_key(0.0f, 1, 2));
  CHECK(gr2::candidate_key(1.0f, 1, 65535) < gr2::candidate_key(1.0f, 2, 0));
}

void test_every_generation_finds_the_same() {
  const std::vector<const gr2::SimdKernels*> generations = gr2::supported_simd();
  for (const bool wide : {false, true}) {
    const std::shared_ptr<const CatalogTrie> trie = make_trie(2000, wide, 9);
    std::vector<Found> answers;
    for (const gr2::SimdKernels* kernels : generations) {
      gr2::use_simd(*kernels);
      gr2::Retriever retriever(20, gr2::Normalization::kRaw);
      answers.push_back(search(trie, retriever, 11));
    }
    for (const Found& answer : answers) {
      CHECK(answer.items == answers[0].items);
      for (std::size_t i = 0; i < answer.scores.size(); ++i)
        CHECK(std::abs(answer.scores[i] - answers[0].scores[i]) < 1e-4f);
    }
  }
  gr2::use_simd(*generations.back());
}

// Skipping beams that cannot enter must not change an answer: one search of many beams is that of few, cut.
void test_pruning_is_exact() {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    const std::shared_ptr<const CatalogTrie> trie = make_trie(1500, seed % 2 != 0, seed);
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.0f, seed % 3 == 0 ? 0.1f : 4.0f);
    const std::size_t columns = trie->level_size();
    std::vector<float> root(columns), rows(10 * columns);
    for (float& logit : root) logit = normal(generator);
    for (float& logit : rows) logit = normal(generator);
    const auto two_levels = [&](const std::shared_ptr<const CatalogTrie>& on, std::size_t beams) {
      gr2::Retriever retriever(beams, gr2::Normalization::kRaw);
      std::vector<std::int64_t> parents(beams), codes(beams);
      std::vector<float> scores(beams);
      retriever.start(on, 1, {});
      retriever.step({root, 1, 1, columns}, parents, codes, scores);
      std::vector<float> second(rows);
      second.resize(beams * columns, -kInfinity);
      retriever.step({second, 1, beams, columns}, parents, codes, scores);
      scores.resize(10);
      return scores;
    };
    CHECK(two_levels(trie, 10) == two_levels(trie, 200));
  }
}

void test_searches_while_the_catalogue_is_swapped(const TemporaryFolder& folder) {
  const std::string path = folder.file("swapped");
  const std::shared_ptr<const CatalogTrie> tries[2] = {make_trie(300, false, 1), make_trie(500, false, 2)};
  std::vector<Found> expected;
  for (const auto& trie : tries) {
    gr2::Retriever retriever(5, gr2::Normalization::kRaw);
    expected.push_back(search(trie, retriever, 3));
  }
  std::mutex mutex;
  std::shared_ptr<const CatalogTrie> current = tries[0];
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&] {
      gr2::Retriever retriever(5, gr2::Normalization::kRaw);
      for (int round = 0; round < 100; ++round) {
        std::shared_ptr<const CatalogTrie> mine;
        {
          const std::scoped_lock lock(mutex);
          mine = current;
        }
        const std::size_t number = mine->size() == 300 ? 0 : 1;
        CHECK(search(mine, retriever, 3).items == expected[number].items);
      }
    });
  }
  for (int turn = 0; turn < 60; ++turn) {
    tries[turn % 2]->save(path);
    std::shared_ptr<const CatalogTrie> next = CatalogTrie::open(path);
    const std::scoped_lock lock(mutex);
    current = std::move(next);
  }
  for (auto& thread : threads) thread.join();
}

void test_threads_that_share_a_retriever() {
  const std::shared_ptr<const CatalogTrie> trie = make_trie(100, false, 1);
  gr2::Retriever retriever(4, gr2::Normalization::kLocal);
  std::atomic<int> finished{0};
  std::vector<std::thread> threads;
  for (std::uint32_t thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::uint32_t round = 0; round < 100; ++round) {
        try {
          search(trie, retriever, thread + round);
          ++finished;
        } catch (const std::invalid_argument&) {
        } catch (const std::logic_error&) {
          // Another thread began anew in between.
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(finished > 0);
}

void test_wrong_arguments_are_refused() {
  const auto build = [](std::vector<std::uint16_t> codes, std::size_t levels, std::uint32_t level_size) {
    return throws<std::invalid_argument>([&] { CatalogTrie::build(codes, levels, level_size); });
  };
  CHECK(build({1, 2, 0, 9}, 2, 10) && build({0, 2, 0, 1}, 2, 10) && build({0, 10}, 2, 10));
  CHECK(build({}, 0, 10) && build({}, 9, 10) && build({}, 1, 0) && build({}, 1, 65537));
  CHECK(!build({}, 1, 10) && !build({0, 2, 0, 2}, 2, 10));
  const std::int64_t outside[] = {0, 100};
  const std::shared_ptr<const CatalogTrie> trie = make_trie(100, false, 1);
  CHECK(throws<std::invalid_argument>([&] { gr2::ItemFilter(trie, std::nullopt, outside); }));
  CHECK(throws<std::invalid_argument>([&] { gr2::ItemFilter(trie, outside, {}); }));
}

}  // namespace

int main() {
  const TemporaryFolder folder;
  test_wrong_arguments_are_refused();
  test_ranges_are_found_by_value();
  test_a_forged_end_of_the_last_block_is_refused();
  test_the_best_keys_are_kept_in_order();
  test_every_generation_finds_the_same();
  test_pruning_is_exact();
  test_sealed_damage_is_refused_or_safe(folder);
  test_sealed_bodies_are_refused_or_safe(folder);
  test_searches_while_the_catalogue_is_swapped(folder);
  test_threads_that_share_a_retriever();
}
