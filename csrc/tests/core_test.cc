// What Python cannot show: the core under the sanitisers, and files that are damaged but carry valid checksums.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/candidate_trie.h"
#include "core/codebook.h"
#include "core/codebook_builder.h"
#include "core/codebook_format.h"
#include "core/errors.h"
#include "core/hash.h"
#include "core/logsumexp.h"
#include "tests/check.h"
#include "tests/temporary_folder.h"

namespace {

using gr2::codebook_format::Header;
using gr2::tests::read;
using gr2::tests::TemporaryFolder;
using gr2::tests::throws;
using gr2::tests::write;

// Makes the checksums fit again after a change.
void reseal(std::vector<char>& content) {
  Header header;
  std::memcpy(&header, content.data(), sizeof header);
  header.body_checksum = gr2::hash_bytes(content.data() + sizeof header, content.size() - sizeof header);
  header.header_checksum = gr2::hash_bytes(&header, gr2::codebook_format::kCheckedHeaderBytes);
  std::memcpy(content.data(), &header, sizeof header);
}

std::vector<std::string> make_names(std::size_t count) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i)
    names.push_back((i % 2 ? "a name too long for its slot " : "name ") + std::to_string(i * i));
  return names;
}

void write_sample(const std::string& path, bool strings) {
  std::vector<std::int64_t> ids(50);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i) * 31 - 700;
  const std::vector<std::string> names = make_names(50);
  const std::vector<std::string_view> views(names.begin(), names.end());
  std::vector<std::uint16_t> codes(50 * 4);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint16_t>(i % 256);
  // A kilobyte makes runs on disk and a merge.
  gr2::CodebookBuilder builder({path, 4, 256, strings, 1024, {}});
  for (std::size_t start = 0; start < 50; start += 10) {
    const std::span<const std::uint16_t> part = std::span(codes).subspan(4 * start, 40);
    if (strings) {
      builder.add(std::span(views).subspan(start, 10), part);
    } else {
      builder.add(std::span<const std::int64_t>(ids).subspan(start, 10), part);
    }
  }
  builder.finish();
}

// The items of every code path of the sample, their IDs read to the last byte.
std::size_t read_items(const gr2::Codebook& codebook) {
  std::size_t letters = 0;
  std::vector<std::uint16_t> codes(codebook.levels());
  for (std::size_t i = 0; i < 50; ++i) {
    for (std::size_t level = 0; level < codes.size(); ++level)
      codes[level] = static_cast<std::uint16_t>((4 * i + level) % 256);
    for (const std::uint64_t slot : codebook.items(codes).slots) {
      if (codebook.has_string_ids()) {
        for (const char letter : codebook.string_id(slot)) letters += letter != '\0';
      } else {
        letters += codebook.int64_id(slot) != 0;
      }
    }
  }
  return letters;
}

void test_hash_depends_on_every_byte() {
  std::mt19937_64 generator(1);
  for (std::size_t size = 0; size < 100; ++size) {
    std::vector<unsigned char> bytes(size);
    for (auto& byte : bytes) byte = static_cast<unsigned char>(generator());
    const std::uint64_t before = gr2::hash_bytes(bytes.data(), size);
    for (auto& byte : bytes) {
      for (int bit = 0; bit < 8; ++bit) {
        byte = static_cast<unsigned char>(byte ^ (1 << bit));
        CHECK(gr2::hash_bytes(bytes.data(), size) != before);
        byte = static_cast<unsigned char>(byte ^ (1 << bit));
      }
    }
  }
}

