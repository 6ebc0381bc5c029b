// Counterparts of ExecuTorch tests that no other test here covers; docs/parity_with_executorch.md has the whole table.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "backend/backend.h"
#include "base/file.h"
#include "base/models_testing.h"
#include "image/decode.h"
#include "image/patches.h"
#include "model/model.h"

namespace gemma4 {
namespace {

// Weights that ExecuTorch's quantizer wrote, with the other files of the checkpoint.
std::string quantised_tiny() {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / ("gemma4_parity_tiny_" + std::to_string(getpid()));
  fs::create_directories(folder);
  const auto copy = [&](const std::string& from, const char* name) {
    fs::copy_file(from + "/" + name, folder / name, fs::copy_options::overwrite_existing);
  };
  for (const char* name : {"config.json", "tokenizer.json"}) copy(kTiny, name);
  copy(SOURCE_DIR "/tests/golden/quantised/tiny_default", "model.safetensors");
  return folder.string();
}

struct Session {
  // `ring`: slots of the sliding layers; 0: as many as a chunk of rows_max needs.
  explicit Session(const std::string& path, int rows_max = 128, int ring = 0)
      : checkpoint(open_checkpoint(path)), backend(make_ref()) {
    const Config config = parse_config(checkpoint.config);
    ModelOptions options = options_for(config, 256, rows_max, 1);
    if (ring > 0) {
      options.page = 8;
      options.pages[kFull] = options.pages_per_seq[kFull] = 256 / options.page;
      options.pages[kSliding] = options.pages_per_seq[kSliding] = ring / options.page;
    }
    options.logits_max = rows_max;
    model = std::make_unique<Model>(checkpoint, config, *backend, options);
    for (const AttentionKind kind : {kSliding, kFull}) {
      std::vector<int32_t> pages(options.pages_per_seq[kind]);
      std::iota(pages.begin(), pages.end(), 0);
      model->set_pages(kind, 0, pages);
    }
  }

  Batch batch(const std::vector<int32_t>& ids) const {
    Batch batch;
    for (size_t i = 0; i < ids.size(); ++i) {
      append_row(batch, model->config(), ids[i], 0, static_cast<int32_t>(i), -1);
      batch.logit_rows.push_back(static_cast<int32_t>(i));
    }
    return batch;
  }

  std::vector<float> logits(const Batch& batch) {
    model->forward(batch);
    std::vector<float> out(batch.logit_rows.size() * model->config().vocab);
    model->read_logits(out.data());
    return out;
  }

  std::vector<float> features(const std::string& file) {
    const std::string bytes = read_file(file);
    const VisionConfig& vision = model->config().vision;
    const Patches patches =
        preprocess_image(decode_image(std::as_bytes(std::span(bytes))), 70, vision.patch, vision.pool);
    const Model::ImageEmbeddings soft =
        model->encode({patches.values.data(), patches.xy.data(), patches.grid_w * patches.grid_h});
    EXPECT_EQ(soft.rows.rows(), patches.soft_tokens);
    EXPECT_EQ(soft.rows.dtype, DType::kF32);
    std::vector<float> out(soft.rows.size());
    backend->read(out.data(), soft.rows);
    return out;
  }

  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * b[i], aa += double{a[i]} * a[i], bb += double{b[i]} * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

// test_decode_forward_equivalent_to_embed_then_forward: the decoder gives the same logits for rows given as embeddings
// and for rows given as ids.
TEST(ParityTest, EmbeddingsGivenAsRowsGiveTheSameLogitsAsTheirIds) {
  Session session(kTiny);
  const std::vector<int32_t> ids = {2, 40, 300, 77, 1200, 8, 511, 90};
  Tensor embeddings;
  session.model->tap = [&](Backend&, const std::string& name, int, const Tensor& x) {
    if (name != "embed" || embeddings) return;
    std::vector<std::byte> bytes(x.bytes());
    session.backend->read(bytes.data(), x);
    embeddings = session.backend->alloc(x.dtype, {x.rows(), x.row_size()});
    session.backend->write(embeddings, bytes.data());
  };
  const std::vector<float> by_id = session.logits(session.batch(ids));
  session.model->tap = nullptr;
  ASSERT_TRUE(embeddings);
  Batch batch = session.batch(std::vector<int32_t>(ids.size(), 0));  // other ids, all of whose rows are replaced
  batch.image_embeddings = {embeddings};
  for (size_t i = 0; i < ids.size(); ++i) batch.image_index.push_back(static_cast<int32_t>(i));
  EXPECT_EQ(session.logits(batch), by_id);
  batch.image_embeddings.clear();
  batch.image_index.clear();
  EXPECT_NE(session.logits(batch), by_id);
  session.backend->release(embeddings);
}

// test_vision_tower_random_init_forward_smoke, and the cosine of test_pe_int8_quantize_and_install_roundtrip.
// Quantising changes only the position table of the vision tower, so the features stay close to the source's.
TEST(ParityTest, APositionTableInInt8HardlyChangesTheFeatures) {
  Session source(kTiny), quantised(quantised_tiny());
  const std::string image = kTiny + "/images/00_200x120.png";
  const std::vector<float> a = source.features(image), b = quantised.features(image);
  for (const float value : a) ASSERT_TRUE(std::isfinite(value));
  EXPECT_GT(cosine(a, b), 0.999);
  EXPECT_NE(a, b);
}

// RingKVCache: a ring of 8 slots (window 4), as two pages of 4.
struct Ring {
  explicit Ring(const std::string& name = "ref") : backend(make_backend(name, 1)) {
    kv = backend->kv_alloc({8, 4, 1, 2, 0});
    kv.pages = backend->alloc(DType::kI32, {1, 2});
    const int32_t pages[] = {0, 1};
    backend->write(kv.pages, pages);
  }

