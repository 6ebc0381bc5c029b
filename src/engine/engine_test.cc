// The Engine from outside: answers equal the reference's, alone or among others, whatever the chunk and the memory.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <thread>

#include "base/json.h"
#include "engine/engine_testing.h"
#include "engine/image_cache.h"
#include "engine/input_processor.h"

namespace gemma4 {
namespace {

// Once every request is over and counted: events arrive during a step, counters after it.
EngineStats settled(const Engine& engine) {
  while (true) {
    const EngineStats stats = engine.stats();
    if (stats.finished + stats.cancelled + stats.failed == stats.requests) return stats;
    std::this_thread::yield();
  }
}

TEST(Engine, GreedyAnswersEqualTheReferenceForEveryChunkSize) {
  const auto cases = tiny_cases();
  ASSERT_EQ(cases.size(), 5u);
  for (const int chunk : {1, 7, 64, 512}) {
    EngineOptions options = tiny_options();
    options.chunk = chunk;
    options.prefix_cache = false;
    Engine engine(options);
    for (const TinyCase& c : cases) {
      const Heard heard = Ask(engine, c.request).get();
      EXPECT_EQ(heard.ids, c.greedy) << c.name << ", chunk " << chunk << heard.error;
      EXPECT_EQ(heard.finish, Finish::kLength);
    }
  }
}

TEST(Engine, GreedyAnswersEqualTheReferenceAmongOthers) {
  EngineOptions options = tiny_options();
  options.max_seqs = 5;
  options.chunk = 16;
  Engine engine(options);
  const auto cases = tiny_cases();
  std::vector<std::unique_ptr<Ask>> asks;
  for (int round = 0; round < 2; ++round) {
    for (const TinyCase& c : cases) asks.push_back(std::make_unique<Ask>(engine, c.request));
  }
  for (size_t i = 0; i < asks.size(); ++i) {
    EXPECT_EQ(asks[i]->get().ids, cases[i % cases.size()].greedy) << cases[i % cases.size()].name;
  }
  const EngineStats stats = settled(engine);
  EXPECT_EQ(stats.finished, 10u);
  EXPECT_GT(stats.cached_tokens, 0u);
}

TEST(Engine, PreemptionChangesNoAnswer) {
  EngineOptions options = tiny_options();
  options.max_seqs = 5;
  options.chunk = 16;
  options.cache_tokens = 400;  // one sequence of full length; the five need 1000
  Engine engine(options);
  const auto cases = tiny_cases();
  std::vector<std::unique_ptr<Ask>> asks;
  for (int round = 0; round < 2; ++round) {
    for (const TinyCase& c : cases) asks.push_back(std::make_unique<Ask>(engine, c.request));
  }
  for (size_t i = 0; i < asks.size(); ++i) {
    EXPECT_EQ(asks[i]->get().ids, cases[i % cases.size()].greedy) << cases[i % cases.size()].name;
  }
}

TEST(Engine, SameSeedSameAnswerAloneOrAmongOthers) {
  Request request = raw_request("<bos><|turn>user\nthe stars<turn|>\n", 20);
  request.sampling.temperature = 1;
  request.sampling.top_k = 50;
  request.sampling.top_p = 0.9f;
  request.ignore_eos = true;
  EngineOptions options = tiny_options();
  options.max_seqs = 6;
  Engine engine(options);
  std::vector<Heard> alone;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    request.sampling.seed = seed;
    alone.push_back(Ask(engine, request).get());
    EXPECT_EQ(alone.back().usage.seed, seed);
  }
  EXPECT_NE(alone[0].ids, alone[1].ids);
  std::vector<std::unique_ptr<Ask>> asks;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    request.sampling.seed = seed;
    asks.push_back(std::make_unique<Ask>(engine, request));
  }
  for (size_t i = 0; i < asks.size(); ++i) EXPECT_EQ(asks[i]->get().ids, alone[i].ids) << "seed " << i + 1;
}

