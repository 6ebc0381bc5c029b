// Schemas of tools over HTTP: which are refused, and what of them is checked once a call is written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  return {{"/v1/chat/completions", {{"max_tokens", 2}, {"messages", messages}, {"tools", Json::array({wrapped})}}},
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
      for (const auto& [path, body] : with_tool(Json::parse(bad.schema), strict)) {
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
    Json body = with_tool(Json::parse(bad.schema))[0].second;
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
      Json responses = with_tool(Json::parse(bad.schema))[1].second;
      responses["tools"].push_back({{"type", "function"}, {"name", "fine"}});
      responses["tool_choice"] = choice;
      EXPECT_EQ(post("/v1/responses", responses).status, 400) << choice;
    }
    for (const Json& choice : {Json{{"type", "none"}}, Json{{"type", "tool"}, {"name", "fine"}}}) {
      Json messages = with_tool(Json::parse(bad.schema))[2].second;
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
    for (const auto& [path, body] : with_tool(Json::parse(schema))) {
      const Json answer = good(path, body);
      ASSERT_EQ(answer["warnings"].size(), 1u) << path << schema << answer;
      EXPECT_THAT(answer["warnings"][0].get<std::string>(), HasSubstr("'probe' cannot be enforced")) << schema;
    }
    EXPECT_EQ(post("/v1/chat/completions", with_tool(Json::parse(schema), true)[0].second).status, 400) << schema;
  }
  // Arguments that only an allOf or anyOf describes.
  for (const char* schema : {R"({"type":"object","allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]}]})",
                             R"({"type":"object","minProperties":1})",
                             R"({"anyOf":[{"type":"object","required":["a"]},{"type":"object","required":["b"]}]})"}) {
    for (const auto& [path, body] : with_tool(Json::parse(schema))) {
      EXPECT_FALSE(good(path, body).contains("warnings")) << path << schema;
    }
  }
}

}  // namespace
}  // namespace gemma4
