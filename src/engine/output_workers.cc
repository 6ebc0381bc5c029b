#include "engine/output_workers.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/priority.h"
#include "base/work_budget.h"

namespace gemma4 {

OutputWorkers::OutputWorkers(const OutputProcessor& output, int heavy_threads, std::function<void()> wake)
    : output_(output), wake_(std::move(wake)) {
  threads_.emplace_back([this]() NO_THREAD_SAFETY_ANALYSIS { work(light_); });
  for (int i = 0; i < heavy_threads; ++i) {
    threads_.emplace_back([this]() NO_THREAD_SAFETY_ANALYSIS {
      lower_priority();  // masks take what the engine's thread leaves
      work(heavy_);
    });
  }
}

OutputWorkers::~OutputWorkers() {
  {
    const MutexLock lock(mutex_);
    ending_ = true;
    light_.wake.notify_all();
    heavy_.wake.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void OutputWorkers::post(Sequence& sequence, OutputJob job) {
  const MutexLock lock(mutex_);
  Strand& strand = strands_[&sequence];
  strand.jobs.push_back(std::move(job));
  if (strand.working || strand.jobs.size() > 1) return;  // a thread has it, or it is among the ready
  Lane& lane = lane_of(sequence);
  lane.ready.push_back(&sequence);
  lane.wake.notify_one();
}

std::vector<OutputResult> OutputWorkers::take_results() {
  const MutexLock lock(mutex_);
  return std::exchange(results_, {});
}

void OutputWorkers::wait(Clock::time_point deadline) {
  const MutexLock lock(mutex_);
  while (results_.empty() && result_.wait_until(mutex_, deadline)) {
  }
}

// Each turn is one job, so that sequences of one lane take turns.
void OutputWorkers::work(Lane& lane) {
  MutexLock lock(mutex_);
  while (true) {
    while (lane.ready.empty() && !ending_) lane.wake.wait(mutex_);
    if (lane.ready.empty()) return;
    Sequence& sequence = *lane.ready.front();
    lane.ready.pop_front();
    Strand& strand = strands_[&sequence];
    OutputJob job = std::move(strand.jobs.front());
    strand.jobs.pop_front();
    strand.working = true;
    lock.unlock();
    OutputResult result = run(sequence, std::move(job));
    lock.lock();
    strand.working = false;
    if (strand.jobs.empty()) {
      strands_.erase(&sequence);
    } else {
      lane.ready.push_back(&sequence);  // this thread goes on with one of the ready
    }
    results_.push_back(std::move(result));
    if (results_.size() > 1) continue;
    result_.notify_all();
    lock.unlock();
    if (wake_) wake_();
    lock.lock();
  }
}

OutputResult OutputWorkers::run(Sequence& sequence, OutputJob job) const {
  OutputResult result;
  result.sequence = &sequence;
  result.ended = job.type == OutputJob::kFinish || job.type == OutputJob::kFail;
  try {
    if (job.type == OutputJob::kScores) output_.score(sequence, job.tokens, job.logits);
    if (job.type == OutputJob::kDrafts) output_.look_ahead(sequence, job.tokens);
    if (job.type == OutputJob::kTokens && job.scored_only) {
      output_.hold_logprobs(sequence, job.tokens[0], job.logits);
    } else if (job.type == OutputJob::kTokens) {
      const int unread = sequence.unread;
      result.finish = output_.read_all(sequence, job);
      result.unread = sequence.unread - unread;
      result.accepted = std::min(job.accepted, static_cast<int>(job.tokens.size()) - result.unread);
    }
    if (job.type == OutputJob::kFinish) output_.finish(sequence, job.finish), result.finish = job.finish;
    if (job.type == OutputJob::kFail) output_.fail(sequence, job), result.failed = true;
  } catch (const CancelledError&) {  // its kFinish comes
  } catch (const BudgetError& error) {
    result.error = error.what();
    result.budget = true;
  } catch (const std::bad_alloc&) {
    result.error = "there is no memory for this answer";
  } catch (const std::exception& error) {
    result.error = error.what();
  }
  result.logits = std::move(job.logits);
  return result;
}

}  // namespace gemma4
