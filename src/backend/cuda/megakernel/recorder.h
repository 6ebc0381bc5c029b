// A decode step as one launch. The ops of a step of one row, in the order in which the model says them, become a
// list of operations; one kernel with a block on each multiprocessor walks it. Weights and cached keys stream through
// one ring of shared memory without a pause, across the borders between operations, so that memory stays busy while
// blocks wait for each other: that is all this is for. step.cc records, step.cu runs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention/kv_cache_view.h"
#include "backend/cuda/comm/peer_all_reduce.h"
#include "backend/cuda/gemm/gemv_bf16.h"
#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

inline constexpr int kStepDim = kResidualDimMax;  // most columns of the residual stream
inline constexpr int kStepRegions = 8;            // of words; region 0 stands for the inboxes of sums
inline constexpr int kRegionWords = 32768;        // 31B: 16,384 and 18,432 of queries, keys, values; 21,504 of GeGLU

// Where values pass from one operation to the next without a barrier: float32 words that say by themselves whether they
// have come (step_words.cuh). What a product takes lies in word_place()'s order.
struct StepWords {
  uint32_t* at;  // [kRegionWords]; null: values pass through memory, and every block waits for all others
  int region;
  int turn;  // 1, 2, ..: uses of the region in this step, this one included
};

// out = x w^T of one row, or GeGLU of it. Fields as StreamArguments (linear_stream.cuh).
struct StepLinear {
  const uint8_t* weights;
  const void* x;       // BF16 or F32 [cols]; unused where from_norm
  void* out;           // BF16 or F32
  StepWords from, to;  // instead of x and out
  int rows, chunks, panels;
  // Blocks have equal shares of the units (panel, column chunk), in their order, but that the last `spare` of a panel
  // count for nothing: who has a panel's end adds up the parts of other blocks, and should find them there when its own
  // is done. Worked out without divisions: between one product and the next they would be waited for.
  int each, more;  // units that count of a block; the first `more` blocks have one more
  int spare;
  uint64_t of_a_chunk, of_a_share;  // 2^32 / chunks and 2^32 / (chunks - spare), rounded up
  bool x_f32, out_f32, paired, geglu;
  bool whole;      // the block holds all of x, not what it multiplies
  bool from_norm;  // x is what the StepNorm before made
  bool second;     // parts of panels go through the second half of the workspace's
  int sum;         // 1, 2, ..: the result is only sent, this rank's part of that sum of the step; 0: it is written

  __host__ __device__ int first_unit(int block) const {
    const int counted = block * each + (block < more ? block : more);
    return counted + quotient(counted, of_a_share) * spare;
  }
  __host__ __device__ int panel_of(int unit) const { return quotient(unit, of_a_chunk); }
  // value / n by 2^32 / n, rounded up: exact while value * n is below 2^32.
  __host__ __device__ static int quotient(int value, uint64_t inverse) {
    return static_cast<int>(static_cast<uint32_t>(value) * inverse >> 32);
  }
};

// x = (x + norm(y) * post) * scale; out = norm(x) * next. Every block does all of it, for itself.
struct StepNorm {
  const void* y;  // BF16 or F32 [dim]
  float* x;       // [dim]
  const float *post, *next;
  __nv_bfloat16* out;  // null: only x
  int dim;
  float scale, eps;
  int sum;  // y is that sum over the ranks (StepLinear); 0: y is in memory
  bool y_f32;
  bool load_x;  // the first of a program: x comes from memory; later ones find it in shared memory
};

// heads() and attend() of one row: its key is the last that it sees.
struct StepAttend {
  const void *q, *k, *v;  // BF16 or F32, as the product left them, or words; v null: V is K before its norm
  void* out;              // BF16 [q heads, dim]
  StepWords from, to;     // what q, k and v point into; instead of out
  const float *q_norm, *k_norm, *inv_freq;
  const int32_t* pos;  // [1]
  const int32_t* row;  // Row
  KvCacheView kv;
  float eps;
  int group, splits;  // query heads of a KV head; blocks of a KV head
  bool f32;           // q, k and v
};

enum class StepKind : int { kLinear, kAttend, kNorm };

struct alignas(16) StepOp {
  StepKind kind;
  bool arrive;  // the next operation waits for all blocks to be done with this one
  union {
    StepLinear linear;
    StepNorm norm;
    StepAttend attend;
  };
  StepOp() { std::memset(static_cast<void*>(this), 0, sizeof *this); }  // programs are compared as bytes
};

