// The scheduler and the page cache against a model that remembers what every slot of its pages holds
// (engine/scheduler_testing.h).
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/scheduler_testing.h"

namespace gemma4 {
namespace {

std::vector<TokenHash> counting(int n, TokenHash from = 100) {
  std::vector<TokenHash> hashes(n);
  for (int i = 0; i < n; ++i) hashes[i] = from + i;
  return hashes;
}

// window 10, chunk 12: a sequence holds at most (10 + 16 - 2) / 4 + 2 sliding pages at a time.
constexpr Shape kShape{4, 10, 24, 40, 4, 12, 24};

TEST(Scheduler, ComputesAPromptInChunksAndThenTokens) {
  World world(kShape);
  world.add(counting(30), 3);
  EXPECT_EQ(world.step(), 12);
  EXPECT_EQ(world.step(), 12);
  EXPECT_EQ(world.step(), 6);
  EXPECT_EQ(world.step(), 1);
  EXPECT_EQ(world.step(), 1);
  EXPECT_EQ(world.scheduler.running(), 0);
  EXPECT_EQ(world.pages.used_pages(kFull), 0);
}

TEST(Scheduler, ASequenceWhoseOutputIsLateSitsOut) {
  World world(kShape);
  Sequence* late = world.add(counting(5), 10);
  world.add(counting(5, 500), 10);
  EXPECT_EQ(world.step(), 10);
  late->jobs = late->jobs_max;
  EXPECT_EQ(world.step(), 1);
  late->jobs = 0;
  EXPECT_EQ(world.step(), 2);
}

TEST(Scheduler, MixesTokensAndPromptsInOneStep) {
  World world(kShape);
  world.add(counting(5), 10);
  world.step();
  world.add(counting(30, 500), 3);
  EXPECT_EQ(world.step(), 1 + 12);
}

TEST(Scheduler, AChunkGrowsToHoldAWholeImageAndNeverSplitsOne) {
  World world(kShape);
  world.add(counting(40), 1, {{5, 21}, {23, 33}});
  EXPECT_EQ(world.step(), 21);  // 12 would end inside the first image
  EXPECT_EQ(world.step(), 12);  // 21 .. 33
  EXPECT_EQ(world.step(), 7);
}

TEST(Scheduler, ALargeImageIsEncodedOverStepsInWhichOthersGoOn) {
  World world(kShape);
  world.add(counting(5), 20);
  world.step();
  world.tower_rows = 30;
  world.add(counting(14, 500), 1, {{4, 12}});
  EXPECT_EQ(world.step(), 1 + 4);  // what comes before the image, and the rest of the chunk for its encoding
  EXPECT_EQ(world.parts, 8);
  EXPECT_EQ(world.step(), 1);
  EXPECT_EQ(world.parts, 20);
  EXPECT_EQ(world.step(), 1 + 8);  // 10 parts were left, and the chunk grows to hold the image
  EXPECT_EQ(world.parts, 30);
}

TEST(Scheduler, OthersOvertakeAnImageInTheTower) {
  World world(kShape);
  world.tower_rows = 100;
  world.add(counting(14, 500), 1, {{4, 12}});
  world.step();
  world.tower_rows = 6;
  world.add(counting(12, 900), 1, {{8, 11}})->priority = 1;  // its image waits for the tower, its text does not
  EXPECT_EQ(world.step(), 8);
  EXPECT_EQ(world.parts, 8 + 4);
  world.add(counting(3, 300), 1);  // half of the chunk is for short prompts
  EXPECT_EQ(world.step(), 3);
  EXPECT_EQ(world.parts, 8 + 4 + 9);
  world.drain();
  EXPECT_EQ(world.done.size(), 3u);
  EXPECT_EQ(world.parts, 106);
}

TEST(Scheduler, AnImageWhoseSequenceGoesLeavesTheTowerToTheNext) {
  World world(kShape);
  world.tower_rows = 100;
  Sequence* first = world.add(counting(14, 500), 1, {{4, 12}});
  world.add(counting(14, 900), 1, {{4, 12}});
  world.step();
  world.scheduler.remove(first);
  world.drain();
  EXPECT_EQ(world.parts, 8 + 100);
}

// Its embeddings turn out to be known when it is begun: what is left of its work is dropped.
TEST(Scheduler, AnImageThatIsKnownAfterAllHoldsUpNobody) {
  World world(kShape);
  world.tower_rows = 100;
  Sequence* first = world.add(counting(14, 500), 50, {{4, 12}});
  world.add(counting(14, 900), 1, {{4, 12}});
  world.step();
  PromptImage& image = first->images[0];
  image.tower_left = 0;
  world.encoded[&image] = image.tower_rows;
  for (int i = 0; i < 12; ++i) world.step();
  EXPECT_EQ(world.done.size(), 1u);
}

TEST(Scheduler, ASecondTurnComputesOnlyNewTokens) {
  World world(kShape);
  auto hashes = counting(31);
  world.add(hashes, 8);
  world.drain();
  const auto first = world.done.at(1)->hashes;
  auto next = first;
  for (const TokenHash hash : counting(6, 900)) next.push_back(hash);
  const Sequence* second = world.add(next, 1);
  int rows = 0;
  while (world.scheduler.running() + world.scheduler.waiting() > 0) rows += world.step();
  // The last token of the first answer was never computed.
  EXPECT_EQ(rows, 6 + 1);
  (void)second;
}

TEST(Scheduler, ASecondTurnThatDivergesBeforeTheAnswerRereadsOnlyTheAnswer) {
  World world(kShape);
  world.add(counting(31), 40);  // an answer several windows long
  world.drain();
  auto next = counting(29);  // the prompt but for its last two tokens
  for (const TokenHash hash : counting(6, 900)) next.push_back(hash);
  world.add(next, 1);
  EXPECT_EQ(world.step(), 6);
}

TEST(Scheduler, ReuseEndsBeforeAnImageThatDiffersAndNeverInsideOne) {
  World world(kShape);
  world.add(counting(30), 2, {{7, 19}});
  world.drain();
  auto next = counting(30);
  for (int i = 15; i < 30; ++i) next[i] += 1000;  // the image's hash differs halfway: cannot happen, but must be safe
  world.add(next, 1, {{7, 19}});
  int rows = 0;
  while (world.scheduler.running() + world.scheduler.waiting() > 0) rows += world.step();
  EXPECT_EQ(rows, 30 - 7);
}

TEST(Scheduler, PreemptsTheLastInsteadOfFailing) {
  Shape shape = kShape;
  shape.pages_full = 14;  // 56 tokens: not enough for three sequences of 30
  World world(shape);
  for (int i = 0; i < 3; ++i) world.add(counting(10, 100 * i), 25);
  world.drain();
  EXPECT_GT(world.scheduler.preemptions(), 0u);
  EXPECT_EQ(world.done.size(), 3u);
  for (const auto& [id, sequence] : world.done) EXPECT_EQ(sequence->hashes.size(), 35u);
}

TEST(Scheduler, ChoicesComputeThePromptOnce) {
  for (const bool keep : {true, false}) {
    World world(kShape, keep);
    for (int i = 0; i < 3; ++i) world.add(counting(30), 5)->group = 1;
    for (const int rows : {12, 12, 6}) EXPECT_EQ(world.step(), rows);
    EXPECT_EQ(world.step(), 3);  // a token of the first, the prompt's last row of the others
    world.drain();
    EXPECT_EQ(world.pages.used_pages(kFull), 0);
    EXPECT_EQ(world.pages.used_pages(kSliding), 0);
  }
}

TEST(Scheduler, WhereTheFirstChoiceEndsEarlyTheNextGoesAhead) {
  World world(kShape, false);
  Sequence* first = world.add(counting(30), 5);
  first->group = 1;
  for (int i = 0; i < 2; ++i) world.add(counting(30), 5)->group = 1;
  EXPECT_EQ(world.step(), 12);
  EXPECT_EQ(world.scheduler.waiting(), 2);
  world.scheduler.remove(first);
  for (const int rows : {12, 12, 6}) EXPECT_EQ(world.step(), rows);
  EXPECT_EQ(world.step(), 2);
  world.drain();
}

constexpr Shape kEightPlaces{4, 10, 80, 100, 8, 12, 24};

TEST(Scheduler, ARequestOfManyChoicesLeavesPlacesToOthers) {
  World world(kEightPlaces);
  for (int i = 0; i < 12; ++i) world.add(counting(5), 20)->group = 1;
  for (int i = 0; i < 4; ++i) world.step();
  EXPECT_EQ(world.scheduler.running(), 6);
  world.add(counting(4, 200), 3);  // though six choices came before it
  world.step();
  EXPECT_EQ(world.scheduler.running(), 7);
  world.drain();
}

TEST(Scheduler, AShortPromptDoesNotWaitForLongOnes) {
  World world(kEightPlaces);
  for (int i = 0; i < 3; ++i) world.add(counting(60, 100 * i), 2);
  world.step();
  const Sequence* brief = world.add(counting(3, 500), 2);
  EXPECT_EQ(world.step(), 12);
  EXPECT_EQ(brief->computed, 3);  // the first long prompt had the other nine rows
  world.drain();
}

TEST(Scheduler, KeysGetPlacesInTurns) {
  World world(kEightPlaces);
  world.salt = 1;
  for (int i = 0; i < 12; ++i) world.add(counting(5), 20);
  world.step();
  EXPECT_EQ(world.scheduler.running(), 8);  // it is the only key that was ever seen
  world.salt = 2;
  const Sequence* other = world.add(counting(4, 200), 3);
  const std::unique_ptr<Sequence> ended = world.scheduler.remove(world.scheduler.all().front());
  world.step();
  EXPECT_EQ(world.scheduler.running(), 8);
  EXPECT_TRUE(std::ranges::any_of(world.scheduler.runs(), [&](const auto& one) { return one.get() == other; }));
  world.drain();
}

// Where several keys are known from the start, the first one seen does not get every place either.
TEST(Scheduler, TheFirstOfSeveralKeysLeavesPlaces) {
  Shape shape = kEightPlaces;
  shape.several_salts = true;
  World world(shape);
  world.salt = 1;
  for (int i = 0; i < 12; ++i) world.add(counting(5), 20);
  world.step();
  EXPECT_EQ(world.scheduler.running(), 6);
  world.salt = 2;
  const Sequence* other = world.add(counting(4, 200), 3);
  world.step();
  EXPECT_TRUE(std::ranges::any_of(world.scheduler.runs(), [&](const auto& one) { return one.get() == other; }));
  world.drain();
}

TEST(Scheduler, PriorityGoesFirst) {
  Shape shape = kShape;
  shape.max_seqs = 1;
  World world(shape);
  world.add(counting(5), 5);
  world.step();
  world.add(counting(5, 300), 5);
  world.add(counting(5, 400), 5)->priority = 0;
  Sequence* urgent = world.add(counting(5, 500), 5);
  auto owned = world.scheduler.remove(urgent);
  owned->priority = 3;
  world.scheduler.add(std::move(owned));
  std::vector<uint64_t> order;
  while (world.scheduler.running() + world.scheduler.waiting() > 0) {
    const size_t before = world.done.size();
    const auto had = [&] {
      std::vector<uint64_t> ids;
      for (const auto& [id, sequence] : world.done) ids.push_back(id);
      return ids;
    };
    const auto old = had();
    world.step();
    if (world.done.size() == before) continue;
    for (const uint64_t id : had()) {
      if (std::ranges::find(old, id) == old.end()) order.push_back(id);
    }
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 4, 2, 3}));
}

