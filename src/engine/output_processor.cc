#include "engine/output_processor.h"

#include <algorithm>
#include <limits>

#include "engine/logprobs.h"

namespace gemma4 {
namespace {

void send(const Sequence& sequence, Event& event) {
  event.choice = sequence.choice;
  sequence.sink(event);
}

// Throws the BudgetError that is being handled, where the grammar cannot be given up.
void give_up_grammar(Sequence& sequence) {
  if (!sequence.lazy_grammar || sequence.keep_grammar) throw;
  sequence.grammar.reset();
  sequence.parser.stop_streaming_calls();
  warn(sequence.warnings, "the tools need more work than one request may take; calls are no longer enforced");
}

double milliseconds(Clock::duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

}  // namespace

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::kStop:
      return "stop";
    case Finish::kLength:
      return "length";
    case Finish::kToolCalls:
      return "tool_calls";
    case Finish::kCancelled:
      return "cancelled";
  }
  return "?";
}

OutputProcessor::OutputProcessor(const Tokenizer& tokenizer, std::vector<int32_t> end_ids)
    : tokenizer_(tokenizer),
      end_ids_(std::move(end_ids)),
      channel_begin_(tokenizer.find("<|channel>").value_or(-1)),
      channel_end_(tokenizer.find("<channel|>").value_or(-1)),
      call_begin_(tokenizer.find("<|tool_call>").value_or(-1)),
      call_end_(tokenizer.find("<tool_call|>").value_or(-1)) {
  if (channel_begin_ < 0 || channel_end_ < 0) return;
  const auto words = static_cast<size_t>(tokenizer.vocab_size() + 31) / 32;
  only_end_of_thought_.assign(words, 0);
  no_thought_.assign(words, ~uint32_t{0});
  only_end_of_thought_[static_cast<size_t>(channel_end_) / 32] |= uint32_t{1} << (channel_end_ % 32);
  no_thought_[static_cast<size_t>(channel_begin_) / 32] &= ~(uint32_t{1} << (channel_begin_ % 32));
}

bool OutputProcessor::in_thought(std::span<const int32_t> ids) const {
  const auto open = std::ranges::find(ids.rbegin(), ids.rend(), channel_begin_);
  return open < std::ranges::find(ids.rbegin(), ids.rend(), channel_end_);
}

void OutputProcessor::begin(Sequence& sequence) const {
  const auto& ids = sequence.ids;
  if (in_thought(ids)) {  // the answer continues it
    const auto open = std::ranges::find(ids.rbegin(), ids.rend(), channel_begin_);
    for (auto it = open.base() - 1; it != ids.end(); ++it) sequence.parser.push(*it);
    sequence.thinking = sequence.thought_open = true;
    count_thought(sequence, -1);
  }
  if (!sequence.sampling.penalizes()) return;
  for (const int32_t id : ids) count(sequence, id, 0);
}

// `counts` is sorted by id. A count of 0 means that the token occurs in the prompt only.
void OutputProcessor::count(Sequence& sequence, int32_t token, int times) const {
  auto& counts = sequence.counts;
  const auto it = std::ranges::lower_bound(counts, token, {}, &std::pair<int32_t, int32_t>::first);
  if (it != counts.end() && it->first == token) {
    it->second += times;
  } else {
    counts.insert(it, {token, times});
  }
}

// At the budget a thought must end, and none may follow it at once. (One that comes later is closed at once, so that
// the answer goes on.)
void OutputProcessor::count_thought(Sequence& sequence, int32_t token) const {
  if (sequence.thinking_budget < 0 || only_end_of_thought_.empty()) return;
  using Next = Sequence::NextToken;
  const bool ends = sequence.thought_open && token >= 0 && token != channel_begin_ && tokenizer_.is_control(token);
  sequence.thought_open |= token == channel_begin_;
  sequence.thought_tokens += sequence.thought_open && token >= 0;
  sequence.thought_open &= !ends;
  const bool used_up = sequence.thought_tokens + sequence.thought_open >= sequence.thinking_budget;
  sequence.next_token = !used_up ? Next::kAny : sequence.thought_open ? Next::kEndOfThought : Next::kAny;
  if (used_up && ends) sequence.next_token = Next::kNoThought;
}

