// Log probabilities of a prompt's tokens, from the engine.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/engine_testing.h"

namespace gemma4 {
namespace {

Request scored_request(int length, int begin, int tokens) {
  Request request;
  for (int i = 0; i < length; ++i) request.ids.push_back(10 + (begin * 3 + i) % 40 * 7 % 60);  // no image's token
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  request.max_new_tokens = tokens;
  request.logprobs = 0;
  request.prompt_logprobs = 2;
  return request;
}

void expect_scores(const Heard& heard, const Heard& alone, const Request& request) {
  const size_t count = request.ids.size();
  ASSERT_GE(heard.logprobs.size(), count);
  EXPECT_TRUE(std::isnan(heard.logprobs[0].token.logprob));
  for (size_t i = 0; i < count; ++i) {
    EXPECT_EQ(heard.ids[i], request.ids[i]);
    if (i == 0) continue;
    EXPECT_NEAR(heard.logprobs[i].token.logprob, alone.logprobs[i].token.logprob, 1e-4) << i;
    ASSERT_EQ(heard.logprobs[i].top.size(), 2u);
    EXPECT_GE(heard.logprobs[i].top[0].logprob, heard.logprobs[i].top[1].logprob);
  }
}

// Each length ends otherwise in the blocks of rows that are scored at a time; 1 has none.
TEST(PromptScores, AreThereForEveryLength) {
  Engine engine(tiny_options());
  const Heard longest = Ask(engine, scored_request(70, 0, 1)).get();
  for (const int length : {1, 2, 15, 16, 17, 18, 32, 33, 34, 70}) {
    Request request = scored_request(length, 0, 3);
    const Heard heard = Ask(engine, request).get();
    EXPECT_EQ(heard.logprobs.size(), static_cast<size_t>(length + 3));
    expect_scores(heard, longest, request);  // of the same first tokens
    request.score_only = true;
    const Heard only = Ask(engine, request).get();
    EXPECT_EQ(only.logprobs.size(), static_cast<size_t>(length));
    EXPECT_EQ(only.usage.generated_tokens, 0);
    EXPECT_EQ(only.finish, Finish::kLength);
    expect_scores(only, longest, request);
  }
}

TEST(PromptScores, ArePositionsOfOneDistribution) {
  Engine engine(tiny_options());
  Request request = scored_request(20, 0, 1);
  request.logprobs = kLogprobsMax;
  const Heard drawn = Ask(engine, request).get();
  request.ids.push_back(drawn.ids[20]);
  const Heard scored = Ask(engine, request).get();
  EXPECT_NEAR(scored.logprobs[20].token.logprob, drawn.logprobs[20].token.logprob, 1e-4);
}

TEST(PromptScores, SurvivePreemption) {
  EngineOptions options = tiny_options();
  options.max_seqs = 5;
  options.chunk = 16;
  options.cache_tokens = 400;  // one sequence of full length; the five need more
  options.prefix_cache = true;
  Engine engine(options);
  std::vector<Request> requests;
  std::vector<Heard> alone;
  for (int i = 0; i < 5; ++i) {
    requests.push_back(scored_request(80 + i, i, 100));
    alone.push_back(Ask(engine, requests.back()).get());
  }
  std::vector<std::unique_ptr<Ask>> asks;
  for (const Request& request : requests) asks.push_back(std::make_unique<Ask>(engine, request));
  for (size_t i = 0; i < asks.size(); ++i) {
    const Heard heard = asks[i]->get();
    EXPECT_EQ(heard.logprobs.size(), requests[i].ids.size() + 100);
    expect_scores(heard, alone[i], requests[i]);
  }
  EXPECT_GT(engine.stats().preemptions, 0u);
}

TEST(PromptScores, AreOfTheFirstChoiceAlone) {
  EngineOptions options = tiny_options();
  options.max_seqs = 3;
  Engine engine(options);
  Request request = scored_request(40, 0, 5);
  request.n = 3;
  std::vector<size_t> counts(3);
  EventQueue queue(size_t{64} << 20);
  engine.submit(request, [&](const Event& event) { queue.push(event, event.choice); });
  for (int ended = 0; ended < 3;) {
    const auto event = queue.pop(std::chrono::seconds(120));
    ASSERT_TRUE(event);
    if (event->type == Event::kPromptLogprobs) counts[event->choice] += event->logprobs.size();
    ended += event->type == Event::kDone;
  }
  EXPECT_EQ(counts, (std::vector<size_t>{40, 0, 0}));
}

TEST(PromptScores, AreRefusedForImages) {
  Engine engine(tiny_options());
  Request request = chat_request("x", 1, {});
  request.images.push_back("x");
  request.prompt_logprobs = 0;
  EXPECT_THROW(engine.submit(request, [](const Event&) {}), Error);
}

}  // namespace
}  // namespace gemma4
