#include "checkpoint/torchao.h"
#include "base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/check.h"
#include "base/mapped_file.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

using namespace testing_files;

using nlohmann::json;
using testing::HasSubstr;

// The worked example of the format's description: one tensor of each kind (tests/golden/safetensors).
struct Example {
  json header;
  std::string data;

  Example() {
    const std::string file = read_file(SOURCE_DIR "/tests/golden/safetensors/worked_example.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    EXPECT_EQ(length, 1928u);
    EXPECT_EQ(file.size(), 2686u);
    header = read_json<json>(file.substr(8, length));
    data = file.substr(8 + length);
  }

  // Changes the metadata line of `name`.
  template <typename Change>
  void metadata(const std::string& name, Change change) {
    json line = read_json<json>(header["__metadata__"][name].get<std::string>());
    change(line);
    header["__metadata__"][name] = line.dump();
  }

  Checkpoint open(const Folder& folder) const {
    folder.put("x.safetensors", container(header.dump(), data));
    return open_checkpoint(folder.path / "x.safetensors");
  }

  std::string refusal() const {
    const Folder folder;
    try {
      open(folder);
    } catch (const Error& error) {
      return error.what();
    }
    return "opened";
  }
};

TEST(Torchao, WorkedExample) {
  const Folder folder;
  const Checkpoint checkpoint = Example().open(folder);
  EXPECT_EQ(checkpoint.kind, "torchao");
  EXPECT_EQ(checkpoint.order, (std::vector<std::string>{"embed_tokens.weight", "layers.0.mlp.gate_proj.weight",
                                                        "norm.weight", "layers.0.layer_scalar", kPositionTable}));
  // int4: scale 0.125, zero 8, byte i of the data is 3 i: the even column is the low nibble.
  const auto gate = row_of(checkpoint, "layers.0.mlp.gate_proj.weight", 1);
  for (int col = 0; col < 64; ++col) {
    const int byte = 3 * (32 + col / 2) % 256;
    EXPECT_EQ(gate[static_cast<size_t>(col)], 0.125f * static_cast<float>((col % 2 ? byte >> 4 : byte & 15) - 8));
  }
  // int8 with one scale (1) a row: byte i is 7 i.
  const auto embed = row_of(checkpoint, "embed_tokens.weight", 3);
  EXPECT_EQ(embed[5], static_cast<float>(static_cast<int8_t>(7 * (3 * 64 + 5))));
  // The position table: scale 0.5, rows are axis 0's, then axis 1's.
  const auto table = row_of(checkpoint, kPositionTable, 2);
  EXPECT_EQ(checkpoint.find(kPositionTable)->matrix.rows, 4);
  EXPECT_EQ(table[1], 0.5f * static_cast<float>(static_cast<int8_t>(5 * (128 + 1))));
  EXPECT_EQ(checkpoint.find(kPositionTable)->bytes, 256u + 16u);
  EXPECT_EQ(checkpoint.find("embed_tokens.weight")->bytes, 256u + 8u + 4u);
}

TEST(Torchao, WriterMakesTheSameFile) {
  const Example example;
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata = example.header["__metadata__"];
  for (const auto& [name, value] : example.header.items()) {
    if (name == "__metadata__") continue;
    const std::map<std::string, DType> types = {
        {"F32", DType::kF32}, {"BF16", DType::kBF16}, {"I8", DType::kI8}, {"U8", DType::kU8}};
    entries.push_back({name, types.at(value["dtype"]), value["shape"]});
  }
  EXPECT_EQ(metadata["embed_tokens.weight"], torchao_int8_metadata(64));
  EXPECT_EQ(metadata["layers.0.mlp.gate_proj.weight"], torchao_int4_metadata(2, 64, 32));
  EXPECT_EQ(metadata["norm.weight"], torchao_plain_metadata());
  EXPECT_EQ(metadata[kTensorNames],
            torchao_names_metadata({"embed_tokens.weight", "layers.0.mlp.gate_proj.weight", "norm.weight",
                                    "layers.0.layer_scalar", kPositionCodes, kPositionScale}));
  const Folder folder;
  SafetensorsWriter writer(folder.path / "y.safetensors", entries, metadata);
  for (const auto& entry : entries) {
    const auto& offsets = example.header[entry.name]["data_offsets"];
    const uint64_t begin = offsets[0], end = offsets[1];
    writer.write(entry.name, 0, example.data.data() + begin, end - begin);
  }
  writer.commit();
  const std::string file = read_file(folder.path / "y.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  EXPECT_EQ(length, 1928u);
  EXPECT_EQ(read_json<json>(file.substr(8, length)), example.header);
  EXPECT_TRUE(file.substr(8 + length) == example.data);
}

TEST(Torchao, RefusesBadMetadata) {
  const auto changed = [](const std::string& name, auto change) {
    Example example;
    example.metadata(name, change);
    return example.refusal();
  };
  const std::string gate = "layers.0.mlp.gate_proj.weight", embed = "embed_tokens.weight";
  EXPECT_THAT(changed(gate, [](json& m) { m["_type"] = "NVFP4Tensor"; }), HasSubstr("NVFP4Tensor"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_type"] = 4; }), HasSubstr("which is not read"));
  EXPECT_THAT(changed(gate, [](json& m) { m.erase("_type"); }), HasSubstr("lacks _type"));
  EXPECT_THAT(changed(gate, [](json& m) { m.erase("_data"); }), HasSubstr("lacks _data"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"] = 7; }), HasSubstr("lacks activation_dtype"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["shape"] = {2, 62}; }), HasSubstr("do not divide its 62 columns"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["shape"] = {4, 32}; }), HasSubstr("does not have the shape"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["shape"] = {0, 64}; }), HasSubstr("bad size"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["shape"] = {1, 2, 64}; }), HasSubstr("two dimensions"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["block_size"] = {2, 32}; }), HasSubstr("block_size"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["block_size"] = {1, 64}; }), HasSubstr("does not have the shape"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["block_size"] = {1, 0}; }), HasSubstr("bad size"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["block_size"] = {1, -32}; }), HasSubstr("bad size"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_data"]["activation_dtype"]["_data"] = "float16"; }),
              HasSubstr("bfloat16"));
  EXPECT_THAT(changed(gate, [](json& m) { m["_tensor_data_names"] = {"qdata", "scale"}; }), HasSubstr("parts"));
  EXPECT_THAT(changed(gate,
                      [](json& m) {
                        m["_tensor_data_names"] = {"qdata", "scale", "scale"};
                      }),
              HasSubstr("parts"));
  EXPECT_EQ(changed(gate, [](json& m) { m["_tensor_data_names"] = {"zero_point", "qdata", "scale"}; }), "opened");
  EXPECT_EQ(changed(embed, [](json& m) { m["_data"]["target_dtype"]["_data"] = "int4"; }), "opened");
  for (const char* type : {"uint4", "int9", "int16", "int"}) {
    EXPECT_THAT(changed(embed, [&](json& m) { m["_data"]["target_dtype"]["_data"] = type; }),
                HasSubstr("int1 to int8"));
  }
  EXPECT_THAT(changed(embed, [](json& m) { m["_data"]["activation_quantization"] = "int8_asym"; }),
              HasSubstr("activation_quantization"));
  EXPECT_THAT(changed(embed, [](json& m) { m["_type"] = "Tensor"; }), HasSubstr("embed_tokens.weight is missing"));
}

// transformers saves TorchAoConfig's weights under its own names; the tied head is listed and has no tensor.
TEST(Torchao, ReadsWhatTransformersSavesExactly) {
  for (const std::string kind : {"int8", "int8_groups", "int4"}) {
    const std::filesystem::path folder = golden("torchao") / kind;
    const Checkpoint checkpoint = open_checkpoint(folder);
    EXPECT_EQ(checkpoint.kind, "torchao");
    EXPECT_EQ(checkpoint.find("lm_head.weight"), nullptr);
    const auto file = MappedFile::open(folder / "expected.safetensors");
    const Safetensors expected = parse_safetensors(file->bytes(), "expected");
    EXPECT_EQ(checkpoint.weights.size(), expected.entries.size()) << kind;
    EXPECT_EQ(expected.entries.size(), kind == "int8_groups" ? 5u : 4u);
    for (const SafetensorsEntry& entry : expected.entries) {
      const Weight* weight = checkpoint.find(entry.name);
      ASSERT_NE(weight, nullptr) << entry.name;
      EXPECT_EQ(weight->shape, entry.shape) << entry.name;
      EXPECT_EQ(weight->matrix.format, entry.shape.size() == 1 ? Format::kBF16 : Format::kInt8);
      const std::vector<float> got = floats_of(weight->matrix);
      ASSERT_EQ(entry.end - entry.begin, got.size() * sizeof(float)) << entry.name;
      EXPECT_EQ(std::memcmp(got.data(), expected.data.data() + entry.begin, got.size() * sizeof(float)), 0)
          << entry.name;
    }
  }
}

// Opens a copy of a save of transformers in which a line of metadata of one file was changed.
std::string refusal_of(const std::string& kind, const std::string& changed, const std::function<void(json&)>& change) {
  const Folder copy;
  for (const auto& entry : std::filesystem::directory_iterator(golden("torchao") / kind)) {
    const std::string name = entry.path().filename(), bytes = read_file(entry.path());
    if (name != changed) {
      copy.put(name, bytes);
      continue;
    }
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    json header = read_json<json>(bytes.substr(8, length));
    change(header);
    copy.put(name, container(header.dump(), bytes.substr(8 + length)));
  }
  try {
    open_checkpoint(copy.path);
  } catch (const Error& error) {
    return error.what();
  }
  return "opened";
}

TEST(Torchao, RefusesDamagedSavesOfTransformers) {
  const std::string q = "model.language_model.layers.0.self_attn.q_proj";
  const auto changed = [&](const std::function<void(json&)>& change) {
    return refusal_of("int8", "model.safetensors", [&](json& header) {
      json line = read_json<json>(header["__metadata__"][q + ".weight"].get<std::string>());
      change(line);
      header["__metadata__"][q + ".weight"] = line.dump();
    });
  };
  EXPECT_EQ(changed([](json&) {}), "opened");
  EXPECT_THAT(changed([](json& m) {
                m["_data"]["act_quant_kwargs"] = {{"_type", "QuantizeTensorToInt8Kwargs"}};
              }),
              HasSubstr("quantised activations"));
  EXPECT_THAT(changed([](json& m) { m["_tensor_data_names"].push_back("act_pre_scale"); }),
              HasSubstr("its parts are not"));
  EXPECT_THAT(changed([](json& m) {
                m["_tensor_data_names"] = {"qdata", "scale"};
              }),
              HasSubstr("belongs to no weight"));
  EXPECT_THAT(changed([](json& m) { m["_data"]["block_size"] = {64, 96}; }), HasSubstr("block_size"));
  EXPECT_THAT(changed([](json& m) { m["_type"] = "Int4TilePackedTo4dTensor"; }), HasSubstr("Int4TilePackedTo4dTensor"));
  const auto shard = [&](const std::function<void(json&)>& change) {
    return refusal_of("int8_groups", "model-00002-of-00003.safetensors", change);
  };
  EXPECT_EQ(shard([](json&) {}), "opened");
  EXPECT_THAT(shard([](json& h) { h["__metadata__"]["format"] = "np"; }), HasSubstr("shards have different metadata"));
  EXPECT_THAT(shard([](json& h) { h["__metadata__"].erase("tensor_names"); }),
              HasSubstr("is not one that Gemma 4 has"));
  EXPECT_THAT(shard([](json& h) { h.erase("__metadata__"); }), testing::Not(HasSubstr("opened")));
}

TEST(Torchao, RefusesNamesThatDoNotFit) {
  Example listed;  // a name that the metadata does not describe
  listed.header["__metadata__"]["tensor_names"] = R"(["norm.weight", "lm_head.weight"])";
  EXPECT_THAT(listed.refusal(), HasSubstr("lm_head.weight has no line of metadata"));
  Example missing;  // a tensor that no name covers
  missing.header["__metadata__"]["tensor_names"] = R"(["norm.weight"])";
  EXPECT_THAT(missing.refusal(), HasSubstr("belongs to no weight"));
  Example twice;
  twice.header["__metadata__"]["tensor_names"] = R"(["norm.weight", "norm.weight"])";
  EXPECT_THAT(twice.refusal(), HasSubstr("norm.weight is used twice"));
  Example strange;
  strange.header["__metadata__"]["tensor_names"] = R"(["nonsense"])";
  strange.header["__metadata__"]["nonsense"] = strange.header["__metadata__"]["embed_tokens.weight"];
  EXPECT_THAT(strange.refusal(), HasSubstr("has a dot"));
  Example number;
  number.header["__metadata__"]["tensor_names"] = "[1]";
  EXPECT_THAT(number.refusal(), HasSubstr("not a name"));
  Example broken;
  broken.header["__metadata__"]["tensor_names"] = "[\"norm.weight\"";
  EXPECT_THAT(broken.refusal(), HasSubstr("not valid JSON"));
  Example renamed;
  renamed.header["x.mlp._weight_qdata"] = renamed.header["layers.0.mlp.gate_proj._weight_qdata"];
  renamed.header.erase("layers.0.mlp.gate_proj._weight_qdata");
  EXPECT_THAT(renamed.refusal(), HasSubstr("layers.0.mlp.gate_proj._weight_qdata is missing"));
}

TEST(Torchao, RefusesTensorsOfTheWrongTypeAndAsymmetricInt8) {
  Example type;
  type.header["layers.0.mlp.gate_proj._weight_scale"]["dtype"] = "F16";
  EXPECT_THAT(type.refusal(), HasSubstr("has the type F16 where BF16 is due"));
  Example zero;
  zero.data[427] = 1;
  EXPECT_THAT(zero.refusal(), HasSubstr("zero points are not all 0"));
  Example table;
  table.header["vision_tower.patch_embedder._pet_scale"]["shape"] = {2, 2};
  EXPECT_THAT(table.refusal(), HasSubstr("one value for each row"));
}

TEST(Torchao, RefusesHalfOfThePositionTable) {
  const std::string file = read_file(golden("safetensors/worked_example.safetensors"));
  const auto refusal = [&](const std::string& dropped, bool listed) -> std::string {
    const Folder folder;
    folder.put("x.safetensors", without_tensors(
                                    file, [&](const std::string& name) { return name == dropped; }, listed));
    try {
      open_checkpoint(folder.path / "x.safetensors");
    } catch (const Error& error) {
      return error.what();
    }
    return "opened";
  };
  EXPECT_EQ(refusal("", false), "opened");
  for (const bool listed : {false, true}) {
    EXPECT_THAT(refusal(kPositionScale, listed),
                HasSubstr("the tensor vision_tower.patch_embedder._pet_scale is missing"));
  }
  EXPECT_THAT(refusal(kPositionCodes, true), HasSubstr("the tensor vision_tower.patch_embedder._pet_int8 is missing"));
  EXPECT_THAT(refusal(kPositionCodes, false),
              HasSubstr("the tensor vision_tower.patch_embedder._pet_scale belongs to no weight"));
}

}  // namespace
}  // namespace gemma4
