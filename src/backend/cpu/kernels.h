// The cpu backend's kernels as plain functions: cpu.cc checks arguments and calls them; each picks the best SIMD target
// of the machine (Highway's run-time dispatch) and splits its work over the pool. All tensors are float32 on the host.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/cpu/packed.h"
#include "base/threads.h"

namespace gemma4::cpu {

// Memory that ops reuse: it grows to the largest call and stays, so that stepping allocates nothing.
class Scratch {
 public:
  Scratch(int threads, std::shared_ptr<std::atomic<int64_t>> used);
  std::vector<int32_t> plan;      // attend's: first row of each block of rows
  float* shared(int64_t floats);  // one for all threads, valid until the next shared()
  // A thread's own, of the size last reserved for all threads: whichever of them take part in a loop, memory grows
  // only with the size of a call.
  void reserve_local(int64_t floats);
  float* local(int thread) const { return reinterpret_cast<float*>(local_[thread]->data()); }

 private:
  float* grow(std::unique_ptr<Storage>& storage, int64_t& size, int64_t floats);
  std::shared_ptr<std::atomic<int64_t>> used_;
  std::unique_ptr<Storage> shared_;
  int64_t shared_size_ = 0;
  std::vector<std::unique_ptr<Storage>> local_;  // [threads]
  std::vector<int64_t> local_size_;              // [threads]
};

constexpr int64_t kMaxHeadDim = 1024;

struct Context {
  ThreadPool& pool;
  Scratch& scratch;
};

// Key-value cache in the backend's own layout, one block for each KV head (attend.cc):
//   keys    [heads] [slots / 32] [dim] [32]   lanes are keys, as lanes are outputs in a Packed panel
//   values  [heads] [slots] [dim rounded up to 16]
struct KvLayout {
  int64_t slots = 0;  // a multiple of 32
  int64_t heads = 0, dim = 0, value_dim = 0;
  float* keys = nullptr;
  float* values = nullptr;
};

void linear(const Context& c, const Tensor& out, const Tensor& x, const Packed& w);

void rms_norm(const Context& c, const Tensor& out, const Tensor& x, const float* weight, float eps);
void add(const Context& c, const Tensor& x, const Tensor& y, float scale);
void geglu(const Context& c, const Tensor& out, const Tensor& gate_up);
void rope(const Context& c, const Tensor& x, const Tensor& pos, const Rope& rope);
void pool(const Context& c, const Tensor& out, const Tensor& x, const int32_t* group, float scale);
void affine(const Context& c, const Tensor& x, const float* bias, const float* scale);
void softcap(const Context& c, const Tensor& x, float cap);

void kv_write(const Context& c, const KvLayout& cache, const KvCache& kv, const Tensor& k, const Tensor& v,
              std::span<const Row> rows);
void kv_copy_slot(const KvLayout& cache, int64_t from, int64_t to);
void attention(const Context& c, const Tensor& out, const Tensor& q, const KvLayout& cache, const KvCache& kv,
               std::span<const Row> rows);

}  // namespace gemma4::cpu
