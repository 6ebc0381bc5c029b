// A subset of Lark's notation: rules and terminals with "text", "a".."z", /expression/, ( ), [ ], |, * + ?, ~ n..m, and
// -> aliases, which change nothing here; %ignore, and %import of the common terminals. As Lark's grammar reference has
// it. Of what llguidance adds (its docs/syntax.md), what guidance writes: %llguidance {}, name[capture], /(?s:...)/.
#include <map>

#include "text/grammar/grammar_reader.h"

namespace gemma4 {
namespace {

const std::map<std::string, std::string>& common_terminals() {
  static const std::map<std::string, std::string> kTerminals = [] {
    const std::string number = "[0-9]+(\\.[0-9]*)?|\\.[0-9]+", exponent = "([eE][+-]?[0-9]+)?";
    return std::map<std::string, std::string>{{"DIGIT", "[0-9]"},
                                              {"HEXDIGIT", "[0-9a-fA-F]"},
                                              {"INT", "[0-9]+"},
                                              {"SIGNED_INT", "[+-]?[0-9]+"},
                                              {"DECIMAL", "[0-9]+\\.[0-9]*|\\.[0-9]+"},
                                              {"FLOAT", "[0-9]+[eE][+-]?[0-9]+|([0-9]+\\.[0-9]*|\\.[0-9]+)" + exponent},
                                              {"NUMBER", "(" + number + ")" + exponent},
                                              {"SIGNED_NUMBER", "[+-]?(" + number + ")" + exponent},
                                              {"ESCAPED_STRING", "\"([^\"\\\\\\n]|\\\\[^\\n])*\""},
                                              {"LCASE_LETTER", "[a-z]"},
                                              {"UCASE_LETTER", "[A-Z]"},
                                              {"LETTER", "[A-Za-z]"},
                                              {"WORD", "[A-Za-z]+"},
                                              {"CNAME", "[A-Za-z_][A-Za-z_0-9]*"},
                                              {"WS_INLINE", "[ \\t]+"},
                                              {"WS", "[ \\t\\f\\r\\n]+"},
                                              {"CR", "\\r"},
                                              {"LF", "\\n"},
                                              {"NEWLINE", "(\\r?\\n)+"}};
  }();
  return kTerminals;
}

Expression regex_of(std::string text) {
  Expression one;
  one.type = Expression::kRegex;
  one.text = std::move(text);
  return one;
}

// The expression with its dots meaning any character.
std::string with_dots_for_all(std::string_view text) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '[' || c == ']') in_class = c == '[';
    if (c == '.' && !in_class) {
      out += "[\\s\\S]";
    } else {
      out += c;
    }
    if (c == '\\' && i + 1 < text.size()) out += text[++i];
  }
  return out;
}

class LarkParser {
 public:
  LarkParser(std::string_view text, WorkBudget& budget) : in_(text, "//", budget) {}

  GrammarRules parse() {
    result_.start = "start";
    for (in_.skip(); in_.more(); in_.skip()) {
      if (in_.accept("%")) {
        directive();
        continue;
      }
      const std::string name = rule_name();
      if (name.empty()) in_.fail("a rule (name: ...) is missing");
      for (const std::string& attribute : attributes_) {
        if (attribute != "capture") in_.fail("the attribute " + attribute + " of a rule is not supported");
      }
      define(name, choice(0));
    }
    return std::move(result_);
  }

 private:
  void define(const std::string& name, Expression expression) {
    if (!result_.rules.try_emplace(name, std::move(expression)).second) in_.fail("there are two rules " + name);
    const size_t letter = name.find_first_not_of('_');
    if (letter != std::string::npos && name[letter] >= 'A' && name[letter] <= 'Z') result_.terminals.push_back(name);
  }

  // The name of the rule that begins here, read with its colon; empty, and nothing is read, where none does.
  std::string rule_name() {
    const size_t begin = in_.position();
    while (in_.accept("?") || in_.accept("!")) {
    }
    std::string name = in_.name("_");
    if (!name.empty() && in_.accept(".")) {
      in_.accept("-");
      if (in_.name("").empty()) name.clear();
    }
    attributes_ = attributes();
    in_.skip();
    if (!name.empty() && in_.accept(":")) return name;
    in_.back_to(begin);
    return "";
  }

  // The names of llguidance's attributes behind a rule's name: [capture, max_tokens=9, stop=","]. Stops where they are
  // something else.
  std::vector<std::string> attributes() {
    std::vector<std::string> names;
    if (!in_.accept("[")) return names;
    do {
      in_.skip();
      names.push_back(in_.name("_"));
      in_.skip();
      if (names.back().empty() || !in_.accept("=")) continue;
      in_.skip();
      if (in_.accept("\"")) {
        text();
      } else if (in_.accept("/")) {
        expression();
      } else {
        in_.name(".-");
      }
      in_.skip();
    } while (in_.accept(","));
    in_.accept("]");
    return names;
  }

  bool is_rule() {
    const size_t begin = in_.position();
    const bool result = !rule_name().empty();
    in_.back_to(begin);
    return result;
  }

