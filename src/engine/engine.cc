#include "engine/engine.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "engine/engine_core.h"
#include "engine/input_processor.h"
#include "engine/open.h"
#include "engine/output_processor.h"

namespace gemma4 {
namespace {

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

struct Engine::Impl {
  explicit Impl(OpenedModel o);

  void loop();
  bool take_commands();
  void die(const std::string& message);
  void publish_stats();

  OpenedModel opened;
  const Answerer answerer;
  const Preparer preparer;
  Stepper stepper;  // the engine thread's own
  double load_ms = 0;

  // Shared, under `mutex`.
  mutable std::mutex mutex;
  std::condition_variable wake, idle;
  std::deque<std::unique_ptr<Sequence>> incoming;
  std::vector<uint64_t> cancels;
  EngineStats published;
  int unfinished = 0;  // requests whose last event has not gone out
  int waiting = 0;     // in the scheduler, of the last step
  bool stopping = false, ending = false;
  std::string dead;  // why
  uint64_t last_id = 0;
  std::thread thread;
};

Engine::Impl::Impl(OpenedModel o)
    : opened(std::move(o)),
      answerer(opened.tokenizer, opened.end_ids),
      preparer(opened, answerer),
      stepper(*opened.model, answerer, opened.options) {}

// The engine thread.

// Moves requests and cancellations in; waits while there is nothing to do. False: the end.
bool Engine::Impl::take_commands() {
  std::deque<std::unique_ptr<Sequence>> added;
  std::vector<uint64_t> cancelled;
  {
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return ending || !incoming.empty() || !cancels.empty() || stepper.busy(); });
    if (ending) return false;
    added.swap(incoming);
    cancelled.swap(cancels);
    waiting += static_cast<int>(added.size());
  }
  for (auto& sequence : added) stepper.add(std::move(sequence));
  for (const uint64_t id : cancelled) stepper.cancel(id);
  return true;
}

void Engine::Impl::publish_stats() {
  EngineStats now = stepper.stats();
  const std::lock_guard lock(mutex);
  now.requests = last_id;
  now.memory_bytes = opened.backends.memory_used();
  now.load_ms = load_ms;
  now.dead = !dead.empty();
  published = now;
  waiting = now.waiting;
  unfinished = static_cast<int>(last_id - now.finished - now.cancelled - now.failed);
  if (unfinished == 0) idle.notify_all();
}

void Engine::Impl::die(const std::string& message) {
  std::deque<std::unique_ptr<Sequence>> added;
  {
    const std::lock_guard lock(mutex);
    dead = message;
    added.swap(incoming);
  }
  for (auto& sequence : added) stepper.add(std::move(sequence));
  stepper.fail_all(message, true);
  publish_stats();
}

void Engine::Impl::loop() {
  try {
    while (take_commands()) {
      stepper.step();
      publish_stats();
    }
    stepper.cancel_all();
    publish_stats();
  } catch (const std::exception& error) {
    die(error.what());
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
}

Engine::~Engine() {
  stop(0);
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->ending = true;
    impl_->wake.notify_all();
  }
  impl_->thread.join();
}

uint64_t Engine::submit(Request request, Sink sink) {
  const auto refuse = [&] {
    if (!impl_->dead.empty()) throw DeviceError(impl_->dead);
    if (impl_->stopping) throw StoppingError("the engine is stopping and takes no new requests");
    if (static_cast<int>(impl_->incoming.size()) + impl_->waiting >= impl_->opened.options.max_queue) {
      throw BusyError(std::to_string(impl_->opened.options.max_queue) +
                      " requests are waiting already; try again later");
    }
  };
  {
    const std::lock_guard lock(impl_->mutex);
    refuse();
  }
  std::unique_ptr<Sequence> sequence = impl_->preparer.make(request, std::move(sink));
  const std::lock_guard lock(impl_->mutex);
  refuse();
  const uint64_t id = ++impl_->last_id;
  sequence->id = id;
  ++impl_->unfinished;
  impl_->incoming.push_back(std::move(sequence));
  impl_->wake.notify_all();
  return id;
}

void Engine::cancel(uint64_t id) {
  const std::lock_guard lock(impl_->mutex);
  impl_->cancels.push_back(id);
  impl_->wake.notify_all();
}

void Engine::stop(double seconds) {
  std::unique_lock lock(impl_->mutex);
  impl_->stopping = true;
  const auto done = [&] { return impl_->unfinished == 0 || !impl_->dead.empty(); };
  if (impl_->idle.wait_for(lock, std::chrono::duration<double>(seconds), done)) return;
  for (uint64_t id = 1; id <= impl_->last_id; ++id) impl_->cancels.push_back(id);
  impl_->wake.notify_all();
  impl_->idle.wait(lock, done);
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(impl_->mutex);
  EngineStats stats = impl_->published;
  stats.requests = impl_->last_id;
  stats.waiting = impl_->waiting + static_cast<int>(impl_->incoming.size());
  return stats;
}

const EngineOptions& Engine::options() const { return impl_->opened.options; }
const Config& Engine::config() const { return impl_->opened.config; }
const GenerationConfig& Engine::generation_config() const { return impl_->opened.generation; }
const Tokenizer& Engine::tokenizer() const { return impl_->opened.tokenizer; }
const std::string& Engine::model_kind() const { return impl_->opened.kind; }

int Engine::count_tokens(const Request& request) const { return static_cast<int>(prompt_ids(request).size()); }
std::vector<int32_t> Engine::prompt_ids(const Request& request) const { return impl_->preparer.prompt_ids(request); }

}  // namespace gemma4
