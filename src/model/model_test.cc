// The whole decoder against itself and against outputs of ExecuTorch's model. Hugging Face's: tests/golden_test.cc.
#include "model/model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "base/file.h"
#include "base/mapped_file.h"
#include "base/models_testing.h"
#include "checkpoint/safetensors.h"
#include "model/difference_testing.h"

namespace gemma4 {
namespace {

const std::string kQuantised = SOURCE_DIR "/tests/golden/quantised/";

std::vector<int32_t> some_ids(int count, int vocab) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(100 + (i * 7919 + i * i * 31) % (vocab - 100));
  return ids;
}

struct Session {
  Session(const std::string& path, const std::string& backend_name, int max_seq_len, int rows_max, bool vision = false)
      : checkpoint(open_checkpoint(path)), backend(make_backend(backend_name, 2)) {
    const Config config = parse_config(checkpoint.config);
    ModelOptions options = options_for(config, max_seq_len, rows_max, 1);
    options.logits_max = rows_max;
    options.vision = vision;
    model = std::make_unique<Model>(checkpoint, config, *backend, options);
    for (AttentionKind kind : {kSliding, kFull}) {
      std::vector<int32_t> pages(static_cast<size_t>(options.pages_per_seq[kind]));
      std::iota(pages.rbegin(), pages.rend(), 0);  // backwards: a page's number is not its place
      model->set_pages(kind, 0, pages);
    }
  }

