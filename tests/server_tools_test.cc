// Tools over HTTP: which schemas are refused, what arguments are checked for once a call is written, and tools that
// take a text by a grammar.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "serving_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;

class ServerTools : public ServerTest {};

// The same tool in a request of each API.
std::vector<std::pair<std::string, Json>> with_tool(const Json& parameters, const Json& strict = nullptr) {
  const std::string question = "Who are you?";
  const Json messages = {{{"role", "user"}, {"content", question}}};
  Json function = {{"name", "probe"}, {"parameters", parameters}}, flat = function,
       ours = {{"name", "probe"}, {"input_schema", parameters}};
  for (Json* one : {&function, &flat, &ours}) {
    if (!strict.is_null()) (*one)["strict"] = strict;
  }
  flat["type"] = "function";
  const Json wrapped = {{"type", "function"}, {"function", function}};
  return {
      {"/v1/chat/completions", {{"max_tokens", 2}, {"messages", messages}, {"tools", Json::array({wrapped})}}},
      {"/v1/responses", {{"max_output_tokens", 2}, {"input", question}, {"tools", Json::array({flat})}}},
      {"/v1/messages", {{"max_tokens", 2}, {"messages", messages}, {"tools", Json::array({ours})}}},
      {"/api/chat", {{"model", "demo"}, {"messages", messages}, {"tools", Json::array({wrapped})}, {"stream", false}}}};
}

