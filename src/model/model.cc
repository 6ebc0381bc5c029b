#include "model/model.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/mapped_file.h"
#include "model/cache_plan.h"
#include "model/decoder.h"
#include "model/drafter.h"
#include "model/populator.h"
#include "model/rank_commands.h"
#include "model/vision.h"

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
  for (int kind = 0; kind < kAttentionKinds; ++kind) o.pages[kind] = seqs * o.pages_per_seq[kind];
  return o;
}

namespace {

// The embeddings of an image on another backend.
Model::ImageEmbeddings moved(const Model::ImageEmbeddings& image, Backend& from, Backend& to) {
  std::vector<std::byte> bytes(static_cast<size_t>(image.rows.bytes()));
  from.read(bytes.data(), image.rows);
  const Tensor rows = to.alloc(image.rows.dtype, {image.rows.rows(), image.rows.row_size()});
  const std::shared_ptr<const void> hold(rows.data, [&to, rows](const void*) { to.release(rows); });
  to.write(rows, bytes.data());
  return {rows, hold};
}

}  // namespace

struct Model::Impl {
  Impl(const Checkpoint& checkpoint, const Config& parsed, const Ranks& backends, const ModelOptions& given,
       const PlanCaches& plan)
      : config(parsed), options(given), ranks(backends), models(backends.size()) {
    try {
      open(checkpoint, plan);
    } catch (const OutOfMemory& error) {
      throw Error(error.what() + (checkpoint.program ? "" : way_out()));
    }
  }

  void open(const Checkpoint& checkpoint, const PlanCaches& plan) {
    const CommandBytes command =
        ranks.leads() ? encode_open(model_fingerprint(checkpoint, ranks[0].name()), options) : CommandBytes();
    if (options.drafter) load_drafter();
    run(command, [&](int r) {
      models[r] = std::make_unique<Decoder>(checkpoint, config, ranks.devices(r), options, plan);
      if (r == 0) vision = std::make_unique<VisionModel>(models[0]->tower_backend(), config, models[0]->vision());
    });
    ranks.run([&](int r) {
      if (r > 0 || (!plan && !ranks.channel())) return;
      const CacheMemory memory = least_memory();
      if (plan) plan(options, memory);
    });
    run(ranks.leads() ? encode_caches(options) : CommandBytes(), [&](int r) {
      models[r]->alloc_caches(options);
      if (!ranks.channel()) return;
      ranks.leads() ? ranks.channel()->wait_ready() : ranks.channel()->send_ready();
    });
    row_work = models[0]->row_work();
    check_files();
  }

  // Before the target: mistakes are found early, and the plan of the caches counts its memory.
  void load_drafter() {
    if (ranks.channel() || ranks.world() > 1 || ranks.devices(0).size() > 1) {
      throw Error(options.drafter->path.string() +
                  ": a drafter needs the whole model on one device; leave it away, or spread the model over no others");
    }
    drafter = std::make_unique<Drafter>(*options.drafter, config, ranks[0], options.seqs_max);
    options.drafter = nullptr;  // the caller may close it now
  }

  // Where memory was short. (An exported program is for one device.)
  std::string way_out() const {
    const bool gpu = ranks[0].name() == std::string("cuda");
    if (!gpu || ranks.world() > 1 || ranks.devices(0).size() > 2) return "";
    const bool all = ranks.devices(0).size() == 1;
    return all ? ", or --gpu-layers auto, which leaves to the CPU the layers that do not fit"
               : ", or fewer --gpu-layers; auto takes as many as fit";
  }

