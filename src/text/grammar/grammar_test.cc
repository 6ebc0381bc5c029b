#include "text/grammar/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <random>
#include <set>
#include <thread>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/chat/output.h"
#include "text/data_testing.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using test::demo;
using test::error_of;
using ::testing::HasSubstr;

const Grammar::Vocabulary& vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(demo());
  return instance;
}

GrammarOptions options() { return {{demo().require("<turn|>"), demo().require("<eos>")}}; }

Grammar schema(const std::string& text) { return Grammar::json_schema(vocabulary(), text, options()); }

bool allows(const Grammar& grammar, int32_t id) { return grammar.mask()[id / 32] >> (id % 32) & 1; }

// Whether the grammar allows `text`, parsed with control tokens, and then an end token.
bool accepts(Grammar grammar, const std::string& text) {
  for (const int32_t id : demo().encode(text, true)) {
    if (!grammar.advance(id)) return false;
  }
  return grammar.complete() && grammar.advance(demo().require("<turn|>")) && grammar.ended();
}

// A random output of allowed tokens. Where an end token is allowed, it is taken with a growing probability.
std::vector<int32_t> random_output(Grammar grammar, std::mt19937& random) {
  std::vector<int32_t> ids;
  const int32_t end = demo().require("<turn|>");
  for (int step = 0; step < 3000; ++step) {
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < demo().vocab_size(); ++id) {
      if (allows(grammar, id)) allowed.push_back(id);
    }
    EXPECT_FALSE(allowed.empty());
    EXPECT_EQ(allows(grammar, end), grammar.complete());
    // Tries a closing byte now and then, so that free strings and arrays end.
    int32_t id = allowed[random() % allowed.size()];
    if (random() % 8 < static_cast<unsigned>(2 + step / 50)) {
      for (const char* close : {"<tool_call|>", "<|\"|>", "\"", "}", "]", ",", ":", "0"}) {
        const int32_t closing = demo().require(close);
        if (allows(grammar, closing)) {
          id = closing;
          break;
        }
      }
      if (grammar.complete()) id = end;
    }
    EXPECT_TRUE(grammar.advance(id));
    if (grammar.ended()) return ids;
    ids.push_back(id);
  }
  ADD_FAILURE() << "no end after " << demo().decode(ids, false).substr(0, 200);
  return ids;
}

// Checks the keywords that the tests' schemas use.
bool valid(const json& value, const json& schema, const json& root) {
  if (schema == true) return true;
  if (schema.contains("$ref")) {
    return valid(value, root.at(json::json_pointer(schema["$ref"].get<std::string>().substr(1))), root);
  }
  for (const char* keyword : {"anyOf", "oneOf"}) {
    if (!schema.contains(keyword)) continue;
    bool any = false;
    for (const json& choice : schema[keyword]) any |= valid(value, choice, root);
    return any;
  }
  if (schema.contains("const") && value != schema["const"]) return false;
  if (schema.contains("enum") &&
      std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end()) {
    return false;
  }
  if (schema.value("nullable", false) && value.is_null()) return true;
  const std::string type = schema.value("type", "");
  if (type == "object") {
    if (!value.is_object()) return false;
    const json properties = schema.value("properties", json::object());
    for (const json& name : schema.value("required", json::array())) {
      if (!value.contains(name.get<std::string>())) return false;
    }
    for (const auto& [name, member] : value.items()) {
      if (properties.contains(name)) {
        if (!valid(member, properties[name], root)) return false;
      } else {
        const json others = schema.value("additionalProperties", json(true));
        if (others == false || !valid(member, others, root)) return false;
      }
    }
  } else if (type == "array") {
    if (!value.is_array() || value.size() < schema.value("minItems", 0u) ||
        value.size() > schema.value("maxItems", 99999u)) {
      return false;
    }
    const json prefix = schema.value("prefixItems", json::array());
    for (size_t i = 0; i < value.size(); ++i) {
      const json item = i < prefix.size() ? prefix[i] : schema.value("items", json(true));
      if (item == false || !valid(value[i], item, root)) return false;
    }
  } else if (type == "string") {
    if (!value.is_string()) return false;
    size_t length = 0;
    for (const char c : value.get<std::string>()) length += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    if (length < schema.value("minLength", 0u) || length > schema.value("maxLength", 99999u)) return false;
  } else if (type == "integer" || type == "number") {
    if (!value.is_number() || (type == "integer" && !value.is_number_integer())) return false;
    const double x = value.get<double>();
    if (x < schema.value("minimum", -1e300) || x > schema.value("maximum", 1e300)) return false;
    if (x <= schema.value("exclusiveMinimum", -1e300) || x >= schema.value("exclusiveMaximum", 1e300)) return false;
  } else if (type == "boolean") {
    return value.is_boolean();
  } else if (type == "null") {
    return value.is_null();
  }
  return true;
}

