#include "model/drafter.h"

#include <algorithm>

#include "model/tensor_table.h"

namespace gemma4 {
namespace {

DrafterConfig config_for(const Checkpoint& checkpoint, const Config& target) {
  try {
    const DrafterConfig config = parse_drafter_config(checkpoint.config);
    check_drafter_fits(config, target);
    return config;
  } catch (const Error& error) {
    throw Error(checkpoint.path.string() + ": " + error.what());
  }
}

Activations activations_for(const DrafterConfig& config, const DrafterWeights& w, Backend& be, OwnedTensors& owned,
                            int64_t rows) {
  ActivationSizes sizes{.rows = rows, .hidden = config.text.hidden, .intermediate = config.text.intermediate};
  for (int i = 0; i < config.text.layers; ++i) sizes.q = std::max(sizes.q, drafter_layer_dims(config, i).q);
  sizes.qkv = sizes.q;
  return alloc_activations(be, owned, sizes, w.layers);
}

// The keys that a token at `position` sees: it is not in the cache, and the window begins one key earlier than the
// target's own would.
Row visible(const DraftRow& row, AttentionKind kind, int window) {
  const int last = row.position - 1;
  return {row.seq, row.position, kind == kSliding ? std::max(0, last - window) : 0, last};
}

}  // namespace

Drafter::Drafter(const Checkpoint& checkpoint, const Config& target, Backend& backend, int rows_max)
    : config_(config_for(checkpoint, target)),
      be_(backend),
      owned_(backend),
      w_(load_drafter_weights(checkpoint, config_, backend)),
      a_(activations_for(config_, w_, backend, owned_, rows_max)) {
  input_ = owned_.alloc(be_.activation_type(), {rows_max, 2 * int64_t{config_.backbone_hidden}});
  logits_ = owned_.alloc(DType::kF32, {rows_max, config_.text.vocab});
  drafted_ = owned_.alloc(DType::kI32, {int64_t{kDraftTokensMax} * rows_max, 1});
  inputs_ = owned_.alloc(DType::kI32, {11 * int64_t{rows_max}, 1});
}

void Drafter::check(const TextModel& target, std::span<const DraftRow> rows, int count) const {
  CHECK(!rows.empty() && static_cast<int64_t>(rows.size()) <= input_.rows());
  CHECK(count > 0 && count <= kDraftTokensMax);
  for (const DraftRow& row : rows) {
    CHECK(row.token >= 0 && row.token < config_.text.vocab && row.position > 0);
    CHECK(row.hidden_row >= 0 && row.hidden_row < target.hidden().rows());
    for (const AttentionKind kind : config_.text.kinds) {
      const Row seen = visible(row, kind, config_.text.window);
      CHECK(seen.last - seen.first < target.last_cache(kind).slots_per_seq());
    }
  }
}

// Rows come first, so that their 16 bytes each are aligned.
void Drafter::write_inputs(Inputs& in, std::span<const DraftRow> rows) {
  std::vector<int32_t> staging;
  for (const AttentionKind kind : {kSliding, kFull}) {
    for (const DraftRow& row : rows) {
      const Row& seen = in.host[kind].emplace_back(visible(row, kind, config_.text.window));
      staging.insert(staging.end(), {seen.seq, seen.pos, seen.first, seen.last});
    }
  }
  for (const DraftRow& row : rows) staging.push_back(row.token);
  for (const DraftRow& row : rows) staging.push_back(row.position);
  for (const DraftRow& row : rows) staging.push_back(row.hidden_row);
  be_.write(inputs_.slice(0, static_cast<int64_t>(staging.size())), staging.data());

  const auto count = static_cast<int64_t>(rows.size());
  auto* at = static_cast<int32_t*>(inputs_.data);
  const auto take = [&](int64_t width) {
    const Tensor t(at, DType::kI32, {count, width});
    at += count * width;
    return t;
  };
  for (const AttentionKind kind : {kSliding, kFull}) in.rows[kind] = {take(4), in.host[kind]};
  in.token = take(1);
  in.pos = take(1);
  in.hidden_row = take(1);
}

// From `input` to the logits, and to the hidden state of the next step in `input`.
void Drafter::step(const TextModel& target, const Inputs& in, Tensor input, Tensor logits) {
  const Activations a = a_.slice(0, input.rows());
  const float eps = config_.text.eps;
  be_.linear(a.x, input, w_.input);
  be_.rms_norm(attention_input(be_, a, w_.layers[0]), a.x, w_.layers[0].input_norm, eps);
  for (size_t i = 0; i < w_.layers.size(); ++i) {
    const AttentionKind kind = config_.text.kinds[i];
    const AttentionConfig& c = config_.text.attention[kind];
    run_layer(
        be_, a, w_.layers[i],
        {{c.heads, 0, c.head_dim, false}, in.pos, &target.rope(kind), &target.last_cache(kind), &in.rows[kind], eps},
        i + 1 == w_.layers.size() ? nullptr : &w_.layers[i + 1]);
  }
  be_.rms_norm(a.h, a.x, w_.norm, eps);
  be_.linear(logits, a.h, w_.head);
  be_.linear(hidden_of(input), a.h, w_.output);
}

std::vector<int32_t> Drafter::draft(const TextModel& target, std::span<const DraftRow> rows, int count,
                                    const Tap& tap) {
  check(target, rows, count);
  const auto n = static_cast<int64_t>(rows.size());
  Inputs in;
  write_inputs(in, rows);
  SamplingInput greedy;
  greedy.temperature = 0;
  const std::vector<SamplingInput> sampling(rows.size(), greedy);
  const Tensor input = input_.slice(0, n), logits = logits_.slice(0, n);
  be_.gather(hidden_of(input), target.hidden(), in.hidden_row);
  for (int i = 0; i < count; ++i) {
    // A drafted token stays on the device: the host waits once, at the end.
    target.embed_ids(input.columns(0, config_.backbone_hidden), i == 0 ? in.token : drafted_.slice((i - 1) * n, n));
    step(target, in, input, logits);
    be_.sample(drafted_.slice(i * n, n), logits, sampling);
    if (!tap) continue;
    tap(be_, "draft.logits", i, logits);
    tap(be_, "draft.hidden", i, hidden_of(input));
  }
  std::vector<int32_t> by_step(static_cast<size_t>(count * n)), drafted(by_step.size());
  be_.read(by_step.data(), drafted_.slice(0, count * n));
  for (size_t i = 0; i < drafted.size(); ++i) {
    const size_t row = i / static_cast<size_t>(count), step = i % static_cast<size_t>(count);
    drafted[i] = by_step[step * rows.size() + row];
  }
  return drafted;
}

int64_t Drafter::weights_bytes() const {
  int64_t bytes = matrix_bytes(w_.input) + matrix_bytes(w_.head) + matrix_bytes(w_.output);
  for (const LayerWeights& layer : w_.layers) bytes += layer_bytes(layer);
  return bytes;
}

}  // namespace gemma4
