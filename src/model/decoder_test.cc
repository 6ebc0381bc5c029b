// A model whose layers are spread over several devices against the same model on one. The devices are host backends:
// what a stage computes is the backend's business, and what goes from stage to stage is the Decoder's.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>

#include "backend/forwarding_backend.h"
#include "base/models_testing.h"
#include "checkpoint/program_file.h"
#include "model/cache_plan.h"
#include "model/difference_testing.h"

namespace gemma4 {
namespace {

// A device with so much memory and no more, which remembers the keys of its graphs.
class Card : public ForwardingBackend {
 public:
  explicit Card(const std::string& backend, int64_t bytes = int64_t{1} << 50, const char* name = nullptr)
      : Card(make_backend(backend, 1), bytes, name) {}
  const char* name() const override { return name_ ? name_ : ForwardingBackend::name(); }
  MemoryLeft memory_left() const override { return {bytes_ - memory_used(), false}; }
  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    const Tensor t = ForwardingBackend::alloc(type, shape);
    if (memory_used() > bytes_) ForwardingBackend::release(t), throw OutOfMemory("the card is full");
    return t;
  }
  KvCache kv_alloc(const KvCacheConfig& config) override {
    const KvCache kv = ForwardingBackend::kv_alloc(config);
    if (memory_used() > bytes_) ForwardingBackend::kv_release(kv), throw OutOfMemory("the card is full");
    return kv;
  }
  Matrix upload(std::span<const Matrix> matrices) override {
    const Matrix m = ForwardingBackend::upload(matrices);
    if (memory_used() > bytes_) throw OutOfMemory("the card is full");
    most_used = std::max(most_used, memory_used());
    return m;
  }
  void replay(uint64_t key, const std::function<void()>& issue) override {
    keys.push_back(key);
    ForwardingBackend::replay(key, issue);
  }

  std::vector<uint64_t> keys;
  int64_t most_used = 0;

 private:
  Card(std::unique_ptr<Backend> inner, int64_t bytes, const char* name)
      : ForwardingBackend(*inner), owned_(std::move(inner)), bytes_(bytes), name_(name) {}
  std::unique_ptr<Backend> owned_;
  const int64_t bytes_;
  const char* name_;
};

Ranks series_of(const std::vector<std::string>& names) {
  std::vector<std::unique_ptr<Backend>> devices;
  for (const std::string& name : names) devices.push_back(make_backend(name, 1));
  return devices.size() == 1 ? Ranks(std::move(devices[0])) : Ranks::in_series(std::move(devices));
}

class SpreadModel {
 public:
  SpreadModel(const std::string& path, const Ranks& ranks, std::vector<int> layers, bool vision = false,
              const PlanCaches& plan = nullptr)
      : checkpoint(open_checkpoint(path)), config(parse_config(checkpoint.config)) {
    ModelOptions options = options_for(config, kTokens, kChunk, 2);
    options.logits_max = kChunk, options.vision = vision;
    options.device_layers = std::move(layers);
    model = std::make_unique<Model>(checkpoint, config, ranks, options, plan);
    options = model->options();
    for (const AttentionKind kind : {kSliding, kFull}) {
      for (int seq = 0; seq < 2; ++seq) {
        std::vector<int32_t> pages(static_cast<size_t>(options.pages_per_seq[kind]));
        std::iota(pages.rbegin(), pages.rend(), seq * options.pages_per_seq[kind]);  // a number is not its place
        model->set_pages(kind, seq, pages);
      }
    }
  }

  // Logits of all tokens of sequence `seq` from `begin` on, in chunks of `chunk`; of the last one only, if so asked.
  std::vector<float> logits(int begin, int end, int chunk, int seq = 0, bool last_only = false) {
    std::vector<float> all;
    for (; begin < end; begin += chunk) {
      Batch batch;
      for (int i = begin; i < std::min(begin + chunk, end); ++i) {
        append_row(batch, config, 100 + (i * 7919 + i * i * 31) % (config.vocab - 100), seq, i, -1);
        if (!last_only || i + 1 == end) batch.logit_rows.push_back(i - begin);
      }
      model->forward(batch);
      const size_t at = all.size(), wanted = batch.logit_rows.size();
      all.resize(at + wanted * static_cast<size_t>(config.vocab));
      if (wanted > 0) model->read_logits(all.data() + at);
    }
    return all;
  }

