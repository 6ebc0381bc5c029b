// Attention of many rows of a sequence on the matrix units, with an online softmax (Dao et al. 2022) over blocks of 128
// keys: bf16 products, float32 sums (bf16_tiles.h). A task is one KV head and up to 256 query vectors, so that a block
// of keys and values, which becomes bf16 once for a task, serves 8 pairs of row tiles. Blocks begin at multiples of
// 128, so a row's result does not depend on the other rows.
//
// The softmax makes an absolute error of a score a relative one of a probability. So q, k, p and v are each split into
// two bf16, a = a' + a", and a b is computed as a' b' + a" b' + a' b"; what is left out is 2^-16 of a term. A cache
// that allows it (KvCacheConfig::rounds) has a' b' alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/tiles/attention_bf16.cc"  // NOLINT
#include "hwy/foreach_target.h"                                   // IWYU pragma: keep

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kv_slots.h"
#include "backend/cpu/tiles/bf16-inl.h"
#include "backend/cpu/tiles/bf16_tiles.h"

#ifndef GEMMA4_CPU_ATTENTION_BF16_ONCE
#define GEMMA4_CPU_ATTENTION_BF16_ONCE
namespace gemma4::cpu {

constexpr int64_t kBlockKeys = 128, kBlockTiles = kBlockKeys / kTileKeys;
constexpr int64_t kTaskQueries = 256;
constexpr int64_t kPairRows = 2 * kTileXRows;       // queries of a pair of row tiles, which share a load of keys
constexpr int64_t kTilePairs = kTileCols / 2 * 32;  // of bf16, in a tile of 32 columns (k) and 32 outputs

constexpr int64_t kSpanFloats = sizeof(KeySpan) / sizeof(float);

// A matrix as bf16, and what the rounding leaves of it as bf16; `low` is null where that is left out.
template <class T>
struct Split {
  T *high = nullptr, *low = nullptr;
  Split at(int64_t offset) const { return {high + offset, low ? low + offset : nullptr}; }
  void clear(int64_t count) const {
    std::fill_n(high, count, T{0});
    if (low) std::fill_n(low, count, T{0});
  }
};

// The sizes and the memory of a task.
struct TileAttention {
  int64_t queries, padded;  // query vectors; a multiple of 32
  int64_t tiles;            // of 32 columns, of a query and of a value
  bool split;
  Split<uint16_t> q, p;          // tiles [padded / 16] [tiles, or keys / 32 of a block] [16] [32]
  Split<uint32_t> keys, values;  // [keys / 32] [tiles] and [tiles] [keys / 32] of kTilePairs
  float *scores, *out;           // [keys / 32] [padded] [32], [tiles] [padded] [32]
  float *top, *total;            // [padded] largest score so far; sum of exp(score - top)
  float* gathered;               // [dim] [32]: keys of a tile that is not whole in memory
  KeySpan* seen;                 // [padded / 32]: the keys that some query of a pair of row tiles sees

  TileAttention(int64_t count, int64_t dim, bool split)
      : queries(count),
        padded((count + kPairRows - 1) / kPairRows * kPairRows),
        tiles((dim + kTileCols - 1) / kTileCols),
        split(split) {}

  int64_t floats() const {
    const int64_t bf16 = padded * 16 * (tiles + kBlockTiles) + 2 * kBlockTiles * tiles * kTilePairs;
    return (split ? 2 : 1) * bf16 + padded * (32 * kBlockTiles + 32 * tiles + 2) + tiles * kTileCols * kTileKeys +
           padded / kPairRows * kSpanFloats;
  }
  void place(float* at) {
    const auto take = [&](int64_t floats) { return std::exchange(at, at + floats); };
    const auto take_split = [&](auto& to, int64_t floats) {
      using T = std::remove_pointer_t<decltype(to.high)>;
      to.high = reinterpret_cast<T*>(take(floats));
      if (split) to.low = reinterpret_cast<T*>(take(floats));
    };
    take_split(q, padded * tiles * 16);
    take_split(p, padded * kBlockTiles * 16);
    take_split(keys, kBlockTiles * tiles * kTilePairs);
    take_split(values, kBlockTiles * tiles * kTilePairs);
    scores = take(kBlockTiles * padded * 32);
    out = take(tiles * padded * 32);
    gathered = take(tiles * kTileCols * kTileKeys);
    seen = reinterpret_cast<KeySpan*>(take(padded / kPairRows * kSpanFloats));
    top = take(padded), total = take(padded);
  }
};

}  // namespace gemma4::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

