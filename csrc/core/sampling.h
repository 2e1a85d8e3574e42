// Random draws that a seed determines, equal on every platform.
#pragma once

#include <cstdint>
#include <span>

#include "core/candidate_trie.h"

namespace gr2 {

// 64 random bits from a counter instead of a state: with the odd constant G = 0x9e3779b97f4a7c15 and mix64 of hash.h,
//   h(x) = mix64(x + G),  bits = mix64(h(h(seed) + stream) + G * index), all modulo 2^64.
std::uint64_t random_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

// log(x) of a normal positive x, to about 2 units in the last place, from additions, multiplications and divisions in
// a fixed order: the C library's logarithm differs between platforms. With x = 2^e m, 1/2 <= m^2 < 2,
// s = (m - 1) / (m + 1) and Horner's rule, it is 2 s (1 + s^2/3 + ... + s^22/23) + e ln 2.
double portable_log(double x);

// A draw of Exp(1): -log(u) with u = (floor(bits / 2^12) + 1/2) / 2^52.
double exponential(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

// A draw of the standard Gumbel distribution: -log(exponential). The largest of a_i + Gumbel_i is i with probability
// softmax(a)_i.
double gumbel(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

// Throws std::invalid_argument unless it is 0.001 to 1000.
void check_temperature(double temperature);

// Draws whole paths without replacement, by Gumbel-top-k: the next candidate is of path p with probability proportional
// to exp(score / temperature) of the best candidate that p still has; within a path candidates come by score, then by
// position. `scores` (K) are by candidate; -infinity masks one. `order` (K) receives the candidates as drawn and then
// the undrawn, masked or unknown, in incoming order; `log_probs` (K) by candidate, that of each draw given those
// before, -infinity for the undrawn. Candidate c's draw is exponential(seed, 0, c). Throws std::invalid_argument if a
// score of a known candidate is NaN or +infinity, and on such temperatures.
void sample_paths(const CandidateTrie& trie, std::span<const float> scores, std::uint64_t seed, double temperature,
                  std::span<std::int32_t> order, std::span<float> log_probs);

}  // namespace gr2