const std::vector<std::string>& schemas() {
  static const std::vector<std::string> kSchemas = {
      R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150}},
          "required":["name","age"],"additionalProperties":false})",
      R"({"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"null"},
          "c":{"enum":["x","y z",3,null,[1,2]]}}})",
      R"({"type":"array","items":{"type":"number"},"minItems":2,"maxItems":4})",
      R"({"type":"array","prefixItems":[{"type":"string","maxLength":3},{"type":"boolean"}],
          "items":{"const":7},"minItems":1})",
      R"({"type":"array","prefixItems":[{"type":"boolean"}],"items":false})",
      R"({"type":"string","minLength":2,"maxLength":5})",
      R"({"anyOf":[{"type":"string","maxLength":4},{"type":"integer","minimum":-20,"maximum":7},{"type":"null"}]})",
      R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"value":{"type":"integer"},
          "children":{"type":"array","items":{"$ref":"#/$defs/node"},"maxItems":2}},"required":["value"]}}})",
      R"({"type":"object","additionalProperties":{"type":"integer","minimum":3}})",
      R"({"type":"object","properties":{"kind":{"type":"string","enum":["é","k\"q"]},"kid":{"type":"boolean"}},
          "required":["kind"],"additionalProperties":{"type":"null"}})",
      R"({"type":"number","exclusiveMinimum":-0.5,"exclusiveMaximum":1})",
      R"({"type":"number","minimum":0.25,"maximum":12.5})",
      R"({"type":"number","maximum":-3.75})",
      R"({"type":"integer","exclusiveMinimum":98,"maximum":1002})",
      R"({"type":"object","properties":{"n":{"type":"string","nullable":true,"maxLength":2}},
          "required":["n","other"]})",
      R"({"oneOf":[{"type":"object","properties":{"t":{"const":"a"}},"required":["t"]},
                   {"type":"object","properties":{"t":{"const":"b"},"x":{"type":"number"}},"required":["t","x"]}]})",
      R"({})"};
  return kSchemas;
}

TEST(Grammar, RandomOutputsAreValid) {
  std::mt19937 random(11);
  for (const std::string& text : schemas()) {
    const Grammar grammar = schema(text);
    const json parsed = read_json<json>(text);
    for (int round = 0; round < 40; ++round) {
      const std::string output = demo().decode(random_output(grammar, random), false);
      ASSERT_TRUE(json::accept(output)) << text << "\n" << output;
      ASSERT_TRUE(valid(read_json<json>(output), parsed, parsed)) << text << "\n" << output;
    }
  }
}

TEST(Grammar, JsonObjectMode) {
  const Grammar grammar = Grammar::json_object(vocabulary(), options());
  EXPECT_TRUE(accepts(grammar, R"({})"));
  EXPECT_TRUE(accepts(grammar, R"({"a": [1, -2.5e-3, "x\n\u00e9", {"b": null}], "c": true})"));
  EXPECT_TRUE(accepts(grammar, "{\n  \"a\": {\n    \"b\": []\n  }\n}"));
  for (const char* bad : {"[1]", "1", "{", "{}x", "{\"a\":01}", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "{\"a\":'x'}", "",
                          " {}", "{\"a\":\"\n\"}", "{\"a\":\"\\x\"}", "{\"a\":\"\\ud800\"}", "{\"a\":tru}"}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    const std::string output = demo().decode(random_output(grammar, random), false);
    ASSERT_TRUE(json::accept(output)) << output;
    ASSERT_TRUE(read_json<json>(output).is_object());
  }
}

