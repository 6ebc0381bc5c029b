// gemma4 run as a program: its output, what ends it, and the messages for bad input.
#include <pty.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>

#include "base/file.h"
#include "base/json.h"
#include "cli/commands/answer_printer.h"
#include "program_testing.h"

namespace gemma4 {
namespace {

std::vector<std::string> run_demo(std::vector<std::string> more) {
  more.insert(more.begin(), {"run", "--model", kDemo, "--temperature", "0", "--max-seq-len", "512"});
  return more;
}

// Standard error as the lines before the last one (a model's thoughts; random ones at any temperature above 0), and the
// last one: the report.
std::pair<std::string, nlohmann::json> thoughts_and_report(const Ran& ran) {
  std::string err = ran.err;
  if (err.ends_with('\n')) err.pop_back();
  const size_t report = err.find_last_of('\n') + 1;
  return {err.substr(0, report), read_json_or_discard<nlohmann::json>(err.substr(report))};
}

nlohmann::json report(const Ran& ran) {
  auto [thoughts, line] = thoughts_and_report(ran);
  EXPECT_EQ(thoughts, "") << "one line: " << ran.err;
  return std::move(line);
}

TEST(Run, AnswersAboutAPictureAndReports) {
  const Ran ran = run_gemma4(run_demo({"--image", kImages + "002.png", "--prompt", "What is at the left?", "--json"}));
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "A pink circle.\n");
  const auto line = report(ran);
  EXPECT_EQ(line.at("prompt_tokens"), 83);
  EXPECT_EQ(line.at("image_tokens"), 63);
  EXPECT_EQ(line.at("finish"), "stop");
  for (const char* key : {"load_ms", "image_ms", "prefill_tokens_per_second", "decode_tokens_per_second",
                          "first_token_ms", "peak_memory_mib"}) {
    EXPECT_GT(line.at(key).get<double>(), 0) << key;
  }
}

TEST(Run, AnswersAlikeOverSeveralRanks) {
  const std::vector<std::string> ask = {"--image", kImages + "002.png", "--prompt", "What is at the left?", "--gpus"};
  for (const std::string gpus : {"2", "4"}) {
    std::vector<std::string> more = ask;
    more.push_back(gpus);
    const Ran ran = run_gemma4(run_demo(more));
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(ran.out, "A pink circle.\n");
  }
  std::vector<std::string> more = ask;
  more.push_back("3");
  const Ran refused = run_gemma4(run_demo(more));
  EXPECT_EQ(refused.code, 2);
  EXPECT_EQ(refused.out, "");
  EXPECT_EQ(refused.err, "gemma4: cannot split the model over 3 devices: its 4 query heads do not divide\n");
}

TEST(Run, OtherNamesOfFlagsWork) {
  for (const char* model : {"--prequantized", "--bf16"}) {
    const Ran ran = run_gemma4({"run", model, kDemo, "--image-path", kImages + "003.png", "--prompt",
                                "Read the digits.", "--temperature", "0"});
    EXPECT_EQ(ran.out, "0\n") << ran.err;
  }
}

TEST(Run, AGgufModelTakesItsVisionTowerFromMmproj) {
  const Scratch scratch;
  const std::string model = scratch.path / "text.gguf", half = scratch.path / "elsewhere" / "vision.gguf";
  const Ran made =
      run_gemma4({"export", "--format", "gguf", "--model-dir", kDemo, "--output", model, "--mmproj", "--type", "q8_0"});
  ASSERT_EQ(made.code, 0) << made.err;
  const auto ask = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"run", "--model", model, "--temperature", "0", "--max-seq-len", "512", "--image",
                               kImages + "002.png", "--prompt", "What is at the left?"});
    return run_gemma4(more);
  };
  EXPECT_EQ(ask({}).out, "A pink circle.\n") << "mmproj-text.gguf lies beside it";
  std::filesystem::create_directory(scratch.path / "elsewhere");
  std::filesystem::rename(scratch.path / "mmproj-text.gguf", half);
  const Ran blind = ask({});
  EXPECT_EQ(blind.code, 2);
  EXPECT_NE(blind.err.find("--mmproj"), std::string::npos) << blind.err;
  EXPECT_EQ(ask({"--mmproj", half}).out, "A pink circle.\n");
  EXPECT_EQ(ask({"--mmproj", kDemo}).out, "A pink circle.\n") << "the vision tower of a Hugging Face directory";
  for (const std::string& wrong : {model, std::string("/nonexistent"), kTiny}) {
    const Ran refused = ask({"--mmproj", wrong});
    EXPECT_EQ(refused.code, 2) << wrong;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
  }
  EXPECT_EQ(run_gemma4(run_demo({"--mmproj", half, "--prompt", "Hi"})).code, 0) << "a directory takes one, too";
}

