// Attention of many rows, head sizes 72 (vision) and 256 (sliding layers): flash attention with mma.sync. Each warp
// keeps 16 or 32 rows of the tile with all their columns, so softmax stays inside a warp. Key tiles that no row of the
// query tile may see are never read; tiles that every row sees whole skip the mask.
#include "backend/cuda/attend_tile.cuh"
#include "backend/cuda/launch.cuh"

namespace gemma4::cuda {
namespace {

template <int kDim_, int kWarps_, int kBands_, int kKeys_>
struct Shape {
  static constexpr int kDim = kDim_, kWarps = kWarps_, kKeys = kKeys_;
  static constexpr int kBands = kBands_;                // 16-row bands of a warp
  static constexpr int kRows = kWarps * kBands * 16;    // of the query tile
  static constexpr int kDepth = (kDim + 15) / 16 * 16;  // of q k^T, zeros beyond kDim
  static constexpr int kRow = kDepth + kPad;            // elements of a row in shared memory
  static constexpr int kColumns = kDim / 8;             // column tiles of the output
  static constexpr int kTile = kKeys * kRow;
  static constexpr size_t kShared = sizeof(bf16) * (kRows * kRow + 4 * kTile) + sizeof(int4) * kRows;
  static_assert(kDim % 8 == 0 && kKeys % 32 == 0);
};

// scores [16 * kBands, kKeys] of the warp's rows.
template <typename S>
__device__ __forceinline__ void score(float (&c)[S::kBands][S::kKeys / 8][4], const bf16* q, const bf16* keys) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int band = 0; band < S::kBands; ++band) {
#pragma unroll
    for (int t = 0; t < S::kKeys / 8; ++t) c[band][t][0] = c[band][t][1] = c[band][t][2] = c[band][t][3] = 0;
  }
#pragma unroll
  for (int step = 0; step < S::kDepth / 16; ++step) {
    uint32_t a[S::kBands][4];
#pragma unroll
    for (int band = 0; band < S::kBands; ++band) {
      load_matrices(a[band], q + (band * 16 + lane % 16) * S::kRow + step * 16 + lane / 16 * 8);
    }
#pragma unroll
    for (int t = 0; t < S::kKeys / 8; t += 2) {  // two tiles of 8 keys, 16 deep
      uint32_t b[4];
      load_matrices(b, keys + (t * 8 + lane / 16 * 8 + lane % 8) * S::kRow + step * 16 + lane / 8 % 2 * 8);
#pragma unroll
      for (int band = 0; band < S::kBands; ++band) {
        multiply(c[band][t], a[band], b[0], b[1]);
        multiply(c[band][t + 1], a[band], b[2], b[3]);
      }
    }
  }
}

// sum += weights * values.
template <typename S>
__device__ __forceinline__ void accumulate(float (&sum)[S::kBands][S::kColumns][4],
                                           const float (&c)[S::kBands][S::kKeys / 8][4], const bf16* values) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int pair = 0; pair < S::kKeys / 32; ++pair) {  // 32 keys: two steps of 16
    uint32_t a[2][S::kBands][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int band = 0; band < S::kBands; ++band) {
        const auto& low = c[band][pair * 4 + step * 2];
        const auto& high = c[band][pair * 4 + step * 2 + 1];
        a[step][band][0] = pack_bf16x2(low[0], low[1]);
        a[step][band][1] = pack_bf16x2(low[2], low[3]);
        a[step][band][2] = pack_bf16x2(high[0], high[1]);
        a[step][band][3] = pack_bf16x2(high[2], high[3]);
      }
    }
    const bf16* rows = values + pair * 32 * S::kRow;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int t = 0; t + 1 < S::kColumns; t += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, rows + (step * 16 + lane % 16) * S::kRow + t * 8 + lane / 16 * 8);
#pragma unroll
        for (int band = 0; band < S::kBands; ++band) {
          multiply(sum[band][t], a[step][band], b[0], b[1]);
          multiply(sum[band][t + 1], a[step][band], b[2], b[3]);
        }
      }
    }
    if constexpr (S::kColumns % 2 == 1) {  // the last column tile, 32 keys at once
      constexpr int t = S::kColumns - 1;
      uint32_t b[4];
      load_matrices_transposed(b, rows + lane * S::kRow + t * 8);
#pragma unroll
      for (int band = 0; band < S::kBands; ++band) {
        multiply(sum[band][t], a[0][band], b[0], b[1]);
        multiply(sum[band][t], a[1][band], b[2], b[3]);
      }
    }
  }
}

template <typename S>
__device__ __forceinline__ void rescale(float (&sum)[S::kColumns][4], float2 keep) {
  if (!__any_sync(0xffffffffu, keep.x != 1.0f || keep.y != 1.0f)) return;
#pragma unroll
  for (int t = 0; t < S::kColumns; ++t) {
    sum[t][0] *= keep.x, sum[t][1] *= keep.x;
    sum[t][2] *= keep.y, sum[t][3] *= keep.y;
  }
}

template <typename S>
struct Tiles {
  bf16 *query, *keys, *values;  // [kRows, kRow], [2, kTile], [2, kTile]
  int4* see;                    // [tokens]
};

