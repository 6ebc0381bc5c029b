#include "text/chat/tool_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>

#include "text/chat/chat.h"
#include "text/data_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// What the model reads of a tool with these parameters; a string is written 'so' here.
std::string declared(const std::string& parameters) {
  const Message user = Message::text("user", "q");
  std::string text = to_text(render_chat(std::span(&user, 1), R"([{"name":"f","parameters":)" + parameters + "}]", {}));
  const std::string quote = "<|\"|>";
  for (size_t at; (at = text.find(quote)) != std::string::npos;) text.replace(at, quote.size(), "'");
  const size_t begin = text.find(",parameters:{") + 13;
  return text.substr(begin, text.find("}<tool|>") - begin - 1);
}

// The same of one property, x.
std::string property(const std::string& schema, const std::string& definitions = "{}") {
  const std::string text =
      declared(R"({"type":"object","properties":{"x":)" + schema + R"(},"$defs":)" + definitions + "}");
  EXPECT_TRUE(text.starts_with("properties:{x:{") && text.ends_with("}},type:'OBJECT'")) << text;
  return text.substr(15, text.size() - 15 - 16);
}

TEST(ToolSchema, WhatTheTemplateWrites) {
  EXPECT_EQ(property(R"({"type":"object","extra":{"type":"string"}})"),
            "properties:{extra:{type:'STRING'}},type:'OBJECT'");
  EXPECT_EQ(property(R"({"type":"array","items":{"type":"string","enum":["a"],"maxLength":3}})"),
            "items:{enum:['a'],maxLength:3,type:'STRING'},type:'ARRAY'");
  EXPECT_EQ(property(R"({"type":"integer","minimum":3,"default":4})"), "type:'INTEGER'");
  EXPECT_EQ(property(R"({"type":"array","items":{"type":"array","items":{"type":"string"}}})"),
            "items:{items:{'type':'string'},type:'ARRAY'},type:'ARRAY'");
}

TEST(ToolSchema, TypesThatMayBeNull) {
  EXPECT_EQ(property(R"({"type":["string","null"],"description":"d"})"), "description:'d',nullable:true,type:'STRING'");
  EXPECT_EQ(property(R"({"anyOf":[{"type":"string","enum":["a"]},{"type":"null"}],"description":"d"})"),
            "description:'d',enum:['a'],nullable:true,type:'STRING'");
  EXPECT_EQ(property(R"({"type":["string","null"],"enum":["a",null]})"), "enum:['a'],nullable:true,type:'STRING'");
  EXPECT_EQ(property(R"({"enum":["a","b",null]})"), "enum:['a','b'],nullable:true,type:'STRING'");
  EXPECT_EQ(property(R"({"oneOf":[{"type":"null"},{"type":"array","items":{"type":["integer","null"]}}]})"),
            "items:{nullable:true,type:'INTEGER'},nullable:true,type:'ARRAY'");
  EXPECT_EQ(property(R"({"type":"null"})"), "type:'NULL'");
  EXPECT_EQ(property(R"({"nullable":true,"type":"string"})"), "nullable:true,type:'STRING'");
}

TEST(ToolSchema, SeveralTypes) {
  EXPECT_EQ(property(R"({"type":["string","integer","null"]})"), "nullable:true,type:['STRING','INTEGER']");
  EXPECT_EQ(property(R"({"anyOf":[{"type":"integer"},{"type":"string","format":"date"}]})"),
            "type:['INTEGER','STRING']");
  EXPECT_EQ(property(R"({"type":"array","items":{"type":["string","integer"]}})"),
            "items:{type:['STRING','INTEGER']},type:'ARRAY'");
  EXPECT_EQ(property(R"({"anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"}}],"description":"d"})"),
            "description:'d',anyOf:[{type:'STRING'},{items:{type:'STRING'},type:'ARRAY'}],type:['STRING','ARRAY']");
}

