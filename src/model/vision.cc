#include "model/vision.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/graph_key.h"

namespace gemma4 {
namespace {

// Each half of a head turns by one axis; its frequencies are theta^(-2i / half), i < half / 2, for both axes.
Rope make_rope(Backend& be, OwnedTensors& owned, const VisionConfig& c) {
  const int block = c.head_dim / 2, pairs = block / 2;
  std::vector<float> inv_freq(static_cast<size_t>(pairs));
  for (int i = 0; i < pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(block);
    inv_freq[static_cast<size_t>(i)] = 1.0f / std::pow(static_cast<float>(c.rope_theta), exponent);
  }
  Rope rope{owned.alloc(DType::kF32, {1, pairs}), block};
  be.write(rope.inv_freq, inv_freq.data());
  return rope;
}

}  // namespace

VisionModel::VisionModel(Backend& backend, const Config& config, const VisionWeights& weights)
    : be_(backend), tables_(backend), buffers_(backend), config_(config), c_(config.vision), w_(weights) {
  if (!config.has_vision) return;
  rope_ = make_rope(be_, tables_, c_);
  const auto constant = [&](float value) {
    const Tensor t = tables_.alloc(DType::kF32, {1, c_.patch_dim()});
    be_.write(t, std::vector<float>(static_cast<size_t>(c_.patch_dim()), value).data());
    return t;
  };
  middle_ = constant(0.5f), stretch_ = constant(2);
}

void VisionModel::grow(int n) {
  if (n <= rows_max_) return;
  const MutexLock lock(buffers_change_);
  rows_max_ = 0;  // if an allocation below throws, the next image allocates again
  buffers_.clear();
  const DType act = be_.activation_type(), residual = be_.residual_type();
  const int64_t width = int64_t{c_.heads} * c_.head_dim, soft = n / (c_.pool * c_.pool) + 1;
  const auto alloc = [&](DType type, int64_t rows, int64_t cols) { return buffers_.alloc(type, {rows, cols}); };
  a_.x = alloc(residual, n, c_.hidden);
  a_.h = alloc(act, n, c_.hidden);
  a_.y = alloc(act, n, c_.hidden);
  a_.qkv = alloc(act, n, 3 * width);
  a_.query = be_.attention_type() == act ? Tensor() : alloc(be_.attention_type(), n, width);
  a_.values = alloc(act, n, width);
  a_.o = alloc(act, n, width);
  a_.gate_up = alloc(act, n, 2 * int64_t{c_.intermediate});
  a_.act = alloc(act, n, c_.intermediate);
  raw_ = alloc(DType::kF32, n, c_.patch_dim());
  pixels_ = act == DType::kF32 ? raw_ : alloc(act, n, c_.patch_dim());
  xy_ = alloc(DType::kI32, n, 2);
  for (Tensor& ids : ids_) ids = alloc(DType::kI32, n, 1);
  rows_ = alloc(DType::kI32, n, 4);
  group_ = alloc(DType::kI32, n, 1);
  pooled_ = alloc(residual, soft, c_.hidden);
  normed_ = alloc(act, soft, c_.hidden);
  kv_ = buffers_.kv_alloc({.slots = n, .page = 1, .heads = c_.heads, .dim = c_.head_dim, .rounds = true});
  rows_max_ = n;
  graph_key_ = next_graph_key();  // recorded graphs read the old buffers
}

void VisionModel::reserve(int patches) {
  if (!buffers_.lazy()) return;
  try {
    grow(patches);
  } catch (const OutOfMemory&) {
    buffers_.clear();  // address space is limited; smaller pictures may fit
  }
}

void VisionModel::populate(int patches) const {
  const MutexLock lock(buffers_change_);
  buffers_.populate(patches);
}

std::vector<int32_t> VisionModel::pool_groups(const PatchView& patches, int64_t* soft_rows) const {
  int32_t width = 0, height = 0;
  for (int i = 0; i < patches.n; ++i) {
    const int32_t x = patches.xy[2 * i], y = patches.xy[2 * i + 1];
    if (x < 0 || y < 0 || x >= c_.positions || y >= c_.positions) {
      throw Error("a patch at column " + std::to_string(x) + ", row " + std::to_string(y) +
                  " lies outside the model's position table of " + std::to_string(c_.positions) +
                  " positions; use a smaller image budget or a less elongated picture");
    }
    width = std::max(width, x + 1), height = std::max(height, y + 1);
  }
  if (width % c_.pool != 0 || height % c_.pool != 0 || int64_t{width} * height != patches.n) {
    throw Error("an image of " + std::to_string(patches.n) + " patches in " + std::to_string(width) + " columns and " +
                std::to_string(height) + " rows is not a whole grid of " + std::to_string(c_.pool) + " x " +
                std::to_string(c_.pool) + " cells");
  }
  std::vector<int32_t> group(static_cast<size_t>(patches.n));
  for (int i = 0; i < patches.n; ++i) {
    group[static_cast<size_t>(i)] = patches.xy[2 * i] / c_.pool + width / c_.pool * (patches.xy[2 * i + 1] / c_.pool);
  }
  *soft_rows = patches.n / (c_.pool * c_.pool);
  return group;
}

// Writes everything that differs between two images of one size to the backend. Pixels in [0, 1] become 2 (p - 0.5), in
// float32 before they are rounded once to the activation type. Both happen on the backend, because a host rounds only
// about a million values in a millisecond.
void VisionModel::write_inputs(const PatchView& patches, std::span<const int32_t> group) {
  const int64_t n = patches.n;
  host_rows_.resize(static_cast<size_t>(n));
  for (int32_t i = 0; i < patches.n; ++i) host_rows_[static_cast<size_t>(i)] = {0, i, 0, patches.n - 1};
  be_.write(rows_.slice(0, n), host_rows_.data());
  be_.write(xy_.slice(0, n), patches.xy);
  be_.write(group_.slice(0, n), group.data());
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t axis = 0; axis < 2; ++axis) {
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = patches.xy[2 * i + axis] + static_cast<int32_t>(axis) * c_.positions;
    be_.write(ids_[axis].slice(0, n), ids.data());
  }
  const Tensor raw = raw_.slice(0, n);
  be_.write(raw, patches.values);
  be_.affine(raw, middle_, stretch_);
  if (pixels_.dtype != DType::kF32) be_.convert(pixels_.slice(0, n), raw);
}

