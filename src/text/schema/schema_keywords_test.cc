#include "text/schema/schema_keywords.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "text/data_testing.h"
#include "text/grammar/grammar.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
using test::demo;
using test::error_of;
using ::testing::AnyOf;
using ::testing::HasSubstr;

const Grammar::Vocabulary& test_vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(demo());
  return instance;
}

Grammar grammar_of(const std::string& schema) {
  return Grammar::json_schema(test_vocabulary(), schema, {{demo().require("<turn|>")}});
}

std::string error(const std::string& schema) {
  return error_of([&] { grammar_of(schema); });
}

bool accepts(const std::string& schema, const std::string& text) {
  Grammar grammar = grammar_of(schema);
  for (const int32_t id : demo().encode(text, false)) {
    if (!grammar.advance(id)) return false;
  }
  return grammar.complete();
}

// Each keyword with a value of each kind: compiled or refused in a sentence, alone, under allOf and beside $ref.
TEST(SchemaKeywords, AValueOfTheWrongKindIsRefusedInASentence) {
  const char* keywords[] = {"type",
                            "$ref",
                            "properties",
                            "required",
                            "additionalProperties",
                            "items",
                            "prefixItems",
                            "anyOf",
                            "oneOf",
                            "allOf",
                            "enum",
                            "const",
                            "pattern",
                            "format",
                            "nullable",
                            "minimum",
                            "maximum",
                            "$defs",
                            "minLength",
                            "maxItems",
                            "uniqueItems",
                            "not",
                            "if",
                            "patternProperties",
                            "propertyNames",
                            "minProperties",
                            "multipleOf",
                            "contains",
                            "dependentRequired",
                            "additionalItems",
                            "unevaluatedProperties",
                            "exclusiveMinimum",
                            "definitions",
                            "title"};
  const char* values[] = {"null",    "true",   "1",     "-1",         "1.5", "18446744073709551616",
                          "\"a\"",   "[]",     "[1]",   "[[]]",       "{}",  "{\"a\":1}",
                          "[\"a\"]", "[null]", "\"#\"", "{\"\":\"\"}"};
  for (const std::string keyword : keywords) {
    for (const std::string value : values) {
      const std::string one = "{\"" + keyword + "\":" + value + "}";
      for (const std::string& schema :
           {one, "{\"allOf\":[" + one + "]}", "{\"allOf\":[{\"type\":\"object\",\"required\":[\"b\"]}," + one + "]}",
            "{\"$ref\":\"#/$defs/x\",\"type\":\"object\",\"$defs\":{\"x\":" + one + "}}",
            "{\"anyOf\":[" + one + "],\"type\":[\"object\",\"null\"]}", "{\"properties\":{\"p\":" + one + "}}",
            "{\"items\":" + one + "}"}) {
        try {
          grammar_of(schema);
        } catch (const Error& problem) {
          EXPECT_THAT(problem.what(), Not(HasSubstr("json.exception"))) << schema;
        }  // anything else ends the test
      }
    }
  }
  EXPECT_THAT(error(R"({"nullable":1})"), HasSubstr("nullable is not true or false"));
  EXPECT_THAT(error(R"({"$ref":5})"), HasSubstr("$ref is not a string"));
  EXPECT_THAT(error(R"({"allOf":[{"required":["b"]},{"required":"a"}]})"),
              HasSubstr("required is not an array of strings"));
  EXPECT_THAT(error(R"({"allOf":[{"properties":{}},{"properties":[1]}]})"), HasSubstr("properties is not an object"));
}