struct BadSchema {
  const char* schema;
  const char* word;
};
constexpr BadSchema kBadSchemas[] = {
    {R"({"type":"object","properties":{"a":{"type":"string","nullable":1}}})", "nullable"},
    {R"({"type":"object","properties":{"a":{"$ref":5}}})", "$ref"},
    {R"({"type":"object","properties":{"a":{"$ref":"#/$defs/b"}}})", "leads nowhere"},
    {R"({"type":"object","properties":{"a":{}},"required":"a"})", "required"},
    {R"({"type":5})", "type"},
    {R"({"type":"object","properties":{"a":{"type":"text"}}})", "no type of JSON"},
    {R"({"type":"object","properties":{"a":{"type":"string","pattern":"("}}})", "pattern"},
    {R"({"type":"string"})", "no object"},
    {R"({"type":"object","properties":{"a":{"enum":[]}},"required":["a"]})", "no value"},
    {R"({"type":"object","properties":{"a":{"type":"array","minItems":3,"maxItems":1}}})", "maxItems"},
    {R"({"type":"object","properties":{"a":{"type":"integer","minimum":3,"maximum":1}},"required":["a"]})", "no value"},
    {R"({"type":"object","properties":{"a":{}},"required":["b"],"additionalProperties":false})", "no value"},
};

TEST_F(ServerTools, ASchemaThatIsNoneOrAllowsNothingIsRefused) {
  for (const BadSchema& bad : kBadSchemas) {
    for (const Json& strict : {Json(), Json(false), Json(true)}) {
      for (const auto& [path, body] : with_tool(read_json<Json>(bad.schema), strict)) {
        const Response response = post(path, body);
        EXPECT_EQ(response.status, 400) << path << bad.schema << response.body;
        EXPECT_THAT(response.body, HasSubstr(bad.word)) << path << bad.schema;
      }
    }
  }
}

// Also where the tool cannot be called, or is only counted.
TEST_F(ServerTools, ABadSchemaIsRefusedWhateverTheChoiceIs) {
  for (const BadSchema& bad : {kBadSchemas[0], kBadSchemas[8]}) {
    Json body = with_tool(read_json<Json>(bad.schema))[0].second;
    body["tools"].push_back({{"type", "function"}, {"function", {{"name", "fine"}}}});
    const Json named = {{"type", "function"}, {"function", {{"name", "fine"}}}};
    const Json allowed = {{"type", "allowed_tools"},
                          {"allowed_tools", {{"mode", "auto"}, {"tools", Json::array({named})}}}};
    for (const Json& choice : {Json("none"), Json("auto"), Json("required"), named, allowed}) {
      body["tool_choice"] = choice;
      const Response response = post("/v1/chat/completions", body);
      EXPECT_EQ(response.status, 400) << choice << bad.schema << response.body;
      EXPECT_THAT(response.body, HasSubstr(bad.word)) << choice;
    }
    for (const Json& choice : {Json("none"), Json{{"type", "function"}, {"name", "fine"}}}) {
      Json responses = with_tool(read_json<Json>(bad.schema))[1].second;
      responses["tools"].push_back({{"type", "function"}, {"name", "fine"}});
      responses["tool_choice"] = choice;
      EXPECT_EQ(post("/v1/responses", responses).status, 400) << choice;
    }
    for (const Json& choice : {Json{{"type", "none"}}, Json{{"type", "tool"}, {"name", "fine"}}}) {
      Json messages = with_tool(read_json<Json>(bad.schema))[2].second;
      messages["tools"].push_back({{"name", "fine"}, {"input_schema", {{"type", "object"}}}});
      messages["tool_choice"] = choice;
      EXPECT_EQ(post("/v1/messages", messages).status, 400) << choice;
    }
  }
}

// What is a schema, but more than a mask can keep, is taken where the tool is not strict.
TEST_F(ServerTools, ASchemaThatCannotBeEnforcedIsTakenWithAWarning) {
  for (const char* schema : {R"({"type":"object","properties":{"a":{"$ref":"https://example.com/a.json"}}})",
                             R"({"type":"object","properties":{"two words":{"type":"string"}}})",
                             R"({"type":"object","properties":{"a":{"type":"integer","minimum":1e30}}})"}) {
    for (const auto& [path, body] : with_tool(read_json<Json>(schema))) {
      const Json answer = good(path, body);
      ASSERT_EQ(answer["warnings"].size(), 1u) << path << schema << answer;
      EXPECT_THAT(answer["warnings"][0].get<std::string>(), HasSubstr("'probe' cannot be enforced")) << schema;
    }
    EXPECT_EQ(post("/v1/chat/completions", with_tool(read_json<Json>(schema), true)[0].second).status, 400) << schema;
  }
  // Arguments that only an allOf or anyOf describes.
  for (const char* schema : {R"({"type":"object","allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]}]})",
                             R"({"type":"object","minProperties":1})",
                             R"({"anyOf":[{"type":"object","required":["a"]},{"type":"object","required":["b"]}]})"}) {
    for (const auto& [path, body] : with_tool(read_json<Json>(schema))) {
      EXPECT_FALSE(good(path, body).contains("warnings")) << path << schema;
    }
  }
}

// Arguments.

// A call that must come, in each API; with a stream or without.
std::vector<std::pair<std::string, Json>> forced_call(const Json& parameters) {
  std::vector<std::pair<std::string, Json>> requests = with_tool(parameters);
  requests.pop_back();  // Ollama's has no tool_choice
  for (auto& [path, body] : requests) {
    body["temperature"] = 0;
    body[path == "/v1/responses" ? "max_output_tokens" : "max_tokens"] = 60;
    body["tool_choice"] = path == "/v1/messages" ? Json{{"type", "any"}} : Json("required");
  }
  return requests;
}

Json parameters_of(const char* property) {
  return {{"type", "object"},
          {"properties", {{"a", read_json<Json>(property)}}},
          {"required", Json::array({"a"})},
          {"additionalProperties", false}};
}

// Every call breaks it, and no mask can tell: both alternatives hold.
constexpr const char* kBothHold = R"({"type":"integer","minimum":1,"maximum":1,
                                      "oneOf":[{"type":"integer"},{"type":"number"}]})";

