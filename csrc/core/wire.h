// The protobuf wire format, read and written as the official parser and serialiser do.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace gr2::wire {

enum Type : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kStartGroup = 3, kEndGroup = 4, kFixed32 = 5 };

// How deep messages and groups may be nested in the outermost message.
inline constexpr int kMaxDepth = 100;

constexpr std::uint32_t tag(std::uint32_t field, Type type) {
  return field << 3 | type;
}

// Reads the fields of one message. Every method returns false once the bytes are malformed; nothing is read beyond
// them. A view into the caller's memory.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  bool done() const { return at_ == end_; }
  bool varint(std::uint64_t& value) {
    if (at_ != end_ && static_cast<std::uint8_t>(*at_) < 0x80) {
      value = static_cast<std::uint8_t>(*at_++);
      return true;
    }
    return long_varint(value);
  }
  // A field's number and type; numbers from 1 to 2^29 - 1, in at most five bytes.
  bool tag(std::uint32_t& value);
  bool fixed32(std::uint32_t& value);
  bool bytes(std::string_view& value);
  // Passes over a field whose tag was just read, groups with all that is in them; `depth` is how much deeper it may go.
  bool skip(std::uint32_t tag, int depth);

 private:
  bool long_varint(std::uint64_t& value);
  bool advance(std::size_t count);

  const char* at_;
  const char* end_;
};

// Whether the bytes are UTF-8: no surrogates, nothing over-long, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

constexpr std::size_t varint_size(std::uint64_t value) {
  return (static_cast<std::size_t>(std::bit_width(value | 1)) + 6) / 7;
}

// Appends fields to a message. Fields without presence are left out where they are 0 or empty.
class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}

  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_ += static_cast<char>(value | 0x80);
    out_ += static_cast<char>(value);
  }
  void number(std::uint32_t field, std::uint64_t value) {
    if (value != 0) present_number(field, value);
  }
  void present_number(std::uint32_t field, std::uint64_t value) {
    varint(wire::tag(field, kVarint));
    varint(value);
  }
  void real(std::uint32_t field, float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (bits == 0) return;
    varint(wire::tag(field, kFixed32));
    for (int shift = 0; shift < 32; shift += 8) out_ += static_cast<char>(bits >> shift);
  }
  void text(std::uint32_t field, std::string_view value) {
    if (!value.empty()) present_text(field, value);
  }
  void present_text(std::uint32_t field, std::string_view value) {
    header(field, value.size());
    out_ += value;
  }
  // What precedes a message of `size` bytes.
  void header(std::uint32_t field, std::size_t size) {
    varint(wire::tag(field, kBytes));
    varint(size);
  }

 private:
  std::string& out_;
};

}  // namespace gr2::wire
