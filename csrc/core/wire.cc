#include "core/wire.h"

namespace gr2::wire {
namespace {

constexpr std::uint64_t kMaxTag = 0xffffffffu, kMaxSize = 0x7fffffffu;
constexpr std::ptrdiff_t kMaxTagBytes = 5, kMaxVarintBytes = 10;

}  // namespace

bool Reader::long_varint(std::uint64_t& value) {
  value = 0;
  for (int i = 0; i < kMaxVarintBytes && at_ != end_; ++i) {
    const auto byte = static_cast<std::uint8_t>(*at_++);
    // What the tenth byte has beyond 64 bits is dropped.
    value |= std::uint64_t{byte & 0x7fu} << (7 * i);
    if (byte < 0x80) return true;
  }
  return false;
}

bool Reader::tag(std::uint32_t& value) {
  const char* const begin = at_;
  std::uint64_t wide = 0;
  if (!varint(wide) || at_ - begin > kMaxTagBytes || wide > kMaxTag) return false;
  value = static_cast<std::uint32_t>(wide);
  return value >> 3 != 0;
}

bool Reader::advance(std::size_t count) {
  if (static_cast<std::size_t>(end_ - at_) < count) return false;
  at_ += count;
  return true;
}

bool Reader::fixed32(std::uint32_t& value) {
  const char* const from = at_;
  if (!advance(sizeof value)) return false;
  std::memcpy(&value, from, sizeof value);
  return true;
}

bool Reader::bytes(std::string_view& value) {
  std::uint64_t size = 0;
  if (!varint(size) || size > kMaxSize) return false;
  const char* const from = at_;
  if (!advance(size)) return false;
  value = {from, size};
  return true;
}

bool Reader::skip(std::uint32_t tag, int depth) {
  std::uint64_t number = 0;
  std::string_view text;
  switch (tag & 7) {
    case kVarint:
      return varint(number);
    case kFixed64:
      return advance(8);
    case kBytes:
      return bytes(text);
    case kFixed32:
      return advance(4);
    case kStartGroup:
      break;
    default:
      return false;
  }
  if (depth == 0) return false;
  for (std::uint32_t inner = 0; this->tag(inner);) {
    if ((inner & 7) == kEndGroup) return inner >> 3 == tag >> 3;
    if (!skip(inner, depth - 1)) return false;
  }
  return false;
}

bool is_utf8(std::string_view text) {
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = at + text.size();
  const auto follows = [&](int count, unsigned low, unsigned high) {
    if (end - at <= count || at[1] < low || at[1] > high) return false;
    for (int i = 2; i <= count; ++i) {
      if ((at[i] & 0xc0) != 0x80) return false;
    }
    at += count + 1;
    return true;
  };
  while (at != end) {
    std::uint64_t word = 0;
    if (end - at >= 8 && (std::memcpy(&word, at, 8), (word & 0x8080808080808080u) == 0)) {
      at += 8;
    } else if (*at < 0x80) {
      ++at;
    } else if (*at < 0xc2) {
      return false;
    } else if (*at < 0xe0) {
      if (!follows(1, 0x80, 0xbf)) return false;
    } else if (*at < 0xf0) {
      if (!follows(2, *at == 0xe0 ? 0xa0 : 0x80, *at == 0xed ? 0x9f : 0xbf)) return false;
    } else if (*at < 0xf5) {
      if (!follows(3, *at == 0xf0 ? 0x90 : 0x80, *at == 0xf4 ? 0x8f : 0xbf)) return false;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace gr2::wire
