#include "model/decoder.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>

#include "model/cache_plan.h"
#include "model/tensor_table.h"

namespace gemma4 {
namespace {

constexpr int kTowerShare = 4;  // the tower is put first only where it takes at most this part of the free memory

int64_t layer_work(const LayerWeights& layer) {
  int64_t work = layer.o.rows * layer.o.cols + layer.down.rows * layer.down.cols;
  for (const FusedLinear* fused : {&layer.qkv, &layer.gate_up}) {
    for (const FusedLinear::Slice& slice : fused->slices) work += slice.weight.rows * slice.weight.cols;
  }
  return work;
}

int64_t step_bytes_of(const Weights& w) {
  int64_t bytes = matrix_bytes(w.head);
  for (const LayerWeights& layer : w.layers) bytes += layer_bytes(layer);
  return bytes;
}

// Bytes of the tensors in the files whose names begin so; "" is all.
int64_t file_bytes(const Checkpoint& checkpoint, const std::string& prefix) {
  int64_t bytes = 0;
  for (const auto& [name, weight] : checkpoint.weights) {
    if (name.starts_with(prefix)) bytes += static_cast<int64_t>(weight.bytes);
  }
  return bytes;
}

int64_t tower_file_bytes(const Checkpoint& checkpoint) {
  return file_bytes(checkpoint, "vision_tower.") + file_bytes(checkpoint, "embed_vision.");
}

std::string gigabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

std::string name_of(const Backend& backend) {
  const std::string device = backend.device();
  return backend.name() + (device.empty() ? "" : " (" + device + ")");
}

}  // namespace

// Whether a device has memory for layers that are already loaded: for their activations, the caches that `plan` wants
// at least, and the reserve.
class Decoder::Fitting {
 public:
  Fitting(Backend& backend, const Config& config, const ModelOptions& options, const PlanCaches& plan)
      : be_(backend), config_(config), options_(options), plan_(plan) {}

  bool fits(const Weights& w, int begin, int end, int64_t more_bytes = 0) {
    if (activations_ < 0) measure(w, begin);
    CacheMemory here, elsewhere;
    here.free = be_.memory_left().bytes - activations_;
    elsewhere.free = int64_t{1} << 60;
    for (int i = 0; i < config_.layers; ++i) {
      const AttentionKind kind = config_.kinds[static_cast<size_t>(i)];
      CacheMemory& memory = i >= begin && i < end ? here : elsewhere;
      memory.page_bytes[kind] += page_bytes_[kind];
    }
    ModelOptions sized = options_;
    if (plan_) plan_(sized, memory_of_stages(std::array{here, elsewhere}));
    int64_t caches = 0;
    for (const AttentionKind kind : {kSliding, kFull}) caches += sized.pages[kind] * here.page_bytes[kind];
    return here.free - memory_reserve(here.free) >= caches + more_bytes;
  }

 private:
  // Asks the backend for all buffers once, and gives them back.
  void measure(const Weights& w, int begin) {
    const int64_t before = be_.memory_used();
    const TextModel probe(be_, config_, w, options_, {0, begin, begin + 1, true, true});
    const int64_t bytes = be_.memory_used() - before;
    const int heads[] = {static_cast<int>(w.tensor_parallel.kv_heads[kSliding].count),
                         static_cast<int>(w.tensor_parallel.kv_heads[kFull].count)};
    const CacheMemory one = gemma4::cache_memory(be_, config_, heads, options_.page, std::array{kSliding, kFull});
    std::ranges::copy(one.page_bytes, page_bytes_);
    activations_ = bytes;
  }

