// 64-bit hashing for tables and checksums. Not cryptographic. The values are part of the codebook's file format.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gr2 {

// A bijection of 64 bits in which every input bit affects every output bit.
constexpr std::uint64_t mix64(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 32;
  return x;
}

// The high half of the 128-bit product: maps a uniform `hash` to 0..range-1 without a division, keeping its order.
inline std::uint64_t scale(std::uint64_t hash, std::uint64_t range) {
  __extension__ using uint128 = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<uint128>(hash) * range) >> 64);
}

// A hash of `size` bytes. Each step is a bijection of both the state and the word it takes in, so two inputs of one
// length that differ in a single 8-byte word never have the same hash. Four independent lanes hide the multiplier's
// latency on long inputs.
inline std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t seed = 0) {
  constexpr std::uint64_t kMultiplier = 0x9fb21c651e98df25u;
  const auto step = [](std::uint64_t state, std::uint64_t word) { return std::rotl((state ^ word) * kMultiplier, 29); };
  const auto load = [](const unsigned char* from, std::size_t bytes) {
    std::uint64_t word = 0;
    std::memcpy(&word, from, bytes);
    return word;
  };
  const auto* from = static_cast<const unsigned char*>(data);
  std::uint64_t state = mix64(seed + 0x8ebc6af09c88c6e3u * (size + 1));
  std::size_t left = size;
  if (left >= 32) {
    std::uint64_t lanes[4] = {state, state + 1, state + 2, state + 3};
    for (; left >= 32; left -= 32, from += 32) {
      for (std::size_t i = 0; i < 4; ++i) lanes[i] = step(lanes[i], load(from + 8 * i, 8));
    }
    for (const std::uint64_t lane : lanes) state = step(state, lane);
  }
  for (; left >= 8; left -= 8, from += 8) state = step(state, load(from, 8));
  if (left > 0) state = step(state, load(from, left));
  return mix64(state);
}

}  // namespace gr2
