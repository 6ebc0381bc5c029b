// Decode: out[n, rows] = x[n, cols] w^T for n <= 16, bound by reading w.
//
// The chunks of w lie in the order (panel of 128 rows, 64 columns, 16 rows of the panel); a block takes a contiguous
// range of (panel, column) units, the same number for every block to within one, and streams it through a ring of
// stages in shared memory with bulk copies: one warp copies, eight compute, each 16 rows of the panel. The products run
// on the tensor cores (mma.m16n8k16, x as the B operand: up to 8 rows of x cost what one does), on whole numbers that
// are exact in bf16; scales and minimums are applied to the f32 sums of each group. A panel that several blocks share
// is summed by the block that has its end, in block order, so the result does not depend on timing. Weights do not
// depend on earlier kernels, so the ring is filled before grid_wait().
#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/codecs.cuh"
#include "backend/cuda/device/load.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/error.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/linear_decode.h"

namespace gemma4::cuda {
namespace {

constexpr int kWarps = kPanelChunks;  // that compute; one more copies
constexpr int kStages = 4;
constexpr int kThreads = (kWarps + 1) * 32;
constexpr uint32_t kNothing = 0xffffffff;  // a NaN that no arithmetic makes

struct Arguments {
  const uint8_t* weights;
  const __nv_bfloat16* x;
  void* out;
  float* partial;
  int64_t x_stride, out_stride;  // elements
  int n, rows, chunks, panels;   // chunks: of 64 columns
  bool paired, geglu, out_f32;
};

template <typename Codec>
constexpr int kStageChunks = Codec::kBytes > 640 ? 2 : 4;  // column chunks in a stage
template <typename Codec>
constexpr int kWeightBytes = kStageChunks<Codec>* kPanelChunks* Codec::kBytes;
template <typename Codec>
constexpr int kXPitch = kStageChunks<Codec>* kChunkCols * 2 + 16;  // 16: rows start in different banks
template <typename Codec>
int stage_bytes(int n) {
  return (kWeightBytes<Codec> + (n > 8 ? 16 : 8) * kXPitch<Codec> + 127) / 128 * 128;
}

// The units [begin, end) of a block; unit = panel * chunks + column chunk.
struct Range {
  int64_t begin, end;
  __device__ Range(int block, int blocks, int64_t units)
      : begin(units * block / blocks), end(units * (block + 1) / blocks) {}
};

__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  // tanh(y) = 1 - 2 / (exp(2 y) + 1); exp overflows to infinity, which gives 1
  return 0.5f * x * (2.0f - 2.0f / (__expf(2.0f * inner) + 1.0f));
}

// Writes one panel's sums: lane holds rows g, g + 8 of the warp's 16 and columns 2c, 2c + 1 of each 8 rows of x.
template <int kTiles>
__device__ __forceinline__ void write_out(const Arguments& p, int panel, int warp, int lane,
                                          const float (&sum)[kTiles][4]) {
  const int place = panel * kPanelRows + warp * kChunkRows, g = lane / 4, c = lane % 4;
  const int half_rows = p.rows / 2, low = place / 2 + g;  // of a paired matrix: the row of each part
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row_of_x = tile * 8 + 2 * c + e % 2;
      if (row_of_x >= p.n) continue;
      const int64_t base = row_of_x * p.out_stride;
      float value = sum[tile][e];
      int row = p.paired ? (e < 2 ? low : half_rows + low) : place + g + (e < 2 ? 0 : 8);
      bool valid = p.paired ? low < half_rows : row < p.rows;
      if (p.geglu) {
        if (e >= 2) continue;
        value = gelu_tanh(value) * sum[tile][e + 2];
      }
      if (!valid) continue;
      if (p.out_f32) {
        static_cast<float*>(p.out)[base + row] = value;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[base + row] = __float2bfloat16_rn(value);
      }
    }
  }
}

// sum += w x of one chunk of 16 x 64 (this warp's) and 64 columns of x.
template <typename Codec, int kTiles>
__device__ __forceinline__ void multiply_chunk(const uint8_t* chunk, uint32_t x_row, int lane,
                                               float (&sum)[kTiles][4]) {
  constexpr int kPitch = kXPitch<Codec>;
  Codec codec;
  codec.load(chunk, lane);
  uint32_t b[kTiles][2][4];  // for two steps each: b0, b1, b0, b1
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    load_matrices(b[tile][0], x_row + tile * 8 * kPitch);
    load_matrices(b[tile][1], x_row + tile * 8 * kPitch + 64);
  }
  constexpr int kGroups = 4 / Codec::kGroupSteps;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    float part[kTiles][4] = {}, ones[kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < Codec::kGroupSteps; ++i) {
      const int step = group * Codec::kGroupSteps + i;
      uint32_t a[4];
      codec.fragment(step, a);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint32_t b0 = b[tile][step / 2][step % 2 * 2], b1 = b[tile][step / 2][step % 2 * 2 + 1];
        mma_bf16(part[tile], a, b0, b1);
        if constexpr (Codec::kHasMinimum) {  // the sum of x, in every row
          const uint32_t one[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
          mma_bf16(ones[tile], one, b0, b1);
        }
      }
    }
    const float2 scale = codec.scale(group), minimum = codec.minimum(group);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[tile][e] = fmaf(e < 2 ? scale.x : scale.y, part[tile][e], sum[tile][e]);
        if constexpr (Codec::kHasMinimum) {
          sum[tile][e] = fmaf(e < 2 ? -minimum.x : -minimum.y, ones[tile][e], sum[tile][e]);
        }
      }
    }
  }
}

