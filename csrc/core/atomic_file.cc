#include "core/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/errors.h"

namespace gr2 {
namespace {

constexpr std::size_t kWriteBuffer = std::size_t{1} << 20;
constexpr std::size_t kReadBuffer = std::size_t{1} << 18;

void write_all(int fd, const std::byte* from, std::size_t size, const std::string& name) {
  while (size > 0) {
    const ssize_t written = ::write(fd, from, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw FileError(errno, name);
    }
    from += written;
    size -= static_cast<std::size_t>(written);
  }
}

std::string folder_of(const std::string& path) {
  const std::filesystem::path target(path);
  return target.has_parent_path() ? target.parent_path().string() : ".";
}

std::string temporary_for(const std::string& path, const std::string& folder) {
  static std::atomic<unsigned> serial{0};
  const std::string unique = std::to_string(::getpid()) + "-" + std::to_string(serial.fetch_add(1));
  return folder + "/." + std::filesystem::path(path).filename().string() + "." + unique + ".tmp";
}

}  // namespace

FileDescriptor::FileDescriptor(const std::string& path, int flags, unsigned mode)
    : fd_(::open(path.c_str(), flags, static_cast<mode_t>(mode))) {
  if (fd_ < 0) throw FileError(errno, path);
}

FileDescriptor::~FileDescriptor() {
  ::close(fd_);
}

void Appender::append(const void* data, std::size_t size) {
  if (buffer_.size() + size > kWriteBuffer) flush();
  const auto* from = static_cast<const std::byte*>(data);
  buffer_.insert(buffer_.end(), from, from + size);
}

void Appender::flush() {
  write_all(fd_, buffer_.data(), buffer_.size(), name_);
  flushed_ += buffer_.size();
  buffer_.clear();
}

AtomicFile::AtomicFile(const std::string& path) try
    : path_(path),
      folder_(folder_of(path)),
      temporary_(temporary_for(path, folder_)),
      file_(temporary_, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644),
      appender_(file_.get(), path) {
} catch (const FileError& error) {
  throw FileError(error.code(), path);
}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write_front(std::span<const std::byte> bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    const ssize_t written = ::pwrite(file_.get(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (written < 0 && errno != EINTR) throw FileError(errno, path_);
    if (written > 0) at += static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  flush();
  if (::fsync(file_.get()) != 0) throw FileError(errno, path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw FileError(errno, path_);
  committed_ = true;
  const FileDescriptor directory(folder_, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (::fsync(directory.get()) != 0) throw FileError(errno, folder_);
}

ScratchFile::ScratchFile(const std::string& folder)
    : folder_(folder), file_(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), appender_(file_.get(), folder) {}

void ScratchFile::Reader::read(void* to, std::size_t size) {
  auto* target = static_cast<std::byte*>(to);
  while (size > 0) {
    if (at_ == buffer_.size()) refill();
    const std::size_t part = std::min(size, buffer_.size() - at_);
    std::memcpy(target, buffer_.data() + at_, part);
    at_ += part;
    target += part;
    size -= part;
  }
}

void ScratchFile::Reader::refill() {
  buffer_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kReadBuffer, end_ - position_)));
  at_ = 0;
  ssize_t got = 0;
  do {
    got = ::pread(file_->file_.get(), buffer_.data(), buffer_.size(), static_cast<off_t>(position_));
  } while (got < 0 && errno == EINTR);
  if (got <= 0) throw FileError(got < 0 ? errno : EIO, file_->folder_);
  buffer_.resize(static_cast<std::size_t>(got));
  position_ += static_cast<std::uint64_t>(got);
}

}  // namespace gr2