  static constexpr int kTokens = 70, kChunk = 32;  // past the tiny model's window of 24
  Checkpoint checkpoint;
  Config config;
  std::unique_ptr<Model> model;
};

// As model_test.cc between backends: float32 sums in another order, through all layers.
constexpr double kOtherOrder = 1e-4;

TEST(Decoder, EverySplitEqualsOneDevice) {
  for (const std::string& path : {kTiny, kDemo}) {
    SpreadModel one(path, series_of({"cpu"}), {}), ref(path, series_of({"ref"}), {});
    const int tokens = path == kTiny ? SpreadModel::kTokens : 40;
    const std::vector<float> want = one.logits(0, tokens, 32), by_ref = ref.logits(0, tokens, 32);
    for (int first = 0; first <= one.config.layers; ++first) {
      SpreadModel same(path, series_of({"cpu", "cpu"}), {first}), mixed(path, series_of({"ref", "cpu"}), {first});
      EXPECT_EQ(same.logits(0, tokens, 32), want) << path << ", " << first << " layers";
      const std::vector<float> got = mixed.logits(0, tokens, 32);
      EXPECT_LE(max_difference(by_ref, got), kOtherOrder) << path << ", " << first << " layers";
      EXPECT_EQ(got == by_ref, first == one.config.layers) << "which backend had the layers?";
    }
  }
}

TEST(Decoder, ThreeDevicesAndSingleRows) {
  SpreadModel one(kTiny, series_of({"cpu"}), {});
  const std::vector<float> want = one.logits(0, 40, 1), last = one.logits(40, 60, 7, 0, true);
  for (const std::vector<int>& layers : {std::vector{2, 3}, {0, 4}, {1, 0}, {100, 100}}) {
    SpreadModel three(kTiny, series_of({"cpu", "cpu", "cpu"}), layers);
    EXPECT_EQ(three.logits(0, 40, 1), want) << layers[0];
    // Chunks of a prompt that want no logits do not come back to the first device.
    EXPECT_EQ(three.logits(40, 60, 7, 0, true), last) << layers[0];
  }
}

// The twin that must fail: the layers are all there, and a stage gets the rows of the last pass.
TEST(Decoder, AStageThatMissesItsRowsComputesOtherLogits) {
  struct Deaf final : Card {
    Deaf() : Card("cpu") {}
    void write(Tensor dst, const void* src) override {
      if (dst.dtype != DType::kF32 || dst.rows() < 8) Card::write(dst, src);
    }
  };
  SpreadModel one(kTiny, series_of({"cpu"}), {});
  std::vector<std::unique_ptr<Backend>> devices;
  devices.push_back(make_backend("cpu", 1));
  devices.push_back(std::make_unique<Deaf>());
  SpreadModel spread(kTiny, Ranks::in_series(std::move(devices)), {3});
  EXPECT_GT(max_difference(one.logits(0, 20, 20), spread.logits(0, 20, 20)), 1000 * kOtherOrder);
}

TEST(Decoder, PagesAreCopiedInEveryStage) {
  const auto run = [](SpreadModel& spread) {
    spread.logits(0, 60, 32);
    const ModelOptions& options = spread.model->options();
    for (const AttentionKind kind : {kSliding, kFull}) {  // sequence 1 goes on from what sequence 0 has
      for (int i = 0; i < options.pages_per_seq[kind]; ++i) {
        spread.model->copy_page(kind, i, i + options.pages_per_seq[kind]);
      }
    }
    return spread.logits(60, SpreadModel::kTokens, 10, 1);
  };
  SpreadModel one(kTiny, series_of({"cpu"}), {});
  const std::vector<float> want = run(one);
  EXPECT_EQ(want, one.logits(60, SpreadModel::kTokens, 10, 0));
  for (const int first : {1, 3, 6}) {
    SpreadModel spread(kTiny, series_of({"cpu", "cpu"}), {first});
    EXPECT_EQ(run(spread), want) << first;
  }
}

TEST(Decoder, TapsSeeWhatOneDeviceShows) {
  using Seen = std::vector<std::pair<std::string, std::vector<float>>>;
  const auto seen_by = [](SpreadModel& spread) {
    Seen seen;
    spread.model->tap = [&](Backend& backend, const std::string& name, int layer, const Tensor& x) {
      seen.emplace_back(name + std::to_string(layer), std::vector<float>(static_cast<size_t>(x.size())));
      backend.read(seen.back().second.data(), x);
    };
    spread.logits(0, 20, 20);
    return seen;
  };
  SpreadModel one(kTiny, series_of({"cpu"}), {}), spread(kTiny, series_of({"cpu", "cpu"}), {4});
  const Seen want = seen_by(one);
  EXPECT_EQ(want.size(), static_cast<size_t>(one.config.layers) + 2);
  EXPECT_EQ(seen_by(spread), want);
}

// A graph holds one stage, with its own buffers: no other stage may have its key.
TEST(Decoder, StagesOfOneDeviceHaveTheirOwnGraphs) {
  std::vector<std::unique_ptr<Backend>> devices;
  for (int i = 0; i < 2; ++i) devices.push_back(std::make_unique<Card>("cpu"));
  const auto& first = static_cast<Card&>(*devices[0]);
  const auto& second = static_cast<Card&>(*devices[1]);
  SpreadModel spread(kTiny, Ranks::in_series(std::move(devices)), {4});
  spread.logits(0, 3, 1);
  ASSERT_EQ(first.keys.size(), 3u);
  ASSERT_EQ(second.keys.size(), 3u);
  EXPECT_EQ(std::set(first.keys.begin(), first.keys.end()).size(), 1u);
  EXPECT_NE(first.keys[0], second.keys[0]);
}

TEST(Decoder, PartsAreTimed) {
  SpreadModel spread(kTiny, series_of({"cpu", "cpu"}), {4});
  const std::vector<float> before = spread.logits(0, 5, 1);
  Batch batch;
  append_row(batch, spread.config, 7, 0, 5, -1);
  batch.logit_rows = {0}, batch.sampling.resize(1);
  std::vector<std::string> names;
  for (const Model::PartTime& part : spread.model->time_parts(batch, 3)) {
    EXPECT_GT(part.seconds, 0) << part.what;
    names.push_back(part.what);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"layers 0 to 3 on cpu", "layers 4 to 6 on cpu", "the head on cpu",
                                             "copies between them"}));
  EXPECT_EQ(spread.logits(0, 5, 1), before);
}

