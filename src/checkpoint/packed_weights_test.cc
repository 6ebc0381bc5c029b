#include "checkpoint/packed_weights.h"
#include "base/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json.h"
#include "base/json_text.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "checkpoint/mlx.h"
#include "model/config.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

using namespace testing_files;

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;

// Compares every weight with expected.safetensors; `limit` by format, relative to the weight's largest value.
void compare(const std::string& folder, const std::function<double(Format)>& limit, size_t weights) {
  const Checkpoint checkpoint = open_checkpoint(golden(folder));
  const auto file = MappedFile::open(golden(folder) / "expected.safetensors");
  const Safetensors expected = parse_safetensors(file->bytes(), "expected");
  for (const SafetensorsEntry& entry : expected.entries) {
    const Weight* weight = checkpoint.find(entry.name);
    ASSERT_NE(weight, nullptr) << entry.name;
    EXPECT_EQ(weight->shape, entry.shape) << entry.name;
    const std::vector<float> got = floats_of(weight->matrix);
    std::vector<float> want(got.size());  // a copy: nothing in a safetensors file is aligned
    ASSERT_EQ(entry.end - entry.begin, want.size() * sizeof(float)) << entry.name;
    std::memcpy(want.data(), expected.data.data() + entry.begin, want.size() * sizeof(float));
    double error = 0, largest = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error = std::max(error, std::abs(static_cast<double>(got[i]) - want[i]));
      largest = std::max(largest, std::abs(static_cast<double>(want[i])));
    }
    EXPECT_LE(error, limit(weight->matrix.format) * largest) << entry.name;
  }
  EXPECT_EQ(expected.entries.size(), weights);
  EXPECT_EQ(checkpoint.weights.size(), weights + 1) << "and a norm that is not packed";
  EXPECT_EQ(checkpoint.kind, folder.starts_with("mlx") ? "mlx" : "compressed-tensors");
  EXPECT_NO_THROW(parse_config(checkpoint.config));
}

// Q4_1 and Q5_1 hold MLX's numbers exactly; what becomes BF16 is rounded once.
TEST(PackedWeights, ReadMlx) {
  compare(
      "mlx", [](Format f) { return f == Format::kBF16 ? 1.0 / 256 : 1e-6; }, 6);
}

// Every scale with every code of mxfp4 and nvfp4, some scales with every code of mxfp8; and a group_size of null.
TEST(PackedWeights, ReadMlxFloatingPointExactly) {
  compare(
      "mlx_float", [](Format f) { return f == Format::kQ4_1 ? 1e-6 : 0.0; }, 7);
  const Checkpoint checkpoint = open_checkpoint(golden("mlx_float"));
  const auto format = [&](const std::string& name) { return checkpoint.find("layers.0." + name)->matrix.format; };
  EXPECT_EQ(format("mlp.up_proj.weight"), Format::kInt8);
  EXPECT_EQ(format("mlp.gate_proj.weight"), Format::kInt8);
  EXPECT_EQ(format("mlp.down_proj.weight"), Format::kBF16);
  EXPECT_EQ(checkpoint.find("layers.0.mlp.up_proj.weight")->matrix.scale.dtype, DType::kBF16);
}

TEST(PackedWeights, ReadCompressedTensorsExactly) {
  compare(
      "compressed_tensors", [](Format) { return 0.0; }, 4);
}

TEST(PackedWeights, CodesOfCompressedTensorsStayMapped) {
  const Checkpoint checkpoint = open_checkpoint(golden("compressed_tensors"));
  const Matrix& m = checkpoint.find("layers.0.mlp.up_proj.weight")->matrix;
  EXPECT_EQ(m.format, Format::kInt4);
  const auto file = checkpoint.files.at(0)->bytes();
  const auto* codes = static_cast<const std::byte*>(m.codes.data);
  EXPECT_TRUE(codes >= file.data() && codes + m.codes.bytes() <= file.data() + file.size());
}

