#include "text/schema/schema_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"

namespace gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> broken(const std::string& schema, const std::string& value) {
  WorkBudget budget("test", {.steps = 1'000'000});
  return check_json(value, schema, budget);
}

struct CheckCase {
  const char *schema, *good, *bad;
};

// Of arrays: a value that each keyword allows, and one that it does not.
constexpr CheckCase kArrayCases[] = {
    {R"({"items":{"type":"null"}})", "[null]", "[1]"},
    {R"({"prefixItems":[{"type":"null"}],"items":false})", "[null]", "[null,1]"},
    {R"({"items":[{"type":"null"}],"additionalItems":{"type":"string"}})", R"([null,"a"])", "[null,1]"},
    {R"({"prefixItems":[{"type":"null"}],"unevaluatedItems":false})", "[null]", "[null,1]"},
    {R"({"allOf":[{"prefixItems":[{"type":"null"}]}],"unevaluatedItems":{"type":"string"}})", R"([null,"a"])",
     "[null,1]"},
    {R"({"contains":{"type":"string"},"unevaluatedItems":{"type":"null"}})", R"([null,"a"])", R"(["a",1])"},
    {R"({"anyOf":[{"items":{"type":"null"}},{"minItems":2}],"unevaluatedItems":false})", "[null,null]", "[1,2]"},
    {R"({"if":{"prefixItems":[{"const":1}]},"then":{"items":true},"unevaluatedItems":false})", "[1,2]", "[2,2]"},
    {R"({"allOf":[{"unevaluatedItems":{"type":"null"}}],"unevaluatedItems":false})", "[null]", "[1]"},
    {R"({"dependentSchemas":{"a":{"properties":{"b":{}}}},"properties":{"a":{}},"unevaluatedProperties":false})",
     R"({"a":1,"b":2})", R"({"b":2})"},
    {R"({"minItems":1})", "[1]", "[]"},
    {R"({"maxItems":1})", "[1]", "[1,1]"},
    {R"({"uniqueItems":true})", R"([1,"1",{"a":1,"b":2}])", R"([{"a":1,"b":2},{"b":2,"a":1.0}])"},
    {R"({"contains":{"type":"string"}})", R"([1,"a"])", "[1]"},
    {R"({"contains":{"type":"string"},"minContains":2})", R"(["a","b"])", R"(["a"])"},
    {R"({"contains":{"type":"string"},"maxContains":1})", R"(["a"])", R"(["a","b"])"}};