TEST_F(ServerTools, WhatArgumentsBreakIsInTheWarnings) {
  const Json sentence = Json::array({"the arguments of 'probe' break their schema at a: oneOf"});
  for (auto [path, body] : forced_call(parameters_of(kBothHold))) {
    EXPECT_EQ(good(path, body).value("warnings", Json()), sentence) << path;
    std::vector<SseEvent> events = streamed(path, body);
    std::erase_if(events, [](const SseEvent& event) { return event.name == "DONE" || event.name == "message_stop"; });
    EXPECT_EQ(events.back().data.value("warnings", Json()), sentence) << path;
  }
  Json ollama = with_tool(parameters_of(kBothHold))[3].second;
  ollama["messages"][0]["content"] = "Set a timer for 6 minutes.";
  ollama["tools"][0]["function"] = {{"name", "set_timer"}, {"description", "Starts a timer."}};
  Json& parameters = ollama["tools"][0]["function"]["parameters"];
  parameters = parameters_of(kBothHold);
  parameters["properties"]["minutes"] = parameters["properties"]["a"];
  parameters["properties"].erase("a");
  parameters["required"] = {"minutes"};
  ollama["options"] = {{"temperature", 0}};
  const Json answer = good("/api/chat", ollama);
  ASSERT_TRUE(answer["message"].contains("tool_calls")) << answer;
  EXPECT_THAT(answer.value("warnings", Json()).dump(), HasSubstr("minutes: oneOf")) << answer;
  for (const auto& [path, body] : forced_call(parameters_of(R"({"const":1})"))) {
    EXPECT_FALSE(good(path, body).contains("warnings")) << path;
  }
}

// Half of the calls are broken at the first try, and an eighth after the third; of a stream all of the half.
TEST_F(ServerTools, ACallThatBreaksItsSchemaIsDrawnAgain) {
  const char* unique = R"({"type":"array","items":{"type":"integer","minimum":0,"maximum":1},"minItems":2,"maxItems":2,
                           "uniqueItems":true})";
  Json body = forced_call(parameters_of(unique))[0].second;
  body.update({{"temperature", 2}, {"top_k", 0}, {"top_p", 1}, {"parallel_tool_calls", false}});
  int warned = 0, repeated = 0, warned_in_streams = 0;
  for (int seed = 0; seed < 24; ++seed) {
    body["seed"] = seed;
    const Json json = good("/v1/chat/completions", body);
    const Json& calls = json["choices"][0]["message"]["tool_calls"];
    ASSERT_EQ(calls.size(), 1u) << json;
    const Json list = read_json<Json>(calls[0]["function"]["arguments"].get<std::string>())["a"];
    repeated += list[0] == list[1];
    warned += json.contains("warnings");
    std::vector<SseEvent> events = streamed("/v1/chat/completions", body);
    warned_in_streams += events[events.size() - 2].data.contains("warnings");
  }
  EXPECT_EQ(repeated, warned);
  EXPECT_LT(repeated, 10);
  EXPECT_GT(warned_in_streams, repeated);
}

// Tools that take a text by a grammar.

Json custom_body(const char* syntax, const char* definition) {
  const Json format = {{"type", "grammar"}, {"syntax", syntax}, {"definition", definition}};
  return {{"input", "Who are you?"},
          {"max_output_tokens", 80},
          {"temperature", 1.5},
          {"top_k", 0},
          {"top_p", 1},
          {"tools", {{{"type", "custom"}, {"name", "query"}, {"description", "Asks."}, {"format", format}}}},
          {"tool_choice", {{"type", "custom"}, {"name", "query"}}},
          {"parallel_tool_calls", false}};
}

struct TextGrammarCase {
  const char *syntax, *definition, *expected;  // an expression that all texts match
};
constexpr TextGrammarCase kTextGrammars[] = {
    {"regex", "[a-c]{3}-(\"|\\\\)[0-9]{2}", "[a-c]{3}-(\"|\\\\)[0-9]{2}"},
    {"lark", "start: \"get \" name (\",\" name)? \"\\n\"\nname: /[a-z]{2,5}/ | \"::=\"\n",
     "get ([a-z]{2,5}|::=)(,([a-z]{2,5}|::=))?\n"},
};

