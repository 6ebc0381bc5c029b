// Fuzz target: config.json and the two files beside it, as far as the model reads them.
#include "base/file.h"
#include "base/mutate_testing.h"
#include "model/config.h"

namespace gemma4 {
namespace {

constexpr char kSeparator = '\x01';  // an input is config.json, this byte, generation_config.json, this byte, processor

std::string golden(const char* name) {
  return read_file(std::filesystem::path(SOURCE_DIR) / "tests/golden/tiny" / name);
}

std::vector<std::string> seeds() {
  return {golden("config.json") + kSeparator + golden("generation_config.json") + kSeparator +
          golden("processor_config.json")};
}

void run(const std::string& input) {
  std::vector<std::string> files(1);
  for (const char c : input) {
    if (c == kSeparator && files.size() < 3) {
      files.emplace_back();
    } else {
      files.back() += c;
    }
  }
  files.resize(3);
  parse_generation_config(files[1]);
  default_image_budget(parse_config(files[0]), files[2]);
}

const RegisterFuzz kConfig({"config",
                            seeds,
                            run,
                            {"null", "-1", "0", "1e308", "1e-320", "9223372036854775808", "{}", "[]",
                             "\"full_attention\"", "\"hidden_size\"", "0.5", "4294967296", "true"}});

}  // namespace
}  // namespace gemma4
