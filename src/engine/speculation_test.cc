// Speculative decoding in the whole engine: every answer is, token by token, the one without drafts, whoever proposes
// them and however many.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <thread>

#include "base/slow_build_testing.h"
#include "engine/drafts/draft_source.h"
#include "engine/engine_testing.h"

namespace gemma4 {
namespace {

// Proposes what answers are known to say, but for some tokens: so rounds end everywhere.
class Oracle {
 public:
  void learn(std::vector<int32_t> prompt, const std::vector<int32_t>& answer) {
    prompt.insert(prompt.end(), answer.begin(), answer.end());
    known_.push_back(std::move(prompt));
  }
  // `wrong`: of so many tokens one is wrong; 0: none is.
  std::vector<int32_t> propose(std::span<const int32_t> ids, int count, size_t wrong) const {
    for (const auto& whole : known_) {
      if (whole.size() <= ids.size() || !std::equal(ids.begin(), ids.end(), whole.begin())) continue;
      std::vector<int32_t> drafts;
      for (size_t at = ids.size(); at < whole.size() && static_cast<int>(drafts.size()) < count; ++at) {
        const bool lie = wrong > 0 && (at * 2654435761u >> 7) % wrong == 0;
        drafts.push_back(lie ? (whole[at] + 1) % 1000 : whole[at]);
      }
      return drafts;
    }
    return {};
  }

 private:
  std::vector<std::vector<int32_t>> known_;
};

void expect_equal(const Heard& got, const Heard& want, const std::string& what) {
  EXPECT_EQ(got.error, want.error) << what;
  EXPECT_EQ(got.ids, want.ids) << what;
  EXPECT_EQ(got.text, want.text) << what;
  EXPECT_EQ(got.thinking, want.thinking) << what;
  EXPECT_EQ(got.finish, want.finish) << what;
  EXPECT_EQ(got.stop, want.stop) << what;
  EXPECT_EQ(got.ends, 1) << what;
  EXPECT_EQ(got.usage.generated_tokens, want.usage.generated_tokens) << what;
  EXPECT_EQ(got.usage.thinking_tokens, want.usage.thinking_tokens) << what;
  ASSERT_EQ(got.calls.size(), want.calls.size()) << what;
  for (size_t i = 0; i < got.calls.size(); ++i) {
    EXPECT_EQ(got.calls[i].name, want.calls[i].name) << what;
    EXPECT_EQ(got.calls[i].arguments, want.calls[i].arguments) << what;
  }
  ASSERT_EQ(got.logprobs.size(), want.logprobs.size()) << what;
  for (size_t i = 0; i < got.logprobs.size(); ++i) {
    EXPECT_NEAR(got.logprobs[i].token.logprob, want.logprobs[i].token.logprob, 1e-4) << what << ", token " << i;
    ASSERT_EQ(got.logprobs[i].top.size(), want.logprobs[i].top.size()) << what;
  }
  const DraftStats& drafts = got.usage.drafts;
  uint64_t accepted = 0;
  for (const uint64_t count : drafts.accepted_by_position) accepted += count;
  EXPECT_EQ(accepted, drafts.accepted) << what;
  EXPECT_LE(drafts.accepted, drafts.drafted) << what;
  EXPECT_TRUE(std::ranges::is_sorted(drafts.accepted_by_position, std::greater())) << what;
}

// Of one model: requests of many kinds, and their answers without drafts.
struct Questions {
  std::vector<std::pair<std::string, Request>> requests;
  std::vector<std::vector<Heard>> answers;  // [requests][choices]
  Oracle oracle;
  std::string drafter;  // the model's

  void add(const std::string& name, const Request& request) { requests.emplace_back(name, request); }

  void ask_without_drafts(EngineOptions options) {
    options.max_seqs = 1;
    Engine engine(options);
    for (const auto& [name, request] : requests) {
      answers.push_back(AskChoices(engine, request).get());
      EXPECT_FALSE(answers.back()[0].usage.drafts.wanted);
      for (const Heard& heard : answers.back()) oracle.learn(engine.prompt_ids(request), heard.ids);
    }
  }