  // Of all ranks, also those of other processes, which call it at the same time.
  CacheMemory least_memory() const {
    ControlChannel* channel = ranks.channel();
    const auto gather = [&](const CacheMemory& mine) {
      const auto bytes = channel->gather(ControlChannel::Message::kMemory, std::as_bytes(std::span(&mine, 1)));
      std::vector<CacheMemory> all(bytes.size() / sizeof(CacheMemory));
      std::memcpy(all.data(), bytes.data(), bytes.size());
      return all;
    };
    std::vector<CacheMemory> all;
    if (channel != nullptr) gather({});  // all have loaded their weights now
    for (int r = 0; r < ranks.size(); ++r) {
      all.push_back(models[r]->cache_memory());
      const int sharers = channel != nullptr ? channel->process().local_world : ranks.size();
      if (ranks[r].memory_left().shared) all.back().free /= std::max(1, sharers);
    }
    if (channel != nullptr) all = gather(all.front());
    CacheMemory least = all.front();
    for (const CacheMemory& other : all) {
      least.free = std::min(least.free, other.free);
      for (const AttentionKind kind : {kSliding, kFull}) {
        least.page_bytes[kind] = std::max(least.page_bytes[kind], other.page_bytes[kind]);
      }
    }
    return least;
  }

  ~Impl() {
    try {
      if (ranks.leads()) ranks.channel()->send_all(ControlChannel::Message::kCommand, encode_close());
    } catch (const Error&) {
      // The other processes have already ended.
    }
  }

  // Runs `work` on every rank of this process, and first sends `command` to the other processes.
  void run(const CommandBytes& command, FunctionRef<void(int rank)> work) const {
    ranks.run([&](int r) {
      if (ranks.leads()) ranks.channel()->send_all(ControlChannel::Message::kCommand, command);
      work(r);
    });
  }

  // Runs work that only the first rank does. If it fails, the other ranks fail too.
  template <typename Work>
  auto run_first(const Work& work) const {
    try {
      return work();
    } catch (const DeviceError& error) {
      ranks.fail(kExitDevice, error.what());
      throw;
    }
  }

  // Weights may lie in mapped files (an exported program). What was computed while one changed is not used.
  void check_files() const { run_first(check_mapped_files); }

  // Few rows touch little memory, and should not wait for those that take more.
  void populate(int rows, int patches) {
    constexpr int kFewRows = 64;
    populator.wait_for(rows > kFewRows ? std::min(rows, options.rows_max) : 0, patches);
  }

  Config config;
  ModelOptions options;
  Ranks ranks;
  std::vector<std::unique_ptr<Decoder>> models;  // by rank
  std::unique_ptr<VisionModel> vision;           // on rank 0
  std::unique_ptr<Drafter> drafter;              // on rank 0, where it was asked for
  int64_t row_work = 1;                          // multiply-adds of one row, on rank 0, where the tower is

  // The last member, because its thread uses the others.
  Populator populator{[this](int rows, int patches) {
    if (rows > 0) {
      for (const auto& model : models) model->populate(rows);
    }
    if (patches > 0) vision->populate(patches);
  }};
};

Model::Model(const Checkpoint& checkpoint, const Config& config, const Ranks& ranks, const ModelOptions& options,
             const PlanCaches& plan)
    : impl_(std::make_unique<Impl>(checkpoint, config, ranks, options, plan)) {}

Model::~Model() = default;

const Config& Model::config() const { return impl_->config; }
const ModelOptions& Model::options() const { return impl_->options; }
Backend& Model::backend() const { return impl_->models[0]->home(); }
std::string Model::placement() const { return impl_->models[0]->placement(); }

void Model::set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages) {
  const CommandBytes command = impl_->ranks.leads() ? encode_set_pages(kind, seq, pages) : CommandBytes();
  impl_->run(command, [&](int r) { impl_->models[r]->set_pages(kind, seq, pages); });
}

void Model::copy_page(AttentionKind kind, int32_t from, int32_t to) {
  const CommandBytes command = impl_->ranks.leads() ? encode_copy_page(kind, from, to) : CommandBytes();
  impl_->run(command, [&](int r) { impl_->models[r]->copy_page(kind, from, to); });
}

