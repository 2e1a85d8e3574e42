// Writing codebook files, of any number of items in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace gr2 {

// What a codebook file is to hold, and what building it may use.
struct CodebookPlan {
  std::string path;
  std::uint32_t levels = 0;
  std::uint32_t level_size = 0;
  bool string_ids = false;
  std::size_t memory_bytes = std::size_t{256} << 20;
  // A folder for sorted runs; empty means the folder of `path`.
  std::string scratch = {};
};

// Takes items in any order and any number of parts, and writes the file atomically. Its bytes depend on the set of
// items alone. Calls from several threads wait for each other.
class CodebookBuilder {
 public:
  // Throws std::invalid_argument on levels that are not 1 to 8 and a level size that is not 1 to 65,536.
  explicit CodebookBuilder(CodebookPlan plan);
  ~CodebookBuilder();

  // `codes` is (ids, levels) row-major. Throws std::invalid_argument on a code that is not below the level size, on
  // IDs of the other type and on sizes that do not fit together, before anything is added; FileError where a run
  // cannot be written, after which the builder is of no more use; std::logic_error then, and after `finish`.
  void add(std::span<const std::int64_t> ids, std::span<const std::uint16_t> codes);
  void add(std::span<const std::string_view> ids, std::span<const std::uint16_t> codes);
  // Items added so far.
  std::uint64_t size() const;
  const CodebookPlan& plan() const { return plan_; }

  // Throws std::invalid_argument on duplicate IDs, FileError, and std::logic_error the second time.
  void finish();

  class Items;

 private:
  CodebookPlan plan_;
  std::unique_ptr<Items> items_;
};

}  // namespace gr2
