// `gemma4 quantize` and `gemma4 inspect`, run as programs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstring>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_testing.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;
using testing_files::Folder;

const std::string kTiny = SOURCE_DIR "/tests/golden/tiny";

struct Outcome {
  int exit;
  std::string out, err;
};

Outcome gemma4(const std::string& arguments) {
  const Folder folder;
  const std::string out = folder.path / "out", err = folder.path / "err";
  const int status = std::system((GEMMA4_BINARY " " + arguments + " >" + out + " 2>" + err).c_str());
  return {WEXITSTATUS(status), read_file(out), read_file(err)};
}

void copy_tiny(const fs::path& to) { fs::copy(kTiny, to, fs::copy_options::recursive); }

TEST(QuantizeCommand, MakesADirectoryThatInspectApproves) {
  const Folder folder;
  const std::string out = folder.path / "out";
  const Outcome made = gemma4("quantize --model-dir " + kTiny + " --output " + out + " --quant-recipe balanced");
  EXPECT_EQ(made.exit, 0) << made.err;
  EXPECT_EQ(made.out, "");
  EXPECT_THAT(made.err, HasSubstr("143 tensors"));
  const Outcome seen = gemma4("inspect --json " + out);
  EXPECT_EQ(seen.exit, 0) << seen.out;
  const json facts = read_json<json>(seen.out);
  EXPECT_EQ(facts["kind"], "torchao");
  EXPECT_EQ(facts["config"]["layers"], 7);
  EXPECT_EQ(facts["memory"]["max_seq_len"], 2048);
  EXPECT_EQ(facts["memory"]["backend"], "cpu");
  EXPECT_GT(facts["memory"]["free_bytes"], 0);
  EXPECT_GT(facts["memory"]["cache_bytes_per_token"], 0);
  EXPECT_EQ(facts["refused"], json::array());
  EXPECT_EQ(facts["totals"]["all"]["tensors"], 143);
  // balanced: layer 6 is full and at the edge, so its k_proj is int8; layer 5 is full but not at the edge.
  std::map<std::string, std::string> formats;
  for (const json& row : facts["tensors"]) formats[row["name"]] = row["format"];
  EXPECT_EQ(formats["layers.6.self_attn.k_proj.weight"], "int8");
  EXPECT_EQ(formats["layers.5.self_attn.k_proj.weight"], "int4");
  EXPECT_EQ(formats["layers.0.self_attn.k_proj.weight"], "int4");
  EXPECT_EQ(formats["layers.0.self_attn.v_proj.weight"], "int8");
}

TEST(QuantizeCommand, BadInputIsOneLineExitTwoAndNothingWritten) {
  const Folder folder;
  const std::string out = folder.path / "out";
  const auto refused = [&](const std::string& arguments, const std::string& why) {
    const Outcome outcome = gemma4("quantize --output " + out + " " + arguments);
    EXPECT_EQ(outcome.exit, 2) << arguments;
    EXPECT_THAT(outcome.err, HasSubstr(why));
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_FALSE(fs::exists(out));
  };
  refused("--model-dir /nonexistent", "/nonexistent");
  refused("--model-dir " + kTiny + " --quant-recipe no_such", "no_such");
  refused("--model-dir " + kTiny + " --quant-recipe sensitive_gs64", "multiple of the group size 64");
  // A config that disagrees with the weights, and a file that is cut.
  copy_tiny(folder.path / "model");
  const std::string model = folder.path / "model";
  const json config = read_json<json>(read_file(folder.path / "model/config.json"));
  json wide = config;
  wide["text_config"]["intermediate_size"] = 192;
  folder.put("model/config.json", wide.dump());
  refused("--model-dir " + model, "config.json asks for");
  folder.put("model/config.json", config.dump());
  const std::string weights = read_file(folder.path / "model/model.safetensors");
  folder.put("model/model.safetensors", weights.substr(0, weights.size() - 100));
  refused("--model-dir " + model, "cut short");
}

