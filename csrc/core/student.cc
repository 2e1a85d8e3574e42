#include "core/student.h"

#include <algorithm>
#include <cstring>

#include "core/array_reader.h"
#include "core/errors.h"

namespace gr2 {
namespace {

// Values that buffers keep from one request to the next.
constexpr std::size_t kKept = std::size_t{1} << 20;

void copy_rows(std::span<const float> values, std::size_t width, std::size_t stride, float* into) {
  for (std::size_t start = 0; start < values.size(); start += width, into += stride) {
    std::copy_n(values.data() + start, width, into);
  }
}

}  // namespace

void StudentBuffers::trim() {
  for (std::vector<float>* const each :
       {&x, &normed, &key_value, &query, &scores, &shares, &mixed, &states, &hidden, &features, &logits}) {
    if (each->capacity() > kKept) std::vector<float>().swap(*each);
  }
}

Student::Student(const std::string& path, Arithmetic arithmetic, Encoding encoding) : file_(path), encoding_(encoding) {
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < sizeof header_) throw FormatError(path, "not a weights file: it is too short");
  std::memcpy(&header_, bytes.data(), sizeof header_);
  if (std::memcmp(header_.magic, StudentHeader::kMagic, sizeof header_.magic) != 0 ||
      header_.version != StudentHeader::kVersion) {
    throw FormatError(path, "not a weights file of version " + std::to_string(StudentHeader::kVersion));
  }
  const auto within = [](std::uint64_t value, std::uint64_t most) { return value >= 1 && value <= most; };
  if (!within(header_.levels, CandidateTrie::kMaxLevels) || !within(header_.level_size, 65536) ||
      !within(header_.dim, 65536) || !within(header_.layers, 1024) || !within(header_.heads, header_.dim) ||
      header_.dim % header_.heads != 0 || !within(header_.max_history * tokens(), 4096) ||
      !within(header_.features, 65536) || !within(header_.hidden, 65536) ||
      !within(header_.items, std::uint64_t{1} << 31)) {
    throw FormatError(path, "a size is out of range");
  }
  if (!(header_.epsilon > 0.0f && header_.epsilon < 1.0f)) throw FormatError(path, "epsilon is not in (0, 1)");
  ArrayReader reader(path, "weights", bytes, sizeof header_);
  read(reader, arithmetic);
  reader.finish();
  build_tables();
}

void Student::read(ArrayReader& reader, Arithmetic arithmetic) {
  const std::size_t d = header_.dim, levels = header_.levels, size = header_.level_size, longest = header_.max_history;
  const auto norm = [&] {
    const auto weight = reader.take<float>(d, 1), bias = reader.take<float>(d, 1);
    return Norm(weight, bias, header_.epsilon);
  };
  const auto dense = [&](std::size_t in, std::size_t out, Arithmetic how) {
    const auto weight = reader.take<float>(out, in), bias = reader.take<float>(out, 1);
    return Dense(weight, bias, in, how);
  };
  items_ = reader.take<float>(levels * size, d);
  position_ = reader.take<float>(longest, d);
  begin_ = reader.take<float>(d, 1);
  root_ = reader.take<float>(d, 1);
  nodes_ = reader.take<float>((levels - 1) * size, d);
  blocks_.resize(header_.layers);
  for (Block& block : blocks_) {
    block.norm_attention = norm();
    // A table has the first block's, which are of few rows.
    const bool first = &block == blocks_.data();
    block.query = dense(d, d, first ? Arithmetic::kFloat : arithmetic);
    block.key_value = dense(d, 2 * d, first ? Arithmetic::kFloat : arithmetic);
    block.out = dense(d, d, arithmetic);
    block.norm_mlp = norm();
    block.up = dense(d, 4 * d, arithmetic);
    block.down = dense(4 * d, d, arithmetic);
  }
  norm_ = norm();
  for (std::size_t depth = 0; depth < levels; ++depth) {
    logits_.emplace_back(reader.take<float>(size, d), std::span<const float>(), d, arithmetic);
  }
  linear_ = reader.take<float>(header_.features, 1);
  prior_up_ = dense(header_.features, header_.hidden, Arithmetic::kFloat);
  prior_down_ = reader.take<float>(header_.hidden, 1);
  head_codes_ = reader.take<float>(levels * size, d);
  head_memory_ = reader.take<float>(header_.items, d);
  recency_ = reader.take<float>(longest, d);
  head_begin_ = reader.take<float>(d, 1);
  norm_pool_ = norm();
  head_up_ = dense(d, 4 * d, Arithmetic::kFloat);
  head_down_ = dense(4 * d, d, Arithmetic::kFloat);
  norm_query_ = norm();
}

