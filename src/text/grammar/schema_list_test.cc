// The schemas that Pydantic and Zod make of their types, and the table of docs/STRUCTURED_OUTPUT.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "text/data_testing.h"
#include "text/grammar/grammar.h"
#include "text/schema/formats.h"
#include "text/schema/schema_check.h"

namespace gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using OrderedJson = nlohmann::ordered_json;
using test::demo;

const Grammar::Vocabulary& list_vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(demo());
  return instance;
}

Grammar compiled(const std::string& schema, bool strict = false) {
  GrammarOptions options{{demo().require("<turn|>")}};
  options.strict = strict;
  return Grammar::json_schema(list_vocabulary(), schema, options);
}

bool takes(const std::string& schema, const std::string& text) {
  Grammar grammar = compiled(schema);
  for (const int32_t id : demo().encode(text, false)) {
    if (!grammar.advance(id)) return false;
  }
  return grammar.complete();
}

// An output of equally likely tokens; nothing where it does not end.
std::optional<std::string> drawn(Grammar grammar, std::mt19937& random) {
  std::vector<int32_t> ids;
  const int32_t end = demo().require("<turn|>");
  for (unsigned step = 0; step < 600; ++step) {
    const auto mask = grammar.mask();
    const auto may = [&](int32_t id) { return (mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0; };
    std::vector<int32_t> allowed;
    for (int32_t id = 0; id < demo().vocab_size(); ++id) {
      if (may(id)) allowed.push_back(id);
    }
    EXPECT_FALSE(allowed.empty());
    EXPECT_EQ(may(end), grammar.complete()) << demo().decode(ids, false);
    int32_t id = allowed[random() % allowed.size()];
    if (random() % 8 < 2 + step / 20) {
      for (const char* close : {"]", "}", "\""}) {
        if (may(demo().require(close))) id = demo().require(close);
      }
      if (grammar.complete()) id = end;
    }
    EXPECT_TRUE(grammar.advance(id));
    if (grammar.ended()) return demo().decode(ids, false);
    ids.push_back(id);
  }
  return std::nullopt;
}

TEST(SchemaList, WhatPydanticAndZodMakeCompiles) {
  int schemas = 0, answers = 0;
  std::mt19937 random(5);
  for (const char* file : {"schemas/pydantic.json", "schemas/zod.json"}) {
    for (const auto& one : read_json<OrderedJson>(read_file(test::source(std::string("tests/golden/") + file)))) {
      const std::string schema = one["schema"].dump();
      ++schemas;
      try {
        const Grammar grammar = compiled(schema);
        std::set<std::string> checked;
        for (const SchemaNote& note : grammar.notes()) checked.insert(note.keyword);
        for (int i = 0; i < 4; ++i) {
          const auto text = drawn(grammar, random);
          if (!text) continue;
          ++answers;
          WorkBudget budget("test", grammar_limits());
          for (const std::string& broken : check_json(*text, schema, budget)) {
            const std::string keyword = broken.substr(broken.rfind(' ') + 1);
            EXPECT_TRUE(checked.contains(keyword)) << one["name"] << " " << broken << " in " << *text;
          }
        }
      } catch (const Error& error) {
        ADD_FAILURE() << one["name"] << ": " << error.what();
      }
    }
  }
  EXPECT_GE(schemas, 180);
  EXPECT_GE(answers, 600);
}

struct Enforced {
  const char* schema;
  std::vector<const char*> good, bad;
};

const std::vector<Enforced> kEnforcedCases = {
    {R"({"allOf":[{"properties":{"a":{"minimum":3}}},
                    {"properties":{"a":{"type":"integer","maximum":5}},"required":["a"]}]})",
     {R"({"a":3})", R"({"a":5})"},
     {R"({"a":2})", R"({"a":6})", "{}"}},
    {R"({"allOf":[{"properties":{"a":{}},"additionalProperties":false},{"properties":{"a":{"const":1},"b":{}}}]})",
     {R"({"a":1})", "{}"},
     {R"({"b":1})", R"({"a":2})"}},
    {R"({"type":"integer","minimum":3,"exclusiveMinimum":3,"maximum":9,"exclusiveMaximum":12})",
     {"4", "9"},
     {"3", "10"}},
    {R"({"type":"integer","multipleOf":7,"minimum":10})", {"14", "700"}, {"7", "15"}},
    {R"({"type":"number","multipleOf":0.25})", {"0.25", "3", "-1.5"}, {"0.2", "0.251", "1e2"}},
    {R"({"type":"string","pattern":"^[a-z]+$","minLength":2,"maxLength":3})",
     {R"("ab")", R"("abc")"},
     {R"("a")", R"("abcd")"}},
    {R"({"type":"string","pattern":"^(ab|c)+$","minLength":2,"maxLength":3})",
     {R"("ab")", R"("cab")"},
     {R"("c")", R"("abab")"}},
    {R"({"type":"string","pattern":"^(?!a)[ab]+$","format":"unknown"})", {R"("ba")"}, {R"("ab")"}},
    {R"({"type":"string","not":{"enum":["a","ab"]},"maxLength":2})",
     {R"("b")", R"("aa")", R"("")"},
     {R"("a")", R"("ab")"}},
    {R"({"type":["string","null","integer"],"not":{"type":"null"}})", {"1", R"("a")"}, {"null"}},
    {R"({"properties":{"a":{},"b":{}},"not":{"required":["a"]}})", {R"({"b":1})"}, {R"({"a":1})"}},
    {R"({"patternProperties":{"^x":{"type":"integer"},"y$":{"minimum":5}},"additionalProperties":false})",
     {R"({"xa":1})", R"({"xy":5})", R"({"y":6,"xb":1})"},
     {R"({"xy":4})", R"({"a":1})"}},
    {R"({"additionalProperties":{"type":"integer"},"propertyNames":{"pattern":"^[ab]+$","maxLength":2}})",
     {R"({"ab":1})"},
     {R"({"c":1})", R"({"aab":1})"}},
    {R"({"propertyNames":{"enum":["a","b"]},"additionalProperties":{"type":"null"}})",
     {R"({"a":null,"b":null})"},
     {R"({"c":null})"}},
    {R"({"additionalProperties":{},"minProperties":2,"maxProperties":3})",
     {R"({"a":1,"b":2})"},
     {R"({"a":1})", R"({"a":1,"b":2,"c":3,"d":4})"}},
    {R"({"properties":{"a":{},"b":{},"c":{}},"minProperties":1,"maxProperties":2})",
     {R"({"b":1})", R"({"a":1,"c":1})"},
     {"{}", R"({"a":1,"b":1,"c":1})"}},
    {R"({"uniqueItems":true,"items":{"enum":["a","b"]}})", {R"(["b","a"])", "[]"}, {R"(["a","a"])"}},
    {R"({"items":[{"type":"string"},{"type":"null"}],"additionalItems":{"const":1}})",
     {R"(["a",null,1])"},
     {R"([1])", R"(["a",null,2])"}},
    {R"({"if":{"type":"string"},"then":{"minLength":2},"else":{"type":"null"}})", {R"("ab")", "null"}, {R"("a")", "1"}},
    {R"({"anyOf":[{"$ref":"#/$defs/e"},{"type":"null"}],
           "$defs":{"e":{"type":"array","items":{"$ref":"#/$defs/e"},"minItems":1}}})",
     {"null"},
     {"["}},
    {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})", {"null"}, {"1"}},
    {R"({"$ref":"#/$defs/a%20b","$defs":{"a b":{"const":1}}})", {"1"}, {"2"}},
    {R"({"type":"object","properties":{"a":{"not":{}}},"x-order":["a"],"markdownDescription":"b"})",
     {"{}"},
     {R"({"a":1})"}}};