// As many as fit.

// The caches of one sequence, whatever the memory.
PlanCaches plan_of(const Config& config) {
  return [&config](ModelOptions& options, const CacheMemory& memory) {
    CacheWish wish;
    wish.max_seq_len = SpreadModel::kTokens;
    plan_caches(wish, config, memory, options);
  };
}

struct Spread {
  std::string error, placement;
  int64_t used = 0;  // on the card
  std::vector<float> logits, image;
};

std::vector<float> embedded(SpreadModel& spread) {
  std::vector<float> pixels(static_cast<size_t>(6 * 3 * spread.config.vision.patch_dim()));
  std::mt19937 random(3);
  for (float& v : pixels) v = std::uniform_real_distribution<float>()(random);
  std::vector<int32_t> xy;
  for (int i = 0; i < 18; ++i) xy.insert(xy.end(), {i % 6, i / 6});
  const Model::ImageEmbeddings made = spread.model->encode({pixels.data(), xy.data(), 18});
  std::vector<float> values(static_cast<size_t>(made.rows.size()));
  spread.model->backend().read(values.data(), made.rows);
  return values;
}

// The demo on a card of `bytes` beside a cpu.
Spread spread_over(int64_t bytes, int layers, const Config& config) {
  Spread result;
  std::vector<std::unique_ptr<Backend>> devices;
  devices.push_back(std::make_unique<Card>("cpu", bytes, "cuda"));
  devices.push_back(make_backend("cpu", 1));
  const Card& card = static_cast<Card&>(*devices[0]);
  try {
    SpreadModel spread(kDemo, Ranks::in_series(std::move(devices)), {layers}, true, plan_of(config));
    result.used = card.memory_used();
    result.placement = spread.model->placement();
    result.logits = spread.logits(0, 20, 20);
    result.image = embedded(spread);
  } catch (const Error& error) {
    result.error = error.what();
  }
  return result;
}

TEST(Decoder, AsManyLayersAsFitNeverFails) {
  const Config config = parse_config(open_checkpoint(kDemo).config);
  const int64_t reserve = memory_reserve(0);
  const Spread whole = spread_over(int64_t{1} << 40, 1000, config);
  ASSERT_EQ(whole.error, "");
  std::set<std::string> placements;
  for (int64_t bytes = 0; bytes <= whole.used + (4 << 20); bytes += whole.used / 24) {
    const Spread fitted = spread_over(reserve + bytes, kAsManyAsFit, config);
    ASSERT_EQ(fitted.error, "") << bytes;
    EXPECT_LE(fitted.used, bytes) << "the reserve is for others";
    EXPECT_EQ(fitted.logits, whole.logits) << fitted.placement;
    EXPECT_EQ(fitted.image, whole.image) << fitted.placement;
    placements.insert(fitted.placement);
  }
  EXPECT_GT(placements.size(), static_cast<size_t>(config.layers) / 2);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Decoder, SaysWhatIsWhere) {
  const Spread spread = spread_over(int64_t{1} << 40, 4, parse_config(open_checkpoint(kDemo).config));
  EXPECT_TRUE(contains(spread.placement, "cuda (1 thread): layers 0 to 3 of ")) << spread.placement;
  EXPECT_TRUE(contains(spread.placement, ", the embedding and the head, the vision tower, 0.0")) << spread.placement;
  EXPECT_TRUE(contains(spread.placement, "; cpu (1 thread): layers 4 to ")) << spread.placement;
  EXPECT_TRUE(contains(spread.placement, " of key-value cache")) << spread.placement;
}

