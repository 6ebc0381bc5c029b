#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "engine/answer.h"
#include "engine/check_request.h"
#include "engine/prompt.h"
#include "engine/scheduler.h"
#include "engine/stepper.h"

namespace gemma4 {
namespace {

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

uint64_t random_seed() {
  static thread_local std::mt19937_64 generator{std::random_device{}()};
  // JSON numbers are exact up to 2^53: a reported seed must survive them.
  return generator() >> 11;
}

std::vector<int32_t> end_ids(const Config& config, const GenerationConfig& generation, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids(generation.eos_ids.begin(), generation.eos_ids.end());
  ids.insert(ids.end(), config.eos_ids.begin(), config.eos_ids.end());
  for (const char* name : {"<turn|>", "<|tool_response>"}) {
    if (const auto id = tokenizer.find(name)) ids.push_back(*id);
  }
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

Tokenizer make_tokenizer(const TokenizerData& data) {
  if (!data.json.empty()) return Tokenizer::from_json(data.json);
  return Tokenizer::from_arrays({data.tokens, data.scores,
                                 [&] {
                                   std::vector<int32_t> types(data.types.begin(), data.types.end());
                                   return types;
                                 }(),
                                 data.merges});
}

}  // namespace

struct Engine::Impl {
  // What open() finds, in the order in which it is made.
  struct Opened {
    EngineOptions options;
    std::string kind;
    Config config;
    GenerationConfig generation;
    Tokenizer tokenizer;
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Model> model;
  };
  static Opened open(EngineOptions options, std::unique_ptr<Backend> backend);

  explicit Impl(Opened opened);

  std::unique_ptr<Sequence> prepare(const Request& request, Sink sink) const;
  Grammar grammar(const Request& request) const;
  void loop();
  bool take_commands();
  void cancel_now(uint64_t id);
  void die(const std::string& message);
  void publish_stats();

  const EngineOptions options;
  const std::string kind;
  const Config config;
  const GenerationConfig generation;
  const Tokenizer tokenizer;
  const Answerer answerer;
  const PromptMaker prompts;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  double load_ms = 0;

  mutable std::once_flag vocabulary_once;
  mutable std::shared_ptr<const GrammarVocabulary> vocabulary;

