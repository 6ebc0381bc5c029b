// One request never takes the engine from the others: late output delays its own stream only, a format that needs too
// much work fails alone, a stalled step is reported, preparation can be cancelled and its memory is bounded, and what
// is shared among requests tells nobody about another's prompt.
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>
#include <utility>

#include "engine/engine_testing.h"
#include "engine/prefix_cache.h"
#include "engine/prompt_images.h"
#include "engine/watched_backend_testing.h"
#include "large_picture_testing.h"

namespace gemma4 {
namespace {

using std::chrono::milliseconds;

class IsolationWithDrafts : public testing::TestWithParam<int> {};  // so many in a step

TEST_P(IsolationWithDrafts, OutputThatIsLateDelaysItsOwnStreamOnly) {
  EngineOptions options = tiny_options();
  options.max_seqs = 3;
  options.draft_tokens = GetParam();
  options.drafter = "ngram";
  Engine engine(options);
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  EventQueue late_events(size_t{64} << 20);
  // A worker is held up as a slow mask would hold it up.
  engine.submit(raw_request("<bos>one", 20), [&](const Event& event) {
    released.wait();
    late_events.push(event);
  });
  for (const int logprobs : {-1, 0, 5}) {
    Request other = raw_request("<bos>two", 12);
    other.logprobs = logprobs;
    other.ignore_eos = true;
    EXPECT_EQ(Ask(engine, other).get().usage.generated_tokens, 12);
  }
  EXPECT_FALSE(late_events.pop(milliseconds(0)));
  release.set_value();
  Heard late;
  while (late.ends == 0) late.hear(late_events.pop());
  EXPECT_EQ(late.ids, Ask(engine, raw_request("<bos>one", 20)).get().ids);
}

TEST_P(IsolationWithDrafts, AFormatThatNeedsTooMuchWorkFailsAlone) {
  EngineOptions options = demo_options();
  options.max_seqs = 2;
  options.draft_tokens = GetParam();
  options.drafter = "ngram";
  Engine engine(options);
  const Request plain = chat_request("Describe this image.", 6);
  const Heard alone = Ask(engine, plain).get();
  Request hang = chat_request("a", 4);
  hang.format.type = ResponseFormat::kSchema;
  hang.format.schema = R"({"type":"string","pattern":"^(((((a?){0,60}){0,60}){0,60}){0,60}){0,60}$"})";
  const auto start = std::chrono::steady_clock::now();
  try {
    const Heard heard = Ask(engine, hang).get();  // an answer is good, too
    EXPECT_EQ(heard.ends, 1);
  } catch (const DeviceError&) {
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()), "");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  EXPECT_EQ(Ask(engine, plain).get().ids, alone.ids);
}

INSTANTIATE_TEST_SUITE_P(Drafts, IsolationWithDrafts, testing::Values(0, 4));

TEST(Isolation, AStepThatTakesTooLongIsReported) {
  EngineOptions options = tiny_options();
  options.step_timeout = 0.05;
  const auto watch = std::make_shared<Watch>();
  Engine engine(options, Ranks(std::make_unique<WatchedBackend>(make_ref(), watch)));
  EXPECT_FALSE(engine.stats().stalled);
  watch->stop_at_linear = watch->linears + 1;
  Ask ask(engine, raw_request("<bos>one", 2));
  for (int i = 0; i < 1000 && !(engine.stats().stalled && engine.stats().slow_steps > 0); ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(engine.stats().stalled);
  EXPECT_EQ(engine.stats().slow_steps, 1u);
  watch->stop_at_linear = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(ask.get().ends, 1);
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_FALSE(engine.stats().stalled);
}

TEST(Isolation, CancellingReachesThePreparation) {
  EngineOptions options = demo_options();
  options.max_seq_len = 4096;
  Engine engine(options);
  const Request request = chat_request("?", 1, std::vector<std::string>(50, demo_image("002.png")));
  Preparation preparation;
  preparation.cancellation = std::make_shared<Cancellation>();
  std::thread client([&] {
    while (engine.stats().images_decoded == 0) std::this_thread::yield();
    preparation.cancellation->cancel();
  });
  const auto nobody = [](const Event&) { ADD_FAILURE() << "no event was due"; };
  EXPECT_THROW(engine.submit(request, nobody, preparation), CancelledError);
  client.join();
  EXPECT_LT(engine.stats().images_decoded, 50u);
  EXPECT_EQ(engine.stats().prepared_bytes, 0);
  EXPECT_EQ(engine.stats().requests, 0u);
}

TEST(Isolation, PicturesOfWaitingRequestsTakeBoundedMemory) {
  EngineOptions options = demo_options();
  options.max_seq_len = 2000;
  options.prepared_bytes = 32 << 20;  // one request's take some 16 MB
  Engine engine(options);
  std::vector<std::string> files;
  for (int i = 2; i < 10; ++i) files.push_back(demo_image("00" + std::to_string(i) + ".png"));
  std::vector<std::future<Heard>> answers;
  for (int i = 0; i < 12; ++i) {
    answers.push_back(std::async(std::launch::async, [&engine, &files, i] {
      Request request = chat_request("?", 2, files);
      request.cache_salt = std::to_string(i);  // each is decoded
      return Ask(engine, request).get();
    }));
  }
  int64_t most = 0;
  for (auto& answer : answers) {
    while (answer.wait_for(milliseconds(1)) != std::future_status::ready) {
      most = std::max(most, engine.stats().prepared_bytes);
    }
    EXPECT_EQ(answer.get().error, "");
  }
  EXPECT_GT(most, 0);
  EXPECT_LE(most, options.prepared_bytes);
  EXPECT_EQ(engine.stats().prepared_bytes, 0);
}

TEST(Isolation, DecodingAPictureMakesWay) {
  Engine engine(demo_options());
  int turns = 0;
  Preparation preparation;
  preparation.make_way = [&] { ++turns; };
  std::promise<void> ended;
  Request request = chat_request("?", 1, {demo_image("002.png")});
  request.images[0] = large_picture();
  engine.submit(
      request,
      [&](const Event& event) {
        if (event.type == Event::kDone || event.type == Event::kError) ended.set_value();
      },
      preparation);
  ended.get_future().wait();
  EXPECT_GE(turns, 8) << "16 Mi pixels are 8 times 2 Mi";
}

TEST(Isolation, FewLargePicturesAreDecodedAtATime) {
  const Config config = parse_config(read_file("models/demo/config.json"));
  ImageCache cache;
  const PromptImages images(config, cache, int64_t{256} << 20);  // two of 16 Mi pixels
  const std::string file = large_picture();
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::atomic<int> inside = 0;
  std::vector<std::future<void>> decoders;
  for (int i = 0; i < 3; ++i) {
    decoders.push_back(std::async(std::launch::async, [&, i] {
      bool first = true;
      Preparation preparation;
      preparation.make_way = [&] {
        if (std::exchange(first, false)) ++inside;
        released.wait();
      };
      EXPECT_NE(images.prepare(file, i, 70, 0, preparation).patches, nullptr);
    }));
  }
  for (int i = 0; i < 3000 && images.waiting() == 0; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(images.waiting(), 1);
  auto small = std::async(std::launch::async, [&] { images.prepare(read_file(demo_image("002.png")), 3, 70, 0, {}); });
  EXPECT_EQ(small.wait_for(std::chrono::seconds(60)), std::future_status::ready) << "it waits for large ones";
  EXPECT_EQ(images.waiting(), 1);
  while (inside < 2) std::this_thread::yield();
  EXPECT_EQ(inside, 2);
  release.set_value();
  for (auto& decoder : decoders) decoder.get();
  EXPECT_EQ(inside, 3);
  EXPECT_EQ(images.waiting(), 0);
}

// Cancelled while it waits for the memory of another: no fault of the picture's.
TEST(Isolation, APictureThatWaitsIsNotToBlameForACancel) {
  const Config config = parse_config(read_file("models/demo/config.json"));
  ImageCache cache;
  const PromptImages images(config, cache, int64_t{128} << 20);  // one of 16 Mi pixels
  const std::string file = large_picture();
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  std::atomic<bool> inside = false;
  auto first = std::async(std::launch::async, [&] {
    Preparation preparation;
    preparation.make_way = [&] {
      inside = true;
      released.wait();
    };
    images.prepare(file, 0, 70, 0, preparation);
  });
  while (!inside) std::this_thread::yield();
  Preparation preparation;
  preparation.cancellation = std::make_shared<Cancellation>();
  auto second = std::async(std::launch::async, [&] { images.prepare(file, 1, 70, 0, preparation); });
  while (images.waiting() == 0) std::this_thread::yield();
  preparation.cancellation->cancel();
  EXPECT_THROW(second.get(), CancelledError);
  release.set_value();
  first.get();
}

// The secret is 24 tokens after a known beginning of 40, in pages of 16.
TEST(Isolation, TenThousandGuessesLearnNothingOfAnothersPrompt) {
  PrefixCacheOptions options{16, 64, {64, 64}};
  options.to_a_token = false;
  PrefixCache cache(options);
  std::vector<TokenHash> prompt(64);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = i < 40 ? i : 1000 + i * i;
  PageTable table;
  ASSERT_TRUE(cache.allocate(table, 64));
  cache.insert(table, prompt, 60, true, 0, 0, 1);  // three pages, and an unfinished one
  cache.free(table);
  const auto reused = [&](const std::vector<TokenHash>& guess, uint64_t salt) {
    PageTable mine;
    std::vector<PageCopy> copies;
    const int length = cache.match_prefix(mine, guess, static_cast<int>(guess.size()) - 1, {}, copies, salt);
    cache.free(mine);
    return length;
  };
  for (TokenHash i = 0; i < 10000; ++i) {
    std::vector<TokenHash> guess(prompt.begin(), prompt.begin() + 40 + static_cast<int>(i % 24));
    guess.push_back(i % 2 ? i : prompt[guess.size()]);  // wrong ones and right ones look alike
    EXPECT_EQ(reused(guess, 2), 0) << "another key";
    // With the same key, or none: whole pages, not a token more.
    const int same = static_cast<int>(std::ranges::mismatch(guess, prompt).in1 - guess.begin());
    if (same >= 60) continue;
    EXPECT_EQ(reused(guess, 1), std::min(same, static_cast<int>(guess.size()) - 1) / 16 * 16);
  }
  std::vector<TokenHash> next = prompt;
  next[60] = 7;
  EXPECT_EQ(reused(next, 1), 60) << "the next turn begins with the whole sequence";
  EXPECT_EQ(reused(prompt, 2), 0);
}

TEST(Isolation, PagesAndPicturesAreSharedUnderOneSaltOnly) {
  EngineOptions options = demo_options();
  options.share_cache = false;
  Engine engine(options);
  Request request = chat_request("Describe this image.", 2, {demo_image("002.png")});
  const auto cached = [&](const std::string& salt) {
    request.cache_salt = salt;
    return Ask(engine, request).get().usage.cached_tokens;
  };
  EXPECT_EQ(cached("alice"), 0);
  EXPECT_EQ(cached("mallory"), 0);
  EXPECT_EQ(engine.stats().images_decoded, 2u) << "the picture was known to another";
  const int own = cached("alice");
  EXPECT_GT(own, 0);
  EXPECT_EQ(cached("mallory"), own);
  EXPECT_EQ(engine.stats().images_decoded, 2u);
  options.share_cache = true;
  Engine shared(options);
  request.cache_salt = "alice";
  Ask(shared, request).get();
  request.cache_salt = "mallory";
  EXPECT_GE(Ask(shared, request).get().usage.cached_tokens, own);
}

}  // namespace
}  // namespace gemma4
