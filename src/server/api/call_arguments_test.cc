#include "server/api/call_arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

struct ReadArguments {
  std::string text;
  std::vector<std::string> warnings;
};

ReadArguments read_arguments(const Json& value) {
  ApiContext context;
  context.warnings = std::make_shared<Warnings>();
  std::string text = call_arguments(&value, context, "x.arguments");
  return {std::move(text), context.warnings->list()};
}

TEST(ApiCallArguments, WholeOnesAreTakenAsTheyAre) {
  for (const char* text : {"{}", "{\"a\": 1}", " {\"b\":[1,{\"c\":\"}\"}]}"}) {
    EXPECT_EQ(read_arguments(text).text, text);
    EXPECT_THAT(read_arguments(text).warnings, IsEmpty());
  }
  EXPECT_EQ(read_arguments({{"a", 1}}).text, "{\"a\":1}");
  EXPECT_EQ(read_arguments("").text, "");
  EXPECT_EQ(read_arguments("null").text, "");
  EXPECT_EQ(call_arguments(nullptr, ApiContext(), "x"), "");
}

// As this server gives them where a limit of tokens cuts a call, and as others do, with blanks.
TEST(ApiCallArguments, CutOnesAreClosed) {
  const std::pair<const char*, const char*> kCut[] = {
      {"{", "{}"},
      {"{\"ci", "{}"},
      {"{\"city\"", "{}"},
      {"{\"city\":", "{}"},
      {"{\"city\": \"Ro", "{\"city\": \"Ro\"}"},
      {"{\"city\": \"Ro\\", "{\"city\": \"Ro\"}"},
      {"{\"city\": \"Ro\\u00e", "{\"city\": \"Ro\"}"},
      {"{\"city\": \"Ro\\n", "{\"city\": \"Ro\\n\"}"},
      {"{\"a\": 1, \"b\"", "{\"a\": 1}"},
      {"{\"a\": 1, \"b\": ", "{\"a\": 1}"},
      {"{\"a\": 1, \"b\": tr", "{\"a\": 1}"},
      {"{\"a\": [1, {\"b\": \"]\"}, 2", "{\"a\": [1, {\"b\": \"]\"}, 2]}"},
      {"{\"a\": [1, {\"b\": \"]\"}, ", "{\"a\": [1, {\"b\": \"]\"}]}"},
      {"{\"a\": [[", "{\"a\": [[]]}"},
      {"{\"a\": [1, tr", "{\"a\": [1]}"},
      {"{\"a\": 12.", "{}"},
  };
  for (const auto& [cut, whole] : kCut) {
    EXPECT_EQ(read_arguments(cut).text, whole) << cut;
    EXPECT_THAT(read_arguments(cut).warnings, SizeIs(1)) << cut;
  }
}

// A conversation that another model began may hold anything; it goes on.
TEST(ApiCallArguments, WhatBeginsNoObjectIsToldAsOneText) {
  for (const std::string& text :
       {std::string("x"), std::string("[1"), std::string("[1]"), std::string("\"x\""), std::string("{\"a\": 1}}"),
        std::string("{a: 1"), std::string("{\"a\": NaN}"), std::string("{\"a\": 1e400}"), std::string("}{"),
        std::string("{\"a\": 1} x"), std::string(100'000, '['), "{\"a\":" + std::string(100'000, '[')}) {
    const auto read = read_arguments(text);
    EXPECT_EQ(read_json<Json>(read.text), Json({{"input", text}}));
    EXPECT_THAT(read.warnings, ElementsAre(HasSubstr("told as one text")));
  }
}

}  // namespace
}  // namespace gemma4
