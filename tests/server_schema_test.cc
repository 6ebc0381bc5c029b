// Forms of the answer over HTTP: what the masks of a schema do not keep, and plain text by expression, list or grammar.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "serving_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;

Json schema_body(const Json& schema, bool strict = false) {
  Json body = chat(kCount);
  body["max_tokens"] = 60;
  body["response_format"] = {{"type", "json_schema"},
                             {"json_schema", {{"name", "a"}, {"schema", schema}, {"strict", strict}}}};
  return body;
}

class ServerSchemas : public ServerTest {
 protected:
  static std::string bad(const std::string& path, const Json& body) {  // the sentence of a 400
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 400) << response.body;
    return read_json<Json>(response.body)["error"]["message"];
  }
};

// Every answer breaks it, and no mask can tell: both alternatives hold.
const Json kBroken =
    read_json<Json>(R"({"type":"integer","minimum":1,"maximum":1,"oneOf":[{"type":"integer"},{"type":"number"}]})");

TEST_F(ServerSchemas, WhatAnAnswerBreaksIsInItsWarnings) {
  const std::string sentence = "the answer breaks its schema at the whole value: oneOf";
  for (const double temperature : {0.0, 1.0}) {
    Json body = schema_body(kBroken);
    body["temperature"] = temperature;
    const Json json = good("/v1/chat/completions", body);
    EXPECT_EQ(json["choices"][0]["message"]["content"], "1");
    ASSERT_TRUE(json.contains("warnings")) << json;
    EXPECT_EQ(json["warnings"], Json::array({sentence}));
  }
  std::vector<SseEvent> events = streamed("/v1/chat/completions", schema_body(kBroken));
  std::erase_if(events, [](const SseEvent& event) { return event.name == "DONE"; });
  EXPECT_EQ(events.back().data["warnings"], Json::array({sentence}));
  EXPECT_FALSE(good("/v1/chat/completions", schema_body({{"const", 1}})).contains("warnings"));
}

// Half of the answers are broken at the first try, and an eighth after the third.
TEST_F(ServerSchemas, AnAnswerThatBreaksItsSchemaIsDrawnAgain) {
  const Json schema = {{"type", "array"},
                       {"items", {{"type", "integer"}, {"minimum", 0}, {"maximum", 1}}},
                       {"minItems", 2},
                       {"maxItems", 2},
                       {"uniqueItems", true}};
  int warned = 0, repeated = 0;
  for (int seed = 0; seed < 24; ++seed) {
    Json body = schema_body(schema);
    body["temperature"] = 2;
    body["top_k"] = 0;
    body["top_p"] = 1;
    body["seed"] = seed;
    const Json json = good("/v1/chat/completions", body);
    const Json value = read_json<Json>(json["choices"][0]["message"]["content"].get<std::string>());
    repeated += value[0] == value[1];
    warned += json.contains("warnings");
  }
  EXPECT_EQ(repeated, warned);
  EXPECT_LT(repeated, 10);
}

TEST_F(ServerSchemas, StrictRefusesWhatCannotBeEnforced) {
  const Json unique = {{"type", "array"}, {"items", {{"type", "integer"}}}, {"uniqueItems", true}};
  EXPECT_THAT(bad("/v1/chat/completions", schema_body(unique, true)), HasSubstr("uniqueItems"));
  EXPECT_THAT(bad("/v1/chat/completions", schema_body({{"nullable", 1}})), HasSubstr("nullable"));
  EXPECT_THAT(bad("/v1/chat/completions", schema_body(read_json<Json>(R"({"type":"string","enum":[1]})"))),
              HasSubstr("no value"));
}

TEST_F(ServerSchemas, PlainTextTakesTheFormThatWasAskedFor) {
  const auto answer = [&](const Json& fields) {
    Json body = chat(kCount);
    body["max_tokens"] = 40;
    body.update(fields);
    return good("/v1/chat/completions", body)["choices"][0]["message"]["content"].get<std::string>();
  };
  EXPECT_TRUE(std::regex_match(answer({{"guided_regex", "[a-f]{3}-[0-9]{2}"}}), std::regex("[a-f]{3}-[0-9]{2}")));
  EXPECT_TRUE(std::regex_match(answer({{"structured_outputs", {{"regex", "x[0-9]"}}}}), std::regex("x[0-9]")));
  EXPECT_EQ(answer({{"guided_choice", {"left"}}}), "left");
  const std::string chosen = answer({{"structured_outputs", {{"choice", {"red", "green"}}}}});
  EXPECT_TRUE(chosen == "red" || chosen == "green") << chosen;
  EXPECT_EQ(answer({{"grammar", "root ::= \"a\" b\nb ::= \"bc\""}}), "abc");
  EXPECT_EQ(answer({{"guided_grammar", "start: \"a\" B\nB: \"bc\""}}), "abc");
  EXPECT_EQ(answer({{"structured_outputs", {{"grammar", "start: \"x\""}}}}), "x");
  EXPECT_EQ(answer({{"ebnf", "root ::= \"a\" | root \"a\" \"b\""}, {"max_tokens", 1}}), "a");  // SGLang's names
  EXPECT_EQ(answer({{"regex", "left"}}), "left");
  // As guidance sends it to vLLM, of which versions know either name.
  const char* grammar = "%llguidance {}\n\nstart: answer\nanswer[capture]: ANSWER\n\nANSWER: \"red\"\n";
  EXPECT_EQ(answer({{"guided_decoding_backend", "guidance"},
                    {"guided_grammar", grammar},
                    {"structured_outputs", {{"grammar", grammar}}}}),
            "red");
  EXPECT_EQ(answer({{"guided_json", {{"const", 5}}}}), "5");
  EXPECT_EQ(answer({{"json_schema", {{"const", 5}}}}), "5");
  EXPECT_EQ(answer({{"response_format", {{"type", "json_object"}, {"schema", {{"const", 5}}}}}}), "5");
  Json prompt = {{"model", "demo"}, {"prompt", "Count"}, {"guided_choice", {"left"}}};
  EXPECT_EQ(good("/v1/completions", prompt)["choices"][0]["text"], "left");
}

TEST_F(ServerSchemas, FormsThatAreWrongAreRefusedByName) {
  const auto refused = [&](const Json& fields) {
    Json body = chat(kCount);
    body.update(fields);
    return bad("/v1/chat/completions", body);
  };
  EXPECT_THAT(refused({{"guided_regex", "(a"}}), HasSubstr("without its )"));
  EXPECT_THAT(refused({{"guided_choice", Json::array()}}), HasSubstr("guided_choice"));
  EXPECT_THAT(refused({{"guided_choice", {1}}}), HasSubstr("guided_choice[0]"));
  EXPECT_THAT(refused({{"grammar", "root ::= a | \"b\"\na ::= root \"a\""}}), HasSubstr("left recursion"));
  EXPECT_THAT(refused({{"structured_outputs", {{"grammar", "start: \"a\""}}}, {"guided_grammar", "start: \"b\""}}),
              HasSubstr("structured_outputs.grammar"));
  EXPECT_THAT(refused({{"guided_regex", "a"}, {"grammar", "root ::= \"a\""}}), HasSubstr("grammar"));
  EXPECT_THAT(refused({{"guided_regex", "a"}, {"response_format", {{"type", "json_object"}}}}),
              HasSubstr("response_format"));
  EXPECT_THAT(refused({{"structured_outputs", {{"structural_tag", "a"}}}}), HasSubstr("structural_tag"));
}

}  // namespace
}  // namespace gemma4
