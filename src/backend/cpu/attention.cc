// Attention with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): keys are read in blocks, and scores
// never leave the cache. A task is one KV head and a block of rows of one sequence, so each key is read once for all
// query heads that share the KV head and for all rows of the block. Both products are small GEMMs in register tiles.
// Each 256 keys have a softmax of their own, and these results are merged in the order of the keys. So where there are
// fewer tasks than threads, as for one row of a long context, the segments of a task are computed at once ("flash
// decoding", Dao et al. 2023), and a row has the same bits either way.
// The cache has 32 keys side by side, as a panel of weights has 32 outputs (packed.h), so q k^T needs neither a
// transpose nor horizontal sums.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention.cc"  // NOLINT
#include "hwy/foreach_target.h"                        // IWYU pragma: keep

#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kv_slots.h"
#include "backend/cpu/simd-inl.h"

#ifndef GEMMA4_CPU_ATTEND_ONCE
#define GEMMA4_CPU_ATTEND_ONCE
namespace gemma4::cpu {

constexpr int64_t kBlockKeys = 128;               // keys of one softmax step
constexpr int64_t kSegmentKeys = 2 * kBlockKeys;  // keys of a result of their own
constexpr int64_t kQueries = 48;                  // query vectors of a task: 4 register tiles of 12
constexpr int64_t kScoreStride =
    kBlockKeys + 16;  // not a power of two, so that rows of scores are in different cache sets

// What query vectors have got from some keys.
struct Result {
  float *out, *top, *total;  // [queries] [value_dim]; [queries] largest score; [queries] sum of exp(score - top)
  static int64_t floats(int64_t queries, int64_t value_dim) { return queries * (value_dim + 2); }
  Result(float* at, int64_t queries, int64_t value_dim)
      : out(at), top(out + queries * value_dim), total(top + queries) {}
};

// The scratch of one task.
struct AttendScratch {
  float *q, *scores, *keys, *values;
  Result part, whole;  // of a segment, of those before it
  static int64_t floats(int64_t queries, int64_t dim, int64_t value_dim) {
    return queries * (dim + kScoreStride) + kBlockKeys * (dim + value_dim) + 2 * Result::floats(queries, value_dim);
  }
  AttendScratch(float* at, int64_t queries, int64_t dim, int64_t value_dim)
      : q(at),                                  // tiles of [dim] [rows of the tile]
        scores(q + queries * dim),              // [queries] [kScoreStride]
        keys(scores + queries * kScoreStride),  // [kBlockKeys / 32] [dim] [32], if pages are not whole tiles
        values(keys + kBlockKeys * dim),        // [kBlockKeys] [value_dim]
        part(values + kBlockKeys * value_dim, queries, value_dim),
        whole(part.total + queries, queries, value_dim) {}
};

}  // namespace gemma4::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

struct Task {
  const KvLayout& cache;
  const KvCache& kv;
  std::span<const Row> rows;  // of one sequence
  int64_t head, share;        // KV head; query heads that read it
  int64_t queries() const { return static_cast<int64_t>(rows.size()) * share; }
};

using ScoreTile = void (*)(int64_t dim, const float* q, const float* keys, float* scores);
using ValueTile = void (*)(int64_t keys, const float* scores, const float* values, int64_t value_dim, float* out);

template <size_t MR>
HWY_NOINLINE void score_tile(int64_t dim, const float* q, const float* keys, float* scores) {
  constexpr size_t NV = std::min<size_t>(2, kTileKeys / kLanes);
  for (size_t col = 0; col < kTileKeys; col += NV * kLanes) {
    tile<MR, NV, 1, MR>(dim, q, keys + col, kTileKeys, scores + col, kScoreStride, false);
  }
}

template <size_t MR>
HWY_NOINLINE void value_tile(int64_t keys, const float* scores, const float* values, int64_t value_dim, float* out) {
  int64_t col = 0;
  for (; col + 2 * static_cast<int64_t>(kLanes) <= value_dim; col += 2 * kLanes) {
    tile<MR, 2, kScoreStride, 1>(keys, scores, values + col, value_dim, out + col, value_dim, true);
  }
  for (; col < value_dim; col += kLanes) {
    tile<MR, 1, kScoreStride, 1>(keys, scores, values + col, value_dim, out + col, value_dim, true);
  }
}

