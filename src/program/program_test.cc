// The public API of an exported program: its methods return what the reference returned, and wrong inputs are refused.
#include "program/program.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "base/json.h"
#include "engine/engine_testing.h"
#include "image/decode.h"
#include "image/patches.h"
#include "program/export.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::vector<float> kGreedy = {0};

std::vector<int64_t> range(int64_t first, int64_t count) {
  std::vector<int64_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

class ProgramTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::path(testing::TempDir()) / ("gemma4_program_api_" + std::to_string(getpid()));
    const Checkpoint demo = open_checkpoint(kDemo);
    export_program(demo, {.source = kDemo}, folder_ / "vision");
    export_program(demo, {.vision = false, .source = kDemo}, folder_ / "text");
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static std::string text() { return folder_ / "text"; }
  static std::string vision() { return folder_ / "vision"; }

  static std::string error_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing was refused";
    return "";
  }

  static inline fs::path folder_;
};

int64_t decode(Program& program, int64_t id, int64_t position, float temperature = 0) {
  const std::vector<int64_t> ids = {id}, positions = {position};
  const std::vector<float> t = {temperature};
  return program.call("decode", {{ids, {1, 1}}, {positions, {1}}, {t, {1}}})[0].integers[0];
}

int64_t prefill(Program& program, std::span<const int64_t> ids, int64_t position, float temperature = 0) {
  const auto count = static_cast<int64_t>(ids.size());
  if (count == 1) return decode(program, ids[0], position, temperature);
  const std::vector<float> t = {temperature};
  return program.call("prefill", {{ids, {1, count}}, {range(position, count), {count}}, {t, {1}}})[0].integers[0];
}

// The answer to a prompt computed `chunk` ids at a time.
std::vector<int64_t> answer(Program& program, const std::vector<int64_t>& prompt, size_t chunk, size_t count) {
  int64_t next = 0;
  for (size_t at = 0; at < prompt.size(); at += chunk) {
    const size_t size = std::min(chunk, prompt.size() - at);
    next = prefill(program, std::span(prompt).subspan(at, size), static_cast<int64_t>(at));
  }
  std::vector<int64_t> out = {next};
  while (out.size() < count) out.push_back(decode(program, out.back(), program.position()));
  return out;
}

TEST_F(ProgramTest, TextMethodsGiveTheReferencesIds) {
  Program program(text());
  const json rows = read_json<json>(read_file(SOURCE_DIR "/tests/golden/demo_eval/demo_text_eval.json"));
  for (size_t i = 0; i < 6; ++i) {
    const std::vector<int64_t> prompt = rows[i]["prompt_ids"], want = rows[i]["reference_ids"];
    for (const size_t chunk : {size_t{512}, size_t{7}, size_t{1}}) {
      program.reset();
      EXPECT_EQ(answer(program, prompt, chunk, want.size()), want) << i << ", chunks of " << chunk;
    }
  }
}

// Chunks as large as the program allows lose no key of the window. ExecuTorch's ring of two windows loses some.
TEST_F(ProgramTest, LongPromptsDoNotDependOnTheChunk) {
  std::vector<int64_t> prompt;
  for (int64_t i = 0; i < 1700; ++i) prompt.push_back(30 + (i * 7919 + i * i * 31) % 2000);
  Program whole(text()), small(text(), {.max_prefill_chunk = 60});
  const auto chunk = static_cast<size_t>(whole.constants().at("get_max_prefill_chunk"));
  EXPECT_EQ(chunk, 512u);  // two windows
  EXPECT_EQ(small.constants().at("get_max_prefill_chunk"), 60);
  const auto want = answer(small, prompt, 60, 12);
  EXPECT_EQ(answer(whole, prompt, chunk, 12), want);
  whole.reset();
  EXPECT_EQ(answer(whole, prompt, 301, 12), want);
}