TEST(Run, ReadsThePromptFromAFileOrStandardInput) {
  const Scratch scratch;
  spill(scratch.path / "p", "What is 16 + 3?");
  EXPECT_EQ(run_gemma4(run_demo({"--prompt-file", scratch.path / "p"})).out, "16 + 3 = 19.\n");
  EXPECT_EQ(run_gemma4(run_demo({"--prompt-file", "-"}), {.input = "What is 16 + 3?"}).out, "16 + 3 = 19.\n");
}

TEST(Run, ARawPromptEqualsTheRenderedChat) {
  const std::string prompt = "<|turn>user\nWhat is at the left?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>";
  EXPECT_EQ(run_gemma4(run_demo({"--raw-prompt", "--prompt", "<bos>" + prompt})).code, 0);
  const std::string placed =
      "<bos><|turn>user\n<|image|>What is at the left?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>";
  const Ran ran = run_gemma4(run_demo({"--raw-prompt", "--image", kImages + "002.png", "--prompt", placed}));
  EXPECT_EQ(ran.out, "A pink circle.\n") << ran.err;
}

// The line of a tool call. No prompt makes the demo model write such arguments, so they are forced.
TEST(Run, PrintsACallWithEveryDigit) {
  EngineOptions options;
  options.model = kDemo;
  options.backend = "cpu";
  options.max_seq_len = 512;
  Engine engine(options);
  Request request;
  request.messages = {Message::text("user", "Who are you?")};
  request.sampling.temperature = 0;
  request.tools = R"([{"name": "f", "description": "F.", "parameters": {"type": "object", "required": ["n"],
      "properties": {"n": {"type": "integer", "enum": [-1234567890123456789012345678]}}}}])";
  request.format.type = ResponseFormat::kToolCall;
  request.format.tool_name = "f";
  request.format.parallel_tools = false;
  testing::internal::CaptureStdout();
  print_answer(engine, request, false, nullptr);
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            "{\"tool_call\":{\"name\":\"f\",\"arguments\":{\"n\":-1234567890123456789012345678}}}\n");
}

TEST(Run, ChunksOfAnySizeGiveTheSameAnswer) {
  for (const char* chunk : {"1", "7", "64"}) {
    const Ran ran = run_gemma4(
        run_demo({"--image", kImages + "006.png", "--prompt", "Describe this image.", "--prefill-chunk", chunk}));
    EXPECT_EQ(ran.out, "The number 9044 written in yellow.\n") << ran.err;
  }
}

TEST(Run, ToolCallsAreALineOfJsonAndNoControlTokenIsEverShown) {
  const Scratch scratch;
  spill(
      scratch.path / "tools.json",
      R"([{"type":"function","function":{"name":"set_timer","description":"Set a timer in minutes.","parameters":{"type":"object","properties":{"minutes":{"type":"integer","description":"The minutes."}},
"required":["minutes"]}}}])");
  const Ran ran = run_gemma4(
      run_demo({"--tools", scratch.path / "tools.json", "--prompt", "Set a timer for 6 minutes.", "--json"}));
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "{\"tool_call\":{\"name\":\"set_timer\",\"arguments\":{\"minutes\":6}}}\n");
  EXPECT_EQ(report(ran).at("finish"), "tool_calls");
}

