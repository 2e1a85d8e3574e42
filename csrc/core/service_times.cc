#include "core/service_times.h"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace gr2 {
namespace {

using std::chrono::nanoseconds;

constexpr double kWeight = 0.125;  // of the latest duration in the moving average
// A duration counts as at most so many times the average, which a pause of the machine would raise too far.
constexpr double kMostTimes = 4.0;
constexpr double kDoubt = 0.99;

nanoseconds rounded(double value) {
  return nanoseconds(static_cast<std::int64_t>(value));
}

}  // namespace

std::size_t ServiceTimes::size_class(std::size_t size) {
  return std::min(static_cast<std::size_t>(std::bit_width(size)), kClasses - 1);
}

nanoseconds ServiceTimes::estimate(std::size_t size_class) const {
  for (std::size_t down = 0; down <= size_class; ++down) {
    const double found = mean(size_class - down);
    if (found != 0.0) return rounded(found * static_cast<double>(std::uint64_t{1} << down));
  }
  for (std::size_t larger = size_class + 1; larger < kClasses; ++larger) {
    if (const double found = mean(larger); found != 0.0) return rounded(found);
  }
  return nanoseconds{};
}

void ServiceTimes::record(std::size_t size_class, nanoseconds taken) {
  const auto value = static_cast<double>(std::max<std::int64_t>(taken.count(), 1));
  const double before = mean(size_class);
  const double after = before == 0.0 ? value : before + kWeight * (std::min(value, kMostTimes * before) - before);
  means_[size_class].store(after, std::memory_order_relaxed);
}

void ServiceTimes::doubt(std::size_t size_class) {
  means_[size_class].store(kDoubt * static_cast<double>(estimate(size_class).count()), std::memory_order_relaxed);
}

}  // namespace gr2
