#include "checkpoint/quantize_checkpoint.h"
#include "base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>

#include "base/bf16.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torchao.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

using namespace testing_files;

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

TEST(Sha256, KnownAnswer) {
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

RecipeModel model_of(const Checkpoint& checkpoint) {
  const json text = read_json<json>(checkpoint.config)["text_config"];
  RecipeModel model{text["num_hidden_layers"].get<int>(), {}};
  for (int i = 0; i < model.layers; ++i) {
    if (text["layer_types"][static_cast<size_t>(i)] == "full_attention") model.full.insert(i);
  }
  return model;
}

QuantizeReport run(const fs::path& source, const fs::path& output, const std::string& recipe,
                   HqqArithmetic hqq = HqqArithmetic::kF16, Overwrite overwrite = Overwrite::kRefuse) {
  const Checkpoint checkpoint = open_checkpoint(source);
  return quantize_checkpoint(checkpoint, load_recipe(recipe, model_of(checkpoint)), output, {hqq, 2, overwrite});
}

struct File {
  std::string bytes;
  Safetensors parsed;
  explicit File(const fs::path& path) : bytes(read_file(path)) {
    parsed = parse_safetensors(std::as_bytes(std::span(bytes)), path.string());
  }
  std::string_view data() const { return {reinterpret_cast<const char*>(parsed.data.data()), parsed.data.size()}; }
};

// The original quantiser's own output, byte for byte; sensitive_* came from its CUDA path.
TEST(QuantizeCheckpoint, EqualsTheOriginalByteForByte) {
  struct Case {
    fs::path source;
    const char *name, *recipe;
  };
  for (const Case& c : {Case{kTiny, "tiny_default", "default"}, Case{kTiny, "tiny_sensitive", "sensitive"},
                        Case{kDemo, "demo_sensitive", "sensitive"}}) {
    const Folder folder;
    run(c.source, folder.path / "out", c.recipe);
    const File ours(folder.path / "out/model.safetensors"), theirs(kQuantised / c.name / "model.safetensors");
    EXPECT_EQ(ours.parsed.metadata, theirs.parsed.metadata) << c.name;
    ASSERT_EQ(ours.parsed.entries.size(), theirs.parsed.entries.size());
    for (size_t i = 0; i < ours.parsed.entries.size(); ++i) {
      const auto &a = ours.parsed.entries[i], &b = theirs.parsed.entries[i];
      EXPECT_EQ(a.name, b.name);
      EXPECT_EQ(a.dtype, b.dtype) << a.name;
      EXPECT_EQ(a.shape, b.shape) << a.name;
      EXPECT_TRUE(ours.data().substr(a.begin, a.end - a.begin) == theirs.data().substr(b.begin, b.end - b.begin))
          << c.name << " " << a.name;
    }
    EXPECT_TRUE(ours.data() == theirs.data()) << c.name;
    EXPECT_EQ(ours.bytes.size(), theirs.bytes.size());
    EXPECT_EQ((ours.bytes.size() - ours.data().size()) % 8, 0u);
  }
}

TEST(QuantizeCheckpoint, EqualsTheOriginalsDigestOfTheDemo) {
  const Folder folder;
  run(kDemo, folder.path / "out", "default");
  const File ours(folder.path / "out/model.safetensors");
  const json digest = read_json<json>(read_file(kQuantised / "demo_default/digest.json"));
  EXPECT_EQ(digest["data_sha256"], sha256(std::string(ours.data())));
  EXPECT_EQ(json(ours.parsed.metadata), digest["metadata"]);
  ASSERT_EQ(ours.parsed.entries.size(), digest["tensors"].size());
  for (const auto& entry : ours.parsed.entries) {
    const json& want = digest["tensors"][entry.name];
    EXPECT_EQ(json(entry.shape), want["shape"]) << entry.name;
    EXPECT_EQ(dtype_name(entry.dtype), want["dtype"].get<std::string>()) << entry.name;
    EXPECT_EQ(json({entry.begin, entry.end}), want["data_offsets"]) << entry.name;
    EXPECT_EQ(want["sha256"], sha256(std::string(ours.data().substr(entry.begin, entry.end - entry.begin))));
  }
}

// docs/QUANTISATION.md states these counts for the float32 form of HQQ against ExecuTorch's float16 one.
TEST(QuantizeCheckpoint, FloatHqqDiffersByTheStatedCounts) {
  const Folder folder;
  run(kTiny, folder.path / "out", "sensitive", HqqArithmetic::kF32);
  const Checkpoint ours = open_checkpoint(folder.path / "out");
  const Checkpoint theirs = open_checkpoint(kQuantised / "tiny_sensitive/model.safetensors");
  int64_t codes = 0, codes_differ = 0, groups = 0, scales_differ = 0, zeros_differ = 0;
  for (const auto& [name, weight] : ours.weights) {
    const Matrix &a = weight.matrix, &b = theirs.find(name)->matrix;
    if (a.format != Format::kInt4) {
      EXPECT_EQ(std::memcmp(a.codes.data, b.codes.data, static_cast<size_t>(a.codes.bytes())), 0) << name;
      const auto scale_bytes = static_cast<size_t>(a.scale.bytes());
      EXPECT_TRUE(scale_bytes == 0 || std::memcmp(a.scale.data, b.scale.data, scale_bytes) == 0) << name;
      continue;
    }
    const auto *p = static_cast<const uint8_t*>(a.codes.data), *q = static_cast<const uint8_t*>(b.codes.data);
    for (int64_t i = 0; i < a.codes.size(); ++i) {
      codes += 2;
      codes_differ += ((p[i] ^ q[i]) & 15) != 0;
      codes_differ += ((p[i] ^ q[i]) >> 4) != 0;
    }
    const auto *s = static_cast<const uint16_t*>(a.scale.data), *t = static_cast<const uint16_t*>(b.scale.data);
    const auto *y = static_cast<const uint16_t*>(a.zero.data), *z = static_cast<const uint16_t*>(b.zero.data);
    for (int64_t i = 0; i < a.scale.size(); ++i) {
      ++groups;
      scales_differ += s[i] != t[i];
      zeros_differ += y[i] != z[i];
    }
  }
  EXPECT_EQ(codes, 632544);
  EXPECT_EQ(groups, 19767);
  EXPECT_NEAR(static_cast<double>(codes_differ), 5184, 60);
  EXPECT_NEAR(static_cast<double>(scales_differ), 2017, 1);
  EXPECT_NEAR(static_cast<double>(zeros_differ), 2872, 60);
}

// Counterpart of test_pipeline.py: what is quantised, what is kept, and that reading gives back what was written.
TEST(QuantizeCheckpoint, FormatsAndRoundTrip) {
  const Folder folder;
  const QuantizeReport report = run(kTiny, folder.path, "default");
  EXPECT_EQ(report.tensors, 143);
  const Checkpoint source = open_checkpoint(kTiny), result = open_checkpoint(folder.path);
  EXPECT_EQ(result.weights.size(), source.weights.size() + 1);
  EXPECT_EQ(result.config, source.config);
  EXPECT_EQ(result.generation_config, source.generation_config);
  EXPECT_EQ(result.processor_config, source.processor_config);
  EXPECT_EQ(result.tokenizer.json, source.tokenizer.json);
  EXPECT_EQ(read_file(folder.path / "tokenizer_config.json"), read_file(kTiny / "tokenizer_config.json"));
  EXPECT_EQ(result.find("embed_tokens.weight")->matrix.format, Format::kInt8);
  EXPECT_EQ(result.find("lm_head.weight")->matrix.format, Format::kInt4);
  for (const auto& [name, weight] : result.weights) {
    if (!is_vision_tensor(name) || name == kPositionTable) continue;
    EXPECT_EQ(weight.matrix.format, Format::kBF16) << name;
    EXPECT_EQ(std::memcmp(weight.matrix.codes.data, source.find(name)->matrix.codes.data, weight.bytes), 0) << name;
  }
  const Matrix& table = result.find(kPositionTable)->matrix;
  EXPECT_EQ(table.format, Format::kInt8);
  EXPECT_EQ(table.scale.dtype, DType::kF32);
  std::vector<float> a(static_cast<size_t>(table.cols)), b = a;
  double dot = 0, aa = 0, bb = 0;  // ExecuTorch's bound on the table: cosine > 0.999
  for (int64_t row = 0; row < table.rows; ++row) {
    unpack_row(table, row, a.data());
    unpack_row(source.find(kPositionTable)->matrix, row, b.data());
    for (size_t i = 0; i < a.size(); ++i) dot += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
  }
  EXPECT_GT(dot / std::sqrt(aa * bb), 0.999);
}

// A checkpoint with a few tensors, of any types, to quantise.
struct Small {
  Folder folder;
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> data;

  void add(const std::string& name, DType type, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (int64_t dim : shape) count *= dim;
    std::string bytes;
    for (int64_t i = 0; i < count; ++i) {
      const float value = std::sin(static_cast<float>(i) * 0.37f) / 3;
      const uint16_t half = type == DType::kF16 ? float_to_f16(value) : float_to_bf16(value);
      bytes.append(type == DType::kF32 ? reinterpret_cast<const char*>(&value) : reinterpret_cast<const char*>(&half),
                   dtype_size(type));
    }
    entries.push_back({name, type, std::move(shape)});
    data[name] = bytes;
  }

  void write(const std::string& file = "model.safetensors") {
    folder.put("config.json", R"({"text_config": {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}})");
    SafetensorsWriter writer(folder.path / file, entries, {}, Overwrite::kReplace);
    for (const auto& [name, bytes] : data) writer.write(name, 0, bytes.data(), bytes.size());
    writer.commit();
  }

  std::string message(const fs::path& output, const std::string& recipe = "default",
                      Overwrite overwrite = Overwrite::kRefuse) {
    try {
      run(folder.path, output, recipe, HqqArithmetic::kF16, overwrite);
    } catch (const Error& error) {
      return error.what();
    }
    return "done";
  }
};

TEST(QuantizeCheckpoint, OtherTypesOfSource) {
  Small small;
  small.add("model.embed_tokens.weight", DType::kF16, {10, 64});
  small.add("model.norm.weight", DType::kF32, {64});
  small.add("model.layers.0.layer_scalar", DType::kF32, {1});
  small.add("model.layers.0.mlp.up_proj.weight", DType::kF32, {6, 64});
  small.add("lm_head.weight", DType::kBF16, {10, 64});
  small.write();
  const Folder out;
  EXPECT_EQ(small.message(out.path), "done");
  const Checkpoint result = open_checkpoint(out.path);
  EXPECT_EQ(result.order, (std::vector<std::string>{"embed_tokens.weight", "layers.0.mlp.up_proj.weight", "norm.weight",
                                                    "lm_head.weight", "layers.0.layer_scalar"}));
  EXPECT_EQ(result.find("norm.weight")->matrix.format, Format::kBF16);           // a parameter: cast
  EXPECT_EQ(result.find("layers.0.layer_scalar")->matrix.format, Format::kF32);  // a buffer: as it was
  EXPECT_EQ(result.find("layers.0.mlp.up_proj.weight")->matrix.format, Format::kInt4);
  std::vector<float> a(64), b(64);
  unpack_row(open_checkpoint(small.folder.path).find("norm.weight")->matrix, 0, a.data());
  unpack_row(result.find("norm.weight")->matrix, 0, b.data());
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(round_to_bf16(a[i]), b[i]);
}

TEST(QuantizeCheckpoint, RefusesBeforeWriting) {
  Small small;
  small.add("embed_tokens.weight", DType::kBF16, {10, 40});
  small.write();
  const Folder folder;
  EXPECT_THAT(small.message(folder.path / "out"), HasSubstr("lm_head.weight: its 40 columns are not a multiple"));
  EXPECT_FALSE(fs::exists(folder.path / "out"));
  EXPECT_THAT(small.message(small.folder.path), HasSubstr("not a multiple"));
  folder.put("keep.json", R"([{"pattern": "x"}])");
  EXPECT_EQ(small.message(folder.path / "out", folder.path / "keep.json"), "done");

  folder.put("norms.json", R"([{"pattern": ".*norm.*", "bits": 8}])");
  Small vector;
  vector.add("embed_tokens.weight", DType::kBF16, {10, 32});
  vector.add("norm.weight", DType::kBF16, {32});
  vector.write();
  EXPECT_THAT(vector.message(folder.path / "out2", folder.path / "norms.json"), HasSubstr("not a matrix"));
  EXPECT_FALSE(fs::exists(folder.path / "out2"));

  Small headless;
  headless.add("norm.weight", DType::kBF16, {32});
  headless.write();
  EXPECT_THAT(headless.message(folder.path / "out2"), HasSubstr("embed_tokens.weight"));
}

TEST(QuantizeCheckpoint, OutputThatHoldsSomethingElse) {
  Small small, other;
  small.add("embed_tokens.weight", DType::kBF16, {10, 32});
  small.write();
  other.add("embed_tokens.weight", DType::kBF16, {12, 32});
  other.write();
  const Folder out;
  EXPECT_THAT(small.message(small.folder.path), HasSubstr("is the model to be quantised"));
  EXPECT_EQ(small.message(out.path), "done");
  const std::string first = read_file(out.path / "model.safetensors");
  for (Small* model : {&small, &other}) {
    EXPECT_THAT(model->message(out.path), HasSubstr("is not empty"));
    EXPECT_EQ(read_file(out.path / "model.safetensors"), first);
  }
  EXPECT_THAT(small.message(small.folder.path, "default", Overwrite::kReplace), HasSubstr("to be quantised"));
  // Asked to, it replaces what a result has and nothing else.
  out.put("notes.txt", "mine");
  out.put("tokenizer.json", "of an earlier model");
  EXPECT_EQ(small.message(out.path, "default", Overwrite::kReplace), "done");
  EXPECT_EQ(read_file(out.path / "model.safetensors"), first);
  EXPECT_EQ(other.message(out.path, "default", Overwrite::kReplace), "done");
  EXPECT_NE(read_file(out.path / "model.safetensors"), first);
  EXPECT_EQ(read_file(out.path / "notes.txt"), "mine");
  EXPECT_FALSE(fs::exists(out.path / "tokenizer.json"));
  out.put("model.safetensors.index.json", "{}");  // would name other weights than those that are written
  EXPECT_THAT(other.message(out.path, "default", Overwrite::kReplace), HasSubstr("in several files"));
  const Folder file;
  file.put("out", "text");
  EXPECT_THAT(small.message(file.path / "out"), HasSubstr("not a directory"));
  EXPECT_THAT(small.message("/proc/nowhere/out"), HasSubstr("/proc/nowhere/out"));
  // Quantising what is quantised already.
  EXPECT_THROW(run(out.path, file.path / "twice", "default"), Error);
  EXPECT_FALSE(fs::exists(file.path / "twice"));
}

TEST(QuantizeCheckpoint, AnInterruptedRunLeavesNoModelAndTheNextStartsClean) {
  Small small;
  small.add("embed_tokens.weight", DType::kBF16, {10, 32});
  small.add("norm.weight", DType::kBF16, {32});
  small.add("layers.0.mlp.up_proj.weight", DType::kF32, {4, 32});
  const float bad = INFINITY;  // found only while quantising: after the file was begun
  std::memcpy(small.data["layers.0.mlp.up_proj.weight"].data() + 40, &bad, 4);
  small.write();
  const Folder folder;
  EXPECT_THAT(small.message(folder.path / "out"), HasSubstr("layers.0.mlp.up_proj.weight holds a value"));
  EXPECT_FALSE(fs::exists(folder.path / "out"));
  // As a killed process leaves it.
  fs::create_directories(folder.path / "out");
  folder.put("out/model.safetensors.k3b9x0.partial", std::string(100'000, 'x'));
  std::memset(small.data["layers.0.mlp.up_proj.weight"].data() + 40, 0, 4);
  small.write();
  EXPECT_EQ(small.message(folder.path / "out"), "done");
  EXPECT_FALSE(fs::exists(folder.path / "out/model.safetensors.k3b9x0.partial"));
  EXPECT_EQ(open_checkpoint(folder.path / "out").weights.size(), 4u);
}

TEST(QuantizeCheckpoint, FullDiskIsOneErrorAndLeavesNothing) {
  Small small;
  small.add("embed_tokens.weight", DType::kBF16, {1000, 64});
  small.write();
  const Folder folder;
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small_files{10'000, before.rlim_max};  // a file cannot grow past this, as on a full disk
  setrlimit(RLIMIT_FSIZE, &small_files);
  const std::string message = small.message(folder.path / "out");
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(message, HasSubstr("cannot write"));
  EXPECT_FALSE(fs::exists(folder.path / "out"));
}

// The original's test_safetensors_roundtrip.py at the level of the container: any rank, exact.
TEST(SafetensorsWriter, RoundTripAndOrder) {
  const Folder folder;
  const std::vector<SafetensorsEntry> entries = {{"b.qdata", DType::kU8, {4, 32, 16}},
                                                 {"a", DType::kBF16, {3}},
                                                 {"z", DType::kF32, {1, 1}},
                                                 {"Z", DType::kBF16, {2}},
                                                 {"c", DType::kI8, {5}},
                                                 {"b.scale", DType::kBF16, {4, 2, 32}}};
  SafetensorsWriter writer(folder.path / "x.safetensors", entries, {{"key \"quoted\"", "{\"a\": 1}"}});
  std::map<std::string, std::string> data;
  for (const auto& entry : entries) {
    size_t bytes = dtype_size(entry.dtype);
    for (int64_t dim : entry.shape) bytes *= static_cast<size_t>(dim);
    for (size_t i = 0; i < bytes; ++i) data[entry.name] += static_cast<char>(i * 31 + entry.name.size());
    // In two pieces, the last first.
    const size_t half = bytes / 2;
    writer.write(entry.name, half, data[entry.name].data() + half, bytes - half);
    writer.write(entry.name, 0, data[entry.name].data(), half);
  }
  EXPECT_FALSE(fs::exists(folder.path / "x.safetensors"));
  writer.commit();
  const File file(folder.path / "x.safetensors");
  EXPECT_EQ(file.parsed.metadata, (std::map<std::string, std::string>{{"key \"quoted\"", "{\"a\": 1}"}}));
  std::vector<std::string> order;
  for (const auto& entry : file.parsed.entries) {
    order.push_back(entry.name);
    EXPECT_TRUE(file.data().substr(entry.begin, entry.end - entry.begin) == data[entry.name]) << entry.name;
  }
  EXPECT_EQ(order, (std::vector<std::string>{"z", "Z", "a", "b.scale", "c", "b.qdata"}));
}

}  // namespace
}  // namespace gemma4