TEST_F(ServerTools, ACustomToolsTextIsThatOfItsGrammar) {
  for (const auto& [syntax, definition, expected] : kTextGrammars) {
    for (int seed = 0; seed < 6; ++seed) {
      Json body = custom_body(syntax, definition);
      body["seed"] = seed;
      const Json response = good("/v1/responses", body);
      ASSERT_EQ(response["output"][0]["type"], "custom_tool_call") << response;
      const std::string text = response["output"][0]["input"];
      EXPECT_TRUE(std::regex_match(text, std::regex(expected))) << text;
      EXPECT_FALSE(response.contains("warnings")) << response["warnings"];
      const std::vector<SseEvent> events = streamed("/v1/responses", body);
      const auto done = std::ranges::find(events, "response.custom_tool_call_input.done", &SseEvent::name);
      ASSERT_NE(done, events.end());
      EXPECT_EQ(done->data["input"], text);
      Json chat_body = chat("Who are you?");
      const Json custom = {
          {"name", "query"},
          {"format", {{"type", "grammar"}, {"grammar", {{"syntax", syntax}, {"definition", definition}}}}}};
      chat_body.update({{"seed", seed}, {"temperature", 1.5}, {"tool_choice", "required"}, {"max_tokens", 80}});
      chat_body["tools"] = {{{"type", "custom"}, {"custom", custom}}};
      const Json message = good("/v1/chat/completions", chat_body)["choices"][0]["message"];
      ASSERT_TRUE(message.contains("tool_calls")) << message;
      const std::string other = message["tool_calls"][0]["custom"]["input"];
      EXPECT_TRUE(std::regex_match(other, std::regex(expected))) << other;
    }
  }
}

TEST_F(ServerTools, ParametersThatNoCallFitsAreRefusedByNameAndPlace) {
  Json body = chat("Who are you?");
  body["tools"] = read_json<Json>(R"([{"type":"function","function":{"name":"note","parameters":{"type":"object"}}},
    {"type":"function","function":{"name":"tree","parameters":{"type":"object",
      "properties":{"node":{"$ref":"#/$defs/node"}},"required":["node"],
      "$defs":{"node":{"type":"object","properties":{"next":{"$ref":"#/$defs/node"}},"required":["next"]}}}}}])");
  for (const char* choice : {"auto", "required", "none"}) {
    body["tool_choice"] = choice;
    const Response response = post("/v1/chat/completions", body);
    EXPECT_EQ(response.status, 400) << choice;
    EXPECT_THAT(response.body,
                HasSubstr("tools: tree: schema #/properties/node: allows no value that comes to an end"));
  }
}

TEST_F(ServerTools, AGrammarThatIsNoneIsRefusedByName) {
  const TextGrammarCase bad[] = {
      {"regex", "a(", "query"},
      {"regex", "(a)\\1", "refers back to a group"},
      {"lark", "start: missing", "no rule missing"},
      {"lark", "start: \"a\" x\nx: \"b\" x", "query: grammar: no text that the rule x allows"},
      {"lark", "start: \"ab\"..\"c\"", "from one character to another"},
      {"lark", "start: x \"a\" | \"b\"\nx: start", "left recursion"},
      {"lark", "begin: \"a\"", "no rule start"},
      {"lark", "start: %json {}", "query"},
      {"gbnf", "root ::= \"a\"", "syntax"}};
  for (const auto& [syntax, definition, expected] : bad) {
    Json body = custom_body(syntax, definition);
    for (const Json& choice : {body["tool_choice"], Json("auto"), Json("none")}) {
      body["tool_choice"] = choice;
      const Response response = post("/v1/responses", body);
      EXPECT_EQ(response.status, 400) << definition << choice << response.body;
      EXPECT_THAT(response.body, HasSubstr(expected)) << choice;
    }
  }
}

}  // namespace
}  // namespace gemma4
