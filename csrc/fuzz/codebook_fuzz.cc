// Codebook files: whatever the bytes, the reader refuses them or answers without reading outside of them.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string_view>

#include "core/codebook.h"
#include "core/codebook_builder.h"
#include "core/codebook_format.h"
#include "core/errors.h"
#include "fuzz/file_input.h"

namespace gr2::fuzz {
namespace {

using codebook_format::Header;

constexpr std::string_view kNames[] = {"", "a", "a name", "exactly 15 long", "one that is too long for its slot"};

// Three of four inputs get checksums that fit, so that the checks behind them are reached.
void seal(Bytes& bytes) {
  if (bytes.size() < sizeof(Header) || bytes.back() % 4 == 0) return;
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  header.body_checksum = hash_bytes(bytes.data() + sizeof header, bytes.size() - sizeof header);
  header.header_checksum = hash_bytes(&header, codebook_format::kCheckedHeaderBytes);
  std::memcpy(bytes.data(), &header, sizeof header);
}

std::uint64_t use(const Codebook& codebook) {
  constexpr std::int64_t kIds[] = {0, 1, -1, 31, 62, std::int64_t{1} << 62};
  std::vector<std::uint16_t> codes(codebook.levels() * std::size(kIds));
  std::vector<std::uint8_t> known(std::size(kIds));
  std::uint64_t sum = codebook.size();
  if (codebook.has_string_ids()) {
    const std::span<const std::string_view> names(kNames);
    codebook.lookup(names, std::span(codes).first(names.size() * codebook.levels()),
                    std::span(known).first(names.size()));
  } else {
    codebook.lookup(std::span<const std::int64_t>(kIds), codes, known);
  }
  for (const std::uint64_t slot : codebook.items(codes).slots) {
    if (codebook.has_string_ids()) {
      for (const char letter : codebook.string_id(slot)) sum += static_cast<unsigned char>(letter);
    } else {
      sum += static_cast<std::uint64_t>(codebook.int64_id(slot));
    }
  }
  return sum;
}

}  // namespace

std::vector<Bytes> seeds() {
  const std::filesystem::path folder = std::filesystem::temp_directory_path();
  std::vector<Bytes> made;
  for (const std::uint32_t levels : {1u, 3u, 4u, 8u}) {
    for (const bool strings : {false, true}) {
      const std::string path = (folder / ("gr2-fuzz-" + std::to_string(::getpid()))).string();
      CodebookBuilder builder({path, levels, 256, strings, std::size_t{1} << 16, {}});
      std::vector<std::int64_t> ids;
      for (std::size_t i = 0; i < std::size(kNames); ++i) ids.push_back(static_cast<std::int64_t>(31 * i));
      const std::vector<std::uint16_t> codes(levels * ids.size(), 7);
      if (strings) {
        builder.add(std::span<const std::string_view>(kNames), codes);
      } else {
        builder.add(std::span<const std::int64_t>(ids), codes);
      }
      builder.finish();
      made.push_back(read_file(path));
      std::filesystem::remove(path);
    }
  }
  return made;
}

}  // namespace gr2::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  gr2::fuzz::Bytes bytes(data, data + size);
  gr2::fuzz::seal(bytes);
  const gr2::fuzz::MemoryFile file(bytes.data(), bytes.size());
  try {
    const gr2::Codebook codebook(file.path());
    volatile std::uint64_t sink = gr2::fuzz::use(codebook);
    (void)sink;
  } catch (const gr2::FormatError&) {
  }
  return 0;
}