// Work. A part of few rows would not fill the tiles of a GEMM.
constexpr int64_t kPartRows = 64;

int64_t VisionModel::embed_work() const { return int64_t{c_.patch_dim()} * c_.hidden; }

int64_t VisionModel::input_work() const { return int64_t{3} * c_.hidden * c_.heads * c_.head_dim; }

int64_t VisionModel::rest_work(int n) const {
  const int64_t width = int64_t{c_.heads} * c_.head_dim;
  return 2 * n * width + width * c_.hidden + int64_t{3} * c_.hidden * c_.intermediate;
}

int64_t VisionModel::work(int patches) const {
  const auto layers = static_cast<int64_t>(w_.layers.size());
  return patches * (embed_work() + layers * (input_work() + rest_work(patches)));
}

void VisionModel::begin(const PatchView& patches) {
  CHECK(patches.n > 0);
  const std::vector<int32_t> group = pool_groups(patches, &soft_rows_);
  grow(patches.n);
  // A graph is recorded when a size comes twice in a row.
  again_ = host_rows_.size() == static_cast<size_t>(patches.n);
  write_inputs(patches, group);
  cursor_ = {};
}

bool VisionModel::advance(int64_t work_left, const Tap& tap) {
  const bool fresh = cursor_.embeds && cursor_.row == 0;
  if (fresh && work(static_cast<int>(host_rows_.size())) <= work_left) {
    run(again_, tap);
    cursor_ = {.embeds = false, .layer = w_.layers.size()};
    return true;
  }
  if (cursor_.layer == w_.layers.size()) return true;
  do {
    work_left -= advance_part(work_left, tap);
  } while (cursor_.layer < w_.layers.size() && work_left > 0);
  if (cursor_.layer < w_.layers.size()) return false;
  pool();
  return true;
}

Model::ImageEmbeddings VisionModel::finish() {
  CHECK(cursor_.layer == w_.layers.size());
  Backend* be = &be_;
  const Tensor soft = be_.alloc(be_.residual_type(), {soft_rows_, config_.hidden});
  Model::ImageEmbeddings result{soft,
                                std::shared_ptr<const void>(soft.data, [be, soft](const void*) { be->release(soft); })};
  be_.linear(soft, normed_.slice(0, soft_rows_), w_.projection);
  return result;
}

