// An exported program computes the same as its checkpoint, from the bytes of the mapped file. Programs for another
// backend, and incomplete or damaged ones, are refused.
#include "program/export.h"
#include "base/json.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "base/bf16.h"
#include "checkpoint/names.h"
#include "checkpoint/program_file.h"
#include "checkpoint/safetensors.h"
#include "cli/cli.h"
#include "engine/engine_testing.h"
#include "engine/watched_backend_testing.h"
#include "model/weights.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

int call(int (*command)(int, char**), std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return command(static_cast<int>(argv.size()), argv.data());
}

class ProgramExportTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  std::string at(const std::string& name) const { return folder_ / name; }

  std::string exported(const std::string& source, const std::string& name, ProgramExport options = {}) {
    options.source = source;
    export_program(open_source(source), options, at(name));
    return at(name);
  }

  // The message of the Error that `action` throws.
  static std::string error_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing was refused";
    return "";
  }

  static std::string load_error(const std::string& path, const std::string& backend_name = "cpu") {
    return error_of([&] {
      const Checkpoint checkpoint = open_checkpoint(path);
      const auto backend = make_backend(backend_name, 1);
      load_weights(checkpoint, parse_config(checkpoint.config), *backend, {});
    });
  }

  // Changes program.json.
  static void edit(const std::string& path, const std::function<void(json&)>& change) {
    json file = read_json<json>(read_file(path + "/program.json"));
    change(file);
    write_file(path + "/program.json", file.dump());
  }

  const fs::path folder_ = fs::path(testing::TempDir()) / ("gemma4_program_" + std::to_string(getpid()));
};

// A greedy answer: its tokens and how likely the model found each, which any change of a weight moves.
struct GreedyAnswer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  bool operator==(const GreedyAnswer&) const = default;
};

// Of the demo model: about two pictures, and two to text with tools.
std::vector<GreedyAnswer> answers(const std::string& model, bool pictures = true) {
  EngineOptions options = demo_options();
  options.model = model;
  Engine engine(options);
  std::vector<Request> requests;
  if (pictures) {
    requests.push_back(chat_request("What is at the left?", 40, {demo_image("002.png")}));
    requests.push_back(chat_request("List the shapes as JSON.", 40, {demo_image("001.png")}));
  }
  const json texts = read_json<json>(read_file(SOURCE_DIR "/tests/golden/demo_eval/demo_text_eval.json"));
  for (size_t i = 0; i < 2; ++i) requests.push_back(raw_request(texts[i]["prompt"], 40));
  std::vector<GreedyAnswer> out;
  for (const Request& request : requests) {
    const Heard heard = Ask(engine, request).get();
    EXPECT_EQ(heard.error, "");
    EXPECT_GE(heard.ids.size(), 3u);
    out.push_back({heard.ids, {}});
    for (const TokenLogprobs& token : heard.logprobs) out.back().logprobs.push_back(token.token.logprob);
  }
  return out;
}

std::vector<std::vector<int32_t>> ids_of(const std::vector<GreedyAnswer>& answers) {
  std::vector<std::vector<int32_t>> out;
  for (const GreedyAnswer& answer : answers) out.push_back(answer.ids);
  return out;
}

TEST_F(ProgramExportTest, AnswersAreTheSameThroughEveryContainerOfBf16) {
  const auto want = answers(kDemo);
  ASSERT_EQ(call(export_command,
                 {"export", "--format", "gguf", "--model-dir", kDemo, "--mmproj", "--output", at("demo.gguf")}),
            kExitOk);
  const auto gguf = answers(at("demo.gguf"));
  EXPECT_EQ(ids_of(gguf), ids_of(want));
  EXPECT_EQ(answers(exported(kDemo, "of_safetensors")), want);
  EXPECT_EQ(answers(exported(at("demo.gguf"), "of_gguf")), gguf);
  EXPECT_FALSE(fs::exists(at("of_gguf/tokenizer.json")));  // its tokenizer is GGUF's arrays
}

