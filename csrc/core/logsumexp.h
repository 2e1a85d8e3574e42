// The logarithm of a sum of exponentials over a row of logits.
#pragma once

#include <span>

#include "core/simd.h"

namespace gr2 {

// log(sum(exp(values))), or NaN if any value is NaN or infinite. `values` must not be empty. The exponentials are
// float32; the absolute error is below 1e-5.
double logsumexp(std::span<const float> values);

// log(sum(exp(values - largest))) of a row whose sum is finite or -infinity, and whose largest value is not. The same
// error.
double log_sum_above(const RowSummary& row);

// True if no value is NaN or infinite.
bool all_finite(std::span<const float> values);

}  // namespace gr2