  // Keeps every second kind.
  void leave_half() {
    for (size_t i = 0; i < requests.size(); ++i) requests.erase(requests.begin() + static_cast<ptrdiff_t>(i));
  }

  // All at the same time, as far as max_seqs allows.
  EngineStats expect_same(const EngineOptions& options, const std::string& what) const {
    Engine engine(options);
    std::vector<std::unique_ptr<AskChoices>> asks;
    for (const auto& [name, request] : requests) asks.push_back(std::make_unique<AskChoices>(engine, request));
    for (size_t i = 0; i < asks.size(); ++i) {
      const std::vector<Heard> got = asks[i]->get();
      for (size_t c = 0; c < got.size(); ++c) {
        expect_equal(got[c], answers[i][c], requests[i].first + ", choice " + std::to_string(c) + ", " + what);
        EXPECT_TRUE(got[c].usage.drafts.wanted);
      }
    }
    EngineStats stats = engine.stats();
    for (int i = 0; i < 100 && stats.running > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      stats = engine.stats();
    }
    for (const AttentionKind kind : {kSliding, kFull}) EXPECT_EQ(stats.pages_used[kind], 0) << what;
    return stats;
  }

  // Look-up, the model's drafter, and an oracle that is wrong now and then, with `tokens` drafts.
  void expect_same_with(EngineOptions options, int tokens) const {
    const std::string what = std::to_string(tokens) + " drafts";
    options.draft_tokens = tokens;
    options.drafter = kNgramDrafter;
    EngineStats stats = expect_same(options, "ngram, " + what);
    EXPECT_GT(stats.drafts.rounds, 0u);
    if (!drafter.empty()) {
      options.drafter = drafter;
      stats = expect_same(options, "drafter, " + what);
      EXPECT_GT(stats.drafts.rounds, 0u);
    }
    options.drafter.clear();
    options.propose = [this](std::span<const int32_t> ids, int count) { return oracle.propose(ids, count, 4); };
    stats = expect_same(options, "oracle, " + what);
    EXPECT_GT(stats.drafts.accepted, 0u);
    EXPECT_LT(stats.drafts.accepted, stats.drafts.drafted);
  }
};

void add_sampled(Questions& questions, const Request& base) {
  Request request = base;
  questions.add("greedy", request);
  request.logprobs = 3;
  request.max_new_tokens = 9;
  questions.add("nine tokens with logprobs", request);
  request = base;
  request.sampling.temperature = 1;
  request.sampling.top_k = 40;
  request.sampling.top_p = 0.9f;
  request.sampling.seed = 5;
  questions.add("sampled", request);
  request.n = 3;
  questions.add("three choices", request);
  request.n = 1;
  request.sampling.repetition_penalty = 1.3f;
  request.sampling.frequency_penalty = 0.4f;
  request.sampling.presence_penalty = 0.3f;
  questions.add("penalties", request);
  request.sampling.temperature = 0;
  questions.add("greedy with penalties", request);
  request = base;
  request.sampling.logit_bias = {{77, 12.0f}, {200, 11.0f}};
  questions.add("bias", request);
  request = base;
  request.ignore_eos = false;
  request.min_new_tokens = 11;
  request.sampling.temperature = 1;
  request.sampling.seed = 8;
  questions.add("at least eleven", request);
}

void add_stop_strings(Questions& questions, const EngineOptions& options, const Request& base) {
  Engine engine(options);
  const Heard whole = Ask(engine, base).get();
  for (const size_t part : {size_t{3}, whole.text.size() / 3, whole.text.size() / 2}) {
    Request request = base;
    request.stop = {whole.text.substr(part, 4)};
    questions.add("stop string at " + std::to_string(part), request);
    request.logprobs = -1;
    questions.add("stop string without logprobs at " + std::to_string(part), request);
  }
}

Questions tiny_questions(const EngineOptions& options, bool half = false) {
  Questions questions;
  for (const TinyCase& c : tiny_cases()) questions.add(c.name, c.request);  // some with pictures
  Request base = tiny_cases()[0].request;
  base.max_new_tokens = 12;
  add_sampled(questions, base);
  add_stop_strings(questions, options, base);
  if (half) questions.leave_half();
  questions.ask_without_drafts(options);
  return questions;
}

constexpr const char* kTimer = R"([{"type": "function", "function": {"name": "set_timer",
    "description": "Set a timer in minutes.", "parameters": {"type": "object", "properties": {"minutes":
    {"type": "integer", "minimum": 1, "maximum": 90}}, "required": ["minutes"]}}}])";