  Backend& be_;
  const Config& config_;
  const ModelOptions& options_;
  const PlanCaches& plan_;
  int64_t activations_ = -1;
  int64_t page_bytes_[kAttentionKinds] = {};  // of a page in one layer
};

Decoder::Decoder(const Checkpoint& checkpoint, const Config& config, const std::vector<Backend*>& devices,
                 const ModelOptions& options, const PlanCaches& plan)
    : config_(config), options_(options), devices_(devices.size()) {
  for (size_t i = 0; i < devices.size(); ++i) devices_[i].backend = devices[i];
  load(checkpoint, plan);
  std::vector<int> layers;
  for (const Device& device : devices_) layers.push_back(device.end - device.begin);
  for (const Stage& stage : stages_of(layers)) {
    const Device& device = devices_[stage.device];
    stages_.push_back(std::make_unique<TextModel>(*device.backend, config_, device.weights, options_, stage));
    if (stage.first) home_ = stage.device;
  }
  rows_.resize(stages_.size());
}

// Loading.

void Decoder::load(const Checkpoint& checkpoint, const PlanCaches& plan) {
  if (devices_.size() == 1) {
    devices_[0].weights = load_weights(checkpoint, config_, *devices_[0].backend, {.vision = options_.vision});
    devices_[0].end = config_.layers;
    return;
  }
  if (checkpoint.program) {
    throw Error(checkpoint.path.string() + " is a program for one device, and its layers cannot be spread over " +
                "several; run the checkpoint it was made of");
  }
  const std::vector<int> wanted = wanted_layers(checkpoint);
  int next = 0;
  for (size_t i = 0; i < devices_.size(); ++i) {
    Device& device = devices_[i];
    const bool takes_rest = i + 1 == devices_.size();
    device.begin = device.end = next;
    const int rest = config_.layers - next;
    if (rest > 0) load_layers(checkpoint, plan, device, takes_rest ? rest : std::min(wanted[i], rest));
    next = device.end;
  }
  if (has_tower()) load_tower(checkpoint, plan);
}

std::vector<int> Decoder::wanted_layers(const Checkpoint& checkpoint) const {
  if (!options_.device_layers.empty()) {
    CHECK(options_.device_layers.size() + 1 >= devices_.size());
    return options_.device_layers;
  }
  std::vector<int64_t> layers, free;
  int64_t home = file_bytes(checkpoint, "") - (has_tower() ? 0 : tower_file_bytes(checkpoint));
  for (int i = 0; i < config_.layers; ++i) {
    layers.push_back(file_bytes(checkpoint, layer_prefix(kTextTower, i)));
    home -= layers.back();
  }
  for (const Device& device : devices_) free.push_back(device.backend->memory_left().bytes);
  return share_layers(layers, home, free);
}

// `count` layers from device.begin on. As many as fit may be none, and then the device gets nothing else either.
void Decoder::load_layers(const Checkpoint& checkpoint, const PlanCaches& plan, Device& device, int count) {
  if (count == 0) return;
  WeightParts parts;
  parts.begin = device.begin, parts.end = device.begin + count;
  parts.ends = device.begin == 0, parts.vision = false;
  Backend& backend = *device.backend;
  if (count != kAsManyAsFit) {
    device.weights = load_weights(checkpoint, config_, backend, parts);
    device.end = parts.end;
    return;
  }
  Fitting fitting(backend, config_, options_, plan);
  parts.end = config_.layers;
  parts.stays = [&](const Weights& w, int end) { return fitting.fits(w, device.begin, end); };
  const int64_t left = backend.memory_left().bytes;
  const bool tower =
      parts.ends && has_tower() && tower_file_bytes(checkpoint) * kTowerShare <= left - memory_reserve(left);
  try {
    if (tower) device.tower = load_weights(checkpoint, config_, backend, {0, 0, false, true, nullptr});
    device.weights = load_weights(checkpoint, config_, backend, parts);
    device.end = device.weights.layers_end;
  } catch (const OutOfMemory&) {
    device.end = device.begin;
  }
  if (device.end == device.begin) device.weights = Weights(), device.tower = Weights();
}

// The tower goes to the home if it has the memory, else to the device with the most.
void Decoder::load_tower(const Checkpoint& checkpoint, const PlanCaches& plan) {
  const auto has_it = [](const Device& device) { return !device.tower.vision.layers.empty(); };
  auto at = std::ranges::find_if(devices_, has_it);
  if (at == devices_.end()) {
    at = std::ranges::find_if(devices_, [](const Device& device) { return device.end > 0; });  // the home
    Fitting fitting(*at->backend, config_, options_, plan);
    if (!fitting.fits(at->weights, at->begin, at->end, tower_file_bytes(checkpoint))) {
      at = std::ranges::max_element(devices_, {}, [](const Device& d) { return d.backend->memory_left().bytes; });
    }
    at->tower = load_weights(checkpoint, config_, *at->backend, {0, 0, false, true, nullptr});
  }
  tower_ = static_cast<size_t>(at - devices_.begin());
}

// Caches.

void Decoder::alloc_caches(const ModelOptions& options) {
  options_ = options;
  for (const auto& stage : stages_) {
    const auto device = std::ranges::find(devices_, &stage->backend(), &Device::backend);
    const int64_t before = stage->backend().memory_used();
    stage->alloc_caches(options_);
    device->cache_bytes += stage->backend().memory_used() - before;
  }
}

void Decoder::populate(int rows) const {
  for (const auto& stage : stages_) stage->populate(rows);
}

CacheMemory Decoder::memory_of(const Device& device) const {
  const auto& kv_heads = device.weights.tensor_parallel.kv_heads;
  const int heads[] = {static_cast<int>(kv_heads[kSliding].count), static_cast<int>(kv_heads[kFull].count)};
  const auto layers = std::span(config_.kinds)
                          .subspan(static_cast<size_t>(device.begin), static_cast<size_t>(device.end - device.begin));
  return gemma4::cache_memory(*device.backend, config_, heads, options_.page, layers);
}

CacheMemory Decoder::cache_memory() const {
  if (devices_.size() == 1) return memory_of(devices_[0]);
  std::vector<CacheMemory> stages;
  const auto shares = std::ranges::count_if(
      devices_, [](const Device& device) { return device.end > device.begin && device.backend->memory_left().shared; });
  for (const Device& device : devices_) {
    if (device.end == device.begin) continue;
    stages.push_back(memory_of(device));
    if (device.backend->memory_left().shared) stages.back().free /= shares;
  }
  return memory_of_stages(stages);
}

void Decoder::set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages) {
  for (const auto& stage : stages_) stage->set_pages(kind, seq, pages);
}

