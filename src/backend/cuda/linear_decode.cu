// Decode: out[n, rows] = x[n, cols] w^T for n <= 16, bound by reading w.
//
// The chunks of w lie in the order (panel of 128 rows, 64 columns, 16 rows of the panel); a block takes a contiguous
// range of (panel, column) units, the same number for every block to within one, and streams it through a ring of
// stages in shared memory with bulk copies: one warp copies, eight compute, each 16 rows of the panel. The products run
// on the tensor cores (mma.m16n8k16, x as the B operand: up to 8 rows of x cost what one does), on whole numbers that
// are exact in bf16; scales and minimums are applied to the f32 sums of each group. A panel that several blocks share
// is summed by the block that has its end, in block order, so the result does not depend on timing.
//
// Weights do not depend on earlier kernels, so the ring is filled before grid_wait(). A block takes nearly all shared
// memory: then the next linear layer's block starts on a multiprocessor when this one's ends there, exactly one on
// each, and its 200 KB of weights arrive while the small kernels between them run. With room for two, a launch that
// began while an earlier one ended put two blocks on some multiprocessors and none on others, and took half as long
// again.
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
constexpr int kMaxStages = 12;
constexpr int kSharedBytes = 226 << 10;  // nearly all, so that one block fits a multiprocessor
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
  int stages, stage_bytes;
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
  int begin, end;
  __device__ Range(int block, int blocks, uint32_t units)
      : begin(static_cast<int>(units * static_cast<uint64_t>(block) / static_cast<uint32_t>(blocks))),
        end(static_cast<int>(units * static_cast<uint64_t>(block + 1) / static_cast<uint32_t>(blocks))) {}
};

// Walks a range in pieces of up to kStageChunks units of one panel. The copying warp and the computing warps take the
// same pieces; piece `turn` is in stage turn % stages.
template <typename Codec>
struct Cursor {
  int left, chunks, stages, panel, col, length, stage = 0, phase = 0;
  __device__ Cursor(const Range& range, const Arguments& p)
      : left(range.end - range.begin),
        chunks(p.chunks),
        stages(p.stages),
        panel(range.begin / chunks),
        col(range.begin - panel * chunks) {
    measure();
  }
  __device__ void measure() { length = min(min(left, chunks - col), kStageChunks<Codec>); }
  __device__ bool more() const { return left > 0; }
  __device__ bool ends_panel() const { return col + length == chunks; }
  __device__ void next() {
    left -= length, col += length;
    if (col == chunks) col = 0, ++panel;
    if (++stage == stages) stage = 0, phase ^= 1;
    measure();
  }
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

template <typename Codec>
__device__ __forceinline__ void copy_x(const Arguments& p, uint8_t* stage, uint64_t* full, const Cursor<Codec>& at,
                                       int lane) {
  if (lane < p.n) {
    bulk_load(stage + kWeightBytes<Codec> + lane * kXPitch<Codec>, p.x + lane * p.x_stride + at.col * kChunkCols,
              at.length * kChunkCols * 2, full);
  }
}

template <typename Codec>
__device__ __forceinline__ void copy_weights(const Arguments& p, uint8_t* stage, uint64_t* full,
                                             const Cursor<Codec>& at, uint64_t policy) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  const uint32_t bytes = at.length * kUnit;
  barrier_expect(full, bytes + p.n * at.length * kChunkCols * 2);
  bulk_load(stage, p.weights + (static_cast<int64_t>(at.panel) * p.chunks + at.col) * kUnit, bytes, full, policy);
}

template <typename Codec>
__device__ void copy_range(const Arguments& p, const Range& range, uint8_t* shared, uint64_t* full, uint64_t* empty,
                           int lane) {
  const uint64_t policy = policy_evict_first();
  Cursor<Codec> at(range, p);
  for (int i = 0; i < p.stages && at.more(); ++i, at.next()) {  // before earlier kernels are done
    if (lane == 0) copy_weights(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, policy);
  }
  grid_release();
  grid_wait();
  __syncwarp();
  Cursor<Codec> first(range, p);
  for (int i = 0; i < p.stages && first.more(); ++i, first.next()) {
    copy_x(p, shared + first.stage * p.stage_bytes, &full[first.stage], first, lane);
  }
  for (; at.more(); at.next()) {
    barrier_wait(&empty[at.stage], at.phase ^ 1);
    if (lane == 0) copy_weights(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, policy);
    __syncwarp();
    copy_x(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, lane);
  }
}

// Four sums of one lane: [block][warp][tile][lane] of float4.
template <int kTiles>
__device__ float4* partial_slot(const Arguments& p, int block, int tile, int warp, int lane) {
  return reinterpret_cast<float4*>(p.partial) + ((static_cast<int64_t>(block) * kWarps + warp) * 2 + tile) * 32 + lane;
}

// Hands this block's share of a panel to the block that has the panel's end.
template <int kTiles>
__device__ void give_partial(const Arguments& p, int warp, int lane, const float (&sum)[kTiles][4]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    store_relaxed(partial_slot<kTiles>(p, blockIdx.x, tile, warp, lane),
                  make_float4(sum[tile][0], sum[tile][1], sum[tile][2], sum[tile][3]));
  }
}