TEST(Engine, ASecondTurnComputesOnlyNewTokens) {
  Engine engine(tiny_options());
  const auto cases = tiny_cases();
  const TinyCase& late = cases[4];  // an image in the middle
  const Heard first = Ask(engine, late.request).get();
  const uint64_t before = settled(engine).computed_tokens;
  Request next = late.request;
  *next.raw += engine.tokenizer().decode(first.ids, false) + "<turn|>\n<|turn>user\nmore<turn|>\n<|turn>model\n";
  next.max_new_tokens = 1;
  const Heard second = Ask(engine, next).get();
  // Decoding and encoding again may group characters otherwise, so count from where the prompts part.
  const auto ids = engine.prompt_ids(next);
  const auto old = engine.prompt_ids(late.request);
  size_t same = old.size();
  while (same - old.size() < first.ids.size() - 1 && ids[same] == first.ids[same - old.size()]) ++same;
  EXPECT_EQ(second.usage.cached_tokens, static_cast<int>(same));
  EXPECT_EQ(settled(engine).computed_tokens - before, ids.size() - same);
  EXPECT_EQ(engine.stats().images_encoded, 1u);
  next.reuse_prefix = false;
  EXPECT_EQ(Ask(engine, next).get().ids, second.ids);
}

// The conversation of a chat: the template writes the first answer otherwise than it was generated (without the empty
// thought before it), so a second turn reads that answer again, and nothing before it.
TEST(Engine, ASecondTurnOfALongChatWithAnImageReadsOnlyWhatIsNew) {
  EngineOptions options = demo_options();
  options.max_seq_len = 3000;
  options.max_seqs = 2;
  Engine engine(options);
  std::string story = "Describe this image.";
  for (int i = 0; i < 950; ++i) story += i % 3 ? " the circle" : " a square";
  const Request first = chat_request(story, 24, {demo_image("002.png")});
  const std::vector<int32_t> first_ids = engine.prompt_ids(first);
  ASSERT_GT(first_ids.size(), 1950u);
  const Heard answer = Ask(engine, first).get();
  ASSERT_EQ(answer.error, "");
  Request second = first;
  second.messages.push_back(Message::text("assistant", answer.text));
  second.messages.push_back(Message::text("user", "What is at the left?"));
  const std::vector<int32_t> second_ids = engine.prompt_ids(second);
  const auto parting = std::ranges::mismatch(first_ids, second_ids).in1 - first_ids.begin();
  EXPECT_LE(static_cast<int>(first_ids.size()) - parting, 4);  // the empty thought
  const uint64_t before = settled(engine).computed_tokens;
  const Heard cached = Ask(engine, second).get();
  const EngineStats stats = settled(engine);
  EXPECT_EQ(cached.usage.cached_tokens, parting);
  EXPECT_EQ(stats.computed_tokens - before, second_ids.size() - parting + cached.usage.decode_tokens);
  EXPECT_EQ(stats.images_encoded, 1u);
  second.reuse_prefix = false;
  EXPECT_EQ(Ask(engine, second).get().ids, cached.ids);
}

TEST(Engine, ASecondTurnWithTenPicturesDecodesNone) {
  EngineOptions options = demo_options();
  options.max_seq_len = 1500;
  Engine engine(options);
  std::vector<std::string> files;
  for (int i = 2; i < 12; ++i)
    files.push_back(demo_image(std::string("0") + (i < 10 ? "0" : "") + std::to_string(i) + ".png"));
  Request request = chat_request("Describe these images.", 8, files);
  const Heard first = Ask(engine, request).get();
  ASSERT_EQ(first.error, "");
  EXPECT_EQ(settled(engine).images_decoded, 10u);
  EXPECT_EQ(engine.stats().images_encoded, 10u);
  request.messages.push_back(Message::text("assistant", first.text));
  request.messages.push_back(Message::text("user", "And now?"));
  engine.count_tokens(request);
  const Heard second = Ask(engine, request).get();
  EXPECT_EQ(settled(engine).images_decoded, 10u);
  EXPECT_EQ(engine.stats().images_encoded, 10u);
  request.reuse_prefix = false;  // the embeddings are used again, not only the pages of the cache
  EXPECT_EQ(Ask(engine, request).get().ids, second.ids);
  EXPECT_EQ(settled(engine).images_decoded, 10u);
  EXPECT_EQ(engine.stats().images_encoded, 10u);
}

