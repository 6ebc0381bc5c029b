// OpRecorder: records the ops of a decode step and launches them as one kernel, the decode megakernel.
// RecordingBackend offers each op between begin() and end(); recorder.cc turns those it takes into instructions, and
// kernel.cu runs them.
//
// What the megakernel is. A decode step of few rows is bound by memory bandwidth, and the gaps between kernels leave
// memory idle. So one persistent kernel with a CTA on each SM walks the whole list of instructions: 7 a layer, 420 for
// the 31B. The producer warp of a CTA streams weights and cached keys through one pipeline in shared memory, across the
// borders between instructions and without a pause, so memory stays busy while CTAs wait for each other. This is all
// the megakernel is for. CTAs exchange values as flagged values (flagged_memory.cuh) instead of meeting at barriers.
//
// There are two megakernels: kernel.cu for one row, rows/kernel.cuh for 2 to 8. Both take the same lists.
//
// What exists twice. The decode step is a second backend: each of its ops has a kernel of its own and a version here.
//   op of one row                     own kernel                           in the megakernel
//   GEMV, GeGLU                       gemm/gemv_int8.cu                    gemv.cuh
//   conversion of x to int8 limbs     gemm/gemv_int8.cu                    int8_input.cuh
//   sum of split-K partials           gemm/gemv_pipeline.cuh               split_k_reduce.cuh
//   add + RMSNorm                     ops/rms_norm.cu                      rms_norm.cuh
//   QK norm, RoPE, KV cache write     attention/qk_norm_rope_cache.cu      attention.cuh
//   flash decoding                    attention/flash_decode.cu            attention.cuh
//   all-reduce over the ranks         comm/peer_all_reduce.cu              rank_all_reduce.cuh
// The own kernels read and write device memory and end between ops; they serve every other case: more rows, other
// layouts, other head sizes, older GPUs. The versions here keep the residual stream and the input of a GEMV in shared
// memory and wait for single values. A kernel could not have both without losing what makes the megakernel fast: the
// 31B decodes in 6.51 ms a step with it and in 7.61 ms without. So a change to one of these ops is a change in two
// places. kernel_test.cc compares the two, and recording_backend_test.cc checks that all ops of a step of the 31B run
// in the megakernel.
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
#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/megakernel/kernel_clocks.h"
#include "backend/cuda/megakernel/rows/plan.h"

namespace gemma4::cuda {

inline constexpr int kChannels = 8;           // channel 0 stands for the receive buffers of all-reduces
inline constexpr int kChannelValues = 32768;  // 31B: 16,384 and 18,432 of q, k and v; 21,504 of GeGLU

// Where one instruction passes values to the next without a barrier: a buffer of flagged float32 values
// (flagged_memory.cuh). The input of a GEMV is in the order of flagged_offset().
struct FlaggedChannel {
  uint32_t* values;  // [kChannelValues]; null: values pass through memory, and the reader waits for all CTAs
  int index;         // of the channel
  int epoch;         // 1, 2, ..: uses of the channel in this step, this one included
};

// out = x w^T of one row, or GeGLU of it. Fields as GemvArguments (gemv_pipeline.cuh).
struct GemvInstruction {
  const uint8_t* weights;
  const void* x;            // BF16 or F32 [cols]; unused where from_norm
  void* out;                // BF16 or F32
  FlaggedChannel from, to;  // instead of x and out
  int rows, col_tiles, row_tiles;
  // A work unit is 64 columns of a row tile: 8 weight tiles. CTAs get equal ranges of consecutive units, except that
  // the last `spare` units of each row tile do not count: the CTA that has the end of a row tile reduces the partials
  // of other CTAs, and should find them there when its own work is done. The fields spare the kernel divisions, whose
  // latency would be exposed between two GEMVs.
  int each, more;  // counted units of a CTA; the first `more` CTAs have one more
  int spare;
  uint64_t inverse_col_tiles, inverse_counted;  // 2^32 / col_tiles and 2^32 / (col_tiles - spare), rounded up
  bool x_f32, out_f32, paired, geglu;
  bool whole;            // the CTA holds all of x, not only the columns of its range
  bool from_norm;        // x is the output of the RmsNormInstruction before
  bool second_partials;  // uses the second half of the workspace's split-K partials
  // Of several rows (rows/): where x comes from, and whether it lies in memory, BF16 or F32 [rows, cols]; then the list
  // begins with this GEMV.
  LimbSource limbs;
  bool from_memory;
  int64_t x_stride;
  int all_reduce;  // 1, 2, ..: the result is this rank's input to that all-reduce of the step and is only sent;
                   // 0: the result is written

