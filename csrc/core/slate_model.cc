#include "core/slate_model.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/process_seed.h"

namespace gr2 {
namespace {

// Values that buffers keep from one request to the next.
constexpr std::size_t kKeptValues = std::size_t{1} << 20;

template <typename T>
void trim_one(std::vector<T>& values) {
  if (values.capacity() > kKeptValues) std::vector<T>().swap(values);
}

// Never null, which onnxruntime would take for no memory at all, however empty the tensor.
template <typename T>
void* memory_of(std::vector<T>& values) {
  if (values.capacity() == 0) values.reserve(1);
  return values.data();
}

void widen(std::span<const std::uint16_t> codes, std::vector<std::int64_t>& into) {
  into.assign(codes.begin(), codes.end());
}

}  // namespace

void ModelBuffers::trim() {
  trim_one(mask);
  trim_one(logits);
  student.trim();
}

SlateModel::SlateModel(std::shared_ptr<const OnnxRuntime> runtime, const Graphs& graphs, const ModelSpec& spec,
                       int threads, std::size_t cache_bytes)
    : spec_(spec), memory_(graphs.memory), student_(graphs.student), cache_(cache_bytes, process_seed()) {
  if (student_ != nullptr) return;
  scorer_ = std::make_unique<const OnnxSession>(runtime, graphs.scorer, threads);
  if (!graphs.encoder.empty()) {
    encoder_ = std::make_unique<const OnnxSession>(std::move(runtime), graphs.encoder, threads);
    for (const OnnxSession::Port& port : encoder_->outputs()) encoded_names_.push_back(port.name.c_str());
    for (const OnnxSession::Port& port : encoder_->inputs()) {
      const bool known = port.name == "past" && memory_ != nullptr;
      if (port.name != "history" && !known) throw OnnxError("the encoder takes an input " + port.name);
      encoder_names_.push_back(port.name.c_str());
    }
  }
  for (const OnnxSession::Port& port : scorer_->inputs()) {
    inputs_.push_back(input(port.name));
    input_names_.push_back(port.name.c_str());
  }
}

SlateModel::Input SlateModel::input(const std::string& name) const {
  constexpr std::array<std::pair<std::string_view, Source>, 9> kNames = {{{"history", Source::kHistory},
                                                                          {"mask", Source::kMask},
                                                                          {"features", Source::kFeatures},
                                                                          {"candidates", Source::kCandidates},
                                                                          {"nodes", Source::kTokens},
                                                                          {"counts", Source::kCounts},
                                                                          {"ancestors", Source::kAncestors},
                                                                          {"rows", Source::kRows},
                                                                          {"memory", Source::kMemory}}};
  for (std::size_t i = 0; i < encoded_names_.size(); ++i) {
    if (name == encoded_names_[i]) return {Source::kEncoded, i};
  }
  for (const auto& [known, source] : kNames) {
    if (name != known) continue;
    if ((source == Source::kRows || source == Source::kMemory) && memory_ == nullptr) break;
    return {source, 0};
  }
  for (std::size_t depth = 1; depth < spec_.levels; ++depth) {
    if (name == "nodes_" + std::to_string(depth)) return {Source::kNodes, depth};
  }
  throw OnnxError("the graph takes an input " + name + ", which no request has");
}

std::size_t SlateModel::run_bytes(std::size_t history, std::size_t nodes, std::size_t candidates) const {
  const RunMemory& cell = spec_.memory;
  const std::size_t width = 1 + history * cell.tokens + nodes, rows = cell.one_layer ? nodes : width;
  const std::size_t attention = (cell.attention * rows + cell.causal * width + cell.hidden) * width;
  const std::size_t evidence = spec_.takes_candidates ? cell.evidence * candidates * history : 0;
  return std::max(attention, evidence) + 2 * sizeof(float) * nodes * spec_.level_size;
}

void SlateModel::fill_known(const Slate& slate, ModelBuffers& buffers) const {
  if (memory_ == nullptr) return;
  buffers.past_rows.resize(slate.past.size() / spec_.levels);
  buffers.rows.resize(slate.known.size());
  buffers.known.resize(slate.known.size() * ItemMemory::kColumns);
  memory_->find(slate.past, buffers.past_rows);
  memory_->find(slate.codes, buffers.rows);
  memory_->columns(buffers.past_rows, slate.past, buffers.rows, slate.codes, buffers.known);
}

void SlateModel::fill(const Slate& slate, const CandidateTrie& trie, ModelBuffers& buffers) const {
  const std::size_t levels = spec_.levels, n = trie.node_count(), count = slate.known.size();
  const auto extent = [](std::size_t size) { return static_cast<std::int64_t>(size); };
  std::vector<OnnxTensor>& inputs = buffers.inputs;
  inputs.clear();
  const auto ints = [&](std::vector<std::int64_t>& values, std::vector<std::int64_t> shape) {
    inputs.push_back({onnx::kInt64, memory_of(values), std::move(shape)});
  };
  widen(slate.past, buffers.history);
  fill_known(slate, buffers);
  buffers.nodes.resize(levels);
  for (const auto& [source, index] : inputs_) {
    switch (source) {
      case Source::kHistory:
        ints(buffers.history, {extent(slate.past.size() / levels), extent(levels)});
        break;
      case Source::kNodes:
        widen(trie.nodes(index), buffers.nodes[index]);
        ints(buffers.nodes[index], {extent(buffers.nodes[index].size())});
        break;
      case Source::kMask:
        buffers.mask.resize(n * n);
        trie.fill_mask(buffers.mask);
        inputs.push_back({onnx::kFloat, buffers.mask.data(), {extent(n), extent(n)}});
        break;
      case Source::kFeatures:
        inputs.push_back({onnx::kFloat, slate.features.data(), {extent(count), extent(spec_.columns)}});
        break;
      case Source::kCandidates:
        widen(slate.codes, buffers.candidates);
        ints(buffers.candidates, {extent(count), extent(levels)});
        break;
      case Source::kTokens:
        buffers.tokens.resize(n - 1);
        trie.fill_tokens(buffers.tokens);
        ints(buffers.tokens, {extent(n - 1)});
        break;
      case Source::kCounts:
        buffers.counts.clear();
        for (std::size_t depth = 1; depth < levels; ++depth) buffers.counts.push_back(extent(trie.nodes(depth).size()));
        ints(buffers.counts, {extent(levels - 1)});
        break;
      case Source::kAncestors:
        buffers.ancestors.resize((n - 1) * (levels - 1));
        trie.fill_ancestors(buffers.ancestors);
        ints(buffers.ancestors, {extent(n - 1), extent(levels - 1)});
        break;
      case Source::kRows:
        ints(buffers.rows, {extent(count)});
        break;
      case Source::kMemory:
        inputs.push_back({onnx::kFloat, buffers.known.data(), {extent(count), extent(ItemMemory::kColumns)}});
        break;
      case Source::kEncoded:
        inputs.push_back({onnx::kFloat, nullptr, {}});
        break;
    }
  }
  buffers.logits.resize(n * spec_.level_size);
  buffers.prior.resize(count);
  buffers.outputs.clear();
  buffers.outputs.push_back({onnx::kFloat, buffers.logits.data(), {extent(n), extent(spec_.level_size)}});
  buffers.outputs.push_back({onnx::kFloat, buffers.prior.data(), {extent(count)}});
}

void SlateModel::run_filled(const Slate& slate, ModelBuffers& buffers, bool large) const {
  // Held until the run is over: the cache may drop it before.
  const std::shared_ptr<const Encoded> encoded = encoder_ == nullptr ? nullptr : encode(slate, buffers);
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i].source != Source::kEncoded) continue;
    const OwnedTensor& part = (*encoded)[inputs_[i].index];
    // onnxruntime does not write to inputs.
    buffers.inputs[i] = {part.type, const_cast<std::byte*>(part.data.data()), part.shape};
  }
  scorer_->run(input_names_, buffers.inputs, output_names_, buffers.outputs, large);
}