// What the copying warp and the computing warps agree on: stage `turn` % kStages holds the turn-th piece of the range,
// a piece being up to kStageChunks units of one panel.
template <typename Codec>
__device__ __forceinline__ int piece_length(int64_t unit, int64_t end, int chunks) {
  const int64_t panel_end = (unit / chunks + 1) * chunks;
  return static_cast<int>(min(min(end, panel_end) - unit, static_cast<int64_t>(kStageChunks<Codec>)));
}

template <typename Codec>
__device__ __forceinline__ void copy_x(const Arguments& p, uint8_t* stage, uint64_t* full, int64_t unit, int length,
                                       int lane) {
  const int col = static_cast<int>(unit % p.chunks) * kChunkCols;
  if (lane < p.n) {
    bulk_load(stage + kWeightBytes<Codec> + lane * kXPitch<Codec>, p.x + lane * p.x_stride + col,
              length * kChunkCols * 2, full);
  }
}

template <typename Codec>
__device__ void copy_range(const Arguments& p, const Range& range, uint8_t* shared, int stage_size, uint64_t* full,
                           uint64_t* empty, int lane) {
  const uint64_t policy = policy_evict_first();
  const auto weights = [&](int turn, int64_t unit, int length) {
    if (lane != 0) return;
    const int stage = turn % kStages;
    const uint32_t bytes = length * kPanelChunks * Codec::kBytes;
    barrier_expect(&full[stage], bytes + p.n * length * kChunkCols * 2);
    bulk_load(shared + stage * stage_size, p.weights + unit * (kPanelChunks * Codec::kBytes), bytes, &full[stage],
              policy);
  };
  int turn = 0;
  int64_t unit = range.begin;
  for (; turn < kStages && unit < range.end; ++turn) {  // before earlier kernels are done
    const int length = piece_length<Codec>(unit, range.end, p.chunks);
    weights(turn, unit, length);
    unit += length;
  }
  grid_wait();
  __syncwarp();
  unit = range.begin;
  for (int i = 0; i < turn; ++i) {
    const int length = piece_length<Codec>(unit, range.end, p.chunks);
    copy_x<Codec>(p, shared + i * stage_size, &full[i], unit, length, lane);
    unit += length;
  }
  for (; unit < range.end; ++turn) {
    const int stage = turn % kStages;
    const int length = piece_length<Codec>(unit, range.end, p.chunks);
    barrier_wait(&empty[stage], (turn / kStages - 1) & 1);
    weights(turn, unit, length);
    __syncwarp();
    copy_x<Codec>(p, shared + stage * stage_size, &full[stage], unit, length, lane);
    unit += length;
  }
}

template <int kTiles>
__device__ float* partial_slot(const Arguments& p, int block, int warp, int lane) {
  return p.partial + ((static_cast<int64_t>(block) * kWarps + warp) * (2 * 4) + 0) * 32 + lane;  // [e or tile][lane]
}

// Hands this block's share of a panel to the block that has the panel's end.
template <int kTiles>
__device__ void give_partial(const Arguments& p, int warp, int lane, const float (&sum)[kTiles][4]) {
  float* slot = partial_slot<kTiles>(p, blockIdx.x, warp, lane);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) store_relaxed(slot + (tile * 4 + e) * 32, sum[tile][e]);
  }
}

// Adds the shares of the blocks before this one that hold units from `panel_begin` on, in their order, and leaves their
// slots as they were.
template <int kTiles>
__device__ void take_partials(const Arguments& p, int64_t panel_begin, int64_t units, int warp, int lane,
                              float (&sum)[kTiles][4]) {
  int first = blockIdx.x;
  while (first > 0 && Range(first - 1, gridDim.x, units).end > panel_begin) --first;
  float total[kTiles][4] = {};
  for (int block = first; block < static_cast<int>(blockIdx.x); ++block) {
    const Range range(block, gridDim.x, units);
    if (range.begin == range.end) continue;
    float* slot = partial_slot<kTiles>(p, block, warp, lane);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float* word = slot + (tile * 4 + e) * 32;
        float value = load_relaxed(word);
        while (__float_as_uint(value) == kNothing) value = load_relaxed(word);
        total[tile][e] += value;
        store_relaxed(word, __uint_as_float(kNothing));
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[tile][e] += total[tile][e];
  }
}

