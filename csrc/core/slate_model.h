// A bundle's model of one slate: the memory of its inputs and outputs, and the graph that computes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/candidate_trie.h"
#include "core/item_memory.h"
#include "core/onnx_runtime.h"
#include "core/prefix_cache.h"
#include "core/student.h"

namespace gr2 {

// The memory that a model run takes, as gr2.serving.models.memory counts it: bytes a cell of each, and the bounds.
struct RunMemory {
  std::size_t attention = 0, causal = 0, hidden = 0, evidence = 0;
  // Whether the last layer, which computes the nodes' rows only, is the only one.
  bool one_layer = false;
  // Of the history that an item has.
  std::size_t tokens = 1;
  // Beyond `large`, a slate runs alone; beyond `most`, none does.
  std::size_t large = 0, most = 0;
};

// What the manifest says of a model.
struct ModelSpec {
  std::size_t levels = 0;
  std::uint32_t level_size = 0;
  std::size_t max_history = 0;
  std::size_t columns = 0;  // of `features`
  Normalization normalization = Normalization::kRaw;
  bool takes_candidates = false;
  RunMemory memory;
};

// One slate as codes: `past` (T, L) holds known items, at most as many as the model attends to, `codes` (K, L) and
// `known` (K) are the candidates', at least one of them known, `features` is (K, columns).
struct Slate {
  std::span<const std::uint16_t> past;
  std::span<const std::uint16_t> codes;
  std::span<const std::uint8_t> known;
  std::span<float> features;
};

// Memory that one request after another uses.
struct ModelBuffers {
  std::vector<std::int64_t> history, candidates, tokens, counts, ancestors, past_rows, rows;
  std::vector<std::vector<std::int64_t>> nodes;
  std::vector<float> mask, known, logits, prior;
  std::vector<OnnxTensor> inputs, outputs;
  StudentBuffers student;
  // Give back what a large slate took.
  void trim();
};

// A model's graphs: the whole one, or, with an encoder before it, a scorer, and the memory of items that both need; or
// instead of graphs the student and that memory.
struct Graphs {
  std::string_view scorer, encoder;
  std::shared_ptr<const ItemMemory> memory = nullptr;
  std::shared_ptr<const Student> student = nullptr;
};

// The model. Of one with an encoder, or of a student, encoded histories are kept, by the codes that the encoder sees.
// Slates are not: what depends on their codes alone, the first block's queries, keys and values, is a table.
// Thread-safe.
class SlateModel {
 public:
  // `cache_bytes` bound the encoded histories. Throws OnnxError, also for an input that is not of the contract (see
  // gr2.manifest); the rest of the contract is for the caller to check.
  SlateModel(std::shared_ptr<const OnnxRuntime> runtime, const Graphs& graphs, const ModelSpec& spec, int threads,
             std::size_t cache_bytes = 0);

  const ModelSpec& spec() const { return spec_; }
  // Null for a student.
  const OnnxSession* scorer() const { return scorer_.get(); }
  // Null for a model without one.
  const OnnxSession* encoder() const { return encoder_.get(); }
  PrefixCache& cache() const { return cache_; }
  // About the bytes that a run takes for so many items of history, inner nodes and candidates.
  std::size_t run_bytes(std::size_t history, std::size_t nodes, std::size_t candidates) const;
  // Fills the `logits` (n, V) at the trie's inner nodes and the `prior` (K) of the buffers. One large slate runs at a
  // time; `begin` is called once the model begins. Throws OnnxError.
  template <typename Begin>
  void run(const Slate& slate, const CandidateTrie& trie, ModelBuffers& buffers, Begin begin) const {
    const std::size_t bytes = run_bytes(slate.past.size() / spec_.levels, trie.node_count(), slate.known.size());
    const bool large = bytes > spec_.memory.large;
    std::unique_lock lock(one_large_, std::defer_lock);
    if (large) lock.lock();
    // What the memory of items knows is a part of the model, though no graph computes it.
    if (memory_ != nullptr) begin();
    if (student_ != nullptr) return run_student(slate, trie, buffers);
    fill(slate, trie, buffers);
    if (memory_ == nullptr) begin();
    run_filled(slate, buffers, large);
  }

 private:
  using Encoded = std::vector<OwnedTensor>;
  enum class Source {
    kHistory,
    kNodes,
    kMask,
    kFeatures,
    kCandidates,
    kTokens,
    kCounts,
    kAncestors,
    kRows,
    kMemory,
    kEncoded
  };
  struct Input {
    Source source;
    std::size_t index;  // the depth of nodes, or the place among the encoder's outputs
  };

  Input input(const std::string& name) const;
  void fill_known(const Slate& slate, ModelBuffers& buffers) const;
  void fill(const Slate& slate, const CandidateTrie& trie, ModelBuffers& buffers) const;
  void run_filled(const Slate& slate, ModelBuffers& buffers, bool large) const;
  void run_student(const Slate& slate, const CandidateTrie& trie, ModelBuffers& buffers) const;
  std::shared_ptr<const Encoded> encode(const Slate& slate, ModelBuffers& buffers) const;

  ModelSpec spec_;
  std::shared_ptr<const ItemMemory> memory_;
  std::shared_ptr<const Student> student_;
  std::unique_ptr<const OnnxSession> scorer_, encoder_;
  mutable PrefixCache cache_;
  std::vector<Input> inputs_;
  std::vector<const char*> input_names_, encoder_names_, encoded_names_;
  std::vector<const char*> output_names_{"logits", "prior"};
  mutable std::mutex one_large_;
};

}  // namespace gr2
