#include "engine/open.h"

#include <gtest/gtest.h>

#include "backend/forwarding_backend.h"
#include "engine/engine_testing.h"

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

}  // namespace
}  // namespace gemma4
