#include "model/text.h"

#include <algorithm>
#include <cmath>

#include "model/graph_key.h"

namespace gemma4 {
namespace {

// Batches of up to this many rows without images are replayed as a recorded graph, if the backend has graphs: decode
// repeats the same shape thousands of times, the chunks of a prompt do not.
constexpr size_t kReplayRowsMax = 16;

Rope make_rope(Backend& be, OwnedTensors& owned, const AttentionConfig& c) {
  // theta^(-2i / head_dim), with the whole head in the exponent even where only a part rotates ("proportional").
  const int half = c.head_dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half), 0.0f);
  for (int i = 0; i < c.rotated_pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(c.head_dim);
    inv_freq[static_cast<size_t>(i)] =
        1.0f / std::pow(static_cast<float>(c.rope_theta), exponent) / static_cast<float>(c.rope_factor);
  }
  Rope rope{owned.alloc(DType::kF32, {1, half}), c.head_dim};
  be.write(rope.inv_freq, inv_freq.data());
  return rope;
}

}  // namespace

TextModel::TextModel(Backend& backend, const Config& config, const Weights& weights, const ModelOptions& options,
                     const Stage& stage)
    : be_(backend),
      owned_(backend),
      activations_(backend),
      config_(config),
      w_(weights),
      options_(options),
      stage_(stage),
      graph_key_(next_graph_key()) {
  const int64_t rows = options_.rows_max, outs = options_.logits_max;
  ActivationSizes sizes{.rows = rows, .hidden = config_.hidden, .intermediate = w_.tensor_parallel.mlp.count};
  for (int kind = 0; kind < kAttentionKinds; ++kind) {
    const AttentionConfig& c = config_.attention[static_cast<size_t>(kind)];
    shapes_[kind] = {w_.tensor_parallel.heads[kind].count, w_.tensor_parallel.kv_heads[kind].count, c.head_dim,
                     !c.k_is_v};
    ropes_[kind] = make_rope(be_, owned_, c);
    const int64_t q = shapes_[kind].heads * c.head_dim, kv = shapes_[kind].kv_heads * c.head_dim;
    sizes.q = std::max(sizes.q, q), sizes.kv = std::max(sizes.kv, kv);
    sizes.qkv = std::max(sizes.qkv, q + kv * (c.k_is_v ? 1 : 2));
  }
  if (has_layers()) {
    const auto layers =
        std::span(w_.layers).subspan(static_cast<size_t>(stage_.begin), static_cast<size_t>(stage_.end - stage_.begin));
    a_ = alloc_activations(be_, activations_, sizes, layers);
  }
  out_x_ = owned_.alloc(be_.residual_type(), {outs, config_.hidden});
  inputs_ = owned_.alloc(DType::kI32, {11 * rows + outs, 1});
  if (!stage_.last) return;
  out_h_ = owned_.alloc(be_.activation_type(), {outs, config_.hidden});
  all_logits_ = owned_.alloc(DType::kF32, {outs, config_.vocab});
  sampled_ = owned_.alloc(DType::kI32, {outs, 1});
}

void TextModel::alloc_caches(const ModelOptions& options) {
  if (!has_layers()) return;
  CHECK(kv_.empty() && options.page == options_.page && options.seqs_max == options_.seqs_max);
  options_ = options;
  for (int kind = 0; kind < kAttentionKinds; ++kind) {
    pages_[kind] = owned_.alloc(DType::kI32, {options_.seqs_max, options_.pages_per_seq[kind]});
  }
  for (int i = stage_.begin; i < stage_.end; ++i) {
    const AttentionKind kind = config_.kinds[static_cast<size_t>(i)];
    const AttentionConfig& c = config_.attention[kind];
    KvCacheConfig kv{int64_t{options_.pages[kind]} * options_.page, options_.page,
                     static_cast<int>(shapes_[kind].kv_heads), c.head_dim, c.k_is_v ? c.rotated_pairs : 0};
    kv_.push_back(owned_.kv_alloc(kv));
    kv_.back().pages = pages_[kind];
    if (c.k_is_v) kv_.back().k_norm = w_.layers[static_cast<size_t>(i)].k_norm;
  }
}