void SlateModel::run_student(const Slate& slate, const CandidateTrie& trie, ModelBuffers& buffers) const {
  fill_known(slate, buffers);
  const std::string_view key(reinterpret_cast<const char*>(slate.past.data()), slate.past.size_bytes());
  auto encoded = std::static_pointer_cast<const EncodedHistory>(cache_.find(key));
  if (encoded == nullptr) {
    encoded = student_->encode(slate.past, buffers.past_rows, buffers.student);
    cache_.insert(key, encoded, encoded->bytes());
  }
  buffers.logits.resize(trie.node_count() * spec_.level_size);
  buffers.prior.resize(slate.known.size());
  const StudentSlate candidates{slate.codes, buffers.rows, slate.features, buffers.known};
  student_->score(*encoded, trie, candidates, buffers.student, buffers.logits, buffers.prior);
}

std::shared_ptr<const SlateModel::Encoded> SlateModel::encode(const Slate& slate, ModelBuffers& buffers) const {
  const std::string_view key(reinterpret_cast<const char*>(slate.past.data()), slate.past.size_bytes());
  if (auto found = cache_.find(key)) return std::static_pointer_cast<const Encoded>(found);
  const auto levels = static_cast<std::int64_t>(spec_.levels);
  const std::int64_t events = static_cast<std::int64_t>(slate.past.size()) / levels;
  std::vector<OnnxTensor> inputs;
  for (const std::string_view name : encoder_names_) {
    if (name == "history") {
      inputs.push_back({onnx::kInt64, memory_of(buffers.history), {events, levels}});
    } else {
      inputs.push_back({onnx::kInt64, memory_of(buffers.past_rows), {events}});
    }
  }
  auto encoded = std::make_shared<Encoded>(encoder_->compute(encoder_names_, inputs, encoded_names_));
  std::size_t bytes = 0;
  for (OwnedTensor& part : *encoded) {
    bytes += part.data.size();
    // Never null, as above.
    if (part.data.empty()) part.data.reserve(1);
  }
  cache_.insert(key, encoded, bytes);
  return encoded;
}

}  // namespace gr2
