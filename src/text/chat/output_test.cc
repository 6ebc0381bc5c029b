#include "text/chat/output.h"

#include <gtest/gtest.h>

#include <random>

#include "base/json.h"
#include "text/data_testing.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using test::demo;
using Events = std::vector<OutputEvent>;

// Joins neighbouring events of one type, so that a comparison does not depend on when text was ready. Leaves out the
// pieces of calls, which must be those of the whole call.
Events joined(const Events& events) {
  Events result;
  std::string name, arguments;
  for (const OutputEvent& event : events) {
    const bool text = event.type == OutputEvent::kContent || event.type == OutputEvent::kThinking;
    if (event.type == OutputEvent::kCallBegin) {
      name = event.text;
      arguments.clear();
      continue;
    }
    if (event.type == OutputEvent::kCallArguments) {
      EXPECT_FALSE(event.arguments.empty());
      arguments += event.arguments;
      continue;
    }
    if (event.type == OutputEvent::kToolCall) {
      EXPECT_EQ(name, event.text);
      EXPECT_EQ(arguments, event.arguments);
    }
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
      const json arguments = read_json<json>(events[0].arguments);
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

TEST(OutputParser, MalformedCallsComeBackAsTextWithoutMarkers) {
  for (const std::string bad :
       {"call:f{x:1", "call:f{x:}", "call:{x:1}", "f{}", "call:f{x:<|\"|>a}", "call:f{x:1}y", "call:f{x:1,x:2}", "",
        "call:f{<|\"|>", "call:f{x:[1}", "call:f{x<|\"|>:1}", "call:f x{}", "call:f{a:1 b:2}", "call:f{a:`x` y`}"}) {
    std::string shown = bad;
    for (size_t at; (at = shown.find("<|\"|>")) != std::string::npos;) shown.replace(at, 5, "\"");
    EXPECT_EQ(parse("<|tool_call>" + bad + "<tool_call|>ok"), Events{content(shown + "ok")});
    EXPECT_EQ(parse("<|tool_call>" + bad + "<turn|>"), shown.empty() ? Events{} : Events{content(shown)});
  }
  std::string deep = "call:f{x:" + std::string(5000, '[');
  EXPECT_EQ(parse("<|tool_call>" + deep), Events{content(deep)});
  EXPECT_EQ(parse("<|tool_call>call:f{x:1}"), Events{call("f", R"({"x":1})")});  // only its end token is missing
}

// What a model gets wrong in calls, where only one reading is possible.
TEST(OutputParser, SlipsWithOneReadingAreRepaired) {
  const std::pair<const char*, const char*> kSlips[] = {
      {"call:f{a:<|\"|>x<|\"|>b:2}", R"({"a":"x","b":2})"},  // no comma between members
      {"call:f{a:[1] b:{c:2}<|\"|>d<|\"|>:3}", R"({"a":[1],"b":{"c":2},"d":3})"},
      {"call:f{a:[<|\"|>x<|\"|><|\"|>y<|\"|>]}", R"({"a":["x","y"]})"},
      {"call:f{a:`x, y`}", R"({"a":"x, y"})"},
      {"call:f{a:`x`,b:`y}`}", R"({"a":"x","b":"y}"})"},
      {"call:f{a:hello, world}", R"({"a":"hello, world"})"},
      {"call:f{a:hello, world, b:2}", R"({"a":"hello, world","b":2})"},
      {"call:f{at:10:30}", R"({"at":"10:30"})"},
      {"call:f{x:1,x:1}", R"({"x":1})"},  // the same again
      {"call:f{x:[1,],}", R"({"x":[1]})"}};
  for (const auto& [written, arguments] : kSlips) {
    EXPECT_EQ(parse("<|tool_call>" + std::string(written) + "<tool_call|>"), Events{call("f", arguments)}) << written;
  }
}

OutputOptions with_tools(bool stream) {
  OutputOptions options;
  options.stream_calls = stream;
  options.tools = std::make_shared<const OfferedTools>(R"([{"type":"function","function":{"name":"f","parameters":{
      "type":"object","properties":{"zip":{"type":"string"},"n":{"type":"integer"},"b":{"type":["boolean","null"]},
      "list":{"type":"array","items":{"$ref":"#/$defs/word"}},"any":{},"x":{"anyOf":[{"type":"string"},
      {"type":"null"}]},"num":{"type":"number"}},"$defs":{"word":{"type":"string"}}}}},
      {"name":"google-workspace:list/all.v2"}])");
  return options;
}

