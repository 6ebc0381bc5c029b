// EngineCore: the part of the Engine that runs on its thread. It owns the scheduler and the prefix cache. One step:
// schedule -> encode images -> forward -> commit. Not thread-safe.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/output_processor.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"
#include "model/model.h"

namespace gemma4 {

class EngineCore {
 public:
  EngineCore(Model& model, const OutputProcessor& output, ImageCache& images, const EngineOptions& options);

  void add(std::unique_ptr<Sequence> sequence);
  void cancel(uint64_t id);  // no effect after the sequence's end
  void cancel_all();
  void fail_all(const std::string& message, bool device);

  bool busy() const { return scheduler_.waiting() + scheduler_.running() > 0; }
  void step();  // throws DeviceError; the engine cannot be used after that
  EngineStats stats() const;
  void check() const { scheduler_.check(); }

 private:
  void encode_images(Step& step);
  bool encode(Sequence& sequence, PromptImage& image);
  void fill_batch(const Step& step);
  void append(const ScheduledRows& rows);
  void update_page_table(Sequence& sequence);
  void commit(const Step& step, const std::vector<int32_t>& tokens);
  void end(Sequence* sequence, Finish how);
  void fail(Sequence* sequence, const std::string& message, bool device);

  Model& model_;
  const OutputProcessor& output_;
  ImageCache& images_;
  PrefixCache pages_;
  Scheduler scheduler_;
  Batch batch_;
  std::vector<float> logits_;       // [logit rows, vocabulary], read back if a sequence wants logprobs
  std::vector<int32_t> page_list_;  // scratch
  EngineStats stats_;
};

}  // namespace gemma4
