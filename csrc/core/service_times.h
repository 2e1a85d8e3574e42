// How long requests take, by their size.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>

namespace gr2 {

// How long requests of a size took of late: a moving average for each power of two. Of one bundle, which says little of
// another's. Any thread may ask; of two that write at once, one may not be heard.
class ServiceTimes {
 public:
  static constexpr std::size_t kClasses = 24;
  static std::size_t size_class(std::size_t size);
  // Of sizes not seen yet, as the next smaller one's would grow, or else as the next larger one's; 0 before the first.
  std::chrono::nanoseconds estimate(std::size_t size_class) const;
  void record(std::size_t size_class, std::chrono::nanoseconds taken);
  // A request was refused for how long it would take: some day one is let in again, to see whether that still holds.
  void doubt(std::size_t size_class);

 private:
  double mean(std::size_t size_class) const { return means_[size_class].load(std::memory_order_relaxed); }
  std::array<std::atomic<double>, kClasses> means_{};  // nanoseconds, 0 for none yet
};

}  // namespace gr2