template <typename Codec, int kTiles>
__device__ void compute_range(const Arguments& p, const Range& range, const uint8_t* shared, int stage_size,
                              uint64_t* full, uint64_t* empty, int warp, int lane) {
  const int64_t units = static_cast<int64_t>(p.panels) * p.chunks;
  // ldmatrix rows: lanes 0-7 give rows 0-7 of columns 0-7, the next eight lanes columns 8-15, and so on to 32
  const int x_offset = kWeightBytes<Codec> + lane % 8 * kXPitch<Codec> + lane / 8 * 16;
  float sum[kTiles][4] = {}, shared_sum[kTiles][4] = {};
  int64_t shared_panel = -1;  // a panel that began in an earlier block: summed last, when that block is done
  int turn = 0;
  for (int64_t unit = range.begin; unit < range.end; ++turn) {
    const int stage = turn % kStages;
    const int length = piece_length<Codec>(unit, range.end, p.chunks);
    const uint8_t* base = shared + stage * stage_size;
    barrier_wait(&full[stage], turn / kStages & 1);
    for (int k = 0; k < length; ++k) {
      multiply_chunk<Codec, kTiles>(base + (k * kPanelChunks + warp) * Codec::kBytes,
                                    shared_address(base + x_offset) + k * kChunkCols * 2, lane, sum);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[stage]);
    unit += length;
    if (unit % p.chunks == 0) {
      const int64_t panel = unit / p.chunks - 1;
      if (panel * p.chunks >= range.begin) {
        write_out<kTiles>(p, static_cast<int>(panel), warp, lane, sum);
      } else {
        shared_panel = panel;
#pragma unroll
        for (int i = 0; i < kTiles * 4; ++i) shared_sum[i / 4][i % 4] = sum[i / 4][i % 4];
      }
#pragma unroll
      for (int i = 0; i < kTiles * 4; ++i) sum[i / 4][i % 4] = 0;
    }
  }
  if (range.end % p.chunks != 0 && range.begin < range.end) give_partial<kTiles>(p, warp, lane, sum);
  if (shared_panel >= 0) {
    take_partials<kTiles>(p, shared_panel * p.chunks, units, warp, lane, shared_sum);
    write_out<kTiles>(p, static_cast<int>(shared_panel), warp, lane, shared_sum);
  }
}

// kTiles: eights of rows of x.
template <typename Codec, int kTiles>
__global__ void __launch_bounds__(kThreads, 2) decode_kernel(const Arguments p, int stage_size) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  grid_release();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kWarps);
    barrier_init_done();
  }
  __syncthreads();
  const Range range(blockIdx.x, gridDim.x, static_cast<int64_t>(p.panels) * p.chunks);
  if (warp == kWarps) {
    copy_range<Codec>(p, range, shared, stage_size, full, empty, lane);
  } else {
    grid_wait();  // before anything is written
    compute_range<Codec, kTiles>(p, range, shared, stage_size, full, empty, warp, lane);
  }
#endif
}

template <typename Codec, int kTiles>
void start(const Arguments& p, int blocks, cudaStream_t stream) {
  const int stage = stage_bytes<Codec>(p.n);
  static const bool once = (allow_shared(decode_kernel<Codec, kTiles>, kStages * stage_bytes<Codec>(16)), true);
  (void)once;
  const int64_t units = static_cast<int64_t>(p.panels) * p.chunks;
  launch(stream, dim3(static_cast<unsigned>(std::min<int64_t>(blocks, units))), dim3(kThreads), kStages * stage,
         decode_kernel<Codec, kTiles>, p, stage);
}

}  // namespace

void linear_decode(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const DecodeWorkspace& workspace,
                   cudaStream_t stream) {
  CHECK(w.layout != Layout::kBF16 && w.cols % kChunkCols == 0);
  Arguments p = {};
  p.weights = static_cast<const uint8_t*>(w.data);
  p.x = static_cast<const __nv_bfloat16*>(x.data);
  p.out = out.data;
  p.partial = workspace.partial;
  p.x_stride = x.stride, p.out_stride = out.stride;
  p.n = static_cast<int>(x.rows()), p.rows = static_cast<int>(w.rows);
  p.chunks = static_cast<int>(w.cols / kChunkCols);
  p.panels = static_cast<int>((w.rows + kPanelRows - 1) / kPanelRows);
  p.paired = w.paired, p.geglu = geglu, p.out_f32 = out.dtype == DType::kF32;
  with_codec(w.layout, [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n <= 8) {
      start<Codec, 1>(p, workspace.blocks, stream);
    } else {
      start<Codec, 2>(p, workspace.blocks, stream);
    }
  });
}

}  // namespace gemma4::cuda
