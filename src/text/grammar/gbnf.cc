// GBNF: name ::= "text" [class] . rule ( ) | * + ? {m,n}, and comments with #. As llama.cpp's grammars/README.md has
// it, without its tokens (<[1]>, <think>).
#include "text/grammar/grammar_reader.h"

namespace gemma4 {
namespace {

class GbnfParser {
 public:
  GbnfParser(std::string_view text, WorkBudget& budget) : in_(text, "#", budget) {}

  GrammarRules parse() {
    GrammarRules result;
    result.start = "root";
    for (in_.skip(); in_.more(); in_.skip()) {
      const std::string name = in_.name("-_");
      in_.skip();
      if (name.empty() || !in_.accept("::=")) in_.fail("a rule (name ::= ...) is missing");
      if (!result.rules.try_emplace(name, choice(0)).second) in_.fail("there are two rules " + name);
    }
    return result;
  }

 private:
  Expression choice(int depth) {
    if (depth > GrammarReader::kNestingMax) in_.fail("groups are nested too deep");
    Expression all;
    all.type = Expression::kChoice;
    do {
      all.operands.push_back(sequence(depth));
    } while (in_.accept("|"));
    return all;
  }

  // Ends before a |, a ) and the next rule.
  Expression sequence(int depth) {
    Expression all;
    for (in_.skip(); in_.more() && in_.peek() != '|' && in_.peek() != ')' && !is_rule(); in_.skip()) {
      Expression one = item(depth);
      for (in_.skip(); repeat(one); in_.skip()) {
      }
      all.operands.push_back(std::move(one));
    }
    return all;
  }

  bool is_rule() {
    const size_t begin = in_.position();
    const bool named = !in_.name("-_").empty();
    in_.skip();
    const bool result = named && in_.accept("::=");
    in_.back_to(begin);
    return result;
  }

  bool repeat(Expression& one) {
    uint32_t least = 0, most = kUnbounded;
    if (in_.accept("+")) {
      least = 1;
    } else if (in_.accept("?")) {
      most = 1;
    } else if (in_.accept("{")) {
      in_.skip();
      if (in_.peek() != ',') least = most = in_.number();
      in_.skip();
      if (in_.accept(",")) {
        in_.skip();
        most = in_.peek() == '}' ? kUnbounded : in_.number();
        in_.skip();
      }
      if (!in_.accept("}") || most < least) in_.fail("a repeat must be {m}, {m,} or {m,n} with m up to n");
    } else if (!in_.accept("*")) {
      return false;
    }
    one = repeated(std::move(one), least, most);
    return true;
  }

  Expression item(int depth) {
    Expression one;
    if (in_.accept("(")) {
      one = choice(depth + 1);
      if (!in_.accept(")")) in_.fail("a ( without its )");
    } else if (in_.accept("\"")) {
      one.type = Expression::kText;
      while (!in_.accept("\"")) {
        if (!in_.more() || in_.peek() == '\n') in_.fail("a text without its closing quote");
        one.text += in_.accept("\\") ? in_.escape() : in_.character();
      }
    } else if (in_.accept("[")) {
      one.type = Expression::kRegex;
      one.text = characters();
    } else if (in_.accept(".")) {
      one.type = Expression::kRegex;
      one.text = "[\\s\\S]";
    } else {
      one.type = Expression::kRule;
      one.text = in_.name("-_");
      if (one.text.empty()) in_.fail("'" + in_.character() + "' is not understood here");
    }
    return one;
  }

  // A class in brackets, as an expression of parse_regex().
  std::string characters() {
    std::string out = in_.accept("^") ? "[^" : "[";
    for (bool first = true; !in_.accept("]"); first = false) {
      if (!in_.more()) in_.fail("a [ without its ]");
      if (in_.peek() == '-' && !first && in_.peek(1) != ']') {
        in_.accept("-");
        out += '-';
        continue;
      }
      const std::string one = in_.accept("\\") ? in_.escape() : in_.character();
      if (std::string_view("\\]-[^").find(one) != std::string_view::npos) out += '\\';
      out += one;
    }
    return out + "]";
  }

  GrammarReader in_;
};

}  // namespace

GrammarRules parse_gbnf(std::string_view text, WorkBudget& budget) { return GbnfParser(text, budget).parse(); }

}  // namespace gemma4
