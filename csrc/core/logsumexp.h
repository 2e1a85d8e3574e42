// The logarithm of a sum of exponentials over a row of logits.
#pragma once

#include <span>

namespace gr2 {

// log(sum(exp(values))), or NaN if any value is NaN or infinite. `values` must not be empty. The exponentials are
// float32; the absolute error is below 1e-5.
double logsumexp(std::span<const float> values);

// log(sum(exp(values - offset))) for an offset that no value is above and at least one is near; values may be
// -infinity. The same error.
double logsumexp_below(std::span<const float> values, float offset);

// True if no value is NaN or infinite.
bool all_finite(std::span<const float> values);

}  // namespace gr2
