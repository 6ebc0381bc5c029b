#include "engine/open.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <sstream>

#include "backend/forwarding_backend.h"
#include "engine/engine_testing.h"
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
    auto config = nlohmann::json::parse(read_file(path_ / "config.json"));
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