void Decoder::copy_page(AttentionKind kind, int32_t from, int32_t to) {
  for (const auto& stage : stages_) stage->copy_page(kind, from, to);
}

// A pass.

// Brings the rows of the stage before to stage `s`.
void Decoder::receive(size_t s) {
  TextModel &from = *stages_[s - 1], &to = *stages_[s];
  const Tensor rows = from.output(!to.has_layers()), input = to.input();
  CHECK(rows.dtype == input.dtype && rows.bytes() == input.bytes());
  rows_[s].resize(static_cast<size_t>(rows.bytes()));
  from.backend().read(rows_[s].data(), rows);
  to.backend().write(input, rows_[s].data());
}

std::vector<int32_t> Decoder::forward(const Batch& batch, const Tap& tap) {
  for (size_t s = 0; s < stages_.size(); ++s) {
    TextModel& stage = *stages_[s];
    stage.start(batch);
    if (s > 0 && !stage.has_layers() && batch.logit_rows.empty()) break;
    if (s > 0) receive(s);
    stage.compute(batch, tap);
  }
  return stages_.back()->sample(batch);
}

void Decoder::read_logits(float* out) const { stages_.back()->backend().read(out, stages_.back()->logits()); }

std::vector<Model::PartTime> Decoder::time_parts(const Batch& batch, int repeat) {
  using Clock = std::chrono::steady_clock;
  const auto median = [&](Backend& be, const auto& before, const auto& work) {
    std::vector<double> times;
    for (int r = 0; r < repeat; ++r) {
      before();
      be.sync();
      const auto start = Clock::now();
      work();
      be.sync();
      times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    std::ranges::sort(times);
    return times[times.size() / 2];
  };
  forward(batch, nullptr);
  std::vector<Model::PartTime> parts;
  double copies = 0;
  for (size_t s = 0; s < stages_.size(); ++s) {
    TextModel& stage = *stages_[s];
    Backend& be = stage.backend();
    if (s > 0)
      copies += median(
          be, [] {}, [&] { receive(s); });
    const auto fill = [&] {
      if (s > 0) be.write(stage.input(), rows_[s].data());
    };
    const double seconds = median(be, fill, [&] {
      stage.start(batch);
      stage.compute(batch, nullptr);
      if (s + 1 == stages_.size()) stage.sample(batch);
    });
    parts.push_back({stage.what(), seconds});
  }
  if (stages_.size() > 1) parts.push_back({"copies between them", copies});
  return parts;
}

// What there is.

const Matrix& Decoder::embedding() const { return devices_[home_].weights.embed; }

const VisionWeights& Decoder::vision() const {
  return devices_.size() == 1 ? devices_[0].weights.vision : devices_[tower_].tower.vision;
}

int64_t Decoder::weights_bytes_of(const Device& device) const {
  const Weights& w = device.weights;
  int64_t bytes = step_bytes_of(w) + (config_.tied ? 0 : matrix_bytes(w.embed));
  for (const VisionWeights* vision : {&w.vision, &device.tower.vision}) {
    for (const LayerWeights& layer : vision->layers) bytes += layer_bytes(layer);
  }
  return bytes;
}

int64_t Decoder::cache_bytes() const {
  int64_t bytes = 0;
  for (const Device& device : devices_) bytes += device.cache_bytes;
  return bytes;
}

int64_t Decoder::weights_bytes() const {
  int64_t bytes = 0;
  for (const Device& device : devices_) bytes += weights_bytes_of(device);
  return bytes;
}

int64_t Decoder::step_bytes() const {
  int64_t bytes = 0;
  for (const Device& device : devices_) bytes += step_bytes_of(device.weights);
  return bytes;
}

int64_t Decoder::row_work() const {
  int64_t work = 0;
  for (const Device& device : devices_) {
    for (const LayerWeights& layer : device.weights.layers) work += layer_work(layer);
  }
  return std::max<int64_t>(1, work);
}

std::string Decoder::placement() const {
  if (devices_.size() == 1) return "";
  std::string text;
  for (size_t i = 0; i < devices_.size(); ++i) {
    const Device& device = devices_[i];
    const bool layers = device.end > device.begin, tower = has_tower() && tower_ == i;
    if (!layers && !tower) continue;
    if (!text.empty()) text += "; ";
    text += name_of(*device.backend) + ": ";
    if (layers) {
      text += "layers " + std::to_string(device.begin) + " to " + std::to_string(device.end - 1) + " of " +
              std::to_string(config_.layers);
      if (i == home_) text += ", the embedding and the head";
    }
    if (tower) text += std::string(layers ? ", " : "") + "the vision tower";
    text += ", " + gigabytes(weights_bytes_of(device)) + " of weights";
    if (layers) text += ", " + gigabytes(device.cache_bytes) + " of key-value cache";
  }
  return text;
}

}  // namespace gemma4