struct Task {
  const TileEngine& engine;
  const KvLayout& cache;
  const KvCache& kv;
  std::span<const Row> rows;  // of one sequence
  int64_t head, share;        // KV head; query heads that read it
  const Row& row_of(int64_t query) const {
    return rows[static_cast<size_t>(std::min(query / share, static_cast<int64_t>(rows.size()) - 1))];
  }
};

void pack_queries(const Task& t, const Tensor& q, const TileAttention& s) {
  const int64_t dim = t.cache.dim;
  s.q.clear(s.padded * s.tiles * kTileCols);
  for (int64_t i = 0; i < s.queries; ++i) {
    const float* from = q.row<float>(i / t.share) + (t.head * t.share + i % t.share) * dim;
    Split<uint16_t> to = s.q.at(i / kTileXRows * s.tiles * kTileElements + i % kTileXRows * kTileCols);
    for (int64_t k = 0; k < dim; k += kTileCols, to = to.at(kTileElements)) {
      split_to_bf16(from + k, std::min(kTileCols, dim - k), to.high, to.low);
    }
  }
}

// Two vectors as pairs of bf16.
HWY_INLINE void store_pair(VF even, VF odd, const Split<uint32_t>& to) {
  const VF even_high = round_to_bf16(even), odd_high = round_to_bf16(odd);
  hn::StoreU(pair_of(even_high, odd_high), DU(), to.high);
  if (to.low == nullptr) return;
  const VF even_low = round_to_bf16(hn::Sub(even, even_high)), odd_low = round_to_bf16(hn::Sub(odd, odd_high));
  hn::StoreU(pair_of(even_low, odd_low), DU(), to.low);
}

// The 32 keys from position `pos` on as [dim] [32] floats: where they lie, or gathered.
const float* find_keys(const Task& t, const TileAttention& s, int64_t pos, int64_t last) {
  const KvLayout& c = t.cache;
  const float* keys = c.keys + t.head * c.slots * c.dim;
  const int32_t seq = t.rows[0].seq;
  if (whole_tiles(t.kv)) return keys + slot_of(t.kv, seq, pos) * c.dim;
  gather_keys(c, t.kv, t.head, seq, pos, last, s.gathered);
  return s.gathered;
}

void convert_keys(const Task& t, const TileAttention& s, int64_t begin, int64_t end) {
  const DF d;
  const int64_t dim = t.cache.dim;
  for (int64_t pos = begin; pos < end; pos += kTileKeys) {
    const float* from = find_keys(t, s, pos, end - 1);
    const Split<uint32_t> to = s.keys.at((pos - begin) / kTileKeys * s.tiles * kTilePairs);
    for (int64_t k = 0; k < dim; k += 2, from += 2 * kTileKeys) {
      for (int64_t lane = 0; lane < kTileKeys; lane += kLanes) {
        const VF odd = k + 1 < dim ? hn::LoadU(d, from + kTileKeys + lane) : hn::Zero(d);
        store_pair(hn::LoadU(d, from + lane), odd, to.at(k / 2 * kTileKeys + lane));
      }
    }
    const int64_t used = (dim + 1) / 2 * kTileKeys;
    to.at(used).clear(s.tiles * kTilePairs - used);
  }
}