TEST(Engine, PicturesWhoseEmbeddingsAreGoneAreDecodedAgain) {
  Engine engine(demo_options());
  const Request request = chat_request("Describe this image.", 8, {demo_image("002.png")});
  const Heard first = Ask(engine, request).get();
  for (size_t i = 0; i < ImageCache::kCapacity; ++i) {
    const std::string name = std::to_string(10 + i);
    Ask(engine, chat_request("Describe this image.", 1, {demo_image("0" + name + ".png")})).get();
  }
  EXPECT_EQ(settled(engine).images_decoded, 1 + ImageCache::kCapacity);
  Request again = request;
  again.reuse_prefix = false;
  EXPECT_EQ(Ask(engine, again).get().ids, first.ids);
  EXPECT_EQ(settled(engine).images_decoded, 2 + ImageCache::kCapacity);
  EXPECT_EQ(engine.stats().images_encoded, 2 + ImageCache::kCapacity);
}

// The header is right, the pixels are not: such a prompt has a length, and cannot be answered.
TEST(Engine, ADamagedPictureHasACountAndIsRefused) {
  Engine engine(demo_options());
  Request request = chat_request("Describe this image.", 8, {demo_image("002.png")});
  const int count = engine.count_tokens(request);
  request.images[0].resize(request.images[0].size() / 2);
  EXPECT_EQ(engine.count_tokens(request), count);
  EXPECT_THROW(Ask(engine, request), Error);
  EXPECT_EQ(engine.stats().requests, 0u);
  request.images[0].resize(10);
  EXPECT_THROW(engine.count_tokens(request), Error);
}

Request sampled_choices(int n) {
  Request request = raw_request("<bos><|turn>user\nthe stars at the left of the red circle<turn|>\n", 12);
  request.sampling.temperature = 1;
  request.sampling.seed = 5;
  request.ignore_eos = true;
  request.n = n;
  return request;
}

// Four answers to one prompt are those of four requests with the seeds 5 .. 8, and the prompt is computed once, also
// where no page is kept for later prompts.
TEST(Engine, ChoicesShareOnePromptAndDifferInTheirSeed) {
  for (const bool prefix_cache : {true, false}) {
    EngineOptions options = tiny_options();
    options.max_seqs = 6;  // a request leaves a quarter to others, and all four are to run at a time
    options.chunk = 16;
    options.prefix_cache = prefix_cache;
    Request one = sampled_choices(1);
    std::vector<Heard> alone;
    Engine reference(options);
    for (uint64_t seed = 5; seed < 9; ++seed) {
      one.sampling.seed = seed;
      alone.push_back(Ask(reference, one).get());
    }
    for (const bool reuse : {true, false}) {
      Engine engine(options);
      Request request = sampled_choices(4);
      request.reuse_prefix = reuse;
      const std::vector<Heard> choices = AskChoices(engine, request).get();
      for (size_t i = 0; i < choices.size(); ++i) {
        EXPECT_EQ(choices[i].ids, alone[i].ids) << "choice " << i;
        EXPECT_EQ(choices[i].usage.seed, 5 + i);
        EXPECT_EQ(choices[i].usage.cached_tokens, i == 0 ? 0 : choices[i].usage.prompt_tokens - 1);
      }
      const EngineStats stats = settled(engine);
      // Each choice computes the prompt's last row, for its logits, and then a row for each token but the last.
      EXPECT_EQ(stats.computed_tokens, static_cast<uint64_t>(choices[0].usage.prompt_tokens + 3 + 4 * 11));
      EXPECT_EQ(stats.requests, 4u);
      for (const AttentionKind kind : {kSliding, kFull}) EXPECT_EQ(stats.pages_used[kind], 0);
    }
  }
}

TEST(Engine, ChoicesDecodeAndEncodeAPictureOnce) {
  EngineOptions options = demo_options();
  options.max_seqs = 4;
  Engine engine(options);
  Request request = chat_request("Describe this image.", 8, {demo_image("002.png")});
  const Heard alone = Ask(engine, request).get();
  Engine other(options);
  request.n = 4;
  for (const Heard& choice : AskChoices(other, request).get()) EXPECT_EQ(choice.ids, alone.ids);
  EXPECT_EQ(settled(other).images_decoded, 1u);
  EXPECT_EQ(other.stats().images_encoded, 1u);
}

