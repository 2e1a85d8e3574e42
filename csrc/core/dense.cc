#include "core/dense.h"

#include <algorithm>
#include <cmath>

namespace gr2 {
namespace {

// Two products of a byte with such values fit into 16 bits.
constexpr float kLargest = 63.0f;

std::vector<float> padded_copy(std::span<const float> values) {
  std::vector<float> copy(padded(values.size()));
  std::copy(values.begin(), values.end(), copy.begin());
  return copy;
}

}  // namespace

void pack_panels(const float* values, std::size_t row, std::size_t column, std::size_t rows, std::size_t columns,
                 float* panels) {
  for (std::size_t first = 0; first < columns; first += kPanelColumns) {
    const std::size_t count = std::min(kPanelColumns, columns - first);
    for (std::size_t k = 0; k < rows; ++k, panels += kPanelColumns) {
      const float* const from = values + k * row + first * column;
      for (std::size_t j = 0; j < count; ++j) panels[j] = from[j * column];
      std::fill(panels + count, panels + kPanelColumns, 0.0f);
    }
  }
}

Dense::Dense(std::span<const float> weight, std::span<const float> bias, std::size_t in, Arithmetic arithmetic)
    : in_(in), out_(weight.size() / in), width_(padded(out_)), bias_(padded_copy(bias)) {
  if (arithmetic == Arithmetic::kInt8) {
    round_weight(weight);
  } else {
    panels_.resize(in_ * width_);
    pack_panels(weight.data(), 1, in_, in_, out_, panels_.data());
  }
}

void Dense::round_weight(std::span<const float> weight) {
  const std::size_t depth = (in_ + 3) / 4 * 4;
  bytes_.assign(depth * width_, 0);
  steps_.assign(width_, 1.0f);
  sums_.assign(width_, 0);
  for (std::size_t j = 0; j < out_; ++j) {
    const std::span<const float> own = weight.subspan(j * in_, in_);
    float largest = 0.0f;
    for (const float value : own) largest = std::max(largest, std::abs(value));
    if (largest > 0.0f) steps_[j] = largest / kLargest;
    std::int8_t* const panel = bytes_.data() + j / kPanelColumns * kPanelColumns * depth + j % kPanelColumns * 4;
    for (std::size_t k = 0; k < in_; ++k) {
      const auto value = static_cast<std::int8_t>(std::lround(own[k] / steps_[j]));
      panel[k / 4 * kPanelColumns * 4 + k % 4] = value;
      sums_[j] += value;
    }
  }
}

void Dense::apply(const float* a, std::size_t stride, std::size_t rows, float* out, std::size_t out_stride,
                  RoundedRows& rounded, bool add) const {
  const LayerKernels& kernels = simd().layers;
  const float* const bias = bias_.empty() ? nullptr : bias_.data();
  if (bytes_.empty()) {
    kernels.multiply({a, stride, rows, in_, panels_.data(), bias, width_, out, out_stride, add});
    return;
  }
  const std::size_t depth = (in_ + 3) / 4 * 4;
  if (rounded.bytes.size() < rows * depth) rounded.bytes.resize(rows * depth);
  if (rounded.scales.size() < rows) rounded.scales.resize(rows);
  if (rounded.zeros.size() < rows) rounded.zeros.resize(rows);
  kernels.round_rows(a, stride, rows, in_, depth, rounded.bytes.data(), rounded.scales.data(), rounded.zeros.data());
  kernels.multiply_rounded({rounded.bytes.data(), rounded.scales.data(), rounded.zeros.data(), rows, depth,
                            bytes_.data(), steps_.data(), sums_.data(), bias, width_, out, out_stride, add});
}

Norm::Norm(std::span<const float> weight, std::span<const float> bias, float epsilon)
    : size_(weight.size()), epsilon_(epsilon), weight_(padded_copy(weight)), bias_(padded_copy(bias)) {}

void Norm::apply(const float* x, std::size_t rows, float* out) const {
  simd().layers.normalize(x, rows, weight_.size(), size_, weight_.data(), bias_.data(), epsilon_, out);
}

}  // namespace gr2
