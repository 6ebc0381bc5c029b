// RefBackend: every op as plain loops, float32 values with float64 sums. It is the definition that the other backends
// are tested against, and is written to be read.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "backend/backend.h"
#include "backend/sample.h"
#include "base/bytes.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

float* row(const Tensor& t, int64_t i) { return t.row<float>(i); }

int32_t int_at(const Tensor& t, int64_t i) { return static_cast<const int32_t*>(t.data)[i]; }

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks & Gimpel 2016.
double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

int64_t slot_of(const KvCache& kv, int32_t seq, int64_t pos) {
  if (!kv.pages) return pos;
  const int64_t n = kv.pages.row_size();
  return int64_t{kv.pages.row<int32_t>(seq)[pos / kv.page % n]} * kv.page + pos % kv.page;
}

class RefBackend : public Backend {
 public:
  const char* name() const override { return "ref"; }
  DType activation_type() const override { return DType::kF32; }

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    Tensor t(nullptr, type, shape);
    const size_t bytes = static_cast<size_t>(std::max<int64_t>(t.bytes(), 1));
    std::unique_ptr<void, decltype(&std::free)> memory(std::calloc(bytes, 1), &std::free);
    if (!memory) throw OutOfMemory("out of memory: " + std::to_string(bytes >> 20) + " MiB were asked for");
    t.data = memory.get();
    memory_.emplace(t.data, std::move(memory));
    sizes_[t.data] = static_cast<int64_t>(bytes);
    used_ += static_cast<int64_t>(bytes);
    return t;
  }

  void release(Tensor t) override {
    used_ -= sizes_[t.data];
    CHECK(memory_.erase(t.data) == 1);
  }

  int64_t memory_used() const override { return used_; }

  // Keeps the float32 values, so that an op needs to know no formats.
  Matrix upload(std::span<const Matrix> matrices) override {
    Matrix out;
    out.format = Format::kF32;
    out.cols = matrices[0].cols;
    for (const Matrix& m : matrices) {
      CHECK(m.cols == out.cols);
      out.rows += m.rows;
    }
    auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(out.rows * out.cols));
    float* to = values->data();
    for (const Matrix& m : matrices) {
      for (int64_t r = 0; r < m.rows; ++r, to += out.cols) unpack_row(m, r, to);
    }
    out.codes = Tensor(values->data(), DType::kF32, {out.rows, out.cols});
    out.uploaded = values;
    out.device_bytes = out.codes.bytes();
    return out;
  }

  std::string layout() const override { return "float32 rows, version 1"; }

  PrepackedWeight serialize(const Matrix& m) override {
    const auto* bytes = static_cast<const std::byte*>(m.codes.data);
    return {m.format, m.rows, m.cols, 0, "rows", {bytes, static_cast<size_t>(m.codes.bytes())}, m.uploaded};
  }

  Matrix load_prepacked(const PrepackedWeight& stored) override {
    const int64_t size = checked_mul(checked_mul(stored.rows, stored.cols, "a weight"), 4, "a weight");
    if (stored.format != Format::kF32 || stored.layout != "rows" ||
        static_cast<uint64_t>(size) != stored.bytes.size()) {
      throw Error("a weight of a program for ref is not float32 rows of the size that it claims");
    }
    Matrix out;
    out.format = Format::kF32;
    out.rows = stored.rows, out.cols = stored.cols;
    out.codes = Tensor(const_cast<std::byte*>(stored.bytes.data()), DType::kF32, {out.rows, out.cols});
    out.uploaded = stored.hold;
    out.device_bytes = size;
    return out;
  }

  void write(Tensor dst, const void* src) override {
    CHECK(dst.contiguous());
    std::memcpy(dst.data, src, static_cast<size_t>(dst.bytes()));
  }

  void read(void* dst, Tensor src) override {
    const size_t bytes = static_cast<size_t>(src.row_size()) * dtype_size(src.dtype);
    const size_t step = static_cast<size_t>(src.stride) * dtype_size(src.dtype);
    for (int64_t i = 0; i < src.rows(); ++i) {
      std::memcpy(static_cast<char*>(dst) + static_cast<size_t>(i) * bytes,
                  static_cast<const char*>(src.data) + static_cast<size_t>(i) * step, bytes);
    }
  }

  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    for (int64_t i = 0; i < out.rows(); ++i) {
      const int32_t id = int_at(ids, i);
      CHECK(id >= 0 && id < table.rows);
      for (int64_t c = 0; c < table.cols; ++c) row(out, i)[c] = row(table.codes, id)[c] * scale;
    }
  }

  void linear(Tensor out, Tensor x, const Matrix& w) override {
    CHECK(x.row_size() == w.cols && out.row_size() == w.rows && out.rows() == x.rows());
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t n = 0; n < w.rows; ++n) {
        const float *from = row(x, i), *weights = row(w.codes, n);
        double sum = 0;
        for (int64_t k = 0; k < w.cols; ++k) sum += double{from[k]} * double{weights[k]};
        row(out, i)[n] = static_cast<float>(sum);
      }
    }
  }

  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override {
    const int64_t dim = x.shape[static_cast<size_t>(x.rank - 1)];
    const int64_t count = x.row_size() / dim;
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t h = 0; h < count; ++h) {
        const float* from = row(x, i) + h * dim;
        float* to = row(out, i) + h * dim;
        double squares = 0;
        for (int64_t d = 0; d < dim; ++d) squares += double{from[d]} * double{from[d]};
        const double factor = 1 / std::sqrt(squares / static_cast<double>(dim) + double{eps});
        for (int64_t d = 0; d < dim; ++d) {
          to[d] = static_cast<float>(from[d] * factor) * (weight ? row(weight, 0)[d] : 1.0f);
        }
      }
    }
  }

  void add(Tensor x, Tensor y, float scale) override {
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t c = 0; c < x.row_size(); ++c) row(x, i)[c] = (row(x, i)[c] + row(y, i)[c]) * scale;
    }
  }

  void geglu(Tensor out, Tensor gate_up) override {
    const int64_t n = out.row_size();
    CHECK(gate_up.row_size() == 2 * n);
    for (int64_t i = 0; i < out.rows(); ++i) {
      for (int64_t c = 0; c < n; ++c) {
        row(out, i)[c] = static_cast<float>(gelu_tanh(row(gate_up, i)[c]) * row(gate_up, i)[n + c]);
      }
    }
  }

  void rope(Tensor x, Tensor pos, const Rope& rope) override {
    const int64_t heads = x.shape[1], dim = x.shape[2], axes = pos.row_size(), half = rope.block / 2;
    CHECK(axes * rope.block == dim);
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t axis = 0; axis < axes; ++axis) {
          float* block = row(x, i) + h * dim + axis * rope.block;
          for (int64_t j = 0; j < half; ++j) {
            // The angle is a float32 product, as in the reference: at large positions its rounding is part of the
            // model.
            const float angle = static_cast<float>(pos.row<int32_t>(i)[axis]) * row(rope.inv_freq, 0)[j];
            const float cosine = std::cos(angle), sine = std::sin(angle);
            const float a = block[j], b = block[j + half];
            block[j] = a * cosine - b * sine;
            block[j + half] = b * cosine + a * sine;
          }
        }
      }
    }
  }

  void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) override {
    CHECK(positions_written(rows.host) <= kv.slots_per_seq());
    for (int64_t i = 0; i < k.rows(); ++i) {
      const int64_t slot = slot_of(kv, rows.host[static_cast<size_t>(i)].seq, rows.host[static_cast<size_t>(i)].pos);
      std::copy_n(row(k, i), k.row_size(), row(kv.k, slot));
      std::copy_n(row(v, i), v.row_size(), row(kv.v, slot));
    }
  }

  void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) override {
    const int64_t heads = q.shape[1], dim = q.shape[2], shared = heads / kv.k.shape[1];
    std::vector<double> score, sum;
    std::vector<int64_t> slot;
    for (int64_t i = 0; i < q.rows(); ++i) {
      const Row r = rows.host[static_cast<size_t>(i)];
      score.resize(static_cast<size_t>(r.last - r.first + 1));
      slot.resize(score.size());
      for (int32_t p = r.first; p <= r.last; ++p) slot[static_cast<size_t>(p - r.first)] = slot_of(kv, r.seq, p);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = h / shared * dim;
        double top = -1e300, total = 0;
        const float* query = row(q, i) + h * dim;
        for (size_t n = 0; n < slot.size(); ++n) {
          const float* key = row(kv.k, slot[n]) + at;
          double dot = 0;
          for (int64_t d = 0; d < dim; ++d) dot += double{query[d]} * double{key[d]};
          score[n] = dot;
          top = std::max(top, dot);
        }
        for (double& s : score) total += s = std::exp(s - top);
        sum.assign(static_cast<size_t>(dim), 0);
        for (size_t n = 0; n < slot.size(); ++n) {
          const float* value = row(kv.v, slot[n]) + at;
          for (int64_t d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += score[n] * double{value[d]};
        }
        float* to = row(out, i) + h * dim;
        for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<float>(sum[static_cast<size_t>(d)] / total);
      }
    }
  }

  void convert(Tensor out, Tensor x) override {
    CHECK(out.rows() == x.rows() && out.row_size() == x.row_size());
    for (int64_t i = 0; i < x.rows(); ++i) std::copy_n(row(x, i), x.row_size(), row(out, i));
  }

  void gather(Tensor out, Tensor x, Tensor index) override {
    for (int64_t i = 0; i < out.rows(); ++i) std::copy_n(row(x, int_at(index, i)), x.row_size(), row(out, i));
  }

  void scatter(Tensor x, Tensor rows, Tensor index) override {
    for (int64_t i = 0; i < rows.rows(); ++i) std::copy_n(row(rows, i), x.row_size(), row(x, int_at(index, i)));
  }

  void pool(Tensor out, Tensor x, Tensor group, float scale) override {
    for (int64_t i = 0; i < out.rows(); ++i) std::fill_n(row(out, i), out.row_size(), 0.0f);
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t c = 0; c < x.row_size(); ++c) row(out, int_at(group, i))[c] += row(x, i)[c] * scale;
    }
  }

  void affine(Tensor x, Tensor bias, Tensor scale) override {
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t c = 0; c < x.row_size(); ++c) row(x, i)[c] = (row(x, i)[c] - row(bias, 0)[c]) * row(scale, 0)[c];
    }
  }

  void softcap(Tensor x, float cap) override {
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t c = 0; c < x.row_size(); ++c) row(x, i)[c] = std::tanh(row(x, i)[c] / cap) * cap;
    }
  }

  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override {
    std::vector<float> copy;
    for (int64_t i = 0; i < logits.rows(); ++i) {
      copy.assign(row(logits, i), row(logits, i) + logits.row_size());
      static_cast<int32_t*>(ids.data)[i] =
          sample_row(copy.data(), logits.row_size(), sampling[static_cast<size_t>(i)], scratch_);
    }
  }

 private:
  std::map<void*, std::unique_ptr<void, decltype(&std::free)>> memory_;
  std::map<void*, int64_t> sizes_;
  int64_t used_ = 0;
  std::vector<int32_t> scratch_;
};

}  // namespace

std::unique_ptr<Backend> make_ref() { return std::make_unique<RefBackend>(); }

}  // namespace gemma4