// Two values as pairs; null: zeros.
void convert_pair(const Task& t, const TileAttention& s, const float* even, const float* odd, Split<uint32_t> to) {
  const DF d;
  for (int64_t tile = 0; tile < s.tiles; ++tile, to = to.at(kBlockTiles * kTilePairs)) {
    for (int64_t lane = 0; lane < 32; lane += kLanes) {
      const int64_t col = tile * 32 + lane;
      const bool inside = col < t.cache.value_dim;
      store_pair(inside && even ? hn::LoadU(d, even + col) : hn::Zero(d),
                 inside && odd ? hn::LoadU(d, odd + col) : hn::Zero(d), to.at(lane));
    }
  }
}

// Positions from `end` on count as zeros: what lies there may be no number.
void convert_values(const Task& t, const TileAttention& s, int64_t begin, int64_t end) {
  const KvLayout& c = t.cache;
  const float* values = c.values + t.head * c.slots * c.value_dim;
  const auto value = [&](int64_t pos) -> const float* {
    return pos < end ? values + slot_of(t.kv, t.rows[0].seq, pos) * c.value_dim : nullptr;
  };
  const int64_t tiles = (end - begin + kTileKeys - 1) / kTileKeys;
  for (int64_t i = 0; i < tiles * kTileKeys; i += 2) {
    convert_pair(t, s, value(begin + i), value(begin + i + 1), s.values.at(i / 2 * 32));
  }
}

// 2^x for x <= 0 within 4e-6 of itself (below 2^-126: 0), of which bf16 keeps 2^-9. Minimax polynomial on [-0.5, 0.5].
HWY_INLINE VF exp2_of(VF x) {
  const DF d;
  const VF least = hn::Set(d, -126.0f);
  const auto tiny = hn::Lt(x, least);
  const VF at = hn::Max(x, least);
  const auto whole = hn::NearestInt(at);
  const VF f = hn::Sub(at, hn::ConvertTo(d, whole));
  VF p = hn::MulAdd(f, hn::Set(d, 9.66637e-3f), hn::Set(d, 5.59220e-2f));
  p = hn::MulAdd(f, p, hn::Set(d, 2.40223e-1f));
  p = hn::MulAdd(f, p, hn::Set(d, 6.93121e-1f));
  p = hn::MulAdd(f, p, hn::Set(d, 1.0f));
  const VF scaled = hn::BitCast(d, hn::Add(hn::BitCast(DI(), p), hn::ShiftLeft<23>(whole)));
  return hn::IfThenZeroElse(tiny, scaled);
}

void scale_out(const TileAttention& s, int64_t query, float by) {
  for (int64_t tile = 0; tile < s.tiles; ++tile) {
    float* to = s.out + (tile * s.padded + query) * 32;
    map(
        32, to, [&](VF v) GEMMA4_INLINE { return hn::Mul(v, hn::Set(DF(), by)); }, to);
  }
}