void TextModel::set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages) {
  if (!has_layers()) return;
  CHECK(static_cast<int64_t>(pages.size()) <= pages_[kind].row_size());
  std::vector<int32_t> row(static_cast<size_t>(pages_[kind].row_size()), 0);
  std::copy(pages.begin(), pages.end(), row.begin());
  be_.write(pages_[kind].slice(seq, 1), row.data());
}

void TextModel::copy_page(AttentionKind kind, int32_t from, int32_t to) {
  for (size_t i = 0; i < kv_.size(); ++i) {
    if (config_.kinds[static_cast<size_t>(stage_.begin) + i] == kind) be_.kv_copy(kv_[i], from, to);
  }
}

void TextModel::check(const Batch& b) const {
  CHECK(!b.ids.empty() && b.ids.size() <= static_cast<size_t>(options_.rows_max));
  for (const AttentionKind kind : {kSliding, kFull}) {
    CHECK(b.rows[kind].size() == b.ids.size());
    CHECK(!has_layers() || positions_held(b.rows[kind]) <= pages_[kind].row_size() * options_.page);
  }
  CHECK(b.logit_rows.size() <= static_cast<size_t>(options_.logits_max));
  CHECK(b.sampling.empty() || b.sampling.size() == b.logit_rows.size());
  for (int32_t id : b.ids) CHECK(id >= 0 && id < config_.vocab);
}

// Rows come first, so that their 16 bytes each are aligned.
TextModel::Inputs TextModel::write_inputs(const Batch& b) {
  const int64_t n = static_cast<int64_t>(b.ids.size()), outs = static_cast<int64_t>(b.logit_rows.size());
  const int64_t soft = static_cast<int64_t>(b.image_index.size());
  staging_.clear();
  for (const auto& rows : b.rows) {
    for (const Row& r : rows) staging_.insert(staging_.end(), {r.seq, r.pos, r.first, r.last});
  }
  for (const int32_t id : b.ids) staging_.push_back(config_.embedded_id(id));
  for (const Row& r : b.rows[kFull]) staging_.push_back(r.pos);
  staging_.insert(staging_.end(), b.logit_rows.begin(), b.logit_rows.end());
  staging_.insert(staging_.end(), b.image_index.begin(), b.image_index.end());
  be_.write(inputs_.slice(0, static_cast<int64_t>(staging_.size())), staging_.data());

  int32_t* at = static_cast<int32_t*>(inputs_.data);
  const auto take = [&](int64_t rows, int64_t width) {
    const Tensor t(at, DType::kI32, {rows, width});
    at += rows * width;
    return t;
  };
  Inputs in;
  for (int kind = 0; kind < kAttentionKinds; ++kind) in.rows[kind] = {take(n, 4), b.rows[kind]};
  in.ids = take(n, 1);
  in.pos = take(n, 1);
  in.logit_index = take(outs, 1);
  in.image_index = take(soft, 1);
  return in;
}

void TextModel::embed(const Batch& batch, const Activations& a) {
  be_.embed(a.x, w_.embed, in_.ids, config_.embed_scale);
  if (batch.image_embeddings.empty()) return;
  int64_t begin = 0;
  for (const Tensor& soft : batch.image_embeddings) {  // image rows are not scaled
    if (w_.tensor_parallel.rank == 0) be_.scatter(a.x, soft, in_.image_index.slice(begin, soft.rows()));
    begin += soft.rows();
  }
  CHECK(begin == static_cast<int64_t>(batch.image_index.size()));
  be_.broadcast(a.x);  // rank 0 alone has the images
}

