#include "checkpoint/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/bf16.h"
#include "base/check.h"
#include "base/mapped_file.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "checkpoint/quantize_checkpoint.h"
#include "quant/pack.h"
#include "quant/recipe.h"

namespace gemma4 {
namespace {

using namespace testing_files;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kLayer = "model.language_model.layers.0.";
const std::string kQ = kLayer + "self_attn.q_proj", kO = kLayer + "self_attn.o_proj", kUp = kLayer + "mlp.up_proj";

// A sample of tests/golden/gptq: the header, the data and the quantization_config, to be changed.
struct Sample {
  json header, quantization;
  std::string data;

  explicit Sample(const std::string& name) {
    const std::string bytes = read_file(golden("gptq") / (name + ".safetensors"));
    uint64_t length;
    std::memcpy(&length, bytes.data(), sizeof length);
    header = read_json<json>(bytes.substr(8, length));
    data = bytes.substr(8 + length);
    quantization = read_json<json>(read_file(golden("gptq") / (name + ".json")));
  }
  void put(const Folder& folder, const char* beside = nullptr, const char* file = "model.safetensors") const {
    json config = read_json<json>(read_file(golden("tiny") / "config.json"));
    if (beside) {
      folder.put(beside, quantization.dump());
    } else {
      config["quantization_config"] = quantization;
    }
    folder.put("config.json", config.dump());
    folder.put(file, container(header.dump(), data));
  }
  void rename(const std::string& from, const std::string& to) {
    header[to] = header.at(from);
    header.erase(from);
  }
  int32_t* words(const std::string& name) { return reinterpret_cast<int32_t*>(data.data() + begin(name)); }
  size_t begin(const std::string& name) const { return header.at(name)["data_offsets"][0]; }
  void add(const std::string& name, const char* type, const json& shape, const std::string& bytes) {
    header[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data += bytes;
  }
};

std::string error_of(const std::string& name, const std::function<void(Sample&)>& change) {
  Sample sample(name);
  change(sample);
  const Folder folder;
  sample.put(folder);
  try {
    open_checkpoint(folder.path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string error_with(const std::string& name, const char* key, const json& value) {
  return error_of(name, [&](Sample& s) { s.quantization[key] = value; });
}

// Every weight equals what the program itself dequantises: exactly where it becomes int4 or int8, rounded once to
// float16 where it becomes that.
void compare(const Checkpoint& checkpoint, const std::string& name, const std::map<std::string, Format>& formats) {
  const auto file = MappedFile::open(golden("gptq") / (name + ".expected.safetensors"));
  const Safetensors expected = parse_safetensors(file->bytes(), "expected");
  EXPECT_EQ(expected.entries.size(), formats.size());
  EXPECT_EQ(checkpoint.weights.size(), formats.size());
  for (const SafetensorsEntry& entry : expected.entries) {
    const Weight* weight = checkpoint.find(entry.name);
    ASSERT_NE(weight, nullptr) << entry.name;
    EXPECT_EQ(weight->shape, entry.shape) << entry.name;
    const std::string module = entry.name.substr(9, entry.name.size() - 16);  // without "layers.0." and ".weight"
    const Format format = formats.at(module);
    EXPECT_EQ(weight->matrix.format, format) << name << " " << module;
    const std::vector<float> got = floats_of(weight->matrix);
    std::vector<float> want(got.size());
    ASSERT_EQ(entry.end - entry.begin, want.size() * sizeof(float)) << entry.name;
    std::memcpy(want.data(), expected.data.data() + entry.begin, want.size() * sizeof(float));
    const float limit = format == Format::kF16 ? 0x1p-11f : 0;
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_LE(std::abs(got[i] - want[i]), limit * std::abs(want[i])) << name << " " << module << " " << i;
    }
  }
}

const std::map<std::string, std::map<std::string, Format>> kFormatsOf = {
    {"gptq",
     {{"self_attn.q_proj", Format::kInt4},
      {"self_attn.k_proj", Format::kInt4},
      {"self_attn.o_proj", Format::kF16},  // its g_idx is in no order
      {"mlp.up_proj", Format::kInt8},
      {"mlp.down_proj", Format::kF16}}},  // 8 bits with zero points
    {"gptq_v2",
     {{"self_attn.q_proj", Format::kInt4},
      {"self_attn.k_proj", Format::kInt4},
      {"mlp.up_proj", Format::kInt4},
      {"mlp.gate_proj", Format::kF16}}},
    {"awq", {{"self_attn.q_proj", Format::kInt4}, {"mlp.up_proj", Format::kInt4}}},
    {"auto_round",
     {{"self_attn.q_proj", Format::kInt4}, {"self_attn.k_proj", Format::kInt4}, {"mlp.up_proj", Format::kInt8}}},
    {"auto_round_gptq",
     {{"self_attn.q_proj", Format::kInt4}, {"self_attn.k_proj", Format::kInt4}, {"mlp.up_proj", Format::kInt8}}},
    {"auto_round_awq", {{"self_attn.q_proj", Format::kInt4}, {"self_attn.k_proj", Format::kInt4}}},
};

TEST(Gptq, ReadsWhatTheProgramsPacked) {
  for (const auto& [name, formats] : kFormatsOf) {
    const Folder folder;
    Sample(name).put(folder);
    const Checkpoint checkpoint = open_checkpoint(folder.path);
    compare(checkpoint, name, formats);
    EXPECT_EQ(checkpoint.kind, name.starts_with("auto") ? "auto-round" : name == "awq" ? "awq" : "gptq");
  }
}

// Without config.json's word, files beside it say the same; AutoGPTQ's and AutoAWQ's do not name their method.
TEST(Gptq, ReadsTheSettingsFromAFileOfTheirOwn) {
  for (const auto& [name, file] : {std::pair("gptq", "quantize_config.json"),
                                   {"awq", "quant_config.json"},
                                   {"auto_round_gptq", "quantization_config.json"}}) {
    const Folder folder;
    Sample sample(name);
    sample.quantization.erase("quant_method");
    if (std::string(name) == "awq") {  // AutoAWQ's own names
      sample.quantization = {{"zero_point", true}, {"q_group_size", 32}, {"w_bit", 4}, {"version", "GEMM"}};
    }
    sample.put(folder, file);
    compare(open_checkpoint(folder.path), name, kFormatsOf.at(name));
  }
  const Folder plain;  // an unquantised model beside which such a file was left
  std::filesystem::copy(golden("tiny"), plain.path, std::filesystem::copy_options::recursive);
  plain.put("quantize_config.json", R"({"bits": 4, "group_size": 128})");
  EXPECT_EQ(open_checkpoint(plain.path).kind, "huggingface");
}

// Version 1 and version 2 differ by the zero points alone: each read as the other is another matrix.
TEST(Gptq, TheVersionMatters) {
  const Folder folder;
  Sample sample("gptq");
  sample.quantization["checkpoint_format"] = "gptq_v2";
  sample.put(folder);
  const Checkpoint other = open_checkpoint(folder.path);
  const Folder right;
  Sample("gptq").put(right);
  const Checkpoint checkpoint = open_checkpoint(right.path);
  const char* name = "layers.0.self_attn.k_proj.weight";
  EXPECT_NE(floats_of(other.find(name)->matrix), floats_of(checkpoint.find(name)->matrix));
}

// Blocks of columns whose groups are only in another order keep their codes; a bias of zeros is nothing.
TEST(Gptq, GroupsInAnotherOrderStayInt4) {
  const Folder folder, right;
  Sample sample("gptq");
  sample.put(right);
  int32_t* order = sample.words(kQ + ".g_idx");
  for (int col = 0; col < 128; ++col) order[col] = 3 - col / 32;
  sample.add(kQ + ".bias", "F16", {16}, std::string(32, 0));
  sample.put(folder);
  const Checkpoint checkpoint = open_checkpoint(folder.path), usual = open_checkpoint(right.path);
  const Matrix& m = checkpoint.find("layers.0.self_attn.q_proj.weight")->matrix;
  const Matrix& before = usual.find("layers.0.self_attn.q_proj.weight")->matrix;
  ASSERT_EQ(m.format, Format::kInt4);
  EXPECT_EQ(m.group, 32);
  for (int64_t g = 0; g < 4; ++g) {
    for (int64_t row = 0; row < m.rows; ++row) {
      EXPECT_EQ(m.scale.row<uint16_t>(g)[row], before.scale.row<uint16_t>(3 - g)[row]);
    }
  }
}

// Scales of float32 and bfloat16 are as good: int8 with float32 scales, int4 with bfloat16's.
TEST(Gptq, ReadsScalesOfOtherTypes) {
  for (const bool wide : {false, true}) {
    Sample sample("gptq_v2");
    const std::string name = kQ + ".scales";
    std::string bytes;
    for (int i = 0; i < 16; ++i) {
      const float scale = 0.125f * static_cast<float>(i + 1);
      const auto bits = std::bit_cast<uint32_t>(scale);
      bytes.append(reinterpret_cast<const char*>(&bits) + (wide ? 0 : 2), wide ? 4 : 2);
    }
    sample.rename(name, kLayer + "self_attn.v_proj.scales");  // the bytes stay, as a module of its own
    for (const char* part : {".qweight", ".qzeros", ".g_idx"}) {
      const json entry = sample.header.at(kQ + part);
      const size_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
      sample.add(kLayer + "self_attn.v_proj" + part, "I32", entry["shape"], sample.data.substr(begin, end - begin));
    }
    sample.add(name, wide ? "F32" : "BF16", {1, 16}, bytes);
    const Folder folder;
    sample.put(folder);
    const Checkpoint checkpoint = open_checkpoint(folder.path);
    const Matrix& m = checkpoint.find("layers.0.self_attn.q_proj.weight")->matrix;
    const Matrix& half = checkpoint.find("layers.0.self_attn.v_proj.weight")->matrix;
    EXPECT_EQ(m.format, wide ? Format::kInt8 : Format::kInt4);
    const std::vector<float> got = floats_of(m), other = floats_of(half);
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t row = i / 96;
      const float code = std::round(other[i] / f16_to_float(half.scale.row<uint16_t>(0)[row]));
      ASSERT_EQ(got[i], code * 0.125f * static_cast<float>(row + 1));
    }
  }
}

// Passes over a model give the file's pages back to the system. What was unpacked is not the file's: it turned to
// zeros.
TEST(Gptq, QuantisingLeavesTheSourceAsItWas) {
  constexpr int kRows = 256, kCols = 256, kGroups = 2;  // pages of values
  const Folder folder, out;
  Sample sample("gptq");
  sample.header = json::object();
  sample.data.clear();
  std::string codes(kRows * kCols / 2, '\0'), scales, order;
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<char>(i * 37 % 251);
  for (int i = 0; i < kGroups * kRows; ++i) scales += std::string("\x00\x2c", 2);  // 1/16
  for (int i = 0; i < kCols; ++i) order += std::string(1, static_cast<char>(i % 2)) + std::string(3, '\0');
  const std::string stem = kLayer + "mlp.gate_proj";
  sample.add("model.language_model.embed_tokens.weight", "BF16", {4, 32}, std::string(256, '\0'));
  sample.add(stem + ".qweight", "I32", {kCols / 8, kRows}, codes);
  sample.add(stem + ".qzeros", "I32", {kGroups, kRows / 8}, std::string(kGroups * kRows / 2, '\x77'));
  sample.add(stem + ".scales", "F16", {kGroups, kRows}, scales);
  sample.add(stem + ".g_idx", "I32", {kCols}, order);  // so values are unpacked
  sample.put(folder);
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  const Matrix& m = checkpoint.find("layers.0.mlp.gate_proj.weight")->matrix;
  ASSERT_EQ(m.format, Format::kF16);
  const std::vector<float> before = floats_of(m);
  folder.put("keep.json", R"([{"pattern": "x"}])");
  quantize_checkpoint(checkpoint, load_recipe(folder.path / "keep.json", {1, {}}), out.path, {});
  EXPECT_EQ(floats_of(m), before);
  EXPECT_GT(std::ranges::count_if(before, [](float v) { return v != 0; }), kRows * kCols / 2);
}

TEST(Gptq, RefusesVariantsByName) {
  EXPECT_EQ(error_with("gptq", "checkpoint_format", "gptq"), "");
  EXPECT_THAT(error_with("gptq", "checkpoint_format", "marlin"), HasSubstr("GPTQ in the layout 'marlin'"));
  EXPECT_THAT(error_with("gptq", "is_marlin_format", true), HasSubstr("'marlin'"));
  for (const int bits : {2, 3, 5}) {
    EXPECT_THAT(error_with("gptq", "bits", bits), HasSubstr(std::to_string(bits) + " bits; 4 and 8 are read"));
    EXPECT_THAT(error_with("gptq", "dynamic", {{"+:x", {{"bits", bits}}}}), HasSubstr("+:x of dynamic is"));
    EXPECT_THAT(error_with("auto_round", "extra_config", {{"x", {{"bits", bits}}}}), HasSubstr("x of extra_config"));
  }
  EXPECT_EQ(error_with("awq", "modules_to_not_convert", {"lm_head"}), "");
  for (const char* layout : {"gemv", "gemv_fast", "llm-awq", "marlin", "exllama"}) {
    EXPECT_THAT(error_with("awq", "version", layout), AllOf(HasSubstr("AWQ in the layout"), HasSubstr(layout)));
  }
  EXPECT_THAT(error_with("awq", "bits", 8), HasSubstr("AWQ of 8 bits"));
  EXPECT_THAT(error_with("gptq", "pack_dtype", "int64"), HasSubstr("pack_dtype"));
  EXPECT_THAT(error_with("gptq", "rotation", "hadamard"), HasSubstr("'rotation'"));
  EXPECT_THAT(error_with("gptq", "adapter", {{"name", "lora"}}), HasSubstr("'adapter'"));
  EXPECT_THAT(error_with("auto_round", "packing_format", "auto_round:llm_compressor"), HasSubstr("llm_compressor"));
  EXPECT_THAT(error_with("auto_round", "act_bits", 8), HasSubstr("act_bits"));
  EXPECT_EQ(error_with("auto_round", "act_bits", 16), "");
  EXPECT_THAT(error_with("auto_round", "data_type", "mx_fp"), HasSubstr("mx_fp"));
  for (const json& group : json::parse(R"([0, -2, -128, 1.5, "128", 99999999999999999999, 4294967296])")) {
    EXPECT_THAT(error_with("gptq", "group_size", group), HasSubstr("(group_size) are not read")) << group;
  }
}

TEST(Gptq, RefusesDamagedTensors) {
  const auto error = [](const std::function<void(Sample&)>& change) { return error_of("gptq", change); };
  const auto reshaped = [&](const char* part, const json& shape) {
    return error([&](Sample& s) { s.header[kQ + part]["shape"] = shape; });
  };
  EXPECT_THAT(error([](Sample& s) { s.rename(kQ + ".scales", "x.scales"); }), HasSubstr("is missing"));
  EXPECT_THAT(error([](Sample& s) { s.rename(kQ + ".qzeros", "x.qzeros"); }), HasSubstr("is missing"));
  EXPECT_THAT(error([](Sample& s) { s.rename(kQ + ".qweight", "x.qweight"); }), HasSubstr("no packed weight"));
  EXPECT_THAT(error([](Sample& s) { s.rename(kQ + ".g_idx", kQ + ".perm"); }), HasSubstr("not one that Gemma 4 has"));
  EXPECT_THAT(error([](Sample& s) {
                const json before = s.header;
                for (const auto& [name, entry] : before.items()) {
                  if (name.starts_with(kQ)) s.rename(name, "model.embed_tokens" + name.substr(kQ.size()));
                }
              }),
              HasSubstr("a quantised embedding"));
  EXPECT_THAT(error([](Sample& s) { s.header[kQ + ".qweight"]["dtype"] = "F32"; }), HasSubstr("not I32"));
  EXPECT_THAT(reshaped(".qweight", {8, 32}), HasSubstr("different rows"));
  EXPECT_THAT(reshaped(".qweight", {256}), HasSubstr("shape"));
  EXPECT_THAT(reshaped(".qzeros", {2, 4}), HasSubstr("different groups"));
  EXPECT_THAT(reshaped(".scales", {8, 8}), HasSubstr("different groups"));
  EXPECT_THAT(reshaped(".scales", {2, 32}), HasSubstr("different groups"));
  EXPECT_THAT(error([](Sample& s) { s.words(kQ + ".g_idx")[5] = 4; }), HasSubstr("g_idx names the group 4 of 4"));
  EXPECT_THAT(error([](Sample& s) { s.words(kQ + ".g_idx")[5] = -1; }), HasSubstr("g_idx names the group -1"));
  EXPECT_THAT(error([](Sample& s) { s.words(kQ + ".scales")[0] = 0x7c007c00; }), HasSubstr("not a finite number"));
  // 65,504 as a scale: fine where codes stay codes, too much where products are stored as F16. Of F32: no product.
  EXPECT_EQ(error([](Sample& s) { s.words(kQ + ".scales")[0] = 0x7bff7bff; }), "");
  EXPECT_THAT(error([](Sample& s) { s.words(kO + ".scales")[0] = 0x7bff7bff; }), HasSubstr("more than F16 can hold"));
  EXPECT_THAT(error([](Sample& s) { s.add(kQ + ".bias", "F16", {1}, "ab"); }), HasSubstr("has a bias"));
  EXPECT_THAT(error([](Sample& s) { s.add(kQ + ".bias", "F16", {0}, ""); }), HasSubstr("has a bias"));
  EXPECT_THAT(error_with("gptq", "desc_act", "yes"), HasSubstr("desc_act of its quantization_config is neither"));
  EXPECT_THAT(error_with("gptq", "sym", 1), HasSubstr("sym of its quantization_config is neither"));
  EXPECT_THAT(error_of("awq", [](Sample& s) { s.add(kQ + ".g_idx", "I32", {64}, std::string(256, '\0')); }),
              HasSubstr("has a g_idx, which AWQ has not"));
  EXPECT_THAT(error([](Sample& s) { s.add(kQ + ".weight", "F16", {1, 1}, "ab"); }), HasSubstr("appears twice"));
  EXPECT_THAT(error([](Sample& s) { s.quantization.erase("dynamic"); }), HasSubstr("of 4 bits, which"));
  EXPECT_EQ(error_with("gptq_v2", "desc_act", true), "");  // it has its g_idx
  EXPECT_THAT(error_of("gptq_v2",
                       [](Sample& s) {
                         s.quantization["desc_act"] = true;
                         s.rename(kQ + ".g_idx", kQ + ".bias");  // all zeros, which is no bias
                       }),
              HasSubstr("desc_act needs its g_idx"));
  EXPECT_THAT(error_with("awq", "group_size", 64),
              HasSubstr("its scales have 2 groups, which 64 columns in groups of 64"));
}

// AutoGPTQ 0.7 (save_quantized) names the file after its settings, and writes them beside it.
TEST(Gptq, ReadsFilesNamedAsAutoGptqNamesThem) {
  const Sample sample("gptq");
  const Folder usual, named;
  sample.put(usual);
  sample.put(named, "quantize_config.json", "gptq_model-4bit-32g.safetensors");
  const Checkpoint want = open_checkpoint(usual.path), got = open_checkpoint(named.path);
  EXPECT_EQ(got.kind, "gptq");
  EXPECT_EQ(got.order, want.order);
  for (const auto& [name, weight] : want.weights) {
    EXPECT_EQ(floats_of(got.weights.at(name).matrix), floats_of(weight.matrix)) << name;
  }
  // In shards, with an index of the same name.
  json index = {{"weight_map", json::object()}};
  for (const auto& [name, entry] : sample.header.items()) {
    if (name != "__metadata__") index["weight_map"][name] = "gptq_model-4bit-32g-00001-of-00001.safetensors";
  }
  const Folder shards;
  sample.put(shards, "quantize_config.json", "gptq_model-4bit-32g-00001-of-00001.safetensors");
  shards.put("gptq_model-4bit-32g.safetensors.index.json", index.dump());
  EXPECT_EQ(open_checkpoint(shards.path).order, want.order);
  const auto error = [](const Folder& folder) -> std::string {
    try {
      open_checkpoint(folder.path);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  std::filesystem::remove(shards.path / "gptq_model-4bit-32g-00001-of-00001.safetensors");
  EXPECT_THAT(error(shards), AllOf(HasSubstr("which gptq_model-4bit-32g.safetensors.index.json lists"),
                                   HasSubstr("the download is not complete")));
  sample.put(named, "quantize_config.json", "gptq_model-8bit-32g.safetensors");
  EXPECT_THAT(error(named),
              HasSubstr("several files of weights (gptq_model-4bit-32g.safetensors, gptq_model-8bit-32g"));
  sample.put(named, "quantize_config.json");  // a file of the usual name comes first
  EXPECT_EQ(error(named), "");
}

}  // namespace
}  // namespace gemma4
