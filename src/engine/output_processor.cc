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
    count_thought(sequence, sequence, -1);
  }
  if (!sequence.sampling.penalizes()) return;
  for (const int32_t id : ids) count(sequence, id, 0);
}

// `counts` is sorted by id. A count of 0 means that the token occurs in the prompt only.
void OutputProcessor::count(DrawState& state, int32_t token, int times) {
  auto& counts = state.counts;
  const auto it = std::ranges::lower_bound(counts, token, {}, &std::pair<int32_t, int32_t>::first);
  if (it != counts.end() && it->first == token) {
    it->second += times;
  } else {
    counts.insert(it, {token, times});
  }
}

// At the budget a thought must end, and none may follow it at once. (One that comes later is closed at once, so that
// the answer goes on.)
void OutputProcessor::count_thought(const Sequence& sequence, DrawState& state, int32_t token) const {
  if (sequence.thinking_budget < 0 || only_end_of_thought_.empty()) return;
  using Next = DrawState::NextToken;
  const bool ends = state.thought_open && token >= 0 && token != channel_begin_ && tokenizer_.is_control(token);
  state.thought_open |= token == channel_begin_;
  state.thought_tokens += state.thought_open && token >= 0;
  state.thought_open &= !ends;
  const bool used_up = state.thought_tokens + state.thought_open >= sequence.thinking_budget;
  state.next_token = !used_up ? Next::kAny : state.thought_open ? Next::kEndOfThought : Next::kAny;
  if (used_up && ends) state.next_token = Next::kNoThought;
}

std::span<const uint32_t> OutputProcessor::allowed_by_budget(const DrawState& state) const {
  using Next = DrawState::NextToken;
  if (state.next_token == Next::kAny) return {};
  return state.next_token == Next::kEndOfThought ? only_end_of_thought_ : no_thought_;
}

void OutputProcessor::follow(const Sequence& sequence, DrawState& state, int32_t token) const {
  if (sequence.lazy_grammar) state.masked = token == call_begin_ || (state.masked && token != call_end_);
  count_thought(sequence, state, token);
  if (sequence.sampling.penalizes()) count(state, token, 1);
}

bool OutputProcessor::is_end(const Sequence& sequence, int32_t token) const {
  const auto among = [&](const std::vector<int32_t>& ids) { return std::ranges::find(ids, token) != ids.end(); };
  return (!sequence.ignore_eos && among(end_ids_)) || among(sequence.stop_ids);
}

void OutputProcessor::cut_drafts(Sequence& sequence) const {
  const bool call_needs_mask = sequence.lazy_grammar && !sequence.masked;
  const auto useless = [&](int32_t token) {
    return token < 0 || token >= tokenizer_.vocab_size() || is_end(sequence, token) ||
           (call_needs_mask && token == call_begin_);
  };
  sequence.drafts.erase(std::ranges::find_if(sequence.drafts, useless), sequence.drafts.end());
}

std::optional<Finish> OutputProcessor::append(Sequence& sequence, int32_t token, bool& is_end) const {
  sequence.last_token = Clock::now();
  if (sequence.usage.generated_tokens == 0) {
    sequence.first_token = sequence.last_token;
    sequence.usage.first_token_ms = milliseconds(sequence.first_token - sequence.submitted);
  } else {
    ++sequence.usage.decode_tokens;
  }
  is_end = this->is_end(sequence, token);
  if (is_end) return Finish::kStop;
  ++sequence.usage.generated_tokens;
  follow(sequence, sequence, token);
  sequence.ids.push_back(token);
  sequence.hashes.push_back(static_cast<TokenHash>(token));
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

std::optional<Finish> OutputProcessor::read_all(Sequence& sequence, const OutputJob& job) const {
  const size_t count = job.tokens.size(), vocab = count > 0 ? job.logits.size() / count : 0;
  size_t read = 0;
  sequence.lookahead.clear();
  std::optional<Finish> finish;
  while (read < count && !sequence.read_to_end) {
    const auto logits = std::span(job.logits).subspan(read * vocab, vocab);
    finish = this->read(sequence, job.tokens[read], logits, job.last || read + 1 < count);
    sequence.read_to_end = finish.has_value();
    ++read;
  }
  sequence.unread += static_cast<int>(count - read);
  sequence.accepted_drafts.add_accepted(std::min(job.accepted, static_cast<int>(read)));
  return finish;
}

// The grammar's budget is the answer's, and drafts that are rejected must not spend it: where a mask takes more work
// than a token adds to the budget, no more are made ahead.
void OutputProcessor::look_ahead(Sequence& sequence, std::span<const int32_t> drafts) const {
  sequence.lookahead.clear();
  if (!sequence.grammar || !sequence.looks_ahead || sequence.read_to_end) return;
  Grammar grammar = *sequence.grammar;
  try {
    for (const int32_t token : drafts) {
      const uint64_t before = grammar.budget().steps_used();
      if (!grammar.advance(token) || grammar.ended()) return;  // the sampler cannot draw it, or nothing follows it
      if (sequence.lazy_grammar && token == call_end_) {
        sequence.lookahead.push_back({token, std::nullopt});
        return;
      }
      grammar.mask();
      sequence.looks_ahead = grammar.budget().steps_used() - before <= kGrammarStepsPerToken;
      if (!sequence.looks_ahead) return;
      sequence.lookahead.push_back({token, grammar});
    }
  } catch (const BudgetError&) {
    sequence.looks_ahead = false;
  }
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
  usage.generated_tokens -= sequence.unread;
  usage.decode_tokens -= sequence.unread;
  usage.drafts.accepted = sequence.accepted_drafts.accepted;
  usage.drafts.accepted_by_position = sequence.accepted_drafts.accepted_by_position;
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
