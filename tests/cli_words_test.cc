// The words that a person types after gemma4: models and prompts without names, what is piped in, samplers, mistakes,
// help and versions.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/json.h"
#include "program_testing.h"

namespace gemma4 {
namespace {

constexpr const char* kSum = "What is 16 + 3?";
constexpr const char* kSumAnswer = "16 + 3 = 19.\n";

Ran ask_once(std::vector<std::string> words, const RunSetting& setting = {}) {
  words.insert(words.begin(), "run");
  words.insert(words.end(), {"--temperature", "0", "--max-seq-len", "512"});
  return run_gemma4(words, setting);
}

void expect_refused(const std::vector<std::string>& words, const std::string& sentence,
                    const RunSetting& setting = {}) {
  const Ran ran = run_gemma4(words, setting);
  EXPECT_EQ(ran.code, 2) << ran.err;
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ran.err, "gemma4" + sentence + "\n");
}

TEST(RunWords, TheModelAndThePromptNeedNoNames) {
  EXPECT_EQ(ask_once({kDemo, kSum}).out, kSumAnswer);
  EXPECT_EQ(ask_once({kSum, "--model", kDemo}).out, kSumAnswer) << "the word beside --model is the prompt";
  EXPECT_EQ(ask_once({"-m", kDemo, "-p", kSum}).out, kSumAnswer);
  EXPECT_EQ(ask_once({"-m", kDemo, "-i", kImages + "002.png", "-p", "What is at the left?"}).out, "A pink circle.\n");
  EXPECT_EQ(ask_once({"--model-dir", kDemo, kSum}).out, kSumAnswer);
}

TEST(RunWords, APictureMayStandBeforeTheQuestion) {
  const std::string picture = kImages + "002.png", question = "What is at the left?";
  EXPECT_EQ(ask_once({kDemo, "-i", picture, question}).out, "A pink circle.\n");
  EXPECT_EQ(ask_once({"-i", picture, kDemo, question}).out, "A pink circle.\n");
  const auto tokens = [](const Ran& ran) {
    return read_json<nlohmann::json>(ran.err.substr(ran.err.rfind('{'))).at("prompt_tokens").get<int>();
  };
  const int one = tokens(ask_once({kDemo, "-i", picture, question, "--json"}));
  EXPECT_GT(tokens(ask_once({kDemo, "-i", picture, "--image", picture, question, "--json"})), one + 50);
}

TEST(RunWords, AnEmptyApiKeyIsRefused) {
  expect_refused({"serve", kDemo, "--api-key", ""}, " serve: --api-key needs a value; an empty one was given");
  setenv("GEMMA4_API_KEY", "", 1);
  expect_refused({"serve", kDemo}, ": the API key of GEMMA4_API_KEY is empty; leave it away for a server without keys");
  unsetenv("GEMMA4_API_KEY");
}

// The model is not there: a mistake in other words is said before it is looked for.
TEST(RunWords, MistakesOfTheServersAccessAreSaidBeforeTheModelIsLoaded) {
  const Scratch scratch;
  spill(scratch.path / "keys", "\xef\xbb\xbf \r\n\t\n");
  const std::string keys = scratch.path / "keys", model = "/no/such/model";
  expect_refused({"serve", model, "--api-key-file", keys}, ": " + keys + " holds no API key");
  expect_refused({"serve", model, "--api-key", "open sesame"},
                 ": an API key must be printable ASCII characters without spaces, and one is not");
  const auto named = [&](const std::string& flag, const std::string& value) {
    const Ran ran = run_gemma4({"serve", model, flag, value});
    EXPECT_EQ(ran.code, 2);
    EXPECT_TRUE(ran.err.starts_with("gemma4: " + flag + " is a")) << ran.err;
  };
  expect_refused({"serve", model, "--max-connections", "8", "--connections-per-address", "9"},
                 ": --connections-per-address 9 is more than --max-connections 8");
  named("--cors-origin", "https://good.example/");
  named("--allow-host", "http://mybox");
  expect_refused(
      {"serve", model, "--mcp", "https://me:secret@tools.example/mcp"},
      ": --mcp is the http or https URL of an MCP server (https://tools.example/mcp), without a user name, a "
      "fragment or an IPv6 address, not 'https://me:secret@tools.example/mcp'");
  named("--allow-image-host", "https://pictures.example");
}

TEST(RunWords, EmptyValuesAreRefused) {
  const auto refused = [](const std::string& command, std::vector<std::string> words, const std::string& name) {
    words.insert(words.begin(), command);
    expect_refused(words, " " + command + ": " + name + " needs a value; an empty one was given");
  };
  refused("run", {"", "Hi"}, "MODEL");
  refused("run", {"--model", "", "Hi"}, "--model");
  refused("run", {kDemo, "Hi", "--image="}, "--image");
  refused("run", {kDemo, "Hi", "--stop", ""}, "--stop");
  refused("run", {kDemo, "Hi", "--drafter", ""}, "--drafter");
  refused("serve", {kDemo, "--allow-host", ""}, "--allow-host");
  refused("serve", {kDemo, "--model-name", ""}, "--model-name");
  refused("quantize", {kTiny, "--output", ""}, "--output");
  refused("export", {"--format", "gguf", kTiny, "--output", ""}, "--output");
  refused("synth", {"--output", ""}, "--output");
  refused("diff", {"", kTiny}, "A");
  EXPECT_EQ(ask_once({kDemo, kSum, "--system", ""}).out, kSumAnswer) << "an empty system message is none";
}

TEST(RunWords, WhatHasNoEffectIsRefused) {
  const auto refused = [](const std::vector<std::string>& more, const std::string& why) {
    std::vector<std::string> words = {"run", kDemo, "Hi"};
    words.insert(words.end(), more.begin(), more.end());
    expect_refused(words, why);
  };
  refused({"--split", "layers"}, " run: --split requires --gpus");
  refused({"--rank-timeout", "9"}, " run: --rank-timeout requires --one-process-per-gpu");
  refused({"--max-vision-soft-tokens", "70", "--no-vision"}, " run: --no-vision excludes --max-vision-soft-tokens");
  refused({"--image", "x.png", "--no-vision"}, " run: --image excludes --no-vision");
  refused({"--raw-prompt", "--system", "Be brief"}, " run: --system excludes --raw-prompt");
  refused({"--raw-prompt", "--tools", "tools.json"}, " run: --tools excludes --raw-prompt");
  refused({"--raw-prompt", "--chat-template", "july"}, " run: --raw-prompt excludes --chat-template");
  refused({"--raw-prompt", "--think"}, " run: --think excludes --raw-prompt");
  refused({"--max-new-tokens", "3", "--min-new-tokens", "4"}, ": --min-new-tokens 4 is more than --max-new-tokens 3");
  expect_refused({"serve", kDemo, "--no-vision", "--allow-image-host", "a.example"},
                 " serve: --no-vision excludes --allow-image-host");
}

TEST(RunWords, NumbersHaveBounds) {
  expect_refused({"run", kDemo, "Hi", "--cache-tokens", "1073741825"},
                 " run: --cache-tokens: 1073741825 is not from 0 to 1073741824");
  expect_refused({"run", kDemo, "Hi", "--cache-tokens", "1"}, ": --cache-tokens must be at least 64");
  expect_refused({"run", kDemo, "Hi", "--kv-memory", "0x1G"},
                 " run: --kv-memory: 0x1G is not a number of bytes, such as 512M or 8G");
  expect_refused({"run", kDemo, "Hi", "--max-seq-len", "100000"},
                 ": --max-seq-len 100000 is more than the 4096 positions the model was made for");
  expect_refused({"export", "--format", "mlx", kTiny, "-o", "x", "--threads", "1025"},
                 " export: --threads: 1025 is not from 0 to 1024");
  expect_refused({"serve", kDemo, "--max-seqs", "65537"}, " serve: --max-seqs: 65537 is not from 1 to 65536");
  expect_refused({"serve", kDemo, "--timeout", "1e300"}, " serve: --timeout: 1e300 is not from 0.001 to 1000000000");
}

TEST(RunWords, ExportRefusesFlagsOfAnotherFormat) {
  const Scratch scratch;
  const std::string out = scratch.path / "out";
  const auto refused = [&](const std::string& format, const std::vector<std::string>& flag, const std::string& its) {
    std::vector<std::string> words = {"export", "--format", format, kTiny, "--output", out};
    words.insert(words.end(), flag.begin(), flag.end());
    expect_refused(words, " export: " + flag[0] + " belongs to --format " + its + ", and this is --format " + format);
  };
  refused("program", {"--type", "bf16"}, "gguf");
  refused("mlx", {"--embedding-type", "bf16"}, "gguf");
  refused("mlx", {"--mmproj"}, "gguf");
  refused("gguf", {"--bits", "4"}, "mlx");
  refused("program", {"--group", "32"}, "mlx");
  refused("gguf", {"--max-seq-len", "99"}, "program");
  refused("mlx", {"--backend", "cpu"}, "program");
  EXPECT_FALSE(std::filesystem::exists(out));
  expect_refused({"export", "--format", "gguf", kTiny, "--output", out + "/x.gguf"},
                 ": cannot write " + out + "/x.gguf: the folder " + out + " does not exist");
}

TEST(RunWords, TwoOfOneAreRefused) {
  expect_refused({"run", kDemo, kSum, "-p", "another"},
                 std::string(": there are two prompts: '") + kSum + "', and that of --prompt");
  expect_refused({"run", "-m", kDemo, "one", "two"},
                 ": 'two' was not expected: --model names the model, and the prompt is 'one' (put quotes around what "
                 "holds spaces)");
  expect_refused({"run", kDemo, "What", "is", "it?"},
                 " run: 'is' was not expected; 'it?' was not expected (put quotes around what holds spaces)");
}

TEST(RunWords, AMissingModelIsSaidAlikeByEveryCommand) {
  for (const std::string command : {"run", "serve", "quantize", "inspect", "eval", "bench"}) {
    expect_refused({command}, ": there is no model: gemma4 " + command + " MODEL, or --model MODEL");
  }
  expect_refused({"run", "-p", "Hi"}, ": there is no model: gemma4 run MODEL, or --model MODEL");
  expect_refused({"export", "--format", "gguf"}, ": there is no model: gemma4 export MODEL, or --model MODEL");
  expect_refused({"serve", "--modle", kDemo}, " serve: there is no option --modle (did you mean --model?)");
  // Standard input is empty: there is no prompt, either.
  expect_refused({"run", "hi"}, ": there is no checkpoint at hi");
}

TEST(RunWords, ABlankPromptIsRefusedUnlessThereArePictures) {
  const Scratch scratch;
  const std::string empty = scratch.path / "empty", blank = scratch.path / "blank";
  spill(empty, ""), spill(blank, " \r\n\t\n");
  const std::vector<std::vector<std::string>> prompts = {{""},
                                                         {" "},
                                                         {"-p", "  "},
                                                         {"--prompt="},
                                                         {"--prompt-file", empty},
                                                         {"--prompt-file", blank},
                                                         {"--prompt-file", "-"},
                                                         {"-p", "\n", "--raw-prompt"},
                                                         {"--raw-prompt", ""}};
  for (std::vector<std::string> words : prompts) {
    words.insert(words.begin(), {"run", kDemo});
    expect_refused(words, ": the prompt is blank, and there is no picture (-i) to answer about");
  }
  for (const std::vector<std::string>& more : {std::vector<std::string>{""}, {"--raw-prompt", " "}}) {
    std::vector<std::string> words = {kDemo, "-i", kImages + "002.png", "--max-new-tokens", "1"};
    words.insert(words.end(), more.begin(), more.end());
    EXPECT_EQ(ask_once(words).code, 0);
  }
  EXPECT_EQ(ask_once({kDemo, ""}, {.input = kSum}).code, 0) << "what is piped in is not blank";
}

TEST(RunWords, WhatIsPipedInIsThePrompt) {
  EXPECT_EQ(ask_once({kDemo}, {.input = std::string(kSum) + "\n"}).out, kSumAnswer);
  for (const char* nothing : {"", " \n"}) {
    const Ran ran = ask_once({kDemo}, {.input = nothing});
    EXPECT_EQ(ran.code, 2);
    EXPECT_NE(ran.err.find("there is no prompt"), std::string::npos) << ran.err;
  }
  EXPECT_EQ(ask_once({kDemo}, {.input = "caf\xe9"}).err, "gemma4: standard input is not valid UTF-8\n");
}

TEST(RunWords, WhatIsPipedInFollowsThePrompt) {
  // The prompt's tokens are counted, because a raw prompt with the same text has as many.
  const auto tokens = [](const Ran& ran) {
    EXPECT_EQ(ran.code, 0) << ran.err;
    return read_json<nlohmann::json>(ran.err.substr(ran.err.rfind('{'))).at("prompt_tokens").get<int>();
  };
  const std::string notes = "The red square is left of the blue circle.";
  const int whole = tokens(ask_once({kDemo, "-p", "Summarise\n\n" + notes, "--json", "--max-new-tokens", "1"}));
  const int alone = tokens(ask_once({kDemo, "-p", "Summarise", "--json", "--max-new-tokens", "1"}));
  ASSERT_GT(whole, alone);
  EXPECT_EQ(tokens(ask_once({kDemo, "-p", "Summarise", "--json", "--max-new-tokens", "1"}, {.input = notes})), whole);
  const Scratch scratch;
  spill(scratch.path / "p", "Summarise");
  EXPECT_EQ(tokens(ask_once({kDemo, "--prompt-file", scratch.path / "p", "--json", "--max-new-tokens", "1"},
                            {.input = notes})),
            whole);
  EXPECT_EQ(tokens(ask_once({kDemo, "-p", "Summarise", "--json", "--max-new-tokens", "1"}, {.input = "\n"})), alone);
  EXPECT_EQ(ask_once({kDemo, "-p", "Hi"}, {.input = "caf\xe9"}).err, "gemma4: standard input is not valid UTF-8\n");
  EXPECT_EQ(ask_once({kDemo, "-p", "Hi"}, {.input = std::string((size_t{64} << 20) + 1, 'x')}).err,
            "gemma4: standard input is larger than 67108864 bytes\n");
}

TEST(RunWords, SamplersOfTheServerAreFlags) {
  const auto sampled = [](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"run", kTiny,          "the stars",  "--seed",    "7",   "--max-new-tokens",
                                      "24",  "--ignore-eos", "--no-stats", "--backend", "ref", "--temperature",
                                      "1.5"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran ran = run_gemma4(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.out + ran.err;
  };
  const std::string free = sampled({});
  EXPECT_EQ(sampled({}), free);
  EXPECT_NE(sampled({"--min-p", "0.9"}), free);
  EXPECT_NE(sampled({"--repetition-penalty", "50"}), free);
  EXPECT_NE(sampled({"--presence-penalty", "2", "--frequency-penalty", "2"}), free);
  EXPECT_NE(sampled({"--logit-bias", "100=100"}), free);
  const Ran stopped = run_gemma4({"run", kDemo, kSum, "--temperature", "0", "--stop", " =", "--no-stats"});
  EXPECT_EQ(stopped.out, "16 + 3\n") << stopped.err;
  EXPECT_EQ(stopped.err, "") << "--no-stats leaves nothing to say";
}

TEST(RunWords, PicturesOutOfPlaceAndNamesOfOtherProgramsAreExplained) {
  const std::string picture = kImages + "002.png";
  expect_refused({"run", kDemo, "What is this?", picture},
                 " run: '" + picture + "' was not expected (a picture is given with -i)");
  expect_refused({"run", kDemo, picture},
                 ": '" + picture + "' is a picture and stands where the prompt does: a picture is given with -i");
  expect_refused({"run", kDemo, "Hi", "--ctx-size", "99"},
                 " run: there is no option --ctx-size (did you mean --max-seq-len?)");
  expect_refused({"run", kDemo, "Hi", "-ngl", "9"}, " run: there is no option -ngl (did you mean --gpu-layers?)");
}

TEST(RunWords, SamplersHaveTheServersBounds) {
  const auto refused = [](const std::string& flag, const std::string& value, const std::string& why) {
    expect_refused({"run", kDemo, "Hi", flag, value}, " run: " + flag + ": " + value + " is not " + why);
  };
  refused("--temperature", "2.5", "from 0 to 2");
  refused("--temperature", "-1", "from 0 to 2");
  refused("--min-p", "1.5", "from 0 to 1");
  refused("--presence-penalty", "3", "from -2 to 2");
  refused("--frequency-penalty", "-3", "from -2 to 2");
  refused("--repetition-penalty", "0", "above zero");
  expect_refused({"run", kDemo, "Hi", "--logit-bias", "12"}, ": --logit-bias is ID=BIAS, as 1234=-5, not 12");
  expect_refused({"run", kDemo, "Hi", "--logit-bias", "a=1"}, ": --logit-bias is ID=BIAS, as 1234=-5, not a=1");
  expect_refused({"run", kDemo, "Hi", "--logit-bias", "1=nan"}, ": --logit-bias is ID=BIAS, as 1234=-5, not 1=nan");
}

TEST(RunWords, ASchemaBindsTheAnswer) {
  const Scratch scratch;
  spill(
      scratch.path / "schema.json",
      R"({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false})");
  const std::string schema = scratch.path / "schema.json";
  const Ran ran = ask_once({kDemo, kSum, "--schema", schema});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(read_json<nlohmann::json>(ran.out).at("n").is_number_integer()) << ran.out;
  const Ran cut = ask_once({kDemo, kSum, "--schema", schema, "--max-new-tokens", "2"});
  EXPECT_EQ(cut.code, 1);
  EXPECT_NE(cut.err.find("the answer was cut before its JSON was complete"), std::string::npos) << cut.err;
  spill(scratch.path / "broken.json", "{");
  EXPECT_EQ(ask_once({kDemo, kSum, "--schema", scratch.path / "broken.json"}).code, 2);
  EXPECT_EQ(ask_once({kDemo, kSum, "--schema", "/no/such/schema"}).code, 2);
}

TEST(RunWords, MistypedWordsAreNamedInTheOrderTyped) {
  expect_refused({"run", kDemo, "--promt", "Hi", "--imge", "x.png"},
                 " run: there is no option --promt (did you mean --prompt?); there is no option --imge (did you mean "
                 "--image?)");
  expect_refused({"serve", "--modle", kDemo}, " serve: there is no option --modle (did you mean --model?)");
  expect_refused({"quantise"}, ": there is no command 'quantise'; did you mean quantize?");
}

TEST(RunWords, VersionAndHelpHaveTheirUsualNames) {
  const Ran version = run_gemma4({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.substr(0, 8), "gemma4 0") << version.out;
  EXPECT_NE(version.out.find("\nbackends: "), std::string::npos);
  EXPECT_NE(version.out.find("\nline editing: "), std::string::npos);
  EXPECT_EQ(run_gemma4({"-V"}).out, version.out);
  EXPECT_EQ(run_gemma4({"version"}).out, version.out);
  const Ran help = run_gemma4({"help", "run"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("--prompt-file"), std::string::npos);
  EXPECT_EQ(help.out, run_gemma4({"run", "--help"}).out);
  expect_refused({"help", "rnu"}, ": there is no command 'rnu'; did you mean run?");
}

TEST(RunWords, HelpListsEveryCommand) {
  const Ran help = run_gemma4({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* command : {"run", "serve", "quantize", "inspect", "diff", "eval", "export", "bench", "synth",
                              "completion", "man", "help", "version"}) {
    EXPECT_NE(help.out.find(std::string("\n  ") + command + " "), std::string::npos) << command;
    const Ran own = run_gemma4({"help", command}), page = run_gemma4({"man", command});
    EXPECT_EQ(own.code, 0) << command << own.err;
    EXPECT_EQ(page.code, 0) << command << page.err;
    EXPECT_NE(page.out.find(std::string("\n.SH NAME\ngemma4\\-") + command), std::string::npos) << page.out;
  }
  EXPECT_NE(help.out.find("OpenAI's, Anthropic's and Ollama's"), std::string::npos) << help.out;
  for (const auto& words : std::vector<std::vector<std::string>>{{"help"}, {"-h"}, {"help", "help"}}) {
    EXPECT_EQ(run_gemma4(words).out, help.out);
  }
}

TEST(RunWords, WordsThatAreLeftOverAreRefused) {
  expect_refused({"--version", "foo"}, " --version: 'foo' was not expected");
  expect_refused({"-V", "foo"}, " -V: 'foo' was not expected");
  expect_refused({"version", "foo"}, " version: 'foo' was not expected");
  expect_refused({"version", "--foo"}, " version: there is no option --foo");
  expect_refused({"help", "run", "extra"}, " help: 'extra' was not expected");
  expect_refused({"help", "help", "extra"}, " help: 'extra' was not expected");
  expect_refused({"--help", "run", "extra"}, " --help: 'extra' was not expected");
  expect_refused({"completion", "bash", "extra"}, " completion: 'extra' was not expected");
  expect_refused({"man", "run", "extra"}, " man: 'extra' was not expected");
}

TEST(RunWords, WhatBeginsWithADashIsCalledAnOption) {
  expect_refused({"-v"}, ": there is no option '-v'; did you mean --version?");
  expect_refused({"--versoin"}, ": there is no option '--versoin'; did you mean --version?");
  const Ran ran = run_gemma4({"--nonsense"});
  EXPECT_EQ(ran.code, 2);
  EXPECT_TRUE(ran.err.starts_with("gemma4: there is no option '--nonsense'\n")) << ran.err;
  EXPECT_TRUE(run_gemma4({"nonsense"}).err.starts_with("gemma4: there is no command 'nonsense'\n"));
}

TEST(RunWords, QuantizeWritesWhereTheDocumentsLook) {
  const std::string help = run_gemma4({"quantize", "--help"}).out;
  EXPECT_NE(help.find("--output PATH=gemma4-31b-int4"), std::string::npos) << help;
}

// One name of the model in every command.
TEST(RunWords, EveryCommandTakesTheModelAlike) {
  for (const char* command : {"run", "serve", "quantize", "inspect", "export", "eval", "bench"}) {
    const std::string help = run_gemma4({command, "--help"}).out;
    EXPECT_NE(help.find("-m,--model,--model-dir,--prequantized,--bf16"), std::string::npos) << command << help;
    EXPECT_NE(help.find("MODEL"), std::string::npos) << command;
    EXPECT_EQ(help.find("{false}"), std::string::npos) << command << help;
  }
  const auto inspected = [](const std::vector<std::string>& model) {
    std::vector<std::string> words = {"inspect", "--json"};
    words.insert(words.end(), model.begin(), model.end());
    nlohmann::json report = read_json<nlohmann::json>(run_gemma4(words).out);
    report.erase("memory");  // what is free changes
    return report;
  };
  EXPECT_EQ(inspected({"--model", kTiny}), inspected({kTiny}));
}

// Without --backend: one that can run here, and that of an exported program.
TEST(RunWords, TheBackendIsChosenWhereNoneIsNamed) {
  const Ran ran = ask_once({kDemo, kSum, "--json"});
  const std::string chosen = read_json<nlohmann::json>(ran.err).at("backend");
  EXPECT_TRUE(chosen == "cpu" || chosen == "cuda") << chosen;
  const Scratch scratch;
  const std::string program = scratch.path / "program";
  ASSERT_EQ(run_gemma4({"export", "--format", "program", kTiny, "--output", program, "--backend", "ref"}).code, 0);
  const Ran exported = run_gemma4({"run", program, "the stars", "--max-new-tokens", "1", "--json"});
  ASSERT_EQ(exported.code, 0) << exported.err;
  EXPECT_EQ(read_json<nlohmann::json>(exported.err.substr(exported.err.rfind("{\"backend"))).at("backend"), "ref");
  expect_refused({"run", kDemo, "Hi", "--backend", "gpu"}, " run: --backend: gpu not in {auto,cuda,cpu,ref}");
}

}  // namespace
}  // namespace gemma4
