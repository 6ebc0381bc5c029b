#include "text/grammar/text_grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/data_testing.h"
#include "text/grammar/grammar.h"

namespace gemma4 {
namespace {

using test::demo;
using test::error_of;
using ::testing::HasSubstr;

const Grammar::Vocabulary& text_vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(demo());
  return instance;
}

GrammarOptions text_options() { return {{demo().require("<turn|>")}}; }

Grammar grammar_text(const std::string& text) { return Grammar::text_grammar(text_vocabulary(), text, text_options()); }

bool derives(Grammar grammar, const std::string& text) {
  for (const int32_t id : demo().encode(text, false)) {
    if (!grammar.advance(id)) return false;
  }
  return grammar.complete();
}

constexpr const char* kArithmetic = R"x(# sums
root ::= sum "\n"?
sum  ::= term (("+" | "-") term)*   # left to right
term ::= number |
         "(" sum ")"
number ::= [1-9] [0-9]{
  0, 2} | "0x" [0-9a-f]+ | "\u00e9" . [^a-z\]-]
)x";

TEST(TextGrammar, Gbnf) {
  const Grammar grammar = grammar_text(kArithmetic);
  for (const char* good : {"1", "12+(3-456)\n", "0xff+9", "\xc3\xa9zZ", "(((7)))"})
    EXPECT_TRUE(derives(grammar, good)) << good;
  for (const char* bad : {"", "1+", "1234", "01", "(1", "0xg", "\xc3\xa9za", "\xc3\xa9z]"}) {
    EXPECT_FALSE(derives(grammar, bad)) << bad;
  }
  EXPECT_TRUE(derives(grammar_text("root ::= (\"a\"? b*)* \"c\"\nb ::= \"\" | \"b\""), "abbac"));
}

TEST(TextGrammar, ClassesAndExpressionsRepeatAsOftenAsTheyMust) {
  const auto derived = [](const char* grammar, const char* text) { return derives(grammar_text(grammar), text); };
  EXPECT_TRUE(derived("root ::= \"a\" [0-9]{3}", "a123"));
  EXPECT_FALSE(derived("root ::= \"a\" [0-9]{3}", "a12"));
  EXPECT_FALSE(derived("root ::= [0-9]+ \"x\"", "x"));
  EXPECT_FALSE(derived("root ::= .{2}", "a"));
  EXPECT_FALSE(derived("start: (/[a-c]/ \"x\"?)~2..3", "ax"));
  EXPECT_TRUE(derived("start: (/[a-c]/ \"x\"?)~2..3", "axb"));
  EXPECT_TRUE(derived("start: (/[a-c]*/)~2 \"!\"", "!"));  // empty texts count, too
}

TEST(TextGrammar, Lark) {
  const Grammar grammar = grammar_text(R"x(
start: pair ("," pair)*   // a list
?pair: NAME ":" value -> a_pair
value: NUMBER | ESCAPED_STRING | "true"i
     | "[" [value ("," value)~0..2] "]"
NAME: LETTER ("a".."z" | /[0-9_]/)*
%import common.LETTER
%import common (NUMBER, ESCAPED_STRING, WS)
%ignore WS
)x");
  for (const char* good : {"a:1", "a : 1.5 , b2:\"x\"", "k:TRUE", "k:[1,2,\"\"]", "k:[]"}) {
    EXPECT_TRUE(derives(grammar, good)) << good;
  }
  for (const char* bad : {"", "a:", "a b:1", "2:1", "k:[1,2,3,4]", "k:truth"})
    EXPECT_FALSE(derives(grammar, bad)) << bad;
}

// As Lark's own examples are written: outlines' grammar of arithmetic.
TEST(TextGrammar, RulesThatBeginWithThemselvesAreRepeats) {
  const Grammar grammar = grammar_text(R"x(
?start: sum
?sum: product | sum "+" product -> add | sum "-" product -> sub | sum
?product: atom | product "*" atom -> mul
?atom: NUMBER | "-" atom | "(" sum ")"
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
)x");
  for (const char* good : {"1", "1 - 2+3*4", "-(1*2*3) - 4"}) EXPECT_TRUE(derives(grammar, good)) << good;
  for (const char* bad : {"", "+1", "1 2", "1**2", "(1"}) EXPECT_FALSE(derives(grammar, bad)) << bad;
  EXPECT_TRUE(derives(grammar_text("root ::= root \"a\" | \"b\" | root"), "baa"));
}

// As guidance writes them.
TEST(TextGrammar, LarkOfLlguidance) {
  const auto error = [](const std::string& text) { return error_of([&] { grammar_text(text); }); };
  const Grammar grammar = grammar_text(R"x(%llguidance {}

start: "n=" answer " and " b[c]
answer[capture]: ANSWER
ANSWER: /[0-9]+[.]/
b[capture]: B

B: "a"
     | "b"
c: /(?s:.*)/ | /X.\./s
)x");
  for (const char* good : {"n=12. and a", "n=0. and b\n x\n"}) EXPECT_TRUE(derives(grammar, good)) << good;
  for (const char* bad : {"n=12 and a", "n=12. and", "12. and a"}) EXPECT_FALSE(derives(grammar, bad)) << bad;
  EXPECT_TRUE(derives(grammar_text("start: /X.\\./s"), "X\n."));
  EXPECT_FALSE(derives(grammar_text("start: /X.\\./s"), "X\nX"));
  EXPECT_FALSE(derives(grammar_text("start: /X./"), "X\n"));
  EXPECT_THAT(error("start: a\na[capture, max_tokens=60, stop=\",\"]: \"x\""), HasSubstr("attribute max_tokens"));
  EXPECT_THAT(error("start: a\na[stop=/b/]: \"x\""), HasSubstr("line 2: the attribute stop"));
  EXPECT_THAT(error("%llguidance {\"no_forcing\": true}\nstart: \"a\""), HasSubstr("options of %llguidance"));
  EXPECT_THAT(error("start: %json {}"), HasSubstr("%json is not supported in a grammar"));
}

