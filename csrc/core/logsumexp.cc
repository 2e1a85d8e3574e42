#include "core/logsumexp.h"

#include <cmath>
#include <limits>

namespace gr2 {

bool all_finite(std::span<const float> values) {
  return !simd().any_nonfinite(values.data(), values.size());
}

double log_sum_above(const RowSummary& row) {
  return std::log(row.exponentials) + (static_cast<double>(row.offset) - static_cast<double>(row.largest));
}

double logsumexp(std::span<const float> values) {
  const RowSummary row = simd().summarize(values.data(), values.size());
  // Large finite values may add up to infinity, too.
  if (!std::isfinite(row.sum) && !all_finite(values)) return std::numeric_limits<double>::quiet_NaN();
  return std::log(row.exponentials) + static_cast<double>(row.offset);
}

}  // namespace gr2