std::vector<int32_t> Model::forward(const Batch& batch) {
  std::vector<int32_t> ids;
  const CommandBytes command = impl_->ranks.leads() ? encode_forward(batch) : CommandBytes();
  impl_->check_files();
  impl_->run(command, [&](int r) {
    const std::vector<int32_t> sampled = impl_->models[r]->forward(batch, r == 0 ? tap : nullptr);
    if (r == 0) ids = sampled;
  });
  impl_->check_files();
  return ids;
}

void Model::read_logits(float* out) const { impl_->models[0]->read_logits(out); }

bool Model::has_drafter() const { return impl_->drafter != nullptr; }

std::vector<int32_t> Model::draft(std::span<const DraftRow> rows, int count) {
  CHECK(has_drafter());
  impl_->check_files();
  std::vector<int32_t> ids =
      impl_->run_first([&] { return impl_->drafter->draft(impl_->models[0]->text(), rows, count, tap); });
  impl_->check_files();
  return ids;
}

int64_t Model::step_bytes() const { return impl_->models[0]->step_bytes(); }

std::vector<Model::PartTime> Model::time_parts(const Batch& batch, int repeat) {
  CHECK(impl_->ranks.world() == 1);
  return impl_->models[0]->time_parts(batch, repeat);
}

int64_t Model::cache_bytes() const {
  int64_t bytes = 0;
  for (const auto& model : impl_->models) bytes += model->cache_bytes();
  return bytes;
}

int64_t Model::weights_bytes() const {
  int64_t bytes = 0;
  for (const auto& model : impl_->models) bytes += model->weights_bytes();
  return bytes + (impl_->drafter ? impl_->drafter->weights_bytes() : 0);
}

Model::ImageEmbeddings Model::embed(std::span<const int32_t> ids) {
  Backend* be = &backend();
  const auto count = static_cast<int64_t>(ids.size());
  OwnedTensors inputs(*be);
  const Tensor index = inputs.alloc(DType::kI32, {count, 1});
  be->write(index, ids.data());
  const Tensor rows = be->alloc(be->residual_type(), {count, impl_->config.hidden});
  const std::shared_ptr<const void> hold(rows.data, [be, rows](const void*) { be->release(rows); });
  be->embed(rows, impl_->models[0]->embedding(), index, impl_->config.embed_scale);
  be->sync();  // `index` is released when this call returns
  impl_->check_files();
  return {rows, hold};
}

Model::ImageEmbeddings Model::encode(const PatchView& patches) {
  begin_image(patches);
  return *encode_more(std::numeric_limits<int>::max());
}

void Model::begin_image(const PatchView& patches) {
  if (impl_->models[0]->vision().layers.empty()) throw Error("this model was loaded without its vision tower");
  impl_->check_files();
  impl_->run_first([&] { impl_->vision->begin(patches); });
}

std::optional<Model::ImageEmbeddings> Model::encode_more(int rows) {
  const bool all = rows == std::numeric_limits<int>::max();
  const int64_t work = all ? std::numeric_limits<int64_t>::max() : rows * impl_->row_work;
  std::optional<ImageEmbeddings> embeddings;
  impl_->check_files();
  impl_->run_first([&] {
    if (!impl_->vision->advance(work, tap)) return;
    embeddings = impl_->vision->finish();
    Backend& tower = impl_->models[0]->tower_backend();
    if (&tower != &backend()) embeddings = moved(*embeddings, tower, backend());
  });
  impl_->check_files();
  return embeddings;
}

int Model::image_rows(int patches) const {
  const int64_t rows = impl_->vision->work(patches) / impl_->row_work + 1;
  return static_cast<int>(std::min<int64_t>(rows, std::numeric_limits<int>::max()));
}

void Model::reserve_images(int patches_max) {
  if (impl_->vision && impl_->config.has_vision && impl_->options.vision) impl_->vision->reserve(patches_max);
}

void Model::populate(int rows, int patches) const { impl_->populate(rows, patches); }

void Model::encode_again() { impl_->vision->encode_again(); }

}  // namespace gemma4
