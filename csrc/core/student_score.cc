#include <algorithm>

#include "core/student.h"

namespace gr2 {

void Student::score(const EncodedHistory& encoded, const CandidateTrie& trie, const StudentSlate& slate,
                    StudentBuffers& buffers, std::span<float> logits, std::span<float> prior) const {
  const std::size_t rows = trie.node_count() - 1, most = header_.levels - 1;
  buffers.tokens.resize(rows);
  buffers.ancestors.resize(rows * most);
  trie.fill_tokens(buffers.tokens);
  trie.fill_ancestors(buffers.ancestors);
  grow(buffers.x, rows * row());
  grow(buffers.normed, rows * row());
  for (std::size_t i = 0; i < rows; ++i) {
    std::copy_n(node_rows_.data() + static_cast<std::size_t>(buffers.tokens[i]) * row(), row(),
                buffers.x.data() + i * row());
  }
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) score_block(encoded, layer, rows, buffers);
  std::copy_n(encoded.root.data(), header_.level_size, logits.data());
  project(trie, buffers, logits.subspan(header_.level_size));
  fill_prior(encoded, slate, buffers, prior);
}

void Student::score_block(const EncodedHistory& encoded, std::size_t layer, std::size_t rows,
                          StudentBuffers& buffers) const {
  const Block& block = blocks_[layer];
  const std::size_t most = header_.levels - 1;
  const float* key_value = node_key_values_.data();
  std::vector<std::int64_t>& near = layer == 0 ? buffers.own : buffers.ancestors;
  if (layer == 0) {
    near.resize(rows * most);
    for (std::size_t i = 0; i < near.size(); ++i) {
      const std::int64_t above = buffers.ancestors[i];
      near[i] = above < 0 ? -1 : buffers.tokens[static_cast<std::size_t>(above)];
    }
  } else {
    grow(buffers.key_value, rows * pair());
    block.norm_attention.apply(buffers.x.data(), rows, buffers.normed.data());
    block.key_value.apply(buffers.normed.data(), row(), rows, buffers.key_value.data(), pair(), buffers.rounded);
    key_value = buffers.key_value.data();
  }
  grow(buffers.query, kTogether * row());
  for (std::size_t first = 0; first < rows; first += kTogether) {
    const std::size_t count = std::min(kTogether, rows - first);
    if (layer == 0) {
      for (std::size_t i = 0; i < count; ++i) {
        std::copy_n(node_queries_.data() + static_cast<std::size_t>(buffers.tokens[first + i]) * row(), row(),
                    buffers.query.data() + i * row());
      }
    } else {
      block.query.apply(buffers.normed.data() + first * row(), row(), count, buffers.query.data(), row(),
                        buffers.rounded);
    }
    attend(encoded, layer, {buffers.query.data(), count, near.data() + first * most, key_value, false}, buffers);
    finish(block, buffers.x.data() + first * row(), count, buffers);
  }
}

void Student::project(const CandidateTrie& trie, StudentBuffers& buffers, std::span<float> logits) const {
  const std::size_t size = header_.level_size;
  std::size_t first = 0;
  norm_.apply(buffers.x.data(), trie.node_count() - 1, buffers.normed.data());
  for (std::size_t depth = 1; depth < header_.levels; ++depth) {
    const std::size_t count = trie.nodes(depth).size(), width = logits_[depth].width();
    const float* const states = buffers.normed.data() + first * row();
    float* const into = logits.data() + first * size;
    if (width == size) {
      logits_[depth].apply(states, row(), count, into, size, buffers.rounded);
    } else {
      grow(buffers.logits, count * width);
      logits_[depth].apply(states, row(), count, buffers.logits.data(), width, buffers.rounded);
      for (std::size_t i = 0; i < count; ++i) std::copy_n(buffers.logits.data() + i * width, size, into + i * size);
    }
    first += count;
  }
}

void Student::fill_prior(const EncodedHistory& encoded, const StudentSlate& slate, StudentBuffers& buffers,
                         std::span<float> prior) const {
  const std::size_t count = prior.size(), all = header_.features, hidden = prior_up_.width();
  const std::size_t columns = count == 0 ? 0 : slate.features.size() / count;
  grow(buffers.features, count * all);
  grow(buffers.hidden, count * hidden);
  for (std::size_t i = 0; i < count; ++i) {
    float* const own = buffers.features.data() + i * all;
    std::copy_n(slate.features.data() + i * columns, columns, own);
    std::copy_n(slate.known.data() + i * (all - columns), all - columns, own + columns);
  }
  prior_up_.apply(buffers.features.data(), all, count, buffers.hidden.data(), hidden, buffers.rounded);
  simd().layers.gelu(buffers.hidden.data(), count * hidden);
  const auto dot = simd().dot;
  const float* parts[kMostParts];
  for (std::size_t i = 0; i < count; ++i) {
    prior[i] = dot(buffers.features.data() + i * all, linear_.data(), all) +
               dot(buffers.hidden.data() + i * hidden, prior_down_.data(), header_.hidden);
    const std::size_t found = item_parts(slate.codes.data() + i * header_.levels, slate.rows[i], parts);
    for (std::size_t j = 0; j < found; ++j) prior[i] += dot(parts[j], encoded.query.data(), header_.dim);
  }
}

}  // namespace gr2