  // Writes positions begin .. begin+count-1: key p, value p + 100.
  void write(int begin, int count) {
    std::vector<Row> rows;
    std::vector<float> keys, values;
    for (int p = begin; p < begin + count; ++p) {
      rows.push_back({0, p, 0, p});
      for (int i = 0; i < 2; ++i) keys.push_back(p), values.push_back(p + 100);
    }
    const Tensor k = backend->alloc(DType::kF32, {count, 1, 2}), v = backend->alloc(DType::kF32, {count, 1, 2});
    const Tensor device = backend->alloc(DType::kI32, {count, 4});
    backend->write(k, keys.data());
    backend->write(v, values.data());
    backend->write(device, rows.data());
    backend->kv_write(kv, k, v, {device, rows});
  }

  std::vector<float> slots(const Tensor& part) {
    std::vector<float> all(16), out;
    backend->read(all.data(), part);
    for (int slot = 0; slot < 8; ++slot) out.push_back(all[2 * slot]);
    return out;
  }

  std::unique_ptr<Backend> backend;
  KvCache kv;
};

TEST(ParityTest, RingSequentialWriteRead) {
  Ring ring;
  for (int p = 0; p < 8; ++p) ring.write(p, 1);
  EXPECT_EQ(ring.slots(ring.kv.k), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(ring.slots(ring.kv.v), (std::vector<float>{100, 101, 102, 103, 104, 105, 106, 107}));
}

TEST(ParityTest, RingWrapsAroundAndOverwritesTheOldest) {
  Ring ring;
  for (int p = 0; p < 9; ++p) ring.write(p, 1);
  EXPECT_EQ(ring.slots(ring.kv.k), (std::vector<float>{8, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(ParityTest, RingMultiTokenPrefill) {
  Ring ring;
  ring.write(0, 5);
  EXPECT_EQ(ring.slots(ring.kv.k), (std::vector<float>{0, 1, 2, 3, 4, 0, 0, 0}));
  ring.write(5, 6);
  EXPECT_EQ(ring.slots(ring.kv.k), (std::vector<float>{8, 9, 10, 3, 4, 5, 6, 7}));
}

// test_assert_on_oversized_prefill: nine positions do not fit the ring of eight slots.
TEST(ParityTest, AnOversizedChunkIsCaughtByTheRing) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const char* backend : {"ref", "cpu"}) {
    EXPECT_DEATH(Ring(backend).write(0, 9), "positions_written") << backend;
    EXPECT_DEATH(Ring(backend).write(5, 9), "positions_written") << backend;
    Ring(backend).write(5, 8);
  }
}

// The same through the model, which checks a pass once for all layers: a chunk longer than the rows of a pass, and a
// chunk whose keys would push out those of the window before it. (ModelOn.ChunkedPrefillEqualsWholeFarPastTheRing shows
// that a chunk of the largest size loses no key; in ExecuTorch it loses some.)
TEST(ParityTest, AnOversizedChunkIsCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Session session(kTiny, 8);
  const Batch batch = session.batch({1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_DEATH(session.model->forward(batch), "rows_max");

  Session ring(kTiny, 128, 32);  // a window of 24 and a chunk of 9 are 32 keys
  const auto chunk = [&](int32_t count) {
    Batch rows;
    for (int32_t pos = 100; pos < 100 + count; ++pos) append_row(rows, ring.model->config(), 7, 0, pos, -1);
    return rows;
  };
  ring.model->forward(chunk(9));
  EXPECT_DEATH(ring.model->forward(chunk(10)), "positions_held");
}

}  // namespace
}  // namespace gemma4
