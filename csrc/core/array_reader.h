// The arrays of a file that follow one another, each at the next multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/errors.h"

namespace gr2 {

class ArrayReader {
 public:
  static constexpr std::size_t kAlignment = 64;

  // `what` names the kind of file. Its arrays begin after `start` bytes; path and bytes must outlive the reader.
  ArrayReader(const std::string& path, const char* what, std::span<const std::byte> bytes, std::size_t start)
      : path_(path), what_(what), bytes_(bytes), at_(start) {}

  // The next array, of rows * width values. Throws FormatError if the file ends before it does.
  template <typename T>
  std::span<const T> take(std::size_t rows, std::size_t width) {
    at_ = (at_ + kAlignment - 1) / kAlignment * kAlignment;
    const std::size_t room = at_ <= bytes_.size() ? (bytes_.size() - at_) / sizeof(T) : 0;
    if (width != 0 && rows > room / width) {
      throw FormatError(path_, std::string("not a whole ") + what_ + " file: it is too short");
    }
    const std::span<const T> values(reinterpret_cast<const T*>(bytes_.data() + at_), rows * width);
    at_ += values.size_bytes();
    return values;
  }
  // Throws FormatError if anything follows.
  void finish() const {
    if (at_ != bytes_.size()) throw FormatError(path_, std::string("not a ") + what_ + " file: it is too long");
  }

 private:
  const std::string& path_;
  const char* what_;
  std::span<const std::byte> bytes_;
  std::size_t at_;
};

}  // namespace gr2