void VisionModel::encode_again() {
  CHECK(!host_rows_.empty());
  run(true, Tap());
}

void VisionModel::run(bool record, const Tap& tap) {
  if (!record || tap) return tower(tap);
  be_.replay(graph_key_ | host_rows_.size(), [&] { tower(tap); });
}

void VisionModel::tower(const Tap& tap) {
  const auto n = static_cast<int64_t>(host_rows_.size());
  embed_rows(0, n);
  embedded(tap);
  for (size_t layer = 0; layer < w_.layers.size(); ++layer) {
    layer_rows(false, layer, 0, n);
    layer_rows(true, layer, 0, n);
    if (tap) tap(be_, "vision.layer", static_cast<int>(layer), a_.x.slice(0, n));
  }
  pool();
}

void VisionModel::embed_rows(int64_t begin, int64_t count) {
  const Activations a = a_.slice(begin, count);
  be_.linear(a.x, pixels_.slice(begin, count), w_.input);
  for (const Tensor& ids : ids_) {
    be_.embed(a.y, w_.positions, ids.slice(begin, count), 1.0f);
    be_.add(a.x, a.y, 1.0f);
  }
  be_.rms_norm(a.h, a.x, w_.layers[0].input_norm, c_.eps);
}

void VisionModel::embedded(const Tap& tap) {
  if (tap) tap(be_, "vision.embed", 0, a_.x.slice(0, static_cast<int64_t>(host_rows_.size())));
}

int64_t VisionModel::part_work() const {
  if (cursor_.embeds) return embed_work();
  return cursor_.attends ? rest_work(static_cast<int>(host_rows_.size())) : input_work();
}

int64_t VisionModel::advance_part(int64_t work, const Tap& tap) {
  const auto n = static_cast<int64_t>(host_rows_.size());
  Cursor& at = cursor_;
  const Cursor before = at;
  const int64_t row_work = part_work();
  const int64_t count = std::min(n - at.row, std::max(work / row_work / kPartRows, int64_t{1}) * kPartRows);
  if (at.embeds) {
    embed_rows(at.row, count);
  } else {
    layer_rows(at.attends, at.layer, at.row, count);
  }
  at.row += count;
  if (at.row < n) return count * row_work;
  at = {.embeds = false, .layer = before.layer, .attends = !before.embeds && !before.attends};
  if (before.embeds) embedded(tap);
  if (before.attends) {
    ++at.layer;
    if (tap) tap(be_, "vision.layer", static_cast<int>(before.layer), a_.x.slice(0, n));
  }
  return count * row_work;
}

void VisionModel::layer_rows(bool attends, size_t layer, int64_t begin, int64_t count) {
  const LayerShape shape{c_.heads, c_.heads, c_.head_dim, true};
  const auto host = std::span(host_rows_).subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
  const Rows rows{rows_.slice(begin, count), host};
  const LayerInput in{shape, xy_.slice(begin, count), &rope_, &kv_, &rows, c_.eps};
  const Activations a = a_.slice(begin, count);
  const LayerWeights& w = w_.layers[layer];
  if (!attends) return run_attention_input(be_, a, w, in);
  run_attention_and_mlp(be_, a, w, in, layer + 1 == w_.layers.size() ? nullptr : &w_.layers[layer + 1]);
}

// Means over cells, times sqrt(hidden). The order matters, because std_bias is subtracted afterwards.
void VisionModel::pool() {
  const auto n = static_cast<int64_t>(host_rows_.size());
  const Tensor pooled = pooled_.slice(0, soft_rows_);
  const float cell = static_cast<float>(c_.pool * c_.pool);
  be_.pool(pooled, a_.x.slice(0, n), group_.slice(0, n), std::sqrt(static_cast<float>(c_.hidden)) / cell);
  if (c_.standardize) be_.affine(pooled, w_.std_bias, w_.std_scale);
  be_.rms_norm(normed_.slice(0, soft_rows_), pooled, Tensor(), c_.eps);
}

}  // namespace gemma4