struct StepProgram {
  const StepOp* ops;  // on the device
  int count;
  Layout layout;           // of every product
  float* x;                // residual stream, written at the end; null: no norm in the program
  int dim;                 // of x
  int uses[kStepRegions];  // of each region; of the first: sums
};

// Memory that the blocks meet in.
struct StepWorkspace {
  DecodeWorkspace decode;
  float* partial = nullptr;     // of attention: kAttendPartialBytes
  int* counters = nullptr;      // of attention: zero between launches
  unsigned* barrier = nullptr;  // [2], zero between launches
  uint32_t* words = nullptr;    // [kStepRegions, kRegionWords]
  uint64_t* parts = nullptr;    // [step_parts()]
  uint32_t* numbers = nullptr;  // [kStepRegions + 1]: uses of each region in earlier steps, then operations
  RankBuffers peers;
};

constexpr int64_t step_parts(int blocks) { return int64_t{2} * blocks * kPanelRows; }
bool step_fits(const DecodeWorkspace& workspace);
void run_step(const StepProgram& program, const StepWorkspace& workspace, cudaStream_t stream);

// Most columns of x that a block may hold as fixed-point numbers, in chunks of 64: what `down` of the 31B needs where
// 132 blocks share it.
inline constexpr int kStepChunks = 116;

// StepLinear::spare of a product whose panels several blocks share: a block with a panel's end should multiply 0.7 us
// longer than others, until their parts have come; a fifth of the work where that is less.
constexpr int64_t step_spare(int64_t even) { return even / 5 < 7 ? even / 5 : 7; }  // of `even` units a block

// Collects ops and launches them. Between begin() and end() the backend offers each op; what is taken runs at
// flush(), which must come before anything else is put on the stream.
class StepRecorder {
 public:
  explicit StepRecorder(const StepWorkspace& workspace);
  ~StepRecorder();

  void begin() { open_ = true; }
  void end(bool capturing, cudaStream_t stream) { flush(capturing, stream), open_ = false; }
  void drop() { clear(), open_ = false; }  // the step failed: what was taken is forgotten
  bool open() const { return open_; }
  const std::vector<StepOp>& operations() const { return ops_; }  // taken and not launched yet

  // Each returns whether it took the op; `plain` does the same work by itself.
  using Plain = std::function<void(cudaStream_t)>;
  bool linear(const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu, Plain plain);
  bool qk_norm_rope_cache(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v,
                          const Backend::QkNorms& norms, const Tensor& pos, const Rope& rope, const KvCacheView& kv,
                          const Tensor& rows, Plain plain);
  bool attention(const Tensor& out, const Tensor& query, const KvCacheView& kv, const Tensor& rows, Plain plain);
  bool add_rms_norm(const Tensor& out, const Tensor& x, const Tensor& y, const Tensor& post, float scale,
                    const Tensor& next, float eps, Plain plain);

  bool all_reduce(const Tensor& x, Plain plain);

  // Launches what was taken. While a graph is captured nothing can be uploaded: a program that was not seen before runs
  // as plain kernels then, which does not happen to a step that ran once before it was captured.
  void flush(bool capturing, cudaStream_t stream);

 private:
  struct Uploaded;
  const StepOp* upload(bool capturing);
  bool worthwhile() const;
  bool make_sum(const Tensor& x);
  enum class Values { kHeads, kAttended, kGated };
  StepWords words(Values what, int64_t size);
  StepWords words_to_product(const Tensor& x, int64_t cols);
  void meet();
  void mark_barriers();
  void clear();
  StepOp& add(StepKind kind, Plain plain);

  StepWorkspace workspace_;
  bool enabled_ = false, open_ = false, heads_pending_ = false;
  std::vector<StepOp> ops_;
  std::vector<Plain> plain_;
  Layout layout_ = Layout::kBF16;
  float* x_ = nullptr;
  int dim_ = 0, norms_ = 0;
  int64_t sum_dim_ = 0;  // of every sum so far: words tell what is new only while all of them are written each time
  struct Region {        // for values of one kind and size, for the same reason
    Values what;
    int64_t size;
    bool used;  // since all blocks met
  };
  std::vector<Region> regions_;
  int uses_[kStepRegions] = {};
  int products_ = 0;             // since all blocks met
  const void* query_ = nullptr;  // of pending heads
  std::vector<Uploaded> uploaded_;
};

}  // namespace gemma4::cuda
