// EngineCore: the part of the Engine that runs on its thread. It owns the scheduler and the prefix cache. One step:
// schedule -> encode (parts of) images -> forward -> accept -> commit -> draft. What a sampled token means is found by
// OutputWorkers beside it, and comes back as results. Not thread-safe.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/drafts/draft_source.h"
#include "engine/drafts/verify.h"
#include "engine/engine.h"
#include "engine/output_processor.h"
#include "engine/output_workers.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"
#include "model/model.h"

namespace gemma4 {

class EngineCore {
 public:
  // `wake` is called from a worker when there are results to take.
  EngineCore(Model& model, const OutputProcessor& output, ImageCache& images, const EngineOptions& options,
             std::function<void()> wake = nullptr);

  void add(std::unique_ptr<Sequence> sequence);
  void cancel(uint64_t id);  // no effect after the sequence's end
  void cancel_all();
  void fail_all(const std::string& message, bool device);

  bool busy() const { return scheduler_.waiting() + scheduler_.running() + static_cast<int>(ending_.size()) > 0; }
  // When to call step(), where no result, request or cancellation comes before; max() if it would do nothing. Late
  // output of the last step's sequences is waited for, for a small part of a step, so that they stay together.
  Clock::time_point next_step() const;
  void step();          // throws DeviceError; the engine cannot be used after that
  void take_results();  // of the workers
  void drain();         // waits for the last events of sequences that were ended
  void wait(Clock::time_point deadline) { workers_.wait(deadline); }  // until there is a result
  EngineStats stats() const;
  std::map<uint64_t, int> waiting_by_salt() const { return scheduler_.waiting_by_salt(); }
  void check() const { scheduler_.check(); }

 private:
  void note_start(Sequence& sequence);
  void encode_images(Step& step);
  bool encode(const ImagePart& part);
  void share_embeddings(const Sequence& sequence, const PromptImage& image, const Model::ImageEmbeddings& embeddings);
  void fill_batch(const Step& step);
  void append(const ScheduledRows& rows);
  void append_drafts(const ScheduledRows& rows);
  void want_token(const Sequence& sequence, const DrawState& state, int drafts);
  void update_page_table(Sequence& sequence);
  Round accept(ScheduledRows& rows, std::span<const int32_t> drawn);
  void commit(Step& step, const std::vector<int32_t>& tokens);
  void commit(const ScheduledRows& rows, const Round& round, size_t logit_row);
  void draft(std::span<const DraftSource::Candidate> candidates);
  void score_prompt(Sequence& sequence, const ScheduledRows& rows, size_t& logit_row);
  void post(Sequence& sequence, OutputJob job, size_t logit_row);
  void end(Sequence* sequence, Finish how);
  void finish(Sequence* sequence, OutputJob job);
  void fail(Sequence* sequence, const std::string& message, bool device, bool budget = false);

  Model& model_;
  const OutputProcessor& output_;
  ImageCache& images_;
  PrefixCache pages_;
  Scheduler scheduler_;
  DraftSource draft_source_;
  Batch batch_;
  std::deque<DrawState> states_;    // of the rows of drafts in the batch
  std::vector<float> logits_;       // [logit rows, vocabulary], read back if a sequence wants logprobs
  std::vector<int32_t> page_list_;  // scratch
  EngineStats stats_;
  bool stuck_ = false;  // the last step had to wait for results, and nothing has changed
  Clock::time_point late_until_ = Clock::time_point::min();
  std::unordered_map<Sequence*, std::unique_ptr<Sequence>> ending_;  // whose last event has not gone out
  std::vector<std::vector<float>> spare_logits_;
  OutputWorkers workers_;  // goes first
};

}  // namespace gemma4
