// The student of gr2/models/student.py, computed from its weights: an encoder of the history, whose answer may be kept,
// and a scorer of candidates. gr2/export/split.py has the same two as graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/candidate_trie.h"
#include "core/dense.h"
#include "core/mapped_file.h"

namespace gr2 {

// The weights file: a header, then arrays of float32, each at the next multiple of 64 bytes, as
// gr2/export/weights_file.py lists them. All numbers are little-endian.
struct StudentHeader {
  static constexpr char kMagic[8] = {'G', 'R', '2', 'S', 'T', 'U', 'D', 'E'};
  static constexpr std::uint32_t kVersion = 1;

  char magic[8];
  std::uint32_t version;
  std::uint32_t levels, level_size, dim, layers, heads, max_history;
  std::uint32_t features, hidden;  // of the prior
  float epsilon;                   // of the norms
  std::uint64_t items;
};
static_assert(sizeof(StudentHeader) == 56);

// What the encoder makes of a history: keys and values of each layer, packed as panels, the root's logits, and what the
// head multiplies a candidate's vector with.
struct EncodedHistory {
  std::size_t columns = 0;  // begin token, the history's tokens and root
  std::vector<float> keys, values, root, query;

  std::size_t bytes() const { return (keys.size() + values.size() + root.size() + query.size()) * sizeof(float); }
};

// What a token of the history is.
enum class Encoding { kItem, kCode };

// Memory that one request after another uses.
struct StudentBuffers {
  std::vector<float> x, normed, key_value, query, scores, shares, mixed, states, hidden, features, logits;
  std::vector<std::int64_t> tokens, ancestors, own;
  RoundedRows rounded;
  void trim();
};

// Candidates: their codes (K, levels), rows (K) as `ItemMemory::find` gives them, `features` (K, columns), and what the
// memory knows of them, `known` (K, features - columns).
struct StudentSlate {
  std::span<const std::uint16_t> codes;
  std::span<const std::int64_t> rows;
  std::span<const float> features, known;
};

// Immutable and thread-safe.
class Student {
 public:
  // Throws FileError and FormatError.
  Student(const std::string& path, Arithmetic arithmetic, Encoding encoding);

  std::size_t levels() const { return header_.levels; }
  std::size_t level_size() const { return header_.level_size; }
  std::size_t max_history() const { return header_.max_history; }
  std::size_t features() const { return header_.features; }
  std::size_t items() const { return header_.items; }
  // Tokens of the history that an item has.
  std::size_t tokens() const { return encoding_ == Encoding::kCode ? header_.levels : 1; }
  // Whether the sizes are those of a history that such a student has encoded.
  bool made(const EncodedHistory& encoded) const;
  // Of codes (T, levels), all below level_size, and rows (T), T at most max_history.
  std::shared_ptr<const EncodedHistory> encode(std::span<const std::uint16_t> codes, std::span<const std::int64_t> rows,
                                               StudentBuffers& buffers) const;
  // Fills `logits` (n, level_size) at the trie's inner nodes and `prior` (K).
  void score(const EncodedHistory& encoded, const CandidateTrie& trie, const StudentSlate& slate,
             StudentBuffers& buffers, std::span<float> logits, std::span<float> prior) const;

 private:
  struct Block {
    Norm norm_attention, norm_mlp;
    Dense query, key_value, out, up, down;
  };
  // The rows of a block's attention, and what they see beside the history: `near` of them (rows, levels - 1), each a
  // row of `key_value`, or below 0. With `causal`, row i sees the first i + 1 columns of the history only.
  struct Sight {
    const float* query;
    std::size_t rows;
    const std::int64_t* near;
    const float* key_value;
    bool causal;
  };

  // Rows of a block that are computed together: what they need stays in the nearer caches.
  static constexpr std::size_t kTogether = 48;
  static constexpr std::size_t kMostParts = CandidateTrie::kMaxLevels + 1;

  void read(class ArrayReader& reader, Arithmetic arithmetic);
  void build_tables();
  std::vector<float> embed(std::span<const std::uint16_t> codes) const;
  void encode_query(std::span<const std::uint16_t> codes, std::span<const std::int64_t> rows, StudentBuffers& buffers,
                    EncodedHistory& encoded) const;
  void keep(std::size_t layer, const float* key_value, EncodedHistory& encoded) const;
  void attend(const EncodedHistory& encoded, std::size_t layer, const Sight& sight, StudentBuffers& buffers) const;
  void see_near(const Sight& sight, std::size_t head, std::size_t columns, StudentBuffers& buffers, bool values) const;
  void finish(const Block& block, float* x, std::size_t rows, StudentBuffers& buffers) const;
  void score_block(const EncodedHistory& encoded, std::size_t layer, std::size_t rows, StudentBuffers& buffers) const;
  void project(const CandidateTrie& trie, StudentBuffers& buffers, std::span<float> logits) const;
  void fill_prior(const EncodedHistory& encoded, const StudentSlate& slate, StudentBuffers& buffers,
                  std::span<float> prior) const;
  // The vectors that add up to an item's, of its codes and of its row; returns their number.
  std::size_t item_parts(const std::uint16_t* codes, std::int64_t row, const float** parts) const;

  std::size_t row() const { return padded(header_.dim); }
  std::size_t pair() const { return padded(2 * header_.dim); }
  std::size_t head_width() const { return header_.dim / header_.heads; }
  std::size_t mixed_row() const { return row() + kPanelColumns; }
  std::size_t score_row(std::size_t columns) const { return padded(columns + header_.levels) + kPanelColumns; }

  MappedFile file_;
  Encoding encoding_;
  StudentHeader header_;
  std::span<const float> items_, position_, begin_, root_, nodes_;
  std::span<const float> head_codes_, head_memory_, recency_, head_begin_;
  std::span<const float> linear_, prior_down_;
  std::vector<Block> blocks_;
  Norm norm_, norm_pool_, norm_query_;
  std::vector<Dense> logits_;
  Dense prior_up_, head_up_, head_down_;
  // Of each node's token: its row, and the first block's query and its key and value.
  std::vector<float> node_rows_, node_queries_, node_key_values_;
};

}  // namespace gr2
