// Which chat template a checkpoint gets, from the command line.
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/json.h"
#include "program_testing.h"

namespace gemma4 {
namespace {

// The tiny checkpoint, which has no template, in a folder that tests add one to.
struct Untemplated : Scratch {
  Untemplated() {
    for (const char* name : {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
                             "tokenizer_config.json", "model.safetensors"}) {
      write_file(path / name, read_file(kTiny + "/" + name));
    }
  }
  nlohmann::json seen() const {
    const Ran ran = run_gemma4({"inspect", path, "--json"});
    EXPECT_EQ(ran.code, 0) << ran.err;
    return read_json<nlohmann::json>(ran.out).at("chat_template");
  }
  Ran run(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"run", "--model", path, "--prompt", "Hi", "--max-new-tokens", "1", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_gemma4(arguments);
  }
};

const std::string& springs() {
  static const std::string text = read_file(kDemo + "/chat_template.jinja");
  return text;
}

TEST(CheckpointTemplate, ComesFromTheFirstFileThatHasOne) {
  const Untemplated folder;
  EXPECT_EQ(folder.seen(), nlohmann::json({{"used", "july"}, {"file", nullptr}}));
  nlohmann::json config = read_json<nlohmann::json>(read_file(folder.path / "tokenizer_config.json"));
  config["chat_template"] = springs();
  const std::string file = folder.path / "tokenizer_config.json";
  write_file(file, config.dump());
  EXPECT_EQ(folder.seen(), nlohmann::json({{"used", "spring"}, {"file", file}}));
  config["chat_template"] = {{{"name", "tools"}, {"template", "x"}}, {{"name", "default"}, {"template", springs()}}};
  write_file(file, config.dump());
  EXPECT_EQ(folder.seen().at("used"), "spring");
  config["chat_template"] = {{{"name", "tools"}, {"template", "x"}}};
  write_file(file, config.dump());
  EXPECT_EQ(folder.run().code, 2);
  EXPECT_NE(folder.run().err.find("none with the name 'default'"), std::string::npos);
  write_file(folder.path / "chat_template.jinja", springs());
  EXPECT_EQ(folder.seen().at("file"), (folder.path / "chat_template.jinja").string());
}

TEST(CheckpointTemplate, AnotherOneIsSaidAndMayBeChosen) {
  const Untemplated folder;
  write_file(folder.path / "chat_template.jinja", springs() + "{{ 'Arrr' }}");
  const auto seen = folder.seen();
  EXPECT_EQ(seen.at("used"), "spring");
  EXPECT_NE(seen.at("warning").get<std::string>().find("it writes 'Arrr'"), std::string::npos);
  const Ran warned = folder.run();
  EXPECT_EQ(warned.code, 0) << warned.err;
  EXPECT_NE(warned.err.find("gemma4: the chat template in " + (folder.path / "chat_template.jinja").string()),
            std::string::npos)
      << warned.err;
  EXPECT_EQ(folder.run({"--chat-template", "july"}).err.find("chat template"), std::string::npos);
  EXPECT_EQ(folder.run({"--raw-prompt"}).err.find("chat template"), std::string::npos);
  const Ran unknown = folder.run({"--chat-template", "autumn"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_NE(unknown.err.find("--chat-template"), std::string::npos) << unknown.err;
}

TEST(CheckpointTemplate, GoesWithTheModel) {
  const Scratch scratch;
  const auto expect_spring = [](const std::string& path) {
    const Ran ran = run_gemma4({"inspect", path, "--json"});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const auto seen = read_json<nlohmann::json>(ran.out).at("chat_template");
    EXPECT_EQ(seen.at("used"), "spring") << seen;
    EXPECT_FALSE(seen.at("file").is_null()) << path;
  };
  const std::string gguf = scratch.path / "demo.gguf", program = scratch.path / "program", mlx = scratch.path / "mlx";
  EXPECT_EQ(run_gemma4({"export", "--format", "gguf", "--model-dir", kDemo, "--output", gguf, "--mmproj"}).code, 0);
  expect_spring(gguf);
  EXPECT_EQ(run_gemma4({"export", "--format", "program", "--model-dir", gguf, "--output-dir", program}).code, 0);
  expect_spring(program);
  EXPECT_EQ(run_gemma4({"export", "--format", "mlx", "--model-dir", kDemo, "--output", mlx}).code, 0);
  expect_spring(mlx);
}

}  // namespace
}  // namespace gemma4
