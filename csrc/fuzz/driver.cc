// Damages a target's inputs at random for some seconds: `codebook_fuzz SECONDS [ROUND]`. The sanitisers end it at the
// first finding; the round that it names is the one to begin with to see it again.
#include "fuzz/driver.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace gr2::fuzz {
namespace {

using Random = std::mt19937_64;

constexpr std::array<std::uint64_t, 16> kNumbers = {
    0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 1ull << 31, 0xffffffffull, 1ull << 32, 1ull << 56, 1ull << 63, ~0ull};

std::size_t below(Random& random, std::size_t limit) {
  return limit == 0 ? 0 : static_cast<std::size_t>(random() % limit);
}

// Writes a number that sizes and offsets go wrong with, or one near to what is there.
void write_number(Bytes& bytes, Random& random) {
  const std::size_t width = std::size_t{1} << below(random, 4);
  if (bytes.size() < width) return;
  const std::size_t at = below(random, bytes.size() - width + 1) / width * width;
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, width);
  value = random() % 2 == 0 ? kNumbers[below(random, kNumbers.size())] : value + below(random, 9) - 4;
  std::memcpy(bytes.data() + at, &value, width);
}

void copy_block(Bytes& bytes, Random& random) {
  const std::size_t size = below(random, std::min<std::size_t>(bytes.size(), 64) + 1);
  if (size == 0) return;
  const std::size_t from = below(random, bytes.size() - size + 1), to = below(random, bytes.size() - size + 1);
  std::memmove(bytes.data() + to, bytes.data() + from, size);
}

void damage(Bytes& bytes, Random& random) {
  for (std::size_t left = 1 + below(random, 6); left > 0; --left) {
    switch (below(random, 6)) {
      case 0:
        if (!bytes.empty()) bytes[below(random, bytes.size())] ^= static_cast<std::uint8_t>(1u << below(random, 8));
        break;
      case 1:
        if (!bytes.empty()) bytes[below(random, bytes.size())] = static_cast<std::uint8_t>(random());
        break;
      case 2:
        copy_block(bytes, random);
        break;
      case 3:
        if (below(random, 4) == 0) bytes.resize(below(random, bytes.size() + 1));
        break;
      case 4:
        if (below(random, 4) == 0) bytes.resize(bytes.size() + below(random, 64), static_cast<std::uint8_t>(random()));
        break;
      default:
        write_number(bytes, random);
    }
  }
}

std::uint64_t current_round = 0;

void name_round() {
  std::fprintf(stderr, "\nfound in round %llu\n", static_cast<unsigned long long>(current_round));
}

}  // namespace
}  // namespace gr2::fuzz

// Of the sanitisers' runtime, where there is one.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 10.0;
  const std::uint64_t first = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  const auto started = std::chrono::steady_clock::now();
  const std::vector<gr2::fuzz::Bytes> seeds = gr2::fuzz::seeds();
  for (const gr2::fuzz::Bytes& seed : seeds) LLVMFuzzerTestOneInput(seed.data(), seed.size());
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(gr2::fuzz::name_round);
  std::uint64_t& round = gr2::fuzz::current_round;
  round = first;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count() < seconds) {
    std::mt19937_64 random(round);
    gr2::fuzz::Bytes bytes = seeds[round % seeds.size()];
    gr2::fuzz::damage(bytes, random);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++round;
  }
  std::fprintf(stderr, "%s: %llu rounds, no finding\n", arguments[0], static_cast<unsigned long long>(round - first));
}
