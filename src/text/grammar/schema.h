// SchemaGrammar: compiles a JSON Schema (2020-12, and what drafts 4 to 7 write otherwise) to rules of a
// PushdownAutomaton. The rules match valid instances, but not every way to write them: members come in the schema's
// order (in Gemma calls they are sorted, as the model was trained), and additional members after them. There are no
// additional members where `properties` stands without `additionalProperties`. What the rules do not keep is in
// notes(): SchemaCheck tells whether a finished value keeps it.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "text/grammar/conjunction.h"
#include "text/grammar/grammar.h"
#include "text/grammar/lexical.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

class SchemaGrammar {
 public:
  using Json = nlohmann::ordered_json;

  // `root` must outlive this object: "$ref" is resolved in it. Throws Error where it is no schema.
  SchemaGrammar(PushdownAutomaton& automaton, Syntax spelling, const Json& root);

  int rule(const Json& schema, const std::string& path);  // a value that `schema` describes
  int any_value();                                        // rules, made at the first call
  int any_object();
  std::vector<SchemaNote> notes() const;
  bool has_free_keys() const { return free_keys_; }  // a model could write a key twice
  std::string why_endless(const EndlessGrammar& error) const;  // why the schema allows no value, in a sentence

 private:
  using Nodes = std::vector<int>;
  // What `not` takes away.
  struct Exclusions {
    unsigned types = 0;
    std::vector<std::string> strings, patterns;
    std::set<std::string> names;
    bool all = false;
  };
  // Which strings there may be.
  struct StringRules {
    std::vector<std::string> patterns, formats, not_patterns, not_strings;  // formats by their names
    std::vector<Regex> wider;  // of patterns that are checked: expressions that match more
    uint32_t least = 0, most = kNoLimit;
    bool plain() const { return patterns.empty() && formats.empty() && not_patterns.empty() && not_strings.empty(); }
  };
  struct Member {
    std::string name;
    int rule;
    bool required;
  };
  // Members that are not described by name: their keys, and what follows the colon.
  struct FreeMembers {
    StringRules keys;
    int key_rule = -1;  // the key is a value of this rule
    int value_rule = -1;
  };

  int rule(const Conjunction& all, const std::string& path);
  // Appends alternatives to `out`: nodes that continue at `next`.
  void alternatives(Conjunction all, const std::string& path, int next, Nodes& out);
  bool expand(const Conjunction& all, const std::string& path, int next, Nodes& out);
  void branch(const Conjunction& all, const Json& schema, const std::string& at, int next, Nodes& out);
  void typed(const Conjunction& all, unsigned types, const Exclusions& no, const std::string& path, int next,
             Nodes& out);
  void enumerated(const std::vector<Json>& values, int next, Nodes& out);
  Exclusions excluded(const Conjunction& all, const std::string& path);
  bool exclude(const Json& schema, Exclusions& no);
  bool are_disjoint(const Json& list);

  void numbers(const Conjunction& all, bool integer, const std::string& path, int next, Nodes& out);
  void unit(const Conjunction& all, LexicalGrammar::Bounds& bounds, const std::string& path);

  StringRules string_rules(const Conjunction& all, const Exclusions& no);
  int string(const StringRules& rules, const std::string& path, int next);
  int content(const StringRules& rules, const std::string& path, int next);  // without quotes
  void widen(const std::string& pattern, const std::string& path, const std::string& why, StringRules& rules);
  int try_content(const StringRules& rules, bool by_structure, const std::string& path, int next);
  int by_structure(const Regex& pattern, const StringRules& rules, int next);
  Regex parse(const std::string& pattern, const std::string& path);

  int array(const Conjunction& all, const std::string& path, int next);
  static bool closes_items(const Conjunction& all);
  int distinct(const std::vector<Json>& values, uint32_t least, uint32_t most, int next);
  Conjunction item(const Conjunction& all, size_t index, bool fixed, const std::string& path);

  int object(const Conjunction& all, const Exclusions& no, const std::string& path, int next);
  Conjunction property(const Conjunction& all, const std::string& name, const std::string& path);
  std::vector<Member> members(const Conjunction& all, const Exclusions& no, const std::vector<std::string>& more,
                              const std::string& path);
  std::vector<FreeMembers> free_members(const Conjunction& all, const Exclusions& no, const Conjunction& names,
                                        const std::vector<Member>& members, const std::string& path);
  void restrict_keys(FreeMembers& free, const Conjunction& names, const std::string& path);
  bool is_open(const Conjunction& all, size_t members) const;
  void sort_for_calls(std::vector<Member>& members, const std::string& path) const;
  int member_list(const std::vector<Member>& members, const std::vector<FreeMembers>& free, uint32_t least,
                  uint32_t most, const std::string& path, int next);
  int free_list(const std::vector<FreeMembers>& free, uint32_t least, uint32_t most, bool first,
                const std::string& path, int close);
  int free_key(const FreeMembers& free, const std::string& path, int next);

  int separator(int next);
  int key(const std::string& name, int next);
  int name_then(int next);  // ':' after a key
  void spell_value(const Json& value, std::vector<int>& inputs) const;
  void note(const std::string& keyword, const std::string& path, bool checked = true, const std::string& why = "");
  int empty(const std::string& path, const std::string& why);  // nothing matches

  PushdownAutomaton& a_;
  LexicalGrammar text_;
  Syntax syntax_;
  ConjunctionBuilder build_;
  std::map<std::vector<int32_t>, int> rules_;  // by parts and what is expanded in them
  std::map<std::string, SchemaNote> notes_;
  std::string reason_;                             // why a part of the schema allows no value
  std::vector<std::pair<int, std::string>> made_;  // rules that are complete, the inner ones first, and their paths
  int any_value_ = -1, any_object_ = -1;
  bool free_keys_ = false;
  int depth_ = 0;
};

}  // namespace gemma4