TEST_F(ProgramTest, VisionMethodsGiveTheReferencesIds) {
  EngineOptions options = demo_options();
  options.model = vision();
  Engine engine(options);  // for the ids of the prompt
  Program program(vision());
  const auto soft_max = program.constants().at("get_max_vision_soft_tokens");
  const json rows = read_json<json>(read_file(SOURCE_DIR "/tests/golden/demo_eval/demo_eval.json"))["rows"];
  for (size_t i = 0; i < 4; ++i) {
    const std::string file = rows[i]["image"];
    const std::vector<int64_t> want = rows[i]["reference_ids"];
    const auto ids32 = engine.prompt_ids(chat_request(rows[i]["question"], 1, {demo_image(file)}));
    const std::vector<int64_t> ids(ids32.begin(), ids32.end());
    const auto count = static_cast<int64_t>(ids.size());
    Output embeds = program.call("embed_text", {{ids, {1, count}}})[0];
    EXPECT_EQ(embeds.shape, (std::vector<int64_t>{1, count, 256}));

    const std::string bytes = read_file(demo_image(file));
    Patches patches = preprocess_image(decode_image(std::as_bytes(std::span(bytes))), static_cast<int>(soft_max),
                                       engine.config().vision.patch, engine.config().vision.pool);
    const int64_t real = patches.grid_w * int64_t{patches.grid_h}, padded = real + 9;  // a cell of padding
    std::vector<int64_t> xy(patches.xy.begin(), patches.xy.begin() + 2 * real);
    xy.resize(static_cast<size_t>(2 * padded), -1);
    patches.values.resize(static_cast<size_t>(padded) * 768);
    if (padded / 9 > soft_max) {
      xy.resize(static_cast<size_t>(2 * real));
      patches.values.resize(static_cast<size_t>(real) * 768);
    }
    const auto n = static_cast<int64_t>(xy.size() / 2);
    const auto seen = program.call("vision_encoder", {{patches.values, {1, n, 768}}, {xy, {1, n, 2}}});
    ASSERT_EQ(seen[0].shape, (std::vector<int64_t>{1, n / 9, 256}));
    EXPECT_EQ(std::accumulate(seen[1].flags.begin(), seen[1].flags.end(), int64_t{0}), real / 9);

    std::vector<int64_t> ends(ids.size(), -1);
    size_t row = 0, last = 0;
    for (size_t at = 0; at < ids.size(); ++at) {
      if (ids[at] != engine.config().image_id) continue;
      std::copy_n(&seen[0].floats[row++ * 256], 256, &embeds.floats[at * 256]);
      last = at;
    }
    ASSERT_EQ(row, static_cast<size_t>(real / 9));
    for (size_t at = last + 1 - row; at <= last; ++at) ends[at] = static_cast<int64_t>(last);
    program.reset();
    std::vector<int64_t> got = {
        program
            .call("prefill",
                  {{embeds.floats, embeds.shape}, {range(0, count), {count}}, {kGreedy, {1}}, {ends, {count}}})[0]
            .integers[0]};
    while (got.size() < want.size()) got.push_back(decode(program, got.back(), program.position()));
    EXPECT_EQ(got, want) << file;
  }
}

TEST_F(ProgramTest, ListsWhatItHas) {
  const Program text_only(text()), with_vision(vision());
  const auto names = [](const Program& program) {
    std::vector<std::string> out;
    for (const MethodSpec& method : program.methods()) out.push_back(method.name);
    return out;
  };
  EXPECT_EQ(names(text_only), (std::vector<std::string>{"prefill", "decode"}));
  EXPECT_EQ(names(with_vision), (std::vector<std::string>{"embed_text", "vision_encoder", "prefill", "decode"}));
  const auto& constants = text_only.constants();
  EXPECT_EQ(constants.at("get_max_seq_len"), 4096);
  EXPECT_EQ(constants.at("get_vocab_size"), 2045);
  EXPECT_EQ(constants.at("get_n_layers"), 6);
  EXPECT_EQ(constants.at("use_kv_cache"), 1);
  EXPECT_EQ(constants.at("use_sdpa_with_kv_cache"), 0);
  EXPECT_EQ(constants.at("enable_dynamic_shape"), 1);
  EXPECT_FALSE(constants.contains("get_max_vision_soft_tokens"));
  const json file = read_json<json>(read_file(vision() + "/program.json"));
  EXPECT_EQ(file["constants"]["use_kv_cache"], true);
  EXPECT_EQ(file["methods"]["prefill"]["inputs"][0]["shape"], (json{1, "T", 256}));
  EXPECT_EQ(file["methods"]["prefill"]["ranges"]["T"], (json{2, 512}));
  EXPECT_EQ(file["methods"]["vision_encoder"]["inputs"][0]["shape"], (json{1, "9*N", 768}));
}

