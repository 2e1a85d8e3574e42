#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

#include "core/atomic_file.h"
#include "core/errors.h"

namespace gr2 {

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

}  // namespace gr2
