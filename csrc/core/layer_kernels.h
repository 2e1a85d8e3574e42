// The kernels of a network's layers, of one generation. Included at the end of simd_kernels.h, in a namespace that also
// has `Ints`, a vector of int32, and `add_products`, which adds to each of them four products of bytes.

constexpr std::size_t kParts = kPanelColumns / kLanes;
// What the registers hold: the sums of so many rows and panels, a row of each panel, and one value of a row.
constexpr std::size_t kTileRows = kLanes == 4 ? 2 : 6, kTilePanels = kLanes == 16 ? 4 : 1;
constexpr std::size_t kTileVectors = kTilePanels * kParts;

template <std::size_t kRows, std::size_t kPanels>
GR2_TARGET inline void multiply_tile(const Product& product, std::size_t row, std::size_t panel) {
  constexpr std::size_t kVectors = kPanels * kParts;
  const std::size_t depth = product.depth;
  const float* const a = product.a + row * product.a_stride;
  const float* const b = product.panels + panel * depth * kPanelColumns;
  Floats sums[kRows][kVectors] = {};
  for (std::size_t k = 0; k < depth; ++k) {
    Floats own[kVectors];
#pragma GCC unroll 16
    for (std::size_t j = 0; j < kVectors; ++j) {
      own[j] = load(b + (j / kParts * depth + k) * kPanelColumns + j % kParts * kLanes);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kRows; ++i) {
      const float value = a[i * product.a_stride + k];
#pragma GCC unroll 16
      for (std::size_t j = 0; j < kVectors; ++j) sums[i][j] += value * own[j];
    }
  }
  const std::size_t column = panel * kPanelColumns;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kRows; ++i) {
    float* const out = product.out + (row + i) * product.out_stride + column;
#pragma GCC unroll 16
    for (std::size_t j = 0; j < kVectors; ++j) {
      if (product.bias != nullptr) sums[i][j] += load(product.bias + column + j * kLanes);
      if (product.add) sums[i][j] += load(out + j * kLanes);
      store(out + j * kLanes, sums[i][j]);
    }
  }
}

template <std::size_t kRows, std::size_t kPanels>
GR2_TARGET inline void multiply_tile(const RoundedProduct& product, std::size_t row, std::size_t panel) {
  constexpr std::size_t kVectors = kPanels * kParts;
  const std::size_t depth = product.depth;
  const std::uint8_t* const a = product.a + row * depth;
  const std::int8_t* const b = product.panels + panel * depth * kPanelColumns;
  Ints sums[kRows][kVectors] = {};
  for (std::size_t k = 0; k < depth; k += 4) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
      for (std::size_t j = 0; j < kVectors; ++j) {
        const std::int8_t* const own = b + (j / kParts * depth + k) * kPanelColumns + j % kParts * kLanes * 4;
        sums[i][j] = add_products(sums[i][j], a + i * depth + k, own);
      }
    }
  }
  const std::size_t column = panel * kPanelColumns;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kRows; ++i) {
    float* const out = product.out + (row + i) * product.out_stride + column;
    const Ints zero = Ints{} + product.zeros[row + i];
#pragma GCC unroll 16
    for (std::size_t j = 0; j < kVectors; ++j) {
      Ints total;
      std::memcpy(&total, product.sums + column + j * kLanes, sizeof total);
      const Floats exact = __builtin_convertvector(sums[i][j] - zero * total, Floats);
      Floats value = product.scales[row + i] * (exact * load(product.steps + column + j * kLanes));
      if (product.bias != nullptr) value += load(product.bias + column + j * kLanes);
      if (product.add) value += load(out + j * kLanes);
      store(out + j * kLanes, value);
    }
  }
}

template <std::size_t kRows, typename AnyProduct>
GR2_TARGET inline void multiply_rows(const AnyProduct& product, std::size_t row, std::size_t panel, std::size_t count) {
  if constexpr (kTilePanels == 4) {
    if (count == 4) return multiply_tile<kRows, 4>(product, row, panel);
  }
  for (std::size_t i = 0; i < count; ++i) multiply_tile<kRows, 1>(product, row, panel + i);
}

// Some panels, which stay in the nearest cache, by all rows; then the next.
template <typename AnyProduct>
GR2_TARGET void multiply_all(const AnyProduct& product) {
  const std::size_t panels = product.width / kPanelColumns;
  for (std::size_t panel = 0; panel < panels; panel += kTilePanels) {
    const std::size_t count = panels - panel < kTilePanels ? panels - panel : kTilePanels;
    std::size_t row = 0;
    for (; row + kTileRows <= product.rows; row += kTileRows) multiply_rows<kTileRows>(product, row, panel, count);
    for (; row + 2 <= product.rows; row += 2) multiply_rows<2>(product, row, panel, count);
    if (row < product.rows) multiply_rows<1>(product, row, panel, count);
  }
}