TEST(SchemaKeywords, WhatNoValueMatchesIsRefused) {
  for (const char* schema : {R"({"type":"object","required":["a"],"additionalProperties":false})",
                             R"({"type":"object","properties":{"b":{}},"required":["a"],"additionalProperties":false})",
                             R"({"allOf":[{"additionalProperties":false,"properties":{"b":{}}},{"required":["a"]}]})",
                             R"({"type":"object","properties":{"a":false},"required":["a"]})",
                             R"({"enum":[]})",
                             R"({"anyOf":[]})",
                             R"({"anyOf":[false]})",
                             R"({"items":false,"minItems":1})",
                             R"({"prefixItems":[true,false],"minItems":2})",
                             R"({"minItems":2,"maxItems":1})",
                             R"({"minLength":2,"maxLength":1})",
                             R"({"type":"integer","enum":["a"]})",
                             R"({"const":1,"enum":[2]})",
                             R"({"enum":[1,2],"minimum":3})",
                             R"({"const":"abc","maxLength":2})",
                             R"({"not":{}})",
                             R"({"not":true})",
                             R"({"type":"string","not":{"type":"string"}})",
                             R"({"minProperties":2,"maxProperties":1})",
                             R"({"allOf":[{"type":"string"},{"type":"integer"}]})",
                             R"({"allOf":[{"minLength":3},{"maxLength":2}]})",
                             R"({"pattern":"^a$","allOf":[{"pattern":"^b$"}]})",
                             R"({"enum":["ab"],"pattern":"^b"})",
                             R"({"enum":["ab"],"format":"date"})",
                             R"({"const":7,"multipleOf":2})",
                             R"({"type":[]})",
                             "false",
                             R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})",
                             R"({"items":{"$ref":"#"},"minItems":1})"}) {
    EXPECT_THAT(error(schema), AnyOf(HasSubstr("no value"), HasSubstr("is required"), HasSubstr("is less than"),
                                     HasSubstr("names no type"), HasSubstr("leave no")))
        << schema;
  }
  EXPECT_TRUE(accepts(R"({"properties":{"a":{"$ref":"#"}}})", R"({"a":{}})"));
  EXPECT_TRUE(accepts(R"({"enum":[1,2,3],"minimum":2,"exclusiveMaximum":3})", "2"));
  EXPECT_FALSE(accepts(R"({"enum":[1,2,3],"minimum":2,"exclusiveMaximum":3})", "3"));
  EXPECT_TRUE(accepts(R"({"prefixItems":[true,false]})", "[1]"));
  EXPECT_FALSE(accepts(R"({"prefixItems":[true,false]})", "[1,1]"));
}

// Tries were built by recursion on the length of a string: from 52,300 characters on the stack was not enough.
TEST(SchemaKeywords, LongStringsAreRefusedOrWorkWithoutRecursion) {
  const std::string a(120000, 'a');
  const std::string name = "{\"type\":\"object\",\"properties\":{\"" + a + "\":{}}";
  for (const std::string& schema :
       {"{\"const\":\"" + a + "\"}", "{\"enum\":[\"" + a + "\",\"" + a + "b\"]}", "{\"enum\":[{\"" + a + "\":1}]}",
        name + "}", name + ",\"additionalProperties\":true}", "{\"type\":\"object\",\"required\":[\"" + a + "\"]}",
        "{\"pattern\":\"^" + a + "$\"}", "{\"title\":\"" + a + "\"}"}) {
    EXPECT_THAT(error(schema), AnyOf("", HasSubstr("than one request may take"), HasSubstr("too large")))
        << schema.substr(0, 60);
  }
  const std::string b(30000, 'b');
  EXPECT_TRUE(accepts("{\"const\":\"" + b + "\"}", "\"" + b + "\""));
  const std::string tools =
      R"([{"name":"f","parameters":{"type":"object","properties":{"a":{"enum":[")" + a + R"("]}},"required":["a"]}}])";
  EXPECT_THAT(
      error_of([&] { Grammar::tool_calls(test_vocabulary(), tools, "", false, {{demo().require("<turn|>")}}); }),
      AnyOf("", HasSubstr("than one request may take")));
}

// 8,500 references to 1,900 properties took 43 s of a core, and an anyOf beside long keywords 830 MiB.
TEST(SchemaKeywords, ReferencesAreMergedOnce) {
  Json schema = {{"$defs", {{"a", {{"properties", Json::object()}}}}}, {"allOf", Json::array()}};
  for (int i = 0; i < 900; ++i) schema["$defs"]["a"]["properties"]["p" + std::to_string(i)] = {{"type", "integer"}};
  for (int i = 0; i < 8500; ++i) schema["allOf"].push_back({{"$ref", "#/$defs/a"}});
  EXPECT_EQ(error(schema.dump()), "");
  EXPECT_LT(grammar_of(schema.dump()).budget().steps_used(), 20'000'000u);
}

// Keywords beside an anyOf were copied for each alternative, and charged so.
TEST(SchemaKeywords, WhatStandsBesideAnAnyOfIsCompiledOnce) {
  Json schema = {{"properties", {{"a", {{"enum", {std::string(20000, 'x')}}}}}}, {"anyOf", Json::array()}};
  for (int i = 0; i < 1000; ++i) schema["anyOf"].push_back({{"required", {"r" + std::to_string(i)}}});
  EXPECT_EQ(error(schema.dump()), "");
  EXPECT_LT(grammar_of(schema.dump()).budget().steps_used(), 5'000'000u);
}

TEST(SchemaKeywords, FingerprintsDifferWhereSchemasDo) {
  WorkBudget budget("x");
  const auto print = [&](const char* text) { return fingerprint(read_json<Json>(text), budget); };
  EXPECT_EQ(print(R"({"type":"string","description":"a"})"), print(R"({"title":"b","type":"string"})"));
  EXPECT_NE(print(R"({"properties":{"title":{}}})"), print(R"({"properties":{}})"));
  EXPECT_NE(print(R"({"const":{"title":1}})"), print(R"({"const":{}})"));
  EXPECT_NE(print(R"({"type":"string","nullable":true})"), print(R"({"type":"string"})"));
  EXPECT_NE(print(R"({"const":1})"), print(R"({"const":1.0})"));
  EXPECT_NE(print(R"({"enum":["a","b"]})"), print(R"({"enum":["ab"]})"));
  EXPECT_NE(print(R"({"anyOf":[{},{}]})"), print(R"({"anyOf":[{}]})"));
}

TEST(SchemaKeywords, CancellingReachesCompiling) {
  GrammarOptions options{{demo().require("<turn|>")}};
  options.budget = std::make_shared<WorkBudget>("the schema");
  options.budget->cancel();
  EXPECT_THROW(Grammar::json_schema(test_vocabulary(), R"({"type":"object"})", options), CancelledError);
}

}  // namespace
}  // namespace gemma4