__device__ __forceinline__ bool arrived(const float4& v) {
  return __float_as_uint(v.x) != kNothing && __float_as_uint(v.y) != kNothing && __float_as_uint(v.z) != kNothing &&
         __float_as_uint(v.w) != kNothing;
}

// Adds the shares of the blocks before this one that hold units from `panel_begin` on, in their order, and leaves their
// slots as they were. Several are asked for at once: each answer takes most of a microsecond.
template <int kTiles>
__device__ void take_partials(const Arguments& p, int panel_begin, int warp, int lane, float (&sum)[kTiles][4]) {
  constexpr int kAtOnce = 4;
  const uint32_t units = static_cast<uint32_t>(p.panels) * p.chunks;
  const float nothing = __uint_as_float(kNothing);
  const int last = static_cast<int>(blockIdx.x);
  int first = last;
  while (first > 0 && Range(first - 1, gridDim.x, units).end > panel_begin) --first;
  for (int block = first; block < last; block += kAtOnce) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (block + i < last) values[i] = load_relaxed(partial_slot<kTiles>(p, block + i, tile, warp, lane));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (block + i >= last) continue;
        float4* slot = partial_slot<kTiles>(p, block + i, tile, warp, lane);
        while (!arrived(values[i])) values[i] = load_relaxed(slot);
        sum[tile][0] += values[i].x, sum[tile][1] += values[i].y;
        sum[tile][2] += values[i].z, sum[tile][3] += values[i].w;
        store_relaxed(slot, make_float4(nothing, nothing, nothing, nothing));
      }
    }
  }
}

template <typename Codec, int kTiles>
__device__ void compute_range(const Arguments& p, const Range& range, const uint8_t* shared, uint64_t* full,
                              uint64_t* empty, int warp, int lane) {
  // ldmatrix rows: lanes 0-7 give rows 0-7 of columns 0-7, the next eight lanes columns 8-15, and so on to 32
  const int x_offset = kWeightBytes<Codec> + lane % 8 * kXPitch<Codec> + lane / 8 * 16;
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  float sum[kTiles][4] = {}, shared_sum[kTiles][4] = {};
  int shared_panel = -1;  // a panel that began in an earlier block: summed last, when that block is done
  bool whole = range.begin % p.chunks == 0;
  for (Cursor<Codec> at(range, p); at.more(); at.next()) {
    const uint8_t* chunk = shared + at.stage * p.stage_bytes + warp * Codec::kBytes;
    const uint32_t x_row = shared_address(shared + at.stage * p.stage_bytes + x_offset);
    barrier_wait(&full[at.stage], at.phase);
    if (at.length == kStageChunks<Codec>) {
#pragma unroll
      for (int k = 0; k < kStageChunks<Codec>; ++k) {
        multiply_chunk<Codec, kTiles>(chunk + k * kUnit, x_row + k * kChunkCols * 2, lane, sum);
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < at.length; ++k) {
        multiply_chunk<Codec, kTiles>(chunk + k * kUnit, x_row + k * kChunkCols * 2, lane, sum);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[at.stage]);
    if (!at.ends_panel()) continue;
    if (whole) {
      write_out<kTiles>(p, at.panel, warp, lane, sum);
    } else {
      shared_panel = at.panel;
#pragma unroll
      for (int i = 0; i < kTiles * 4; ++i) shared_sum[i / 4][i % 4] = sum[i / 4][i % 4];
    }
    whole = true;
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) sum[i / 4][i % 4] = 0;
  }
  if (range.end % p.chunks != 0 && range.begin < range.end) give_partial<kTiles>(p, warp, lane, sum);
  if (shared_panel >= 0) {
    take_partials<kTiles>(p, shared_panel * p.chunks, warp, lane, shared_sum);
    write_out<kTiles>(p, shared_panel, warp, lane, shared_sum);
  }
}

// kTiles: eights of rows of x.
template <typename Codec, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) decode_kernel(const Arguments p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kWarps);
    barrier_init_done();
  }
  __syncthreads();
  const Range range(blockIdx.x, gridDim.x, static_cast<uint32_t>(p.panels) * p.chunks);
  if (warp == kWarps) {
    copy_range<Codec>(p, range, shared, full, empty, lane);
  } else {
    grid_wait();  // before anything is written
    compute_range<Codec, kTiles>(p, range, shared, full, empty, warp, lane);
  }
#endif
}

template <typename Codec, int kTiles>
void start(Arguments p, int blocks, cudaStream_t stream) {
  p.stage_bytes = stage_bytes<Codec>(p.n);
  p.stages = std::min(kMaxStages, kSharedBytes / p.stage_bytes);
  static const bool once = (allow_shared(decode_kernel<Codec, kTiles>, kSharedBytes), true);
  (void)once;
  const int64_t units = static_cast<int64_t>(p.panels) * p.chunks;
  launch(stream, dim3(static_cast<unsigned>(std::min<int64_t>(blocks, units))), dim3(kThreads), kSharedBytes,
         decode_kernel<Codec, kTiles>, p);
}

}  // namespace

void linear_decode(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const DecodeWorkspace& workspace,
                   cudaStream_t stream) {
  CHECK(w.layout != Layout::kBF16 && w.cols % kChunkCols == 0);
  CHECK((w.rows / kPanelRows + 1) * (w.cols / kChunkCols) < (int64_t{1} << 31));
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
