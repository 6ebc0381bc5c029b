// SchemaGrammar: compiles a JSON Schema (2020-12, the keywords listed in schema_keywords.cc) to rules of a PushdownAutomaton.
// The rules match only valid instances, but not every way to write them: members come in the schema's order (in Gemma
// calls they are sorted, as the model was trained), and additional members after them. There are no additional members
// where `properties` stands without `additionalProperties`. oneOf is treated as anyOf. Any other keyword is an Error
// that names it.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "text/grammar/lexical.h"
#include "text/grammar/pushdown_automaton.h"
#include "text/grammar/schema_keywords.h"

namespace gemma4 {

class SchemaGrammar {
 public:
  using Json = nlohmann::ordered_json;

  // `root` must outlive this object: "$ref" is resolved in it.
  SchemaGrammar(PushdownAutomaton& automaton, Syntax spelling, const Json& root)
      : a_(automaton), text_(automaton, spelling), syntax_(spelling), references_(root, automaton.budget()) {}

  int rule(const Json& schema, const std::string& path);  // a value that `schema` describes
  int any_value();                                        // rules, made at the first call
  int any_object();

 private:
  // Appends alternatives to `out`: nodes that continue at `next`.
  void alternatives(const Json& schema, const std::string& path, int next, std::vector<int>& out);
  void typed(const Json& schema, const std::string& type, const std::string& path, int next, std::vector<int>& out);
  void choices_of(const Json& schema, const std::string& keyword, const std::string& path, int next,
                  std::vector<int>& out);
  void enumerated(const Json& values, const Json& schema, const std::string& path, int next, std::vector<int>& out);
  int number(const Json& schema, bool integer, const std::string& path, int next);
  int string(const Json& schema, const std::string& path, int next);
  int array(const Json& schema, const std::string& path, int next);
  int object(const Json& schema, const std::string& path, int next);
  int members_of_any(int value_rule, const std::vector<std::string>& names, bool first, int close);
  int separator(int next);
  int key(const std::string& name, int next);
  int name_then(int next);  // ':' after a key
  int rule_of_reference(const Json& reference, const std::string& path);
  void spell_value(const Json& value, std::vector<int>& inputs) const;

  PushdownAutomaton& a_;
  LexicalGrammar text_;
  Syntax syntax_;
  SchemaReferences references_;
  std::map<SchemaFingerprint, int> rules_;
  std::unordered_map<const Json*, int> rules_of_targets_;  // of what "$ref" names, within the root
  int any_value_ = -1, any_object_ = -1;
  int depth_ = 0;
};

}  // namespace gemma4
