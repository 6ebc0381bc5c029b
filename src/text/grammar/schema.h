// SchemaGrammar: compiles a JSON Schema (2020-12, the keywords listed in schema.cc) to rules of a PushdownAutomaton.
// The rules match only valid instances, but not every way to write them: members come in the schema's order (in Gemma
// calls they are sorted, as the model was trained), and additional members after them. There are no additional members
// where `properties` stands without `additionalProperties`. oneOf is treated as anyOf. Any other keyword is an Error
// that names it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/grammar/lexical.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

class SchemaGrammar {
 public:
  using Json = nlohmann::ordered_json;

  // `root` must outlive this object: "$ref" is resolved in it.
  SchemaGrammar(PushdownAutomaton& automaton, Syntax spelling, const Json& root)
      : a_(automaton), text_(automaton, spelling), syntax_(spelling), root_(root) {}

  int rule(const Json& schema, const std::string& path);  // a value that `schema` describes
  int any_value();                                        // rules, made at the first call
  int any_object();

 private:
  // Appends alternatives to `out`: nodes that continue at `next`.
  void alternatives(const Json& schema, const std::string& path, int next, std::vector<int>& out);
  void typed(const Json& schema, const std::string& type, const std::string& path, int next, std::vector<int>& out);
  void enumerated(const Json& values, const Json& schema, int next, std::vector<int>& out);
  int number(const Json& schema, bool integer, const std::string& path, int next);
  int string(const Json& schema, const std::string& path, int next);
  int array(const Json& schema, const std::string& path, int next);
  int object(const Json& schema, const std::string& path, int next);
  int members_of_any(int value_rule, const std::vector<std::string>& names, bool first, int close);
  int separator(int next);
  int key(const std::string& name, int next);
  int name_then(int next);  // ':' after a key
  const Json& resolve(const Json& reference, const std::string& path) const;
  Json merged(const Json& schema, const std::string& path, int depth = 0);
  void spell_value(const Json& value, std::vector<int>& inputs) const;

  PushdownAutomaton& a_;
  LexicalGrammar text_;
  Syntax syntax_;
  const Json& root_;
  std::map<std::string, int> rules_;  // by the text of the schema and of the schemas it refers to
  int any_value_ = -1, any_object_ = -1;
  int depth_ = 0, merges_ = 0;
};

}  // namespace gemma4
