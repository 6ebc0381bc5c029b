#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "text/data_testing.h"
#include "text/schema/schema_keywords.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;

// Whether a value matches would depend on itself.
TEST(SchemaCycles, ASchemaThatIsPartOfItsOwnConditionIsRefused) {
  const auto error = [](const std::string& text) {
    const nlohmann::ordered_json root = read_json<nlohmann::ordered_json>(text);
    WorkBudget budget("test");
    SchemaReferences references(root, budget);
    return test::error_of([&] { check_cycles(root, references, budget); });
  };
  EXPECT_THAT(error(R"({"not":{"$ref":"#"}})"), HasSubstr("schema #: not refers back to the schema"));
  EXPECT_THAT(error(R"({"if":{"$ref":"#"},"then":{"type":"string"}})"), HasSubstr("schema #: if refers back"));
  EXPECT_THAT(error(R"({"if":{"type":"string"},"else":{"allOf":[{"$ref":"#"}]}})"), HasSubstr("else refers back"));
  EXPECT_THAT(error(R"({"oneOf":[{"type":"string"},{"$ref":"#"}]})"), HasSubstr("oneOf refers back"));
  EXPECT_THAT(error(R"({"dependentSchemas":{"a":{"$ref":"#"}}})"), HasSubstr("dependentSchemas refers back"));
  EXPECT_THAT(error(R"({"properties":{"a":{"$ref":"#/$defs/x"}},
                        "$defs":{"x":{"anyOf":[{"$ref":"#/$defs/y"}]},"y":{"not":{"$ref":"#/$defs/x"}}}})"),
              HasSubstr("schema #/$defs/y: not refers back"));
  // The edge that matters is not the one by which the cycle is found.
  EXPECT_THAT(error(R"({"$ref":"#/$defs/x","$defs":{"x":{"anyOf":[{"$ref":"#/$defs/y"},{"type":"null"}],
                        "not":{"$ref":"#/$defs/y"}},"y":{"anyOf":[{"$ref":"#/$defs/x"},{"type":"string"}]}}})"),
              HasSubstr("not refers back"));
  for (const char* good : {R"({"anyOf":[{"type":"string"},{"$ref":"#"}]})",                  // adds nothing
                           R"({"not":{"properties":{"a":{"$ref":"#"}},"required":["a"]}})",  // another value
                           R"({"properties":{"a":{"oneOf":[{"type":"null"},{"$ref":"#"}]}}})",
                           R"({"$defs":{"unused":{"not":{"$ref":"#/$defs/unused"}}},"type":"string"})",
                           R"({"type":"string","if":{"$ref":"#/$defs/x"},"then":{"$ref":"#/$defs/x"},
                               "$defs":{"x":{"minLength":2}}})"}) {
    EXPECT_EQ(error(good), "") << good;
  }
}

TEST(SchemaCycles, LongSchemasTakeLittleWorkAndNoStack) {
  std::string text = R"({"$ref":"#/$defs/a0","$defs":{)";
  constexpr int kMany = 2'000;
  for (int i = 0; i < kMany; ++i) {
    text += (i == 0 ? "\"a" : ",\"a") + std::to_string(i) + R"(":{"not":{"$ref":"#/$defs/a)" +
            std::to_string((i + 1) % kMany) + "\"}}";
  }
  const nlohmann::ordered_json root = read_json<nlohmann::ordered_json>(text + "}}");
  WorkBudget budget("test", {.steps = 30'000'000});
  SchemaReferences references(root, budget);
  EXPECT_THAT(test::error_of([&] { check_cycles(root, references, budget); }), HasSubstr("not refers back"));
}

}  // namespace
}  // namespace gemma4