// A method as a line: prefill(tokens int64 [1, T], ...) -> token int64 [1, 1]; ranges of its symbols: T 2..512.
std::string signature(const MethodSpec& method) {
  std::map<std::string, std::string> ranges;
  const auto list = [&](const std::vector<TensorSpec>& specs) {
    std::string out;
    for (const TensorSpec& spec : specs) {
      const char* types[] = {"float32", "int64", "bool"};
      out += (out.empty() ? "" : ", ") + spec.name + " " + types[static_cast<int>(spec.type)] + " [";
      for (const Dimension& d : spec.shape) {
        if (&d != &spec.shape.front()) out += ", ";
        if (d.symbol.empty()) {
          EXPECT_EQ(d.least, d.most) << spec.name;
        }
        if (d.symbol.empty() || d.multiple > 1) out += std::to_string(d.symbol.empty() ? d.least : d.multiple);
        if (d.symbol.empty()) continue;
        out += (d.multiple > 1 ? "*" : "") + d.symbol;
        ranges[d.symbol] = " " + d.symbol + " " + std::to_string(d.least) + ".." + std::to_string(d.most);
      }
      out += spec.optional ? "] optional" : "]";
    }
    return out;
  };
  std::string line = method.name + "(" + list(method.inputs) + ") -> " + list(method.outputs);
  for (const auto& [symbol, range] : ranges) line += (symbol == ranges.begin()->first ? ";" : ",") + range;
  return line;
}

// The same line from program.json.
std::string signature(const std::string& name, const nlohmann::ordered_json& method) {
  const auto list = [&](const nlohmann::ordered_json& specs) {
    std::string out;
    for (const auto& spec : specs) {
      out += (out.empty() ? "" : ", ") + spec["name"].get<std::string>() + " " + spec["type"].get<std::string>() + " [";
      for (size_t i = 0; i < spec["shape"].size(); ++i) {
        const auto& size = spec["shape"][i];
        out += (i > 0 ? ", " : "") + (size.is_string() ? size.get<std::string>() : size.dump());
      }
      out += spec.value("optional", false) ? "] optional" : "]";
    }
    return out;
  };
  std::string line = name + "(" + list(method["inputs"]) + ") -> " + list(method["outputs"]), between = ";";
  for (const auto& [symbol, range] : method["ranges"].items()) {
    line += between + " " + symbol + " " + range[0].dump() + ".." + range[1].dump();
    between = ",";
  }
  return line;
}

