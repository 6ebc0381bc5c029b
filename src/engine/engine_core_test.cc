// No bleed: whatever runs beside it, whatever is preempted, cancelled, shared or forked, a request's answer is the one
// it has alone. A seeded driver takes the engine's inside through thousands of mixed steps without a thread, so a
// failure can be run again. Also: what a failing device does, and that steps allocate nothing.
#include "engine/engine_core.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <random>

#include "engine/engine_testing.h"
#include "engine/input_processor.h"
#include "engine/open.h"
#include "engine/watched_backend_testing.h"

namespace gemma4 {
namespace {

struct Inside {
  explicit Inside(const EngineOptions& options)
      : opened(open_model(options, Ranks())),
        output(opened.tokenizer, opened.end_ids),
        input(opened.tokenizer, opened.model->config(), opened.generation, limits(opened.options), output, images),
        core(*opened.model, output, images, opened.options) {}

  static InputLimits limits(const EngineOptions& options) {
    InputLimits limits{options.image_budget, options.image_budget_max, options.images_max,
                       options.max_seq_len,  options.vision,           options.seed};
    limits.look_up = options.drafter == kNgramDrafter;
    return limits;
  }

  // `ended`: set when `heard` has all, which comes on a thread of the output's.
  uint64_t add(const Request& request, Heard& heard, std::atomic<bool>* ended = nullptr) {
    const auto hear = [&heard, ended](const Event& event) {
      heard.hear(event);
      if (ended != nullptr && (event.type == Event::kDone || event.type == Event::kError)) *ended = true;
    };
    auto sequence = std::move(input.make(request, hear)[0]);
    sequence->id = ++last_id;
    core.add(std::move(sequence));
    return last_id;
  }

  void step() {
    if (core.next_step() > Clock::now()) core.wait(std::min(core.next_step(), Clock::now() + std::chrono::seconds(1)));
    core.step();
  }

  Heard alone(const Request& request) {
    Heard heard;
    add(request, heard);
    while (core.busy()) step();
    return heard;
  }