// A number of layers that the card just holds leaves the tower to the CPU; one that it cannot hold is refused.
TEST(Decoder, ALayerCountIsKeptOrRefused) {
  const Config config = parse_config(open_checkpoint(kDemo).config);
  const Spread whole = spread_over(int64_t{1} << 40, config.layers, config);
  int tower_away = 0, refused = 0;
  for (int64_t bytes = whole.used; bytes > 0; bytes -= whole.used / 24) {
    const Spread given = spread_over(memory_reserve(0) + bytes, config.layers, config);
    tower_away += contains(given.placement, "; cpu (1 thread): the vision tower");
    if (given.error.empty()) {
      EXPECT_EQ(given.image, whole.image);
    }
  }
  EXPECT_GT(tower_away, 0);
  for (int64_t bytes = whole.used / 2; bytes > 0; bytes /= 2) {
    const Spread given = spread_over(bytes, config.layers, config);
    ASSERT_EQ(given.error, "the card is full, or fewer --gpu-layers; auto takes as many as fit");
    ++refused;
  }
  EXPECT_GT(refused, 3);
}

TEST(Decoder, AModelThatDoesNotFitNamesTheWayOut) {
  Card card("cpu", 4 << 20, "cuda");
  try {
    SpreadModel model(kDemo, Ranks(card), {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "the card is full, or --gpu-layers auto, which leaves to the CPU the layers that do not fit");
  }
  Card host("cpu", 4 << 20);  // has no layers to leave to another
  try {
    SpreadModel model(kDemo, Ranks(host), {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the card is full");
  }
}

TEST(Decoder, AnExportedProgramIsForOneDevice) {
  Checkpoint checkpoint = open_checkpoint(kTiny);
  checkpoint.program = std::make_shared<ProgramFile>();
  const Config config = parse_config(checkpoint.config);
  ModelOptions options = options_for(config, 32, 32, 1);
  options.device_layers = {3};
  try {
    Model model(checkpoint, config, series_of({"cpu", "cpu"}), options);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), kTiny +
                                " is a program for one device, and its layers cannot be spread over several; run "
                                "the checkpoint it was made of");
  }
}

TEST(Placement, TheLastStageIsTheFirstDevices) {
  const auto stages = stages_of(std::vector{0, 4, 0, 3});
  ASSERT_EQ(stages.size(), 3u);
  EXPECT_EQ(stages[0].device, 1u);
  EXPECT_EQ(stages[0].end, 4);
  EXPECT_TRUE(stages[0].first && !stages[0].last);
  EXPECT_EQ(stages[1].device, 3u);
  EXPECT_EQ(stages[1].end, 7);
  EXPECT_TRUE(!stages[1].first && !stages[1].last);
  EXPECT_EQ(stages[2].device, 1u);
  EXPECT_EQ(stages[2].begin, stages[2].end);
  EXPECT_TRUE(!stages[2].first && stages[2].last);
  const auto one = stages_of(std::vector{0, 5});
  ASSERT_EQ(one.size(), 1u);
  EXPECT_TRUE(one[0].first && one[0].last);
}

TEST(Placement, DevicesShareBytesByTheirMemory) {
  const std::vector<int64_t> layers(60, 10);
  const auto share = [&](int64_t home, std::vector<int64_t> free) { return share_layers(layers, home, free); };
  EXPECT_EQ(share(0, {100, 100}), (std::vector{30, 30}));
  EXPECT_EQ(share(100, {100, 100}), (std::vector{25, 35}));  // 350 bytes on each
  EXPECT_EQ(share(0, {200, 100}), (std::vector{40, 20}));
  EXPECT_EQ(share(100, {50, 50, 100, 0}), (std::vector{8, 17, 35, 0}));
  EXPECT_EQ(share(1000, {1, 1}), (std::vector{1, 59}));  // the home has a layer
  EXPECT_EQ(share(0, {0, 0}), (std::vector{1, 59}));
  EXPECT_EQ(share(0, {7}), (std::vector{60}));
}

}  // namespace
}  // namespace gemma4
