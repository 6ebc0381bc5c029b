#include "checkpoint/gguf/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "base/json_text.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/golden_testing.h"
#include "model/config.h"
#include "model/tensor_table.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

using namespace testing_files;

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Writes a GGUF file field by field, right or wrong as told.
struct Bytes {
  std::string text;

  template <typename T>
  Bytes& number(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& string(const std::string& s) {
    number<uint64_t>(s.size());
    text += s;
    return *this;
  }
  Bytes& key(const std::string& name, GgufType type) { return string(name).number(static_cast<uint32_t>(type)); }
  Bytes& tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    string(name).number<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (const uint64_t d : dims) number(d);
    return number(type).number(offset);
  }
  Bytes& pad(size_t data) {
    text.resize((text.size() + 31) / 32 * 32 + data);
    return *this;
  }
};

Bytes header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
  Bytes b;
  b.text = "GGUF";
  b.number(version).number(tensors).number(keys);
  return b;
}

Gguf parse(const Bytes& b) { return parse_gguf(std::as_bytes(std::span(b.text.data(), b.text.size())), "x.gguf"); }

std::string error_of(const Bytes& b) {
  try {
    parse(b);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Gguf, ReadsEveryTypeOfValue) {
  Bytes b = header(1, 8, 2);
  b.key("u8", GgufType::kU8).number<uint8_t>(200);
  b.key("i64", GgufType::kI64).number<int64_t>(-5);
  b.key("f32", GgufType::kF32).number(1.5f);
  b.key("bool", GgufType::kBool).number<uint8_t>(1);
  b.key("text", GgufType::kString).string("hello");
  b.key("ints", GgufType::kArray).number<uint32_t>(5).number<uint64_t>(2).number<int32_t>(7).number<int32_t>(-8);
  b.key("words", GgufType::kArray).number<uint32_t>(8).number<uint64_t>(2).string("a").string("");
  b.key("u64", GgufType::kU64).number<uint64_t>(~0ull);
  b.tensor("t", {32, 3}, 2, 0).pad(3 * 18);
  const Gguf g = parse(b);
  EXPECT_EQ(g.version, 2u);
  EXPECT_EQ(g.integer("u8"), 200);
  EXPECT_EQ(g.integer("i64"), -5);
  EXPECT_EQ(g.real("f32"), 1.5);
  EXPECT_TRUE(g.boolean("bool", false));
  EXPECT_EQ(g.string("text"), "hello");
  EXPECT_EQ(g.integers("ints"), (std::vector<int64_t>{7, -8}));
  EXPECT_EQ(g.strings("words"), (std::vector<std::string_view>{"a", ""}));
  EXPECT_THROW(g.integer("u64"), Error);
  EXPECT_THROW(g.integer("absent"), Error);
  EXPECT_THROW(g.integer("text"), Error);
  EXPECT_EQ(g.integer("absent", 9), 9);
  ASSERT_EQ(g.tensors.size(), 1u);
  EXPECT_EQ(g.tensors[0].shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(g.tensors[0].format, Format::kQ4_0);
  EXPECT_EQ(g.tensors[0].data.size(), 3u * 18);
}

TEST(Gguf, RefusesOtherVersions) {
  EXPECT_THAT(error_of(header(0, 0, 1)), HasSubstr("version 1"));
  EXPECT_THAT(error_of(header(0, 0, 4)), HasSubstr("version 4"));
  EXPECT_THAT(error_of(header(0, 0, 0x03000000)), HasSubstr("big-endian"));
  EXPECT_THAT(error_of(Bytes{"GGML"}), HasSubstr("no GGUF file"));
  EXPECT_NE(error_of(Bytes{"GG"}), "");
}

// CVE-2026-7482: a tensor whose offset and size reach past the file was read from the heap behind it.
TEST(Gguf, Cve20267482TensorsPastTheEnd) {
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {8}, 0, 64).pad(64)), HasSubstr("past the end"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {32}, 0, 0).pad(64)), HasSubstr("past the end"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {8}, 0, ~0ull - 31).pad(64)), HasSubstr("past the end"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {8}, 0, 1ull << 63).pad(64)), HasSubstr("past the end"));
  EXPECT_EQ(error_of(header(1, 0).tensor("t", {16}, 0, 0).pad(64)), "");
}

