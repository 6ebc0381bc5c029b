#include "engine/open.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>
#include <sstream>

#include "backend/cpu/tiles/bf16_tiles.h"
#include "backend/forwarding_backend.h"
#include "base/json.h"
#include "engine/engine_testing.h"
#include "engine/watched_backend_testing.h"
#include "model/cache_plan.h"

namespace gemma4 {
namespace {

// Remembers the caches that a model asks for.
class CacheRecorder : public ForwardingBackend {
 public:
  CacheRecorder(std::unique_ptr<Backend> inner, std::vector<KvCacheConfig>& caches)
      : ForwardingBackend(*inner), owned_(std::move(inner)), caches_(caches) {}
  KvCache kv_alloc(const KvCacheConfig& config) override {
    caches_.push_back(config);
    return ForwardingBackend::kv_alloc(config);
  }

 private:
  std::unique_ptr<Backend> owned_;
  std::vector<KvCacheConfig>& caches_;
};

struct MemoryUse {
  int64_t used = 0;   // bytes, as the backend counts them
  int64_t pages = 0;  // of those: keys and values
  int64_t row = 0;    // of those: the logits of a row, and a sequence's row in the page tables
  int pages_of[kAttentionKinds] = {};
};

MemoryUse memory_of(const std::string& backend, EngineOptions options) {
  std::vector<KvCacheConfig> caches;
  std::unique_ptr<Backend> recorder = std::make_unique<CacheRecorder>(make_backend(backend, 1), caches);
  const OpenedModel opened = open_model(options, std::move(recorder));
  const ModelOptions& model = opened.model->options();
  MemoryUse memory;
  memory.used = opened.backends.memory_used();
  for (const KvCacheConfig& cache : caches) {  // keys and values, float32 on both backends
    memory.pages += cache.slots * cache.heads * cache.dim * 2 * int64_t{sizeof(float)};
  }
  // F32: the hidden state before and after the last norm, the logits. I32: which row it is, the sampled id, the tables.
  memory.row = 4 * (2 * int64_t{opened.model->config().hidden} + opened.model->config().vocab + 2);
  for (const AttentionKind kind : {kSliding, kFull}) {
    memory.row += 4 * int64_t{model.pages_per_seq[kind]};
    memory.pages_of[kind] = model.pages[kind];
  }
  return memory;
}

// A second session shares weights and activations with the first: it takes its pages and a row of results, no more.
TEST(OpenModel, ASecondSessionTakesTheMemoryOfItsPages) {
  for (const std::string backend : {"ref", "cpu"}) {
    EngineOptions one = tiny_options(), two = one;
    one.page = two.page = 32;  // whole panels of the cpu backend's layout
    one.max_seqs = 1, one.chunk = 65;
    two.max_seqs = 2, two.chunk = 64;  // rows of a pass: the chunk and one for each session
    one.vision = two.vision = false;
    const MemoryUse first = memory_of(backend, one), both = memory_of(backend, two);
    for (const AttentionKind kind : {kSliding, kFull}) EXPECT_GT(both.pages_of[kind], first.pages_of[kind]);
    EXPECT_EQ(both.used - first.used, both.pages - first.pages + first.row) << backend;
    EXPECT_GT(both.pages - first.pages, 10 * first.row);
  }
}

// A backend whose device has only so much memory.
class SmallDevice : public ForwardingBackend {
 public:
  SmallDevice(std::unique_ptr<Backend> inner, int64_t bytes)
      : ForwardingBackend(*inner), owned_(std::move(inner)), bytes_(bytes) {}
  MemoryLeft memory_left() const override { return {bytes_ - memory_used(), false}; }