  __host__ __device__ int first_unit(int block) const {
    const int counted = block * each + (block < more ? block : more);
    return counted + quotient(counted, inverse_counted) * spare;
  }
  __host__ __device__ int row_tile_of(int unit) const { return quotient(unit, inverse_col_tiles); }
  // value / n, given 2^32 / n rounded up. Exact while value * n is below 2^32.
  __host__ __device__ static int quotient(int value, uint64_t inverse) {
    return static_cast<int>(static_cast<uint32_t>(value) * inverse >> 32);
  }
};

// x = (x + norm(y) * post) * scale; out = norm(x) * next. Every CTA computes all of it for itself.
struct RmsNormInstruction {
  const void* y;  // BF16 or F32 [dim]
  float* x;       // [dim]
  const float *post, *next;
  __nv_bfloat16* out;  // null: only x
  int dim;
  float scale, eps;
  int all_reduce;  // y is the result of that all-reduce (GemvInstruction); 0: y is in memory
  bool y_f32;
  int64_t x_stride, out_stride;  // of several rows, in elements
  bool load_x;                   // the first norm of a list reads x from memory; later ones find it in shared memory
};

// qk_norm_rope_cache() and attention() of one row; the row's own key is the last one it sees.
struct AttentionInstruction {
  const void *q, *k, *v;    // BF16 or F32 results of the GEMV, or flagged values; v null: V is K before its norm
  void* out;                // BF16 [q heads, dim]
  FlaggedChannel from, to;  // from: q, k and v point into it; to: instead of out
  const float *q_norm, *k_norm, *inv_freq;
  const int32_t* pos;  // [1]
  const int32_t* row;  // Row
  KvCacheView kv;
  float eps;
  int group, splits;  // query heads of a KV head; CTAs of a KV head
  bool f32;           // type of q, k and v
};

enum class Opcode : int { kGemv, kAttention, kRmsNorm };

struct alignas(16) Instruction {
  Opcode opcode;
  bool arrive;  // the next instruction waits until all CTAs have finished this one
  union {
    GemvInstruction gemv;
    RmsNormInstruction rms_norm;
    AttentionInstruction attention;
  };
  Instruction() { std::memset(static_cast<void*>(this), 0, sizeof *this); }  // lists are compared as bytes
};

struct InstructionList {
  const Instruction* instructions;  // [count], on the device
  int count;
  Layout layout;  // of every GEMV's weights
  float* x;       // [dim] residual stream, written at the end; null: the list has no norm
  int dim;        // of x
  int rows;       // 1, or of x with a stride of x_stride elements
  int64_t x_stride;
  const void* step_rows[2];  // of several rows: Row [rows] of sliding and of full layers; null: no such layer
  int epochs[kChannels];     // uses of each channel; of channel 0: all-reduces
};

// Device memory through which the CTAs exchange values.
struct MegakernelWorkspace {
  GemvWorkspace decode;
  float* attention_partials = nullptr;  // kAttentionPartialBytes
  int* attention_counters = nullptr;    // zero between launches
  unsigned* grid_barrier = nullptr;     // [2], zero between launches
  uint32_t* channels = nullptr;         // [kChannels, kChannelValues]
  uint64_t* partials = nullptr;         // [split_k_partials()]
  float4* residual = nullptr;           // [CTAs, kResidualDimMax / 4], where megakernel_residual_bytes() is not 0
  uint32_t* epochs = nullptr;           // [kChannels + 1]: uses of each channel in earlier steps, then instructions
  RankBuffers ranks;
  RowsWorkspace rows;  // null: one row alone
#if GEMMA4_KERNEL_CLOCKS
  ClockEntry* clocks = nullptr;
#endif
};

constexpr int64_t split_k_partials(int blocks) { return int64_t{2} * blocks * kRowTileRows; }
bool megakernel_fits(const GemvWorkspace& workspace);
// Of MegakernelWorkspace::residual: where shared memory does not hold the residual stream.
int64_t megakernel_residual_bytes(const GemvWorkspace& workspace);
void launch_megakernel(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream);
// Of up to 4 and up to 8 rows.
void launch_megakernel_rows4(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream);
void launch_megakernel_rows8(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream);

// Most columns of x that a CTA may hold as int8 limbs, in tiles of 64.
int megakernel_input_tiles(const GemvWorkspace& workspace);

// GemvInstruction::spare of a GEMV where several CTAs share a row tile, for `even` units a CTA. A CTA with the end of a
// row tile should multiply 0.7 us longer than others, until their partials have come; a fifth of its work if that is
// less.
constexpr int64_t spare_units(int64_t even) { return even / 5 < 7 ? even / 5 : 7; }

// Of the layers of one step. QK norm, RoPE, the cache write and attention count as one op.
struct OpCounts {
  int ops = 0;             // of rows that the megakernel takes, offered to the recorder
  int megakernel_ops = 0;  // of those: run by the megakernel
};

class OpRecorder {
 public:
  // `launch`: for tests without a GPU, called instead of launch_megakernel() with a list in host memory.
  using Launch = std::function<void(const InstructionList& list)>;
  explicit OpRecorder(const MegakernelWorkspace& workspace, Launch launch = nullptr);
  ~OpRecorder();