// CVE-2026-33298: the product of the dimensions wrapped, so that little was allocated for much.
TEST(Gguf, Cve202633298SizesThatOverflow) {
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {1ull << 32, 1ull << 32}, 0, 0).pad(64)), HasSubstr("overflow"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {1ull << 62, 2, 2}, 0, 0).pad(64)), HasSubstr("overflow"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {1ull << 61}, 0, 0).pad(64)), HasSubstr("overflow"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {1ull << 63}, 0, 0).pad(64)), HasSubstr("no valid size"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {0}, 0, 0).pad(64)), HasSubstr("no valid size"));
}

// CVE-2026-27940: counts whose product with the size of an entry overflows, or that only an enormous allocation holds.
TEST(Gguf, Cve202627940CountsThatTheFileCannotHold) {
  EXPECT_THAT(error_of(header(1ull << 60, 0)), HasSubstr("more tensors"));
  EXPECT_THAT(error_of(header(0, 1ull << 60)), HasSubstr("more metadata"));
  EXPECT_THAT(error_of(header(~0ull, ~0ull)), HasSubstr("more"));
  Bytes words = header(0, 1);
  words.key("k", GgufType::kArray).number<uint32_t>(8).number<uint64_t>(1ull << 61).pad(64);
  EXPECT_THAT(error_of(words), HasSubstr("more strings"));
  Bytes numbers = header(0, 1);
  numbers.key("k", GgufType::kArray).number<uint32_t>(10).number<uint64_t>((1ull << 61) + 1).pad(64);
  EXPECT_THAT(error_of(numbers), HasSubstr("more elements"));
  Bytes text = header(0, 1);
  text.number<uint64_t>(~0ull).pad(64);
  EXPECT_THAT(error_of(text), HasSubstr("claims"));
}

TEST(Gguf, RefusesWhatMakesNoSense) {
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).pad(64)), HasSubstr("5 dimensions"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {16}, 2, 0).pad(64)), HasSubstr("whole q4_0 blocks"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {256}, 24, 0).pad(640)), HasSubstr("the type I8"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {256}, 999, 0).pad(640)), HasSubstr("ggml's type 999"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {128}, 23, 0).pad(640)), HasSubstr("whole IQ4_XS blocks"));
  EXPECT_THAT(error_of(header(1, 0).tensor("t", {4}, 0, 8).pad(64)), HasSubstr("not aligned"));
  EXPECT_THAT(error_of(header(2, 0).tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).pad(64)), HasSubstr("twice"));
  EXPECT_THAT(error_of(header(2, 0).tensor("a", {16}, 0, 0).tensor("b", {8}, 0, 32).pad(64)), HasSubstr("overlaps"));
  Bytes twice = header(0, 2);
  twice.key("k", GgufType::kU8).number<uint8_t>(1).key("k", GgufType::kU8).number<uint8_t>(1);
  EXPECT_THAT(error_of(twice), HasSubstr("twice"));
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 1u << 31}) {
    Bytes b = header(0, 1);
    b.key("general.alignment", GgufType::kU32).number(alignment);
    EXPECT_THAT(error_of(b), HasSubstr("alignment"));
  }
  Bytes nested = header(0, 1);
  nested.key("k", GgufType::kArray).number<uint32_t>(9).number<uint64_t>(1).pad(64);
  EXPECT_NE(error_of(nested), "");
  Bytes unknown = header(0, 1);
  unknown.string("k").number<uint32_t>(77).pad(64);
  EXPECT_NE(error_of(unknown), "");
}