TEST_F(ProgramExportTest, AnswersAreThoseOfEveryQuantisedSource) {
  ASSERT_EQ(call(quantize_command, {"quantize", "--model-dir", kDemo, "--output", at("default")}), kExitOk);
  ASSERT_EQ(call(quantize_command,
                 {"quantize", "--model-dir", kDemo, "--output", at("sensitive"), "--quant-recipe", "sensitive"}),
            kExitOk);
  ASSERT_EQ(call(export_command, {"export", "--format", "mlx", "--model-dir", kDemo, "--output", at("mlx")}), kExitOk);
  for (const char* type : {"q4_0", "q5_1", "q8_0"}) {
    ASSERT_EQ(call(export_command, {"export", "--format", "gguf", "--model-dir", kDemo, "--mmproj", "--type", type,
                                    "--output", at(std::string(type) + ".gguf")}),
              kExitOk);
  }
  const auto unquantised = answers(kDemo);
  for (const char* source : {"default", "sensitive", "mlx", "q4_0.gguf", "q5_1.gguf", "q8_0.gguf"}) {
    const auto want = answers(at(source));
    EXPECT_EQ(answers(exported(at(source), "program", {.overwrite = Overwrite::kReplace})), want) << source;
    EXPECT_NE(want, unquantised) << source;  // so that a program of other weights would be seen
  }
}

// A quantised directory as compressed-tensors would have written it: the same int4, everything else bf16.
class CompressedTensors {
 public:
  CompressedTensors(const Checkpoint& source, const std::string& directory) {
    fs::create_directories(directory);
    json config = read_json<json>(source.config);
    config["quantization_config"] =
        read_json<json>(read_file(SOURCE_DIR "/tests/golden/compressed_tensors/config.json"))["quantization_config"];
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = false;
    write_file(directory + "/config.json", config.dump());
    write_file(directory + "/tokenizer.json", source.tokenizer.json);
    for (const auto& [name, weight] : source.weights) add(to_huggingface_name(name), weight);
    SafetensorsWriter out(directory + "/model.safetensors", entries_, {});
    for (size_t i = 0; i < entries_.size(); ++i) out.write(entries_[i].name, 0, data_[i].data(), data_[i].size());
    out.commit();
  }

 private:
  template <typename T>
  void put(const std::string& name, DType type, const std::vector<int64_t>& shape, const std::vector<T>& values) {
    entries_.push_back({name, type, shape});
    const char* bytes = reinterpret_cast<const char*>(values.data());
    data_.emplace_back(bytes, values.size() * sizeof(T));
  }

  void add(const std::string& name, const Weight& weight) {
    const Matrix& m = weight.matrix;
    if (m.format != Format::kInt4) {
      std::vector<float> row(m.cols);
      std::vector<uint16_t> values;
      for (int64_t r = 0; r < m.rows; ++r) {
        unpack_row(m, r, row.data());
        for (float value : row) values.push_back(float_to_bf16(value));
      }
      return put(name, DType::kBF16, weight.shape, values);
    }
    const std::string stem = name.substr(0, name.rfind('.'));
    const int64_t groups = m.cols / m.group;
    std::vector<uint16_t> scale;
    std::vector<uint32_t> zero((m.rows + 7) / 8 * groups);
    for (int64_t r = 0; r < m.rows; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        scale.push_back(m.scale.row<uint16_t>(g)[r]);
        const auto code = static_cast<uint32_t>(bf16_to_float(m.zero.row<uint16_t>(g)[r]));
        zero[r / 8 * groups + g] |= code << (4 * (r % 8));
      }
    }
    const uint8_t* codes = m.codes.row<uint8_t>(0);
    put(stem + ".weight_packed", DType::kI32, {m.rows, m.cols / 8},
        std::vector<uint8_t>(codes, codes + m.codes.bytes()));
    put(stem + ".weight_shape", DType::kI64, {2}, std::vector<int64_t>{m.rows, m.cols});
    put(stem + ".weight_scale", DType::kBF16, {m.rows, groups}, scale);
    put(stem + ".weight_zero_point", DType::kI32, {(m.rows + 7) / 8, groups}, zero);
  }

  std::vector<SafetensorsEntry> entries_;
  std::vector<std::string> data_;
};

TEST_F(ProgramExportTest, AnswersAreThoseOfACompressedTensorsSource) {
  ASSERT_EQ(call(quantize_command, {"quantize", "--model-dir", kDemo, "--output", at("default")}), kExitOk);
  CompressedTensors(open_checkpoint(at("default")), at("compressed"));
  ASSERT_EQ(open_checkpoint(at("compressed")).kind, "compressed-tensors");
  EXPECT_EQ(answers(exported(at("compressed"), "program")), answers(at("compressed")));
}

TEST_F(ProgramExportTest, RefKeepsItsFloats) {
  const std::string path = exported(kTiny, "ref", {.backend = "ref"});
  const TinyCase golden = tiny_cases()[2];  // an image first
  EngineOptions options = tiny_options();
  options.model = path;
  options.max_seq_len = 0;  // the program's own
  Engine engine(options);
  EXPECT_EQ(Ask(engine, golden.request).get().ids, golden.greedy);
}