Questions demo_questions(const EngineOptions& options) {
  Questions questions;
  Request chat = chat_request("Who are you?", 40);
  chat.ignore_eos = true;
  add_sampled(questions, chat);
  add_stop_strings(questions, options, chat_request("Who are you?", 60));
  questions.add("a chat to its end", chat_request("Who are you?", 60));
  questions.add("a picture", chat_request("Describe this image.", 40, {demo_image("002.png")}));
  for (const float temperature : {0.0f, 1.0f}) {
    const std::string how = temperature > 0 ? ", sampled" : "";
    Request request = chat_request("Who are you?", 200);
    request.sampling.temperature = temperature;
    request.sampling.seed = 3;
    request.format.type = ResponseFormat::kSchema;
    request.format.schema = R"({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0,
        "maximum": 99}, "color": {"enum": ["red", "blue"]}, "colors": {"type": "array", "items":
        {"enum": ["red", "blue"]}, "minItems": 3, "maxItems": 3}}, "required": ["n", "color", "colors"],
        "additionalProperties": false})";
    questions.add("schema" + how, request);
    request.sampling.frequency_penalty = 0.2f;
    request.max_new_tokens = 13;
    questions.add("schema with penalties, cut" + how, request);
    request = chat_request("Set a timer for 5 minutes.", 60);
    request.sampling.temperature = temperature;
    request.sampling.seed = 4;
    request.tools = kTimer;
    questions.add("tools" + how, request);
    request.format.type = ResponseFormat::kToolCall;
    questions.add("a forced call" + how, request);
    request = chat_request("Who are you?", 40);
    request.sampling.temperature = temperature;
    request.sampling.seed = 6;
    request.chat.enable_thinking = true;
    request.thinking_budget = 7;
    questions.add("thoughts" + how, request);
  }
  if (kSlowBuild) questions.leave_half();
  questions.ask_without_drafts(options);
  return questions;
}

