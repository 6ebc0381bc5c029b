#include "server/answer_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Two tools: one whose parameters no mask can keep, and one with a reference that no check can follow.
AnswerCheck tool_check() {
  Request request;
  request.tools = R"([{"type":"function","function":{"name":"f","parameters":{"type":"object",
      "properties":{"two words":{"type":"string"},"n":{"uniqueItems":true}},"required":["two words"]}}},
      {"type":"function","function":{"name":"g","parameters":{"properties":{"a":{"$ref":"https://example.com/a"}},
      "required":["b"]}}}])";
  return AnswerCheck({request});
}

Choice with_call(const std::string& name, const std::string& arguments, bool cut = false) {
  Choice choice;
  choice.tool_calls.push_back({"id", name, arguments});
  choice.cut_call = cut;
  choice.finish = cut ? Finish::kLength : Finish::kToolCalls;
  return choice;
}

TEST(AnswerCheck, CallsAreCheckedAgainstTheirToolsSchemas) {
  const AnswerCheck check = tool_check();
  const std::string missing = "the arguments of 'f' break their schema at the whole value: required";
  const std::string twice = "the arguments of 'f' break their schema at n: uniqueItems";
  EXPECT_THAT(check.broken(with_call("f", R"({"two words":"x","n":[1,2]})")), IsEmpty());
  EXPECT_THAT(check.broken(with_call("f", R"({"n":[1,1]})")), ElementsAre(missing, twice));
  EXPECT_THAT(check.broken(with_call("f", R"({"n":[1,1)", true)), IsEmpty());  // a limit cut it
  EXPECT_THAT(check.broken(with_call("g", R"({"a":1})")), IsEmpty());
  EXPECT_THAT(check.broken(with_call("h", "{}")), IsEmpty());
  Choice two = with_call("f", R"({"two words":"x"})");
  two.tool_calls.push_back({"id", "f", "{}"});
  EXPECT_THAT(check.broken(two), ElementsAre(missing));
}

TEST(AnswerCheck, StreamsWarnBeforeTheLastEvent) {
  AnswerCheck check = tool_check();
  const auto warnings = std::make_shared<Warnings>();
  Event call;
  call.type = Event::kToolCall;
  call.tool_call = {"id", "f", "{}"};
  call.cut = true;
  check.take(0, call, warnings);
  EXPECT_THAT(warnings->list(), IsEmpty());
  call.cut = false;
  check.take(0, call, warnings);
  EXPECT_THAT(warnings->list(), ElementsAre("the arguments of 'f' break their schema at the whole value: required"));
}

TEST(AnswerCheck, AFormatAndToolsAreBothChecked) {
  Request request;
  request.format.type = ResponseFormat::kSchema;
  request.format.schema = R"({"type":"array","uniqueItems":true})";
  request.tools = R"([{"name":"f","parameters":{"required":["a"]}}])";
  const AnswerCheck check({request});
  Choice text;
  text.text = "[1,1]";
  EXPECT_THAT(check.broken(text), ElementsAre("the answer breaks its schema at the whole value: uniqueItems"));
  text.finish = Finish::kLength;
  EXPECT_THAT(check.broken(text), IsEmpty());
  EXPECT_THAT(check.broken(with_call("f", "{}")),
              ElementsAre("the arguments of 'f' break their schema at the whole value: required"));
}

}  // namespace
}  // namespace gemma4