void test_lookups_from_threads(const TemporaryFolder& folder) {
  for (const bool strings : {false, true}) {
    const std::string path = folder.file("threads");
    write_sample(path, strings);
    const gr2::Codebook codebook(path);
    const std::vector<std::string> names = make_names(60);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&] {
        for (int round = 0; round < 200; ++round) {
          std::vector<std::uint16_t> codes(60 * 4, 999);
          std::vector<std::uint8_t> known(60, 9);
          if (strings) {
            const std::vector<std::string_view> views(names.begin(), names.end());
            codebook.lookup(std::span<const std::string_view>(views), codes, known);
          } else {
            std::vector<std::int64_t> ids(60);
            for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i) * 31 - 700;
            codebook.lookup(std::span<const std::int64_t>(ids), codes, known);
          }
          for (std::size_t i = 0; i < 60; ++i) {
            CHECK(known[i] == (i < 50));
            CHECK(codes[4 * i + 1] == (i < 50 ? (4 * i + 1) % 256 : 0));
          }
        }
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

void test_sealed_damage_is_refused(const TemporaryFolder& folder) {
  const std::uint64_t values[] = {0,  1,   2,          3,          50,         51,        83,
                                  84, 255, 1ull << 31, 1ull << 32, 1ull << 60, ~0ull - 7, ~0ull};
  for (const bool strings : {false, true}) {
    const std::string path = folder.file("sealed"), bad = folder.file("bad");
    write_sample(path, strings);
    const std::vector<char> content = read(path);
    Header original;
    std::memcpy(&original, content.data(), sizeof original);
    // Each size and offset of the header in turn: the file is refused, or it is one that is safe to use.
    for (const std::size_t field :
         {offsetof(Header, key_type), offsetof(Header, levels), offsetof(Header, level_size),
          offsetof(Header, slot_bytes), offsetof(Header, count), offsetof(Header, capacity),
          offsetof(Header, slot_count), offsetof(Header, slots_offset), offsetof(Header, index_offset),
          offsetof(Header, index_capacity), offsetof(Header, index_count), offsetof(Header, index_width),
          offsetof(Header, pool_offset), offsetof(Header, pool_bytes)}) {
      const std::size_t width = field < offsetof(Header, count) ? 4 : 8;
      for (const std::uint64_t value : values) {
        std::vector<char> changed = content;
        std::memcpy(changed.data() + field, &value, width);
        if (changed == content) continue;
        reseal(changed);
        write(bad, changed);
        const bool harmless = field == offsetof(Header, levels) || field == offsetof(Header, capacity) ||
                              field == offsetof(Header, level_size) || field == offsetof(Header, index_capacity);
        try {
          const gr2::Codebook codebook(bad);
          CHECK(harmless);
          std::vector<std::uint16_t> codes(codebook.levels());
          std::vector<std::uint8_t> known(1);
          for (std::int64_t id = -800; id < 800; ++id) {
            if (!strings) codebook.lookup(std::span<const std::int64_t>(&id, 1), codes, known);
          }
          read_items(codebook);
        } catch (const gr2::FormatError&) {
        }
      }
    }
    // A code, a string's offset and length, and a last slot in use.
    const auto slot = [&](std::vector<char>& bytes, std::uint64_t index) {
      return bytes.data() + original.slots_offset + index * original.slot_bytes;
    };
    std::vector<char> used = content;
    std::uint64_t first = 0;
    while (std::memcmp(slot(used, first), slot(used, original.slot_count - 1), 16) == 0) ++first;
    const std::size_t codes_at = gr2::codebook_format::codes_offset(original.key_type);
    const auto refused = [&](const std::function<void(std::vector<char>&)>& change) {
      std::vector<char> changed = content;
      change(changed);
      reseal(changed);
      write(bad, changed);
      return throws<gr2::FormatError>([&] { const gr2::Codebook codebook(bad); });
    };
    CHECK(refused([&](auto& bytes) { std::memset(slot(bytes, first) + codes_at, 1, 2); }));
    CHECK(
        refused([&](auto& bytes) { std::memcpy(slot(bytes, first), slot(bytes, original.slot_count - 1), codes_at); }));
    CHECK(refused([&](auto& bytes) {
      std::memcpy(slot(bytes, original.slot_count - 1), slot(bytes, first), original.slot_bytes);
      std::memcpy(slot(bytes, first), slot(used, original.slot_count - 1), codes_at);
    }));
    if (!strings) continue;
    while ((slot(used, first)[15] & 0xff) != 0xff) ++first;
    for (const std::uint64_t offset :
         {original.pool_bytes - 3, original.pool_bytes, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
      CHECK(refused([&](auto& bytes) { std::memcpy(slot(bytes, first) + 8, &offset, 7); }));
    }
    CHECK(refused([&](auto& bytes) { std::memset(bytes.data() + original.pool_offset, 0xff, 4); }));
    CHECK(refused([&](auto& bytes) { std::memset(slot(bytes, first) + 15, 17, 1); }));
    CHECK(refused([&](auto& bytes) { std::memset(slot(bytes, original.slot_count - 1), 1, 1); }));
  }
}

void test_random_damage_never_crashes(const TemporaryFolder& folder) {
  const std::string path = folder.file("random");
  std::vector<char> samples[2];
  for (const bool strings : {false, true}) {
    write_sample(path, strings);
    samples[strings] = read(path);
  }
  std::mt19937_64 generator(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<char> content = samples[round % 2];
    for (int change = 0; change < 4; ++change) content[generator() % content.size()] = static_cast<char>(generator());
    if (round % 3 == 0) content.resize(sizeof(Header) + generator() % (content.size() - sizeof(Header)));
    reseal(content);
    write(path, content);
    try {
      const gr2::Codebook codebook(path);
      std::vector<std::uint16_t> codes(codebook.levels() * 50);
      std::vector<std::uint8_t> known(50);
      const std::vector<std::string> names = make_names(50);
      const std::vector<std::string_view> views(names.begin(), names.end());
      if (codebook.has_string_ids()) codebook.lookup(std::span<const std::string_view>(views), codes, known);
      read_items(codebook);
    } catch (const gr2::FormatError&) {
    }
  }
}

void test_logsumexp_is_accurate() {
  std::mt19937 generator(3);
  for (const std::size_t size : {1u, 2u, 15u, 16u, 17u, 100u, 256u, 511u, 513u, 4096u, 65536u}) {
    for (const float spread : {0.0f, 1.0f, 20.0f, 1e4f}) {
      std::normal_distribution<float> normal(0.0f, 1.0f);
      std::vector<float> values(size);
      for (float& value : values) value = spread * normal(generator);
      const double top = static_cast<double>(*std::max_element(values.begin(), values.end()));
      double sum = 0.0;
      for (const float value : values) sum += std::exp(static_cast<double>(value) - top);
      CHECK(std::abs(gr2::logsumexp(values) - (top + std::log(sum))) < 1e-5);
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
        std::vector<float> broken = values;
        broken[size / 2] = bad;
        CHECK(std::isnan(gr2::logsumexp(broken)));
        CHECK(!gr2::all_finite(broken));
      }
    }
  }
}

void test_random_slates() {
  std::mt19937 generator(5);
  for (int round = 0; round < 300; ++round) {
    const std::size_t levels = 1 + generator() % 8, size = round % 10 == 0 ? generator() % 1025 : generator() % 20;
    const std::uint32_t level_size = round % 3 == 0 ? 65536 : static_cast<std::uint32_t>(1 + generator() % 40);
    std::vector<std::uint16_t> codes(size * levels);
    for (auto& code : codes) code = static_cast<std::uint16_t>(generator() % std::min(level_size, 5u));
    std::vector<std::uint8_t> known(size);
    for (auto& flag : known) flag = generator() % 4 != 0;
    const gr2::CandidateTrie trie(codes, known, levels, level_size);
    const std::size_t n = trie.node_count();
    std::vector<float> mask(n * n);
    trie.fill_mask(mask);
    for (std::size_t i = 0; i < n; ++i) {
      CHECK(mask[i * n + i] == 0.0f && mask[i * n] == 0.0f);
      CHECK(i == 0 ? trie.parents()[i] == -1 : trie.parents()[i] < static_cast<std::int32_t>(i));
    }
    if (n * level_size > 500'000) continue;
    std::vector<float> logits(n * level_size), prior(size), scores(size);
    for (float& value : logits) value = static_cast<float>(generator() % 1000) / 100.0f;
    for (float& value : prior) value = static_cast<float>(generator() % 1000) / 100.0f;
    std::vector<std::int32_t> order(size);
    for (const auto normalization : {gr2::Normalization::kRaw, gr2::Normalization::kLocal}) {
      trie.score(logits, prior, normalization, order, scores);
      for (std::size_t i = 1; i < size; ++i) {
        const auto a = static_cast<std::size_t>(order[i - 1]), b = static_cast<std::size_t>(order[i]);
        CHECK(scores[a] > scores[b] || (scores[a] == scores[b] && a < b));
        CHECK(known[a] >= known[b]);
      }
      std::vector<std::int32_t> all = order;
      std::sort(all.begin(), all.end());
      for (std::size_t i = 0; i < size; ++i) CHECK(all[i] == static_cast<std::int32_t>(i));
    }
    logits.back() = std::numeric_limits<float>::quiet_NaN();
    CHECK(throws<std::invalid_argument>([&] { trie.score(logits, {}, gr2::Normalization::kRaw, order, scores); }));
  }
}

}  // namespace

int main() {
  const TemporaryFolder folder;
  test_hash_depends_on_every_byte();
  test_lookups_from_threads(folder);
  test_sealed_damage_is_refused(folder);
  test_random_damage_never_crashes(folder);
  test_logsumexp_is_accurate();
  test_random_slates();
}
