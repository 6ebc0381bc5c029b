// Engine: a loaded model and the thread that runs its steps. Any thread may submit requests; their events arrive at
// their sinks on worker threads (engine/output_workers.h). One step: schedule rows -> run the model -> hand the sampled
// tokens to the workers.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/ranks.h"
#include "checkpoint/checkpoint.h"
#include "engine/request.h"
#include "model/config.h"
#include "text/chat/chat_template.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct EngineOptions {
  std::filesystem::path model;   // a checkpoint directory or .gguf file
  std::filesystem::path mmproj;  // a .gguf model's vision tower: a file or a directory; empty: the model's directory
  std::string chat_template;     // "spring", "july"; empty: the checkpoint's, and July's where it has none
  std::string backend = "cpu";   // "ref", "cpu", "cuda"
  int threads = 0;               // cpu: 0 means all cores
  bool precise = true;           // cpu: float32 products also where the processor has AMX
  int gpus = 1;                  // that the model is split over; ref and cpu: parts in this process
  std::string split = "tensor";  // how: "tensor" (parallelism; a part of each layer) or "layers" (whole ones, in turn)
  // The first so many layers on the GPU, the others on the CPU: a number, or "auto" for as many as fit. Empty: all on
  // `backend`.
  std::string gpu_layers;
  std::shared_ptr<ControlChannel> channel;  // if set, this process is one rank of several processes
  int max_seq_len = 0;       // tokens of prompt and answer together; 0: the longest that fits (model/cache_plan.h)
  int max_seqs = 1;          // sequences that run at a time; the others wait
  int max_queue = 256;       // sequences that wait at a time; beyond that submit() throws BusyError
  int chunk = 512;           // prompt tokens in one step; a step may exceed it to hold a whole image
  int page = 64;             // tokens in a page of the key-value cache
  int64_t cache_tokens = 0;  // capacity of the full-attention layers' cache; 0: as model/cache_plan.h says
  int64_t kv_memory = 0;     // bytes of all caches; 0: as model/cache_plan.h says
  int cache_windows = 0;     // windows kept in the sliding layers' cache besides running sequences'; 0: max_seqs
  bool prefix_cache = true;  // keep the pages of finished sequences for prompts with the same beginning
  int image_budget = 0;      // default soft tokens for each image; 0: the checkpoint's
  int image_budget_max = 0;  // largest a request may use (a step must hold a whole image); 0: 1120, -1: the default
  int images_max = 64;       // images of one request
  int64_t prepared_bytes = int64_t{1} << 30;  // of pictures of requests that wait; one more waits to be prepared
  bool share_cache = true;     // all salts share the caches, to a token: for one user. `gemma4 serve` has false
  bool several_salts = false;  // requests of several salts are expected: none of them may take every sequence
  bool warm_up = false;        // computes a few rows while it opens, so that the first request is as fast as the others
  double step_timeout = 30;    // seconds; a longer step is reported, and the engine counts as stalled. 0: never
  int thinking_budget = -1;    // of requests that name none (Request::thinking_budget); negative: no limit
  // Who proposes tokens that a step verifies (engine/drafts/draft_source.h): "ngram", or a drafter model's directory or
  // .gguf file. Empty: nobody.
  std::string drafter;
  int draft_tokens = -1;  // drafts of one sequence in a step: 1 to 16; 0: none; -1: as many as pay
  // For tests, in place of a drafter: up to `count` tokens to follow `ids`.
  std::function<std::vector<int32_t>(std::span<const int32_t> ids, int count)> propose;
  bool vision = true;  // false: do not load the vision tower; requests with images are refused
  uint64_t seed = 0;   // for requests without a seed; 0: random
};

// Which chat template prompts follow, and why.
struct ChatTemplateChoice {
  ChatTemplate which = ChatTemplate::kJuly;
  std::string source;   // where the checkpoint has its own; empty: it has none
  std::string warning;  // one sentence, where that is neither of the two and the options choose none
};
ChatTemplateChoice choose_template(const Checkpoint& checkpoint, const std::string& wanted);  // EngineOptions'

// Counters since the start, and gauges.
struct EngineStats {
  uint64_t requests = 0, finished = 0, cancelled = 0, failed = 0, preemptions = 0;
  int waiting = 0, running = 0;
  uint64_t prompt_tokens = 0;    // of started requests
  uint64_t cached_tokens = 0;    // of those: shared from the prefix cache or from another choice
  uint64_t prefix_hits = 0;      // started requests with any such token
  uint64_t computed_tokens = 0;  // rows of all forward passes
  uint64_t generated_tokens = 0;
  DraftStats drafts;
  uint64_t images = 0;          // of all choices
  uint64_t images_decoded = 0;  // their embeddings were not held any more, when they arrived
  uint64_t images_encoded = 0;  // and were computed
  uint64_t steps = 0;
  double forward_ms = 0, image_ms = 0;
  int pages_total[kAttentionKinds] = {}, pages_used[kAttentionKinds] = {};  // used: by running requests
  int pages_cached[kAttentionKinds] = {};                                   // in the prefix cache, evicted when needed
  int64_t memory_bytes = 0;                                                 // allocated on the backends
  int64_t weights_bytes = 0, cache_bytes = 0;  // of those; weights also where they lie in mapped files
  double load_ms = 0;
  uint64_t slow_steps = 0;     // took longer than step_timeout
  bool stalled = false;        // is in such a step now
  int64_t prepared_bytes = 0;  // of pictures of requests that wait
  bool dead = false;           // the device failed
};

class Engine {
 public:
  explicit Engine(const EngineOptions& options);         // throws Error
  Engine(const EngineOptions& options, Ranks backends);  // with backends made by the caller
  ~Engine();                                             // stop(0), then frees everything
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Renders, tokenizes and decodes images on the caller's thread, then queues the request. Throws Error where the
  // request itself is wrong (too long, a bad image, a bad value): then no event comes. Never blocks on the model.
  // Returns the id of choice 0; choice i has that id + i. The choices share one preparation and, where they run at the
  // same time or the prefix cache is on, one computation of the prompt. All their events arrive at `sink`.
  // Also throws CancelledError, where `preparation` was cancelled.
  uint64_t submit(const Request& request, const Sink& sink, const Preparation& preparation = {});

  // Ends a choice wherever it is; its kDone (kCancelled) comes soon, unless it is over already. From any thread, also
  // from a sink.
  void cancel(uint64_t id);

  // No new requests from now on; waits up to `seconds` for the others, then cancels what is left. Idempotent.
  void stop(double seconds);

  EngineStats stats() const;  // from any thread

  const EngineOptions& options() const;  // defaults resolved
  const Config& config() const;
  const GenerationConfig& generation_config() const;
  const Tokenizer& tokenizer() const;     // thread-safe
  const std::string& model_kind() const;  // Checkpoint::kind
  // What the weights are: values of all matrices, and the format that most of them have ("int4", "bf16").
  int64_t parameters() const;
  const std::string& weights_format() const;
  std::string device() const;     // Backend::device() of rank 0
  std::string placement() const;  // Model::placement()
  const ChatTemplateChoice& chat_template() const;

  // Tokens of the prompt that submit() would make, images included, also of one that is too long for the context. Of an
  // image only the header is read, so damaged pixels go unnoticed here; otherwise throws Error as submit() does.
  int count_tokens(const Request& request, const Preparation& preparation = {}) const;
  std::vector<int32_t> prompt_ids(const Request& request, const Preparation& preparation = {}) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma4
