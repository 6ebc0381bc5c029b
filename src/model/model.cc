#include "model/model.h"

#include <algorithm>

#include "model/text.h"
#include "model/vision.h"
#include "model/weights.h"

namespace gemma4 {

int flat_pages(int max_seq_len, int page) { return (max_seq_len + page - 1) / page; }

int ring_pages(const Config& config, int rows_max, int page) { return flat_pages(config.window + rows_max - 1, page); }

ModelOptions options_for(const Config& config, int max_seq_len, int rows_max, int seqs) {
  ModelOptions o;
  o.rows_max = rows_max;
  o.seqs_max = seqs;
  o.logits_max = std::max(seqs, 1);
  o.pages_per_seq[kFull] = flat_pages(max_seq_len, o.page);
  o.pages_per_seq[kSliding] = std::min(ring_pages(config, rows_max, o.page), o.pages_per_seq[kFull]);
  for (int kind = 0; kind < kKinds; ++kind) o.pages[kind] = seqs * o.pages_per_seq[kind];
  return o;
}

struct Model::Impl {
  Impl(const Checkpoint& checkpoint, Backend& be, const ModelOptions& options)
      : config(parse_config(checkpoint.config)),
        options(options),
        backend(be),
        weights(load_weights(checkpoint, config, be, options.vision)),
        text(be, config, weights, options),
        vision(be, config, weights.vision) {}

  Config config;
  ModelOptions options;
  Backend& backend;
  Weights weights;
  TextModel text;
  VisionModel vision;
};

Model::Model(const Checkpoint& checkpoint, Backend& backend, const ModelOptions& options)
    : impl_(std::make_unique<Impl>(checkpoint, backend, options)) {}

Model::~Model() = default;

const Config& Model::config() const { return impl_->config; }
const ModelOptions& Model::options() const { return impl_->options; }
Backend& Model::backend() { return impl_->backend; }

void Model::set_pages(Kind kind, int seq, std::span<const int32_t> pages) { impl_->text.set_pages(kind, seq, pages); }
void Model::copy_page(Kind kind, int32_t from, int32_t to) { impl_->text.copy_page(kind, from, to); }
std::vector<int32_t> Model::forward(const Batch& batch) { return impl_->text.forward(batch, tap); }
void Model::read_logits(float* out) const { impl_->backend.read(out, impl_->text.logits()); }

int64_t Model::step_bytes() const {
  const Weights& w = impl_->weights;
  int64_t bytes = matrix_bytes(w.head);
  for (const LayerWeights& layer : w.layers) {
    bytes += matrix_bytes(layer.o) + matrix_bytes(layer.down);
    for (const Fused* fused : {&layer.qkv, &layer.gate_up}) {
      for (const Fused::Part& part : fused->parts) bytes += matrix_bytes(part.w);
    }
  }
  return bytes;
}

Model::Soft Model::encode(const PatchView& patches) {
  if (impl_->weights.vision.layers.empty()) throw Error("this model was loaded without its vision tower");
  return impl_->vision.encode(patches, tap);
}

void Model::encode_again() { impl_->vision.encode_again(); }

}  // namespace gemma4
