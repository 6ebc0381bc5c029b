#include "text/chat/output.h"

#include <gtest/gtest.h>

#include <random>

#include "text/data_testing.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using test::demo;
using Events = std::vector<OutputEvent>;

// Joins neighbouring events of one type, so that a comparison does not depend on when text was ready.
Events joined(const Events& events) {
  Events result;
  for (const OutputEvent& event : events) {
    const bool text = event.type != OutputEvent::kToolCall;
    if (text && !result.empty() && result.back().type == event.type) {
      result.back().text += event.text;
    } else {
      result.push_back(event);
    }
  }
  return result;
}

Events parse(const std::vector<int32_t>& ids, std::vector<std::string> stops = {}) {
  OutputParser parser(demo(), std::move(stops));
  Events events;
  for (const int32_t id : ids) {
    for (OutputEvent& event : parser.push(id)) events.push_back(std::move(event));
  }
  for (OutputEvent& event : parser.finish()) events.push_back(std::move(event));
  return joined(events);
}

Events parse(const std::string& text, std::vector<std::string> stops = {}) {
  return parse(demo().encode(text, true), std::move(stops));
}

OutputEvent content(std::string text) { return {OutputEvent::kContent, std::move(text), ""}; }
OutputEvent thinking(std::string text) { return {OutputEvent::kThinking, std::move(text), ""}; }
OutputEvent call(std::string name, std::string arguments) {
  return {OutputEvent::kToolCall, std::move(name), std::move(arguments)};
}

TEST(OutputParser, DemoOutputs) {
  int calls = 0, thoughts = 0;
  for (const json& one : test::golden("demo_eval/demo_text_eval.json")) {
    const Events events = parse(one["reference_ids"].get<std::vector<int32_t>>());
    const auto answer = one["reference_output"].get<std::string>();
    if (answer.starts_with("<|tool_call>")) {
      ++calls;
      ASSERT_EQ(events.size(), 1u) << answer;
      ASSERT_EQ(events[0].type, OutputEvent::kToolCall);
      const json arguments = json::parse(events[0].arguments);
      ASSERT_EQ(arguments.size(), 1u);
      const auto& value = arguments.begin().value();
      const std::string written =
          value.is_string() ? "<|\"|>" + value.get<std::string>() + "<|\"|>" : std::string(value.dump());
      EXPECT_EQ(answer,
                "<|tool_call>call:" + events[0].text + "{" + arguments.begin().key() + ":" + written + "}<tool_call|>");
    } else if (answer.starts_with("<|channel>")) {
      ++thoughts;
      ASSERT_EQ(events.size(), 2u);
      EXPECT_EQ(answer, "<|channel>thought\n" + events[0].text + "\n<channel|>" + events[1].text);
      EXPECT_EQ(events[0].type, OutputEvent::kThinking);
    } else {
      EXPECT_EQ(events, Events{content(answer)});
    }
  }
  EXPECT_GT(calls, 5);
  EXPECT_GT(thoughts, 1);
}

TEST(OutputParser, ThinkingThenContentThenCalls) {
  EXPECT_EQ(parse("<|channel>thought\na\n\nb\n<channel|>Hi.<|tool_call>call:f{x:1}<tool_call|><|tool_call>call:g{}"
                  "<tool_call|><|tool_response>"),
            (Events{thinking("a\n\nb"), content("Hi."), call("f", R"({"x":1})"), call("g", "{}")}));
  EXPECT_EQ(parse("<|channel>thought\n<channel|>x"), Events{content("x")});
  EXPECT_EQ(parse("<|channel>other\nx<channel|>y"), (Events{thinking("other\nx"), content("y")}));
  EXPECT_EQ(parse("<|channel>thought\nunfinished\n"), Events{thinking("unfinished\n")});
  EXPECT_EQ(parse("<|channel>thou"), Events{thinking("thou")});
  EXPECT_EQ(parse("<|channel>thought\nhm<|tool_call>call:f{}<tool_call|>"), (Events{thinking("hm"), call("f", "{}")}));
  EXPECT_EQ(parse("a<turn|>"), Events{content("a")});
}