TEST(Grammar, SchemaAcceptsAndRefuses) {
  const Grammar person = schema(schemas()[0]);
  EXPECT_TRUE(accepts(person, R"({"name": "Ann \"A\" 日本", "age": 150})"));
  EXPECT_TRUE(accepts(person, R"({"name":"","age":0})"));
  for (const char* bad :
       {R"({"name":"A"})", R"({"name":"A","age":151})", R"({"name":"A","age":-1})", R"({"age":1,"name":"A"})",
        R"({"name":"A","age":1.5})", R"({"name":"A","age":01})", R"({"name":"A","age":1,"x":1})"}) {
    EXPECT_FALSE(accepts(person, bad)) << bad;
  }
  EXPECT_TRUE(accepts(schema(schemas()[1]), R"({"a":true,"c":[1,2]})"));
  EXPECT_TRUE(accepts(schema(schemas()[1]), R"({"b":null})"));
  EXPECT_TRUE(accepts(schema(schemas()[1]), R"({})"));
  EXPECT_FALSE(accepts(schema(schemas()[1]), R"({,"b":null})"));
  EXPECT_FALSE(accepts(schema(schemas()[2]), "[1]"));
  EXPECT_TRUE(accepts(schema(schemas()[2]), "[1, 2.5, 3, -0]"));
  EXPECT_FALSE(accepts(schema(schemas()[2]), "[1,2,3,4,5]"));
  EXPECT_TRUE(accepts(schema(schemas()[3]), R"(["abc", true, 7, 7])"));
  EXPECT_FALSE(accepts(schema(schemas()[3]), R"([])"));
  EXPECT_TRUE(accepts(schema(schemas()[5]), R"("日本")"));
  EXPECT_TRUE(accepts(schema(schemas()[5]), R"("\"\\\u00e9\n")"));
  EXPECT_FALSE(accepts(schema(schemas()[5]), R"("日")"));
  EXPECT_FALSE(accepts(schema(schemas()[5]), R"("abcdef")"));
  EXPECT_TRUE(accepts(schema(schemas()[7]), R"({"value":1,"children":[{"value":2,"children":[]},{"value":3}]})"));
  EXPECT_FALSE(accepts(schema(schemas()[9]), R"({"kind":"é","kind":null})"));
  EXPECT_TRUE(accepts(schema(schemas()[9]), R"({"kind":"k\"q","kin":null,"kinds":null,"é":null})"));
  EXPECT_TRUE(accepts(schema(R"({"allOf":[{"$ref":"#/$defs/a"},{"required":["x"]}],
                                 "$defs":{"a":{"type":"object","properties":{"x":{"type":"null"}}}}})"),
                      R"({"x":null})"));
  EXPECT_FALSE(accepts(schema(R"({"allOf":[{"$ref":"#/$defs/a"},{"required":["x"]}],
                                  "$defs":{"a":{"type":"object","properties":{"x":{"type":"null"}}}}})"),
                       R"({})"));
  EXPECT_TRUE(accepts(schema(R"({"type":["string","null"],"description":"d"})"), "null"));
}

TEST(Grammar, Patterns) {
  const auto matches = [](const std::string& pattern, const std::string& text) {
    return accepts(schema(json{{"type", "string"}, {"pattern", pattern}}.dump()), json(text).dump());
  };
  EXPECT_TRUE(matches("^[A-Z]{2}\\d+(-x)?$", "AB12-x"));
  EXPECT_FALSE(matches("^[A-Z]{2}\\d+(-x)?$", "A12"));
  EXPECT_FALSE(matches("^[A-Z]{2}\\d+(-x)?$", "AB"));
  EXPECT_TRUE(matches("b", "abc"));
  EXPECT_FALSE(matches("b", "ac"));
  EXPECT_TRUE(matches("^a|c$", "xxc"));
  EXPECT_TRUE(matches("^(?:a|bc)*?$", "abca"));
  EXPECT_FALSE(matches("^(?:a|bc)*$", "abb"));
  EXPECT_TRUE(matches("^[^a-c]\\.\\u00e9$", "x.\xc3\xa9"));
  EXPECT_FALSE(matches("^[^a-c].$", "ax"));
  EXPECT_TRUE(matches("^\"\\\\.$", "\"\\x"));
  EXPECT_TRUE(matches("^(a?){3}b$", "ab"));
  EXPECT_TRUE(matches("^日{2,3}$", "日日日"));
  EXPECT_FALSE(matches("^日{2,3}$", "日日日日"));
  EXPECT_TRUE(matches("", "anything"));
  for (const char* bad : {"(a", "[a", "a**", "a{2,1}", "a)", "*a", "[b-a]", "\\u12"}) {
    EXPECT_THAT(error_of([&] { matches(bad, ""); }), HasSubstr("pattern")) << bad;
  }
}

