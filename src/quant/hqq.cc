#include "quant/hqq.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/bf16.h"
#include "quant/rounding.h"

namespace gemma4 {
namespace {

constexpr int kIterations = 20;
constexpr double kBeta = 10, kKappa = 1.01, kNorm = 0.7;

// The rounding of a float operation, and the sum of a group in the order of the imitated PyTorch device.
struct F32 {
  static float round(float x) { return x; }
  static float exponent() { return static_cast<float>(kNorm - 1); }
  static float sum(const float* values, int64_t count);
};
struct F16 {
  static float round(float x) { return round_to_f16_fast(x); }
  static float exponent() { return round_to_f16(static_cast<float>(kNorm - 1)); }  // PyTorch casts the scalar too
  static float sum(const float* values, int64_t count);
};

// PyTorch's CPU kernel with 8-float vectors: four interleaved vector accumulators, added up, then lane by lane.
// Source: aten/src/ATen/native/cpu/SumKernel.cpp (vectorized_inner_sum, row_sum); rows of more than 512 add up in one
// level here and in several there.
float F32::sum(const float* values, int64_t count) {
  constexpr int kLanes = 8, kChains = 4;
  float chains[kChains][kLanes] = {};
  const int64_t vectors = count / kLanes;
  const int64_t whole = vectors / kChains * kChains;
  for (int64_t v = 0; v < whole; ++v) {
    for (int lane = 0; lane < kLanes; ++lane) chains[v % kChains][lane] += values[v * kLanes + lane];
  }
  for (int64_t v = whole; v < vectors; ++v) {
    for (int lane = 0; lane < kLanes; ++lane) chains[0][lane] += values[v * kLanes + lane];
  }
  float total = 0;
  for (int64_t i = vectors * kLanes; i < count; ++i) total += values[i];
  for (int lane = 0; lane < kLanes; ++lane) {
    float sum = chains[0][lane];
    for (int c = 1; c < kChains; ++c) sum += chains[c][lane];
    total += sum;
  }
  return total;
}

// PyTorch's CUDA kernel: lane i of a warp adds elements i, i + 32, ... in four chains, then neighbours are added by
// shuffles of distance 1, 2, 4, ... Source: aten/src/ATen/native/cuda/Reduce.cuh (thread_reduce, block_x_reduce).
float F16::sum(const float* values, int64_t count) {
  constexpr int kWarp = 32, kChains = 4;
  const int lanes = static_cast<int>(std::min<int64_t>(kWarp, std::bit_floor(static_cast<uint64_t>(count))));
  float lane_sum[kWarp];
  for (int lane = 0; lane < lanes; ++lane) {
    float chains[kChains] = {};
    int64_t turn = 0;
    for (int64_t i = lane; i < count; i += lanes, ++turn) chains[turn % kChains] += values[i];
    lane_sum[lane] = ((chains[0] + chains[1]) + chains[2]) + chains[3];
  }
  for (int distance = 1; distance < lanes; distance *= 2) {
    for (int lane = 0; lane + distance < lanes; lane += 2 * distance) lane_sum[lane] += lane_sum[lane + distance];
  }
  return lane_sum[0];
}

// Groups of one row at a time: body(index of the group, its values), with the row already in float.
template <typename Body>
void for_groups(const Matrix& source, int group, int64_t begin, int64_t end, Body body) {
  std::vector<float> values(static_cast<size_t>(source.cols));
  const int64_t groups = source.cols / group;
  for (int64_t row = begin; row < end; ++row) {
    load_row(source, row, values.data());
    for (int64_t g = 0; g < groups; ++g) body(row, static_cast<size_t>(row * groups + g), values.data() + g * group);
  }
}

// First guess: the true range of the group (0 is not added to it), as codes per unit of weight.
template <typename D>
void start_asymmetric(const Matrix& source, int group, ThreadPool& pool, HqqGroups& result) {
  constexpr float kScaleMax = 2e4f;  // torchao: "to avoid half-precision problems"
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    for_groups(source, group, begin, end, [&](int64_t, size_t index, const float* w) {
      const auto [low, high] = std::minmax_element(w, w + group);
      const float scale = std::min((1.0f / (*high - *low)) * 15.0f, kScaleMax);
      result.scale[index] = D::round(scale);
      result.zero[index] = D::round(round_half_even(-*low * scale));
    });
  });
}