TEST(ToolSchema, References) {
  const std::string definitions =
      R"({"Mode":{"type":"string","enum":["a","b"]},"a/b c":{"type":"boolean"},"Cat":{"type":"object","properties":)"
      R"({"kind":{"const":"cat"},"mode":{"$ref":"#/$defs/Mode"}},"required":["kind"]},"Dog":{"type":"object",)"
      R"("properties":{"kind":{"const":"dog"}}}})";
  EXPECT_EQ(property(R"({"$ref":"#/$defs/Mode"})", definitions), "enum:['a','b'],type:'STRING'");
  EXPECT_EQ(property(R"({"$ref":"#/$defs/Mode","description":"d"})", definitions),
            "description:'d',enum:['a','b'],type:'STRING'");
  EXPECT_EQ(property(R"({"$ref":"#/$defs/a~1b%20c"})", definitions), "type:'BOOLEAN'");
  EXPECT_EQ(property(R"({"type":"array","items":{"$ref":"#/$defs/Mode"}})", definitions),
            "items:{enum:['a','b'],type:'STRING'},type:'ARRAY'");
  EXPECT_EQ(property(R"({"anyOf":[{"$ref":"#/$defs/Mode"},{"type":"null"}]})", definitions),
            "enum:['a','b'],nullable:true,type:'STRING'");
  EXPECT_EQ(
      property(R"({"allOf":[{"$ref":"#/$defs/Dog"},{"properties":{"age":{"type":"integer"}},"required":["age"]}]})",
               definitions),
      "properties:{age:{type:'INTEGER'},kind:{enum:['dog'],type:'STRING'}},required:['age'],type:'OBJECT'");
  EXPECT_EQ(
      property(R"({"oneOf":[{"$ref":"#/$defs/Cat"},{"$ref":"#/$defs/Dog"}],"discriminator":{"propertyName":"kind"}})",
               definitions),
      "anyOf:[{properties:{kind:{enum:['cat'],type:'STRING'},mode:{enum:['a','b'],type:'STRING'}},"
      "required:['kind'],type:'OBJECT'},{properties:{kind:{enum:['dog'],type:'STRING'}},type:'OBJECT'}],"
      "type:'OBJECT'");
  EXPECT_EQ(declared(R"({"$ref":"#/$defs/A","$defs":{"A":{"type":"object","properties":{"n":{"type":"number"}}}}})"),
            "properties:{n:{type:'NUMBER'}},type:'OBJECT'");
}

TEST(ToolSchema, EverySchemaHasAType) {
  EXPECT_EQ(property("{}"), "type:'ANY'");
  EXPECT_EQ(property("true"), "type:'ANY'");
  EXPECT_EQ(property(R"({"properties":{"a":{"minLength":1}}})"), "properties:{a:{type:'STRING'}},type:'OBJECT'");
  EXPECT_EQ(property(R"({"const":5})"), "type:'INTEGER'");
  EXPECT_EQ(property(R"({"$ref":"https://example.com/x"})"), "description:'x',type:'ANY'");
  EXPECT_EQ(property(R"({"$ref":"#/$defs/none"})"), "description:'none',type:'ANY'");
  // Members that are no schemas are no properties either.
  EXPECT_EQ(property(R"({"type":"object","title":"T","additionalProperties":false,"default":{}})"),
            "properties:{},type:'OBJECT'");
  EXPECT_EQ(property(R"({"type":"object","title":"T","additionalProperties":{"type":["integer","null"]}})"),
            "properties:{additionalProperties:{nullable:true,type:'INTEGER'}},type:'OBJECT'");
}

TEST(ToolSchema, ReferencesIntoThemselvesEnd) {
  const std::string node = R"({"Node":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/Node"},)"
                           R"({"type":"null"}]},"list":{"type":"array","items":{"$ref":"#/$defs/Node"}}}}})";
  EXPECT_EQ(property(R"({"$ref":"#/$defs/Node"})", node),
            "properties:{list:{items:{description:'Node (see above)',type:'OBJECT'},type:'ARRAY'},"
            "next:{description:'Node (see above)',nullable:true,properties:{},type:'OBJECT'}},type:'OBJECT'");
  EXPECT_EQ(property(R"({"$ref":"#/$defs/A"})", R"({"A":{"$ref":"#/$defs/B"},"B":{"$ref":"#/$defs/A"}})"),
            "type:'ANY'");
  EXPECT_EQ(property(R"({"$ref":"#"})"), "description:'the whole (see above)',properties:{},type:'OBJECT'");
  EXPECT_EQ(property(R"({"$ref":"#/properties/x"})"), "type:'ANY'");
}

// Each definition names the next one twice: 2^60 schemas, if all were written out.
TEST(ToolSchema, ReferencesThatMultiplyAreBounded) {
  std::string definitions = "{";
  for (int i = 0; i < 60; ++i) {
    const std::string next = "{\"$ref\":\"#/$defs/d" + std::to_string(i + 1) + "\"}";
    definitions +=
        "\"d" + std::to_string(i) + R"(":{"type":"object","properties":{"a":)" + next + ",\"b\":" + next + "}},";
  }
  definitions += R"("d60":{"type":"string"}})";
  const std::clock_t start = std::clock();  // the processor's time: others may use it, too
  const std::string text = property(R"({"$ref":"#/$defs/d0"})", definitions);
  EXPECT_LT(std::clock() - start, 40 * CLOCKS_PER_SEC);
  EXPECT_LT(text.size(), 2'000'000u);
  EXPECT_THAT(text, HasSubstr("{description:'d"));
  // A long value that is named many times counts by its length.
  std::string names;
  for (int i = 0; i < 2000; ++i) names += (i ? ",\"p" : "\"p") + std::to_string(i) + R"(":{"$ref":"#/$defs/long"})";
  const std::string many =
      declared(R"({"type":"object","properties":{)" + names + R"(},"$defs":{"long":{"type":"string","description":")" +
               std::string(20'000, 'x') + "\"}}}");
  EXPECT_LT(many.size(), 1'000'000u);
  EXPECT_THAT(many, Not(HasSubstr("''")));
}

}  // namespace
}  // namespace gemma4