TEST(Run, ThoughtsGoToStandardError) {
  const Ran ran = run_gemma4(run_demo({"--think", "--prompt", "What is 16 + 3?"}));
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("[thinking] "), std::string::npos) << ran.err;
  for (const char* bad : {"<|", "|>", "thinking", "thought"})
    EXPECT_EQ(ran.out.find(bad), std::string::npos) << ran.out;
  EXPECT_FALSE(ran.out.empty());
}

TEST(Run, ASeedMakesTheSameAnswerAndIsReported) {
  const std::vector<std::string> arguments = {
      "run", "--model", kTiny,       "--prompt", "the stars",   "--max-new-tokens",
      "12",  "--json",  "--backend", "ref",      "--ignore-eos"};
  const Ran free = run_gemma4(arguments);
  ASSERT_EQ(free.code, 0) << free.err;
  const auto [thoughts, line] = thoughts_and_report(free);
  ASSERT_TRUE(line.contains("seed")) << free.err;
  const auto all_of = [](const Ran& ran) { return thoughts_and_report(ran).first + ran.out; };
  auto seeded = arguments;
  seeded.insert(seeded.end(), {"--seed", std::to_string(line.at("seed").get<uint64_t>())});
  EXPECT_EQ(all_of(run_gemma4(seeded)), thoughts + free.out);
  seeded.back() += "1";
  EXPECT_NE(all_of(run_gemma4(seeded)), thoughts + free.out);
}

TEST(Run, DraftsChangeNoAnswerAndAreReported) {
  const std::vector<std::string> arguments = {"run",       "--model", kTiny,    "--prompt",     "the stars the stars",
                                              "--backend", "ref",     "--json", "--ignore-eos", "--max-new-tokens",
                                              "40",        "--seed",  "7",      "--top-k",      "3"};
  const Ran plain = run_gemma4(arguments);
  ASSERT_EQ(plain.code, 0) << plain.err;
  for (const char* key : {"rounds", "drafted", "accepted", "accepted_by_position"}) {
    EXPECT_FALSE(report(plain).contains(key)) << key;
  }
  for (const std::string tokens : {"", "1", "4", "16"}) {
    auto with = arguments;
    with.insert(with.end(), {"--drafter", "ngram"});
    if (!tokens.empty()) with.insert(with.end(), {"--draft-tokens", tokens});
    const Ran ran = run_gemma4(with);
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(ran.out, plain.out);
    const auto line = report(ran);
    EXPECT_GT(line.at("rounds"), 0);
    EXPECT_GE(line.at("drafted"), line.at("rounds"));
    EXPECT_LE(line.at("accepted"), line.at("drafted"));
    uint64_t sum = 0;
    for (const auto& count : line.at("accepted_by_position")) sum += count.get<uint64_t>();
    EXPECT_EQ(line.at("accepted"), sum);
  }
}

TEST(Run, RefusesADrafterThatIsNone) {
  const auto refused = [](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"run", "--model", kTiny, "--backend", "ref", "--prompt", "a"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran ran = run_gemma4(words);
    EXPECT_EQ(ran.code, 2) << ran.err;
    EXPECT_EQ(ran.out, "");
    return ran.err;
  };
  EXPECT_NE(refused({"--drafter", "/nowhere"}).find("/nowhere"), std::string::npos);
  EXPECT_NE(refused({"--drafter", kTiny}).find("drafter"), std::string::npos);
  EXPECT_NE(refused({"--draft-tokens", "4"}).find("--drafter"), std::string::npos);
  EXPECT_NE(refused({"--drafter", "ngram", "--draft-tokens", "17"}).find("--draft-tokens"), std::string::npos);
}

TEST(Run, MaxNewTokensEndsTheAnswer) {
  const Ran ran = run_gemma4(run_demo({"--prompt", "Who are you?", "--max-new-tokens", "3", "--json"}));
  EXPECT_EQ(report(ran).at("generated_tokens"), 3);
  EXPECT_EQ(report(ran).at("finish"), "length");
}

