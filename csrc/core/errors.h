// The exceptions of the core. Wrong arguments are std::invalid_argument.
#pragma once

#include <stdexcept>
#include <string>

namespace gr2 {

// A file whose content cannot be used. The message names the file and the reason.
class FormatError : public std::runtime_error {
 public:
  FormatError(const std::string& path, const std::string& reason) : std::runtime_error(path + ": " + reason) {}
};

// A failed system call: what the operating system said, and about which file.
class FileError : public std::runtime_error {
 public:
  FileError(int code, const std::string& path) : std::runtime_error(path), code_(code) {}
  int code() const { return code_; }
  const char* path() const { return what(); }

 private:
  int code_;
};

}  // namespace gr2
