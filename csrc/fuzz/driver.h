// What a fuzz target gives to the driver: an entry with libFuzzer's signature, and inputs to start from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace gr2::fuzz {

using Bytes = std::vector<std::uint8_t>;

// Valid inputs, which the driver damages.
std::vector<Bytes> seeds();

}  // namespace gr2::fuzz