// A chat on a pseudo-terminal.
TEST(Run, ChatsOnATerminalAndKeepsTheConversation) {
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(child, 0);
  if (child == 0) {
    execl(GEMMA4_BINARY, GEMMA4_BINARY, "run", "--model", kDemo.c_str(), "--temperature", "0", "--max-seq-len", "512",
          "--no-history", nullptr);
    _exit(98);
  }
  const std::string lines =
      "/image " + kImages + "002.png\nWhat is at the left?\n/image /no/such/file\n" + "Describe this image.\n/quit\n";
  ASSERT_EQ(write(terminal, lines.data(), lines.size()), static_cast<ssize_t>(lines.size()));
  std::string seen;
  char buffer[4096];
  for (ssize_t n; (n = read(terminal, buffer, sizeof(buffer))) > 0;) seen.append(buffer, n);
  int status = 0;
  waitpid(child, &status, 0);
  close(terminal);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << seen;
  EXPECT_NE(seen.find("A pink circle."), std::string::npos) << seen;
  EXPECT_NE(seen.find("/no/such/file"), std::string::npos) << seen;
  EXPECT_NE(seen.find("a green triangle at the center"), std::string::npos) << seen;
  // The second turn prefills only its new tokens: the 79 tokens before the first answer are cached.
  EXPECT_NE(seen.find("79 of them cached"), std::string::npos) << seen;
}

// Bad input gives one clear line on standard error, exit code 2 and nothing on standard output.

void expect_bad(const std::vector<std::string>& arguments, const std::string& part, const RunSetting& setting = {}) {
  const Ran ran = run_gemma4(arguments, setting);
  EXPECT_EQ(ran.code, 2) << ran.err;
  EXPECT_EQ(ran.out, "");
  EXPECT_NE(ran.err.find(part), std::string::npos) << "wanted '" << part << "' in: " << ran.err;
  EXPECT_TRUE(ran.err.starts_with("gemma4")) << ran.err;
  EXPECT_EQ(std::ranges::count(ran.err, '\n'), 1) << ran.err;
}

// A copy of the tiny checkpoint, which tests damage.
struct Spoiled : Scratch {
  Spoiled() {
    for (const char* name : {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
                             "tokenizer_config.json", "model.safetensors"}) {
      std::filesystem::copy_file(kTiny + "/" + name, path / name);
      std::filesystem::permissions(path / name, std::filesystem::perms::owner_write,
                                   std::filesystem::perm_options::add);
    }
  }
  std::vector<std::string> run() const { return {"run", "--model", path, "--prompt", "Hi", "--backend", "ref"}; }
  std::filesystem::path weights() const { return path / "model.safetensors"; }

  void change_header(const std::function<void(nlohmann::ordered_json&)>& change) const {
    const std::string file = slurp(weights());
    uint64_t length;
    std::memcpy(&length, file.data(), 8);
    auto header = read_json<nlohmann::ordered_json>(file.substr(8, length));
    change(header);
    const std::string text = header.dump(), data = file.substr(8 + length);
    length = text.size();
    std::string out(8, '\0');
    std::memcpy(out.data(), &length, 8);
    spill(weights(), out + text + data);
  }
  void change_config(const std::function<void(nlohmann::json&)>& change) const {
    auto config = read_json<nlohmann::json>(slurp(path / "config.json"));
    change(config);
    spill(path / "config.json", config.dump());
  }
};

TEST(BadInput, CheckpointsThatAreNotThere) {
  expect_bad({"run", "--model", "/no/such/folder", "--prompt", "Hi"}, "/no/such/folder");
  const Scratch empty;
  expect_bad({"run", "--model", empty.path, "--prompt", "Hi"}, empty.path);
  expect_bad({"run", "--prompt", "Hi"}, "--model");
}

TEST(BadInput, TruncatedAndLyingSafetensors) {
  const Spoiled truncated;
  std::filesystem::resize_file(truncated.weights(), 200000);
  expect_bad(truncated.run(), "model.safetensors");
  const Spoiled stub;
  spill(stub.weights(), "abc");
  expect_bad(stub.run(), "model.safetensors");
  const Spoiled huge;
  std::string file = slurp(huge.weights());
  const uint64_t length = 100'000'001;
  std::memcpy(file.data(), &length, 8);
  spill(huge.weights(), file);
  expect_bad(huge.run(), "model.safetensors");
  const Spoiled lying;
  lying.change_header([](auto& header) {
    for (auto& [name, entry] : header.items()) {
      if (name != "__metadata__") entry["data_offsets"][1] = entry["data_offsets"][1].template get<uint64_t>() + 8;
    }
  });
  expect_bad(lying.run(), "model.safetensors");
}