TEST(SchemaCheck, EachKeywordIsChecked) {
  const CheckCase others[] = {
      {R"({"type":["integer","null"]})", "2.0", "2.5"},
      {R"({"enum":[1,{"a":1,"b":2}]})", R"({"b":2,"a":1})", "2"},
      {R"({"const":[1]})", "[1.0]", "[1,1]"},
      {R"({"type":"string","nullable":true})", "null", "1"},
      {R"({"$ref":"#/$defs/a","$defs":{"a":{"type":"boolean"}}})", "true", "1"},
      {R"({"$ref":"#b","$defs":{"a":{"$anchor":"b","type":"boolean"}}})", "true", "1"},
      {R"({"allOf":[{"minimum":1},{"maximum":2}]})", "2", "3"},
      {R"({"anyOf":[{"type":"string"},{"minimum":3}]})", "3", "2"},
      {R"({"oneOf":[{"type":"integer"},{"minimum":3}]})", "2", "4"},
      {R"({"not":{"required":["a"]}})", R"({"b":1})", R"({"a":1})"},
      {R"({"if":{"type":"string"},"then":{"minLength":2},"else":{"minimum":2}})", R"("ab")", "1"},
      {R"({"properties":{"a":{"type":"string"}}})", R"({"b":1})", R"({"a":1})"},
      {R"({"required":["a"]})", R"({"a":1})", "{}"},
      {R"({"properties":{"a":{}},"additionalProperties":false})", R"({"a":1})", R"({"b":1})"},
      {R"({"patternProperties":{"^x":{"type":"null"}},"additionalProperties":{"type":"string"}})",
       R"({"x":null,"b":"c"})", R"({"x":1})"},
      {R"({"propertyNames":{"pattern":"^a"}})", R"({"ab":1})", R"({"ba":1})"},
      {R"({"minProperties":1})", R"({"a":1})", "{}"},
      {R"({"maxProperties":0})", "{}", R"({"a":1})"},
      {R"({"dependentRequired":{"a":["b"]}})", R"({"a":1,"b":1})", R"({"a":1})"},
      {R"({"dependentSchemas":{"a":{"maxProperties":1}}})", R"({"b":1,"c":1})", R"({"a":1,"b":1})"},
      {R"({"dependencies":{"a":["b"]}})", "{}", R"({"a":1})"},
      {R"({"allOf":[{"properties":{"a":{}}}],"unevaluatedProperties":false})", R"({"a":1})", R"({"b":1})"},
      {R"({"minLength":2})", R"("éé")", R"("é")"},
      {R"({"maxLength":1})", R"("é")", R"("ab")"},
      {R"x({"pattern":"^(?!a)"})x", R"("b")", R"("a")"},
      {R"x({"pattern":"^(['*])\\w+\\1$"})x", R"("*bold*")", R"("*bold'")"},
      {R"x({"pattern":"(?<!\\.)\\d$"})x", R"("v1")", R"("v.1")"},
      {R"({"format":"date"})", R"("2024-02-29")", R"("2023-02-29")"},
      {R"({"minimum":9007199254740993})", "9007199254740993", "9007199254740992"},
      {R"({"maximum":1.5})", "1.5", "1.6"},
      {R"({"exclusiveMinimum":1})", "1.1", "1"},
      {R"({"maximum":1,"exclusiveMaximum":true})", "0.9", "1"},
      {R"({"multipleOf":0.1})", "0.3", "0.35"},
      {R"({"multipleOf":7})", "700000000000000000000000000007", "700000000000000000000000000008"},
      {R"({"multipleOf":0.25})", "2251799813685248.25", "0.2"},
      {R"({"multipleOf":1e-7})", "3e-7", "3.5e-8"}};
  std::vector<CheckCase> cases(std::begin(kArrayCases), std::end(kArrayCases));
  cases.insert(cases.end(), std::begin(others), std::end(others));
  std::set<std::string> seen;
  for (const auto& [schema, good, bad] : cases) {
    EXPECT_THAT(broken(schema, good), ElementsAre()) << schema << " " << good;
    EXPECT_FALSE(broken(schema, bad).empty()) << schema << " " << bad;
    for (const SchemaKeyword& keyword : schema_keywords()) {
      if (std::string(schema).find("\"" + std::string(keyword.name) + "\":") != std::string::npos)
        seen.insert(keyword.name);
    }
  }
  for (const SchemaKeyword& keyword : schema_keywords()) {
    EXPECT_TRUE(seen.contains(keyword.name)) << keyword.name;
  }
}

TEST(SchemaCheck, SaysWhereAndWhat) {
  const std::string schema = R"({"properties":{"a":{"items":{"properties":{"b":{"uniqueItems":true}}}}}})";
  EXPECT_THAT(broken(schema, R"({"a":[{},{"b":[1,1]}]})"),
              ElementsAre("the answer breaks its schema at a[1].b: uniqueItems"));
  EXPECT_THAT(broken(R"({"minimum":2})", "1"), ElementsAre("the answer breaks its schema at the whole value: minimum"));
  EXPECT_THAT(broken("{}", "{\"a\":"), ElementsAre("the answer is not JSON"));
}

// What it refers to is said by its other alternatives.
TEST(SchemaCheck, ASchemaMayBeOneOfItsAlternatives) {
  const std::string schema = R"({"anyOf":[{"$ref":"#/$defs/a"},{"type":"string"}],
                                 "$defs":{"a":{"anyOf":[{"$ref":"#"},{"type":"null"}]}}})";
  for (const char* good : {"\"x\"", "null"}) EXPECT_THAT(broken(schema, good), ElementsAre()) << good;
  EXPECT_THAT(broken(schema, "1"), ElementsAre("the answer breaks its schema at the whole value: anyOf"));
  const std::string closed = R"({"anyOf":[{"$ref":"#/$defs/a"},{"properties":{"b":{}}}],"unevaluatedProperties":false,
                                 "$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"},{"properties":{"c":{}}}]}}})";
  EXPECT_THAT(broken(closed, R"({"b":1,"c":2})"), ElementsAre());
  EXPECT_THAT(broken(closed, R"({"d":1})"), ElementsAre("the answer breaks its schema at d: unevaluatedProperties"));
}

TEST(SchemaCheck, WorkAndDepthAreBounded) {
  std::string deep;
  for (int i = 0; i < 500; ++i) deep += "[";
  EXPECT_THAT(broken(R"({"items":{"$ref":"#"}})", deep + std::string(500, ']')), ElementsAre());
  deep = std::string(900, '[');
  EXPECT_THROW(broken(R"({"items":{"$ref":"#"}})", deep + std::string(900, ']')), BudgetError);
  // Refused by the grammar, but no reason to go round for ever.
  EXPECT_THAT(broken(R"({"$ref":"#"})", "1"), ElementsAre("the answer breaks its schema at the whole value: $ref"));
  std::string schema = R"({"$defs":{"a0":{"type":"null"})";
  for (int i = 1; i < 30; ++i) {
    const std::string last = R"({"$ref":"#/$defs/a)" + std::to_string(i - 1) + "\"}";
    schema += ",\"a" + std::to_string(i) + "\":{\"anyOf\":[" + last + "," + last + "]}";
  }
  EXPECT_THROW(broken(schema + R"(},"$ref":"#/$defs/a29"})", "1"), BudgetError);
  EXPECT_THROW(broken(R"x({"pattern":"^(a*)*\\1b$"})x", "\"" + std::string(50, 'a') + "\""), BudgetError);
}

}  // namespace
}  // namespace gemma4