// One query's scores of a block from position `begin` on become probabilities exp(score - top), in bf16, and 0 where
// the row may not see the key. The earlier sums are rescaled to the new top.
void softmax_step(const Row& row, const TileAttention& s, int64_t query, int64_t begin, int64_t count) {
  const DF d;
  const Split<uint16_t> p = s.p.at(query / kTileXRows * kBlockTiles * kTileElements + query % kTileXRows * kTileCols);
  const int64_t from = std::clamp<int64_t>(row.first - begin, 0, count);
  const int64_t to = std::clamp<int64_t>(int64_t{row.last} + 1 - begin, 0, count);
  const int64_t first = from / 32, last = from < to ? (to + 31) / 32 : first;  // tiles of keys that it sees
  for (int64_t i = 0; i < kBlockTiles; ++i) {
    if (i < first || i >= last) p.at(i * kTileElements).clear(kTileCols);
  }
  if (from >= to) return;
  float* scores = s.scores + query * 32;
  const int64_t stride = s.padded * 32;
  constexpr float kUnseen = -1e30f;
  std::fill(scores + first * stride, scores + first * stride + from % 32, kUnseen);
  if (to % 32 != 0) std::fill(scores + (last - 1) * stride + to % 32, scores + (last - 1) * stride + 32, kUnseen);
  VF most = hn::Set(d, kUnseen);
  for (int64_t i = first; i < last; ++i) {
    for (int64_t lane = 0; lane < 32; lane += kLanes) most = hn::Max(most, hn::LoadU(d, scores + i * stride + lane));
  }
  const float before = s.top[query], high = std::max(before, hn::GetLane(hn::MaxOfLanes(d, most)));
  const VF base2 = hn::Set(d, 1.44269504f), minus = hn::Set(d, high);
  VF added = hn::Zero(d);
  for (int64_t i = first; i < last; ++i) {
    for (int64_t lane = 0; lane < 32; lane += kLanes) {
      const VF x = hn::Mul(hn::Sub(hn::LoadU(d, scores + i * stride + lane), minus), base2);
      const VF v = exp2_of(x), high_part = round_to_bf16(v);
      const Split<uint16_t> to_p = p.at(i * kTileElements + lane);
      store_bf16(high_part, to_p.high);
      if (to_p.low) store_bf16(round_to_bf16(hn::Sub(v, high_part)), to_p.low);
      added = hn::Add(added, s.split ? v : high_part);
    }
  }
  float scale = 1;
  if (high > before) {
    scale = std::exp(before - high);
    scale_out(s, query, scale);
    s.top[query] = high;
  }
  s.total[query] = s.total[query] * scale + hn::GetLane(hn::SumOfLanes(d, added));
}

void find_seen(const Task& t, const TileAttention& s) {
  for (int64_t pair = 0; pair < s.padded / kPairRows; ++pair) {
    const int64_t first = pair * kPairRows / t.share, last = ((pair + 1) * kPairRows - 1) / t.share;
    s.seen[pair] = keys_of(t.rows.subspan(first, std::min<size_t>(last + 1, t.rows.size()) - first));
  }
}

// The tiles of keys of a block, first .. last - 1 of `tiles` from position `begin` on, that a pair of row tiles sees.
struct Seen {
  int64_t first, last;
};
Seen seen_by(const TileAttention& s, int64_t query, int64_t begin, int64_t tiles) {
  const KeySpan& span = s.seen[query / kPairRows];
  if (span.last < begin) return {0, 0};
  return {std::clamp<int64_t>(span.first - begin, 0, tiles * 32) / 32, std::min((span.last - begin) / 32 + 1, tiles)};
}

// c [32, 32] (+)= a b over `k_tiles` tiles of columns; `next`: from a row tile of a to the next.
void multiply(const Task& t, const Split<uint16_t>& a, int64_t next, const Split<uint32_t>& b, int64_t k_tiles,
              float* c, bool accumulate) {
  t.engine.product(a.high, next, 2, b.high, k_tiles, c, accumulate);
  if (a.low == nullptr) return;
  t.engine.product(a.low, next, 2, b.high, k_tiles, c, true);
  t.engine.product(a.high, next, 2, b.low, k_tiles, c, true);
}

void multiply_keys(const Task& t, const TileAttention& s, int64_t begin, int64_t tiles) {
  const int64_t next = s.tiles * kTileElements;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t query = 0; query < s.padded; query += kPairRows) {
      const Seen seen = seen_by(s, query, begin, tiles);
      if (tile < seen.first || tile >= seen.last) continue;
      multiply(t, s.q.at(query / kTileXRows * next), next, s.keys.at(tile * s.tiles * kTilePairs), s.tiles,
               s.scores + (tile * s.padded + query) * 32, false);
    }
  }
}

