// gemma4 synth and gemma4 bench: synth writes a whole checkpoint of the requested shapes, and bench measures it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "model/config.h"
#include "model/tensor_table.h"
#include "program_testing.h"

namespace gemma4 {
namespace {

const std::string kBig = std::string(SOURCE_DIR) + "/tests/golden/config_31b";

// Checks that the tensors have the names and shapes that the checkpoint's config requires.
void expect_whole(const std::filesystem::path& path, const char* kind, int layers) {
  const Checkpoint checkpoint = open_checkpoint(path);
  const Config config = parse_config(checkpoint.config);
  EXPECT_EQ(checkpoint.kind, kind);
  EXPECT_EQ(config.layers, layers);
  EXPECT_EQ(check_weights(checkpoint, config), std::vector<std::string>());
}

TEST(Synth, WritesWholeCheckpointsOfEveryFormat) {
  for (const auto& [format, kind] :
       {std::pair("default", "torchao"), {"sensitive", "torchao"}, {"bf16", "huggingface"}}) {
    const Scratch scratch;
    const std::string out = scratch.path / "model";
    const Ran ran = run_gemma4({"synth", "--like", kTiny, "--output", out, "--format", format});
    ASSERT_EQ(ran.code, 0) << ran.err;
    expect_whole(out, kind, 7);
  }
}

TEST(Synth, WritesGguf) {
  const Scratch scratch;
  const std::string out = scratch.path / "model";
  const Ran ran = run_gemma4({"synth", "--like", kTiny, "--output", out, "--format", "q4_0"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  expect_whole(out + "/model.gguf", "gguf", 7);
  const Ran bench = run_gemma4({"bench", "--model", out + "/model.gguf", "--backend", "cpu", "--prompts", "20",
                                "--depths", "0", "--batches", "1", "--steps", "1", "--chunk", "32"});
  EXPECT_EQ(bench.code, 0) << bench.err;
  EXPECT_NE(bench.out.find("decode at 0"), std::string::npos) << bench.out;
}

// The last layer has full attention, also if the pattern would make it a sliding one.
TEST(Synth, TakesFewerLayersInTheSamePattern) {
  for (const int layers : {2, 4, 6}) {
    for (const auto& [format, file, kind] :
         {std::tuple("default", "", "torchao"), std::tuple("q4_0", "/model.gguf", "gguf")}) {
      const Scratch scratch;
      const std::string out = scratch.path / "model";
      const Ran ran = run_gemma4(
          {"synth", "--like", kTiny, "--layers", std::to_string(layers), "--format", format, "--output", out});
      ASSERT_EQ(ran.code, 0) << ran.err;
      expect_whole(out + file, kind, layers);
    }
  }
}

// The built-in 31b equals the published config in all that this program reads.
TEST(Synth, ItsOwn31bIsThePublishedConfig) {
  const Scratch scratch;
  const std::string out = scratch.path / "model";
  const Ran ran = run_gemma4({"synth", "--like", "31b", "--config-only", "--output", out});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Config mine = parse_config(read_file(std::filesystem::path(out) / "config.json"));
  const Config published = parse_config(read_file(std::filesystem::path(kBig) / "config.json"));
  const auto shapes = [](const Config& config) {
    std::vector<std::pair<std::string, std::vector<int64_t>>> all;
    for (const TensorNeed& need : needed_tensors(config, true)) all.emplace_back(need.name, need.shape);
    return all;
  };
  EXPECT_EQ(shapes(mine), shapes(published));
  EXPECT_EQ(mine.kinds, published.kinds);
  EXPECT_EQ(mine.window, published.window);
  EXPECT_EQ(mine.embed_scale, published.embed_scale);
  EXPECT_EQ(mine.softcap, published.softcap);
  EXPECT_EQ(mine.eos_ids, published.eos_ids);
  EXPECT_EQ(mine.image_blocks, published.image_blocks);
  EXPECT_EQ(mine.image_id, published.image_id);
  for (const AttentionKind kind : {kSliding, kFull}) {
    EXPECT_EQ(mine.attention[kind].rope_theta, published.attention[kind].rope_theta);
    EXPECT_EQ(mine.attention[kind].rotated_pairs, published.attention[kind].rotated_pairs);
    EXPECT_EQ(mine.attention[kind].k_is_v, published.attention[kind].k_is_v);
  }
}

// Numbers with which nothing would be measured are refused before the model is opened.
TEST(BenchCommand, RefusesNumbersThatMeanNothing) {
  using Words = std::vector<std::string>;
  const Words bench = {"bench", "--model", "/nowhere"}, eval = {"eval", "--model", "/nowhere"};
  const std::vector<std::tuple<Words, Words, std::string>> cases = {
      {bench, {"--steps", "-3"}, "--steps: -3 is not from 1 to 1000000"},
      {bench, {"--repeat", "0"}, "--repeat: 0 is not from 1 to 1000000"},
      {bench, {"--batches", "1,0"}, "--batches: 0 is not from 1 to 4096"},
      {bench, {"--prompts", "0"}, "--prompts: 0 is not from 1 to 268435456"},
      {bench, {"--depths", "0,-1"}, "--depths: -1 is not from 0 to 268435456"},
      {bench, {"--images", "-70"}, "--images: -70 is not from 0 to 65536"},
      {bench, {"--chunk", "0"}, "--chunk: 0 is not from 1 to 1048576"},
      {bench, {"--threads", "-1"}, "--threads: -1 is not from 0 to 1024"},
      {bench, {"--drafter", "ngram", "--draft-tokens", "17"}, "--draft-tokens: 17 is not from 0 to 16"},
      {bench, {"--drafter", "ngram", "--accept", "0.5,0.6"}, "that never rise"},
      {bench, {"--drafter", "ngram", "--accept", "1.5"}, "that never rise"},
      {bench, {"--drafter", "ngram", "--accept", "nan"}, "--accept: nan is not a number"},
      {bench, {"--prompts", "1,,2"}, "--prompts: 1,,2 has an empty element"},
      {bench, {"--steps", "0x10"}, "--steps: 0x10 is not a whole number"},
      {bench, {"--force"}, "--force requires --dump"},
      {bench, {"--load", "--steps", "3"}, "--steps excludes --load"},
      {bench, {"--profile", "--json"}, "--profile excludes --json"},
      {eval, {"--golden", "/nowhere", "--right-min", "1"}, "--right-min requires --questions"},
      {eval, {"--questions", "/nowhere", "--case", "x"}, "--case requires --golden"},
      {eval, {"--golden", "/nowhere", "--chat-template", "july"}, "--chat-template requires --questions"},
      {bench, {"--drafter", "ngram", "--accept", "0.5,0.4", "--draft-tokens", "3"}, "one for each draft"},
      {bench, {"--accept", "0.5"}, "give --drafter, too"},
      {eval, {"--golden", "/nowhere", "--drafter", "ngram"}, "--golden compares logits"},
      {eval, {"--threads", "-1"}, "--threads: -1 is not from 0 to 1024"},
      {eval, {"--questions", "/nowhere", "--equal-min", "7"}, "--equal-min: 7 is not from 0 to 1"},
      {eval, {"--questions", "/nowhere", "--right-min", "nan"}, "--right-min: nan is not a number"},
  };
  for (auto [words, flag, sentence] : cases) {
    words.insert(words.end(), flag.begin(), flag.end());
    const Ran ran = run_gemma4(words);
    EXPECT_EQ(ran.code, 2) << sentence;
    EXPECT_NE(ran.err.find(sentence), std::string::npos) << ran.err;
  }
}

TEST(Synth, RefusesWhatItCannotWrite) {
  const Scratch scratch;
  const std::string out = scratch.path / "model";
  EXPECT_EQ(run_gemma4({"synth", "--like", kTiny, "--output", out, "--format", "int3"}).code, 2);
  EXPECT_EQ(run_gemma4({"synth", "--like", "/nowhere", "--output", out}).code, 2);
  spill(scratch.path / "no_layers", R"({"text_config": {}})");
  spill(scratch.path / "odd_layers", R"({"text_config": {"num_hidden_layers": "six"}})");
  spill(scratch.path / "no_tokenizer", "{}");
  const auto refused = [&](std::vector<std::string> words, const std::string& why) {
    words.insert(words.begin(), {"synth", "--output", out});
    const Ran ran = run_gemma4(words);
    EXPECT_EQ(ran.code, 2) << ran.err;
    EXPECT_NE(ran.err.find(why), std::string::npos) << ran.err;
    EXPECT_FALSE(std::filesystem::exists(out)) << why;
  };
  refused({"--like", scratch.path / "no_layers"}, "no_layers is not a config.json");
  refused({"--like", scratch.path / "odd_layers"}, "odd_layers is not a config.json");
  refused({"--like", kTiny, "--tokenizer", "/no/such/tokenizer"}, "/no/such/tokenizer");
  refused({"--like", kTiny, "--tokenizer", scratch.path / "no_tokenizer"}, "no_tokenizer: ");
  refused({"--like", kTiny, "--format", "q4_0", "--config-only"}, "--config-only is for a directory");
  refused({"--like", kTiny, "--format", "q4_0", "--tokenizer", kTiny + "/tokenizer.json"}, "--tokenizer is for");
}

TEST(BenchCommand, MeasuresEverythingAskedFor) {
  const Scratch scratch;
  const std::string out = scratch.path / "model";
  ASSERT_EQ(run_gemma4({"synth", "--like", kTiny, "--output", out}).code, 0);
  const Ran ran = run_gemma4({"bench", "--model", out, "--backend", "cpu", "--prompts", "40,70", "--depths", "0,50",
                              "--batches", "1,2", "--images", "70", "--steps", "2", "--chunk", "32", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto json = read_json<nlohmann::json>(ran.out);
  std::vector<std::string> what;
  for (const auto& result : json.at("results")) {
    what.push_back(result.at("what"));
    EXPECT_GT(result.at("ms").get<double>(), 0);
  }
  EXPECT_EQ(what, (std::vector<std::string>{"prompt of 40", "prompt of 70", "decode at 0", "decode at 50",
                                            "decode, batch of 1", "decode, batch of 2", "image of 70 (630)",
                                            "its tower of 70", "preprocessing of 70"}));
  const auto& two = json.at("results").at(5);
  EXPECT_GT(two.at("times_one").get<double>(), 0);
  const double least = std::max(two.at("gb_per_s").get<double>() / two.at("read_gb_per_s_at_most").get<double>(),
                                two.at("gflop_per_s").get<double>() / two.at("gflop_per_s_at_most").get<double>());
  EXPECT_NEAR(two.at("of_roofline").get<double>(), least, 1e-6 * least);
  EXPECT_GT(json.at("copy_bytes_per_s").get<double>(), 0);
  EXPECT_GT(json.at("weights_bytes_per_step").get<int64_t>(), 100000);
}

// With a coin in place of weights that accept something: what is accepted follows from --accept alone.
TEST(BenchCommand, MeasuresLessByDefaultOnACpu) {
  const Ran ran =
      run_gemma4({"bench", "--model", kTiny, "--backend", "cpu", "--batches", "1", "--steps", "1", "--repeat", "1"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  for (const char* part : {"prompt of 512", "decode at 0", "image of 280"}) {
    EXPECT_NE(ran.out.find(part), std::string::npos) << part;
  }
  for (const char* part : {"prompt of 2048", "decode at 16384", "image of 1120"}) {
    EXPECT_EQ(ran.out.find(part), std::string::npos) << part;
  }
}

TEST(BenchCommand, MeasuresRoundsWithDrafts) {
  const auto bench = [](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"bench", "--model",  kTiny,       "--backend", "ref", "--prompts",
                                      "20",    "--depths", "0",         "--batches", "2",   "--images",
                                      "0",     "--steps",  "40",        "--chunk",   "32",  "--repeat",
                                      "1",     "--json",   "--drafter", "ngram"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran ran = run_gemma4(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    std::map<std::string, nlohmann::json> lines;
    const nlohmann::json report = read_json<nlohmann::json>(ran.out);
    for (const auto& line : report.at("results")) lines[line.at("what")] = line;
    return lines;
  };
  const auto all = bench({"--accept", "1,1,1"});
  for (const auto& [what, seqs] : {std::pair("decode at 0, 3 drafts", 1), {"batch of 2, 3 drafts", 2}}) {
    ASSERT_TRUE(all.contains(what)) << what;
    const nlohmann::json& line = all.at(what);
    EXPECT_EQ(line.at("tokens_per_round"), 4);
    EXPECT_NEAR(line.at("tokens_per_s").get<double>(), 4000.0 * seqs / line.at("ms").get<double>(), 1);
  }
  EXPECT_EQ(bench({"--accept", "0,0"}).at("decode at 0, 2 drafts").at("tokens_per_round"), 1);
  // 1 + 0.9 + 0.5, of 80 rounds.
  EXPECT_NEAR(bench({"--accept", "0.9,0.5"}).at("batch of 2, 2 drafts").at("tokens_per_round").get<double>(), 2.4, 0.3);
  EXPECT_LT(bench({"--draft-tokens", "5"}).at("decode at 0, 5 drafts").at("tokens_per_round").get<double>(), 1.5)
      << "arbitrary drafts";
}

TEST(BenchCommand, MeasuresSeveralRanksOfOneModel) {
  const Scratch scratch;
  const std::string out = scratch.path / "model";
  ASSERT_EQ(run_gemma4({"synth", "--like", kTiny, "--output", out, "--format", "bf16"}).code, 0);
  const auto bench = [&](const char* gpus) {
    return run_gemma4({"bench",  "--model",  out,      "--backend",         "cpu",      "--prompts",
                       "40",     "--depths", "0",      "--batches",         "1,2",      "--steps",
                       "2",      "--chunk",  "32",     "--images",          "70",       "--json",
                       "--gpus", gpus,       "--dump", scratch.path / gpus, "--repeat", "1"});
  };
  const Ran two = bench("2");
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_EQ(read_json<nlohmann::json>(two.out).at("gpus"), 2);
  ASSERT_EQ(bench("1").code, 0);
  // Both runs use the same tokens, so the logits differ only by rounding.
  const auto file = [&](const char* name) { return MappedFile::open(scratch.path / name); };
  const auto one_file = file("1"), two_file = file("2");
  const Safetensors a = parse_safetensors(one_file->bytes(), "one"), b = parse_safetensors(two_file->bytes(), "two");
  ASSERT_EQ(a.entries.size(), 4u);  // prompt, decode, batches of 1 and 2
  ASSERT_EQ(a.data.size(), b.data.size());
  double worst = 0, largest = 0;
  for (size_t at = 0; at < a.data.size(); at += 4) {
    float x, y;
    std::memcpy(&x, a.data.data() + at, 4), std::memcpy(&y, b.data.data() + at, 4);
    worst = std::max(worst, std::fabs(double{x} - y)), largest = std::max(largest, std::fabs(double{x}));
  }
  EXPECT_GT(largest, 0.1);
  EXPECT_LT(worst, 1e-4);
  const Ran over = bench("1");
  EXPECT_EQ(over.code, 2) << "the file of --dump exists";
  EXPECT_NE(over.err.find("exists already"), std::string::npos) << over.err;
  const Ran three = bench("3");
  EXPECT_EQ(three.code, 2);
  EXPECT_EQ(three.err, "gemma4: cannot split the model over 3 devices: its 4 query heads do not divide\n");
}

// Over layers: each stage by itself beside the step, and where it is.
TEST(BenchCommand, TimesTheStagesOfAModel) {
  const Ran ran = run_gemma4({"bench",  "--model",   kTiny, "--backend", "cpu", "--gpus",    "2", "--split",
                              "layers", "--prompts", "20",  "--depths",  "0",   "--batches", "1", "--images",
                              "0",      "--steps",   "2",   "--chunk",   "32",  "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::vector<std::string> what;
  const auto results = read_json<nlohmann::json>(ran.out).at("results");
  double sum = 0;
  for (const auto& result : results) {
    what.push_back(result.at("what"));
    if (what.back().starts_with("  ") && &result != &results.back()) sum += result.at("ms").get<double>();
  }
  ASSERT_EQ(what.size(), 7u) << ran.out;
  EXPECT_EQ(what[1], "decode at 0");
  EXPECT_TRUE(what[2].starts_with("  layers 0 to ")) << what[2];
  EXPECT_TRUE(what[3].ends_with(" to 6 on cpu")) << what[3];
  EXPECT_EQ(what[6], "  these by themselves");
  EXPECT_NEAR(results.back().at("ms").get<double>(), sum, 1e-6);
  EXPECT_NE(ran.err.find("layers 0 to "), std::string::npos) << ran.err;
}

TEST(BenchCommand, ProfilesOps) {
  const Scratch scratch;
  const std::string out = scratch.path / "model";
  ASSERT_EQ(run_gemma4({"synth", "--like", kTiny, "--output", out}).code, 0);
  const Ran ran = run_gemma4(
      {"bench", "--model", out, "--backend", "cpu", "--prompts", "40", "--images", "70", "--chunk", "32", "--profile"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  for (const char* part : {"prompt of 40", "decode steps", "images of 70", "attention 16", "add_rms_norm"}) {
    EXPECT_NE(ran.out.find(part), std::string::npos) << part;
  }
}

// The weights of an exported program stay in its mapped file; those of a checkpoint are repacked in the process's
// memory.
TEST(BenchCommand, ReportsWhereTheWeightsAre) {
  const Scratch scratch;
  const std::string program = scratch.path / "program";
  ASSERT_EQ(run_gemma4({"export", "--format", "program", "--model-dir", kDemo, "--output-dir", program}).code, 0);
  const auto load = [](const std::string& model) {
    const Ran ran = run_gemma4({"bench", "--load", "--model", model, "--backend", "cpu", "--threads", "1", "--json"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return read_json<nlohmann::json>(ran.out);
  };
  const auto laid_out = load(kDemo), mapped = load(program);
  const int64_t weights = mapped.at("file_bytes");
  EXPECT_EQ(mapped.at("kind"), "program");
  EXPECT_GT(laid_out.at("own_bytes_loaded").get<int64_t>(), weights);
  EXPECT_LT(mapped.at("own_bytes_loaded").get<int64_t>(), laid_out.at("own_bytes_loaded").get<int64_t>() - weights / 2);
  EXPECT_GT(mapped.at("file_bytes_first_token").get<int64_t>(), weights / 2);
}

}  // namespace
}  // namespace gemma4