TEST(SchemaList, WhatMasksKeep) {
  for (const auto& [schema, good, bad] : kEnforcedCases) {
    for (const char* text : good) EXPECT_TRUE(takes(schema, text)) << schema << " " << text;
    for (const char* text : bad) EXPECT_FALSE(takes(schema, text)) << schema << " " << text;
  }
}

TEST(SchemaList, ListsWithoutRepeatsHaveAsManyItemsAsThereAreValues) {
  const auto error = [](const std::string& text) { return test::error_of([&] { compiled(text); }); };
  const std::string begin = R"({"properties":{"q":{"type":"array","uniqueItems":true,"minItems":2,"items":)";
  const std::string end = R"(}},"required":["q"]})";
  EXPECT_THAT(
      error(begin + R"({"const":1})" + end),
      HasSubstr("schema #/properties/q: minItems asks for 2 different items (uniqueItems), but items allows only "
                "1, so it allows no value"));
  EXPECT_EQ(error(begin + R"({"type":"boolean"})" + end), "");
  EXPECT_THAT(error(begin + R"({"type":"null"})" + end), HasSubstr("items allows only 1"));
  EXPECT_EQ(error(begin + R"({"type":"string","nullable":true})" + end), "");
  const char* kFlags = R"({"type":"array","uniqueItems":true,"items":{"type":["boolean","null"]}})";
  const Grammar flags = compiled(kFlags);
  EXPECT_TRUE(flags.notes().empty());
  EXPECT_TRUE(takes(kFlags, "[true,null,false]"));
  EXPECT_FALSE(takes(kFlags, "[true,true]"));
}

