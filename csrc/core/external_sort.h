// Sorting more records than memory holds: sorted runs in a scratch file, merged when they are read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "core/atomic_file.h"

namespace gr2 {

// A Record has operator<, `std::size_t heap_bytes() const`, `void save(ScratchFile&) const` and
// `void load(ScratchFile::Reader&)`. About `memory_bytes` are used for records, half as much again while they grow.
template <typename Record>
class ExternalSort {
 public:
  ExternalSort(std::string folder, std::size_t memory_bytes)
      : folder_(std::move(folder)), memory_(std::max<std::size_t>(memory_bytes, 2 * sizeof(Record))) {}

  // Throws FileError where a run cannot be written.
  void add(Record record) {
    if (records_.size() == records_.capacity()) grow();
    heap_ += record.heap_bytes();
    records_.push_back(std::move(record));
    if (records_.size() * sizeof(Record) + heap_ >= memory_) spill();
  }

  // Calls `visit(const Record&)` for each record, in ascending order, and forgets them. Throws FileError.
  template <typename Visit>
  void drain(Visit&& visit) {
    if (runs_.empty()) {
      std::sort(records_.begin(), records_.end());
      for (const Record& record : records_) visit(record);
    } else {
      if (!records_.empty()) spill();
      release();
      merge(visit);
    }
    release();
    runs_.clear();
  }

 private:
  struct Head {
    Record record;
    std::size_t run;
  };
  struct Later {
    bool operator()(const Head& a, const Head& b) const { return b.record < a.record; }
  };

  void grow() {
    const std::size_t most = memory_ / sizeof(Record) + 1;
    records_.reserve(std::max(records_.size() + 1, std::min(most, std::max<std::size_t>(1024, 2 * records_.size()))));
  }

  void release() {
    std::vector<Record>().swap(records_);
    heap_ = 0;
  }

  void spill() {
    if (file_ == nullptr) file_ = std::make_unique<ScratchFile>(folder_);
    std::sort(records_.begin(), records_.end());
    const std::uint64_t begin = file_->size();
    for (const Record& record : records_) record.save(*file_);
    file_->flush();
    runs_.emplace_back(begin, file_->size());
    records_.clear();
    heap_ = 0;
  }

  template <typename Visit>
  void merge(Visit& visit) {
    std::vector<ScratchFile::Reader> readers;
    std::priority_queue<Head, std::vector<Head>, Later> heads;
    for (const auto& [begin, end] : runs_) {
      readers.emplace_back(*file_, begin, end);
      Head head{{}, readers.size() - 1};
      head.record.load(readers.back());
      heads.push(std::move(head));
    }
    while (!heads.empty()) {
      Head head = heads.top();
      heads.pop();
      visit(std::as_const(head.record));
      if (readers[head.run].done()) continue;
      head.record.load(readers[head.run]);
      heads.push(std::move(head));
    }
  }

  std::string folder_;
  std::size_t memory_, heap_ = 0;
  std::vector<Record> records_;
  std::unique_ptr<ScratchFile> file_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> runs_;  // of file_: [begin, end)
};

}  // namespace gr2