constexpr ScoreTile kScoreTiles[] = {score_tile<1>, score_tile<2>,  score_tile<3>,  score_tile<4>,
                                     score_tile<5>, score_tile<6>,  score_tile<7>,  score_tile<8>,
                                     score_tile<9>, score_tile<10>, score_tile<11>, score_tile<12>};
constexpr ValueTile kValueTiles[] = {value_tile<1>, value_tile<2>,  value_tile<3>,  value_tile<4>,
                                     value_tile<5>, value_tile<6>,  value_tile<7>,  value_tile<8>,
                                     value_tile<9>, value_tile<10>, value_tile<11>, value_tile<12>};

int64_t tile_rows(int64_t queries, int64_t first) { return std::min<int64_t>(kTileRows, queries - first); }

void pack_queries(const Task& t, const Tensor& q, const AttendScratch& s) {
  const int64_t dim = t.cache.dim, queries = t.queries();
  for (int64_t first = 0; first < queries; first += kTileRows) {
    const int64_t count = tile_rows(queries, first);
    float* to = s.q + first * dim;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / t.share, head = t.head * t.share + (first + i) % t.share;
      const float* from = q.row<float>(row) + head * dim;
      for (int64_t k = 0; k < dim; ++k) to[k * count + i] = from[k];
    }
  }
}

// A tile of 32 keys from position `pos`, a multiple of 32: in place if one page holds all of it, else copied.
struct KeyTile {
  const float *keys, *values;
};
KeyTile find_tile(const Task& t, const AttendScratch& s, int64_t pos, int64_t last, int64_t index) {
  const KvLayout& c = t.cache;
  const float* keys = c.keys + t.head * c.slots * c.dim;
  const float* values = c.values + t.head * c.slots * c.value_dim;
  const int32_t seq = t.rows[0].seq;
  if (whole_tiles(t.kv)) {
    const int64_t slot = slot_of(t.kv, seq, pos);
    return {keys + slot * c.dim, values + slot * c.value_dim};
  }
  float* own_keys = s.keys + index * kTileKeys * c.dim;
  float* own_values = s.values + index * kTileKeys * c.value_dim;
  gather_keys(c, t.kv, t.head, seq, pos, last, own_keys);
  for (int64_t i = 0; i < kTileKeys; ++i) {
    const int64_t slot = slot_of(t.kv, seq, std::min(pos + i, last));
    std::copy_n(values + slot * c.value_dim, c.value_dim, own_values + i * c.value_dim);
  }
  return {own_keys, own_values};
}

// One query's scores at positions begin .. begin + count - 1 (count a multiple of 32) become exp(score - top), and 0
// where the row may not see the key. The earlier sums are rescaled to the new top.
HWY_INLINE void softmax_step(const Row& row, int64_t begin, int64_t count, float* scores, float* top, float* total,
                             float* out, int64_t value_dim) {
  const DF d;
  const int64_t from = std::clamp<int64_t>(row.first - begin, 0, count);
  const int64_t to = std::clamp<int64_t>(int64_t{row.last} + 1 - begin, 0, count);
  if (from >= to) {
    std::fill(scores, scores + count, 0.0f);
    return;
  }
  constexpr float kUnseen = -1e30f;
  std::fill(scores, scores + from, kUnseen);
  std::fill(scores + to, scores + count, kUnseen);
  VF most = hn::Set(d, kUnseen);
  for (int64_t i = 0; i < count; i += kLanes) most = hn::Max(most, hn::LoadU(d, scores + i));
  const float high = std::max(*top, hn::GetLane(hn::MaxOfLanes(d, most)));
  const VF minus = hn::Set(d, -high);
  VF added = hn::Zero(d);
  for (int64_t i = 0; i < count; i += kLanes) {
    const VF p = hn::Exp(d, hn::Add(hn::LoadU(d, scores + i), minus));
    hn::StoreU(p, d, scores + i);
    added = hn::Add(added, p);
  }
  float scale = 1;
  if (high > *top) {
    scale = std::exp(*top - high);
    const VF by = hn::Set(d, scale);
    map(
        value_dim, out, [&](VF v) GEMMA4_INLINE { return hn::Mul(v, by); }, out);
    *top = high;
  }
  *total = *total * scale + hn::GetLane(hn::SumOfLanes(d, added));
}