std::span<const uint32_t> OutputProcessor::allowed_by_budget(const Sequence& sequence) const {
  using Next = Sequence::NextToken;
  if (sequence.next_token == Next::kAny) return {};
  return sequence.next_token == Next::kEndOfThought ? only_end_of_thought_ : no_thought_;
}

std::optional<Finish> OutputProcessor::append(Sequence& sequence, int32_t token, bool& is_end) const {
  sequence.last_token = Clock::now();
  if (sequence.usage.generated_tokens == 0) {
    sequence.first_token = sequence.last_token;
    sequence.usage.first_token_ms = milliseconds(sequence.first_token - sequence.submitted);
  } else {
    ++sequence.usage.decode_steps;
  }
  const auto among = [&](const std::vector<int32_t>& ids) { return std::ranges::find(ids, token) != ids.end(); };
  is_end = (!sequence.ignore_eos && among(end_ids_)) || among(sequence.stop_ids);
  if (is_end) return Finish::kStop;
  ++sequence.usage.generated_tokens;
  if (sequence.lazy_grammar) sequence.masked = token == call_begin_ || (sequence.masked && token != call_end_);
  count_thought(sequence, token);
  sequence.ids.push_back(token);
  sequence.hashes.push_back(static_cast<TokenHash>(token));
  if (sequence.sampling.penalizes()) count(sequence, token, 1);
  if (static_cast<int>(sequence.ids.size()) >= sequence.limit) return Finish::kLength;
  return std::nullopt;
}

void OutputProcessor::score(Sequence& sequence, std::span<const int32_t> tokens, std::span<const float> logits) const {
  Event event;
  event.type = Event::kPromptLogprobs;
  const size_t first = sequence.scores_sent ? 0 : 1;  // the prompt's first token has no row
  const size_t vocab = tokens.size() > first ? logits.size() / (tokens.size() - first) : 0;
  if (first == 1) {
    const float none = std::numeric_limits<float>::quiet_NaN();
    event.logprobs.push_back({{tokens[0], std::string(tokenizer_.piece(tokens[0])), none}, {}});
  }
  for (size_t i = first; i < tokens.size(); ++i) {
    if (sequence.unwanted && *sequence.unwanted->cancelled) throw CancelledError("the request was cancelled");
    const auto row = logits.subspan((i - first) * vocab, vocab);
    event.logprobs.push_back(token_logprobs(tokenizer_, row, tokens[i], sequence.prompt_logprobs));
  }
  sequence.scores_sent = true;
  send(sequence, event);
}

void OutputProcessor::hold_logprobs(Sequence& sequence, int32_t token, std::span<const float> logits) const {
  if (logits.empty()) return;
  sequence.logprobs_held.push_back(token_logprobs(tokenizer_, logits, token, sequence.logprobs));
}

std::optional<Finish> OutputProcessor::read(Sequence& sequence, int32_t token, std::span<const float> logits,
                                            bool last) const {
  hold_logprobs(sequence, token, logits);
  if (token == channel_begin_) sequence.thinking = true;
  sequence.thinking_tokens += sequence.thinking;
  if (token == channel_end_) sequence.thinking = false;
  advance_grammar(sequence, token);
  emit(sequence, sequence.parser.push(token));
  if (sequence.parser.stopped()) return Finish::kStop;
  if (sequence.grammar && sequence.grammar->ended()) return Finish::kStop;
  if (!last) prepare_mask(sequence);
  return std::nullopt;
}

// Past its budget a grammar of calls is given up: what the model writes is read as well as it can be.