  void directive() {
    const std::string what = in_.name("_");
    in_.skip();
    if (what == "ignore") {
      const std::string name = "%ignore " + std::to_string(result_.ignored.size());
      result_.rules[name] = choice(0);
      result_.terminals.push_back(name);
      result_.ignored.push_back(name);
    } else if (what == "import") {
      if (!in_.accept("common")) in_.fail("%import takes from `common` only");
      in_.skip();
      if (in_.accept("(")) {
        do {
          in_.skip();
          import(in_.name("_"), "");
          in_.skip();
        } while (in_.accept(","));
        if (!in_.accept(")")) in_.fail("a ( without its )");
        return;
      }
      if (!in_.accept(".")) in_.fail("%import common needs a name");
      const std::string name = in_.name("_");
      in_.skip();
      const bool renamed = in_.accept("->");
      in_.skip();
      import(name, renamed ? in_.name("_") : "");
    } else if (what == "llguidance") {
      if (!in_.accept("{")) in_.fail("%llguidance needs its options, {}");
      in_.skip();
      if (!in_.accept("}")) in_.fail("options of %llguidance are not supported");
    } else if (what == "json") {
      in_.fail("%json is not supported in a grammar; guided_json or a response_format alone takes a schema");
    } else {
      in_.fail("%" + what + " is not supported");
    }
  }

  void import(const std::string& name, const std::string& as) {
    const auto known = common_terminals().find(name);
    if (known == common_terminals().end()) in_.fail("the terminal common." + name + " is not known");
    define(as.empty() ? name : as, regex_of(known->second));
  }

  Expression choice(int depth) {
    if (depth > GrammarReader::kNestingMax) in_.fail("groups are nested too deep");
    Expression all;
    all.type = Expression::kChoice;
    do {
      all.operands.push_back(sequence(depth));
      if (in_.accept("->")) {
        in_.skip();
        in_.name("_");
        in_.skip();
      }
    } while (in_.accept("|"));
    return all;
  }

  Expression sequence(int depth) {
    Expression all;
    for (in_.skip(); in_.more() && std::string_view("|)]%").find(in_.peek()) == std::string_view::npos; in_.skip()) {
      if ((in_.peek() == '-' && in_.peek(1) == '>') || is_rule()) break;
      Expression one = item(depth);
      in_.skip();
      if (repeat(one)) in_.skip();
      all.operands.push_back(std::move(one));
    }
    return all;
  }

  bool repeat(Expression& one) {
    uint32_t least = 0, most = kUnbounded;
    if (in_.accept("+")) {
      least = 1;
    } else if (in_.peek() == '?' && !is_rule()) {
      in_.accept("?");
      most = 1;
    } else if (in_.accept("~")) {
      in_.skip();
      least = most = in_.number();
      in_.skip();
      if (in_.accept("..")) {
        in_.skip();
        most = in_.number();
      }
      if (most < least) in_.fail("a repeat ~ m..n needs m up to n");
    } else if (!in_.accept("*")) {
      return false;
    }
    one = repeated(std::move(one), least, most);
    return true;
  }

  Expression item(int depth) {
    if (in_.accept("(")) {
      Expression one = choice(depth + 1);
      if (!in_.accept(")")) in_.fail("a ( without its )");
      return one;
    }
    if (in_.accept("[")) {
      Expression one = choice(depth + 1);
      if (!in_.accept("]")) in_.fail("a [ without its ]");
      return repeated(std::move(one), 0, 1);
    }
    if (in_.accept("\"")) return text_or_range();
    if (in_.accept("/")) return expression();
    Expression one;
    one.type = Expression::kRule;
    one.text = in_.name("_");
    if (one.text.empty()) in_.fail("'" + in_.character() + "' is not understood here");
    return one;
  }

  std::string text() {  // after the opening quote
    std::string out;
    while (!in_.accept("\"")) {
      if (!in_.more() || in_.peek() == '\n') in_.fail("a text without its closing quote");
      out += in_.accept("\\") ? in_.escape() : in_.character();
    }
    return out;
  }

  static std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) {
      if (std::string_view("\\^$.|?*+()[]{}-/").find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
    return out;
  }

  Expression text_or_range() {
    Expression one;
    one.type = Expression::kText;
    one.text = text();
    if (in_.accept("..")) {
      if (!in_.accept("\"")) in_.fail("a range is \"a\"..\"z\"");
      const std::string last = text();
      for (const std::string& end : {one.text, last}) {
        if (end.empty() || utf8_length(end) != end.size()) {
          in_.fail("a range is from one character to another, as \"a\"..\"z\", but '" + end.substr(0, 100) + "' " +
                   (end.empty() ? "is none" : "has several"));
        }
      }
      if (utf8_point(last) < utf8_point(one.text)) {
        in_.fail("the range '" + one.text + "'..'" + last + "' ends before it begins");
      }
      return regex_of("[" + escaped(one.text) + "-" + escaped(last) + "]");
    }
    if (in_.peek() == 'i' && in_.accept("i")) return regex_of("(?i)" + escaped(one.text));
    return one;
  }

  Expression expression() {  // after the opening slash
    std::string out;
    while (!in_.accept("/")) {
      if (!in_.more() || in_.peek() == '\n') in_.fail("an expression without its closing /");
      if (in_.accept("\\")) out += in_.peek() == '/' ? "" : "\\";
      out += in_.character();
    }
    std::string flags = in_.name("");
    if (flags.find_first_not_of("is") != std::string::npos) {
      in_.fail("the flags " + flags + " of an expression are not supported; i and s are");
    }
    constexpr std::string_view kGroup = "(?s:";
    if (out.starts_with(kGroup) && out.ends_with(')') && out.find_first_of("()", kGroup.size()) == out.size() - 1) {
      out = out.substr(kGroup.size(), out.size() - kGroup.size() - 1);
      flags += 's';
    }
    if (flags.find('s') != std::string::npos) out = with_dots_for_all(out);
    return regex_of((flags.find('i') != std::string::npos ? "(?i)" : "") + out);
  }

  GrammarReader in_;
  GrammarRules result_;
  std::vector<std::string> attributes_;  // of the rule whose name was read last
};

}  // namespace

GrammarRules parse_lark(std::string_view text, WorkBudget& budget) { return LarkParser(text, budget).parse(); }

}  // namespace gemma4
