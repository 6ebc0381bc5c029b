// Test data of this module: the demo model's tokenizer, and Gemma's real one, which is stored compressed.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4::test {

inline std::filesystem::path source(const std::string& path) { return std::filesystem::path(SOURCE_DIR) / path; }

// The message of the Error that `run` throws; empty if it throws none.
inline std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline nlohmann::json golden(const std::string& path) {
  return read_json<nlohmann::json>(read_file(source("tests/golden/" + path)));
}

// Throws Error if the xz program (Debian: xz-utils) is missing or fails, so that no test passes without its data.
inline std::string read_xz(const std::filesystem::path& path) {
  const std::string command = "xz -dc -- '" + path.string() + "'";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw Error("cannot start xz");
  std::string bytes;
  char buffer[1 << 16];
  while (const size_t count = fread(buffer, 1, sizeof(buffer), pipe)) bytes.append(buffer, count);
  if (pclose(pipe) != 0 || bytes.empty())
    throw Error("xz could not unpack " + path.string() + "; is xz-utils installed?");
  return bytes;
}

inline const std::string& gemma3_json() {
  static const std::string text = read_xz(source("tests/golden/tokenizer/gemma3_tokenizer.json.xz"));
  return text;
}

inline const std::string& demo_json() {
  static const std::string text = read_file(source("models/demo/tokenizer.json"));
  return text;
}

inline const Tokenizer& demo() {
  static const Tokenizer tokenizer = Tokenizer::from_json(demo_json());
  return tokenizer;
}

inline const Tokenizer& gemma3() {
  static const Tokenizer tokenizer = Tokenizer::from_json(gemma3_json());
  return tokenizer;
}

}  // namespace gemma4::test