TEST(TextGrammar, ExpressionsAndChoices) {
  const auto regex = [](const char* text) { return Grammar::regex(text_vocabulary(), text, text_options()); };
  EXPECT_TRUE(derives(regex("a|bc"), "bc"));
  EXPECT_FALSE(derives(regex("a|bc"), "abc"));  // as a whole
  EXPECT_TRUE(derives(regex("^\"[a-c]+\"$"), "\"ab\""));
  EXPECT_TRUE(derives(regex("(?!ab)[a-c]{2}"), "ac"));
  EXPECT_FALSE(derives(regex("(?!ab)[a-c]{2}"), "ab"));
  EXPECT_THAT(error_of([&] { regex("(a)\\1"); }), HasSubstr("refers back"));
  EXPECT_THAT(error_of([&] { regex("(a"); }), HasSubstr("without its )"));
  EXPECT_THAT(error_of([&] { regex("a(?=b)c"); }), HasSubstr("matches no text"));
  const Grammar choice = Grammar::choice(text_vocabulary(), {"yes", "yes, of course", "\xc3\xa9"}, text_options());
  for (const char* good : {"yes", "yes, of course", "\xc3\xa9"}) EXPECT_TRUE(derives(choice, good)) << good;
  for (const char* bad : {"", "ye", "no"}) EXPECT_FALSE(derives(choice, bad)) << bad;
  EXPECT_THAT(error_of([&] { Grammar::choice(text_vocabulary(), {}, text_options()); }),
              HasSubstr("nothing to choose"));
}

TEST(TextGrammar, FaultsAreSaidWithTheirLine) {
  const auto error = [](const std::string& text) { return error_of([&] { grammar_text(text); }); };
  EXPECT_THAT(error("root ::= \"a\"\nb ::= [a"), HasSubstr("line 2: a [ without its ]"));
  EXPECT_THAT(error("root ::= b"), HasSubstr("there is no rule b"));
  EXPECT_THAT(error("a ::= \"a\""), HasSubstr("there is no rule root"));
  EXPECT_THAT(error("root ::= root \"a\""), HasSubstr("the rule root never comes to an end"));
  EXPECT_THAT(error("root ::= a \"a\" | \"b\"\na ::= root"), HasSubstr("left recursion"));
  EXPECT_THAT(error("root ::= e root \"a\" | \"b\"\ne ::= \"\" | \"x\""), HasSubstr("left recursion"));
  EXPECT_THAT(error("root ::= \"c\" x\nx ::= y \"a\" | \"b\"\ny ::= x"), HasSubstr("the rule x begins with itself"));
  EXPECT_THAT(error("root ::= \"a\" root"), HasSubstr("no text that the rule root allows comes to an end"));
  EXPECT_THAT(error("start: \"a\" b\nb: \"b\" b"), HasSubstr("no text that the rule b allows comes to an end"));
  EXPECT_THAT(error("start: \"a\"~1..999999999"),
              HasSubstr("line 1: the number of repeats 999999999 is above 99999, the most that is supported"));
  EXPECT_THAT(error("start: \"a\"~x"), HasSubstr("a number of repeats is missing"));
  EXPECT_TRUE(derives(grammar_text("start: \"a\" ~ 1 .. 2"), "aa"));
  EXPECT_THAT(error("start: \"ab\"..\"c\""), HasSubstr("from one character to another, as \"a\"..\"z\", but 'ab' has"));
  EXPECT_THAT(error("start: \"a\"..\"\""), HasSubstr("but '' is none"));
  EXPECT_THAT(error("start: \"c\"..\"a\""), HasSubstr("the range 'c'..'a' ends before it begins"));
  EXPECT_TRUE(derives(grammar_text("start: \"\\x41\"..\"\u00e9\""), "\u00c9"));
  EXPECT_THAT(error("root ::= " + std::string(5000, '(')), HasSubstr("nested too deep"));
  EXPECT_THAT(error("root ::= <[1]>"), HasSubstr("'<' is not understood"));
  EXPECT_THAT(error("start: \"a\"\n%declare X"), HasSubstr("line 2: %declare is not supported"));
  EXPECT_THAT(error("start: \"a\"\nstart: \"b\""), HasSubstr("two rules start"));
  EXPECT_THAT(error("%import python.NAME\nstart: NAME"), HasSubstr("common"));
  EXPECT_THAT(error("start: /a"), HasSubstr("closing /"));
  EXPECT_TRUE(derives(grammar_text("root ::= root | \"a\""), "a"));  // adds nothing
}

}  // namespace
}  // namespace gemma4