// The matrices of a loaded program are the bytes of the mapped file, so the backend has allocated next to nothing.
TEST_F(ProgramExportTest, WeightsAreUsedWhereTheyLie) {
  for (const char* name : {"cpu", "ref"}) {
    const Checkpoint checkpoint = open_checkpoint(exported(kTiny, name, {.backend = name}));
    const auto backend = make_backend(name, 1);
    const Weights weights = load_weights(checkpoint, parse_config(checkpoint.config), *backend, {});
    const auto file = checkpoint.files[0]->bytes();
    const auto inside = [&](const Matrix& m) {
      const auto bytes = backend->serialize(m).bytes;
      return bytes.data() >= file.data() && bytes.data() + bytes.size() <= file.data() + file.size();
    };
    EXPECT_TRUE(inside(weights.embed));
    EXPECT_TRUE(inside(weights.vision.positions));
    for (const LayerWeights& layer : weights.layers) {
      ASSERT_EQ(layer.qkv.slices.size(), 1u);
      EXPECT_TRUE(inside(layer.qkv.slices[0].weight) && inside(layer.gate_up.slices[0].weight) && inside(layer.down));
    }
    EXPECT_LT(backend->memory_used(), static_cast<int64_t>(file.size()) / 8);  // norms
  }
}

TEST_F(ProgramExportTest, ATextOnlyProgramHoldsNoVisionWeight) {
  const std::string with = exported(kDemo, "with"), without = exported(kDemo, "without", {.vision = false});
  const std::string bytes = read_file(without + "/program.weights");
  const Checkpoint whole = open_checkpoint(with), text = open_checkpoint(without);
  uint64_t vision_bytes = 0;
  int searched = 0;
  for (const auto& [name, matrix] : whole.program->matrices) {
    const bool vision = name.find("vision") != std::string::npos;
    EXPECT_EQ(text.program->matrices.contains(name), !vision) << name;
    const std::string_view stored(reinterpret_cast<const char*>(matrix.stored.bytes.data()),
                                  matrix.stored.bytes.size());
    const std::string_view middle = stored.substr(stored.size() / 2, 64);
    EXPECT_EQ(bytes.find(middle) != bytes.npos, !vision) << name;
    vision_bytes += vision ? stored.size() : 0;
    searched += vision;
  }
  EXPECT_GT(searched, 10);
  EXPECT_LE(bytes.size() + vision_bytes, read_file(with + "/program.weights").size());
  EXPECT_EQ(read_file(without + "/program.json").find("vision_tower"), std::string::npos);
  EXPECT_EQ(answers(without, false), answers(kDemo, false));
  EngineOptions options = demo_options();
  options.model = without;
  Engine engine(options);
  EXPECT_THROW(Ask(engine, chat_request("What is this?", 4, {demo_image("002.png")})), Error);
}

TEST_F(ProgramExportTest, AnotherBackendsProgramIsRefusedWithTheCommandThatMakesTheRightOne) {
  const std::string path = exported(kTiny, "a program", {.max_seq_len = 300, .vision = false});
  const std::string why = load_error(path, "ref");
  const std::string command = "gemma4 export --format program --model-dir " +
                              fs::absolute(kTiny).lexically_normal().string() + " --output-dir '" + path +
                              "-ref' --backend ref --max-seq-len 300 --no-vision";
  EXPECT_EQ(why, path + " was made for the cpu backend and this is ref; make the one for it: " + command);
  // Another layout of the same backend, and another version of the file.
  edit(path, [](json& file) { file["layout"] = "panels of 16, version 0"; });
  EXPECT_NE(load_error(path).find("make it anew: gemma4 export --format program"), std::string::npos);
  edit(path, [](json& file) { file["version"] = 2; });
  EXPECT_NE(load_error(path).find("version 2 and this gemma4 runs version 1; make it anew: gemma4 export"),
            std::string::npos);
}

TEST_F(ProgramExportTest, TheCommandOfARefusalWorks) {
  const std::string path = exported(kTiny, "cpu");
  const std::string why = load_error(path, "ref");
  std::istringstream command(why.substr(why.find("gemma4 export") + 7));
  std::vector<std::string> words;
  for (std::string word; command >> word;) words.push_back(word);
  ASSERT_EQ(call(export_command, words), kExitOk);
  EXPECT_EQ(open_checkpoint(path + "-ref").program->header.backend, "ref");
}

