// OutputWorkers: threads beside the engine's, which turn sampled tokens into events: log probabilities, the grammar's
// next mask, text, tool calls, and the calls of the sink. The jobs of one sequence run one at a time, in order.
// Sequences with masks or log probabilities have threads of their own, of low priority: as many as sequences run, so
// that none of them waits for another, and neither the engine nor plain answers wait for them.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "engine/output_processor.h"

namespace gemma4 {

struct OutputResult {
  Sequence* sequence = nullptr;
  std::optional<Finish> finish;  // the answer's text or its grammar ends it
  std::string error;             // the answer cannot go on: why
  bool budget = false;           // with `error`: the request's budget of work is spent
  bool ended = false;            // its last event went out; the workers have let go of the sequence
  bool failed = false;           // with `ended`: it was an error
  int unread = 0;                // tokens of the job that came after the end
  int accepted = 0;              // drafts among the others
  std::vector<float> logits;     // the job's, to be used again
};

class OutputWorkers {
 public:
  // `wake` is called from a worker where results have come and none were there before.
  OutputWorkers(const OutputProcessor& output, int heavy_threads, std::function<void()> wake);
  ~OutputWorkers();  // runs what was posted
  OutputWorkers(const OutputWorkers&) = delete;
  OutputWorkers& operator=(const OutputWorkers&) = delete;

  // The sequence must live until its kFinish or kFail has ended.
  void post(Sequence& sequence, OutputJob job) EXCLUDES(mutex_);
  std::vector<OutputResult> take_results() EXCLUDES(mutex_);
  void wait(Clock::time_point deadline) EXCLUDES(mutex_);  // until there is a result

 private:
  struct Lane {
    std::deque<Sequence*> ready;  // with jobs, and no thread that works at them
    CondVar wake;
  };
  struct Strand {
    std::deque<OutputJob> jobs;
    bool working = false;
  };
  void work(Lane& lane) EXCLUDES(mutex_);
  OutputResult run(Sequence& sequence, OutputJob job) const;
  Lane& lane_of(const Sequence& sequence) REQUIRES(mutex_) { return sequence.heavy_output ? heavy_ : light_; }

  const OutputProcessor& output_;
  const std::function<void()> wake_;
  Mutex mutex_;
  Lane light_ GUARDED_BY(mutex_), heavy_ GUARDED_BY(mutex_);
  std::unordered_map<Sequence*, Strand> strands_ GUARDED_BY(mutex_);
  std::vector<OutputResult> results_ GUARDED_BY(mutex_);
  CondVar result_;
  bool ending_ GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace gemma4