void multiply_values(const Task& t, const TileAttention& s, int64_t begin, int64_t tiles) {
  const int64_t next = kBlockTiles * kTileElements;
  for (int64_t tile = 0; tile < s.tiles; ++tile) {
    for (int64_t query = 0; query < s.padded; query += kPairRows) {
      const Seen seen = seen_by(s, query, begin, tiles);
      if (seen.first >= seen.last) continue;
      multiply(t, s.p.at(query / kTileXRows * next + seen.first * kTileElements), next,
               s.values.at((tile * kBlockTiles + seen.first) * kTilePairs), seen.last - seen.first,
               s.out + (tile * s.padded + query) * 32, true);
    }
  }
}

void store(const Task& t, const TileAttention& s, const Tensor& out) {
  const int64_t dim = t.cache.dim;
  for (int64_t i = 0; i < s.queries; ++i) {
    scale_out(s, i, s.total[i] > 0 ? 1.0f / s.total[i] : 0.0f);
    float* to = out.row<float>(i / t.share) + (t.head * t.share + i % t.share) * dim;
    for (int64_t tile = 0; tile < s.tiles; ++tile) {
      std::copy_n(s.out + (tile * s.padded + i) * 32, std::min<int64_t>(32, dim - tile * 32), to + tile * 32);
    }
  }
}

void attend_task(const Task& t, const Tensor& out, const Tensor& q, const TileAttention& s) {
  pack_queries(t, q, s);
  s.p.clear(s.padded * kBlockKeys);
  std::fill_n(s.out, s.tiles * s.padded * 32, 0.0f);
  std::fill_n(s.top, s.padded, -INFINITY);
  std::fill_n(s.total, s.padded, 0.0f);
  find_seen(t, s);
  const auto [first, last] = keys_of(t.rows);
  if (t.engine.begin) t.engine.begin();
  for (int64_t begin = first / kTileKeys * kTileKeys; begin <= last;) {
    const int64_t end = std::min(last + 1, begin / kBlockKeys * kBlockKeys + kBlockKeys);
    const int64_t tiles = (end - begin + kTileKeys - 1) / kTileKeys;
    convert_keys(t, s, begin, end);
    multiply_keys(t, s, begin, tiles);
    for (int64_t i = 0; i < s.queries; ++i) softmax_step(t.row_of(i), s, i, begin, tiles * kTileKeys);
    convert_values(t, s, begin, end);
    multiply_values(t, s, begin, tiles);
    begin = end;
  }
  if (t.engine.end) t.engine.end();
  store(t, s, out);
}

}  // namespace

void AttendTiles(const Context& ctx, const TileEngine& engine, const Tensor& out, const Tensor& q,
                 const KvLayout& cache, const KvCache& kv, std::span<const Row> rows) {
  const int64_t share = q.shape[1] / cache.heads, count = rows.size();
  const int64_t block = std::max<int64_t>(1, kTaskQueries / share), blocks = (count + block - 1) / block;
  ctx.scratch.reserve_local(TileAttention(std::min(count, block) * share, cache.dim, !cache.rounds).floats());
  ctx.pool.parallel_tasks(blocks * cache.heads, [&](int thread, int64_t task) {
    const int64_t begin = task % blocks * block, length = std::min(block, count - begin);
    const Task t{engine, cache, kv, rows.subspan(begin, length), task / blocks, share};
    TileAttention s(length * share, cache.dim, !cache.rounds);
    s.place(ctx.scratch.local(thread));
    attend_task(t, out.slice(begin, length), q.slice(begin, length), s);
  });
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(AttendTiles);

void attend_tiles(const Context& ctx, const TileEngine& engine, const Tensor& out, const Tensor& q,
                  const KvLayout& cache, const KvCache& kv, std::span<const Row> rows) {
  HWY_DYNAMIC_DISPATCH(AttendTiles)(ctx, engine, out, q, cache, kv, rows);
}

}  // namespace gemma4::cpu
#endif