// One softmax step over positions begin .. end - 1, at most kBlockKeys of them; begin is a multiple of 32.
void attend_keys(const Task& t, const AttendScratch& s, int64_t begin, int64_t end) {
  const int64_t dim = t.cache.dim, value_dim = t.cache.value_dim, queries = t.queries();
  const int64_t tiles = (end - begin + kTileKeys - 1) / kTileKeys;
  KeyTile key_tiles[kBlockKeys / kTileKeys];
  for (int64_t i = 0; i < tiles; ++i) {
    key_tiles[i] = find_tile(t, s, begin + i * kTileKeys, end - 1, i);
    for (int64_t first = 0; first < queries; first += kTileRows) {
      kScoreTiles[tile_rows(queries, first) - 1](dim, s.q + first * dim, key_tiles[i].keys,
                                                 s.scores + first * kScoreStride + i * kTileKeys);
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    softmax_step(t.rows[i / t.share], begin, tiles * kTileKeys, s.scores + i * kScoreStride, s.part.top + i,
                 s.part.total + i, s.part.out + i * value_dim, value_dim);
  }
  for (int64_t i = 0; i < tiles;) {  // tiles whose values are adjacent are multiplied together
    int64_t run = 1;
    while (i + run < tiles && key_tiles[i + run].values == key_tiles[i].values + run * kTileKeys * value_dim) ++run;
    const int64_t keys = std::min(run * kTileKeys, end - begin - i * kTileKeys);
    for (int64_t first = 0; first < queries; first += kTileRows) {
      kValueTiles[tile_rows(queries, first) - 1](keys, s.scores + first * kScoreStride + i * kTileKeys,
                                                 key_tiles[i].values, value_dim, s.part.out + first * value_dim);
    }
    i += run;
  }
}

void clear(const Result& r, int64_t queries, int64_t value_dim) {
  std::fill_n(r.out, queries * value_dim, 0.0f);
  std::fill_n(r.top, queries, -INFINITY);
  std::fill_n(r.total, queries, 0.0f);
}

// The keys that some row of a task sees, and the segments that they lie in.
struct Span : KeySpan {
  explicit Span(std::span<const Row> rows) : KeySpan(keys_of(rows)) {}
  int64_t segment() const { return first / kSegmentKeys; }
  int64_t segments() const { return last / kSegmentKeys - segment() + 1; }
};

// s.part: what the queries get from the keys of a segment.
void attend_segment(const Task& t, const AttendScratch& s, const Span& span, int64_t segment) {
  clear(s.part, t.queries(), t.cache.value_dim);
  const int64_t last = std::min(span.last, (segment + 1) * kSegmentKeys - 1);
  for (int64_t begin = std::max(span.first / kTileKeys * kTileKeys, segment * kSegmentKeys); begin <= last;) {
    const int64_t end = std::min(last + 1, begin / kBlockKeys * kBlockKeys + kBlockKeys);
    attend_keys(t, s, begin, end);
    begin = end;
  }
}

// whole: what it was and `part`, whose keys come later. A query that saw no key of a part is left as it is.
void merge(const Result& whole, const Result& part, int64_t queries, int64_t value_dim) {
  for (int64_t i = 0; i < queries; ++i) {
    if (part.top[i] == -INFINITY) continue;
    float *out = whole.out + i * value_dim, *more = part.out + i * value_dim;
    const float high = std::max(whole.top[i], part.top[i]);
    const float mine = whole.top[i] == -INFINITY ? 0.0f : std::exp(whole.top[i] - high);
    const float theirs = std::exp(part.top[i] - high);
    const VF a = hn::Set(DF(), mine), b = hn::Set(DF(), theirs);
    if (whole.top[i] == -INFINITY) {
      std::copy_n(more, value_dim, out);
    } else {
      map(
          value_dim, out, [&](VF v, VF w) GEMMA4_INLINE { return hn::MulAdd(v, a, hn::Mul(w, b)); }, out, more);
    }
    whole.total[i] = whole.total[i] * mine + part.total[i] * theirs;
    whole.top[i] = high;
  }
}

void store(const Task& t, const Tensor& out, const Result& r) {
  const int64_t dim = t.cache.dim;
  for (int64_t i = 0; i < t.queries(); ++i) {
    const VF by = hn::Set(DF(), r.total[i] > 0 ? 1.0f / r.total[i] : 0.0f);
    float* to = out.row<float>(i / t.share) + (t.head * t.share + i % t.share) * dim;
    map(
        dim, to, [&](VF v) GEMMA4_INLINE { return hn::Mul(v, by); }, r.out + i * t.cache.value_dim);
  }
}

void attend_task(const Task& t, const Tensor& out, const Tensor& q, float* scratch) {
  const AttendScratch s(scratch, t.queries(), t.cache.dim, t.cache.value_dim);
  pack_queries(t, q, s);
  clear(s.whole, t.queries(), t.cache.value_dim);
  const Span span(t.rows);
  for (int64_t i = 0; i < span.segments(); ++i) {
    attend_segment(t, s, span, span.segment() + i);
    merge(s.whole, s.part, t.queries(), t.cache.value_dim);
  }
  store(t, out, s.whole);
}

// Tasks of too few rows to keep all threads busy: their segments are computed beside each other, some at a time, and
// merged after each time. task(i) is the i-th of `count`, with its rows of q and out.
template <class TaskOf>
void attend_by_segments(const Context& ctx, int64_t count, int64_t segments, int64_t queries, const KvLayout& cache,
                        TaskOf&& task) {
  const int64_t at_once = std::min(segments, (4 * ctx.pool.threads() + count - 1) / count);
  const int64_t size = Result::floats(queries, cache.value_dim);
  float* shared = ctx.scratch.shared(count * (at_once + 1) * size);  // [count] whole, then its parts
  const auto result = [&](int64_t i, int64_t slot, const Task& t) {
    return Result(shared + (i * (at_once + 1) + slot) * size, t.queries(), cache.value_dim);
  };
  for (int64_t first = 0; first < segments; first += at_once) {
    ctx.pool.parallel_tasks(count * at_once, [&](int thread, int64_t n) {
      const int64_t i = n / at_once, segment = first + n % at_once;
      const auto [t, out, q] = task(i);
      const Span span(t.rows);
      if (segment >= span.segments()) return;
      AttendScratch s(ctx.scratch.local(thread), t.queries(), cache.dim, cache.value_dim);
      s.part = result(i, 1 + n % at_once, t);
      pack_queries(t, q, s);
      attend_segment(t, s, span, span.segment() + segment);
    });
    ctx.pool.parallel_tasks(count, [&](int, int64_t i) {
      const auto [t, out, q] = task(i);
      const Result whole = result(i, 0, t);
      const int64_t mine = Span(t.rows).segments();
      if (first == 0) clear(whole, t.queries(), cache.value_dim);
      for (int64_t n = 0; n < at_once && first + n < mine; ++n) {
        merge(whole, result(i, 1 + n, t), t.queries(), cache.value_dim);
      }
      if (first + at_once >= segments) store(t, out, whole);
    });
  }
}

}  // namespace

