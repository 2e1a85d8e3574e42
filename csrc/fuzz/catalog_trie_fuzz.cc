// Catalogue files: whatever the bytes, the reader refuses them or searches without reading outside of them.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <optional>
#include <vector>

#include "core/catalog_trie.h"
#include "core/catalog_trie_format.h"
#include "core/errors.h"
#include "core/hash.h"
#include "core/item_filter.h"
#include "core/retrieval.h"
#include "fuzz/file_input.h"

namespace gr2::fuzz {
namespace {

using catalog_trie_format::Header;

constexpr std::size_t kBeams = 5, kBatch = 3;

// Three of four inputs get checksums that fit, so that the checks behind them are reached.
void seal(Bytes& bytes) {
  if (bytes.size() < sizeof(Header) || bytes.back() % 4 == 3) return;
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  header.body_checksum = hash_bytes(bytes.data() + sizeof header, bytes.size() - sizeof header);
  header.header_checksum = hash_bytes(&header, catalog_trie_format::kCheckedHeaderBytes);
  std::memcpy(bytes.data(), &header, sizeof header);
}

std::int64_t search(const std::shared_ptr<const CatalogTrie>& trie) {
  // A filter asks the file which node every one of its items is under.
  std::vector<std::int64_t> some;
  for (std::uint64_t row = 0; row < trie->size(); row += 2) some.push_back(static_cast<std::int64_t>(row));
  Retriever retriever(kBeams, Normalization::kLocal);
  retriever.start(trie, kBatch,
                  {nullptr, std::make_shared<const ItemFilter>(trie, std::nullopt, some),
                   std::make_shared<const ItemFilter>(trie, some, std::span<const std::int64_t>())});
  std::vector<std::int64_t> parents(kBatch * kBeams), codes(parents), items(parents);
  std::vector<float> scores(parents.size());
  while (retriever.level() < trie->levels()) {
    const std::size_t rows = kBatch * retriever.width();
    std::vector<float> logits(rows * trie->level_size());
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 37 % 101) / 10.0f;
    retriever.step({logits, kBatch, retriever.width(), trie->level_size()}, parents, codes, scores);
  }
  retriever.finish(items, scores);
  std::int64_t sum = 0;
  for (const std::int64_t item : items) sum += item;
  return sum;
}

}  // namespace

std::vector<Bytes> seeds() {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("gr2-fuzz-" + std::to_string(::getpid()))).string();
  std::vector<Bytes> made;
  for (const std::size_t levels : {1u, 3u, 4u}) {
    for (const std::uint32_t level_size : {4u, 300u}) {
      std::vector<std::uint16_t> codes;
      for (std::size_t item = 0; item < 40; ++item) {
        for (std::size_t level = 0; level < levels; ++level)
          codes.push_back(static_cast<std::uint16_t>(level + 1 < levels ? item / 14 : item / 10));
      }
      CatalogTrie::build(codes, levels, level_size)->save(path);
      made.push_back(read_file(path));
    }
  }
  std::filesystem::remove(path);
  return made;
}

}  // namespace gr2::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  gr2::fuzz::Bytes bytes(data, data + size);
  gr2::fuzz::seal(bytes);
  const gr2::fuzz::MemoryFile file(bytes.data(), bytes.size());
  try {
    volatile std::int64_t sink = gr2::fuzz::search(gr2::CatalogTrie::open(file.path()));
    (void)sink;
  } catch (const gr2::FormatError&) {
  }
  return 0;
}