TEST(BadInput, WrongShapesAndMissingOrUnknownTensors) {
  const std::string name = "model.language_model.layers.0.mlp.down_proj.weight";
  const Spoiled shape;
  shape.change_header([&](auto& header) { std::swap(header[name]["shape"][0], header[name]["shape"][1]); });
  expect_bad(shape.run(), "layers.0.mlp.down_proj.weight");
  const Spoiled renamed;
  renamed.change_header([&](auto& header) {
    nlohmann::ordered_json other;
    for (auto& [key, entry] : header.items()) other[key == name ? "model.language_model.extra.weight" : key] = entry;
    header = other;
  });
  expect_bad(renamed.run(), "weight");
}

// A text model's directory, and any checkpoint with --no-vision.
TEST(Run, ATextModelAnswersAndRefusesPictures) {
  const Spoiled text;
  text.change_config([](auto& config) { config.erase("vision_config"); });
  const std::vector<std::string> ask = {"--prompt",      "Hi", "--backend",        "ref",
                                        "--temperature", "0",  "--max-new-tokens", "8"};
  const auto run_with = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "run");
    arguments.insert(arguments.end(), ask.begin(), ask.end());
    return run_gemma4(arguments);
  };
  const Ran whole = run_with({"--model", kTiny}), without = run_with({"--model", text.path});
  ASSERT_EQ(without.code, 0) << without.err;
  EXPECT_EQ(without.out, whole.out);
  EXPECT_EQ(run_with({"--model", kTiny, "--no-vision"}).out, whole.out);
  for (const std::vector<std::string>& model :
       {std::vector<std::string>{"--model", text.path}, std::vector<std::string>{"--model", kTiny, "--no-vision"}}) {
    std::vector<std::string> arguments = {"run", "--image", kImages + "002.png"};
    arguments.insert(arguments.end(), model.begin(), model.end());
    arguments.insert(arguments.end(), ask.begin(), ask.end());
    expect_bad(arguments, model.size() == 2 ? "vision tower" : "--image excludes --no-vision");
  }
  EXPECT_NE(run_gemma4({"inspect", text.path}).out.find("\n  it can run\n"), std::string::npos);
}

TEST(BadInput, ConfigsWeCannotRun) {
  const Spoiled broken;
  spill(broken.path / "config.json", "{ not json");
  expect_bad(broken.run(), "config");
  const Spoiled moe;
  moe.change_config([](auto& config) { config["text_config"]["enable_moe_block"] = true; });
  expect_bad(moe.run(), "mixture of experts");
  const Spoiled tokenizer;
  spill(tokenizer.path / "tokenizer.json", "[]");
  expect_bad(tokenizer.run(), "tokenizer");
  std::filesystem::remove(tokenizer.path / "tokenizer.json");
  expect_bad(tokenizer.run(), "holds no tokenizer.json");
}

TEST(BadInput, APipeInPlaceOfAFileIsNotWaitedFor) {
  for (const char* name : {"model.safetensors", "config.json"}) {
    const Spoiled spoiled;
    std::filesystem::remove(spoiled.path / name);
    ASSERT_EQ(mkfifo((spoiled.path / name).c_str(), 0600), 0);
    expect_bad(spoiled.run(), "not a regular file");
  }
}

std::string png_that_claims(uint32_t width, uint32_t height) {
  const auto big_endian = [](uint32_t v) {
    return std::string{static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8),
                       static_cast<char>(v)};
  };
  const auto crc = [](const std::string& bytes) {
    uint32_t c = 0xffffffff;
    for (const char byte : bytes) {
      c ^= static_cast<uint8_t>(byte);
      for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
    }
    return ~c;
  };
  const std::string body = "IHDR" + big_endian(width) + big_endian(height) + std::string("\x08\x02\0\0\0", 5);
  return "\x89PNG\r\n\x1a\n" + big_endian(13) + body + big_endian(crc(body));
}

