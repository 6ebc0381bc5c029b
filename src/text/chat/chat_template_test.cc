#include "text/chat/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/data_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;

std::string demo_template() { return read_file(test::source("models/demo/chat_template.jinja")); }

std::string with(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

// The demo's template with what only July's does, as its text has it.
std::string july_template() {
  std::string text = with(demo_template(), "{%- if value is string -%}",
                          "{%- if value is none -%}{{- 'null' -}}{%- elif value is string -%}");
  text = with(text, "{{- bos_token -}}",
              "{{- bos_token -}}{%- set preserve_thinking = preserve_thinking | default(false) -%}");
  text = with(text, "{%- elif not at.answered", "{%- elif continues_into_next -%}\n{%- elif not at.answered");
  return text + "{%- if at.answered and enable_thinking -%}\n    {{- '<|channel>thought\\n' -}}\n{%- endif -%}";
}

TEST(ChatTemplate, TheDemoCarriesThatOfSpring) {
  const TemplateMatch match = recognise_template(demo_template());
  EXPECT_EQ(match.closest, ChatTemplate::kSpring);
  EXPECT_EQ(match.difference, "");
}

TEST(ChatTemplate, KnowsJulysByWhatItDoes) {
  const std::string text = july_template();
  const TemplateMatch match = recognise_template(text);
  EXPECT_EQ(match.closest, ChatTemplate::kJuly);
  EXPECT_EQ(match.difference, "");
  // Comments, white space and kinds of quotes do not matter.
  std::string other = "{#- You are a pirate -#}\n";
  for (const char c : text) other += c == '\n' ? std::string("\r\n  ") : std::string(1, c);
  other = with(other, "{{- 'null' -}}", "{{ \"null\" }}");
  EXPECT_EQ(recognise_template(other).difference, "");
  EXPECT_EQ(recognise_template(other).closest, ChatTemplate::kJuly);
  // Nor does what it says when it fails.
  const std::string failing = text + "{{- raise_exception('arrr, no pirate' \"or so\") -}}";
  EXPECT_EQ(recognise_template(failing).difference, "");
}

TEST(ChatTemplate, OthersAreSaidToDiffer) {
  const auto difference = [](const std::string& text) { return recognise_template(text).difference; };
  EXPECT_THAT(difference(july_template() + "You are a pirate."), HasSubstr("it writes 'You'"));
  EXPECT_THAT(difference(july_template() + "{{- 'pirate' -}}"), HasSubstr("it writes 'pirate'"));
  EXPECT_THAT(difference(july_template() + "{%- set system = 'arrr' -%}"), HasSubstr("it writes 'arrr'"));
  EXPECT_THAT(difference(with(july_template(), "continues_into_next", "at.open")),
              HasSubstr("lacks continues_into_next"));
  // A small model's: no empty thought.
  EXPECT_THAT(difference(with(demo_template(), "{{ '<|channel>thought\\n<channel|>' }}", "")),
              HasSubstr("it lacks '<|channel>thought<channel|>'"));
  EXPECT_EQ(recognise_template(demo_template() + "{{ 'arrr' }}").closest, ChatTemplate::kSpring);
  for (const char* text : {"", "{{ bos_token }}", "{%", "{{ '", "{# open", "{{ '\\", "<start_of_turn>user\n{{ x }}"}) {
    EXPECT_THAT(difference(text), HasSubstr("it lacks ")) << text;
    EXPECT_EQ(recognise_template(text).closest, ChatTemplate::kJuly);
  }
  EXPECT_THAT(difference(std::string(2 << 20, 'x')), HasSubstr("longer"));
}

TEST(ChatTemplate, Names) {
  for (const ChatTemplate one : {ChatTemplate::kSpring, ChatTemplate::kJuly}) {
    EXPECT_EQ(template_named(template_name(one)), one);
  }
  EXPECT_EQ(template_named("autumn"), std::nullopt);
}

}  // namespace
}  // namespace gemma4
