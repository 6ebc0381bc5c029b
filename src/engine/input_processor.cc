#include "engine/input_processor.h"

#include <algorithm>
#include <span>
#include <string>

#include "base/check.h"
#include "base/mutex.h"
#include "base/utf8.h"
#include "engine/check_request.h"

namespace gemma4 {
namespace {

// Tokens of a sequence that the workers may hold: one where the next depends on it, two where they hold its logits.
int jobs_max(const Sequence& sequence, const Request& request) {
  if ((sequence.grammar && !sequence.lazy_grammar) || !request.stop.empty() || sequence.prompt_logprobs >= 0) return 1;
  return sequence.logprobs >= 0 ? 2 : 16;
}

bool offers_tools(const Request& request) { return !request.messages.empty() && !request.tools.empty(); }
bool is_conversation(const Request& request) { return request.ids.empty() && !request.raw; }

constexpr float kNeverDrawn = -1e30f;  // added to a logit; unlike -infinity, it still orders tokens that a mask leaves

// The choices of a request end on different workers.
Sink one_at_a_time(const Sink& sink) {
  return [sink, mutex = std::make_shared<Mutex>()](const Event& event) {
    const MutexLock lock(*mutex);
    sink(event);
  };
}

}  // namespace

InputProcessor::InputProcessor(const Tokenizer& tokenizer, const Config& config, const GenerationConfig& generation,
                               const InputLimits& limits, const OutputProcessor& output, ImageCache& images)
    : tokenizer_(tokenizer),
      config_(config),
      generation_(generation),
      limits_(limits),
      output_(output),
      images_(config, images),
      prepared_(limits.prepared_bytes) {}

// The prompt's tokens.

std::vector<Piece> InputProcessor::pieces(const Request& request) const {
  if (request.raw) {
    if (!utf8_valid(*request.raw)) throw Error("the prompt is not valid UTF-8");
    return parse_raw(*request.raw, tokenizer_);
  }
  if (request.messages.empty()) throw Error("there is no message to answer");
  return render_chat(request.messages, request.tools, chat_options(request));
}

ChatOptions InputProcessor::chat_options(const Request& request) const {
  ChatOptions options = request.chat;
  options.chat_template = limits_.chat_template;
  return options;
}

int InputProcessor::budget(const Request& request) const {
  return request.image_budget > 0 ? request.image_budget : limits_.image_budget;
}

void InputProcessor::check_ids(const std::vector<int32_t>& ids) const {
  for (const int32_t id : ids) {
    if (id >= 0 && id < config_.vocab) continue;
    throw Error("token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                std::to_string(config_.vocab));
  }
}

Prompt InputProcessor::tokenize_pieces(const Request& request, const Preparation& preparation) const {
  const int count = static_cast<int>(request.images.size());
  if (count > 0 && !limits_.vision) {
    throw Error("this model was loaded without its vision tower (for a .gguf model, --mmproj says where it is)");
  }
  if (count > limits_.images_max) {
    throw Error(std::to_string(count) + " images are more than the " + std::to_string(limits_.images_max) +
                " that one request may hold");
  }
  if (count > 0 && budget(request) > limits_.image_budget_max) {
    throw Error("an image budget of " + std::to_string(budget(request)) + " soft tokens is more than the " +
                std::to_string(limits_.image_budget_max) + " this engine was started for");
  }
  const std::vector<Piece> all = pieces(request);
  if (count_images(all) != count) {
    throw Error("the prompt has places for " + std::to_string(count_images(all)) + " images, but " +
                std::to_string(count) + " were given");
  }
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(images_.count_tokens(request.images[i], i, budget(request)));
  preparation.check_and_make_way();
  return encode_pieces(tokenizer_, all, tokens, [&] { preparation.check(); });
}

Prompt InputProcessor::tokenize(const Request& request, const Preparation& preparation) const {
  Prompt prompt;
  if (request.ids.empty()) {
    prompt = tokenize_pieces(request, preparation);
  } else {
    if (!request.images.empty() || std::ranges::count(request.ids, config_.image_id) > 0) {
      throw Error("a prompt given as token ids cannot hold images");
    }
    prompt.ids = request.ids;
  }
  if (prompt.ids.empty()) throw Error("the prompt is empty");
  check_ids(prompt.ids);  // also of a text: a tokenizer may know more tokens than the model
  return prompt;
}

// Throws ContextError, which knows what the tools take.
void InputProcessor::check_length(const Request& request, const Prompt& prompt, const Preparation& preparation) const {
  const int count = static_cast<int>(prompt.ids.size());
  if (count < limits_.max_seq_len) return;
  int tools = 0;
  if (request.ids.empty() && !request.raw && !request.tools.empty()) {
    Request plain;
    plain.messages = request.messages;
    plain.chat = request.chat;
    plain.images = request.images;
    plain.image_budget = request.image_budget;
    tools = count - static_cast<int>(tokenize(plain, preparation).ids.size());
  }
  throw ContextError(count, tools, limits_.max_seq_len);
}

uint64_t InputProcessor::salt(const Request& request) const {
  if (limits_.share_cache || request.cache_salt.empty()) return 0;
  Hasher hasher(images_.key());
  hasher.add(std::as_bytes(std::span(request.cache_salt)));
  return hasher.finish();
}

// In order of position. The memory for all is reserved before the first is decoded.
std::vector<PromptImage> InputProcessor::prepare_images(const Request& request, const Prompt& prompt,
                                                        const Preparation& preparation) const {
  int64_t bytes = 0;
  for (const ImageSpan& span : prompt.images) bytes += images_.prepared_bytes(span.end - span.begin);
  const PreparedBytes::Held held = prepared_.take(bytes, preparation);
  std::vector<PromptImage> images;
  for (const ImageSpan& span : prompt.images) {
    const std::string& file = request.images[span.image];
    preparation.check_and_make_way();
    images.push_back(images_.prepare(file, span.image, budget(request), salt(request), preparation));
    images.back().held = held;
    images.back().begin = span.begin;
    images.back().end = span.end;
  }
  std::ranges::sort(images, {}, &PromptImage::begin);
  return images;
}

std::vector<TokenHash> InputProcessor::hash_tokens(const std::vector<int32_t>& ids,
                                                   const std::vector<PromptImage>& images) const {
  std::vector<TokenHash> hashes(ids.begin(), ids.end());
  for (const PromptImage& image : images) {
    for (int i = image.begin; i < image.end; ++i) {
      Hasher hasher(images_.key());
      hasher.add(image.hash);
      hasher.add(static_cast<uint64_t>(i - image.begin));
      hashes[i] = hasher.finish() | uint64_t{1} << 63;
    }
  }
  return hashes;
}

// The sequences.

// None where the answer is free, and no tool is offered.
std::optional<Grammar> InputProcessor::grammar(const Request& request, const Prompt& prompt,
                                               const CancelFlag& cancelled) const {
  if (request.format.type == ResponseFormat::kFree && !offers_tools(request)) return std::nullopt;
  std::call_once(vocabulary_once_, [&] { vocabulary_ = std::make_shared<GrammarVocabulary>(tokenizer_); });
  GrammarOptions options;
  options.end_ids = output_.end_ids();
  options.allow_thinking = !request.messages.empty() && request.chat.enable_thinking &&
                           begun_answer(request.messages, chat_options(request)).text.empty();
  options.in_thought = output_.in_thought(prompt.ids);
  if (offers_tools(request)) options.tools = request.tools;
  options.parallel_tools = request.format.parallel_tools;
  options.strict = request.format.strict;
  while (true) {
    options.budget = std::make_shared<WorkBudget>("the format of the answer", grammar_limits(), cancelled);
    try {
      return compile(request, options);
    } catch (const BudgetError&) {
      if (options.loose_tools || request.tools.empty()) throw;
      options.loose_tools = true;
      warn(request.warnings, "the tools are too large to enforce their parameters; arguments may be any object");
    }
  }
}

Grammar InputProcessor::compile(const Request& request, const GrammarOptions& options) const {
  const ResponseFormat& format = request.format;
  switch (format.type) {
    case ResponseFormat::kFree:
      return Grammar::rest_of_call(vocabulary_, request.tools, options);
    case ResponseFormat::kJson:
      return Grammar::json_object(vocabulary_, options);
    case ResponseFormat::kSchema:
      return Grammar::json_schema(vocabulary_, format.schema, options);
    case ResponseFormat::kRegex:
      return Grammar::regex(vocabulary_, format.text, options);
    case ResponseFormat::kChoice:
      return Grammar::choice(vocabulary_, format.choices, options);
    case ResponseFormat::kGrammar:
      return Grammar::text_grammar(vocabulary_, format.text, options);
    default:
      return Grammar::tool_calls(vocabulary_, request.tools, format.tool_name, format.parallel_tools, options);
  }
}

// Takes the beginning of the answer that the prompt ends with.
void InputProcessor::read_beginning(const Request& request, Grammar& grammar) const {
  if (!is_conversation(request) || request.format.type == ResponseFormat::kToolCall) return;
  const std::string begun = begun_answer(request.messages, chat_options(request)).text;
  if (begun.empty()) return;
  for (const int32_t id : tokenizer_.encode(begun, false)) {
    if (!grammar.advance(id)) {
      throw Error("the conversation ends with the beginning of an answer that does not fit the requested format");
    }
  }
}

// What the masks of a schema do not keep is checked once the answer is there, or it is said that it is not.
void InputProcessor::say_notes(const Grammar& grammar, const Request& request) const {
  for (const SchemaNote& note : grammar.notes()) {
    if (note.checked && request.unenforced) *request.unenforced = true;
    if (!note.checked) {
      warn(request.warnings,
           "the keyword " + note.keyword + " of the schema, at " + note.path + ", is neither enforced nor checked" +
               (note.why.empty() ? "" : ": " + note.why));
    }
  }
}

// Without pictures, grammar and sink.
std::unique_ptr<Sequence> InputProcessor::make_choice(const Request& request, const Prompt& prompt, int choice,
                                                      OutputParser parser) const {
  auto sequence = std::make_unique<Sequence>(std::move(parser));
  sequence->choice = choice;
  sequence->priority = request.priority;
  sequence->prompt = static_cast<int>(prompt.ids.size());
  sequence->limit = limits_.max_seq_len;
  if (request.max_new_tokens > 0) {
    sequence->limit =
        static_cast<int>(std::min<int64_t>(limits_.max_seq_len, int64_t{sequence->prompt} + request.max_new_tokens));
  }
  sequence->thinking_budget = request.thinking_budget >= 0 ? request.thinking_budget : limits_.thinking_budget;
  if (request.thinking_share < 1) {
    const auto share = static_cast<int>(request.thinking_share * (sequence->limit - sequence->prompt));
    sequence->thinking_budget = sequence->thinking_budget < 0 ? share : std::min(sequence->thinking_budget, share);
  }
  sequence->ids = prompt.ids;
  sequence->cache_salt = salt(request);
  sequence->sampling = resolve_sampling(request.sampling, generation_, limits_.seed);
  if (request.sampling.seed) sequence->sampling.seed += choice;
  sequence->bias = request.sampling.logit_bias;
  sequence->ignore_eos = request.ignore_eos;
  sequence->stop_ids = request.stop_ids;
  sequence->min_tokens = request.min_new_tokens;
  if (request.min_new_tokens > 0) {
    sequence->bias_early = sequence->bias;
    for (const int32_t id : output_.end_ids()) sequence->bias_early.emplace_back(id, kNeverDrawn);
    for (const int32_t id : request.stop_ids) sequence->bias_early.emplace_back(id, kNeverDrawn);
  }
  sequence->reuse_prefix = request.reuse_prefix;
  sequence->logprobs = request.logprobs;
  sequence->score_only = request.score_only;
  if (choice == 0) sequence->prompt_logprobs = request.prompt_logprobs;
  if (sequence->prompt_logprobs >= 0) sequence->reuse_prefix = false;  // its rows are needed
  output_.begin(*sequence);
  if (is_conversation(request)) {
    sequence->parser.leave_out(begun_answer(request.messages, chat_options(request)).space);
  }
  return sequence;
}

std::vector<std::unique_ptr<Sequence>> InputProcessor::make(const Request& request, const Sink& sink,
                                                            const Preparation& preparation) const {
  const Clock::time_point start = Clock::now();
  check_request(request, config_);
  const auto unwanted = std::make_shared<Unwanted>(request.n, std::make_shared<std::atomic<bool>>(false));
  if (preparation.cancellation) preparation.cancellation->add(unwanted->cancelled);
  const Prompt prompt = tokenize(request, preparation);
  check_length(request, prompt, preparation);
  // Before the pictures: nothing is held yet.
  std::optional<Grammar> grammar = this->grammar(request, prompt, unwanted->cancelled);
  const bool lazy = request.format.type == ResponseFormat::kFree;
  if (grammar && !lazy) read_beginning(request, *grammar);
  if (grammar && !lazy) grammar->mask();  // the copies have it, too
  if (grammar) {
    for (const std::string& name : grammar->unenforced_tools()) {
      if (request.unenforced) *request.unenforced = true;
      warn(request.warnings,
           "the parameters of the tool '" + name + "' cannot be enforced; its arguments may be any object");
    }
  }
  if (grammar) say_notes(*grammar, request);
  OutputOptions output{.stops = request.stop, .stream_calls = grammar.has_value()};
  const auto offered = std::make_shared<const OfferedTools>(request.tools);
  if (!request.messages.empty()) output.tools = offered;
  const OutputParser parser(tokenizer_, std::move(output));
  const std::vector<PromptImage> images = prepare_images(request, prompt, preparation);
  const std::vector<TokenHash> hashes = hash_tokens(prompt.ids, images);
  const Sink ordered = request.n > 1 ? one_at_a_time(sink) : sink;
  std::vector<std::unique_ptr<Sequence>> choices;
  for (int choice = 0; choice < request.n; ++choice) {
    preparation.check();
    auto sequence = make_choice(request, prompt, choice, parser);
    sequence->hashes = hashes;
    sequence->images = images;
    sequence->grammar = grammar;
    sequence->lazy_grammar = grammar && lazy;
    sequence->keep_grammar = offered->any_strict();
    sequence->masked = grammar && !lazy;
    sequence->heavy_output = grammar || request.logprobs >= 0 || request.prompt_logprobs >= 0;
    sequence->sink = ordered;
    sequence->unwanted = unwanted;
    sequence->warnings = request.warnings;
    sequence->jobs_max = jobs_max(*sequence, request);
    if (limits_.look_up && !sequence->score_only && sequence->prompt_logprobs < 0) {
      sequence->ngrams.emplace(sequence->limit).extend(sequence->ids);
    }
    sequence->submitted = start;
    Usage& usage = sequence->usage;
    usage.prompt_tokens = sequence->prompt;
    for (const PromptImage& image : sequence->images) usage.image_tokens += image.end - image.begin;
    usage.seed = sequence->sampling.seed;
    choices.push_back(std::move(sequence));
  }
  for (const auto& sequence : choices) {
    sequence->usage.prepare_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }
  return choices;
}

}  // namespace gemma4