void Attend(const Context& ctx, const Tensor& out, const Tensor& q, const KvLayout& cache, const KvCache& kv,
            std::span<const Row> rows) {
  const int64_t share = q.shape[1] / cache.heads;
  const int64_t block = std::max<int64_t>(1, kQueries / share), count = rows.size();
  std::vector<int32_t>& plan = ctx.scratch.plan;
  plan.clear();
  for (int64_t i = 0; i < count; ++i) {
    if (plan.empty() || i - plan.back() == block || rows[i].seq != rows[i - 1].seq) plan.push_back(i);
  }
  plan.push_back(count);
  const int64_t blocks = static_cast<int64_t>(plan.size()) - 1, tasks = blocks * cache.heads;
  struct Work {
    Task task;
    Tensor out, q;
  };
  const auto work = [&](int64_t i) {
    const int64_t begin = plan[i % blocks], length = plan[i % blocks + 1] - begin;
    return Work{
        {cache, kv, rows.subspan(begin, length), i / blocks, share}, out.slice(begin, length), q.slice(begin, length)};
  };
  int64_t segments = 1;
  for (int64_t i = 0; i < blocks; ++i) segments = std::max(segments, Span(work(i).task.rows).segments());
  ctx.scratch.reserve_local(AttendScratch::floats(block * share, cache.dim, cache.value_dim));
  if (segments > 1 && ctx.pool.threads() > 1 && tasks < 2 * ctx.pool.threads()) {
    return attend_by_segments(ctx, tasks, segments, block * share, cache, work);
  }
  ctx.pool.parallel_tasks(tasks, [&](int thread, int64_t i) {
    const Work mine = work(i);
    attend_task(mine.task, mine.out, mine.q, ctx.scratch.local(thread));
  });
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(Attend);

void attend_tiles(const Context& ctx, const TileEngine& engine, const Tensor& out, const Tensor& q,
                  const KvLayout& cache, const KvCache& kv, std::span<const Row> rows);

namespace {

// So many rows of one sequence, beside each other, pay for keys and values in bf16. Rows of few, as those of steps of
// answers, keep the arithmetic of a row alone.
constexpr size_t kTileRun = 32;

// How many rows from `begin` on go one way: those of one sequence that has kTileRun or more of them here, or all before
// the next such sequence.
struct Run {
  size_t count;
  bool long_one;
};
Run next_run(std::span<const Row> rows, size_t begin) {
  size_t short_ones = 0;
  for (size_t at = begin; at < rows.size();) {
    size_t end = at + 1;
    while (end < rows.size() && rows[end].seq == rows[at].seq) ++end;
    if (end - at >= kTileRun) return short_ones > 0 ? Run{short_ones, false} : Run{end - at, true};
    short_ones += end - at;
    at = end;
  }
  return {short_ones, false};
}

void copy_slot(const KvLayout& c, int64_t from, int64_t to) {
  CHECK(from >= 0 && to >= 0 && from < c.slots && to < c.slots);
  const auto key = [&](int64_t head, int64_t slot) {
    return c.keys + (head * c.slots + slot / kTileKeys * kTileKeys) * c.dim + slot % kTileKeys;
  };
  for (int64_t head = 0; head < c.heads; ++head) {
    for (int64_t j = 0; j < c.dim; ++j) key(head, to)[j * kTileKeys] = key(head, from)[j * kTileKeys];
    std::copy_n(c.values + (head * c.slots + from) * c.value_dim, c.value_dim,
                c.values + (head * c.slots + to) * c.value_dim);
  }
}

}  // namespace

void CpuBackend::attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) {
  const KvLayout& c = layout(kv);
  CHECK(is_f32(out) && is_f32(q) && q.rank == 3 && q.shape[2] == c.dim && q.shape[1] % c.heads == 0);
  CHECK(out.rows() == q.rows() && out.row_size() == q.row_size());
  CHECK(q.rows() == static_cast<int64_t>(rows.host.size()));
  if (tiles_ == nullptr) return HWY_DYNAMIC_DISPATCH(Attend)(context(), out, q, c, kv, rows.host);
  for (size_t begin = 0; begin < rows.host.size();) {
    const auto [count, tiles] = next_run(rows.host, begin);
    const auto some = rows.host.subspan(begin, count);
    const Tensor to = out.slice(static_cast<int64_t>(begin), static_cast<int64_t>(count));
    const Tensor from = q.slice(static_cast<int64_t>(begin), static_cast<int64_t>(count));
    if (tiles) {
      attend_tiles(context(), *tiles_, to, from, c, kv, some);
    } else {
      HWY_DYNAMIC_DISPATCH(Attend)(context(), to, from, c, kv, some);
    }
    begin += count;
  }
}

