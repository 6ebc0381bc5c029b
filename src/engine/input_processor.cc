#include "engine/input_processor.h"

#include <algorithm>

#include "engine/check_request.h"

namespace gemma4 {
namespace {

}  // namespace

Preparer::Preparer(const OpenedModel& opened, const Answerer& answerer)
    : tokenizer_(opened.tokenizer),
      config_(opened.config),
      generation_(opened.generation),
      max_seq_len_(opened.options.max_seq_len),
      seed_(opened.options.seed),
      answerer_(answerer),
      prompts_(opened.tokenizer, opened.config,
               {opened.options.image_budget, opened.options.image_budget_max, opened.options.images_max,
                opened.options.max_seq_len, opened.options.vision}) {}

Grammar Preparer::grammar(const Request& request) const {
  std::call_once(vocabulary_once_, [&] { vocabulary_ = std::make_shared<GrammarVocabulary>(tokenizer_); });
  GrammarOptions grammar_options;
  grammar_options.end_ids = answerer_.end_ids();
  grammar_options.allow_thinking = request.messages.empty() ? false : request.chat.enable_thinking;
  const FormatRequest& format = request.format;
  switch (format.kind) {
    case FormatRequest::kJson:
      return Grammar::json_object(vocabulary_, grammar_options);
    case FormatRequest::kSchema:
      return Grammar::json_schema(vocabulary_, format.schema, grammar_options);
    default:
      return Grammar::tool_calls(vocabulary_, request.tools, format.tool_name, format.parallel_tools, grammar_options);
  }
}

std::unique_ptr<Sequence> Preparer::make(const Request& request, Sink sink) const {
  const Clock::time_point start = Clock::now();
  check_request(request, config_);
  PreparedPrompt prompt = prompts_.make(request);
  auto sequence = std::make_unique<Sequence>(OutputParser(tokenizer_, request.stop));
  sequence->priority = request.priority;
  sequence->prompt = static_cast<int>(prompt.ids.size());
  sequence->limit = max_seq_len_;
  if (request.max_new_tokens > 0) {
    sequence->limit =
        static_cast<int>(std::min<int64_t>(max_seq_len_, int64_t{sequence->prompt} + request.max_new_tokens));
  }
  sequence->ids = std::move(prompt.ids);
  sequence->keys = std::move(prompt.keys);
  sequence->images = std::move(prompt.images);
  sequence->sampling = resolve_sampling(request.sampling, generation_, seed_);
  sequence->bias = request.sampling.logit_bias;
  sequence->ignore_eos = request.ignore_eos;
  sequence->reuse_prefix = request.reuse_prefix;
  sequence->logprobs = request.logprobs;
  if (request.format.kind != FormatRequest::kFree) sequence->grammar = grammar(request);
  sequence->sink = std::move(sink);
  answerer_.begin(*sequence);
  Usage& usage = sequence->usage;
  usage.prompt_tokens = sequence->prompt;
  for (const PromptImage& image : sequence->images) usage.image_tokens += image.end - image.begin;
  usage.seed = sequence->sampling.seed;
  usage.prepare_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  sequence->submitted = start;
  return sequence;
}

}  // namespace gemma4