  // The engine thread's own.
  std::unique_ptr<Stepper> stepper;

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

Engine::Impl::Opened Engine::Impl::open(EngineOptions options, std::unique_ptr<Backend> backend) {
  const Checkpoint checkpoint = open_checkpoint(options.model);
  Config config = parse_config(checkpoint.config);
  // A Hugging Face checkpoint of this model has its vision tower; a GGUF's may lie in another file.
  if (!config.has_vision && checkpoint.kind != "gguf") {
    throw Error(options.model.string() + ": config.json has no vision_config");
  }
  GenerationConfig generation = parse_generation_config(checkpoint.generation_config);
  Tokenizer tokenizer = make_tokenizer(checkpoint.tokenizer);
  options.vision = options.vision && config.has_vision;
  if (options.image_budget == 0 && config.has_vision) {
    options.image_budget = default_image_budget(config, checkpoint.processor_config);
  }
  const ModelOptions model_options = plan_memory(options, config);
  if (!backend) backend = make_backend(options.backend, options.threads);
  auto model = std::make_unique<Model>(checkpoint, *backend, model_options);
  return {options, checkpoint.kind, config, generation, std::move(tokenizer), std::move(backend), std::move(model)};
}

Engine::Impl::Impl(Opened opened)
    : options(opened.options),
      kind(opened.kind),
      config(opened.config),
      generation(opened.generation),
      tokenizer(opened.tokenizer),
      answerer(tokenizer, end_ids(config, generation, tokenizer)),
      prompts(
          tokenizer, config,
          {options.image_budget, options.image_budget_max, options.images_max, options.max_seq_len, options.vision}),
      backend(std::move(opened.backend)),
      model(std::move(opened.model)),
      stepper(std::make_unique<Stepper>(*model, answerer, options)) {}

Grammar Engine::Impl::grammar(const Request& request) const {
  std::call_once(vocabulary_once, [&] { vocabulary = std::make_shared<GrammarVocabulary>(tokenizer); });
  GrammarOptions grammar_options;
  grammar_options.end_ids = answerer.end_ids();
  grammar_options.allow_thinking = request.messages.empty() ? false : request.chat.enable_thinking;
  const FormatRequest& format = request.format;
  switch (format.kind) {
    case FormatRequest::kJson:
      return Grammar::json_object(vocabulary, grammar_options);
    case FormatRequest::kSchema:
      return Grammar::json_schema(vocabulary, format.schema, grammar_options);
    default:
      return Grammar::tool_calls(vocabulary, request.tools, format.tool_name, format.parallel_tools, grammar_options);
  }
}

std::unique_ptr<Sequence> Engine::Impl::prepare(const Request& request, Sink sink) const {
  const Clock::time_point start = Clock::now();
  check_request(request, config);
  PreparedPrompt prompt = prompts.make(request);
  auto sequence = std::make_unique<Sequence>(OutputParser(tokenizer, request.stop));
  sequence->priority = request.priority;
  sequence->prompt = static_cast<int>(prompt.ids.size());
  sequence->limit = options.max_seq_len;
  if (request.max_new_tokens > 0) {
    sequence->limit = std::min<int64_t>(sequence->limit, int64_t{sequence->prompt} + request.max_new_tokens);
  }
  sequence->ids = std::move(prompt.ids);
  sequence->keys = std::move(prompt.keys);
  sequence->images = std::move(prompt.images);
  // So that no step of a long answer has to move it.
  sequence->ids.reserve(sequence->limit);
  sequence->keys.reserve(sequence->limit);
  const SamplingRequest& wanted = request.sampling;
  Sampling& sampling = sequence->sampling;
  sampling.temperature = wanted.temperature.value_or(generation.do_sample ? generation.temperature : 0);
  sampling.top_k = wanted.top_k.value_or(generation.top_k);
  sampling.top_p = wanted.top_p.value_or(generation.top_p);
  sampling.min_p = wanted.min_p;
  sampling.seed = wanted.seed.value_or(options.seed > 0 ? options.seed : random_seed());
  sampling.repetition_penalty = wanted.repetition_penalty;
  sampling.presence_penalty = wanted.presence_penalty;
  sampling.frequency_penalty = wanted.frequency_penalty;
  sequence->bias = wanted.logit_bias;
  sequence->ignore_eos = request.ignore_eos;
  sequence->reuse_prefix = request.reuse_prefix;
  sequence->logprobs = request.logprobs;
  if (request.format.kind != FormatRequest::kFree) sequence->grammar = grammar(request);
  sequence->sink = std::move(sink);
  answerer.begin(*sequence, wanted);
  Usage& usage = sequence->usage;
  usage.prompt_tokens = sequence->prompt;
  for (const PromptImage& image : sequence->images) usage.image_tokens += image.end - image.begin;
  usage.seed = sampling.seed;
  usage.prepare_ms = milliseconds_since(start);
  sequence->submitted = start;
  return sequence;
}

// The engine thread.

// Moves requests and cancellations in; waits while there is nothing to do. False: the end.
bool Engine::Impl::take_commands() {
  std::deque<std::unique_ptr<Sequence>> added;
  std::vector<uint64_t> cancelled;
  {
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return ending || !incoming.empty() || !cancels.empty() || stepper->busy(); });
    if (ending) return false;
    added.swap(incoming);
    cancelled.swap(cancels);
    waiting += static_cast<int>(added.size());
  }
  for (auto& sequence : added) stepper->add(std::move(sequence));
  for (const uint64_t id : cancelled) stepper->cancel(id);
  return true;
}

void Engine::Impl::publish_stats() {
  EngineStats now = stepper->stats();
  const std::lock_guard lock(mutex);
  now.requests = last_id;
  now.memory_bytes = backend->memory_used();
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
  for (auto& sequence : added) stepper->add(std::move(sequence));
  stepper->fail_all(message, true);
  publish_stats();
}

void Engine::Impl::loop() {
  try {
    while (take_commands()) {
      stepper->step();
      publish_stats();
    }
    stepper->cancel_all();
    publish_stats();
  } catch (const std::exception& error) {
    die(error.what());
  }
}

// The public face.

Engine::Engine(const EngineOptions& options) : Engine(options, nullptr) {}

Engine::Engine(const EngineOptions& options, std::unique_ptr<Backend> backend) {
  const Clock::time_point start = Clock::now();
  impl_ = std::make_unique<Impl>(Impl::open(options, std::move(backend)));
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
    if (static_cast<int>(impl_->incoming.size()) + impl_->waiting >= impl_->options.max_queue) {
      throw BusyError(std::to_string(impl_->options.max_queue) + " requests are waiting already; try again later");
    }
  };
  {
    const std::lock_guard lock(impl_->mutex);
    refuse();
  }
  std::unique_ptr<Sequence> sequence = impl_->prepare(request, std::move(sink));
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

const EngineOptions& Engine::options() const { return impl_->options; }
const Config& Engine::config() const { return impl_->config; }
const GenerationConfig& Engine::generation_config() const { return impl_->generation; }
const Tokenizer& Engine::tokenizer() const { return impl_->tokenizer; }
const std::string& Engine::model_kind() const { return impl_->kind; }

int Engine::count_tokens(const Request& request) const { return static_cast<int>(prompt_ids(request).size()); }
std::vector<int32_t> Engine::prompt_ids(const Request& request) const { return impl_->prompts.make(request).ids; }

}  // namespace gemma4