 private:
  std::unique_ptr<Backend> owned_;
  const int64_t bytes_;
};

// The tiny model, made for contexts of a million tokens.
class LongTiny {
 public:
  LongTiny() : path_(std::filesystem::temp_directory_path() / ("long_tiny_" + std::to_string(getpid()))) {
    std::filesystem::copy(kTiny, path_, std::filesystem::copy_options::recursive);
    auto config = read_json<nlohmann::json>(read_file(path_ / "config.json"));
    config["text_config"]["max_position_embeddings"] = 1 << 20;
    write_file(path_ / "config.json", config.dump());
  }
  ~LongTiny() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// By default the caches take what the weights and activations leave, less a reserve; the context is what fits.
TEST(OpenModel, TheContextFollowsFromWhatTheWeightsLeave) {
  const LongTiny model;
  EngineOptions options = tiny_options();
  options.model = model.path();
  options.max_seq_len = 0;
  options.page = 32;
  int last = 4096;
  for (const int64_t mib : {60, 120, 240}) {
    const int64_t bytes = memory_reserve(0) + (mib << 20);
    std::unique_ptr<Backend> device = std::make_unique<SmallDevice>(make_backend("cpu", 1), bytes);
    const OpenedModel opened = open_model(options, std::move(device));
    const int length = opened.options.max_seq_len;
    EXPECT_EQ(length % 1024, 0);
    EXPECT_GT(length, last);
    last = length;
    EXPECT_LE(opened.backends.memory_used(), mib << 20);
    EXPECT_GT(opened.backends.memory_used(), mib << 19);
    EXPECT_GT(opened.model->cache_bytes(), 0);
    EXPECT_GT(opened.model->weights_bytes(), 0);
    EXPECT_LT(opened.model->cache_bytes() + opened.model->weights_bytes(), opened.backends.memory_used());
  }
  // Ranks that share this device's memory: the least counts, and each holds a part of every page.
  options.gpus = 2;
  const OpenedModel ranks = open_model(options, Ranks());
  EXPECT_EQ(ranks.options.max_seq_len, 1 << 20);
}

// A device of so many KiB besides what is left to others.
std::unique_ptr<Backend> small_device(int64_t kib) {
  return std::make_unique<SmallDevice>(make_backend("cpu", 1), memory_reserve(0) + (kib << 10));
}

int layers_on_the_first(const Model& model) {  // "cpu (1 thread): layers 0 to 3 of 7, ..."
  const std::string placement = model.placement();
  return placement.find(": layers 0 to ") == std::string::npos ? 0 : std::stoi(placement.substr(28)) + 1;
}

// As many layers as fit beside the least context; where all fit, what is left is a longer context's.
TEST(OpenModel, LayersOnADeviceFollowFromItsMemory) {
  const LongTiny model;
  EngineOptions options = tiny_options();
  options.model = model.path();
  options.max_seq_len = 0, options.page = 32, options.gpu_layers = "auto";
  int last = 0, longest = 0;
  std::set<int> seen;
  for (const int64_t kib : {1024, 3072, 4096, 4608, 5120, 5632, 6144, 8192, 65536}) {
    std::vector<std::unique_ptr<Backend>> devices;
    devices.push_back(small_device(kib));
    devices.push_back(make_backend("cpu", 1));
    const Backend& card = *devices[0];
    const OpenedModel opened = open_model(options, Ranks::in_series(std::move(devices)));
    EXPECT_LE(card.memory_used(), kib << 10);
    const int layers = card.memory_used() > 0 ? layers_on_the_first(*opened.model) : 0;
    EXPECT_GE(layers, last) << kib;
    EXPECT_GE(opened.options.max_seq_len, kLeastDefaultSeqLen);
    last = layers, longest = opened.options.max_seq_len;
    seen.insert(layers);
  }
  EXPECT_EQ(last, parse_config(read_file(model.path() / "config.json")).layers);
  EXPECT_GT(longest, 4 * kLeastDefaultSeqLen);
  EXPECT_GE(seen.size(), 3u);
}

// Every stage has the same number of pages, and the one with the least memory for its layers decides.
TEST(OpenModel, TheSmallestStageDecidesTheContext) {
  const LongTiny model;
  EngineOptions options = tiny_options();
  options.model = model.path();
  options.max_seq_len = 0, options.page = 32, options.gpu_layers = "3";
  const auto context = [&](int64_t first_kib, int64_t second_kib) {
    std::vector<std::unique_ptr<Backend>> devices;
    devices.push_back(small_device(first_kib));
    devices.push_back(small_device(second_kib));
    const Backend &first = *devices[0], &second = *devices[1];
    const OpenedModel opened = open_model(options, Ranks::in_series(std::move(devices)));
    EXPECT_LE(first.memory_used(), first_kib << 10);
    EXPECT_LE(second.memory_used(), second_kib << 10);
    EXPECT_GT(std::max(first.memory_used(), second.memory_used()), std::min(first_kib, second_kib) << 9);
    return opened.options.max_seq_len;
  };
  const int both = context(240 << 10, 240 << 10);
  EXPECT_LT(context(60 << 10, 240 << 10), both);
  EXPECT_LT(context(240 << 10, 60 << 10), both);
  EXPECT_GT(context(240 << 10, 60 << 10), kLeastDefaultSeqLen);
}

// A server computes a few rows while it opens its model: threads and buffers are there for the first request, which
// finds no pages taken and answers as without.
TEST(OpenModel, WarmingUpComputesRowsAndLeavesNoTrace) {
  std::vector<std::vector<int32_t>> answers;
  for (const bool warm : {false, true}) {
    EngineOptions options = tiny_options();
    options.warm_up = warm, options.page = 16;
    const auto watch = std::make_shared<Watch>();
    std::unique_ptr<Backend> watched = std::make_unique<WatchedBackend>(make_backend("cpu", 1), watch);
    Engine engine(options, Ranks(std::move(watched)));
    EXPECT_EQ(watch->samples, warm ? 4 : 0);
    EXPECT_EQ(watch->linears > 0, warm);
    EXPECT_EQ(engine.stats().steps, 0);
    answers.push_back(Ask(engine, raw_request("The quick brown fox", 12)).get().ids);
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0].size(), 12);
}

// bf16 on the CPU is asked for by name, reaches the CPU's part of a model, and passes through a watching backend.
TEST(OpenModel, PreciseIsFloat32) {
  const bool tiles = cpu::tile_engine() != nullptr;
  for (const bool precise : {true, false}) {
    EngineOptions options = tiny_options();
    options.precise = precise, options.threads = 1;
    EXPECT_EQ(make_backends(options)[0].rounds_to_bf16(), !precise && tiles);
    options.gpus = 2, options.split = "layers";
    const Ranks parts = make_backends(options);
    for (const Backend* part : parts.devices(0)) EXPECT_EQ(part->rounds_to_bf16(), !precise && tiles);
    ForwardingBackend watching(parts[0]);
    EXPECT_EQ(watching.rounds_to_bf16(), !precise && tiles);
  }
  EXPECT_TRUE(EngineOptions().precise);
}

// The pools are address space until they are used.
#if !defined(__SANITIZE_THREAD__)  // whose own memory grows with what is mapped
TEST(OpenModel, CachesAreNotTouchedBeforeTheyAreUsed) {
  const auto resident = [] {
    std::istringstream statm(read_file_or_pipe("/proc/self/statm"));
    int64_t size = 0, pages = 0;
    statm >> size >> pages;
    return pages * sysconf(_SC_PAGESIZE);
  };
  for (const std::string backend : {"cpu", "ref"}) {
    EngineOptions options = tiny_options();
    options.max_seq_len = 400, options.cache_tokens = 1 << 20;
    options.vision = false;
    const int64_t before = resident();
    const OpenedModel opened = open_model(options, make_backend(backend, 1));
    EXPECT_GT(opened.model->cache_bytes(), int64_t{256} << 20) << backend;
    EXPECT_LT(resident() - before, opened.model->cache_bytes() / 4) << backend;
  }
}
#endif

}  // namespace
}  // namespace gemma4
