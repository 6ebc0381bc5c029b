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
std::vector<Heard> answers(EngineOptions options, int gpus, Ranks backends = {}) {
  options.gpus = gpus;
  options.max_seqs = 3;
  options.chunk = 24;
  Engine engine(options, std::move(backends));
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

// Whole layers on each device: to the bit, and so are log probabilities.
TEST(EngineOverLayers, DemoAnswersEqualOneDevice) {
  const std::vector<Heard> want = answers(demo_options(), 1);
  const auto expect_same = [&](const std::vector<Heard>& got) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].error, "");
      EXPECT_EQ(got[i].ids, want[i].ids) << "request " << i;
      ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size());
      for (size_t t = 0; t < want[i].logprobs.size(); ++t) {
        EXPECT_EQ(got[i].logprobs[t].token.logprob, want[i].logprobs[t].token.logprob);
      }
    }
  };
  EngineOptions options = demo_options();
  options.split = "layers";
  for (const int gpus : {2, 3}) expect_same(answers(options, gpus));
  for (const char* layers : {"0", "1", "4", "99", "auto"}) {
    std::vector<std::unique_ptr<Backend>> devices;
    for (int i = 0; i < 2; ++i) devices.push_back(make_backend("cpu", 1));
    options.gpu_layers = layers;
    expect_same(answers(options, 1, Ranks::in_series(std::move(devices))));
  }
}

TEST(EngineOverLayers, AFailingDeviceEndsEveryStreamAndTheEngine) {
  for (const int bad : {0, 1}) {
    std::vector<std::unique_ptr<Backend>> devices;
    for (int device = 0; device < 2; ++device) {
      const auto watch = std::make_shared<Watch>();
      if (device == bad) watch->fail_at_linear = 200;
      devices.push_back(std::make_unique<WatchedBackend>(make_ref(), watch));
    }
    EngineOptions options = tiny_options();
    options.gpu_layers = "3";
    Engine engine(options, Ranks::in_series(std::move(devices)));
    const Heard heard = Ask(engine, tiny_cases()[0].request).get();
    EXPECT_TRUE(heard.device) << "device " << bad;
    EXPECT_EQ(heard.error, "the device lost its memory");
    EXPECT_THROW(Ask(engine, tiny_cases()[0].request), DeviceError);
  }
}

TEST(EngineOverLayers, RefusesWhatCannotBeSpread) {
  const auto refusal = [](const EngineOptions& options) -> std::string {
    try {
      Engine engine(options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EngineOptions options = tiny_options();
  options.gpu_layers = "4";
  EXPECT_EQ(refusal(options), "--gpu-layers puts layers on a GPU, so it needs --backend cuda, not ref");
  for (const char* text : {"x", "-1", "4 ", "4.5", "99999999999", "Auto"}) {
    options.gpu_layers = text;
    EXPECT_EQ(refusal(options),
              "--gpu-layers is a number of layers, or auto for as many as fit, not '" + std::string(text) + "'");
  }
  options.gpu_layers = "4", options.gpus = 2, options.backend = "cuda";
  EXPECT_EQ(refusal(options), "--gpu-layers is for one GPU and the CPU: leave it or --gpus away");
  options.split = "layers";
  EXPECT_EQ(refusal(options), "--gpu-layers is for one GPU and the CPU: leave it or --gpus away");
  options.gpu_layers = "0", options.gpus = 1;  // needs no GPU
  EXPECT_EQ(refusal(options), "");
  options.gpu_layers = "", options.split = "rows";
  EXPECT_EQ(refusal(options), "there is no split 'rows'; tensor and layers are known");
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