// Names, types, shapes and order of all methods, their inputs and their outputs: what a program's callers rely on.
TEST_F(ProgramTest, MethodsAreExactlyThese) {
  const std::vector<std::string> text_only = {
      "prefill(tokens int64 [1, T], input_pos int64 [T], temperature float32 [1]) -> token int64 [1, 1]; T 2..512",
      "decode(tokens int64 [1, 1], input_pos int64 [1], temperature float32 [1]) -> token int64 [1, 1]",
  };
  const std::vector<std::string> with_vision = {
      "embed_text(tokens int64 [1, T]) -> embeddings float32 [1, T, 256]; T 1..512",
      "vision_encoder(pixel_values float32 [1, 9*N, 768], pixel_position_ids int64 [1, 9*N, 2])"
      " -> embeddings float32 [1, N, 256], mask bool [1, N]; N 1..70",
      "prefill(inputs_embeds float32 [1, T, 256], input_pos int64 [T], temperature float32 [1],"
      " image_ends int64 [T] optional) -> token int64 [1, 1]; T 2..512",
      text_only[1],
  };
  const auto expect = [](const std::string& path, const std::vector<std::string>& want) {
    const Program program(path);
    std::vector<std::string> api, stored;
    for (const MethodSpec& method : program.methods()) api.push_back(signature(method));
    const auto file = read_json<nlohmann::ordered_json>(read_file(path + "/program.json"));
    for (const auto& [name, method] : file["methods"].items()) stored.push_back(signature(name, method));
    EXPECT_EQ(api, want);
    EXPECT_EQ(stored, want);
  };
  expect(text(), text_only);
  expect(vision(), with_vision);
}

TEST_F(ProgramTest, RefusesWhatDoesNotFit) {
  Program program(text(), {.max_prefill_chunk = 64});
  const std::vector<int64_t> two = {5, 6}, one = {5};
  const auto says = [&](const std::string& part, const std::string& method, const std::vector<Input>& inputs) {
    const std::string why = error_of([&] { program.call(method, inputs); });
    EXPECT_NE(why.find(part), std::string::npos) << why;
  };
  const Input temperature(kGreedy, {1});
  says("no method forward; it has prefill, decode", "forward", {});
  says("takes 3 inputs, not 1", "decode", {{one, {1, 1}}});
  says("int64 [1, T] with T from 2 to 64, not int64 [1, 1]", "prefill", {{one, {1, 1}}, {one, {1}}, temperature});
  says("int64 [1, 1], not int64 [1, 2]", "decode", {{two, {1, 2}}, {one, {1}}, temperature});
  const std::vector<int64_t> many = range(0, 65);
  says("T from 2 to 64", "prefill", {{many, {1, 65}}, {many, {65}}, temperature});
  says("input_pos", "prefill", {{two, {1, 2}}, {many, {65}}, temperature});
  says("of 2 elements", "prefill", {{two, {1, 3}}, {range(0, 3), {3}}, temperature});
  says("float32 [1], not int64 [1]", "decode", {{one, {1, 1}}, {one, {1}}, {one, {1}}});
  says("token 2045 is not one of the vocabulary", "prefill",
       {{std::vector<int64_t>{5, 2045}, {1, 2}}, {range(0, 2), {2}}, temperature});
  says("token -1", "decode", {{std::vector<int64_t>{-1}, {1, 1}}, {range(0, 1), {1}}, temperature});
  says("position 1 does not follow the 0", "decode", {{one, {1, 1}}, {range(1, 1), {1}}, temperature});
  says("not consecutive", "prefill", {{two, {1, 2}}, {std::vector<int64_t>{0, 2}, {2}}, temperature});
  says("temperature", "decode", {{one, {1, 1}}, {range(0, 1), {1}}, {std::vector<float>{NAN}, {1}}});
  EXPECT_EQ(program.position(), 0);  // none of these did anything
  EXPECT_THROW(Program(text(), {.max_prefill_chunk = 1}), std::runtime_error);
  EXPECT_NE(error_of([] { Program demo(kDemo); }).find("gemma4 export --format program"), std::string::npos);
}

