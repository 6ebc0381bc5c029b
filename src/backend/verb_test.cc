#include "backend/verb_test.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/targets.h"
#include "base/bf16.h"

namespace gemma4 {

std::vector<std::string> backends_under_test() {
  std::vector<std::string> names;
  for (const char* target : cpu::targets()) names.push_back(std::string("cpu_") + target);
  try {
    make_cuda(0);
    names.push_back("cuda");
  } catch (const Error&) {  // no GPU, or no CUDA in this build: CMake and `gemma4 inspect` say so aloud
  }
  return names;
}

std::unique_ptr<Backend> make_under_test(const std::string& name) {
  if (name == "cuda") return make_cuda(0);
  CHECK(name.rfind("cpu_", 0) == 0);
  cpu::use_target(name.substr(4).c_str());
  return make_cpu(2);
}

Floats Random::values(int64_t count, float low, float high) {
  Floats out(static_cast<size_t>(count));
  for (float& v : out) v = uniform(low, high);
  return rounded(std::move(out));
}

Floats rounded(Floats values) {
  for (float& v : values) v = round_to_bf16(v);
  return values;
}

namespace {

std::byte* reserve(HostMatrix& m, int64_t bytes) {
  m.memory.emplace_back(static_cast<size_t>(bytes));
  return m.memory.back().data();
}

void random_bytes(std::byte* to, int64_t count, Random& random) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<std::byte>(random.below(256));
}

Tensor random_bf16(HostMatrix& m, int64_t rows, int64_t cols, float low, float high, Random& random) {
  auto* to = reinterpret_cast<uint16_t*>(reserve(m, rows * cols * 2));
  for (int64_t i = 0; i < rows * cols; ++i) to[i] = float_to_bf16(random.uniform(low, high));
  return Tensor(to, DType::kBF16, {rows, cols});
}

// Random bytes are blocks too, once their half-precision scales are set to something sane. Offsets: docs/FORMATS.md.
void random_blocks(HostMatrix& m, Random& random) {
  const Matrix& w = m.matrix;
  const FormatInfo& f = info(w.format);
  auto* to = reserve(m, w.rows * row_bytes(w));
  random_bytes(to, w.rows * row_bytes(w), random);
  std::vector<int> scales = {0};
  if (w.format == Format::kQ4_1 || w.format == Format::kQ5_1 || w.format == Format::kQ4_K || w.format == Format::kQ5_K)
    scales = {0, 2};
  if (w.format == Format::kQ2_K) scales = {80, 82};
  if (w.format == Format::kQ3_K) scales = {108};
  if (w.format == Format::kQ6_K) scales = {208};
  for (int64_t block = 0; block < w.rows * (w.cols / f.block_cols); ++block) {
    for (int offset : scales) {
      const uint16_t half = float_to_f16(random.uniform(0.0005f, 0.002f));
      std::memcpy(to + block * f.block_bytes + offset, &half, 2);
    }
  }
  m.matrix.codes = Tensor(to, DType::kU8, {w.rows, row_bytes(w)});
}

}  // namespace

HostMatrix random_matrix(Format format, int64_t rows, int64_t cols, int group, Random& random) {
  HostMatrix m;
  Matrix& w = m.matrix;
  w.format = format, w.rows = rows, w.cols = cols, w.group = group;
  switch (format) {
    case Format::kF32: {
      auto* to = reinterpret_cast<float*>(reserve(m, rows * cols * 4));
      for (int64_t i = 0; i < rows * cols; ++i) to[i] = round_to_bf16(random.uniform(-0.1f, 0.1f));
      w.codes = Tensor(to, DType::kF32, {rows, cols});
      break;
    }
    case Format::kBF16:
      w.codes = random_bf16(m, rows, cols, -0.1f, 0.1f, random);
      break;
    case Format::kF16: {
      auto* to = reinterpret_cast<uint16_t*>(reserve(m, rows * cols * 2));
      for (int64_t i = 0; i < rows * cols; ++i) to[i] = float_to_f16(round_to_bf16(random.uniform(-0.1f, 0.1f)));
      w.codes = Tensor(to, DType::kF16, {rows, cols});
      break;
    }
    case Format::kInt4:
      w.codes = Tensor(reserve(m, rows * cols / 2), DType::kU8, {rows, cols / 2});
      random_bytes(static_cast<std::byte*>(w.codes.data), rows * cols / 2, random);
      w.scale = random_bf16(m, cols / group, rows, 0.005f, 0.02f, random);
      w.zero = random_bf16(m, cols / group, rows, 5, 10, random);
      break;
    case Format::kInt8:
      w.codes = Tensor(reserve(m, rows * cols), DType::kI8, {rows, cols});
      random_bytes(static_cast<std::byte*>(w.codes.data), rows * cols, random);
      w.scale = random_bf16(m, rows, cols / group, 0.0003f, 0.001f, random);
      break;
    default:
      random_blocks(m, random);
  }
  return m;
}

Tensor put_as(Backend& be, DType type, const Floats& values, std::initializer_list<int64_t> shape) {
  const Tensor t = be.alloc(type, shape);
  CHECK(t.size() == static_cast<int64_t>(values.size()));
  if (type == DType::kF32) {
    be.write(t, values.data());
    return t;
  }
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    bits[i] = type == DType::kBF16 ? float_to_bf16(values[i]) : float_to_f16(values[i]);
  }
  be.write(t, bits.data());
  return t;
}

Tensor put(Backend& be, const Floats& values, std::initializer_list<int64_t> shape) {
  return put_as(be, be.activation_type(), values, shape);
}

Tensor put_ints(Backend& be, const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  const Tensor t = be.alloc(DType::kI32, shape);
  be.write(t, values.data());
  return t;
}

Floats get(Backend& be, const Tensor& t) {
  Floats out(static_cast<size_t>(t.size()));
  if (t.dtype == DType::kF32) {
    be.read(out.data(), t);
    return out;
  }
  std::vector<uint16_t> bits(out.size());
  be.read(bits.data(), t);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = t.dtype == DType::kBF16 ? bf16_to_float(bits[i]) : f16_to_float(bits[i]);
  }
  return out;
}

double relative_error(const Floats& got, const Floats& want) {
  CHECK(got.size() == want.size());
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(double{got[i]} - double{want[i]});
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    largest = std::max(largest, std::abs(double{want[i]}));
  }
  return worst / largest;
}

double tolerance(const Backend& be, double cpu) { return be.activation_type() == DType::kF32 ? cpu : 0x1p-7; }

}  // namespace gemma4
