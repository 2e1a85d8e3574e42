// A number that nobody outside the process knows.
#pragma once

#include <cstdint>
#include <random>

namespace gr2 {

// Random, and the same as long as the process lives: a hash seeded with it is unknown to those who choose the keys.
inline std::uint64_t process_seed() {
  static const std::uint64_t seed = [] {
    std::random_device random;
    return std::uint64_t{random()} << 32 | random();
  }();
  return seed;
}

}  // namespace gr2