  void begin();
  void end(bool capturing, cudaStream_t stream) { flush(capturing, stream), open_ = false; }
  void discard() { clear(), open_ = false; }  // the step failed: forgets what was recorded
  bool open() const { return open_; }
  const std::vector<Instruction>& instructions() const { return instructions_; }  // recorded and not launched yet
  // Of the step since begin(). Ops after the last norm of a step do not count: the LM head always runs by its own
  // kernel.
  OpCounts counts() const;

  // Each returns whether it took the op; `fallback` runs the op by its own kernel. What is taken runs at flush(), which
  // must come before anything else is put on the stream.
  using Fallback = std::function<void(cudaStream_t)>;
  bool linear(const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu, Fallback fallback);
  bool qk_norm_rope_cache(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v,
                          const Backend::QkNorms& norms, const Tensor& pos, const Rope& rope, const KvCacheView& kv,
                          const Tensor& rows, Fallback fallback);
  bool attention(const Tensor& out, const Tensor& query, const KvCacheView& kv, const Tensor& rows, Fallback fallback);
  bool add_rms_norm(const Tensor& out, const Tensor& x, const Tensor& y, const Tensor& post, float scale,
                    const Tensor& next, float eps, Fallback fallback);
  bool all_reduce(const Tensor& x, Fallback fallback);

  // Launches what was recorded. A captured graph cannot contain an upload: while one is captured, a list that is not on
  // the device yet runs by its fallbacks. A step that ran once before it is captured avoids this.
  void flush(bool capturing, cudaStream_t stream);

 private:
  struct Uploaded;
  const Instruction* upload(bool capturing);
  bool worthwhile() const;
  bool takes_rows(int64_t rows) const;
  bool limbs_for_gemv(const Tensor& x, const DeviceMatrix& w, bool geglu, bool from_norm, LimbSource& limbs) const;
  bool make_all_reduce(const Tensor& x);
  enum class Values { kQkv, kAttention, kGeglu };
  FlaggedChannel channel(Values what, int64_t size);
  FlaggedChannel channel_to_gemv(const Tensor& x, int64_t cols);
  void all_blocks_barrier();
  void mark_barriers();
  void clear();
  Instruction& add(Opcode opcode, Fallback fallback);
  bool last_is(Opcode opcode) const;
  void append_fallback(Fallback fallback);

  MegakernelWorkspace workspace_;
  Launch launch_;
  bool enabled_ = false, open_ = false, attention_pending_ = false;
  std::vector<Instruction> instructions_;
  std::vector<Fallback> fallbacks_;
  Layout layout_ = Layout::kBF16;
  float* x_ = nullptr;
  int dim_ = 0, norms_ = 0;
  int rows_max_ = 1;               // that an op may have
  int64_t rows_ = 0;               // of every op so far; 0: none yet
  int64_t x_stride_ = 0;           // of several rows
  const void* step_rows_[2] = {};  // of sliding and of full layers
  int64_t all_reduce_dim_ = 0;     // of every all-reduce so far: flags are valid only while each use writes all values
  struct Channel {                 // for values of one meaning and size, for the same reason
    Values what;
    int64_t size;
    bool used;  // since the last barrier over all CTAs
  };
  std::vector<Channel> channels_;
  int epochs_[kChannels] = {};
  int gemvs_ = 0;                                                                // since the last barrier over all CTAs
  const void* query_ = nullptr;                                                  // of the pending attention
  int offered_ops_ = 0, layer_ops_ = 0, recorded_ops_ = 0, megakernel_ops_ = 0;  // see counts()
  std::vector<Uploaded> uploaded_;
#if GEMMA4_KERNEL_CLOCKS
  std::unique_ptr<KernelClocks> clocks_;
#endif
};

}  // namespace gemma4::cuda
