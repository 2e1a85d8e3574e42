#include <algorithm>
#include <cassert>

#include "core/student.h"

namespace gr2 {

bool Student::made(const EncodedHistory& encoded) const {
  const std::size_t count = blocks_.size() * header_.heads, columns = encoded.columns;
  return encoded.keys.size() == count * head_width() * padded(columns) && encoded.query.size() == row() &&
         encoded.values.size() == count * columns * padded(head_width()) && encoded.root.size() == logits_[0].width();
}

std::size_t Student::item_parts(const std::uint16_t* codes, std::int64_t item, const float** parts) const {
  std::size_t count = 0;
  for (std::size_t level = 0; level < header_.levels; ++level) {
    parts[count++] = head_codes_.data() + (level * header_.level_size + codes[level]) * header_.dim;
  }
  if (static_cast<std::uint64_t>(item) < header_.items) {
    parts[count++] = head_memory_.data() + static_cast<std::size_t>(item) * header_.dim;
  }
  return count;
}

void Student::encode_query(std::span<const std::uint16_t> codes, std::span<const std::int64_t> rows,
                           StudentBuffers& buffers, EncodedHistory& encoded) const {
  const std::size_t d = header_.dim, hidden = head_up_.width();
  std::vector<float> pooled(row()), normed(row());
  const float* parts[kMostParts];
  std::copy(head_begin_.begin(), head_begin_.end(), pooled.begin());
  for (std::size_t t = 0; t < rows.size(); ++t) {
    const float* const recency = recency_.data() + (header_.max_history - rows.size() + t) * d;
    const std::size_t count = item_parts(codes.data() + t * header_.levels, rows[t], parts);
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t k = 0; k < d; ++k) pooled[k] += parts[i][k] * recency[k];
    }
  }
  norm_pool_.apply(pooled.data(), 1, normed.data());
  grow(buffers.hidden, hidden);
  head_up_.apply(normed.data(), row(), 1, buffers.hidden.data(), hidden, buffers.rounded);
  simd().layers.gelu(buffers.hidden.data(), hidden);
  head_down_.apply(buffers.hidden.data(), hidden, 1, normed.data(), row(), buffers.rounded, true);
  encoded.query.resize(row());
  norm_query_.apply(normed.data(), 1, encoded.query.data());
}

// (C, row) of the begin token, the history's tokens and the root.
std::vector<float> Student::embed(std::span<const std::uint16_t> codes) const {
  const std::size_t d = header_.dim, levels = header_.levels, events = codes.size() / levels;
  std::vector<float> x((events * tokens() + 2) * row());
  std::copy(begin_.begin(), begin_.end(), x.begin());
  for (std::size_t t = 0; t < events; ++t) {
    float* const own = x.data() + (1 + t * tokens()) * row();
    const float* const position = position_.data() + (header_.max_history - events + t) * d;
    for (std::size_t level = 0; level < levels; ++level) {
      float* const into = own + level % tokens() * row();
      const float* const code = items_.data() + (level * header_.level_size + codes[t * levels + level]) * d;
      for (std::size_t k = 0; k < d; ++k) into[k] += code[k];
    }
    for (std::size_t token = 0; token < tokens(); ++token) {
      for (std::size_t k = 0; k < d; ++k) own[token * row() + k] += position[k];
    }
  }
  std::copy(root_.begin(), root_.end(), x.end() - static_cast<std::ptrdiff_t>(row()));
  return x;
}

std::shared_ptr<const EncodedHistory> Student::encode(std::span<const std::uint16_t> codes,
                                                      std::span<const std::int64_t> rows,
                                                      StudentBuffers& buffers) const {
  assert(codes.size() == rows.size() * header_.levels && rows.size() <= header_.max_history);
  auto encoded = std::make_shared<EncodedHistory>();
  const std::size_t columns = encoded->columns = rows.size() * tokens() + 2;
  encode_query(codes, rows, buffers, *encoded);
  std::vector<float> x = embed(codes);
  grow(buffers.normed, columns * row());
  grow(buffers.key_value, columns * pair());
  grow(buffers.query, columns * row());
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    // Of the last block the root's row alone is wanted.
    const bool last = layer + 1 == blocks_.size();
    const std::size_t first = last ? columns - 1 : 0, count = columns - first;
    block.norm_attention.apply(x.data(), columns, buffers.normed.data());
    block.key_value.apply(buffers.normed.data(), row(), columns, buffers.key_value.data(), pair(), buffers.rounded);
    keep(layer, buffers.key_value.data(), *encoded);
    block.query.apply(buffers.normed.data() + first * row(), row(), count, buffers.query.data(), row(),
                      buffers.rounded);
    attend(*encoded, layer, {buffers.query.data(), count, nullptr, nullptr, !last}, buffers);
    finish(block, x.data() + first * row(), count, buffers);
  }
  norm_.apply(x.data() + (columns - 1) * row(), 1, buffers.normed.data());
  encoded->root.resize(logits_[0].width());
  logits_[0].apply(buffers.normed.data(), row(), 1, encoded->root.data(), encoded->root.size(), buffers.rounded);
  return encoded;
}

// Appends the layer's keys, as (width, C) a head, and its values, as (C, width) a head.
void Student::keep(std::size_t layer, const float* key_value, EncodedHistory& encoded) const {
  const std::size_t heads = header_.heads, width = head_width(), columns = encoded.columns;
  const std::size_t keys = width * padded(columns), values = columns * padded(width);
  encoded.keys.resize((layer + 1) * heads * keys);
  encoded.values.resize((layer + 1) * heads * values);
  for (std::size_t head = 0; head < heads; ++head) {
    const float* const own = key_value + head * width;
    const std::size_t place = layer * heads + head;
    pack_panels(own, 1, pair(), width, columns, encoded.keys.data() + place * keys);
    pack_panels(own + header_.dim, pair(), 1, columns, width, encoded.values.data() + place * values);
  }
}

}  // namespace gr2
