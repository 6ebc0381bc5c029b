#include "text/grammar/text_grammar.h"

#include <algorithm>

#include "base/check.h"
#include "text/grammar/grammar_reader.h"

namespace gemma4 {
namespace {

constexpr size_t kExpressionStatesMax = 4000;
constexpr uint32_t kIgnoredMax = 8;  // ignored texts in a row, so that no model can write them for ever

// The alternatives of a rule's right side that begin with the rule itself, without that beginning, and the others.
// Lark's grammars are written so: sum: product | sum "+" product. That is product ("+" product)*.
Expression without_left_recursion(const std::string& name, Expression all) {
  const auto begins_with_itself = [&](const Expression& one) {
    const Expression& first = one.type == Expression::kSequence && !one.operands.empty() ? one.operands[0] : one;
    return first.type == Expression::kRule && first.text == name;
  };
  if (all.type != Expression::kChoice || std::ranges::none_of(all.operands, begins_with_itself)) return all;
  Expression first, rest, result;
  first.type = rest.type = Expression::kChoice;
  for (Expression& one : all.operands) {
    if (!begins_with_itself(one)) {
      first.operands.push_back(std::move(one));
    } else if (one.type == Expression::kSequence && one.operands.size() > 1) {  // else it adds nothing
      one.operands.erase(one.operands.begin());
      rest.operands.push_back(std::move(one));
    }
  }
  if (first.operands.empty()) throw Error("grammar: the rule " + name + " never comes to an end");
  if (rest.operands.empty()) return first;
  result.operands.push_back(std::move(first));
  result.operands.push_back(repeated(std::move(rest), 0, kUnbounded));
  return result;
}

}  // namespace

int expression_nodes(PushdownAutomaton& automaton, std::string_view expression, int next) {
  LexicalGrammar text(automaton, Syntax::kPlain);
  Regex found{Regex::kSequence};
  found.operands.push_back({Regex::kBegin});
  found.operands.push_back(parse_regex(expression, "regular expression", automaton.budget()));
  found.operands.push_back({Regex::kEnd});
  Regex all{Regex::kChoice}, whole;
  all.operands.push_back(std::move(found));
  if (as_whole_string(all, whole)) return text.regex(whole, next);
  const auto set = StringSet::make({{&all}, {}}, automaton.budget());
  const auto dfa = set == nullptr ? std::nullopt : set->dfa(kExpressionStatesMax);
  if (!dfa) throw Error("the regular expression takes too many states with its lookaheads and anchors");
  if (dfa->states.empty()) throw Error("the regular expression matches no text");
  return text.strings_of(*dfa, 0, kNoLimit, next);
}

TextGrammar::TextGrammar(PushdownAutomaton& automaton, std::string_view grammar, Notation notation)
    : a_(automaton), text_(automaton, Syntax::kPlain) {
  const bool gbnf = notation == kRecognise && grammar.find("::=") != std::string_view::npos;
  grammar_ = gbnf ? parse_gbnf(grammar, a_.budget()) : parse_lark(grammar, a_.budget());
  if (!grammar_.rules.contains(grammar_.start)) throw Error("grammar: there is no rule " + grammar_.start);
  for (const std::string& name : grammar_.terminals) terminal_[name] = true;
  for (auto& [name, expression] : grammar_.rules) {
    expression = without_left_recursion(name, std::move(expression));
  }
}

bool TextGrammar::may_be_empty(const Expression& expression) {
  const auto empty = [&](const Expression& operand) { return may_be_empty(operand); };
  const std::vector<Expression>& all = expression.operands;
  a_.budget().charge(2);
  switch (expression.type) {
    case Expression::kText:
      return expression.text.empty();
    case Expression::kRegex: {
      const auto [known, is_new] = empty_text_.try_emplace(expression.text);
      if (is_new) known->second = parse_regex(expression.text, "regular expression", a_.budget()).may_be_empty();
      return known->second;
    }
    case Expression::kRule:
      return empty_.contains(expression.text);
    case Expression::kSequence:
      return std::all_of(all.begin(), all.end(), empty);
    case Expression::kChoice:
      return std::any_of(all.begin(), all.end(), empty);
    case Expression::kRepeat:
      return expression.least == 0 || empty(all[0]);
  }
  return false;
}

void TextGrammar::find_empty_rules() {
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [name, expression] : grammar_.rules) {
      if (empty_.contains(name) || !may_be_empty(expression)) continue;
      empty_[name] = changed = true;
    }
  }
}