void OutputProcessor::advance_grammar(Sequence& sequence, int32_t token) const {
  if (!sequence.grammar) return;
  try {
    if (!sequence.lazy_grammar || sequence.in_call) {
      sequence.grammar->advance(token);
    } else if (token == call_begin_) {
      sequence.grammar->restart();
    }
    if (sequence.lazy_grammar) sequence.in_call = token == call_begin_ || (sequence.in_call && token != call_end_);
  } catch (const BudgetError&) {
    give_up_grammar(sequence);
  }
}

void OutputProcessor::prepare_mask(Sequence& sequence) const {
  if (!sequence.grammar || (sequence.lazy_grammar && !sequence.in_call)) return;
  try {
    sequence.grammar->mask();
  } catch (const BudgetError&) {
    give_up_grammar(sequence);
  }
}

void OutputProcessor::emit(Sequence& sequence, std::vector<OutputEvent> outputs) const {
  for (OutputEvent& output : outputs) {
    Event event;
    switch (output.type) {
      case OutputEvent::kContent:
      case OutputEvent::kThinking:
        if (output.text.empty()) continue;
        event.type = output.type == OutputEvent::kContent ? Event::kText : Event::kThinking;
        event.text = std::move(output.text);
        break;
      case OutputEvent::kToolCall:
        event.type = Event::kToolCall;
        event.tool_call.name = std::move(output.text);
        event.tool_call.arguments = std::move(output.arguments);
        event.tool_index = sequence.tool_calls++;
        event.cut = output.cut;
        break;
      case OutputEvent::kCallBegin:
        event.type = Event::kToolCallBegin;
        event.tool_call.name = std::move(output.text);
        event.tool_index = sequence.tool_calls;
        break;
      case OutputEvent::kCallArguments:
        event.type = Event::kToolCallArguments;
        event.text = std::move(output.arguments);
        event.tool_index = sequence.tool_calls;
        break;
    }
    event.logprobs = std::exchange(sequence.logprobs_held, {});
    send(sequence, event);
  }
}

void OutputProcessor::finish(Sequence& sequence, Finish how) const {
  if (sequence.over) return;
  try {
    const bool cut = how == Finish::kLength || how == Finish::kCancelled;
    if (!sequence.parser.stopped()) emit(sequence, sequence.parser.finish(cut));
  } catch (const Error& error) {
    OutputJob why;
    why.message = error.what();
    return fail(sequence, why);
  }
  sequence.over = true;
  // The text that the parser had held back may complete a stop string or a tool call.
  const bool ended = sequence.grammar && sequence.grammar->ended();
  if (how != Finish::kCancelled && (sequence.parser.stopped() || ended)) how = Finish::kStop;
  if (how == Finish::kStop && sequence.tool_calls > 0 && !sequence.parser.stopped()) how = Finish::kToolCalls;
  Usage& usage = sequence.usage;
  usage.thinking_tokens = sequence.thinking_tokens;
  if (sequence.started) usage.queue_ms = milliseconds(sequence.scheduled - sequence.submitted);
  if (usage.generated_tokens > 0 || sequence.first_token != Clock::time_point()) {
    usage.prefill_ms = milliseconds(sequence.first_token - sequence.scheduled) - usage.image_ms;
    usage.decode_ms = milliseconds(sequence.last_token - sequence.first_token);
  }
  Event event;
  event.type = Event::kDone;
  event.finish = how;
  event.usage = usage;
  event.logprobs = std::exchange(sequence.logprobs_held, {});
  if (sequence.parser.stopped()) event.stop = sequence.parser.stop();
  send(sequence, event);
}

void OutputProcessor::fail(Sequence& sequence, const OutputJob& why) const {
  if (std::exchange(sequence.over, true)) return;
  Event event;
  event.type = Event::kError;
  event.text = why.message;
  event.device = why.device;
  event.budget = why.budget;
  send(sequence, event);
}

}  // namespace gemma4