TEST_F(ProgramExportTest, DamageIsRefusedByASentence) {
  const std::string path = exported(kTiny, "program");
  const std::string good = read_file(path + "/program.json"), weights = read_file(path + "/program.weights");
  const auto refused = [&](const std::function<void(json&)>& change) {
    edit(path, change);
    const std::string why = load_error(path);
    write_file(path + "/program.json", good);
    return why;
  };
  const auto first = [](json& file) -> json& { return file["weights"][0]; };  // embed_tokens.weight
  EXPECT_NE(refused([&](json& f) { first(f)["offset"] = 32; }).find("not its own"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["offset"] = uint64_t{1} << 62; }).find("not its own"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["bytes"] = (uint64_t{1} << 63) - 1; }).find("not its own"),
            std::string::npos);
  EXPECT_NE(refused([&](json& f) { f["weights"][1]["offset"] = 0; }).find("not its own"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["bytes"] = 64; }).find("cannot be"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["format"] = "int9"; }).find("int9"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["format"] = "int4"; }).find("cannot be"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["layout"] = "float8"; }).find("cannot be"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f).erase("layout"); }).find("not float32"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["parts"][0]["shape"] = {1u << 31, 4}; }).find("shape"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["parts"][0]["shape"][0] = 7; }).find("shape"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { first(f)["parts"][0]["name"] = "layers.0.x"; }).find("layers.0.x"),
            std::string::npos);
  EXPECT_NE(refused([&](json& f) { f["weights"].erase(1); }).find("missing"), std::string::npos);
  EXPECT_NE(refused([&](json& f) { f["weights"].push_back(first(f)); }).find("twice"), std::string::npos);
  EXPECT_NE(refused([&](json& f) {
              for (json& entry : f["weights"]) {  // q, k and v in another order: of another program
                if (entry["parts"].size() == 3) std::swap(entry["parts"][0], entry["parts"][1]);
              }
            }).find("not stacked"),
            std::string::npos);
  EXPECT_NE(refused([](json& f) { f["format"] = "gguf"; }).find("not the program.json"), std::string::npos);
  write_file(path + "/program.weights", weights.substr(0, weights.size() - 1));
  EXPECT_NE(load_error(path).find("cut short"), std::string::npos);
  fs::remove(path + "/program.weights");
  EXPECT_NE(load_error(path).find("program.weights"), std::string::npos);
  write_file(path + "/program.json", good.substr(0, good.size() / 2));
  EXPECT_NE(load_error(path).find("not valid JSON"), std::string::npos);
}

TEST_F(ProgramExportTest, NothingElseIsOverwrittenAndProgramsAreNoSources) {
  fs::create_directories(at("model"));
  for (const char* name : {"config.json", "model.safetensors"}) fs::copy_file(kTiny + "/" + name, at("model/") + name);
  EXPECT_NE(error_of([&] {
              exported(kTiny, "model", {.overwrite = Overwrite::kReplace});
            }).find("already holds a checkpoint"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(at("model/program.weights")));
  const std::string path = exported(kTiny, "program");
  EXPECT_NE(error_of([&] { exported(kTiny, "program", {.vision = false}); }).find("is not empty"), std::string::npos);
  exported(kTiny, "program", {.vision = false, .overwrite = Overwrite::kReplace});  // its own kind is replaced
  EXPECT_NE(load_error(path, "ref").find("--no-vision"), std::string::npos);
  EXPECT_NE(error_of([&] { exported(path, "again"); }).find("use the checkpoint it was made of"), std::string::npos);
  EXPECT_THROW(call(diff_command, {"diff", path, kTiny}), Error);
  EXPECT_THROW(exported(kTiny, "long", {.max_seq_len = 1 << 29}), Error);
}

// A backend that claims to have two ranks.
struct OneOfTwo final : WatchedBackend {
  OneOfTwo() : WatchedBackend(make_ref(), std::make_shared<Watch>()) {}
  int world() const override { return 2; }
};

TEST_F(ProgramExportTest, AProgramIsForOneDevice) {
  const Checkpoint checkpoint = open_checkpoint(exported(kTiny, "program", {.backend = "ref"}));
  OneOfTwo backend;
  EXPECT_NE(error_of([&] {
              load_weights(checkpoint, parse_config(checkpoint.config), backend, {});
            }).find("cannot be split over 2"),
            std::string::npos);
}

TEST_F(ProgramExportTest, TheLengthIsTheProgramsOwn) {
  EngineOptions options = tiny_options();
  options.backend = "cpu";
  options.model = exported(kTiny, "program", {.max_seq_len = 300});
  options.max_seq_len = 0;
  EXPECT_EQ(Engine(options).options().max_seq_len, 300);
  options.max_seq_len = 301;
  EXPECT_NE(error_of([&] { Engine engine(options); }).find("more than the 300"), std::string::npos);
}

}  // namespace
}  // namespace gemma4