// Up to here the proximal operator is 0 for every beta in use: 0.1^-0.3 / (10 * 1.01^19) = 0.165 > 0.1.
constexpr float kShrinkBelow = 0.1f;

// The proximal operator of the L_p norm.
template <typename D>
float shrink(float x, float inverse_beta) {
  const float size = std::fabs(x);
  if (size <= kShrinkBelow) return 0;
  const float threshold = D::round(inverse_beta * D::round(std::pow(size, D::exponent())));
  return std::copysign(std::max(D::round(size - threshold), 0.0f), x);
}

// The sum of |errors|, and whether one of them is past shrink()'s threshold.
struct ErrorSize {
  double total;
  bool large;
};

ErrorSize size_of_errors(const float* errors, int64_t count) {
  constexpr int kChains = 4;  // independent sums, so that additions overlap
  double chains[kChains] = {};
  uint32_t largest = 0;  // the bits of non-negative floats have the order of the floats
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int c = 0; c < kChains; ++c) {
      const float size = std::fabs(errors[i + c]);
      chains[c] += static_cast<double>(size);
      largest = std::max(largest, std::bit_cast<uint32_t>(size));
    }
  }
  for (; i < count; ++i) {
    chains[0] += static_cast<double>(std::fabs(errors[i]));
    largest = std::max(largest, std::bit_cast<uint32_t>(std::fabs(errors[i])));
  }
  return {(chains[0] + chains[1]) + (chains[2] + chains[3]), !(std::bit_cast<float>(largest) <= kShrinkBelow)};
}

// One iteration on one group; returns the sum of |weight - dequantised| from before the zero point moves. Each loop is
// one the compiler vectorises. scratch: 3 * count floats.
template <typename D>
double improve_zero(const float* weights, int64_t count, float scale, float& zero, float inverse_beta, float* scratch) {
  float* __restrict__ w = scratch;
  float* __restrict__ codes = scratch + count;
  float* __restrict__ errors = scratch + 2 * count;
  const float z = zero;
  for (int64_t i = 0; i < count; ++i) w[i] = D::round(weights[i]);
  for (int64_t i = 0; i < count; ++i) {
    const float code = round_half_even(D::round(D::round(w[i] * scale) + z));
    codes[i] = std::min(std::max(code, 0.0f), 15.0f);
  }
  for (int64_t i = 0; i < count; ++i) errors[i] = D::round(w[i] - D::round(D::round(codes[i] - z) / scale));
  const ErrorSize size = size_of_errors(errors, count);
  if (size.large) {
    for (int64_t i = 0; i < count; ++i) w[i] = D::round(w[i] - shrink<D>(errors[i], inverse_beta));
  }
  for (int64_t i = 0; i < count; ++i) codes[i] = D::round(codes[i] - D::round(w[i] * scale));
  zero = D::round(D::sum(codes, count) / static_cast<float>(count));
  return size.total;
}

template <typename D>
HqqGroups fit_asymmetric(const Matrix& source, int group, ThreadPool& pool) {
  HqqGroups result;
  const auto groups = static_cast<size_t>(source.rows * (source.cols / group));
  result.scale.resize(groups);
  result.zero.resize(groups);
  start_asymmetric<D>(source, group, pool, result);
  std::vector<double> row_error(static_cast<size_t>(source.rows));
  const auto elements = static_cast<double>(source.rows * source.cols);
  double beta = kBeta, best = 1e4;
  while (result.iterations < kIterations) {
    const auto inverse_beta = static_cast<float>(1 / beta);
    pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(3 * group));
      std::fill(row_error.begin() + begin, row_error.begin() + end, 0.0);
      for_groups(source, group, begin, end, [&](int64_t row, size_t index, const float* w) {
        row_error[static_cast<size_t>(row)] +=
            improve_zero<D>(w, group, result.scale[index], result.zero[index], inverse_beta, scratch.data());
      });
    });
    ++result.iterations;
    beta *= kKappa;
    double total = 0;
    for (double error : row_error) total += error;
    const double error = static_cast<double>(D::round(static_cast<float>(total / elements)));
    if (!(error < best)) break;
    best = error;
  }
  return result;
}