TEST_F(ProgramTest, PositionsEndWithTheProgramAndMayGoBackAWindow) {
  const std::string path = folder_ / "short";
  export_program(open_checkpoint(kDemo), {.max_seq_len = 1000, .vision = false, .source = kDemo}, path);
  Program program(path, {.max_prefill_chunk = 100});
  const std::vector<int64_t> ids = range(30, 100);
  const int64_t first = prefill(program, ids, 0);
  for (int64_t at = 100; at < 1000; at += 100) prefill(program, ids, at);
  EXPECT_EQ(program.position(), 1000);
  EXPECT_NE(error_of([&] { decode(program, 5, 1000); }).find("do not fit the program's 1000"), std::string::npos);
  EXPECT_NE(error_of([&] { prefill(program, ids, 950); }).find("do not fit"), std::string::npos);
  // Going back works while the ring still holds the window, and to position 0, which sees no earlier key.
  const int64_t again = prefill(program, ids, 900);
  EXPECT_EQ(prefill(program, ids, 900), again);
  EXPECT_NE(error_of([&] { decode(program, 5, 400); }).find("overwritten"), std::string::npos);
  EXPECT_EQ(program.position(), 1000);
  EXPECT_EQ(prefill(program, ids, 0), first);
  EXPECT_EQ(program.position(), 100);
}

TEST_F(ProgramTest, SeedsDecideAboveTemperatureZero) {
  const auto sampled = [](uint64_t seed) {
    Program program(text(), {.seed = seed});
    std::vector<int64_t> out;
    prefill(program, range(30, 20), 0, 2);
    for (int64_t i = 0; i < 20; ++i) out.push_back(decode(program, 100, program.position(), 2));
    return out;
  };
  EXPECT_EQ(sampled(1), sampled(1));
  EXPECT_NE(sampled(1), sampled(2));
}

// Rows of one picture see each other on sliding layers: over some random pictures that must move a token.
TEST_F(ProgramTest, RowsOfAPictureSeeEachOther) {
  Program program(vision(), {.threads = 1});
  std::mt19937 random(3);
  std::normal_distribution<float> draw(0, 1);
  const std::vector<int64_t> together(30, 29), apart(30, -1);
  int moved = 0;
  for (int picture = 0; picture < 20 && moved == 0; ++picture) {
    std::vector<float> rows(30 * 256);
    for (float& value : rows) value = draw(random);
    const auto token = [&](const std::vector<int64_t>* ends) {
      program.reset();
      const std::vector<int64_t> positions = range(0, 30);
      std::vector<Input> inputs = {{rows, {1, 30, 256}}, {positions, {30}}, {kGreedy, {1}}};
      if (ends) inputs.push_back({*ends, {30}});
      return program.call("prefill", inputs)[0].integers[0];
    };
    moved += token(&together) != token(nullptr);
    EXPECT_EQ(token(&apart), token(nullptr));
  }
  EXPECT_GT(moved, 0);
}

TEST_F(ProgramTest, APictureMayNotBeCutByACall) {
  Program program(vision());
  const std::vector<int64_t> ids = range(30, 4);
  const Output rows = program.call("embed_text", {{ids, {1, 4}}})[0];
  const std::vector<int64_t> beyond = {-1, 4, 4, 4}, before = {-1, 0, -1, -1};
  for (const auto& ends : {beyond, before}) {
    const std::string why = error_of([&] {
      program.call("prefill", {{rows.floats, rows.shape}, {range(0, 4), {4}}, {kGreedy, {1}}, {ends, {4}}});
    });
    EXPECT_NE(why.find("picture's rows belong in one call"), std::string::npos) << why;
  }
  const std::vector<float> values(9 * 768);
  std::vector<int64_t> xy(18, -1);
  EXPECT_NE(error_of([&] {
              program.call("vision_encoder", {{values, {1, 9, 768}}, {xy, {1, 9, 2}}});
            }).find("all patches are padding"),
            std::string::npos);
  xy[17] = 0;
  EXPECT_THROW(program.call("vision_encoder", {{values, {1, 9, 768}}, {xy, {1, 9, 2}}}), std::runtime_error);
  EXPECT_THROW(program.call("vision_encoder", {{values, {1, 9, 768}}, {std::vector<int64_t>(18, 7), {1, 9, 2}}}),
               std::runtime_error);  // no grid
}

}  // namespace
}  // namespace gemma4