// Opens a copy of a golden folder whose header and config were changed.
std::string error_with(
    const std::string& folder, const std::function<void(json& header)>& change,
    const std::function<void(json& config)>& reconfigure = [](json&) {}) {
  const testing_files::Folder copy;
  const std::string bytes = read_file(golden(folder) / "model.safetensors");
  uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof length);
  json header = read_json<json>(bytes.substr(8, length)),
       config = read_json<json>(read_file(golden(folder) / "config.json"));
  change(header);
  reconfigure(config);
  copy.put("model.safetensors", testing_files::container(header.dump(), bytes.substr(8 + length)));
  copy.put("config.json", config.dump());
  try {
    open_checkpoint(copy.path);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void rename(json& header, const std::string& from, const std::string& to) {
  header[to] = header.at(from);
  header.erase(from);
}

const std::string kUp = "model.language_model.layers.0.mlp.up_proj";
const std::string kMlxUp = "language_model.model.layers.0.mlp.up_proj";

TEST(PackedWeights, RefuseDamagedCompressedTensors) {
  const auto error = [](const std::function<void(json&)>& change) { return error_with("compressed_tensors", change); };
  EXPECT_EQ(error([](json&) {}), "");
  EXPECT_THAT(error([](json& h) { rename(h, kUp + ".weight_scale", "x.weight_scale"); }), HasSubstr("is missing"));
  EXPECT_THAT(error([](json& h) { rename(h, kUp + ".weight_packed", "x.weight_packed"); }),
              HasSubstr("no packed weight"));
  EXPECT_THAT(error([](json& h) { h[kUp + ".weight_packed"]["dtype"] = "F32"; }), HasSubstr("not I32"));
  EXPECT_THAT(error([](json& h) { h[kUp + ".weight_packed"]["shape"] = {12, 160}; }), HasSubstr("weight_shape"));
  EXPECT_THAT(error([](json& h) { h[kUp + ".weight_scale"]["shape"] = {480}; }), HasSubstr("shape"));
  EXPECT_THAT(error([](json& h) { h[kUp + ".weight_scale"]["shape"] = {3, 160}; }), HasSubstr("scales"));
  EXPECT_THAT(error([](json& h) { h[kUp + ".weight_zero_point"]["shape"] = {3, 20}; }), HasSubstr("shape"));
}

// Columns in another order are refused; a weight_g_idx that says the usual order changes nothing.
TEST(PackedWeights, ReadCompressedTensorsInTheUsualOrderOnly) {
  const std::string bytes = read_file(golden("compressed_tensors") / "model.safetensors");
  uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof length);
  const auto error = [&](const std::function<int32_t(int32_t)>& group_of) -> std::string {
    json header = read_json<json>(bytes.substr(8, length));
    std::string data = bytes.substr(8 + length);
    const size_t begin = data.size();
    for (int32_t column = 0; column < 96; ++column) {
      const int32_t group = group_of(column);
      data.append(reinterpret_cast<const char*>(&group), sizeof group);
    }
    header[kUp + ".weight_g_idx"] = {{"dtype", "I32"}, {"shape", {96}}, {"data_offsets", {begin, data.size()}}};
    const testing_files::Folder copy;
    copy.put("model.safetensors", testing_files::container(header.dump(), data));
    copy.put("config.json", read_file(golden("compressed_tensors") / "config.json"));
    try {
      open_checkpoint(copy.path);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error([](int32_t column) { return column / 32; }), "");
  EXPECT_EQ(error([](int32_t) { return -1; }), "");
  EXPECT_THAT(error([](int32_t column) { return (95 - column) / 32; }), HasSubstr("g_idx"));
}

// W8A16: a code q is stored as q + 128, four to an int32. The weights of one file may differ in their bits.
TEST(PackedWeights, ReadEightBitsOfCompressedTensors) {
  const int rows = 3, cols = 64, groups = 2;
  std::string codes, scales;
  for (int i = 0; i < rows * cols; ++i) codes += static_cast<char>(i * 7);
  for (int i = 0; i < rows * groups; ++i) {
    const float scale = 0.1f * static_cast<float>(i + 1);
    scales.append(reinterpret_cast<const char*>(&scale), sizeof scale);
  }
  const int64_t shape[2] = {rows, cols};
  const std::string shape_bytes(reinterpret_cast<const char*>(shape), sizeof shape);
  json header;
  auto add = [&, at = size_t{0}](const char* part, const char* type, const json& dims, size_t size) mutable {
    header[kUp + part] = {{"dtype", type}, {"shape", dims}, {"data_offsets", {at, at + size}}};
    at += size;
  };
  add(".weight_shape", "I64", {2}, shape_bytes.size());
  add(".weight_packed", "I32", {rows, cols / 4}, codes.size());
  add(".weight_scale", "F32", {rows, groups}, scales.size());
  json config = read_json<json>(read_file(golden("compressed_tensors") / "config.json"));
  config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 8;
  const testing_files::Folder folder;
  folder.put("config.json", config.dump());
  folder.put("model.safetensors", testing_files::container(header.dump(), shape_bytes + codes + scales));
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  const Matrix& m = checkpoint.find("layers.0.mlp.up_proj.weight")->matrix;
  EXPECT_EQ(m.format, Format::kInt8);
  EXPECT_EQ(m.group, 32);
  const std::vector<float> values = floats_of(m);
  for (int i = 0; i < rows * cols; ++i) {
    const int code = static_cast<uint8_t>(i * 7) - 128;
    ASSERT_FLOAT_EQ(values[static_cast<size_t>(i)], static_cast<float>(code) * 0.1f * static_cast<float>(i / 32 + 1));
  }
}

// mlx-lm 0.32 writes null for a layer's own group size, which stands for the mode's default, as an absent one does.
TEST(PackedWeights, AGroupSizeOfNullIsMlxsDefault) {
  const auto error = [](const std::string& name, const json& own) {
    return error_with(
        "mlx_float", [](json&) {}, [&](json& c) { c["quantization"]["language_model.model.layers.0." + name] = own; });
  };
  EXPECT_EQ(error("self_attn.o_proj", {{"group_size", nullptr}, {"bits", 4}}), "");
  EXPECT_EQ(error("self_attn.o_proj", json::object()), "");
  EXPECT_EQ(error("self_attn.k_proj", {{"group_size", nullptr}, {"mode", "nvfp4"}}), "");
  EXPECT_EQ(error("self_attn.k_proj", false), "") << "the tensors say it";
  EXPECT_THAT(error("self_attn.o_proj", {{"group_size", nullptr}, {"bits", 3}}), HasSubstr("3 bits in groups of 64"));
  EXPECT_THAT(error("self_attn.k_proj", {{"bits", 4}}), HasSubstr("of the mode nvfp4, not affine"));
  EXPECT_THAT(error("self_attn.k_proj", {{"mode", "mxfp4"}}), HasSubstr("of the mode nvfp4, not mxfp4"));
  EXPECT_THAT(error("self_attn.k_proj", {{"mode", "nvfp4"}, {"group_size", 32}}), HasSubstr("in groups of 32"));
  EXPECT_THAT(error("self_attn.k_proj", {{"mode", "nf4"}}), HasSubstr("affine, mxfp4, nvfp4 and mxfp8 are read"));
}

TEST(PackedWeights, RefuseSchemesThatAreNotRead) {
  const auto error = [](const std::string& folder, const std::function<void(json&)>& change) {
    return error_with(
        folder, [](json&) {}, change);
  };
  const char* ct = "compressed_tensors";
  EXPECT_THAT(error(ct, [](json& c) { c["quantization_config"]["format"] = "nvfp4-pack-quantized"; }),
              HasSubstr("nvfp4"));
  EXPECT_THAT(error(ct, [](json& c) { c["quantization_config"]["quant_method"] = "hqq"; }), HasSubstr("hqq"));
  EXPECT_THAT(
      error(ct, [](json& c) { c["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 3; }),
      HasSubstr("4- or 8-bit"));
  EXPECT_THAT(error(ct,
                    [](json& c) {
                      c["quantization_config"]["kv_cache_scheme"] = {{"num_bits", 8}};
                    }),
              HasSubstr("cache"));
  const auto change = [&](const char* key, const json& value) {
    return error(ct, [&](json& c) { c["quantization_config"][key] = value; });
  };
  EXPECT_EQ(change("transform_config", json::object()), "");
  EXPECT_THAT(change("transform_config", {{"config_groups", {{"R1", {{"type", "hadamard"}}}}}}),
              HasSubstr("transform"));
  EXPECT_EQ(change("sparsity_config", {{"format", "dense"}}), "");
  EXPECT_THAT(change("sparsity_config", {{"format", "sparse-24-bitmask"}}), HasSubstr("sparsity"));
  EXPECT_THAT(error(ct, [](json& c) { c["quantization_config"]["config_groups"]["group_0"]["format"] = "marlin-24"; }),
              HasSubstr("marlin-24"));
  EXPECT_THAT(error("mlx", [](json& c) { c["quantization"]["mode"] = "nf4"; }), HasSubstr("nf4"));
  EXPECT_THAT(error("mlx", [](json& c) { c["quantization"][kMlxUp]["bits"] = 3; }), HasSubstr("3 bits"));
  EXPECT_THAT(error("mlx", [](json& c) { c["quantization"][kMlxUp]["group_size"] = 7; }), HasSubstr("groups of 7"));
  EXPECT_NE(error("mlx", [](json& c) { c.erase("quantization"); }), "");
}

TEST(PackedWeights, RefuseDamagedMlx) {
  const auto error = [](const std::function<void(json&)>& change) { return error_with("mlx", change); };
  EXPECT_EQ(error([](json&) {}), "");
  EXPECT_THAT(error([](json& h) { rename(h, kMlxUp + ".scales", "x.scales"); }), HasSubstr("scales"));
  EXPECT_THAT(error([](json& h) { rename(h, kMlxUp + ".weight", "x.weight"); }), HasSubstr("no packed codes"));
  EXPECT_THAT(error([](json& h) { h[kMlxUp + ".biases"]["shape"] = {3, 160}; }), HasSubstr("shape"));
}

// Opens a copy of tests/golden/mlx_float in which one byte of a tensor is another.
std::string error_with_byte(const std::string& tensor, uint8_t value) {
  std::string bytes = read_file(golden("mlx_float") / "model.safetensors");
  uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof length);
  const json header = read_json<json>(bytes.substr(8, length));
  const json& entry = header.at("language_model.model.layers.0." + tensor);
  bytes[8 + length + entry.at("data_offsets")[0].get<size_t>()] = static_cast<char>(value);
  const testing_files::Folder copy;
  copy.put("model.safetensors", bytes);
  copy.put("config.json", read_file(golden("mlx_float") / "config.json"));
  try {
    open_checkpoint(copy.path);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(PackedWeights, RefuseMlxFloatingPointThatIsNoNumber) {
  EXPECT_EQ(error_with_byte("self_attn.q_proj.scales", 252), "");
  EXPECT_THAT(error_with_byte("self_attn.q_proj.scales", 253), HasSubstr("scale is too large"));
  EXPECT_THAT(error_with_byte("self_attn.q_proj.scales", 255), HasSubstr("scale is too large"));
  EXPECT_THAT(error_with_byte("self_attn.k_proj.scales", 0x7f), HasSubstr("scale is not a number"));
  EXPECT_THAT(error_with_byte("self_attn.k_proj.scales", 0xff), HasSubstr("scale is not a number"));
  EXPECT_EQ(error_with_byte("self_attn.v_proj.scales", 246), "");
  EXPECT_THAT(error_with_byte("self_attn.v_proj.scales", 247), HasSubstr("scale is too large"));
  EXPECT_THAT(error_with_byte("self_attn.v_proj.weight", 0xff), HasSubstr("code is not a number"));
}

TEST(PackedWeights, RefuseDamagedMlxFloatingPoint) {
  const auto error = [](const std::function<void(json&)>& change) { return error_with("mlx_float", change); };
  const std::string q = "language_model.model.layers.0.self_attn.q_proj",
                    v = "language_model.model.layers.0.self_attn.v_proj";
  EXPECT_EQ(error([](json&) {}), "");
  EXPECT_THAT(error([&](json& h) { rename(h, q + ".scales", "x.scales"); }), HasSubstr("scales"));
  EXPECT_THAT(error([&](json& h) { h[q + ".scales"]["shape"] = {192}; }), HasSubstr("shape"));
  EXPECT_THAT(error([&](json& h) { h[q + ".scales"]["shape"] = {32, 6}; }), HasSubstr("different rows"));
  EXPECT_THAT(error([&](json& h) { h[q + ".weight"]["shape"] = {32, 24}; }), HasSubstr("different rows"));
  EXPECT_THAT(error([&](json& h) { h[q + ".scales"]["dtype"] = "I8"; }), HasSubstr("bad type of scales"));
  EXPECT_THAT(error([&](json& h) { rename(h, v + ".scales", q + ".biases"); }), HasSubstr("biases"));
}

// The mlx package quantised the same weights.
TEST(Mlx, QuantisesLikeThePackage) {
  const Checkpoint original = open_checkpoint(golden("tiny"));
  const auto file = MappedFile::open(golden("mlx") / "model.safetensors");
  const Safetensors theirs = parse_safetensors(file->bytes(), "mlx");
  const auto bytes_of = [&](const std::string& name) {
    for (const SafetensorsEntry& e : theirs.entries) {
      if (e.name == name) return theirs.data.subspan(e.begin, e.end - e.begin);
    }
    throw Error("no " + name);
  };
  const std::map<std::string, MlxQuantization> settings = {{"self_attn.q_proj", {4, 32}}, {"self_attn.k_proj", {8, 32}},
                                                           {"self_attn.v_proj", {5, 32}}, {"self_attn.o_proj", {6, 64}},
                                                           {"mlp.gate_proj", {3, 32}},    {"mlp.up_proj", {2, 32}}};
  for (const auto& [name, q] : settings) {
    const Matrix& m = original.find("layers.0." + name + ".weight")->matrix;
    const std::vector<float> values = floats_of(m);
    std::vector<uint32_t> words(static_cast<size_t>(m.rows * m.cols * q.bits / 32));
    std::vector<uint16_t> scales(static_cast<size_t>(m.rows * m.cols / q.group)), biases(scales.size());
    for (int64_t row = 0; row < m.rows; ++row) {
      mlx_quantize_row(values.data() + row * m.cols, m.cols, q, words.data() + row * m.cols * q.bits / 32,
                       scales.data() + row * m.cols / q.group, biases.data() + row * m.cols / q.group);
    }
    const std::string stem = "language_model.model.layers.0." + name;
    EXPECT_EQ(std::memcmp(words.data(), bytes_of(stem + ".weight").data(), words.size() * 4), 0) << name;
    EXPECT_EQ(std::memcmp(scales.data(), bytes_of(stem + ".scales").data(), scales.size() * 2), 0) << name;
    EXPECT_EQ(std::memcmp(biases.data(), bytes_of(stem + ".biases").data(), biases.size() * 2), 0) << name;
  }
}

TEST(Mlx, ExportComesBack) {
  const testing_files::Folder out;
  const Checkpoint original = open_checkpoint(golden("tiny"));
  ThreadPool pool(2);
  export_mlx(original, {8, 32}, golden("tiny"), out.path / "mlx", pool);
  const Checkpoint back = open_checkpoint(out.path / "mlx");
  EXPECT_EQ(back.kind, "mlx");
  EXPECT_EQ(back.weights.size(), original.weights.size());
  EXPECT_EQ(back.tokenizer.json, original.tokenizer.json);
  EXPECT_EQ(parse_config(back.config).layers, parse_config(original.config).layers);
  for (const auto& [name, weight] : original.weights) {
    const Weight* other = back.find(name);
    ASSERT_NE(other, nullptr) << name;
    const std::vector<float> a = floats_of(weight.matrix), b = floats_of(other->matrix);
    ASSERT_EQ(a.size(), b.size()) << name;
    double error = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += std::abs(a[i] - b[i]);
      size += std::abs(a[i]);
    }
    EXPECT_LE(error, 0.01 * size) << name;
  }
  EXPECT_THROW(export_mlx(original, {7, 32}, golden("tiny"), out.path / "x", pool), Error);
  EXPECT_FALSE(std::filesystem::exists(out.path / "x"));
}

}  // namespace
}  // namespace gemma4