TEST(SchemaList, StrictRefusesByNameWhatCannotBeEnforced) {
  const auto error = [](const char* schema) { return test::error_of([&] { compiled(schema, true); }); };
  EXPECT_THAT(error(R"({"type":"array","items":{"type":"integer"},"uniqueItems":true})"), HasSubstr("uniqueItems"));
  EXPECT_THAT(error(R"({"type":"array","contains":{"type":"null"}})"), HasSubstr("contains"));
  EXPECT_THAT(error(R"({"type":"integer","multipleOf":123457})"), HasSubstr("multipleOf"));
  EXPECT_THAT(error(R"({"type":"string","pattern":"^(a)\\1$"})"), HasSubstr("pattern"));
  EXPECT_THAT(error(R"({"oneOf":[{"type":"integer"},{"type":"number"}]})"), HasSubstr("oneOf"));
  const char* tagged = R"({"oneOf":[{"properties":{"t":{"const":1}},"required":["t"]},
                                   {"properties":{"t":{"const":2}},"required":["t"]}]})";
  EXPECT_EQ(error(tagged), "");
  EXPECT_EQ(error(R"x({"type":"string","format":"unknown","x-a":1,"pattern":"^(?!a)"})x"), "");
  const Grammar loose = compiled(R"({"type":"string","pattern":"^(a)\\1$"})");
  ASSERT_EQ(loose.notes().size(), 1u);
  EXPECT_TRUE(loose.notes()[0].checked);
  const char* twice = R"({"type":"string","pattern":"^(a)\\1$"})";
  EXPECT_TRUE(takes(twice, "\"aa\""));
  EXPECT_FALSE(takes(twice, "\"ba\""));  // what the pattern is without the reference is enforced
  const Grammar possessive = compiled(R"({"type":"string","pattern":"^a++$"})");
  ASSERT_EQ(possessive.notes().size(), 1u);
  EXPECT_TRUE(possessive.notes()[0].checked);
  EXPECT_THAT(error(R"({"type":"string","pattern":"^a++$"})"), HasSubstr("pattern '^a++$' has a possessive repeat"));
  const char* atomic = R"({"type":"string","pattern":"^(?>a|ab)c$"})";
  EXPECT_TRUE(takes(atomic, "\"ac\""));
  EXPECT_FALSE(takes(atomic, "\"bc\""));  // what it is without the atomic group is enforced, and the rest checked
  WorkBudget budget("test");
  EXPECT_EQ(check_json("\"abc\"", atomic, budget).size(), 1u);
  EXPECT_EQ(check_json("\"ac\"", atomic, budget).size(), 0u);
  const Grammar unknown = compiled(R"({"type":"string","pattern":"^\\p{Nothing}$"})");
  ASSERT_EQ(unknown.notes().size(), 1u);
  EXPECT_FALSE(unknown.notes()[0].checked);
  EXPECT_THAT(unknown.notes()[0].why, HasSubstr("has the property \\p{Nothing}, which is not known here"));
  EXPECT_THAT(error(R"({"type":"string","pattern":"^\\p{Nothing}$"})"), HasSubstr("without strict nothing keeps it"));
  const char* fixed = R"({"type":"array","prefixItems":[{"type":"null"}],"unevaluatedItems":false})";
  EXPECT_TRUE(compiled(fixed).notes().empty());
  EXPECT_TRUE(takes(fixed, "[null]"));
  EXPECT_FALSE(takes(fixed, "[null,1]"));
  const char* apart = R"({"type":"array","allOf":[{"items":{"type":"null"}}],"unevaluatedItems":false})";
  ASSERT_EQ(compiled(apart).notes().size(), 1u);
  EXPECT_TRUE(compiled(apart).notes()[0].checked);
  EXPECT_TRUE(takes(apart, "[null,null]"));
}

// Each keyword's row, and the formats.
TEST(SchemaList, TheDocumentSaysWhatIsKept) {
  const std::string text = read_file(test::source("docs/STRUCTURED_OUTPUT.md"));
  const std::map<SchemaKeyword::Kept, std::string> words = {{SchemaKeyword::kEnforced, "enforced"},
                                                            {SchemaKeyword::kPartly, "enforced or checked"},
                                                            {SchemaKeyword::kChecked, "checked"}};
  for (const SchemaKeyword& keyword : schema_keywords()) {
    EXPECT_THAT(text, HasSubstr("| `" + std::string(keyword.name) + "` | " + words.at(keyword.kept) + " |"));
  }
  for (const std::string& format : enforced_formats()) {
    if (format.size() > 4 && format.starts_with("uuid")) continue;  // "`uuid1` to `uuid8`"
    EXPECT_THAT(text, HasSubstr("`" + format + "`"));
  }
}

}  // namespace
}  // namespace gemma4