// Thousands of interleavings: prompts that share beginnings, images, forks, second turns, cancels, little memory.
class Interleavings {
 public:
  explicit Interleavings(uint32_t seed, bool drafts = false)
      : random_(seed), shape_(random_shape(drafts)), world_(shape_, pick(0, 4) > 0) {}

  const World& world() const { return world_; }

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      if (pick(0, 2) == 0 && world_.scheduler.waiting() < 8) add_request();
      if (pick(0, 9) == 0) cancel_one();
      const size_t before = world_.done.size();
      world_.step();
      if (::testing::Test::HasFailure()) return;
      if (world_.done.size() > before && history_.size() < 40) remember(*world_.done.rbegin()->second);
    }
    world_.drain();
    EXPECT_EQ(world_.pages.used_pages(kFull), 0);
    EXPECT_EQ(world_.pages.used_pages(kSliding), 0);
    world_.pages.clear();
    EXPECT_EQ(world_.pages.free_pages(kFull), shape_.pages_full);
    EXPECT_EQ(world_.pages.free_pages(kSliding), shape_.pages_sliding);
  }

 private:
  static constexpr int kImageMax = 9, kLengthMax = 60;
  using Images = std::vector<std::pair<int, int>>;

  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }

  Shape random_shape(bool drafts) {
    Shape shape;
    shape.page = pick(1, 6);
    shape.window = pick(2, 14);
    shape.max_seqs = pick(1, 6);
    shape.chunk = pick(1, 20);
    shape.rows_max = std::max(shape.chunk, kImageMax) + shape.max_seqs;
    if (drafts) shape.drafts_max = pick(1, 5 * shape.max_seqs), shape.rows_max += shape.drafts_max;
    const int live = shape.ring();
    shape.pages_sliding = live + 2 + pick(0, 3 * live);
    shape.pages_full = (kLengthMax + shape.page - 1) / shape.page + 2 + pick(0, 60 / shape.page);
    return shape;
  }

  // A prompt that begins as an earlier one did, cut where no image is.
  void add_request() {
    const size_t base = static_cast<size_t>(pick(0, static_cast<int>(history_.size()) - 1));
    std::vector<TokenHash> hashes = history_[base];
    Images images = history_images_[base];
    const int cut = pick(0, static_cast<int>(hashes.size()));
    std::erase_if(images, [&](const auto& image) { return image.second > cut; });
    int size = cut;
    for (const auto& image : history_images_[base]) {
      if (image.first < cut && cut < image.second) size = image.first;
    }
    hashes.resize(static_cast<size_t>(size));
    if (pick(0, 1) && size + 12 < kLengthMax - 8) add_image(hashes, images);
    for (int j = pick(1, 12); j > 0 && static_cast<int>(hashes.size()) < kLengthMax - 8; --j) {
      hashes.push_back(static_cast<TokenHash>(pick(0, 2)));
    }
    if (hashes.empty()) hashes.push_back(1);
    const int answer = pick(1, std::min(20, kLengthMax - static_cast<int>(hashes.size())));
    const int choices = pick(0, 3) == 0 ? pick(2, 4) : 1;
    const uint64_t group = choices > 1 ? world_.last_id + 1 : 0;
    world_.tower_rows = pick(0, 2) * pick(0, 30);
    for (int choice = 0; choice < choices; ++choice) world_.add(hashes, answer, images)->group = group;
  }

  void add_image(std::vector<TokenHash>& hashes, Images& images) {
    const int begin = static_cast<int>(hashes.size()), count = pick(1, kImageMax);
    const TokenHash image = (uint64_t{1} << 63) + 1000 * static_cast<TokenHash>(pick(0, 2));
    for (int j = 0; j < count; ++j) hashes.push_back(image + static_cast<TokenHash>(100 * count + j));
    images.push_back({begin, begin + count});
  }

  void cancel_one() {
    const auto all = world_.scheduler.all();
    if (all.empty()) return;
    const auto gone = world_.scheduler.remove(all[static_cast<size_t>(pick(0, static_cast<int>(all.size()) - 1))]);
    world_.scheduler.check();
  }

  void remember(const Sequence& last) {
    history_.push_back(last.hashes);
    history_images_.emplace_back();
    for (const PromptImage& image : last.images) history_images_.back().push_back({image.begin, image.end});
  }

  std::mt19937 random_;
  Shape shape_;
  World world_;
  std::vector<std::vector<TokenHash>> history_ = {{}};
  std::vector<Images> history_images_ = {{}};
};

