// TextGrammar: plain text that a grammar describes, in one of two notations: GBNF (llama.cpp's `grammar`), whose first
// rule to match is `root`, and a subset of Lark's, whose first rule is `start`. The notation is recognised: GBNF has
// `::=`. What is not understood is an Error that names it and its line. Nesting is bounded; nothing recurses on the
// length of a grammar.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar/lexical.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

// Nodes for the texts that a regular expression matches as a whole.
int expression_nodes(PushdownAutomaton& automaton, std::string_view expression, int next);

// The right side of a rule.
struct Expression {
  enum Type { kText, kRegex, kRule, kSequence, kChoice, kRepeat } type = kSequence;
  std::string text;  // kText: the text. kRegex: an expression as parse_regex() takes it. kRule: a name
  std::vector<Expression> operands;
  uint32_t least = 0, most = 0;  // kRepeat
  bool is_terminal() const { return type == kText || type == kRegex; }
};

struct GrammarRules {
  std::map<std::string, Expression> rules;
  std::string start;
  std::vector<std::string> ignored;    // rules: texts that may stand after each terminal of another rule
  std::vector<std::string> terminals;  // names of rules that are terminals: nothing is ignored within them
};

GrammarRules parse_gbnf(std::string_view text, WorkBudget& budget);
GrammarRules parse_lark(std::string_view text, WorkBudget& budget);

class TextGrammar {
 public:
  enum Notation { kRecognise, kLark };
  TextGrammar(PushdownAutomaton& automaton, std::string_view grammar, Notation notation = kRecognise);
  int rule();  // the start

 private:
  int nodes(const Expression& expression, bool in_terminal, int next);
  void check(int start, const PushdownAutomaton::Mark& from);
  bool may_be_empty(const Expression& expression);
  void find_empty_rules();

  PushdownAutomaton& a_;
  LexicalGrammar text_;
  GrammarRules grammar_;
  std::map<std::string, int> numbers_;
  std::map<std::string, bool> empty_, terminal_;  // rules
  std::map<std::string, bool> empty_text_;        // expressions that match an empty text
  int ignored_ = -1;  // a rule
};

}  // namespace gemma4