TEST(Gguf, RefusesEveryTruncation) {
  Bytes whole{read_file(golden("gguf/tiny2.gguf"))};
  for (size_t size = 0; size < whole.text.size(); size += 1 + size / 30) {
    EXPECT_NE(error_of(Bytes{whole.text.substr(0, size)}), "") << size;
  }
}

// The rest compares tests/golden/gguf (tools/make_gguf_golden.py) with the checkpoint it was made from: its layers 0
// and 1 are the other's 4 and 5.
std::string original_name(std::string name) {
  const bool text = name.starts_with("layers.");
  if (text) name.replace(7, 1, name[7] == '0' ? "4" : "5");
  return name;
}

double relative_error(const Matrix& a, const Matrix& b) {
  std::vector<float> x(static_cast<size_t>(a.cols)), y(x.size());
  double error = 0, size = 0;
  for (int64_t row = 0; row < a.rows; ++row) {
    unpack_row(a, row, x.data());
    unpack_row(b, row, y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      error += std::abs(x[i] - y[i]);
      size += std::abs(y[i]);
    }
  }
  return error / size;
}

TEST(GgufCheckpoint, HoldsTheSameWeights) {
  const Checkpoint gguf = open_checkpoint(golden("gguf/tiny2.gguf")), original = open_checkpoint(golden("tiny"));
  EXPECT_EQ(gguf.kind, "gguf");
  EXPECT_EQ(gguf.files.size(), 2u) << "the vision half lies beside it";
  // 13 text tensors for each layer (no v_proj on the full one) and its scalar, 2 others, 13 for each vision layer, 5.
  EXPECT_EQ(gguf.weights.size(), 14u + 13 + 2 + 3 * 13 + 5);
  std::map<Format, int> formats;
  for (const auto& [name, weight] : gguf.weights) {
    const Weight* want = original.find(original_name(name));
    ASSERT_NE(want, nullptr) << name;
    ASSERT_EQ(weight.matrix.rows, want->matrix.rows) << name;
    ASSERT_EQ(weight.matrix.cols, want->matrix.cols) << name;
    ++formats[weight.matrix.format];
    const bool exact = !is_ggml_block(weight.matrix.format);
    const double limit = weight.matrix.format == Format::kQ8_0 ? 0.01 : 0.15;
    const double error = relative_error(weight.matrix, want->matrix);
    if (exact && weight.matrix.format != Format::kF16) {
      EXPECT_EQ(error, 0) << name;
    } else {
      EXPECT_LT(error, exact ? 1e-3 : limit) << name;
    }
  }
  EXPECT_EQ(formats.size(), 8u);
}

TEST(GgufCheckpoint, MakesTheSameConfig) {
  const Checkpoint gguf = open_checkpoint(golden("gguf/tiny2.gguf"));
  const nlohmann::json made = parse_strict_json(gguf.config, "made");
  nlohmann::json want = parse_strict_json(read_file(golden("tiny/config.json")), "want");
  want["text_config"]["layer_types"] = {"sliding_attention", "full_attention"};
  want["text_config"]["num_hidden_layers"] = 2;
  want["vision_config"]["default_output_length"] = 280;  // what no GGUF file says
  want["vision_soft_tokens_per_image"] = 280;
  const auto compare = [](const nlohmann::json& got, const nlohmann::json& expected, const std::string& where) {
    int compared = 0;
    for (const auto& [key, value] : got.items()) {
      if (value.is_object() || !expected.contains(key)) continue;
      ++compared;
      if (value.is_number_float()) {
        EXPECT_NEAR(value.get<double>(), expected[key].get<double>(), 1e-6 * std::abs(value.get<double>())) << key;
      } else {
        EXPECT_EQ(value, expected[key]) << where << key;
      }
    }
    return compared;
  };
  EXPECT_GE(compare(made, want, ""), 9);
  EXPECT_GE(compare(made["text_config"], want["text_config"], "text_config."), 25);
  EXPECT_GE(compare(made["vision_config"], want["vision_config"], "vision_config."), 14);
  EXPECT_EQ(made["text_config"]["rope_parameters"], want["text_config"]["rope_parameters"]);
  EXPECT_EQ(made["vision_config"]["rope_parameters"], want["vision_config"]["rope_parameters"]);
  const nlohmann::json generation = parse_strict_json(gguf.generation_config, "generation");
  EXPECT_EQ(generation["eos_token_id"], (nlohmann::json{1, 16, 9}));
  EXPECT_EQ(gguf.tokenizer.tokens.size(), 2045u);
  EXPECT_EQ(gguf.tokenizer.tokens[18], "<|image|>");
}

class InFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("gguf_test_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    fs::copy_file(golden("gguf/tiny2.gguf"), folder_ / "model.gguf", fs::copy_options::overwrite_existing);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

TEST_F(InFolder, ReadsTextAloneWithoutAVisionFile) {
  const Checkpoint gguf = open_checkpoint(folder_ / "model.gguf");
  EXPECT_EQ(gguf.files.size(), 1u);
  EXPECT_EQ(gguf.find("vision_tower.std_bias"), nullptr);
  EXPECT_TRUE(parse_strict_json(gguf.config, "config").at("vision_config").is_null());
  EXPECT_FALSE(parse_config(gguf.config).has_vision);
}

TEST_F(InFolder, TakesVisionFromWhereItIsTold) {
  const Checkpoint from_file = open_checkpoint(folder_ / "model.gguf", golden("gguf/mmproj-tiny2.gguf"));
  EXPECT_NE(from_file.find("vision_tower.std_bias"), nullptr);
  const Checkpoint from_directory = open_checkpoint(folder_ / "model.gguf", golden("tiny"));
  EXPECT_NE(from_directory.find("vision_tower.std_bias"), nullptr);
  const auto config = parse_strict_json(from_directory.config, "config");
  EXPECT_EQ(config["vision_config"]["default_output_length"], 70);
  EXPECT_THROW(open_checkpoint(folder_ / "model.gguf", golden("gguf/tiny2.gguf")), Error);
  EXPECT_THROW(open_checkpoint(golden("gguf/mmproj-tiny2.gguf")), Error);
  EXPECT_EQ(open_checkpoint(golden("gguf/tiny2.gguf"), {}, false).find("vision_tower.std_bias"), nullptr);
}

// `file` with `count` more keys in front of its own; the tensors' data stays aligned.
std::string with_keys(std::string file, uint64_t count, Bytes keys) {
  keys.key("filler", GgufType::kString).string(std::string(31 - (keys.text.size() + 7) % 32, ' '));
  uint64_t before;
  std::memcpy(&before, &file[16], sizeof before);
  before += count + 1;
  std::memcpy(&file[16], &before, sizeof before);
  return file.insert(24, keys.text);
}

std::string open_error(const fs::path& path) {
  try {
    open_checkpoint(path);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST_F(InFolder, KeysThatChangeNothingArePassedOverAndOthersRefused) {
  const std::string model = read_file(golden("gguf/tiny2.gguf"));
  const auto error = [&](uint64_t count, const Bytes& keys) {
    write_file(folder_ / "model.gguf", with_keys(model, count, keys));
    return open_error(folder_ / "model.gguf");
  };
  Bytes harmless, scaled, once, partial;
  harmless.key("general.name", GgufType::kString).string("Gemma 4 31B It");
  harmless.key("quantize.imatrix.entries_count", GgufType::kI32).number<int32_t>(410);
  harmless.key("tokenizer.chat_template", GgufType::kString).string("{{ bos_token }}");
  EXPECT_EQ(error(3, harmless), "");
  scaled.key("gemma4.rope.scaling.type", GgufType::kString).string("yarn");
  scaled.key("gemma4.rope.scaling.factor", GgufType::kF32).number(4.f);
  EXPECT_THAT(error(2, scaled), HasSubstr("positions are scaled"));
  once.key("gemma4.rope.scaling.type", GgufType::kString).string("linear");
  once.key("gemma4.rope.scaling.factor", GgufType::kF32).number(1.f);
  EXPECT_EQ(error(2, once), "");
  partial.key("gemma4.rope.dimension_count", GgufType::kU32).number<uint32_t>(2);
  EXPECT_THAT(error(1, partial), HasSubstr("dimension_count"));
}

TEST_F(InFolder, ShardsOfAModelBelongTogether) {
  const auto split = [](uint16_t number) {
    Bytes keys;
    keys.key("split.count", GgufType::kU16).number<uint16_t>(2).key("split.no", GgufType::kU16).number(number);
    return keys;
  };
  const fs::path first = folder_ / "m-00001-of-00002.gguf", second = folder_ / "m-00002-of-00002.gguf";
  write_file(first, with_keys(read_file(golden("gguf/tiny2.gguf")), 2, split(0)));
  EXPECT_THAT(open_error(first), HasSubstr(second.string()));
  write_file(second, with_keys(header(0, 0).text, 2, split(1)));
  EXPECT_EQ(open_error(first), "");
  EXPECT_EQ(open_checkpoint(first).files.size(), 2u);
  EXPECT_NE(open_error(second), "");
  write_file(second, with_keys(header(0, 0).text, 2, split(0)));
  EXPECT_THAT(open_error(first), HasSubstr("is not part 2"));
  Bytes norm = header(1, 0);
  norm.tensor("output_norm.weight", {96}, 0, 0).pad(96 * 4);
  write_file(second, with_keys(norm.text, 2, split(1)));
  EXPECT_THAT(open_error(first), HasSubstr("appears twice"));
}

// llama.cpp's rope_freqs.weight stands for the rotation of full layers. Every other tensor must be one of the model's.
TEST_F(InFolder, UnknownTensorsAreRefusedByName) {
  const auto split = [](uint16_t number) {
    Bytes keys;
    keys.key("split.count", GgufType::kU16).number<uint16_t>(2).key("split.no", GgufType::kU16).number(number);
    return keys;
  };
  const fs::path first = folder_ / "m-00001-of-00002.gguf", second = folder_ / "m-00002-of-00002.gguf";
  write_file(first, with_keys(read_file(golden("gguf/tiny2.gguf")), 2, split(0)));
  const auto add = [&](const std::string& name) {  // to the model, in its second file
    write_file(second, with_keys(header(1, 0).tensor(name, {96}, 0, 0).pad(96 * 4).text, 2, split(1)));
  };
  for (const char* name : {"blk.0.some_unknown.weight", "per_layer_token_embd.weight", "v.std_bias"}) {
    add(name);
    EXPECT_THAT(open_error(first), HasSubstr("tensor " + std::string(name) + " is not one that the text half"));
  }
  const Gguf text = parse(Bytes{read_file(golden("gguf/tiny2.gguf"))});
  EXPECT_NE(text.tensor("rope_freqs.weight"), nullptr);
  EXPECT_EQ(open_checkpoint(folder_ / "model.gguf").weights.size(), text.tensors.size() - 1);
  add("blk.7.attn_norm.weight");  // of a layer that the model does not have
  const Checkpoint seven = open_checkpoint(first);
  EXPECT_THAT(check_weights(seven, parse_config(seven.config)),
              ::testing::ElementsAre("tensor layers.7.input_layernorm.weight is not part of this model"));

  std::string vision = read_file(golden("gguf/mmproj-tiny2.gguf"));
  vision.replace(vision.find("v.std_bias"), 10, "v.std_mean");
  write_file(folder_ / "mmproj.gguf", vision);
  EXPECT_THAT(open_error(folder_ / "model.gguf"), HasSubstr("tensor v.std_mean is not one that the vision half"));
}

}  // namespace
}  // namespace gemma4
