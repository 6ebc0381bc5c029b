#include "engine/engine.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <thread>

#include "base/mutex.h"
#include "engine/engine_core.h"
#include "engine/input_processor.h"
#include "engine/open.h"
#include "engine/output_processor.h"

namespace gemma4 {
namespace {

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

InputLimits input_limits(const EngineOptions& options, ChatTemplate chat_template) {
  return {options.image_budget,
          options.image_budget_max,
          options.images_max,
          options.max_seq_len,
          options.vision,
          options.seed,
          options.prepared_bytes,
          options.share_cache,
          chat_template,
          options.thinking_budget,
          options.drafter == kNgramDrafter};
}

}  // namespace

struct Engine::Impl {
  explicit Impl(OpenedModel o);
  ~Impl() { stop_watch(); }

  void loop();
  bool take_commands() EXCLUDES(mutex);
  void die(const std::string& message) EXCLUDES(mutex);
  void publish_stats() EXCLUDES(mutex);
  void watch() EXCLUDES(mutex);
  void stop_watch() EXCLUDES(mutex);
  double step_seconds() const REQUIRES(mutex);
  bool stalled() const REQUIRES(mutex);
  void results_came() EXCLUDES(mutex);
  void populate(const Sequence& sequence) const;
  void check_admission(int choices, uint64_t salt) const REQUIRES(mutex);
  int waiting_of(uint64_t salt) const REQUIRES(mutex);
  bool all_done() const REQUIRES(mutex) { return unfinished == 0 || !dead.empty(); }

  OpenedModel opened;
  ImageCache images;
  const OutputProcessor output;
  const InputProcessor input;
  double load_ms = 0;