TEST(OutputParser, StringsMayHoldAnything) {
  EXPECT_EQ(parse("<|tool_call>call:f{s:<|\"|>a},{b:[\"c\"]<|\"|>,t:<|\"|><|\"|>}<tool_call|>"),
            Events{call("f", R"({"s":"a},{b:[\"c\"]","t":""})")});
  // Names of markers in a string are text: they arrive as ordinary tokens.
  std::vector<int32_t> ids = demo().encode("<|tool_call>call:f{s:<|\"|>", true);
  for (const int32_t id : demo().encode("<tool_call|><|\"|>}", false)) ids.push_back(id);
  for (const int32_t id : demo().encode("<|\"|>}<tool_call|>", true)) ids.push_back(id);
  EXPECT_EQ(parse(ids), Events{call("f", R"({"s":"<tool_call|><|\"|>}"})")});
}

TEST(OutputParser, ValuesOfEveryType) {
  EXPECT_EQ(parse("<|tool_call>call:a.b-c{z:[{k:<|\"|>v<|\"|>},[],-1.50e3],n:None,m:null,t:true, w : Paris , "
                  "<|\"|>odd key<|\"|>:false,\"j\":\"q\\\"\"}<tool_call|>"),
            Events{call("a.b-c", R"({"z":[{"k":"v"},[],-1.50e3],"n":null,"m":null,"t":true,"w":"Paris",)"
                                 R"("odd key":false,"j":"q\""})")});
}

// A JSON library that takes NUL for the end of the text would pass the bare word on as a number.
TEST(OutputParser, NulMakesABareWordAString) {
  const std::string bare("-1\0005e3", 6);
  const Events events = parse("<|tool_call>call:f{a:" + bare + "}<tool_call|>");
  ASSERT_EQ(events.size(), 1u);
  ASSERT_EQ(events[0].type, OutputEvent::kToolCall);
  EXPECT_EQ(events[0].arguments, R"({"a":"-1\u00005e3"})");
}

TEST(OutputParser, MalformedCallsComeBackAsText) {
  for (const std::string bad :
       {"call:f{x:1", "call:f{x:}", "call:{x:1}", "f{}", "call:f{x:<|\"|>a}", "call:f{x:1}y", "call:f{x:1,x:2}", "",
        "call:f{<|\"|>", "call:f{x:[1}", "call:f{x<|\"|>:1}", "call:f x{}"}) {
    EXPECT_EQ(parse("<|tool_call>" + bad + "<tool_call|>ok"), Events{content("<|tool_call>" + bad + "<tool_call|>ok")});
    EXPECT_EQ(parse("<|tool_call>" + bad + "<turn|>"), Events{content("<|tool_call>" + bad)});
  }
  std::string deep = "call:f{x:" + std::string(5000, '[');
  EXPECT_EQ(parse("<|tool_call>" + deep), Events{content("<|tool_call>" + deep)});
  EXPECT_EQ(parse("<|tool_call>call:f{x:1}"), Events{call("f", R"({"x":1})")});  // only its end token is missing
}

TEST(OutputParser, StopStringsCountInContentAlone) {
  OutputParser parser(demo(), {"STOP"});
  std::string shown;
  for (const int32_t id : demo().encode("<|channel>thought\nSTOP\n<channel|>go STOP on", true)) {
    for (const OutputEvent& event : parser.push(id)) shown += event.text;
  }
  EXPECT_TRUE(parser.stopped());
  EXPECT_EQ(parser.stop(), "STOP");
  EXPECT_TRUE(parser.finish().empty());
  EXPECT_EQ(shown, "STOPgo ");
  EXPECT_EQ(parse("<|channel>thought\nSTOP\n<channel|>go STOP on", {"STOP"}),
            (Events{thinking("STOP"), content("go ")}));
}

TEST(OutputParser, ANumberWithNulIsAString) {
  const auto ids = demo().encode(std::string("<|tool_call>call:f{a:-1\0005e3}<tool_call|>", 40), true);
  const auto events = parse(ids);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].arguments, R"({"a":"-1\u00005e3"})");
}

// Random ids: no crash, arguments are JSON, and all ordinary text is in some event.
TEST(OutputParser, RandomIds) {
  std::mt19937 random(3);
  std::vector<int32_t> favourites;
  for (const char* token : {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|\"|>", "<turn|>", "call",
                            ":", "{", "}", "[", "]", ",", "a", "1", "\n", "<0xF0>", "<0x9F>"}) {
    favourites.push_back(demo().require(token));
  }
  for (int round = 0; round < 4000; ++round) {
    std::vector<int32_t> ids;
    for (int n = static_cast<int>(random() % 30); n > 0; --n) ids.push_back(favourites[random() % favourites.size()]);
    size_t letters = 0, seen = 0;
    for (const int32_t id : ids) letters += demo().piece(id) == "a";
    for (const OutputEvent& event : parse(ids)) {
      if (event.type == OutputEvent::kToolCall) {
        ASSERT_TRUE(json::accept(event.arguments)) << event.arguments;
        seen = letters;  // its names and values are in the right fields
        break;
      }
      std::string text = event.text;
      for (size_t at; (at = text.find("call")) != std::string::npos;) text.erase(at, 4);
      seen += std::count(text.begin(), text.end(), 'a');
    }
    ASSERT_EQ(seen, letters);
  }
}

}  // namespace
}  // namespace gemma4
