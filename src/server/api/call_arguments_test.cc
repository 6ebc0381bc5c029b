#include "server/api/call_arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemma4 {
namespace {

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

TEST(ApiCallArguments, WhatBeginsNoObjectIsRefused) {
  for (const std::string& text : {std::string("x"), std::string("[1"), std::string("{\"a\": 1}}"), std::string("{a: 1"),
                                  std::string("}{"), std::string("{\"a\": 1} x"), std::string(100'000, '['),
                                  "{\"a\":" + std::string(100'000, '[')}) {
    try {
      ADD_FAILURE() << read_arguments(text).text << " of " << text.substr(0, 20);
    } catch (const ApiError& error) {
      EXPECT_THAT(error.what(), HasSubstr("x.arguments must be a JSON object as a string"));
    }
  }
}

}  // namespace
}  // namespace gemma4