  Mutex mutex;
  CondVar wake, idle;
  std::deque<std::unique_ptr<Sequence>> incoming GUARDED_BY(mutex);
  std::vector<uint64_t> cancels GUARDED_BY(mutex);
  EngineStats published GUARDED_BY(mutex);
  int unfinished GUARDED_BY(mutex) = 0;                       // requests whose last event has not gone out
  int waiting GUARDED_BY(mutex) = 0;                          // in the scheduler, of the last step
  std::map<uint64_t, int> waiting_by_salt GUARDED_BY(mutex);  // the same, by the salts of API keys
  bool stopping GUARDED_BY(mutex) = false;
  bool ending GUARDED_BY(mutex) = false;
  std::string dead GUARDED_BY(mutex);  // why
  uint64_t last_id GUARDED_BY(mutex) = 0;
  bool results GUARDED_BY(mutex) = false;
  // Since when the engine's thread works without having looked for new requests; min(): it waits for some.
  Clock::time_point working_since GUARDED_BY(mutex) = Clock::time_point::min();
  uint64_t slow_steps GUARDED_BY(mutex) = 0;
  bool watching GUARDED_BY(mutex) = true;
  CondVar watch_end;
  EngineCore core;  // the engine thread's own
  std::thread thread, watchdog;
};

Engine::Impl::Impl(OpenedModel o)
    : opened(std::move(o)),
      output(opened.tokenizer, opened.end_ids),
      input(opened.tokenizer, opened.model->config(), opened.generation,
            input_limits(opened.options, opened.chat_template.which), output, images),
      core(*opened.model, output, images, opened.options, [this] { results_came(); }) {}

// Before the engine has the sequence: takes the memory that its steps will touch. A step of text has one chunk of rows;
// one with a picture may have all rows of the picture.
void Engine::Impl::populate(const Sequence& sequence) const {
  int patches = 0;
  for (const PromptImage& image : sequence.images) {
    if (image.patches) patches = std::max(patches, image.patches->grid_w * image.patches->grid_h);
  }
  const int rows = sequence.images.empty() ? std::min(sequence.prompt, opened.options.chunk) : sequence.prompt;
  opened.model->populate(rows, patches);
}

// The engine thread.

// Moves requests, cancellations and results in; waits while there is nothing to do. False: the end.
bool Engine::Impl::take_commands() {
  std::deque<std::unique_ptr<Sequence>> added;
  std::vector<uint64_t> cancelled;
  {
    const MutexLock lock(mutex);
    working_since = Clock::time_point::min();
    const Clock::time_point until = core.next_step();
    const bool forever = until == Clock::time_point::max();
    while (!ending && incoming.empty() && cancels.empty() && !results && (forever || Clock::now() < until)) {
      if (forever) {
        wake.wait(mutex);
      } else {
        wake.wait_until(mutex, until);
      }
    }
    working_since = Clock::now();
    if (ending) return false;
    results = false;
    added.swap(incoming);
    cancelled.swap(cancels);
    waiting += static_cast<int>(added.size());
    for (const auto& sequence : added) ++waiting_by_salt[sequence->cache_salt];
  }
  for (auto& sequence : added) core.add(std::move(sequence));
  core.take_results();
  for (const uint64_t id : cancelled) core.cancel(id);
  return true;
}

void Engine::Impl::results_came() {
  const MutexLock lock(mutex);
  results = true;
  wake.notify_all();
}

// The stepping watchdog: it says when the engine's thread has not come back from a step for long.

double Engine::Impl::step_seconds() const {
  if (working_since == Clock::time_point::min()) return 0;
  return std::chrono::duration<double>(Clock::now() - working_since).count();
}

bool Engine::Impl::stalled() const {
  return opened.options.step_timeout > 0 && step_seconds() > opened.options.step_timeout;
}

void Engine::Impl::watch() {
  const auto look = std::chrono::ceil<Clock::duration>(
      std::chrono::duration<double>(std::clamp(opened.options.step_timeout / 4, 0.01, 1.0)));
  const MutexLock lock(mutex);
  Clock::time_point said = Clock::time_point::min();  // the step that was reported last
  while (watching) {
    watch_end.wait_until(mutex, Clock::now() + look);
    if (!stalled() || working_since == said) continue;
    said = working_since;
    ++slow_steps;
    std::fprintf(stderr, "gemma4: a step of the engine takes longer than %g s; others wait (/health says stalled)\n",
                 opened.options.step_timeout);
  }
}

void Engine::Impl::stop_watch() {
  {
    const MutexLock lock(mutex);
    watching = false;
    watch_end.notify_all();
  }
  if (watchdog.joinable()) watchdog.join();
}

void Engine::Impl::publish_stats() {
  EngineStats now = core.stats();
  const MutexLock lock(mutex);
  now.requests = last_id;
  now.memory_bytes = opened.backends.memory_used();
  now.weights_bytes = opened.model->weights_bytes();
  now.cache_bytes = opened.model->cache_bytes();
  now.load_ms = load_ms;
  now.images_decoded = input.images_decoded();
  now.dead = !dead.empty();
  published = now;
  waiting = now.waiting;
  waiting_by_salt = core.waiting_by_salt();
  unfinished = static_cast<int>(last_id - now.finished - now.cancelled - now.failed);
  if (unfinished == 0) idle.notify_all();
}

void Engine::Impl::die(const std::string& message) {
  std::deque<std::unique_ptr<Sequence>> added;
  {
    const MutexLock lock(mutex);
    dead = message;
    added.swap(incoming);
  }
  for (auto& sequence : added) core.add(std::move(sequence));
  core.fail_all(message, true);
  core.drain();
  publish_stats();
  const MutexLock lock(mutex);
  working_since = Clock::time_point::min();
}

void Engine::Impl::loop() {
  try {
    while (take_commands()) {
      if (core.next_step() <= Clock::now()) core.step();
      publish_stats();
    }
    core.cancel_all();
    core.drain();
    publish_stats();
  } catch (const std::exception& error) {
    die(error.what());
  }
}

// Sequences of one API key that wait, but for those that are still being prepared.
int Engine::Impl::waiting_of(uint64_t salt) const {
  const auto found = waiting_by_salt.find(salt);
  const auto mine = std::ranges::count_if(incoming, [&](const auto& one) { return one->cache_salt == salt; });
  return static_cast<int>(mine) + (found == waiting_by_salt.end() ? 0 : found->second);
}

// Throws if the engine takes no request of this many choices now from the client with this salt.
void Engine::Impl::check_admission(int choices, uint64_t salt) const {
  if (!dead.empty()) throw DeviceError(dead);
  if (stopping) throw StoppingError("the engine is stopping and takes no new requests");
  const int most = opened.options.max_queue;
  if (choices > most) {
    throw Error("n is " + std::to_string(choices) + ", but only " + std::to_string(most) +
                " answers may wait (--max-queue)");
  }
  // A request of many choices leaves an eighth of the queue to others.
  const int queued = static_cast<int>(incoming.size()) + waiting + input.waiting();
  if (queued + choices > (choices > 1 && queued > 0 ? most - most / 8 : most)) {
    throw BusyError("as many requests as the queue holds (" + std::to_string(most) + ") are waiting; try again later");
  }
  // One API key leaves a quarter of it to others.
  const int share = most - most / 4;
  if (salt != 0 && waiting_of(salt) > 0 && waiting_of(salt) + choices > share) {
    throw BusyError("as many requests as may wait for one API key (" + std::to_string(share) +
                    ") are waiting; try again later");
  }
}

// The public face.

Engine::Engine(const EngineOptions& options) : Engine(options, Ranks()) {}

Engine::Engine(const EngineOptions& options, Ranks backends) {
  const Clock::time_point start = Clock::now();
  impl_ = std::make_unique<Impl>(open_model(options, std::move(backends)));
  impl_->load_ms = milliseconds_since(start);
  impl_->publish_stats();
  impl_->thread = std::thread([impl = impl_.get()] { impl->loop(); });
  if (impl_->opened.options.step_timeout > 0) {
    impl_->watchdog = std::thread([impl = impl_.get()] { impl->watch(); });
  }
}

Engine::~Engine() {
  stop(0);
  {
    const MutexLock lock(impl_->mutex);
    impl_->ending = true;
    impl_->wake.notify_all();
  }
  impl_->thread.join();
}

uint64_t Engine::submit(const Request& request, const Sink& sink, const Preparation& preparation) {
  const int choices = std::max(1, request.n);
  const uint64_t salt = impl_->input.salt(request);
  {
    const MutexLock lock(impl_->mutex);
    impl_->check_admission(choices, salt);
  }
  std::vector<std::unique_ptr<Sequence>> sequences = impl_->input.make(request, sink, preparation);
  impl_->populate(*sequences.front());
  const MutexLock lock(impl_->mutex);
  impl_->check_admission(choices, salt);
  const uint64_t first = impl_->last_id + 1;
  for (auto& sequence : sequences) {
    sequence->id = ++impl_->last_id;
    if (sequences.size() > 1) sequence->group = first;
    ++impl_->unfinished;
    impl_->incoming.push_back(std::move(sequence));
  }
  impl_->wake.notify_all();
  return first;
}

void Engine::cancel(uint64_t id) {
  const MutexLock lock(impl_->mutex);
  impl_->cancels.push_back(id);
  impl_->wake.notify_all();
}

void Engine::stop(double seconds) {
  const MutexLock lock(impl_->mutex);
  impl_->stopping = true;
  const auto deadline = Clock::now() + std::chrono::ceil<Clock::duration>(std::chrono::duration<double>(seconds));
  while (!impl_->all_done() && impl_->idle.wait_until(impl_->mutex, deadline)) {
  }
  if (impl_->all_done()) return;
  for (uint64_t id = 1; id <= impl_->last_id; ++id) impl_->cancels.push_back(id);
  impl_->wake.notify_all();
  while (!impl_->all_done()) impl_->idle.wait(impl_->mutex);
}

EngineStats Engine::stats() const {
  const MutexLock lock(impl_->mutex);
  EngineStats stats = impl_->published;
  stats.requests = impl_->last_id;
  stats.images_decoded = impl_->input.images_decoded();
  stats.prepared_bytes = impl_->input.prepared_bytes();
  stats.slow_steps = impl_->slow_steps;
  stats.stalled = impl_->stalled();
  stats.waiting = impl_->waiting + static_cast<int>(impl_->incoming.size()) + impl_->input.waiting();
  return stats;
}

const EngineOptions& Engine::options() const { return impl_->opened.options; }
const Config& Engine::config() const { return impl_->opened.model->config(); }
const GenerationConfig& Engine::generation_config() const { return impl_->opened.generation; }
const Tokenizer& Engine::tokenizer() const { return impl_->opened.tokenizer; }
const std::string& Engine::model_kind() const { return impl_->opened.kind; }
int64_t Engine::parameters() const { return impl_->opened.parameters; }
std::string Engine::device() const { return impl_->opened.backends[0].device(); }
std::string Engine::placement() const { return impl_->opened.model->placement(); }
const std::string& Engine::weights_format() const { return impl_->opened.weights_format; }
const ChatTemplateChoice& Engine::chat_template() const { return impl_->opened.chat_template; }

int Engine::count_tokens(const Request& request, const Preparation& preparation) const {
  return static_cast<int>(prompt_ids(request, preparation).size());
}
std::vector<int32_t> Engine::prompt_ids(const Request& request, const Preparation& preparation) const {
  return impl_->input.prompt_ids(request, preparation);
}

}  // namespace gemma4