void expect_tiny_answers_the_same(const std::string& backend, const std::vector<int>& draft_tokens) {
  EngineOptions options = tiny_options();
  options.backend = backend;
  options.max_seqs = 4;
  options.prefix_cache = false;
  Questions questions = tiny_questions(options, kSlowBuild);
  questions.drafter = SOURCE_DIR "/tests/golden/drafter/tiny";
  for (const int tokens : draft_tokens) {
    questions.expect_same_with(options, tokens);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Speculation, TinyAnswersOnRefAreTheSame) { expect_tiny_answers_the_same("ref", {4}); }  // ref is slow

// On cpu a row is computed alike alone and in a batch (LinearTest and AttentionTest, AloneAsInABatch).
TEST(Speculation, TinyAnswersOnCpuAreTheSame) { expect_tiny_answers_the_same("cpu", {1, 16}); }

TEST(Speculation, DemoAnswersOnCpuAreTheSame) {
  EngineOptions options = demo_options();
  options.max_seqs = 4;
  Questions questions = demo_questions(options);
  questions.drafter = kDemo + "-assistant";
  for (const int tokens : {2, 7}) {
    questions.expect_same_with(options, tokens);
    if (HasFailure()) return;
  }
}

TEST(Speculation, TheNumberOfDraftsAdapts) {
  EngineOptions options = tiny_options();
  const Questions questions = tiny_questions(options);
  options.propose = [&](std::span<const int32_t> ids, int count) { return questions.oracle.propose(ids, count, 0); };
  const EngineStats good = questions.expect_same(options, "a good oracle");
  options.propose = [&](std::span<const int32_t> ids, int count) { return questions.oracle.propose(ids, count, 1); };
  const EngineStats bad = questions.expect_same(options, "an oracle that is always wrong");
  EXPECT_GT(good.drafts.accepted, 8 * (good.drafts.drafted - good.drafts.accepted));
  EXPECT_EQ(bad.drafts.accepted, 0u);
  EXPECT_LT(good.steps, bad.steps / 2);
  EXPECT_LT(bad.drafts.drafted, bad.steps * kDraftsMax / 2) << "each answer begins with a few";
}

TEST(Speculation, LittleMemoryChangesNoAnswer) {
  EngineOptions options = tiny_options();
  Questions questions;
  for (uint64_t seed = 1; seed <= 5; ++seed) {  // which all begin, and then need more than there is
    Request request = tiny_cases()[0].request;
    request.max_new_tokens = 90;
    request.sampling.temperature = 1;
    request.sampling.seed = seed;
    questions.add("seed " + std::to_string(seed), request);
  }
  questions.ask_without_drafts(options);
  options.max_seqs = 5;
  options.chunk = 16;
  options.cache_tokens = 400;
  options.draft_tokens = 5;
  options.propose = [&](std::span<const int32_t> ids, int count) { return questions.oracle.propose(ids, count, 3); };
  const EngineStats stats = questions.expect_same(options, "preemption");
  EXPECT_GT(stats.preemptions, 0u);
  EXPECT_GT(stats.drafts.accepted, 0u);
}

TEST(Speculation, TheAnswerEndsWhereTheContextDoes) {
  for (const int length : {35, 36, 37, 38, 39, 40}) {
    EngineOptions options = tiny_options();
    options.max_seq_len = length;
    Questions questions;
    Request request = tiny_cases()[0].request;
    request.max_new_tokens = 0;
    questions.add("all of the context", request);
    questions.ask_without_drafts(options);
    ASSERT_EQ(questions.answers[0][0].finish, Finish::kLength);
    for (const int tokens : {3, 16}) questions.expect_same_with(options, tokens);
  }
}

// A second turn finds as much of the first in the cache as without drafts, although rejected drafts were written there.
TEST(Speculation, ASecondTurnFindsTheFirst) {
  TinyCase first = tiny_cases()[0];
  const auto two_turns = [&](EngineOptions options) {
    Engine engine(options);
    std::vector<Heard> heard = {Ask(engine, first.request).get()};
    Request next;
    next = raw_request("", 12);
    next.raw.reset();
    next.ignore_eos = true;
    next.ids = engine.prompt_ids(first.request);
    next.ids.insert(next.ids.end(), heard[0].ids.begin(), heard[0].ids.end());
    next.ids.insert(next.ids.end(), {300, 301, 302});
    for (int i = 0; i < 50 && engine.stats().running > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    heard.push_back(Ask(engine, next).get());
    return heard;
  };
  for (const int length : {9, 10, 11, 12, 13, 14, 15, 16}) {
    EngineOptions options = tiny_options();
    first.request.max_new_tokens = length;
    const std::vector<Heard> want = two_turns(options);
    Oracle oracle;
    oracle.learn(Engine(options).prompt_ids(first.request), first.greedy);
    options.draft_tokens = 4;
    options.propose = [&](std::span<const int32_t> ids, int count) { return oracle.propose(ids, count, 3); };
    const std::vector<Heard> got = two_turns(options);
    for (size_t i = 0; i < 2; ++i) {
      expect_equal(got[i], want[i], "turn " + std::to_string(i) + " of " + std::to_string(length));
      EXPECT_EQ(got[i].usage.cached_tokens, want[i].usage.cached_tokens);
    }
    EXPECT_GT(got[0].usage.drafts.drafted, got[0].usage.drafts.accepted);
  }
}

TEST(Speculation, CancelledAnswersAreABeginningOfWhatTheyWouldBe) {
  EngineOptions options = tiny_options();
  options.max_seqs = 3;
  const Questions questions = tiny_questions(options);
  options.draft_tokens = 4;
  options.propose = [&](std::span<const int32_t> ids, int count) { return questions.oracle.propose(ids, count, 3); };
  Engine engine(options);
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    const size_t which = random() % 5;  // of the requests with one choice
    Ask ask(engine, questions.requests[which].second);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    engine.cancel(ask.id);
    const Heard got = ask.get();
    const std::vector<int32_t>& want = questions.answers[which][0].ids;
    ASSERT_LE(got.ids.size(), want.size());
    EXPECT_TRUE(std::equal(got.ids.begin(), got.ids.end(), want.begin()));
  }
  expect_equal(Ask(engine, questions.requests[0].second).get(), questions.answers[0][0], "after the cancelled ones");
}

// A round's figures are those of its answer: a perfect oracle's drafts are all accepted.
TEST(Speculation, FiguresOfAnAnswer) {
  EngineOptions options = tiny_options();
  const TinyCase c = tiny_cases()[0];
  Oracle oracle;
  Request request = c.request;
  request.max_new_tokens = 11;
  {
    Engine engine(options);
    oracle.learn(engine.prompt_ids(request), Ask(engine, request).get().ids);
  }
  options.draft_tokens = 4;
  options.propose = [&](std::span<const int32_t> ids, int count) { return oracle.propose(ids, count, 0); };
  Engine engine(options);
  // One token from the prompt, then rounds of 4 + 1 and 4 + 1.
  const Heard heard = Ask(engine, request).get();
  EXPECT_EQ(heard.usage.generated_tokens, 11);
  EXPECT_EQ(heard.usage.drafts.rounds, 2u);
  EXPECT_EQ(heard.usage.drafts.drafted, 8u);
  EXPECT_EQ(heard.usage.drafts.accepted, 8u);
  EXPECT_EQ(heard.usage.drafts.accepted_by_position, (std::vector<uint64_t>{2, 2, 2, 2}));
}

// Tokens whose probabilities are asked for belong to a prompt: nothing is drafted for it.
TEST(Speculation, ScoredPromptsHaveNoDrafts) {
  EngineOptions options = tiny_options();
  options.drafter = kNgramDrafter;
  options.draft_tokens = 4;
  Engine engine(options);
  Request request = raw_request("<bos>a a a a a a a a a a", 8);
  request.ignore_eos = true;
  EXPECT_GT(Ask(engine, request).get().usage.drafts.rounds, 0u);
  request.prompt_logprobs = 0;
  EXPECT_EQ(Ask(engine, request).get().usage.drafts.rounds, 0u);
}

TEST(Speculation, RefusesWhatCannotBe) {
  const auto expect_refused = [](const EngineOptions& options, const std::string& part) {
    try {
      Engine engine(options);
      ADD_FAILURE() << "was accepted: " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  EngineOptions options = tiny_options();
  options.draft_tokens = 4;
  expect_refused(options, "there is no drafter beside");
  options.draft_tokens = 17;
  options.drafter = kNgramDrafter;
  expect_refused(options, "from 0 to 16");
  options = tiny_options();
  options.drafter = "no/such/drafter";
  expect_refused(options, "no/such/drafter");
  options.draft_tokens = 0;  // off
  Engine engine(options);
  EXPECT_FALSE(Ask(engine, tiny_cases()[0].request).get().usage.drafts.wanted);
}

}  // namespace
}  // namespace gemma4