TEST(Grammar, Formats) {
  const auto matches = [](const std::string& format, const std::string& text) {
    return accepts(schema(json{{"type", "string"}, {"format", format}}.dump()), json(text).dump());
  };
  EXPECT_TRUE(matches("date", "2024-02-28"));
  EXPECT_FALSE(matches("date", "2024-13-01"));
  EXPECT_TRUE(matches("date-time", "2024-02-28T23:59:59.5Z"));
  EXPECT_TRUE(matches("uuid", "123e4567-e89b-12d3-a456-426614174000"));
  EXPECT_TRUE(matches("ipv4", "192.168.0.255"));
  EXPECT_FALSE(matches("ipv4", "192.168.0.256"));
  EXPECT_TRUE(matches("email", "a.b@c.org"));
  EXPECT_TRUE(matches("uri", "https://example.org:80/a/b"));
  EXPECT_TRUE(matches("date", "2024-02-29"));
  EXPECT_TRUE(matches("date", "2023-12-31"));
  EXPECT_FALSE(matches("date", "2023-02-29"));
  EXPECT_FALSE(matches("date", "1900-02-29"));
  EXPECT_TRUE(matches("uri", "postgres://user:pw@db.example.org/x?a=b%20c#d"));
  EXPECT_TRUE(matches("ipv6", "2001:db8::8a2e:370:7334"));
  EXPECT_FALSE(matches("ipv6", "2001:db8:::1"));
  EXPECT_TRUE(matches("duration", "P3Y6M4DT12H30M5S"));
  EXPECT_FALSE(matches("duration", "P"));
  EXPECT_FALSE(matches("uuid4", "123e4567-e89b-12d3-a456-426614174000"));
  EXPECT_TRUE(matches("iri", "any text: an annotation"));
}

// Checks every integer around the bounds, so that no digit is wrongly allowed or forbidden.
TEST(Grammar, IntegerBounds) {
  for (const auto& [low, high] :
       std::vector<std::pair<int, int>>{{-15, 103}, {7, 7}, {0, 9}, {95, 1005}, {-1000, -99}}) {
    const Grammar grammar = schema(json{{"type", "integer"}, {"minimum", low}, {"maximum", high}}.dump());
    for (int x = -1100; x <= 1100; ++x) {
      if (std::abs(x) > 120 && x % 7 != 0 && std::abs(x) % 100 > 10) continue;
      ASSERT_EQ(accepts(grammar, std::to_string(x)), x >= low && x <= high) << x << " in " << low << " " << high;
    }
  }
  const Grammar open = schema(R"({"type":"integer","minimum":-12})");
  EXPECT_TRUE(accepts(open, "123456789012345678"));
  EXPECT_TRUE(accepts(open, "-12"));
  EXPECT_FALSE(accepts(open, "-13"));
  EXPECT_THAT(error_of([] { schema(R"({"type":"integer","minimum":2,"maximum":1})"); }), HasSubstr("no number"));
  // More digits than 64 bits or a double hold.
  EXPECT_THAT(error_of([] { schema(R"({"type":"integer","minimum":100000000000000000000000000001})"); }),
              HasSubstr("the bound 100000000000000000000000000001 has too many digits"));
  EXPECT_TRUE(accepts(schema(R"({"type":"integer","maximum":100000000000000000000000000001})"), "7"));
  const Grammar one = schema(R"({"type":"integer","enum":[100000000000000000000000000001]})");
  EXPECT_TRUE(accepts(one, "100000000000000000000000000001"));
  EXPECT_FALSE(accepts(one, "1e29"));
}