TEST(BadInput, Images) {
  const Scratch scratch;
  const auto with = [&](const std::string& bytes) {
    spill(scratch.path / "image", bytes);
    return run_demo({"--image", scratch.path / "image", "--prompt", "What is this?"});
  };
  expect_bad(with(""), "image 1");
  expect_bad(with("GIF89a"), "image 1");
  expect_bad(with(slurp(kImages + "002.png").substr(0, 60)), "image 1");
  expect_bad(with(png_that_claims(60000, 60000)), "image 1");
  expect_bad(run_demo({"--image", "/no/such/image.png", "--prompt", "What is this?"}), "/no/such/image.png");
  expect_bad(run_demo({"--image", kImages + "002.png", "--prompt", "Hi", "--max-vision-soft-tokens", "71"}), "71");
  // With 1120 soft tokens a strip needs more positions in a row than the demo's table has.
  expect_bad(run_demo({"--image", SOURCE_DIR "/tests/golden/preprocess/images/07_3000x7.png", "--prompt", "Hi",
                       "--max-vision-soft-tokens", "1120"}),
             "image 1");
}

// Files without an end, without a beginning or far too large are refused before they are read.
TEST(BadInput, ImagesThatAreNoRegularFileOrTooLarge) {
  const Scratch scratch;
  const std::string pipe = scratch.path / "pipe", large = scratch.path / "large";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  spill(large, "\xff\xd8\xff");
  std::filesystem::resize_file(large, (uint64_t{1} << 28) + 1);  // sparse
  const auto ask = [&](const std::string& path) { return run_demo({"--image", path, "--prompt", "What is this?"}); };
  for (const std::string& path : {pipe, std::string("/dev/zero"), std::string("/dev/urandom")}) {
    expect_bad(ask(path), "cannot read " + path + ": it is not a regular file");
  }
  expect_bad(ask(scratch.path), "cannot read " + scratch.path.string() + ": it is a directory");
  expect_bad(ask(large), "cannot read " + large + ": it is larger than 268435456 bytes");
  expect_bad(run_demo({"--prompt-file", "/dev/zero"}), "cannot read /dev/zero: it is larger than 67108864 bytes");
}

TEST(BadInput, Prompts) {
  std::string words;
  for (int i = 0; i < 600; ++i) words += " the";
  expect_bad(run_demo({"--prompt", words}), "context holds 512");
  expect_bad(run_demo({"--prompt", "caf\xe9"}), "UTF-8");
  const Scratch scratch;
  spill(scratch.path / "p", "caf\xe9");
  expect_bad(run_demo({"--prompt-file", scratch.path / "p"}), "UTF-8");
  expect_bad(run_demo({"--prompt-file", "/no/such/prompt"}), "/no/such/prompt");
  expect_bad(run_demo({}), "there is no prompt");
  expect_bad(run_demo({"--prompt", "Hi", "--prompt-file", "x"}), "--prompt");
  expect_bad(run_demo({"--prompt", "Hi", "--top-p", "2"}), "--top-p: 2 is not from 0 to 1");
  expect_bad(run_demo({"--prompt", "Hi", "--backend", "tpu"}), "tpu");
  expect_bad({"run", "--model", kDemo, "--prompt", "Hi", "--max-seq-len", "100000"}, "4096");
  expect_bad(run_demo({"--prompt", "Hi", "--kv-memory", "5K"}), "--kv-memory 0 MiB is too little");
  expect_bad(run_demo({"--prompt", "Hi", "--kv-memory", "much"}), "kv-memory");
  expect_bad(run_demo({"--prompt", "Hi", "--kv-memory", "1G", "--cache-tokens", "512"}), "excludes");
  expect_bad(run_demo({"--prompt", "Hi", "--no-such-flag"}), "--no-such-flag");
}