void Student::build_tables() {
  const std::size_t count = (header_.levels - 1) * header_.level_size;
  node_rows_.resize(count * row());
  copy_rows(nodes_, header_.dim, row(), node_rows_.data());
  std::vector<float> normed(count * row());
  blocks_[0].norm_attention.apply(node_rows_.data(), count, normed.data());
  RoundedRows unused;
  node_queries_.resize(count * row());
  node_key_values_.resize(count * pair());
  blocks_[0].query.apply(normed.data(), row(), count, node_queries_.data(), row(), unused);
  blocks_[0].key_value.apply(normed.data(), row(), count, node_key_values_.data(), pair(), unused);
}

// The scores of what is seen beside the history, or, with `values`, the sums of values by them.
void Student::see_near(const Sight& sight, std::size_t head, std::size_t columns, StudentBuffers& buffers,
                       bool values) const {
  const std::size_t width = head_width(), most = header_.levels - 1, stride = score_row(columns);
  for (std::size_t i = 0; i < sight.rows; ++i) {
    float* const near = buffers.scores.data() + i * stride + columns;
    float* const mixed = buffers.mixed.data() + i * mixed_row() + head * width;
    const float* const query = sight.query + i * row() + head * width;
    for (std::size_t j = 0; j < most && sight.near[i * most + j] >= 0; ++j) {
      const float* const key =
          sight.key_value + static_cast<std::size_t>(sight.near[i * most + j]) * pair() + head * width;
      if (!values) {
        near[j] = simd().dot(query, key, width);
      } else {
        const float weight = near[j];
        for (std::size_t k = 0; k < width; ++k) mixed[k] += weight * key[header_.dim + k];
      }
    }
  }
}

// Fills `mixed` with what the rows see, head by head.
void Student::attend(const EncodedHistory& encoded, std::size_t layer, const Sight& sight,
                     StudentBuffers& buffers) const {
  const LayerKernels& kernels = simd().layers;
  const std::size_t heads = header_.heads, width = head_width(), columns = encoded.columns, most = header_.levels - 1;
  const std::size_t stride = score_row(columns), keys = width * padded(columns), values = columns * padded(width);
  grow(buffers.scores, sight.rows * stride);
  grow(buffers.mixed, sight.rows * mixed_row());
  float* const scores = buffers.scores.data();
  for (std::size_t head = 0; head < heads; ++head) {
    const std::size_t place = layer * heads + head;
    float* const mixed = buffers.mixed.data() + head * width;
    kernels.multiply({sight.query + head * width, row(), sight.rows, width, encoded.keys.data() + place * keys, nullptr,
                      padded(columns), scores, stride});
    if (sight.near != nullptr) see_near(sight, head, columns, buffers, false);
    std::vector<float>& shares = buffers.shares;
    grow(shares, sight.rows);
    for (std::size_t i = 0; i < sight.rows; ++i) {
      std::size_t seen = sight.causal ? i + 1 : columns;
      for (std::size_t j = 0; sight.near != nullptr && j < most && sight.near[i * most + j] >= 0; ++j) ++seen;
      shares[i] = kernels.exponentiate(scores + i * stride, seen);
      if (sight.causal) std::fill(scores + i * stride + seen, scores + i * stride + columns, 0.0f);
    }
    kernels.multiply({scores, stride, sight.rows, columns, encoded.values.data() + place * values, nullptr,
                      padded(width), mixed, mixed_row()});
    if (sight.near != nullptr) see_near(sight, head, columns, buffers, true);
    for (std::size_t i = 0; i < sight.rows; ++i) {
      for (std::size_t k = 0; k < width; ++k) mixed[i * mixed_row() + k] *= shares[i];
    }
  }
}

// The rest of a block, of which `attend` has filled `mixed`, added to the rows of `x`.
void Student::finish(const Block& block, float* x, std::size_t rows, StudentBuffers& buffers) const {
  const std::size_t hidden = block.up.width();
  block.out.apply(buffers.mixed.data(), mixed_row(), rows, x, row(), buffers.rounded, true);
  grow(buffers.hidden, std::min(rows, kTogether) * hidden);
  grow(buffers.states, kTogether * row());
  for (std::size_t first = 0; first < rows; first += kTogether) {
    const std::size_t count = std::min(kTogether, rows - first);
    float* const own = x + first * row();
    block.norm_mlp.apply(own, count, buffers.states.data());
    block.up.apply(buffers.states.data(), row(), count, buffers.hidden.data(), hidden, buffers.rounded);
    simd().layers.gelu(buffers.hidden.data(), count * hidden);
    block.down.apply(buffers.hidden.data(), hidden, count, own, row(), buffers.rounded, true);
  }
}

}  // namespace gr2