  OpenedModel opened;
  ImageCache images;
  OutputProcessor output;
  InputProcessor input;
  EngineCore core;
  uint64_t last_id = 0;
};

// Requests that share beginnings, some with images, some sampled.
std::vector<Request> mixed_requests(const std::vector<std::string>& images, std::mt19937& random, int count) {
  const char* words[] = {" the", " red", " square", " circle", " left", " at", " of", " 7"};
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    std::string prompt = "<bos><|turn>user\n";
    Request request;
    for (int image = random() % 3 == 0 ? 1 + random() % 2 : 0; image > 0; --image) {
      prompt += "<|image|>";
      request.images.push_back(read_file(images[random() % images.size()]));
    }
    for (int word = 1 + random() % 40; word > 0; --word) prompt += words[random() % (word > 20 ? 1 : 8)];
    request.raw = prompt + "<turn|>\n<|turn>model\n";
    request.max_new_tokens = 1 + random() % 12;
    request.ignore_eos = random() % 2;
    request.sampling.temperature = random() % 2 ? 1.0f : 0.0f;
    request.sampling.seed = random() % 100;
    request.sampling.frequency_penalty = random() % 3 == 0 ? 0.5f : 0;
    request.logprobs = 0;
    requests.push_back(std::move(request));
  }
  return requests;
}

// Runs `requests` in random order, some twice, some cancelled, and compares each answer with the one it has alone.
// Returns how many steps it took, each another mixture.
uint64_t drive(const EngineOptions& options, const std::vector<Request>& requests, const std::vector<Heard>& expected,
               uint32_t seed, int starts) {
  std::mt19937 random(seed);
  Inside inside(options);
  struct Running {
    size_t which;
    Heard heard;
    bool cancelled = false;
  };
  std::map<uint64_t, std::unique_ptr<Running>> runs;
  while (starts > 0 || inside.core.busy()) {
    if (starts > 0 && random() % 3 == 0) {
      auto run = std::make_unique<Running>();
      run->which = random() % requests.size();
      const uint64_t id = inside.add(requests[run->which], run->heard);
      runs[id] = std::move(run);
      --starts;
    }
    if (random() % 25 == 0 && !runs.empty()) {
      const uint64_t id = 1 + random() % inside.last_id;
      runs[id]->cancelled = true;
      inside.core.cancel(id);
    }
    inside.step();
    inside.core.check();
  }
  for (const auto& [id, run] : runs) {
    const Heard& want = expected[run->which];
    EXPECT_EQ(run->heard.ends, 1);
    if (run->heard.finish == Finish::kCancelled) {
      EXPECT_TRUE(run->cancelled);
      const auto n = std::min(run->heard.ids.size(), want.ids.size());
      EXPECT_EQ(run->heard.ids, std::vector<int32_t>(want.ids.begin(), want.ids.begin() + static_cast<int>(n)));
      continue;
    }
    EXPECT_EQ(run->heard.ids, want.ids) << "request " << run->which << " as number " << id << ", seed " << seed;
    EXPECT_EQ(run->heard.text, want.text);
  }
  const EngineStats stats = inside.core.stats();
  for (const AttentionKind kind : {kSliding, kFull}) EXPECT_EQ(stats.pages_used[kind], 0) << "pages leaked";
  return stats.steps;
}

std::vector<Heard> answers_alone(EngineOptions options, const std::vector<Request>& requests) {
  options.prefix_cache = false;
  options.max_seqs = 1;
  Inside inside(options);
  std::vector<Heard> answers;
  for (const Request& request : requests) answers.push_back(inside.alone(request));
  return answers;
}

class NoBleedOnRef : public testing::TestWithParam<bool> {};  // with drafts

TEST_P(NoBleedOnRef, Tiny) {
  EngineOptions options = tiny_options();
  options.max_seq_len = 250;
  std::mt19937 random(11);
  const std::string root = SOURCE_DIR "/tests/golden/tiny/images/";
  const auto requests = mixed_requests({root + "00_200x120.png", root + "01_97x301.png"}, random, 12);
  const auto expected = answers_alone(options, requests);
  uint64_t steps = 0;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    options.max_seqs = 2 + seed;
    options.chunk = 4 + 9 * seed;
    options.page = 3 + seed;
    options.cache_tokens = seed % 2 ? 300 : 0;  // preemption
    options.cache_windows = 2;
    options.drafter = GetParam() ? kNgramDrafter : "";
    options.draft_tokens = seed == 3 ? -1 : GetParam() ? 2 * static_cast<int>(seed) : 0;
    steps += drive(options, requests, expected, seed, 40);
    if (HasFailure()) return;
  }
  EXPECT_GT(steps, 100u);
}

INSTANTIATE_TEST_SUITE_P(WithDrafts, NoBleedOnRef, testing::Bool());

// cpu computes a row alike whatever stands beside it (LinearTest and AttentionTest, AloneAsInABatch): so here too
// answers are equal to the token.
TEST(NoBleed, DemoOnCpu) {
  EngineOptions options = demo_options();
  options.max_seq_len = 500;
  std::mt19937 random(12);
  const auto requests = mixed_requests({demo_image("002.png"), demo_image("006.png")}, random, 16);
  const auto expected = answers_alone(options, requests);
  uint64_t steps = 0;
  for (uint32_t seed = 1; seed <= 2; ++seed) {
    options.max_seqs = 3 + 2 * seed;
    options.chunk = 20 * seed;
    options.page = 8 + 5 * seed;
    options.cache_tokens = seed % 2 ? 600 : 0;
    options.cache_windows = 2;
    steps += drive(options, requests, expected, seed, 60);
    if (HasFailure()) return;
  }
  EXPECT_GT(steps, 100u);
}

TEST(NoBleed, SharedPagesAreFoundAndCounted) {
  EngineOptions options = tiny_options();
  Inside inside(options);
  const Request request = tiny_cases()[2].request;  // an image first
  const Heard first = inside.alone(request);
  const Heard second = inside.alone(request);
  EXPECT_EQ(first.ids, second.ids);
  EXPECT_EQ(first.usage.cached_tokens, 0);
  EXPECT_EQ(second.usage.cached_tokens, second.usage.prompt_tokens - 1);
  Request other = request;
  other.images = tiny_cases()[3].request.images;
  other.images.resize(1);  // another picture, in the same place
  EXPECT_LE(inside.alone(other).usage.cached_tokens, 5);
}

