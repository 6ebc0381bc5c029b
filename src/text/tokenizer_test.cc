#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/check.h"
#include "base/utf8.h"
#include "text/test_data.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using test::demo;
using test::gemma3;

void expect_golden(const Tokenizer& tokenizer, const std::string& path) {
  const json cases = test::golden(path);
  ASSERT_EQ(cases.size(), 212u);
  for (const json& one : cases) {
    const auto text = one["text"].get<std::string>();
    const auto ids = one["ids"].get<std::vector<int32_t>>();
    ASSERT_EQ(tokenizer.encode(text, true), ids) << text;
    ASSERT_EQ(tokenizer.decode(ids, false), one["decoded"].get<std::string>()) << text;
  }
}

TEST(Tokenizer, DemoGolden) { expect_golden(demo(), "tokenizer/demo_golden.json"); }

TEST(Tokenizer, Gemma3GoldenFromJsonAndFromArrays) {
  expect_golden(gemma3(), "tokenizer/gemma3_golden.json");
  expect_golden(Tokenizer::from_arrays(gemma3().to_arrays()), "tokenizer/gemma3_golden.json");
}

}  // namespace
}  // namespace gemma4