// Choices take turns where fewer may run at a time, and the others go on where the first is cancelled.
TEST(Engine, ChoicesNeedNoRoomAtTheSameTimeAndOutliveTheFirst) {
  for (const int max_seqs : {1, 2, 4}) {
    EngineOptions options = tiny_options();
    options.max_seqs = max_seqs;
    options.chunk = 1;  // a prompt of many steps
    Engine engine(options);
    AskChoices all(engine, sampled_choices(4));
    const std::vector<Heard> whole = all.get();
    Request request = sampled_choices(4);
    request.reuse_prefix = false;
    AskChoices cancelled(engine, request);
    engine.cancel(cancelled.id);
    const std::vector<Heard> rest = cancelled.get();
    EXPECT_EQ(rest[0].finish, Finish::kCancelled);
    for (size_t i = 1; i < rest.size(); ++i) EXPECT_EQ(rest[i].ids, whole[i].ids) << i << " of " << max_seqs;
  }
}

TEST(Engine, LogprobsAreThoseOfTheLogits) {
  Engine engine(tiny_options());
  Request request = tiny_cases()[0].request;
  request.logprobs = 5;
  const Heard heard = Ask(engine, request).get();
  ASSERT_EQ(heard.logprobs.size(), 24u);
  for (const TokenLogprobs& token : heard.logprobs) {
    ASSERT_EQ(token.top.size(), 5u);
    EXPECT_EQ(token.top[0].id, token.token.id);  // greedy
    EXPECT_EQ(token.top[0].logprob, token.token.logprob);
    for (int i = 1; i < 5; ++i) EXPECT_LE(token.top[i].logprob, token.top[i - 1].logprob);
    EXPECT_LT(token.token.logprob, 0);
  }
}

TEST(Engine, PenaltiesAndBiasChangeTheAnswer) {
  Engine engine(tiny_options());
  Request request = tiny_cases()[0].request;  // greedy repeats token 1128 six times, then 229 without end
  request.sampling.frequency_penalty = 2;
  request.sampling.presence_penalty = 2;
  const Heard penalised = Ask(engine, request).get();
  EXPECT_NE(penalised.ids, tiny_cases()[0].greedy);
  request = tiny_cases()[0].request;
  request.sampling.repetition_penalty = 100;
  std::vector<int32_t> ids = Ask(engine, request).get().ids;
  std::ranges::sort(ids);
  EXPECT_EQ(std::ranges::adjacent_find(ids), ids.end()) << "no token twice under so large a penalty";
  request = tiny_cases()[0].request;
  request.sampling.logit_bias = {{77, 100.0f}};
  for (const int32_t id : Ask(engine, request).get().ids) EXPECT_EQ(id, 77);
}

TEST(Engine, ForcedShapesHoldWhateverTheQuestion) {
  EngineOptions options = demo_options();
  options.max_seqs = 4;
  Engine engine(options);
  Request schema = chat_request("Who are you?", 400);  // room for the white space that a small model pads with
  schema.format.type = ResponseFormat::kSchema;
  schema.format.schema = R"({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99},
      "color": {"enum": ["red", "blue"]}}, "required": ["n", "color"], "additionalProperties": false})";
  Request call = chat_request("Who are you?", 60);
  call.tools = R"([{"type": "function", "function": {"name": "set_timer", "description": "Set a timer in minutes.",
      "parameters": {"type": "object", "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 90}},
      "required": ["minutes"]}}}])";
  call.format.type = ResponseFormat::kToolCall;
  call.format.tool_name = "set_timer";
  call.format.parallel_tools = false;
  Request sampled = schema;
  sampled.sampling.temperature = 1;
  sampled.sampling.seed = 3;
  Ask a(engine, schema), b(engine, call), c(engine, sampled), free(engine, chat_request("Who are you?", 60));
  for (Ask* ask : {&a, &c}) {
    const Heard heard = ask->get();
    const auto value = read_json_or_discard<nlohmann::json>(heard.text);
    ASSERT_TRUE(value.is_object()) << heard.text;
    EXPECT_TRUE(value.at("n").is_number_integer()) << heard.text;
    EXPECT_TRUE(value.at("color") == "red" || value.at("color") == "blue") << heard.text;
    EXPECT_EQ(heard.finish, Finish::kStop);
  }
  const Heard called = b.get();
  ASSERT_EQ(called.calls.size(), 1u) << called.text;
  EXPECT_EQ(called.calls[0].name, "set_timer");
  EXPECT_TRUE(read_json<nlohmann::json>(called.calls[0].arguments).at("minutes").is_number_integer());
  EXPECT_EQ(called.finish, Finish::kToolCalls);
  EXPECT_EQ(free.get().text, "I am a small demo model. I can describe pictures of colored shapes and digits.");
  Request bad = schema;
  bad.format.schema = "{";
  EXPECT_THROW(Ask(engine, bad), Error);
}

