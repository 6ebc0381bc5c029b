// SchemaGrammar: JSON Schema (2020-12, the part listed in grammar_schema.cc) to rules of an Automaton. What it builds
// matches only valid instances, though not every spelling of every one: members come in the schema's order (Gemma
// calls: sorted, as the model was taught), further members after them, and none where `additionalProperties` is not
// given beside `properties`. oneOf is taken as anyOf. Everything else is an Error that names the keyword.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/grammar/pushdown_automaton.h"
#include "text/grammar/text.h"

namespace gemma4 {

class SchemaGrammar {
 public:
  using Json = nlohmann::ordered_json;

  // `root` must outlive it: "$ref" is resolved in it.
  SchemaGrammar(Automaton& automaton, Spelling spelling, const Json& root)
      : a_(automaton), text_(automaton, spelling), spelling_(spelling), root_(root) {}

  int rule(const Json& schema, const std::string& path);  // a value that `schema` describes
  int any_value();                                        // rules, made when first asked for
  int any_object();

 private:
  // Alternatives are nodes that go on at `next`.
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

  Automaton& a_;
  TextGrammar text_;
  Spelling spelling_;
  const Json& root_;
  std::map<std::string, int> rules_;  // by the schema's own text and what it refers to
  int any_value_ = -1, any_object_ = -1;
  int depth_ = 0, merges_ = 0;
};

}  // namespace gemma4