void CpuBackend::kv_copy(const KvCache& kv, int32_t from, int32_t to) {
  const KvLayout& c = layout(kv);
  for (int64_t i = 0; i < kv.page; ++i) {
    copy_slot(c, int64_t{from} * kv.page + i, int64_t{to} * kv.page + i);
  }
}

void CpuBackend::kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) {
  const KvLayout& cache = layout(kv);
  CHECK(is_f32(k) && is_f32(v) && k.rows() == v.rows() && k.rows() == static_cast<int64_t>(rows.host.size()));
  CHECK(k.row_size() == cache.heads * cache.dim && v.row_size() == k.row_size());
  CHECK(positions_written(rows.host) <= kv.slots_per_seq());
  const int64_t dim = cache.dim, count = k.rows();
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, count * dim));
  pool_.parallel_for(cache.heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t slot = slot_of(kv, rows.host[i].seq, rows.host[i].pos);
        CHECK(slot >= 0 && slot < cache.slots);
        const float* from = k.row<float>(i) + head * dim;
        float* to = cache.keys + (head * cache.slots + slot / kTileKeys * kTileKeys) * dim + slot % kTileKeys;
        for (int64_t j = 0; j < dim; ++j) to[j * kTileKeys] = from[j];
        std::copy_n(v.row<float>(i) + head * dim, dim, cache.values + (head * cache.slots + slot) * cache.value_dim);
      }
    }
  });
}

}  // namespace gemma4::cpu
#endif