TEST(BadInput, FullDisks) {
  if (access("/dev/full", W_OK) == 0) {
    expect_bad(run_demo({"--prompt", "Who are you?"}), "standard output", {.out_path = "/dev/full"});
  }
  const Scratch scratch;
  const std::string output = scratch.path / "quantised";
  const Ran ran = run_gemma4({"quantize", "--model-dir", kTiny, "--output", output}, {.file_size = 100000});
  EXPECT_EQ(ran.code, 2);
  EXPECT_NE(ran.err.find("gemma4: cannot write " + output), std::string::npos) << ran.err;
  EXPECT_FALSE(std::filesystem::exists(output + "/model.safetensors"));
}

// Every command that writes: what is there stays, unless --force is given; then only what it writes is replaced.
TEST(Output, NothingIsOverwrittenWithoutForce) {
  const std::vector<std::vector<std::string>> commands = {
      {"quantize", "--model-dir", kTiny},
      {"export", "--format", "gguf", "--model-dir", kTiny},
      {"export", "--format", "mlx", "--model-dir", kTiny, "--group", "32"},
      {"export", "--format", "program", "--model-dir", kTiny},
      {"synth", "--like", kTiny},
      {"synth", "--like", kTiny, "--format", "q4_0"},
      {"eval", "--model", kTiny, "--golden", kTiny + "/golden", "--case", "text_short", "--backend", "ref"},
  };
  for (std::vector<std::string> words : commands) {
    const std::string what = words[0] + " " + words[2];
    const bool file = words[2] == "gguf" || words[0] == "eval";
    const Scratch scratch;
    const std::filesystem::path out = scratch.path / "out", stray = file ? out : out / "stray";
    if (!file) std::filesystem::create_directory(out);  // empty: fine
    words.insert(words.end(), {words[0] == "eval" ? "--dump" : "--output", out});
    if (!file) {
      const Ran empty = run_gemma4(words);
      EXPECT_EQ(empty.code, 0) << what << empty.err;
      std::filesystem::remove_all(out);
      std::filesystem::create_directory(out);
    }
    spill(stray, "mine");
    const Ran refused = run_gemma4(words);
    EXPECT_EQ(refused.code, 2) << what;
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << what << refused.err;
    EXPECT_NE(refused.err.find("--force"), std::string::npos) << what << refused.err;
    EXPECT_EQ(slurp(stray), "mine") << what;
    EXPECT_EQ(std::distance(std::filesystem::recursive_directory_iterator(scratch.path), {}), file ? 1 : 2) << what;
    words.push_back("--force");
    for (int twice = 0; twice < 2; ++twice) {
      const Ran forced = run_gemma4(words);
      EXPECT_EQ(forced.code, 0) << what << forced.err;
    }
    EXPECT_EQ(slurp(stray) == "mine", !file) << what;
  }
}

TEST(Output, BothHalvesOfAGgufAreRefusedBeforeOneIsWritten) {
  const Scratch scratch;
  spill(scratch.path / "mmproj-a.gguf", "mine");
  const Ran ran =
      run_gemma4({"export", "--format", "gguf", "--model-dir", kTiny, "--output", scratch.path / "a.gguf", "--mmproj"});
  EXPECT_EQ(ran.code, 2);
  EXPECT_FALSE(std::filesystem::exists(scratch.path / "a.gguf"));
  EXPECT_EQ(slurp(scratch.path / "mmproj-a.gguf"), "mine");
}

TEST(Output, ASymlinkWhereAPartialFileWasIsNotFollowed) {
  const Scratch scratch;
  const std::filesystem::path out = scratch.path / "out", target = scratch.path / "precious";
  spill(target, "precious");
  std::filesystem::create_directory(out);
  std::filesystem::create_symlink(target, out / "model.safetensors.partial");
  std::vector<std::string> words = {"quantize", "--model-dir", kTiny, "--output", out};
  EXPECT_EQ(run_gemma4(words).code, 2);
  words.push_back("--force");
  EXPECT_EQ(run_gemma4(words).code, 0);
  EXPECT_EQ(slurp(target), "precious");
}