TEST(Engine, CancelEndsARequestWhereverItIs) {
  EngineOptions options = tiny_options();
  options.chunk = 1;  // a prompt of 275 steps
  Engine engine(options);
  Ask prefill(engine, tiny_cases()[1].request);
  Ask waits(engine, tiny_cases()[0].request);
  while (engine.stats().steps < 3) std::this_thread::yield();
  engine.cancel(waits.id);
  EXPECT_EQ(waits.get().finish, Finish::kCancelled);
  engine.cancel(prefill.id);
  const Heard heard = prefill.get();
  EXPECT_EQ(heard.finish, Finish::kCancelled);
  EXPECT_EQ(heard.usage.generated_tokens, 0);
  engine.cancel(prefill.id);  // over already: nothing happens
  engine.cancel(12345);
  EXPECT_EQ(Ask(engine, tiny_cases()[0].request).get().ids, tiny_cases()[0].greedy);
  const EngineStats stats = settled(engine);
  EXPECT_EQ(stats.cancelled, 2u);
  EXPECT_EQ(stats.pages_used[kFull], 0);
  EXPECT_EQ(stats.pages_used[kSliding], 0);
}

TEST(Engine, ASinkMayCancelItsOwnRequest) {
  Engine engine(tiny_options());
  std::atomic<uint64_t> id{0};
  std::promise<Finish> done;
  Request request = tiny_cases()[0].request;
  request.max_new_tokens = 300;
  id = engine.submit(request, [&](const Event& event) {
    if (event.type == Event::kDone) return done.set_value(event.finish);
    while (id == 0) std::this_thread::yield();
    engine.cancel(id);
  });
  EXPECT_EQ(done.get_future().get(), Finish::kCancelled);
}

TEST(Engine, StopsAtStopStringsAndEndTokens) {
  Engine engine(tiny_options());
  Request request = tiny_cases()[0].request;
  const Heard whole = Ask(engine, request).get();
  ASSERT_GT(whole.text.size(), 4u);
  request.stop = {whole.text.substr(whole.text.size() / 2)};
  const Heard cut = Ask(engine, request).get();
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(request.stop[0])));
  EXPECT_EQ(cut.stop, request.stop[0]);
  EXPECT_EQ(cut.finish, Finish::kStop);
  request.stop.clear();
  request.ignore_eos = false;
  for (const int32_t end : {1, 16, 9}) {  // generation_config.json: <eos>, <turn|>, <|tool_response>
    request.sampling.logit_bias = {{end, 100.0f}};
    const Heard ended = Ask(engine, request).get();
    EXPECT_EQ(ended.usage.generated_tokens, 0);
    EXPECT_EQ(ended.finish, Finish::kStop);
    EXPECT_EQ(ended.text, "");
  }
}

TEST(Engine, TheAnswerEndsWhereTheContextDoes) {
  EngineOptions options = tiny_options();
  options.max_seq_len = 40;
  Engine engine(options);
  Request request = tiny_cases()[0].request;
  request.max_new_tokens = 0;
  const Heard heard = Ask(engine, request).get();
  EXPECT_EQ(heard.finish, Finish::kLength);
  EXPECT_EQ(heard.usage.prompt_tokens + heard.usage.generated_tokens, 40);
}