void TextModel::run_layers(const Activations& a, const Tap& tap) {
  const LayerWeights& first = w_.layers[static_cast<size_t>(stage_.begin)];
  be_.rms_norm(attention_input(be_, a, first), a.x, first.input_norm, config_.eps);
  for (int i = stage_.begin; i < stage_.end; ++i) {
    const auto layer = static_cast<size_t>(i);
    const AttentionKind kind = config_.kinds[layer];
    const KvCache& kv = kv_[static_cast<size_t>(i - stage_.begin)];
    run_layer(be_, a, w_.layers[layer], {shapes_[kind], in_.pos, &ropes_[kind], &kv, &in_.rows[kind], config_.eps},
              i + 1 == stage_.end ? nullptr : &w_.layers[layer + 1]);
    if (tap) tap(be_, "layer", i, a.x);
  }
}

// From the logit rows in out_x_.
void TextModel::run_head(const Tap& tap) {
  const int64_t outs = in_.logit_index.rows();
  const Tensor h = out_h_.slice(0, outs);
  be_.rms_norm(h, out_x_.slice(0, outs), w_.norm, config_.eps);
  if (tap) tap(be_, "norm", 0, h);
  const ShardRange ids = w_.tensor_parallel.ids();
  const Tensor own = logits_.columns(ids.begin, ids.count);
  be_.linear(own, h, w_.head);
  if (config_.softcap > 0) be_.softcap(own, config_.softcap);
  be_.gather_columns(logits_, w_.tensor_parallel.vocab);
}

void TextModel::run(const Batch& batch, const Activations& a, const Tap& tap) {
  if (stage_.first) {
    embed(batch, a);
    if (tap) tap(be_, "embed", 0, a.x);
  }
  if (has_layers()) run_layers(a, tap);
  const int64_t outs = in_.logit_index.rows();
  if (!stage_.last || outs == 0) return;
  if (has_layers()) be_.gather(out_x_.slice(0, outs), a.x, in_.logit_index);
  run_head(tap);
}

void TextModel::start(const Batch& batch) {
  check(batch);
  in_ = write_inputs(batch);
  rows_ = static_cast<int64_t>(batch.ids.size());
  if (stage_.last) logits_ = all_logits_.slice(0, in_.logit_index.rows());
}

void TextModel::compute(const Batch& batch, const Tap& tap) {
  Activations a = a_.slice(0, rows_);
  if (w_.tensor_parallel.world > 1) a.y.dtype = be_.reduce_type(rows_);  // no wider than a product's
  const bool replays = has_layers() && batch.ids.size() <= kReplayRowsMax && batch.image_embeddings.empty() && !tap;
  if (!replays) return run(batch, a, tap);
  be_.replay(graph_key_ | batch.ids.size() << 16 | batch.logit_rows.size(), [&] { run(batch, a, tap); });
}

const KvCache& TextModel::last_cache(AttentionKind kind) const {
  for (int i = stage_.end; i-- > stage_.begin;) {
    if (config_.kinds[static_cast<size_t>(i)] == kind) return kv_[static_cast<size_t>(i - stage_.begin)];
  }
  CHECK(false);
  return kv_.back();
}

void TextModel::embed_ids(Tensor out, Tensor ids) const { be_.embed(out, w_.embed, ids, config_.embed_scale); }

Tensor TextModel::output(bool logit_rows) {
  if (!logit_rows) return a_.x.slice(0, rows_);
  const Tensor x = out_x_.slice(0, in_.logit_index.rows());
  be_.gather(x, a_.x.slice(0, rows_), in_.logit_index);
  return x;
}

std::string TextModel::what() const {
  const std::string layers = "layers " + std::to_string(stage_.begin) + " to " + std::to_string(stage_.end - 1);
  return (has_layers() ? layers : "the head") + " on " + be_.name();
}

std::vector<int32_t> TextModel::sample(const Batch& batch) {
  if (w_.tensor_parallel.rank > 0 || batch.sampling.empty()) return {};
  std::vector<int32_t> ids(batch.sampling.size());
  const Tensor sampled = sampled_.slice(0, static_cast<int64_t>(ids.size()));
  be_.sample(sampled, logits_, batch.sampling);
  be_.read(ids.data(), sampled);
  return ids;
}

}  // namespace gemma4