// Two at once: this process stands for the first. The second is refused also with --force, and writes nothing.
TEST(Output, TheSecondWriterOfADirectoryIsRefused) {
  const Scratch scratch;
  const std::filesystem::path out = scratch.path / "out";
  const OutputDirectory first(out, Overwrite::kRefuse);
  AtomicFile file(out / "model.safetensors");
  for (const bool force : {false, true}) {
    for (std::vector<std::string> words : {std::vector<std::string>{"quantize", "--model-dir", kTiny},
                                           {"export", "--format", "mlx", "--model-dir", kTiny, "--group", "32"},
                                           {"export", "--format", "program", "--model-dir", kTiny},
                                           {"synth", "--like", kTiny}}) {
      words.insert(words.end(), {"--output", out});
      if (force) words.push_back("--force");
      const Ran ran = run_gemma4(words);
      EXPECT_EQ(ran.code, 2) << words[0];
      EXPECT_EQ(ran.err, "gemma4: another process is writing to " + out.string() + "; choose another directory\n");
    }
  }
  file.write("first", 5);
  file.commit();
  EXPECT_EQ(slurp(out / "model.safetensors"), "first");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(out), {}), 1);
}

// Real processes: at least one succeeds, the others are refused, and the result is that of a run alone.
TEST(Output, RacingQuantizesLeaveOneRightResult) {
  const Scratch scratch;
  const std::vector<std::string> words = {"quantize", "--model-dir", kDemo, "--output"};
  const auto run_to = [&](const char* name) {
    std::vector<std::string> all = words;
    all.push_back(scratch.path / name);
    return run_gemma4(all).code;
  };
  ASSERT_EQ(run_to("alone"), 0);
  std::vector<int> codes(3);
  std::vector<std::thread> threads;
  for (int& code : codes) threads.emplace_back([&] { code = run_to("shared"); });
  for (std::thread& thread : threads) thread.join();
  std::ranges::sort(codes);
  EXPECT_EQ(codes, (std::vector<int>{0, 2, 2}));
  for (const auto& entry : std::filesystem::directory_iterator(scratch.path / "alone")) {
    EXPECT_TRUE(slurp(entry.path()) == slurp(scratch.path / "shared" / entry.path().filename())) << entry.path();
  }
}

TEST(Program, ExportedItRunsAndIsInspectedLikeAnyCheckpoint) {
  const Scratch scratch;
  const std::string program = scratch.path / "program";
  const Ran made = run_gemma4(
      {"export", "--format", "program", "--model-dir", kDemo, "--output-dir", program, "--max-seq-len", "512"});
  ASSERT_EQ(made.code, 0) << made.err;
  const Ran ran = run_gemma4({"run", "--model", program, "--temperature", "0", "--image", kImages + "002.png",
                              "--prompt", "What is at the left?"});
  EXPECT_EQ(ran.out, "A pink circle.\n") << ran.err;
  const Ran seen = run_gemma4({"inspect", program, "--json"});
  ASSERT_EQ(seen.code, 0) << seen.err;
  const auto facts = read_json<nlohmann::json>(seen.out);
  EXPECT_EQ(facts.at("kind"), "program");
  EXPECT_EQ(facts.at("program").at("backend"), "cpu");
  EXPECT_EQ(facts.at("program").at("constants").at("get_max_seq_len"), 512);
  EXPECT_EQ(facts.at("memory").at("max_seq_len"), 512);
  EXPECT_NE(run_gemma4({"inspect", program}).out.find("for the cpu backend"), std::string::npos);
  const Ran other = run_gemma4({"run", "--model", program, "--backend", "ref", "--prompt", "x"});
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.err.find("gemma4 export --format program --model-dir"), std::string::npos) << other.err;
  const Ran again = run_gemma4({"quantize", "--model-dir", program, "--output", scratch.path / "int4"});
  EXPECT_EQ(again.code, 2);
  EXPECT_NE(again.err.find("is an exported program"), std::string::npos) << again.err;
  EXPECT_FALSE(std::filesystem::exists(scratch.path / "int4"));
}

}  // namespace
}  // namespace gemma4
