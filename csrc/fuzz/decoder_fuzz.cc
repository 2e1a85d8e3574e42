// What a request and a model give to the decoders: bytes as codes, known flags, item sets, logits (any bit pattern) and
// choices.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "core/candidate_trie.h"
#include "core/catalog_trie.h"
#include "core/generation.h"
#include "core/item_filter.h"
#include "core/retrieval.h"
#include "core/sampling.h"
#include "fuzz/driver.h"

namespace gr2::fuzz {
namespace {

// Reads numbers off the input; zeros after its end.
class Source {
 public:
  Source(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  template <typename Number>
  Number take() {
    Number number{};
    const std::size_t part = std::min(sizeof number, size_ - at_);
    if (part > 0) std::memcpy(&number, data_ + at_, part);
    at_ += part;
    return number;
  }
  bool done() const { return at_ == size_; }

 private:
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
};

void require(bool holds) {
  if (!holds) std::abort();
}

// Mostly finite: a byte a logit, or four bytes as they are.
std::vector<float> logits(Source& source, std::size_t count) {
  std::vector<float> made(count);
  const bool raw = source.take<std::uint8_t>() % 8 == 0;
  for (float& value : made) value = raw ? source.take<float>() : static_cast<float>(source.take<std::int8_t>()) / 8.0f;
  return made;
}

void check_permutation(std::span<const std::int32_t> order) {
  std::vector<std::int32_t> sorted(order.begin(), order.end());
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size(); ++i) require(sorted[i] == static_cast<std::int32_t>(i));
}

void generate(const std::shared_ptr<const CandidateTrie>& trie, Source& source) {
  GenerationOptions options;
  options.choice = source.take<std::uint8_t>() % 2 == 0 ? Choice::kGreedy : Choice::kSample;
  options.seed = source.take<std::uint64_t>();
  options.top_n = source.take<std::uint16_t>();
  CandidateDecoder decoder(trie, options);
  while (!decoder.done()) {
    const std::vector<float> row = logits(source, trie->level_size());
    if (source.take<std::uint8_t>() % 4 == 0) {
      decoder.accept(source.take<std::uint16_t>(), row);
    } else {
      decoder.push(row);
    }
  }
  std::vector<std::int32_t> order(trie->size());
  decoder.ranking(logits(source, trie->size()), order);
  check_permutation(order);
}

template <typename Action>
void refused(Action&& action) {
  try {
    action();
  } catch (const std::invalid_argument&) {
  }
}

std::vector<std::int64_t> rows(Source& source) {
  std::vector<std::int64_t> made(source.take<std::uint8_t>() % 8);
  for (std::int64_t& row : made) row = source.take<std::int8_t>() % 45;
  return made;
}

void retrieve(const std::vector<std::uint16_t>& codes, std::size_t levels, std::uint32_t level_size, Source& source) {
  std::vector<std::vector<std::uint16_t>> sorted;
  for (auto row = codes.begin(); row != codes.end(); row += static_cast<std::ptrdiff_t>(levels))
    sorted.emplace_back(row, row + static_cast<std::ptrdiff_t>(levels));
  if (source.take<std::uint8_t>() % 8 != 0) std::sort(sorted.begin(), sorted.end());
  std::vector<std::uint16_t> flat;
  for (const auto& row : sorted) flat.insert(flat.end(), row.begin(), row.end());
  const auto trie = CatalogTrie::build(flat, levels, level_size);
  std::optional<std::span<const std::int64_t>> allow;
  const std::vector<std::int64_t> allowed = rows(source), denied = rows(source);
  if (source.take<std::uint8_t>() % 2 == 0) allow = allowed;
  Retriever retriever(source.take<std::uint8_t>() % 40,
                      source.take<std::uint8_t>() % 2 == 0 ? Normalization::kRaw : Normalization::kLocal);
  retriever.start(trie, 1, {std::make_shared<const ItemFilter>(trie, allow, denied)});
  std::vector<std::int64_t> parents(retriever.beams()), chosen(parents), items(parents);
  std::vector<float> scores(parents.size());
  while (retriever.level() < levels) {
    const std::size_t width = retriever.width();
    retriever.step({logits(source, width * level_size), 1, width, level_size}, parents, chosen, scores);
  }
  retriever.finish(items, scores);
  for (const std::int64_t item : items) {
    require(item >= -1 && item < static_cast<std::int64_t>(sorted.size()));
    require(item == -1 || std::find(denied.begin(), denied.end(), item) == denied.end());
    require(item == -1 || !allow || std::find(allowed.begin(), allowed.end(), item) != allowed.end());
  }
}

void use(Source& source) {
  // A wide node has more than 128 children, whose best ones are found in another way.
  const bool wide = source.take<std::uint8_t>() % 2 != 0;
  const std::size_t count = source.take<std::uint16_t>() % (wide ? 400 : 40);
  const std::size_t levels = source.take<std::uint8_t>() % (wide ? 3 : 10);
  const std::uint32_t level_size = source.take<std::uint8_t>() % 20 * (wide ? 16 : 1);
  std::vector<std::uint16_t> codes(count * levels);
  for (std::uint16_t& code : codes) {
    if (wide) {
      code = source.take<std::uint16_t>() % 304;
    } else {
      code = source.take<std::uint8_t>() % 21;
    }
  }
  std::vector<std::uint8_t> known(count);
  for (std::uint8_t& flag : known) flag = source.take<std::uint8_t>() % 4 != 0;
  const auto trie = std::make_shared<const CandidateTrie>(codes, known, levels, level_size);
  refused([&] { retrieve(codes, levels, level_size, source); });
  const std::vector<float> all = logits(source, trie->node_count() * level_size), prior = logits(source, count);
  std::vector<std::int32_t> order(count);
  std::vector<float> scores(count);
  for (const Normalization normalization : {Normalization::kRaw, Normalization::kLocal}) {
    refused([&] {
      trie->score(all, prior, normalization, order, scores);
      check_permutation(order);
    });
  }
  refused([&] {
    sample_paths(*trie, prior, source.take<std::uint64_t>(), source.take<std::uint8_t>() / 64.0, order, scores);
    check_permutation(order);
  });
  generate(trie, source);
}

}  // namespace

std::vector<Bytes> seeds() {
  std::vector<Bytes> made;
  for (std::uint8_t levels = 1; levels < 5; ++levels) {
    // Codes are below 21 and the level has 19, so that a part of the inputs is refused for its codes and most are not.
    Bytes bytes = {0, 30, 0, levels, 19};
    for (std::size_t i = 0; i < 12000; ++i) bytes.push_back(static_cast<std::uint8_t>(1 + i * 7 % 18));
    made.push_back(bytes);
  }
  // 300 items, more than 128 of them distinct, with codes below the level's 304. Item rows must not be negative.
  for (std::size_t i = 1; i < 4; ++i) {
    Bytes bytes = {1, 44, 1, 1, 19};
    for (std::size_t j = i; j < 12000; ++j) bytes.push_back(static_cast<std::uint8_t>(j * j * 40503 >> 7 & 127));
    made.push_back(bytes);
  }
  return made;
}

}  // namespace gr2::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  gr2::fuzz::Source source(data, size);
  try {
    gr2::fuzz::use(source);
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
