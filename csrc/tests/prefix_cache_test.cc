// The prefix cache under the sanitisers: threads that share it, and values whose end uses it.
#include "core/prefix_cache.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/check.h"

namespace {

using gr2::PrefixCache;

std::string key_of(std::uint64_t number) {
  std::string key(sizeof number, '\0');
  std::memcpy(key.data(), &number, sizeof number);
  return key;
}

void test_threads_get_their_own_values() {
  constexpr std::size_t kThreads = 4, kSteps = 20000, kBytes = 64, kEntries = 16;
  std::atomic<std::size_t> alive{0};
  {
    PrefixCache cache(kEntries * (PrefixCache::kOverhead + 8 + kBytes), 1);
    const auto work = [&](std::uint64_t seed) {
      std::mt19937_64 generator(seed);
      for (std::size_t step = 0; step < kSteps; ++step) {
        const std::uint64_t number = generator() % 40;
        if (const PrefixCache::Value found = cache.find(key_of(number))) {
          CHECK(*static_cast<const std::uint64_t*>(found.get()) == number);
        } else {
          ++alive;
          cache.insert(key_of(number),
                       std::shared_ptr<const std::uint64_t>(new std::uint64_t(number),
                                                            [&](auto* value) {
                                                              --alive;
                                                              delete value;
                                                            }),
                       kBytes);
        }
        if (step % 1000 == 0) CHECK(cache.counts().bytes <= cache.capacity());
      }
    };
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
    for (std::thread& thread : threads) thread.join();
    const PrefixCache::Counts counts = cache.counts();
    CHECK(counts.hits + counts.misses == kThreads * kSteps);
    CHECK(counts.evicted > 0 && counts.entries == kEntries);
    CHECK(alive == kEntries);
    cache.clear();
    CHECK(alive == 0 && cache.counts().bytes == 0 && cache.counts().hits == counts.hits);
  }
}

void test_a_value_may_use_the_cache_when_it_ends() {
  PrefixCache cache(PrefixCache::kOverhead + 1 + 8, 2);
  const auto asking = [&] {
    return std::shared_ptr<const int>(new int(1), [&](const int* value) {
      cache.find("a");
      delete value;
    });
  };
  cache.insert("a", asking(), 8);
  cache.insert("a", asking(), 8);
  cache.insert("b", asking(), 8);
  CHECK(cache.find("b") != nullptr && cache.find("a") == nullptr);
  cache.insert("c", asking(), 9);
  CHECK(cache.find("c") == nullptr && cache.counts().entries == 1);
  cache.clear();
}

}  // namespace

int main() {
  test_threads_get_their_own_values();
  test_a_value_may_use_the_cache_when_it_ends();
}
