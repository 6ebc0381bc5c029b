// Decoder: one rank's text decoder with its weights, on one device or in stages on several (model/placement.h). On one
// device a pass is that of its TextModel. Over several the rows of the residual stream are read from each stage and
// written to the next; all backends keep them in one type.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/model.h"
#include "model/text.h"
#include "model/weights.h"

namespace gemma4 {

class Decoder {
 public:
  // Loads the weights. `plan` is asked how many pages there would be, where free memory decides how many layers a
  // device gets; without it the pages of `options` count. Throws Error.
  Decoder(const Checkpoint& checkpoint, const Config& config, const std::vector<Backend*>& devices,
          const ModelOptions& options, const PlanCaches& plan);

  void alloc_caches(const ModelOptions& options);
  CacheMemory cache_memory() const;  // before alloc_caches()

  void populate(int rows) const;  // Model::populate()

  void set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages);
  void copy_page(AttentionKind kind, int32_t from, int32_t to);
  std::vector<int32_t> forward(const Batch& batch, const Tap& tap);
  void read_logits(float* out) const;

  Backend& home() const { return stages_.front()->backend(); }  // embeds, computes logits and samples
  const Matrix& embedding() const;
  const TextModel& text() const { return *stages_.front(); }  // the whole decoder, where it is on one device
  Backend& tower_backend() const { return *devices_[tower_].backend; }
  const VisionWeights& vision() const;

  int64_t cache_bytes() const;
  int64_t weights_bytes() const;
  int64_t step_bytes() const;     // of the weights that a step of one row reads
  int64_t row_work() const;       // multiply-adds of one row of a prompt, without its attention
  std::string placement() const;  // Model::placement()
  std::vector<Model::PartTime> time_parts(const Batch& batch, int repeat);

 private:
  struct Device {
    Backend* backend = nullptr;
    Weights weights;
    Weights tower;           // the vision tower alone, where there are several devices
    int begin = 0, end = 0;  // its layers
    int64_t cache_bytes = 0;
  };
  class Fitting;

  void load(const Checkpoint& checkpoint, const PlanCaches& plan);
  std::vector<int> wanted_layers(const Checkpoint& checkpoint) const;
  void load_layers(const Checkpoint& checkpoint, const PlanCaches& plan, Device& device, int count);
  void load_tower(const Checkpoint& checkpoint, const PlanCaches& plan);
  CacheMemory memory_of(const Device& device) const;
  bool has_tower() const { return options_.vision && config_.has_vision; }
  int64_t weights_bytes_of(const Device& device) const;
  void receive(size_t stage);

  const Config& config_;
  ModelOptions options_;
  std::vector<Device> devices_;
  size_t home_ = 0, tower_ = 0;                     // the devices that have the embedding and the vision tower
  std::vector<std::unique_ptr<TextModel>> stages_;  // go before the weights they use
  std::vector<std::vector<std::byte>> rows_;        // [stages] what each stage has received, on the host
};

}  // namespace gemma4