// One iteration of the symmetric form on one group: the least-squares scale for the codes of the last one.
float improve_scale(const float* weights, int64_t count, float scale, float code_min, float code_max, float* scratch) {
  float* products = scratch;
  float* squares = scratch + count;
  for (int64_t i = 0; i < count; ++i) {
    const float code = std::min(std::max(round_half_even(weights[i] / scale), code_min), code_max);
    products[i] = weights[i] * code;
    squares[i] = code * code;
  }
  const float den = F32::sum(squares, count);
  const float fitted = den > 0 ? F32::sum(products, count) / den : scale;
  return std::fabs(std::max(fitted, std::numeric_limits<float>::epsilon()));
}

}  // namespace

HqqGroups hqq_asymmetric(const Matrix& source, int group, HqqArithmetic arithmetic, ThreadPool& pool,
                         const std::string& name) {
  if (arithmetic == HqqArithmetic::kF32) return fit_asymmetric<F32>(source, group, pool);
  constexpr float kF16Max = 65504;
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    for_groups(source, group, begin, end, [&](int64_t, size_t, const float* w) {
      for (int i = 0; i < group; ++i) {
        if (std::fabs(w[i]) > kF16Max) {
          throw Error("tensor " + name + " holds a value that does not fit float16; use HQQ in float32");
        }
      }
    });
  });
  HqqGroups result = fit_asymmetric<F16>(source, group, pool);
  if (!std::all_of(result.zero.begin(), result.zero.end(), [](float z) { return std::isfinite(z); })) {
    throw Error("tensor " + name + ": HQQ in float16 overflows on it; use HQQ in float32");
  }
  return result;
}

HqqGroups hqq_symmetric(const Matrix& source, int group, int bits, ThreadPool& pool) {
  constexpr float kEpsilon = std::numeric_limits<float>::epsilon();
  constexpr float kConverged = 1e-5f;
  const float code_min = bits == 4 ? -8.0f : -128.0f, code_max = bits == 4 ? 7.0f : 127.0f;
  HqqGroups result;
  result.scale.resize(static_cast<size_t>(source.rows * (source.cols / group)));
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    for_groups(source, group, begin, end, [&](int64_t, size_t index, const float* w) {
      float largest = 0;
      for (int i = 0; i < group; ++i) largest = std::max(largest, std::fabs(w[i]));
      result.scale[index] = std::max(largest / -code_min, kEpsilon);
    });
  });
  std::vector<float> row_change(static_cast<size_t>(source.rows));
  while (result.iterations < kIterations) {
    pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(2 * group));
      std::fill(row_change.begin() + begin, row_change.begin() + end, 0.0f);
      for_groups(source, group, begin, end, [&](int64_t row, size_t index, const float* w) {
        const float before = result.scale[index];
        const float after = improve_scale(w, group, before, code_min, code_max, scratch.data());
        result.scale[index] = after;
        float& change = row_change[static_cast<size_t>(row)];
        change = std::max(change, std::fabs(after - before) / std::max(before, kEpsilon));
      });
    });
    ++result.iterations;
    if (*std::max_element(row_change.begin(), row_change.end()) < kConverged) break;
  }
  return result;
}

void hqq_encode(const QuantConfig& config, const HqqGroups& groups, size_t index, const float* values, int64_t count,
                int8_t* out) {
  const float scale = groups.scale[index];
  if (config.symmetric) {
    const float code_min = config.bits == 4 ? -8.0f : -128.0f, code_max = config.bits == 4 ? 7.0f : 127.0f;
    const float shift = config.bits == 4 ? 8.0f : 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = to_code(round_half_even(values[i] / scale) + shift, code_min + shift, code_max + shift);
    }
    return;
  }
  const float zero = groups.zero[index];
  for (int64_t i = 0; i < count; ++i) {
    const float code = round_half_even(values[i] * scale + zero);  // two roundings: see -ffp-contract in CMakeLists.txt
    out[i] = to_code(code, 0, 15);
  }
}

uint16_t hqq_stored_scale(const QuantConfig& config, HqqArithmetic arithmetic, const HqqGroups& groups, size_t index) {
  if (config.symmetric) return float_to_bf16(groups.scale[index]);
  const float inverse = 1.0f / groups.scale[index];
  return float_to_bf16(arithmetic == HqqArithmetic::kF16 ? round_to_f16(inverse) : inverse);
}

}  // namespace gemma4
