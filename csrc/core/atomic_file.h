// Files that are written front to back: one that appears whole or not at all, and one that nobody else ever sees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace gr2 {

// An open file descriptor.
class FileDescriptor {
 public:
  // Throws FileError.
  FileDescriptor(const std::string& path, int flags, unsigned mode = 0);
  ~FileDescriptor();
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Appends to a file through a buffer. Errors name `name`.
class Appender {
 public:
  Appender(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}
  void append(const void* data, std::size_t size);
  // Throws FileError, as `append` does.
  void flush();
  // Bytes appended so far.
  std::uint64_t size() const { return flushed_ + buffer_.size(); }

 private:
  int fd_;
  std::string name_;
  std::uint64_t flushed_ = 0;
  std::vector<std::byte> buffer_;
};

// Replaces the file at `path` by what was appended: a reader, or a crash, sees the old file or the new one and nothing
// between. Without `commit` nothing is left. Throws FileError that names `path`.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(const void* data, std::size_t size) { appender_.append(data, size); }
  std::uint64_t size() const { return appender_.size(); }
  // Everything appended is in the file afterwards.
  void flush() { appender_.flush(); }
  // Where the bytes lie until `commit`.
  const std::string& temporary() const { return temporary_; }
  // Writes over the first bytes, which were appended and flushed before.
  void write_front(std::span<const std::byte> bytes);
  void commit();

 private:
  std::string path_, folder_, temporary_;
  FileDescriptor file_;
  Appender appender_;
  bool committed_ = false;
};

// A file without a name in `folder`: it is gone when it is closed, however the process ends.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& folder);
  void append(const void* data, std::size_t size) { appender_.append(data, size); }
  std::uint64_t size() const { return appender_.size(); }
  void flush() { appender_.flush(); }

  // Reads the bytes from `begin` to `end`, in order, through a buffer of its own.
  class Reader {
   public:
    Reader(const ScratchFile& file, std::uint64_t begin, std::uint64_t end)
        : file_(&file), position_(begin), end_(end) {}
    bool done() const { return position_ == end_ && at_ == buffer_.size(); }
    // Fills all of `to`, which must not reach past the end. Throws FileError.
    void read(void* to, std::size_t size);

   private:
    void refill();

    const ScratchFile* file_;
    std::uint64_t position_, end_;
    std::size_t at_ = 0;
    std::vector<std::byte> buffer_;
  };

 private:
  std::string folder_;
  FileDescriptor file_;
  Appender appender_;
};

}  // namespace gr2