TEST(InspectCommand, TextNamesConfigTensorsAndTotals) {
  const Outcome seen = gemma4("inspect " + kTiny);
  EXPECT_EQ(seen.exit, 0);
  EXPECT_THAT(seen.out, HasSubstr("7 layers, hidden 96"));
  EXPECT_THAT(seen.out, HasSubstr("embedding x 9.8125"));
  EXPECT_THAT(seen.out, HasSubstr("vision_tower.std_scale"));
  EXPECT_THAT(seen.out, HasSubstr("142 tensors"));
  EXPECT_THAT(seen.out, HasSubstr("  it can run\n"));
  EXPECT_THAT(seen.out, HasSubstr("  up to 2048 tokens of prompt and answer"));
}

TEST(InspectCommand, SaysWhatWouldBeRefused) {
  const Folder folder;
  copy_tiny(folder.path / "model");
  json config = read_json<json>(read_file(folder.path / "model/config.json"));
  config["text_config"]["num_hidden_layers"] = 6;
  config["text_config"]["layer_types"].erase(6);
  folder.put("model/config.json", config.dump());
  fs::remove(folder.path / "model/tokenizer.json");
  const Outcome seen = gemma4("inspect --json " + (folder.path / "model").string());
  EXPECT_EQ(seen.exit, 1);
  const std::string refused = read_json<json>(seen.out)["refused"].dump();
  EXPECT_THAT(refused, HasSubstr("layers.6.layer_scalar is not part of this model"));
  EXPECT_THAT(refused, HasSubstr("no tokenizer"));
  EXPECT_EQ(gemma4("inspect /nonexistent").exit, 2);
}

TEST(DiffCommand, MeasuresWhatQuantisingCosts) {
  const Folder folder;
  const std::string out = folder.path / "out";
  ASSERT_EQ(gemma4("quantize --model-dir " + kTiny + " --output " + out).exit, 0);
  const Outcome same = gemma4("diff --json " + kTiny + " " + kTiny);
  EXPECT_EQ(same.exit, 0) << same.err;
  EXPECT_EQ(read_json<json>(same.out)["total"]["equal"], true);
  const Outcome seen = gemma4("diff --json " + kTiny + " " + out);
  EXPECT_EQ(seen.exit, 0) << seen.err;
  const json facts = read_json<json>(seen.out);
  EXPECT_EQ(facts["tensors"].size(), 143u);  // the tied head is compared with the embedding
  EXPECT_EQ(facts["problems"], json::array());
  for (const json& row : facts["tensors"]) {
    const double relative = row["relative"], cosine = row["cosine"];
    if (row["format_b"] == "bf16") {
      EXPECT_EQ(row["equal"], true) << row["name"];
    } else {
      EXPECT_GT(relative, 0.001) << row["name"];
      EXPECT_LT(relative, row["format_b"] == "int4/32" ? 0.12 : 0.02) << row["name"];
      EXPECT_GT(cosine, row["format_b"] == "int4/32" ? 0.99 : 0.9997) << row["name"];
      EXPECT_GT(row["snr_db"], row["format_b"] == "int4/32" ? 17 : 30) << row["name"];
    }
  }
  EXPECT_THAT(gemma4("diff " + kTiny + " " + out).out, HasSubstr("bf16 -> int4/32"));
  // Another model: tensors without a counterpart are named.
  const Outcome other = gemma4("diff " + kTiny + " " SOURCE_DIR "/models/demo");
  EXPECT_EQ(other.exit, 1);
  EXPECT_THAT(other.out, HasSubstr("tensor layers.6.mlp.up_proj.weight is only in " + kTiny));
  EXPECT_THAT(other.out, HasSubstr("tensor norm.weight is 1 x 96 and 1 x 256"));
}