TEST(EngineCore, AFailingDeviceEndsEveryStreamAndTheEngine) {
  const auto watch = std::make_shared<Watch>();
  watch->fail_at_sample = 5;
  EngineOptions options = tiny_options();
  options.max_seqs = 2;
  Engine engine(options, Ranks(std::make_unique<WatchedBackend>(make_ref(), watch)));
  std::vector<std::unique_ptr<Ask>> asks;
  for (int i = 0; i < 4; ++i) asks.push_back(std::make_unique<Ask>(engine, tiny_cases()[0].request));
  for (auto& ask : asks) {
    const Heard heard = ask->get();
    EXPECT_TRUE(heard.device);
    EXPECT_EQ(heard.error, "the device fell off the bus");
  }
  EXPECT_THROW(Ask(engine, tiny_cases()[0].request), DeviceError);
}

// It ended as a fault of the engine.
TEST(EngineCore, ABudgetThatRunsOutEndsItsAnswerAsTheRequestsFault) {
  Inside inside(demo_options());
  Request request = chat_request("Who are you?", 40);
  request.format.type = ResponseFormat::kSchema;
  request.format.schema = R"({"type":"string","minLength":30})";
  Heard heard;
  bool budget = false;
  auto sequence = std::move(inside.input.make(request, [&](const Event& event) {
    heard.hear(event);
    budget |= event.type == Event::kError && event.budget;
  })[0]);
  EXPECT_THROW(sequence->grammar->budget().charge(uint64_t{1} << 60), BudgetError);
  sequence->id = 1;
  inside.core.add(std::move(sequence));
  while (inside.core.busy()) inside.step();
  EXPECT_TRUE(budget);
  EXPECT_FALSE(heard.device);
  EXPECT_EQ(heard.error, "the format of the answer needs more work than one request may take");
}

// A large picture is more work for the tower than a step of prompts: others get tokens meanwhile.
TEST(EngineCore, APictureIsEncodedOverStepsInWhichOthersGoOn) {
  EngineOptions options = demo_options();
  options.max_seq_len = 2048;
  options.image_budget_max = 1120;
  options.image_budget = 560;
  options.chunk = 128;
  const Request picture = chat_request("Describe this image.", 4, {demo_image("002.png")});
  const Heard want = Inside(options).alone(picture);
  Inside inside(options);
  const int picture_steps = inside.opened.model->image_rows(9 * 500) / options.chunk;  // of 529 tokens
  EXPECT_GT(picture_steps, 10);
  Heard chatting, heard;
  Request chat = chat_request("Who are you?", 400);
  chat.ignore_eos = true;
  inside.add(chat, chatting);
  for (int i = 0; i < 3; ++i) inside.step();
  std::atomic<bool> ended = false;
  inside.add(picture, heard, &ended);
  const uint64_t before = inside.core.stats().steps;
  while (!ended && inside.core.busy()) inside.step();
  EXPECT_EQ(heard.ids, want.ids);
  EXPECT_GT(inside.core.stats().steps - before, picture_steps);
  inside.core.cancel_all();
  while (inside.core.busy()) inside.step();
}

TEST(EngineCore, AllocatesNothingWhileStepping) {
  const auto watch = std::make_shared<Watch>();
  EngineOptions options = tiny_options();
  options.max_seqs = 3;
  Engine engine(options, Ranks(std::make_unique<WatchedBackend>(make_ref(), watch)));
  Ask(engine, tiny_cases()[2].request).get();  // an image allocates, when it arrives
  const int64_t before = watch->allocations;
  std::vector<std::unique_ptr<Ask>> asks;
  for (const int which : {0, 1, 0, 1, 2}) {
    asks.push_back(std::make_unique<Ask>(engine, tiny_cases()[which].request));
  }
  for (auto& ask : asks) ask->get();
  EXPECT_GE(watch->samples, 50);  // steps that chose tokens
  EXPECT_EQ(watch->allocations, before);
}

}  // namespace
}  // namespace gemma4