  // Logits of all of `ids`, computed `chunk` tokens at a time.
  std::vector<float> logits(const std::vector<int32_t>& ids, int chunk) {
    std::vector<float> all;
    for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(chunk)) {
      const size_t end = std::min(begin + static_cast<size_t>(chunk), ids.size());
      Batch batch;
      for (size_t i = begin; i < end; ++i) {
        append_row(batch, model->config(), ids[i], 0, static_cast<int32_t>(i), -1);
        batch.logit_rows.push_back(static_cast<int32_t>(i - begin));
      }
      model->forward(batch);
      const size_t at = all.size();
      all.resize(at + (end - begin) * static_cast<size_t>(model->config().vocab));
      model->read_logits(all.data() + at);
    }
    return all;
  }

  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

class ModelOn : public testing::TestWithParam<const char*> {};

// ExecuTorch loses keys of the window if a later chunk is long, because its ring is overwritten before it is read.
TEST_P(ModelOn, ChunkedPrefillEqualsWhole) {
  const Config config = parse_config(read_file(kTiny + "/config.json"));
  const int tokens = 4 * config.window + 3;
  const auto ids = some_ids(tokens, config.vocab);
  Session whole(kTiny, GetParam(), tokens, tokens);
  const auto want = whole.logits(ids, tokens);
  for (int chunk : {1, 7, 64}) {
    Session run(kTiny, GetParam(), tokens, chunk);  // a ring just long enough for this chunk
    EXPECT_LE(max_difference(want, run.logits(ids, chunk)), 1e-5) << "chunk " << chunk;
  }
}

TEST_P(ModelOn, ChunkedPrefillEqualsWholeFarPastTheRing) {
  const Config config = parse_config(read_file(kTiny + "/config.json"));
  const auto ids = some_ids(260, config.vocab);  // more tokens than the ring of any chunk below holds
  Session whole(kTiny, GetParam(), 260, 260);
  const auto want = whole.logits(ids, 260);
  for (int chunk : {1, 64}) {
    Session run(kTiny, GetParam(), 260, chunk);
    ASSERT_LT(run.model->options().pages_per_seq[kSliding], run.model->options().pages_per_seq[kFull]);
    EXPECT_LE(max_difference(want, run.logits(ids, chunk)), 1e-5) << "chunk " << chunk;
  }
}

// ExecuTorch's eager text model on the dequantised weights of its own checkpoint. It scales embeddings by
// sqrt(hidden) unrounded, which is 16 exactly for the demo; it is causal, as this prompt is.
TEST_P(ModelOn, QuantisedTextEqualsTheOriginal) {
  const std::string folder = kQuantised + "demo_sensitive/";
  const auto file = MappedFile::open(folder + "seed_logits.safetensors");
  const Safetensors seed = parse_safetensors(file->bytes(), "seed_logits");
  const auto array = [&](const std::string& name) {
    for (const auto& e : seed.entries) {
      if (e.name == name) return seed.data.subspan(e.begin, e.end - e.begin);
    }
    throw Error("no " + name);
  };
  for (const std::string n : {"n5", "n21"}) {
    const auto id_bytes = array(n + ".ids"), logit_bytes = array(n + ".last_logits");
    std::vector<int32_t> ids(id_bytes.size() / 4);
    std::memcpy(ids.data(), id_bytes.data(), id_bytes.size());
    std::vector<float> want(logit_bytes.size() / 4);
    std::memcpy(want.data(), logit_bytes.data(), logit_bytes.size());
    const std::string assembled = testing::TempDir() + "/gemma4_sensitive_" + std::to_string(getpid());
    std::filesystem::create_directories(assembled);
    for (const char* name : {"config.json", "tokenizer.json"}) {
      std::filesystem::copy_file(std::string(SOURCE_DIR "/models/demo/") + name, assembled + "/" + name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    std::filesystem::copy_file(folder + "model.safetensors", assembled + "/model.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    Session run(assembled, GetParam(), 64, 64);
    auto got = run.logits(ids, 64);
    got.erase(got.begin(), got.end() - run.model->config().vocab);
    // cpu rounds x to 16 bits over 4-bit codes (docs/NUMERICS.md).
    EXPECT_LE(max_difference(want, got), GetParam() == std::string("cpu") ? 1e-3 : 2e-4) << n;
    std::filesystem::remove_all(assembled);
  }
}

TEST_P(ModelOn, SameSeedSameTokens) {
  Session run(kTiny, GetParam(), 64, 32);
  const auto draw = [&](uint64_t seed) {
    std::vector<int32_t> out;
    for (uint64_t step = 0; step < 8; ++step) {
      Batch batch;
      append_row(batch, run.model->config(), 500, 0, static_cast<int32_t>(step), -1);
      batch.logit_rows = {0};
      SamplingInput sampling;
      sampling.temperature = 3, sampling.seed = seed, sampling.step = step;
      batch.sampling = {sampling};
      out.push_back(run.model->forward(batch)[0]);
    }
    return out;
  };
  EXPECT_EQ(draw(99), draw(99));
  EXPECT_NE(draw(99), draw(100));
}

// A large image in parts: the embeddings are those of the whole, and another image may take its place.
TEST_P(ModelOn, EncodesAnImageInParts) {
  Session run(kTiny, GetParam(), 64, 300, true);
  const int patch = run.model->config().vision.patch_dim();
  const auto image = [&](int width, int height, uint32_t seed) {
    std::pair<std::vector<float>, std::vector<int32_t>> made;
    std::mt19937 random(seed);
    for (int i = 0; i < width * height * patch; ++i)
      made.first.push_back(std::uniform_real_distribution<float>()(random));
    for (int i = 0; i < width * height; ++i) made.second.insert(made.second.end(), {i % width, i / width});
    return made;
  };
  const auto large = image(30, 24, 1), small = image(6, 3, 2);
  const PatchView view{large.first.data(), large.second.data(), 30 * 24};
  const auto values = [&](const Model::ImageEmbeddings& made) {
    std::vector<float> read(static_cast<size_t>(made.rows.rows()) * run.model->config().hidden);
    if (made.rows.dtype == DType::kF32) {
      run.backend->read(read.data(), made.rows);
      return read;
    }
    const Tensor wide = run.backend->alloc(DType::kF32, {made.rows.rows(), run.model->config().hidden});
    run.backend->convert(wide, made.rows);
    run.backend->read(read.data(), wide);
    run.backend->release(wide);
    return read;
  };
  const auto whole = values(run.model->encode(view));
  EXPECT_GT(run.model->image_rows(720), 20 * run.model->image_rows(18));
  for (const int rows : {1, 100}) {
    run.model->begin_image(view);
    EXPECT_FALSE(run.model->encode_more(1));
    run.model->encode({small.first.data(), small.second.data(), 18});
    run.model->begin_image(view);
    int parts = 1;
    auto made = run.model->encode_more(rows);
    for (; !made; ++parts) made = run.model->encode_more(rows);
    EXPECT_GT(parts, rows == 1 ? 50 : run.model->image_rows(720) / 200) << rows;
    EXPECT_EQ(values(*made), whole) << rows;
  }
}

#if !defined(__SANITIZE_THREAD__)  // whose own memory grows with what is mapped
int64_t resident_bytes() {
  int64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// The engine's thread copies the patches of a large picture and computes; other threads took the memory for it before.
TEST(Model, PopulatesWhatAPictureWillTouch) {
  const Checkpoint checkpoint = open_checkpoint(kDemo);
  const auto backend = make_backend("cpu", 1);
  const Config config = parse_config(checkpoint.config);
  ModelOptions options = options_for(config, 64, 64, 1);
  options.vision = true;
  constexpr int kSide = 99, kPatches = kSide * kSide;
  const std::vector<float> values(static_cast<size_t>(kPatches) * config.vision.patch_dim(), 0.5f);
  std::vector<int32_t> xy;
  for (int i = 0; i < kPatches; ++i) xy.insert(xy.end(), {i % kSide, i / kSide});
  // Bytes that become resident while a picture begins, of those that its patches take.
  const auto touched = [&](bool populated) {
    Model model(checkpoint, config, *backend, options);
    const int64_t empty = resident_bytes();
    model.reserve_images(kPatches);
    EXPECT_LT(resident_bytes() - empty, 8 << 20);
    if (populated) model.populate(64, kPatches);
    const int64_t before = resident_bytes();
    EXPECT_GT(before - empty, populated ? 64 << 20 : -1);
    model.begin_image({values.data(), xy.data(), kPatches});
    EXPECT_FALSE(model.encode_more(1));
    return static_cast<double>(resident_bytes() - before) / static_cast<double>(values.size() * sizeof(float));
  };
  EXPECT_GT(touched(false), 0.9);
  EXPECT_LT(touched(true), 0.2);
}
#endif

INSTANTIATE_TEST_SUITE_P(Backends, ModelOn, testing::Values("ref", "cpu"));

TEST(Model, RefusesAPatchOutsideThePositionTable) {
  const Checkpoint checkpoint = open_checkpoint(kTiny);
  const auto backend = make_ref();
  const Config config = parse_config(checkpoint.config);
  Model model(checkpoint, config, *backend, options_for(config, 64, 64, 1));
  std::vector<float> values(9 * static_cast<size_t>(config.vision.patch_dim()), 0.5f);
  std::vector<int32_t> xy;
  for (int y = 0; y < 3; ++y) {
    for (int x = 0; x < 3; ++x) xy.insert(xy.end(), {x, y});
  }
  EXPECT_EQ(model.encode({values.data(), xy.data(), 9}).rows.rows(), 1);
  xy[0] = config.vision.positions;
  EXPECT_THROW(model.encode({values.data(), xy.data(), 9}), Error);
  xy[0] = -1;
  EXPECT_THROW(model.encode({values.data(), xy.data(), 9}), Error);
}

TEST(Rows, SeeWhatTheMaskAllows) {
  Config config;
  config.window = 4, config.image_blocks = true;
  Batch batch;
  append_row(batch, config, 0, 0, 10, -1);
  append_row(batch, config, 0, 0, 10, 15);
  EXPECT_EQ(batch.rows[kSliding][0].first, 7);
  EXPECT_EQ(batch.rows[kSliding][0].last, 10);
  EXPECT_EQ(batch.rows[kSliding][1].first, 7);
  EXPECT_EQ(batch.rows[kSliding][1].last, 15);  // the rest of its image
  EXPECT_EQ(batch.rows[kFull][1].first, 0);
  EXPECT_EQ(batch.rows[kFull][1].last, 10);  // full layers stay causal
}

}  // namespace
}  // namespace gemma4