TEST(DiffCommand, ComparesAcrossFormats) {
  const Folder folder;
  const std::string gguf = folder.path / "tiny.gguf", mlx = folder.path / "mlx";
  const std::string from = " --model-dir " + kTiny;
  ASSERT_EQ(gemma4("export --format gguf --mmproj" + from + " --output " + gguf).exit, 0);
  ASSERT_EQ(gemma4("export --format mlx --bits 8 --group 32" + from + " --output " + mlx).exit, 0);
  for (const std::string& path : {gguf, mlx, std::string(SOURCE_DIR "/tests/golden/gguf/tiny2.gguf")}) {
    const Outcome seen = gemma4("inspect --json " + path);
    EXPECT_EQ(seen.exit, 0) << seen.out << seen.err;
    EXPECT_EQ(read_json<json>(seen.out)["kind"], path == mlx ? "mlx" : "gguf");
  }
  const json exact = read_json<json>(gemma4("diff --json " + kTiny + " " + gguf).out);
  EXPECT_EQ(exact["problems"], json::array());
  EXPECT_EQ(exact["total"]["equal"], true);
  const json close = read_json<json>(gemma4("diff --json " + gguf + " " + mlx).out);
  EXPECT_EQ(close["problems"], json::array());
  EXPECT_EQ(close["total"]["equal"], false);
  EXPECT_LT(close["total"]["relative"], 0.02);
  EXPECT_GT(close["total"]["snr_db"], 35);
  // The vision tower is in another file: without --mmproj this is a text model.
  fs::rename(folder.path / "mmproj-tiny.gguf", folder.path / "vision.gguf");
  EXPECT_FALSE(read_json<json>(gemma4("inspect --json " + gguf).out)["config"].contains("vision"));
  const Outcome whole = gemma4("inspect --json " + gguf + " --mmproj " + (folder.path / "vision.gguf").string());
  EXPECT_TRUE(read_json<json>(whole.out)["config"].contains("vision"));
}

TEST(ExportCommand, WithoutVisionWritesATextModelInEveryFormat) {
  const Folder folder;
  const auto exported = [&](const std::string& format, const std::string& more) {
    return gemma4("export --model-dir " + kTiny + " --format " + format + " --output " +
                  (folder.path / format).string() + (format == "gguf" ? ".gguf" : "") + more);
  };
  for (const std::string format : {"gguf", "mlx", "program"}) {
    ASSERT_EQ(exported(format, std::string(" --no-vision") + (format == "mlx" ? " --group 32" : "")).exit, 0) << format;
    const std::string path = (folder.path / format).string() + (format == "gguf" ? ".gguf" : "");
    const json seen = read_json<json>(gemma4("inspect --json " + path).out);
    EXPECT_EQ(seen["kind"], format);
    EXPECT_FALSE(seen["config"].contains("vision")) << format;
    EXPECT_EQ(seen["refused"], json::array()) << format;
    for (const auto& entry : fs::recursive_directory_iterator(folder.path)) {
      EXPECT_THAT(entry.path().string(), testing::Not(HasSubstr("mmproj")));
    }
  }
  const std::string weights = read_file(folder.path / "mlx" / "model.safetensors");
  EXPECT_EQ(weights.find("vision"), weights.npos);
  const Outcome both = exported("gguf", " --mmproj --no-vision");
  EXPECT_EQ(both.exit, 2);
  EXPECT_EQ(both.err, "gemma4 export: --mmproj excludes --no-vision\n");
}

// The tiny checkpoint with its matrices in float32, which quantising rounds to bf16 where it leaves them.
std::string in_float32(const Folder& folder) {
  copy_tiny(folder.path / "float32");
  const std::string bytes = read_file(kTiny + "/model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  json header = read_json<json>(bytes.substr(8, length));
  for (auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    entry["dtype"] = "F32";
    for (json& offset : entry["data_offsets"]) offset = 2 * offset.get<size_t>();
  }
  std::string data;
  for (size_t at = 8 + length; at < bytes.size(); at += 2) data += std::string(2, '\0') + bytes.substr(at, 2);
  data[2 * (bytes.size() - 8 - length) - 4 * 1000] = 1;  // between two bf16 numbers
  folder.put("float32/model.safetensors", testing_files::container(header.dump(), data));
  return folder.path / "float32";
}

// Every file of `folder`, by name; of program.json what does not say where it is from.
std::map<std::string, std::string> files_in(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    files[name] = read_file(entry.path());
    if (name != "program.json") continue;
    json program = read_json<json>(files[name]);
    for (const char* key : {"source", "quant_recipe", "hqq"}) program.erase(key);
    files[name] = program.dump();
  }
  return files;
}