// With the names of the rules in its sentences.
void TextGrammar::check(int start, const PushdownAutomaton::Mark& from) {
  const auto name_of = [&](const auto& is_it) {
    const auto found = std::ranges::find_if(numbers_, [&](const auto& rule) { return is_it(rule.second); });
    return found == numbers_.end() ? grammar_.start : found->first;
  };
  try {
    a_.check(start, from);
  } catch (const LeftRecursion& error) {
    throw Error("grammar: the rule " + name_of([&](int rule) { return rule == error.rule; }) +
                " begins with itself by way of others (left recursion): write it as a repeat");
  } catch (const EndlessGrammar& error) {
    // Rather one that a rule without end needs: the start is without end by its fault.
    const auto is_inner = [&](int rule) { return rule != start && std::ranges::binary_search(error.rules, rule); };
    throw Error("grammar: no text that the rule " + name_of(is_inner) + " allows comes to an end");
  }
}

int TextGrammar::rule() {
  const PushdownAutomaton::Mark before = a_.mark();
  find_empty_rules();
  for (const auto& [name, expression] : grammar_.rules) numbers_[name] = a_.new_rule();
  if (!grammar_.ignored.empty()) {
    std::vector<int> choices;
    const int end = a_.finish();
    for (const std::string& name : grammar_.ignored) choices.push_back(a_.call(numbers_.at(name), end));
    ignored_ = a_.new_rule();
    a_.set_rule(ignored_, a_.loop(a_.split(std::move(choices)), 0, kIgnoredMax, a_.finish()));
  }
  for (const auto& [name, expression] : grammar_.rules) {
    a_.set_rule(numbers_.at(name), nodes(expression, terminal_.contains(name), a_.finish()));
  }
  const int start = numbers_.at(grammar_.start);
  check(start, before);
  return start;
}

int TextGrammar::nodes(const Expression& expression, bool in_terminal, int next) {
  const auto skipping = [&](int after) { return in_terminal || ignored_ < 0 ? after : a_.call(ignored_, after); };
  const std::vector<Expression>& all = expression.operands;
  switch (expression.type) {
    case Expression::kText:
      return a_.literal(expression.text, skipping(next));
    case Expression::kRegex:
      return expression_nodes(a_, expression.text, skipping(next));
    case Expression::kRule: {
      const auto number = numbers_.find(expression.text);
      if (number == numbers_.end()) throw Error("grammar: there is no rule " + expression.text);
      return a_.call(number->second, terminal_.contains(expression.text) ? skipping(next) : next);
    }
    case Expression::kSequence:
      for (size_t i = all.size(); i-- > 0;) next = nodes(all[i], in_terminal, next);
      return next;
    case Expression::kChoice: {
      std::vector<int> choices;
      for (const Expression& one : all) choices.push_back(nodes(one, in_terminal, next));
      return a_.split(std::move(choices));
    }
    case Expression::kRepeat:
      if (expression.least == 0 && expression.most == kUnbounded) {
        const int again = a_.reserve();
        a_.set(again, a_.split({next, nodes(all[0], in_terminal, again)}));
        return again;
      }
      return a_.loop(nodes(all[0], in_terminal, a_.finish()), may_be_empty(all[0]) ? 0 : expression.least,
                     expression.most, next);
  }
  return next;
}

}  // namespace gemma4