// All keys of one run, for the whole query tile.
template <typename S>
__device__ __forceinline__ void attend_run(const Tiles<S>& s, const KvView& kv, const Run& run, int kv_head, bool whole,
                                           RowState (&state)[S::kBands][2], float (&sum)[S::kBands][S::kColumns][4]) {
  const auto* k = static_cast<const bf16*>(kv.k);
  const auto* v = static_cast<const bf16*>(kv.v);
  const int begin = run.first / S::kKeys, end = run.last / S::kKeys + 1;
  const bf16* q = s.query + threadIdx.x / 32 * S::kBands * 16 * S::kRow;
  const auto fetch = [&](bf16* to, const bf16* from, int tile) {
    if (tile < end) {
      fetch_rows<S::kKeys, S::kDim, S::kRow, S::kWarps>(to + tile % 2 * S::kTile, from, kv, run, kv_head,
                                                        tile * S::kKeys);
    }
    copy_commit();
  };
  fetch(s.keys, k, begin);
  fetch(s.values, v, begin);
  for (int tile = begin; tile < end; ++tile) {
    fetch(s.keys, k, tile + 1);
    copy_wait<2>();
    __syncthreads();
    float c[S::kBands][S::kKeys / 8][4];
    score<S>(c, q, s.keys + tile % 2 * S::kTile);
    const int base = tile * S::kKeys;
    const bool masked = !whole || base < run.all_first || base + S::kKeys - 1 > run.all_last;
#pragma unroll
    for (int band = 0; band < S::kBands; ++band) {
      rescale<S>(sum[band], soften(c[band], state[band], base, masked));
    }
    fetch(s.values, v, tile + 1);
    copy_wait<2>();
    __syncthreads();
    accumulate<S>(sum, c, s.values + tile % 2 * S::kTile);
  }
  copy_wait<0>();
  __syncthreads();
}

// Grid: (KV heads, query tiles), the last tile of queries (the longest under a causal mask) first.
template <typename S>
__global__ void __launch_bounds__(S::kWarps * 32) prefill_kernel(AttendCall call, KvView kv) {
  extern __shared__ __align__(16) char memory[];
  Tiles<S> s;
  s.query = reinterpret_cast<bf16*>(memory);
  s.keys = s.query + S::kRows * S::kRow;
  s.values = s.keys + 2 * S::kTile;
  s.see = reinterpret_cast<int4*>(s.values + 2 * S::kTile);
  grid_release();
  if constexpr (S::kDepth != S::kDim) {  // columns that no copy writes
    for (int i = threadIdx.x; i < 4 * S::kTile / 8; i += blockDim.x) {
      reinterpret_cast<uint4*>(s.keys)[i] = make_uint4(0, 0, 0, 0);
    }
  }
  grid_wait();
  const int group = call.q_heads / kv.heads, kv_head = blockIdx.x;
  const int token0 = (gridDim.y - 1 - blockIdx.y) * (S::kRows / group);
  const int tokens = min(S::kRows / group, call.count - token0);
  for (int i = threadIdx.x; i < tokens; i += blockDim.x)
    s.see[i] = reinterpret_cast<const int4*>(call.rows)[token0 + i];
  load_queries<S::kRows, S::kDim, S::kRow>(s.query, call, token0, kv_head * group, group);
  __syncthreads();
  RowState state[S::kBands][2];
  float sum[S::kBands][S::kColumns][4] = {};
  const int lane = threadIdx.x % 32, m0 = threadIdx.x / 32 * S::kBands * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 2 * S::kBands; ++i) state[i / 2][i % 2] = {1, 0, -INFINITY, 0.0f};
  for (int begin = 0; begin < tokens;) {
    const Run run = next_run(s.see, begin, tokens);
#pragma unroll
    for (int i = 0; i < 2 * S::kBands; ++i) {
      const int token = (m0 + i * 8) / group;
      const bool mine = token >= run.begin && token < run.end;
      state[i / 2][i % 2].first = mine ? s.see[token].z : 1;
      state[i / 2][i % 2].last = mine ? s.see[token].w : 0;
    }
    attend_run<S>(s, kv, run, kv_head, run.begin == 0 && run.end == tokens, state, sum);
    begin = run.end;
  }
#pragma unroll
  for (int i = 0; i < 2 * S::kBands; ++i) {
    const int m = m0 + i * 8, token = m / group;
    const float total = quad_sum(state[i / 2][i % 2].total), factor = total > 0 ? 1.0f / total : 0.0f;
    if (token >= tokens) continue;
    bf16* out =
        static_cast<bf16*>(call.out) + (token0 + token) * call.out_stride + (kv_head * group + m % group) * S::kDim;
#pragma unroll
    for (int t = 0; t < S::kColumns; ++t) {
      const float* x = sum[i / 2][t] + 2 * (i % 2);
      *reinterpret_cast<uint32_t*>(out + t * 8 + lane % 4 * 2) = pack_bf16x2(x[0] * factor, x[1] * factor);
    }
  }
}

template <typename S>
void run(cudaStream_t stream, const AttendCall& call, const KvView& kv) {
  static const bool allowed = (allow_shared(prefill_kernel<S>, S::kShared), true);
  (void)allowed;
  const int tokens = S::kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), S::kWarps * 32, S::kShared, prefill_kernel<S>,
         call, kv);
}

}  // namespace

bool prefill_fits(const AttendCall& call, const KvView& kv) {
  const auto aligned = [](const void* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 8 == 0;
  };
  const int group = call.q_heads / kv.heads;
  if (!aligned(call.q, call.q_stride) || !aligned(call.out, call.out_stride)) return false;
  if (kv.dim == 512) return (kv.rotated == 0 || kv.rotated == 64) && 64 % group == 0;
  return (kv.dim == 72 || kv.dim == 256) && kv.rotated == 0 && 128 % group == 0;
}

void attend_prefill(cudaStream_t stream, const AttendCall& call, const KvView& kv) {
  if (kv.dim == 72) return run<Shape<72, 4, 2, 64>>(stream, call, kv);
  run<Shape<256, 8, 1, 64>>(stream, call, kv);
}

}  // namespace gemma4::cuda