TEST(ExportCommand, QuantisingOnTheWayEqualsADirectoryInBetween) {
  const Folder folder;
  const std::string recipe = folder.path / "recipe.json";
  folder.put("recipe.json", R"([{"pattern": "layers.*(q|up)_proj.*weight", "bits": 4, "method": "hqq"},
                                {"pattern": "(embed_tokens|lm_head|layers.*o_proj).*", "bits": 8, "group": "row"}])");
  struct Case {
    std::string source, format, of, file;
  };
  const std::string float32 = in_float32(folder);
  const Case cases[] = {
      {kTiny, "program", "default", ""},
      {kTiny, "program --no-vision --max-seq-len 300", "sensitive --hqq f16", ""},
      {float32, "program --backend ref --max-vision-soft-tokens 140", recipe, ""},
      {kTiny, "gguf --mmproj --type q8_0 --max-vision-soft-tokens 140", recipe + " --hqq f16", "/tiny.gguf"},
      {float32, "gguf --mmproj", "balanced", "/tiny.gguf"},
  };
  for (const auto& [source, format, of, file] : cases) {
    const std::string between = folder.path / "between", two = folder.path / "two", one = folder.path / "one";
    for (const std::string& made : {between, two, one}) fs::remove_all(made), fs::create_directory(made);
    ASSERT_EQ(gemma4("quantize " + source + " --output " + between + " --quant-recipe " + of).exit, 0) << of;
    const std::string command = "export --format " + format + " --output ";
    const Outcome after = gemma4(command + two + file + " " + between);
    ASSERT_EQ(after.exit, 0) << after.err;
    const Outcome direct = gemma4(command + one + file + " " + source + " --quant-recipe " + of);
    ASSERT_EQ(direct.exit, 0) << direct.err;
    const auto want = files_in(two), got = files_in(one);
    EXPECT_GE(want.size(), file.empty() ? 5u : 2u);
    EXPECT_EQ(got.size(), want.size());
    for (const auto& [name, bytes] : want) EXPECT_TRUE(got.contains(name) && got.at(name) == bytes) << name << format;
  }
}

TEST(ExportCommand, AProgramQuantisedOnTheWaySaysHowItWasMade) {
  const Folder folder;
  const std::string program = folder.path / "program";
  ASSERT_EQ(gemma4("export --format program --max-vision-soft-tokens 280 --quant-recipe balanced --hqq f16 --output " +
                   program + " " + kTiny)
                .exit,
            0);
  const json facts = read_json<json>(read_file(program + "/program.json"));
  EXPECT_EQ(facts["constants"]["get_max_vision_soft_tokens"], 280);
  const Outcome other = gemma4("run --backend ref " + program + " Hello");
  EXPECT_EQ(other.exit, 2);
  EXPECT_THAT(other.err, HasSubstr(" --quant-recipe balanced --hqq f16 --max-vision-soft-tokens 280"));
}

TEST(ExportCommand, RefusesToQuantiseInOneSentenceBeforeAnythingIsWritten) {
  const Folder folder;
  const std::string out = folder.path / "out", q8 = folder.path / "q8";
  const auto refused = [&](const std::string& arguments, const std::string& why) {
    const Outcome outcome = gemma4("export --output " + out + " --format " + arguments);
    EXPECT_EQ(outcome.exit, 2) << arguments;
    EXPECT_THAT(outcome.err, HasSubstr(why));
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_FALSE(fs::exists(out));
  };
  const std::string tiny = " --model-dir " + kTiny;
  ASSERT_EQ(gemma4("quantize --output " + q8 + tiny).exit, 0);
  refused("program --quant-recipe no_such" + tiny, "no_such");
  refused("gguf --quant-recipe sensitive_gs64" + tiny, "multiple of the group size 64");
  refused("program --quant-recipe sensitive_gs64" + tiny, "multiple of the group size 64");
  refused("program --quant-recipe default --model-dir " + q8, "already; only bf16, f16 and f32 can be quantised");
  refused("gguf --quant-recipe default --model-dir " SOURCE_DIR "/tests/golden/gguf/tiny2.gguf",
          "there is no model directory");
  refused("mlx --quant-recipe default" + tiny, "--format mlx excludes --quant-recipe");
  refused("mlx --max-vision-soft-tokens 140" + tiny, "--format mlx excludes --max-vision-soft-tokens");
  refused("program --hqq f16" + tiny, "--hqq requires --quant-recipe");
  refused("program --quant-recipe default --vision " + q8 + tiny, "excludes");
  refused("program --max-vision-soft-tokens 100" + tiny, "--max-vision-soft-tokens");
  refused("program --no-vision --max-vision-soft-tokens 140" + tiny, "excludes");
  refused("gguf --max-vision-soft-tokens 140" + tiny, "give --mmproj as well");
}

}  // namespace
}  // namespace gemma4