TEST(Grammar, NumberBounds) {
  const Grammar grammar = schema(schemas()[10]);  // -0.5 < x < 1
  for (const auto& [text, expected] : std::vector<std::pair<std::string, bool>>{{"0", true},
                                                                                {"0.999", true},
                                                                                {"1", false},
                                                                                {"1.0", false},
                                                                                {"-0.5", false},
                                                                                {"-0.50", false},
                                                                                {"-0.49", true},
                                                                                {"0.0", true},
                                                                                {"-0.500001", false},
                                                                                {"2", false},
                                                                                {"-1", false}}) {
    EXPECT_EQ(accepts(grammar, text), expected) << text;
  }
  const Grammar between = schema(schemas()[11]);  // 0.25 .. 12.5
  for (const auto& [text, expected] : std::vector<std::pair<std::string, bool>>{{"0.25", true},
                                                                                {"0.2", false},
                                                                                {"0.3", true},
                                                                                {"12.5", true},
                                                                                {"12.50", true},
                                                                                {"12.51", false},
                                                                                {"0", false},
                                                                                {"9", true},
                                                                                {"13", false},
                                                                                {"0.2500", true},
                                                                                {"0.249", false}}) {
    EXPECT_EQ(accepts(between, text), expected) << text;
  }
}

TEST(Grammar, RefusesWhatIsNoSchemaOrHasNoValue) {
  const auto error = [](const std::string& text) { return error_of([&] { schema(text); }); };
  EXPECT_THAT(error(R"({"type":"thing"})"), HasSubstr("thing"));
  EXPECT_THAT(error(R"({"$ref":"https://x/y"})"), HasSubstr("outside"));
  EXPECT_THAT(error(R"({"$ref":"#/$defs/none"})"), HasSubstr("nowhere"));
  EXPECT_THAT(error(R"({"$ref":"#"})"), HasSubstr("without end"));
  EXPECT_THAT(error(R"({"anyOf":[{"$ref":"#"},{"$ref":"#"}]})"), HasSubstr("without end"));
  EXPECT_THAT(error(R"({"allOf":[{"$ref":"#"}]})"), HasSubstr("allOf"));
  EXPECT_THAT(error(R"({"properties":{"a":{"$ref":"#/$defs/b"}},"required":["a"],
                        "$defs":{"b":{"properties":{"c":{"$ref":"#/$defs/b"}},"required":["c"]}}})"),
              HasSubstr("schema #/properties/a: allows no value that comes to an end"));
  EXPECT_THAT(error(R"({"type":"string","enum":[1]})"), HasSubstr("no value"));
  EXPECT_THAT(error("{"), HasSubstr("not JSON"));
  EXPECT_THAT(error("3"), HasSubstr("neither"));
  EXPECT_THAT(error(R"({"type":"array","minItems":2,"maxItems":1})"), HasSubstr("maxItems"));
  std::string deep;
  for (int i = 0; i < 90; ++i) deep += R"({"items":)";
  EXPECT_FALSE(error(deep + "{}" + std::string(90, '}')).size() > 200);
}

// Keys that the schema does not name could be written twice.
TEST(Grammar, KeysAreNotRepeated) {
  EXPECT_FALSE(accepts(Grammar::json_object(vocabulary(), options()), R"({"a":1,"a":2})"));
  EXPECT_FALSE(accepts(schema(R"({"additionalProperties":{}})"), R"({"x":{"a":1,"\u0061":2}})"));
  EXPECT_FALSE(accepts(schema(R"({"items":{"additionalProperties":{}}})"), R"([{"a":{"b":1},"a":1}])"));
  EXPECT_TRUE(accepts(schema(R"({"items":{"additionalProperties":{}}})"), R"([{"a":{"a":1},"b":1},{"a":"a"}])"));
  GrammarOptions thinking = options();
  thinking.allow_thinking = true;
  EXPECT_TRUE(
      accepts(Grammar::json_object(vocabulary(), thinking), R"(<|channel>{"a":1,"a":2<channel|>{"a":1,"b":2})"));
  EXPECT_FALSE(accepts(Grammar::json_object(vocabulary(), thinking), R"(<|channel>{"a":1<channel|>{"a":1,"a":2})"));
}

const char* kTools = R"([
  {"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{
    "city":{"type":"string"},"Unit":{"type":"string","enum":["c","f"]},
    "days":{"type":"integer","minimum":1,"maximum":9},
    "extra":{"type":"object"},"tags":{"type":"array","items":{"type":"string"}}},"required":["city"]}}},
  {"type":"function","function":{"name":"now","parameters":{}}}])";

TEST(Grammar, ToolCalls) {
  const Grammar any = Grammar::tool_calls(vocabulary(), kTools, "", false, options());
  const std::string weather =
      "<|tool_call>call:get_weather{city:<|\"|>a}, {\"b<|\"|>,days:3,Unit:<|\"|>f<|\"|>}<tool_call|>";
  EXPECT_TRUE(accepts(any, weather));
  EXPECT_TRUE(accepts(any, "<|tool_call>call:now{}<tool_call|>"));
  EXPECT_TRUE(accepts(
      any,
      "<|tool_call>call:get_weather{city:<|\"|><|\"|>,extra:{k:[1,true,{z:None}]},tags:[<|\"|>t<|\"|>]}<tool_call|>"));
  for (const char* bad :
       {"<|tool_call>call:get_weather{}<tool_call|>", "<|tool_call>call:now{x:1}<tool_call|>", "text",
        "<|tool_call>call:other{}<tool_call|>", "<|tool_call>call:get_weather{city:Paris}<tool_call|>",
        "<|tool_call>call:now{}<tool_call|><|tool_call>call:now{}<tool_call|>", ""}) {
    EXPECT_FALSE(accepts(any, bad)) << bad;
  }
  EXPECT_FALSE(accepts(Grammar::tool_calls(vocabulary(), kTools, "now", false, options()), weather));
  const Grammar parallel = Grammar::tool_calls(vocabulary(), kTools, "", true, options());
  EXPECT_TRUE(accepts(parallel, "<|tool_call>call:now{}<tool_call|>" + weather));
  EXPECT_THAT(error_of([] { Grammar::tool_calls(vocabulary(), kTools, "nope", false, options()); }), HasSubstr("nope"));
  EXPECT_THAT(error_of([] { Grammar::tool_calls(vocabulary(), "[]", "", false, options()); }),
              HasSubstr("none to call"));
}

TEST(Grammar, RandomToolCallsParse) {
  const Grammar grammar = Grammar::tool_calls(vocabulary(), kTools, "", true, options());
  const json parameters = read_json<json>(kTools)[0]["function"]["parameters"];
  std::mt19937 random(17);
  int calls = 0;
  for (int round = 0; round < 150; ++round) {
    OutputParser parser(demo());
    for (const int32_t id : random_output(grammar, random)) {
      for (const OutputEvent& event : parser.push(id)) {
        if (event.type == OutputEvent::kCallBegin || event.type == OutputEvent::kCallArguments) continue;
        ASSERT_EQ(event.type, OutputEvent::kToolCall) << event.text;
        const json arguments = read_json<json>(event.arguments);
        if (event.text == "get_weather") {
          ++calls;
          ASSERT_TRUE(valid(arguments, parameters, parameters)) << event.arguments;
        }
      }
    }
    ASSERT_TRUE(parser.finish().empty());
    ASSERT_GT(parser.tool_calls(), 0);
  }
  EXPECT_GT(calls, 20);
}

// With tools, a call may come in place of the value that a schema describes.
TEST(Grammar, AValueOrCalls) {
  GrammarOptions both = options();
  both.tools = kTools;
  const Grammar grammar = Grammar::json_schema(vocabulary(), R"({"type":"boolean"})", both);
  EXPECT_TRUE(accepts(grammar, "true"));
  EXPECT_TRUE(accepts(grammar, "<|tool_call>call:now{}<tool_call|>"));
  EXPECT_TRUE(accepts(grammar, "<|tool_call>call:now{}<tool_call|><|tool_call>call:now{}<tool_call|>"));
  for (const char* bad : {"true<|tool_call>call:now{}<tool_call|>", "<|tool_call>call:other{}<tool_call|>", "now",
                          "<|tool_call>call:get_weather{}<tool_call|>", "<|channel>x<channel|>true"}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
  both.parallel_tools = false;
  both.allow_thinking = true;
  const Grammar one = Grammar::json_object(vocabulary(), both);
  EXPECT_TRUE(accepts(one, "<|channel>x<channel|><|tool_call>call:now{}<tool_call|>"));
  EXPECT_TRUE(accepts(one, R"({"a":1})"));
  EXPECT_FALSE(accepts(one, "<|tool_call>call:now{}<tool_call|><|tool_call>call:now{}<tool_call|>"));
  both.in_thought = true;
  EXPECT_TRUE(accepts(Grammar::json_object(vocabulary(), both), "x<channel|><|tool_call>call:now{}<tool_call|>"));
  EXPECT_FALSE(accepts(Grammar::json_object(vocabulary(), both), "{}"));
}

// The grammar of a call that the model need not write: it begins after the marker, again and again.
TEST(Grammar, TheRestOfACall) {
  Grammar grammar = Grammar::rest_of_call(vocabulary(), kTools, options());
  EXPECT_TRUE(grammar.unenforced_tools().empty());
  for (const std::string text : {"call:now{}<tool_call|>", "call:get_weather{city:<|\"|>x<|\"|>}<tool_call|>"}) {
    EXPECT_TRUE(accepts(grammar, text));
    for (const int32_t id : demo().encode(text, true)) ASSERT_TRUE(grammar.advance(id));
    grammar.restart();
  }
  for (const char* bad : {"call:set_timer{}<tool_call|>", "call:now{x:1}<tool_call|>", "now{}", "call:now{}",
                          "call:get_weather{city:94103}<tool_call|>"}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
}

// Where a tool's parameters cannot be enforced, its name and the call's syntax still are; and other tools are whole.
TEST(Grammar, ParametersThatCannotBeEnforced) {
  const auto tools = [](const char* strict) {
    return std::string(R"([{"name":"odd","parameters":{"type":"object","properties":{"b":{"type":"object",
        "properties":{"c":{"type":"string"}}},"a":{"type":"string","$ref":"urn:a"}}})") +
           strict + R"(},{"name":"even:x/y","parameters":{"type":"object","properties":{"n":{"type":"integer"}}}}])";
  };
  const Grammar grammar = Grammar::rest_of_call(vocabulary(), tools(""), options());
  EXPECT_EQ(grammar.unenforced_tools(), std::vector<std::string>{"odd"});
  EXPECT_TRUE(accepts(grammar, "call:odd{z:[1,{k:true}],a:<|\"|>x<|\"|>}<tool_call|>"));
  EXPECT_TRUE(accepts(grammar, "call:even:x/y{n:3}<tool_call|>"));
  for (const char* bad : {"call:even:x/y{n:<|\"|>3<|\"|>}<tool_call|>", "call:odd{a:1<tool_call|>",
                          "call:odd{a:word}<tool_call|>", "call:even{}<tool_call|>"}) {
    EXPECT_FALSE(accepts(grammar, bad)) << bad;
  }
  EXPECT_THAT(error_of([&] { Grammar::rest_of_call(vocabulary(), tools(",\"strict\":true"), options()); }),
              HasSubstr("urn:a"));
  const std::string unique = R"([{"name":"f","parameters":{"properties":{"a":{"type":"array","uniqueItems":true}}}}])";
  const Grammar mostly = Grammar::rest_of_call(vocabulary(), unique, options());
  ASSERT_EQ(mostly.notes().size(), 1u);
  EXPECT_EQ(mostly.notes()[0].keyword, "uniqueItems");
  EXPECT_TRUE(mostly.notes()[0].checked);
  EXPECT_EQ(mostly.notes()[0].path, "f/properties/a");
  GrammarOptions loose = options();
  loose.loose_tools = true;
  EXPECT_TRUE(accepts(Grammar::rest_of_call(vocabulary(), tools(""), loose), "call:even:x/y{m:null}<tool_call|>"));
}

TEST(Grammar, DemoToolCallsAreAllowed) {
  int calls = 0;
  for (const json& one : test::golden("demo_eval/demo_text_eval.json")) {
    const auto prompt = one["prompt"].get<std::string>();
    if (!one["reference_output"].get<std::string>().starts_with("<|tool_call>")) continue;
    json tools = json::array();  // name and string arguments, out of the declarations
    for (size_t at = 0; (at = prompt.find("declaration:", at)) != std::string::npos;) {
      at += 12;
      const std::string name = prompt.substr(at, prompt.find('{', at) - at);
      const size_t properties = prompt.find("properties:{", at) + 12;
      const std::string property = prompt.substr(properties, prompt.find(':', properties) - properties);
      const bool integer = prompt.find("INTEGER", properties) < prompt.find("required", properties);
      tools.push_back({{"name", name},
                       {"parameters",
                        {{"type", "object"},
                         {"required", {property}},
                         {"properties", {{property, {{"type", integer ? "integer" : "string"}}}}}}}});
    }
    Grammar grammar = Grammar::tool_calls(vocabulary(), tools.dump(), "", true,
                                          {{demo().require("<turn|>"), demo().require("<|tool_response>")}});
    for (const json& id : one["reference_ids"]) ASSERT_TRUE(grammar.advance(id)) << one["reference_output"];
    EXPECT_TRUE(grammar.ended());
    ++calls;
  }
  EXPECT_GT(calls, 5);
}

TEST(Grammar, ThinkingMayComeFirst) {
  GrammarOptions with_thought = options();
  with_thought.allow_thinking = true;
  const Grammar grammar = Grammar::json_schema(vocabulary(), R"({"type":"boolean"})", with_thought);
  EXPECT_TRUE(accepts(grammar, "true"));
  EXPECT_TRUE(accepts(grammar, "<|channel>thought\nanything {\n<channel|>false"));
  EXPECT_FALSE(accepts(grammar, "<|channel>thought\nx"));
  EXPECT_FALSE(accepts(grammar, "<|channel>x<channel|><|channel>x<channel|>true"));
  EXPECT_FALSE(accepts(schema(R"({"type":"boolean"})"), "<|channel>x<channel|>true"));
}

TEST(Grammar, CopiesAreIndependentAndControlTokensStayOut) {
  Grammar first = schema(R"({"enum":["ab","ac"]})");
  Grammar second = first;
  ASSERT_TRUE(first.advance(demo().require("\"")));
  ASSERT_TRUE(first.advance(demo().require("a")));
  EXPECT_FALSE(second.advance(demo().require("a")));
  EXPECT_FALSE(first.advance(demo().require("a")));
  EXPECT_TRUE(first.advance(demo().require("c")));
  const Grammar text = schema(R"({"type":"string"})");
  Grammar inside = text;
  ASSERT_TRUE(inside.advance(demo().require("\"")));
  for (int32_t id = 0; id < demo().vocab_size(); ++id) {
    EXPECT_FALSE(demo().is_control(id) && allows(inside, id)) << demo().token(id);
  }
  EXPECT_FALSE(inside.advance(-1));
  EXPECT_FALSE(inside.advance(demo().vocab_size()));
}

TEST(Grammar, ManyThreadsShareOneCompiledGrammar) {
  const Grammar grammar = schema(schemas()[0]);
  std::vector<std::thread> threads;
  std::atomic<int> valid_outputs = 0;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int round = 0; round < 10; ++round) {
        valid_outputs += json::accept(demo().decode(random_output(grammar, random), false));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(valid_outputs, 40);
}

// Large loop counters must not change a mask: they are clamped to the length of the longest token.
TEST(Grammar, MasksOfLargeCountersAreExact) {
  Grammar grammar = schema(R"({"type":"string","minLength":70,"maxLength":90})");
  ASSERT_TRUE(grammar.advance(demo().require("\"")));
  const int32_t x = demo().require("x"), quote = demo().require("\"");
  for (int i = 0; i < 90; ++i) {
    EXPECT_EQ(allows(grammar, quote), i >= 70) << i;
    for (int32_t id = 0; id < demo().vocab_size(); ++id) {  // the reference: advancing by the token's bytes one by one
      if (demo().is_control(id) || demo().is_byte(id)) continue;
      const std::string_view piece = demo().piece(id);
      if (piece.find_first_of("\"\\\n\t\r") != std::string_view::npos) continue;
      size_t length = 0;
      for (const char c : piece) length += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
      ASSERT_EQ(allows(grammar, id), i + length <= 90) << piece;
    }
    ASSERT_TRUE(grammar.advance(x));
  }
  EXPECT_FALSE(allows(grammar, x));
  EXPECT_TRUE(grammar.advance(quote));
}

}  // namespace
}  // namespace gemma4