void expect_refused(const Engine& engine, const Request& request, const std::string& part) {
  try {
    const_cast<Engine&>(engine).submit(request, [](const Event&) {});
    ADD_FAILURE() << "was accepted: " << part;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

TEST(Engine, ATextOfTokensThatTheModelLacksIsRefused) {
  Engine engine(tiny_options());
  Config config = engine.config();
  config.vocab = 20;  // fewer than the tokenizer knows
  ImageCache images;
  const OutputProcessor output(engine.tokenizer(), {});
  const InputProcessor input(engine.tokenizer(), config, engine.generation_config(), {0, 0, 0, 100, false}, output,
                             images);
  Request request;
  request.raw = "<bos>the";
  try {
    input.prompt_ids(request);
    FAIL() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("outside the model's vocabulary of 20"), std::string::npos)
        << error.what();
  }
}

TEST(Engine, RefusesWhatIsWrongWithARequest) {
  Engine engine(tiny_options());
  const Request good = tiny_cases()[0].request;
  const auto with = [&](auto change) {
    Request request = good;
    change(request);
    return request;
  };
  expect_refused(engine, with([](Request& r) { r.raw.reset(); }), "no message");
  expect_refused(engine, with([](Request& r) { r.raw = "\xff"; }), "UTF-8");
  expect_refused(engine, with([](Request& r) {
                   for (int i = 0; i < 400; ++i) *r.raw += " the";
                 }),
                 "tokens long, but the context holds 400");
  expect_refused(engine, with([](Request& r) { r.images = {"not an image"}; }), "0 images, but 1");
  expect_refused(engine, with([](Request& r) { r.raw = "<bos><|image|>"; }), "1 images, but 0");
  expect_refused(engine, with([](Request& r) { r.raw = "<bos><|image|>", r.images = {""}; }), "image 1");
  expect_refused(engine, with([](Request& r) { r.raw = "<bos><|image|>", r.images = {"not an image"}; }), "image 1");
  expect_refused(engine, with([](Request& r) {
                   r.raw = "<bos><|image|>", r.images = tiny_cases()[2].request.images, r.image_budget = 71;
                 }),
                 "budget");
  expect_refused(engine, with([](Request& r) { r.ids = {5, 999999}; }), "999999");
  expect_refused(engine, with([](Request& r) { r.ids = {-1}; }), "-1");
  expect_refused(engine, with([](Request& r) { r.ids = {18}; }), "images");
  expect_refused(engine, with([](Request& r) { r.sampling.temperature = -1.0f; }), "temperature");
  expect_refused(engine, with([](Request& r) { r.sampling.temperature = NAN; }), "temperature");
  expect_refused(engine, with([](Request& r) { r.sampling.top_p = 0.0f; }), "top_p");
  expect_refused(engine, with([](Request& r) { r.sampling.top_k = -1; }), "top_k");
  expect_refused(engine, with([](Request& r) { r.sampling.min_p = 1; }), "min_p");
  expect_refused(engine, with([](Request& r) { r.sampling.logit_bias = {{-3, 1.0f}}; }), "logit_bias");
  expect_refused(engine, with([](Request& r) { r.logprobs = 21; }), "logprobs");
  expect_refused(engine, with([](Request& r) { r.max_new_tokens = -1; }), "max_new_tokens");
  expect_refused(engine, with([](Request& r) { r.stop = {""}; }), "stop string");
  expect_refused(engine, with([](Request& r) {
                   r.stop = {std::string(10000, 'a'), std::string(10000, 'b')};
                 }),
                 "together are longer than 16384 bytes");
  EXPECT_EQ(Ask(engine, good).get().ids, tiny_cases()[0].greedy);
}

TEST(Engine, RequestsOfManyChoicesLeaveRoomInTheQueue) {
  EngineOptions options = tiny_options();
  options.max_queue = 16;
  options.max_seqs = 1;
  options.chunk = 1;
  Engine engine(options);
  Request many = tiny_cases()[1].request;
  many.n = 4;
  std::vector<std::unique_ptr<Ask>> asks;
  EXPECT_THROW(
      {
        for (int i = 0; i < 20; ++i) asks.push_back(std::make_unique<Ask>(engine, many));
      },
      BusyError);
  EXPECT_NO_THROW(asks.push_back(std::make_unique<Ask>(engine, tiny_cases()[1].request)));
  EXPECT_NO_THROW(asks.push_back(std::make_unique<Ask>(engine, tiny_cases()[1].request)));
  engine.stop(0);
}

TEST(Engine, OneApiKeyLeavesRoomInTheQueueToOthers) {
  EngineOptions options = tiny_options();
  options.max_queue = 16;
  options.max_seqs = 1;
  options.chunk = 1;
  options.share_cache = false;
  Engine engine(options);
  Request mine = tiny_cases()[1].request, other = mine;
  mine.cache_salt = "alice", other.cache_salt = "mallory";
  std::vector<std::unique_ptr<Ask>> asks;
  EXPECT_THROW(
      {
        for (int i = 0; i < 30; ++i) asks.push_back(std::make_unique<Ask>(engine, mine));
      },
      BusyError);
  EXPECT_GE(asks.size(), 12u);
  EXPECT_NO_THROW(asks.push_back(std::make_unique<Ask>(engine, other)));
  EXPECT_NO_THROW(asks.push_back(std::make_unique<Ask>(engine, other)));
  engine.stop(0);
}

TEST(Engine, AFullQueueAndAStoppedEngineRefuse) {
  EngineOptions options = tiny_options();
  options.max_queue = 2;
  options.chunk = 1;
  Engine engine(options);
  Request many = tiny_cases()[1].request;
  many.n = 3;
  expect_refused(engine, many, "n is 3, but only 2 answers may wait");  // no time would ever be better
  std::vector<std::unique_ptr<Ask>> asks;
  EXPECT_THROW(
      {
        for (int i = 0; i < 10; ++i) asks.push_back(std::make_unique<Ask>(engine, tiny_cases()[1].request));
      },
      BusyError);
  engine.stop(0);
  for (auto& ask : asks) EXPECT_EQ(ask->get().finish, Finish::kCancelled);
  EXPECT_THROW(Ask(engine, tiny_cases()[0].request), StoppingError);
}

TEST(Engine, StopLetsRequestsFinish) {
  Engine engine(tiny_options());
  Ask ask(engine, tiny_cases()[0].request);
  engine.stop(60);
  EXPECT_EQ(ask.get().ids, tiny_cases()[0].greedy);
}

TEST(EventQueue, KeepsChoicesApart) {
  EventQueue queue(10);
  Event event;
  event.text = "abc";
  EXPECT_TRUE(queue.push(event, 0));
  EXPECT_TRUE(queue.push(event, 1));
  EXPECT_TRUE(queue.push(event, 0));  // joins the first
  EXPECT_TRUE(queue.push(event, 0));
  EXPECT_FALSE(queue.push(event, 0)) << "choice 0 is read too slowly";
  EXPECT_TRUE(queue.push(event, 1)) << "and choice 1 is not";
  const Event first = queue.pop(), second = queue.pop(), third = queue.pop();
  EXPECT_EQ(first.choice, 0);
  EXPECT_EQ(first.text, "abcabcabc");
  EXPECT_EQ(second.choice, 1);
  EXPECT_EQ(second.text, "abcabc");
  EXPECT_EQ(third.choice, 0);
  EXPECT_EQ(third.type, Event::kError);
  EXPECT_FALSE(queue.pop(std::chrono::milliseconds(1)));
}

TEST(EventQueue, JoinsTextAndGivesUpOnAReaderThatIsTooSlow) {
  EventQueue queue(10);
  Event event;
  event.text = "abc";
  EXPECT_TRUE(queue.push(event));
  EXPECT_TRUE(queue.push(event));
  EXPECT_EQ(queue.pop().text, "abcabc");
  EXPECT_TRUE(queue.push(event));
  EXPECT_TRUE(queue.push(event));
  EXPECT_TRUE(queue.push(event));
  EXPECT_FALSE(queue.push(event));
  const std::chrono::milliseconds now(0);
  EXPECT_EQ(queue.pop(now).value_or(Event()).text, "abcabcabc");
  EXPECT_EQ(queue.pop(now).value_or(Event()).type, Event::kError);
  EXPECT_FALSE(queue.push(event));
  EXPECT_FALSE(queue.pop(std::chrono::milliseconds(1)));
}

}  // namespace
}  // namespace gemma4