TEST(Scheduler, NoRowEverSeesAnotherSequencesKeys) {
  for (uint32_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Interleavings(seed).run(120);
    if (HasFailure()) return;
  }
}

// The same where steps verify drafts, some of which are rejected: what these have written is never read.
TEST(Scheduler, NoRowEverSeesARejectedDraft) {
  int verified = 0, windows_checked = 0;
  for (uint32_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Interleavings interleavings(seed, true);
    interleavings.run(120);
    if (HasFailure()) return;
    verified += interleavings.world().verified;
    windows_checked += interleavings.world().windows_checked;
  }
  EXPECT_GT(verified, 10'000);
  EXPECT_GT(windows_checked, 10'000);
}

TEST(Scheduler, NobodyIsPreemptedForDrafts) {
  Shape shape = kShape;
  shape.drafts_max = 8, shape.rows_max += 8;
  shape.pages_sliding = shape.pages_full = 16;
  World world(shape);
  for (int i = 0; i < 4; ++i) world.add(counting(6, 100 * static_cast<TokenHash>(i + 1)), 10);  // 4 pages each, at most
  world.drain();
  EXPECT_EQ(world.scheduler.preemptions(), 0u);
  EXPECT_GT(world.verified, 0);
}

}  // namespace
}  // namespace gemma4
