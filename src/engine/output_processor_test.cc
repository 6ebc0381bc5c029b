#include "engine/output_processor.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/models_testing.h"

namespace gemma4 {
namespace {

const Tokenizer& demo_words() {
  static const Tokenizer instance = Tokenizer::from_json(read_file(std::string(kDemo) + "/tokenizer.json"));
  return instance;
}

constexpr const char* kOneTool = R"([{"name":"f","parameters":{"type":"object","properties":{
    "zip":{"type":"string"},"n":{"type":"integer"}},"required":["n"]}}])";

// A sequence whose calls have a grammar that may take `steps` more than compiling it took.
struct Calling {
  explicit Calling(uint64_t steps) : sequence(parser()) {
    GrammarOptions options;
    options.end_ids = {demo_words().require("<turn|>")};
    const auto vocabulary = std::make_shared<const GrammarVocabulary>(demo_words());
    options.budget = std::make_shared<WorkBudget>("compiling");
    const uint64_t compiled = Grammar::rest_of_call(vocabulary, kOneTool, options).budget().steps_used();
    options.budget = std::make_shared<WorkBudget>("the tools", WorkLimits{.steps = compiled + steps});
    sequence.grammar = Grammar::rest_of_call(vocabulary, kOneTool, options);
    sequence.lazy_grammar = true;
    sequence.keep_grammar = false;
    sequence.warnings = std::make_shared<Warnings>();
    sequence.sink = [this](const Event& event) { events.push_back(event); };
  }

  static OutputParser parser() {
    OutputOptions options;
    options.tools = std::make_shared<const OfferedTools>(kOneTool);
    options.stream_calls = true;
    return OutputParser(demo_words(), options);
  }

  void read(const std::string& text) {
    for (const int32_t id : demo_words().encode(text, true)) output.read(sequence, id, {}, false);
  }

  const OutputProcessor output{demo_words(), {demo_words().require("<turn|>")}};
  Sequence sequence;
  std::vector<Event> events;
};

TEST(OutputProcessor, AGrammarOfCallsIsGivenUpPastItsBudget) {
  Calling calling(10);
  calling.read("Well. <|tool_call>call:f{n:1 zip:94103}<tool_call|>");  // a comma is missing
  calling.read("<|tool_call>call:g{}<tool_call|>");                     // not offered
  calling.output.finish(calling.sequence, Finish::kStop);
  EXPECT_FALSE(calling.sequence.grammar);
  EXPECT_EQ(calling.sequence.warnings->list().size(), 1u);
  std::string text;
  std::vector<std::string> calls;
  for (const Event& event : calling.events) {
    if (event.type == Event::kText) text += event.text;
    if (event.type == Event::kToolCall) calls.push_back(event.tool_call.arguments);
  }
  EXPECT_EQ(text, "Well. call:g{}");
  EXPECT_EQ(calls, std::vector<std::string>{R"({"n":1,"zip":"94103"})"});
  EXPECT_EQ(calling.events.back().type, Event::kDone);
  EXPECT_EQ(calling.events.back().finish, Finish::kToolCalls);
}

TEST(OutputProcessor, AStrictToolsGrammarIsNotGivenUp) {
  Calling calling(10);
  calling.sequence.keep_grammar = true;
  EXPECT_THROW(calling.read("<|tool_call>"), BudgetError);
}

// Text before a call costs no mask.
TEST(OutputProcessor, AGrammarOfCallsBeginsAtTheMarker) {
  Calling calling(50'000'000);
  const uint64_t before = calling.sequence.grammar->budget().steps_used();
  calling.read("Some text of some length, and more of it. ");
  EXPECT_EQ(calling.sequence.grammar->budget().steps_used(), before);
  calling.read("<|tool_call>");
  EXPECT_GT(calling.sequence.grammar->budget().steps_used(), before);
  calling.read("call:f{n:12,zip:<|\"|>a");
  calling.output.finish(calling.sequence, Finish::kLength);
  ASSERT_GE(calling.events.size(), 2u);
  const Event& call = calling.events[calling.events.size() - 2];
  EXPECT_EQ(call.tool_call.arguments, R"({"n":12,"zip":"a)");
  EXPECT_TRUE(call.cut);
  EXPECT_EQ(calling.events.back().finish, Finish::kLength);
}

// A call that was begun, and cannot be read on: an error, not a stream without an end.
TEST(OutputProcessor, ABegunCallThatBreaksIsAnError) {
  Calling calling(50'000'000);
  calling.read("<|tool_call>call:f{n:1");
  calling.output.finish(calling.sequence, Finish::kStop);
  EXPECT_EQ(calling.events.back().type, Event::kError);
}

}  // namespace
}  // namespace gemma4
