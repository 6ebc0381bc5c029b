// The Engine over several ranks: the same answers as over one, with pictures, chunks, shared prefixes and company; and
// one rank's failure, which must end every stream and leave nobody waiting.
#include <gtest/gtest.h>

#include "backend/ranks.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/quantize_checkpoint.h"
#include "engine/engine_testing.h"
#include "engine/watched_backend_testing.h"

namespace gemma4 {
namespace {

// Two conversations with pictures, the second turn of one, and prompts that begin alike; all at once and then again.
std::vector<Heard> answers(EngineOptions options, int gpus) {
  options.gpus = gpus;
  options.max_seqs = 3;
  options.chunk = 24;
  Engine engine(options);
  std::vector<Request> requests = {
      chat_request("What is at the left?", 12, {demo_image("002.png")}), chat_request("What is 16 + 3?", 12),
      chat_request("Describe this image.", 12, {demo_image("006.png")}), chat_request("What is 16 + 4?", 12)};
  Request sampled = chat_request("Tell me a story.", 20);
  sampled.sampling.temperature = 1, sampled.sampling.seed = 7, sampled.ignore_eos = true;
  requests.push_back(sampled);
  std::vector<Heard> heard;
  for (int round = 0; round < 2; ++round) {
    std::vector<std::unique_ptr<Ask>> asks;
    for (const Request& request : requests) asks.push_back(std::make_unique<Ask>(engine, request));
    for (auto& ask : asks) heard.push_back(ask->get());
    Request& first = requests[0];
    first.messages.push_back(Message::text("assistant", heard[0].text));
    first.messages.push_back(Message::text("user", "And at the right?"));
  }
  EXPECT_GT(heard[5].usage.cached_tokens, 60);  // the picture and what stands before it
  return heard;
}

void expect_same_answers(const EngineOptions& options, const std::vector<int>& worlds) {
  const std::vector<Heard> want = answers(options, 1);
  for (const int world : worlds) {
    const std::vector<Heard> got = answers(options, world);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].error, "");
      EXPECT_EQ(got[i].ids, want[i].ids) << "request " << i << " over " << world;
      EXPECT_EQ(got[i].text, want[i].text);
    }
  }
}

TEST(EngineOverRanks, TinyAnswersEqualTheReference) {
  for (const int gpus : {2, 4}) {
    for (const int chunk : {7, 64}) {
      EngineOptions options = tiny_options();
      options.gpus = gpus, options.chunk = chunk, options.max_seqs = 3;
      Engine engine(options);
      std::vector<std::unique_ptr<Ask>> asks;
      for (const TinyCase& c : tiny_cases()) asks.push_back(std::make_unique<Ask>(engine, c.request));
      size_t i = 0;
      for (const TinyCase& c : tiny_cases()) {
        EXPECT_EQ(asks[i++]->get().ids, c.greedy) << c.name << ", " << gpus << " ranks, chunk " << chunk;
      }
    }
  }
}

TEST(EngineOverRanks, DemoAnswersEqualOneRank) { expect_same_answers(demo_options(), {2, 4}); }

TEST(EngineOverRanks, Int4AnswersEqualOneRank) {
  const testing_files::Folder folder;
  const Checkpoint source = open_checkpoint(demo_options().model);
  quantize_checkpoint(source, load_recipe("default", {parse_config(source.config).layers, {}}), folder.path / "q", {});
  EngineOptions options = demo_options();
  options.model = folder.path / "q";
  expect_same_answers(options, {2});
}

TEST(EngineOverRanks, AFailingRankEndsEveryStreamAndTheEngine) {
  for (const int bad : {0, 1, 2, 3}) {
    std::vector<std::unique_ptr<Backend>> backends;
    for (int rank = 0; rank < 4; ++rank) {
      const auto watch = std::make_shared<Watch>();
      if (rank == bad) watch->fail_at_linear = 500;  // in the middle of some step
      backends.push_back(std::make_unique<WatchedBackend>(make_ref(), watch));
    }
    join_ranks(backends);
    EngineOptions options = tiny_options();
    options.max_seqs = 2;
    Engine engine(options, Ranks(std::move(backends)));
    std::vector<std::unique_ptr<Ask>> asks;
    for (int i = 0; i < 4; ++i) asks.push_back(std::make_unique<Ask>(engine, tiny_cases()[0].request));
    for (auto& ask : asks) {
      const Heard heard = ask->get();
      EXPECT_TRUE(heard.device) << "rank " << bad;
      EXPECT_EQ(heard.error, "the device lost its memory");
    }
    EXPECT_THROW(Ask(engine, tiny_cases()[0].request), DeviceError);
  }
}

TEST(EngineOverRanks, RefusesWhatDoesNotDivide) {
  EngineOptions options = tiny_options();
  options.gpus = 3;
  try {
    Engine engine(options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cannot split the model over 3 devices: its 4 query heads do not divide");
  }
}

}  // namespace
}  // namespace gemma4