Events parse(const std::string& text, const OutputOptions& options, bool cut = false) {
  OutputParser parser(demo(), options);
  Events events;
  for (const int32_t id : demo().encode(text, true)) {
    for (OutputEvent& event : parser.push(id)) events.push_back(std::move(event));
  }
  for (OutputEvent& event : parser.finish(cut)) events.push_back(std::move(event));
  return joined(events);
}

TEST(OutputParser, TheSchemaTypesValues) {
  for (const bool stream : {false, true}) {
    const auto arguments = [&](const std::string& members) {
      const Events events = parse("<|tool_call>call:f{" + members + "}<tool_call|>", with_tools(stream));
      return events.size() == 1 && events[0].type == OutputEvent::kToolCall ? events[0].arguments : "";
    };
    EXPECT_EQ(arguments("zip:94103"), R"({"zip":"94103"})");
    EXPECT_EQ(arguments("zip:true,n:5"), R"({"zip":"true","n":5})");
    EXPECT_EQ(arguments("n:<|\"|>-12<|\"|>,b:<|\"|>false<|\"|>"), R"({"n":-12,"b":false})");
    EXPECT_EQ(arguments("n:<|\"|>1.5<|\"|>,num:<|\"|>1.5<|\"|>"), R"({"n":"1.5","num":1.5})");
    EXPECT_EQ(arguments("b:<|\"|>None<|\"|>,n:<|\"|>many<|\"|>"), R"({"b":null,"n":"many"})");
    EXPECT_EQ(arguments("n:<|\"|>" + std::string(100, '7') + "<|\"|>"), "{\"n\":\"" + std::string(100, '7') + "\"}");
    EXPECT_EQ(arguments("list:[1,<|\"|>2<|\"|>,true]"), R"({"list":["1","2","true"]})");
    EXPECT_EQ(arguments("any:1,x:null,other:2"), R"({"any":1,"x":null,"other":2})");
    EXPECT_EQ(arguments("x:7"), R"({"x":"7"})");
  }
  // A text that may be two things is one where the schema says which.
  const auto slip = [](const std::string& text) {
    return parse("<|tool_call>call:f{" + text + "}<tool_call|>", with_tools(false));
  };
  EXPECT_EQ(slip("n:1 zip:2"), Events{call("f", R"({"n":1,"zip":"2"})")});
  EXPECT_EQ(slip("zip:1 hour:2"), Events{call("f", R"({"zip":"1 hour:2"})")});
  EXPECT_EQ(slip("zip:see http://x.y/z, or [1], n:2"),
            Events{call("f", R"({"zip":"see http://x.y/z, or [1]","n":2})")});
  EXPECT_EQ(slip("zip:1 n:2"), Events{content("call:f{zip:1 n:2}")});
}

TEST(OutputParser, OnlyOfferedToolsAreCalled) {
  for (const bool stream : {false, true}) {
    EXPECT_EQ(parse("<|tool_call>call:g{a:1}<tool_call|>", with_tools(stream)), Events{content("call:g{a:1}")});
    EXPECT_EQ(parse("<|tool_call>call:google-workspace:list/all.v2{}<tool_call|>", with_tools(stream)),
              Events{call("google-workspace:list/all.v2", "{}")});
  }
  OutputOptions none;
  none.tools = std::make_shared<const OfferedTools>("");
  EXPECT_EQ(parse("<|tool_call>call:f{}<tool_call|>.", none), Events{content("call:f{}.")});
}

// Whatever the limit, a call that is cut is the beginning of the whole one, and no markup is seen.
TEST(OutputParser, ACutCallIsABeginning) {
  const std::string text =
      "<|tool_call>call:f{any:{k:[1,25,{}]},b:true,n:-12,zip:<|\"|>a \"q\" \xf0\x9f\x98\x80 z<|\"|>}<tool_call|>";
  const std::string whole = parse(text).at(0).arguments;
  const std::vector<int32_t> ids = demo().encode(text, true);
  for (const bool stream : {false, true}) {
    size_t shown = 0;
    for (size_t count = 0; count + 1 < ids.size(); ++count) {
      OutputParser parser(demo(), with_tools(stream));
      Events events;
      for (size_t i = 0; i < count; ++i) {
        for (OutputEvent& event : parser.push(ids[i])) events.push_back(std::move(event));
      }
      for (OutputEvent& event : parser.finish(true)) events.push_back(std::move(event));
      events = joined(events);
      if (events.empty()) continue;
      ASSERT_EQ(events.size(), 1u);
      ASSERT_EQ(events[0].type, OutputEvent::kToolCall);
      ASSERT_EQ(events[0].text, "f");
      ASSERT_TRUE(whole.starts_with(events[0].arguments)) << events[0].arguments;
      EXPECT_EQ(events[0].cut, events[0].arguments != whole);
      ASSERT_GE(events[0].arguments.size(), shown);
      shown = events[0].arguments.size();
      const json closed = read_json_or_discard<json>(close_arguments(events[0].arguments));
      ASSERT_TRUE(closed.is_object()) << events[0].arguments << " " << close_arguments(events[0].arguments);
    }
    EXPECT_GE(shown, whole.size() - 1);
  }
  EXPECT_EQ(close_arguments(R"({"a":{"b":[1,"x)"), R"({"a":{"b":[1,"x"]}})");
  EXPECT_EQ(close_arguments(R"({"a":1,"b":)"), R"({"a":1})");
  EXPECT_EQ(close_arguments(R"({"a":)"), "{}");
  EXPECT_EQ(close_arguments(R"({"a":{"b":)"), R"({"a":{}})");
  EXPECT_EQ(close_arguments(""), "{}");
  EXPECT_EQ(close_arguments(R"({"a":[{"b":1,"co)"), R"({"a":[{"b":1}]})");
  EXPECT_EQ(close_arguments(R"({"a)"), "{}");
  EXPECT_EQ(close_arguments(R"({"a":["x,)"), R"({"a":["x,"]})");
}

// Text in a string goes out with the token that completes it.
TEST(OutputParser, ArgumentsStreamAsTheyAreWritten) {
  OutputParser parser(demo(), with_tools(true));
  std::string arguments;
  for (const int32_t id : demo().encode("<|tool_call>call:f{zip:<|\"|>", true)) {
    for (const OutputEvent& event : parser.push(id)) arguments += event.arguments;
  }
  EXPECT_EQ(arguments, R"({"zip":")");
  for (const int32_t id : demo().encode("a line, and\nanother \"one\"", false)) {
    const Events events = parser.push(id);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].type, OutputEvent::kCallArguments);
    EXPECT_EQ(events[0].arguments, json(std::string(demo().piece(id))).dump().substr(1, events[0].arguments.size()));
  }
}

// Every token of a call gives a piece, but for parts of numbers and words.
TEST(OutputParser, KeysStreamAsTheyAreWritten) {
  OutputParser parser(demo(), with_tools(true));
  std::string arguments;
  const auto push = [&](const std::string& text) {
    for (const int32_t id : demo().encode(text, true)) {
      const size_t before = arguments.size();
      for (const OutputEvent& event : parser.push(id)) {
        if (event.type == OutputEvent::kCallArguments) arguments += event.arguments;
      }
      EXPECT_GT(arguments.size(), before) << text;
    }
  };
  for (const int32_t id : demo().encode("<|tool_call>call:f", true)) parser.push(id);
  push("{any:{other:<|\"|>x<|\"|>},zip:<|\"|>y<|\"|>}");
  EXPECT_EQ(arguments, R"({"any":{"other":"x"},"zip":"y"})");
}

// Between the marks of a thought that was closed by force there may be less than the channel's name.
TEST(OutputParser, AThoughtClosedWithinItsNameIsEmpty) {
  EXPECT_EQ(parse("<|channel>thought<channel|>x"), Events{content("x")});
  EXPECT_EQ(parse("<|channel><channel|>x"), Events{content("x")});
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

TEST(OutputParser, LeavesOutWhatStoodAtTheEndOfABegunAnswer) {
  const auto content = [](const std::string& beginning, const std::string& output) {
    OutputParser parser(demo());
    parser.leave_out(beginning);
    std::string text;
    for (const int32_t id : demo().encode(output, true)) {
      for (const OutputEvent& event : parser.push(id)) text += event.text;
    }
    for (const OutputEvent& event : parser.finish()) text += event.text;
    return text;
  };
  EXPECT_EQ(content(" ", " 12, 13"), "12, 13");
  EXPECT_EQ(content(" ", "12"), "12");
  EXPECT_EQ(content("\n  ", "\n  \n  x"), "\n  x");
  EXPECT_EQ(content("\n  ", "\n x"), "x");
  EXPECT_EQ(content("", " x"), " x");
}

}  // namespace
}  // namespace gemma4