GR2_TARGET void multiply(const Product& product) {
  multiply_all(product);
}

GR2_TARGET void multiply_rounded(const RoundedProduct& product) {
  multiply_all(product);
}

using Bytes [[gnu::vector_size(kLanes)]] = std::uint8_t;

GR2_TARGET inline Bytes bytes_of(Floats values, float factor, float shift) {
  const Floats shifted = larger_of(values * factor + shift, Floats{});
  const Floats held = shifted > 255.0f ? Floats{} + 255.0f : shifted;
  return __builtin_convertvector(__builtin_convertvector(held, Ints), Bytes);
}

// x = scale * (rounded - zero), of a range that holds 0, with as many steps as a byte has.
GR2_TARGET void round_rows(const float* x, std::size_t stride, std::size_t rows, std::size_t depth, std::size_t padded,
                           std::uint8_t* rounded, float* scales, std::int32_t* zeros) {
  const std::size_t whole = depth / kLanes * kLanes;
  for (std::size_t i = 0; i < rows; ++i) {
    const float* const row = x + i * stride;
    const Floats last = whole < depth ? load_some(row + whole, depth - whole, 0.0f) : Floats{};
    Floats low = -last, high = last;
    for (std::size_t k = 0; k < whole; k += kLanes) {
      const Floats values = load(row + k);
      low = larger_of(-values, low);
      high = larger_of(values, high);
    }
    // A value of `last` is 0 at least.
    const float least = -largest_of(low), most = largest_of(high);
    // A smaller range counts as none: its inverse would be infinite.
    const float range = most - least, scale = range > 1e-30f ? range / 255.0f : 1.0f, inverse = 1.0f / scale;
    // Of rows that are not finite nothing can be said but that, which the scale does.
    const float middle = 0.5f - least * inverse,
                zero = middle < 256.0f ? static_cast<float>(static_cast<int>(middle)) : 0;
    std::uint8_t* const out = rounded + i * padded;
    for (std::size_t k = 0; k < whole; k += kLanes) {
      const Bytes some = bytes_of(load(row + k), inverse, zero + 0.5f);
      std::memcpy(out + k, &some, sizeof some);
    }
    if (whole < depth) {
      const Bytes some = bytes_of(last, inverse, zero + 0.5f);
      std::memcpy(out + whole, &some, depth - whole);
    }
    for (std::size_t k = depth; k < padded; ++k) out[k] = 0;
    scales[i] = scale;
    zeros[i] = static_cast<std::int32_t>(zero);
  }
}

GR2_TARGET void normalize(const float* x, std::size_t rows, std::size_t stride, std::size_t depth, const float* weight,
                          const float* bias, float epsilon, float* out) {
  const float count = static_cast<float>(depth);
  for (std::size_t i = 0; i < rows; ++i) {
    const float* const row = x + i * stride;
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (std::size_t k = 0; k < depth; ++k) sum += row[k];
    const float mean = sum / count;
#pragma omp simd reduction(+ : squares)
    for (std::size_t k = 0; k < depth; ++k) squares += (row[k] - mean) * (row[k] - mean);
    const float scale = 1.0f / __builtin_sqrtf(squares / count + epsilon);
    float* const into = out + i * stride;
#pragma omp simd
    for (std::size_t k = 0; k < stride; ++k) into[k] = (row[k] - mean) * scale * weight[k] + bias[k];
  }
}

// x times the normal distribution's share below x; Abramowitz and Stegun 7.1.26, with an error of at most 1.5e-7.
GR2_TARGET void gelu(float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; i += kLanes) {
    const Floats x = load(values + i);
    const Floats size = larger_of(x, -x);
    const Floats t = 1.0f / (1.0f + (0.3275911f * 0.707106781f) * size);
    Floats p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Floats beyond = 0.5f * size * (p * t * exponentials(-0.5f * x * x));
    store(values + i, larger_of(x, Floats{}) - beyond);
  }
}

// exp(values - the largest), of which the reciprocal of the sum is returned; the memory goes on to a whole vector.
GR2_TARGET float exponentiate(float* values, std::size_t count) {
  const float masked = -std::numeric_limits<float>::infinity();
  const std::size_t end = (count + kLanes - 1) / kLanes * kLanes;
  for (std::size_t i = count; i < end; ++i) values[i] = masked;
  Floats top = load(values);
  for (std::size_t i = kLanes; i < end; i += kLanes) top = larger_of(load(values + i), top);
  const float largest = largest_of(top);
  Floats sum{};
  for (std::size_t i = 0; i < end; i += kLanes) {
    const Floats each = exponentials(load(values + i) - largest);
    sum += each;
    store(values + i, each);
  }
  return 1.0f / sum_of(sum);
}
