#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>

#include "core/errors.h"

namespace gr2 {
namespace {

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags, mode_t mode = 0) : fd_(::open(path.c_str(), flags, mode)) {
    if (fd_ < 0) throw FileError(errno, path);
  }
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

void write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      throw FileError(errno, path);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void sync(int fd, const std::string& path) {
  if (::fsync(fd) != 0) throw FileError(errno, path);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  // Opening a pipe without a writer would block; the flag means nothing to a regular file.
  const FileDescriptor file(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) throw FileError(errno, path);
  if (S_ISDIR(status.st_mode)) throw FileError(EISDIR, path);
  if (!S_ISREG(status.st_mode)) throw FileError(EINVAL, path);
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (address == MAP_FAILED) throw FileError(errno, path);
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void write_file_atomic(const std::string& path, std::span<const std::byte> bytes) {
  static std::atomic<unsigned> serial{0};
  const std::filesystem::path target(path);
  const std::string folder = target.has_parent_path() ? target.parent_path().string() : ".";
  const std::string unique = std::to_string(::getpid()) + "-" + std::to_string(serial.fetch_add(1));
  const std::string temporary = folder + "/." + target.filename().string() + "." + unique + ".tmp";
  try {
    const FileDescriptor file(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    write_all(file.get(), bytes, path);
    sync(file.get(), path);
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw FileError(errno, path);
  } catch (const FileError& error) {
    ::unlink(temporary.c_str());
    throw FileError(error.code(), path);
  }
  const FileDescriptor directory(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  sync(directory.get(), folder);
}

}  // namespace gr2
