// SchemaCheck: whether a finished value is an instance of a schema. It knows the keywords that the grammar cannot
// enforce token by token (uniqueItems, not, multipleOf) as well as those that it can, so it also tells which values of
// an enum are within the keywords beside it. Work is charged to the budget; depth is bounded.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/work_budget.h"
#include "text/schema/backtracking.h"
#include "text/schema/regex.h"
#include "text/schema/schema_keywords.h"
#include "text/schema/string_set.h"

namespace gemma4 {

class SchemaCheck {
 public:
  using Json = nlohmann::ordered_json;
  // Both must outlive this object.
  SchemaCheck(const Json& root, WorkBudget& budget) : budget_(budget), references_(root, budget) {}

  bool holds(const Json& value, const Json& schema) { return run(value, schema, nullptr, ""); }
  // What `value` breaks, as "tags: uniqueItems"; at most kViolationsMax.
  std::vector<std::string> violations(const Json& value, const Json& schema);
  bool matches(const std::string& text, const std::string& pattern);  // true where the pattern is not understood

  static constexpr size_t kViolationsMax = 5;

 private:
  using Report = std::vector<std::string>;
  struct Pattern {
    Regex regex;
    std::unique_ptr<StringSet> set;
    std::unique_ptr<BacktrackingMatcher> matcher;  // where a set cannot decide it. Both null: not understood
  };

  bool run(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool check(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool combined(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool conditional(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool object(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool members(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool dependent(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool array(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool items(const Json& value, const Json& schema, Report* report, const std::string& at);
  bool string(const std::string& text, const Json& schema, Report* report, const std::string& at);
  bool number(const Json& value, const Json& schema, Report* report, const std::string& at);
  void add_evaluated(const Json& value, const Json& schema, std::set<std::string>& names);
  template <typename Use>
  void each_applied(const Json& value, const Json& schema, const Use& use);
  void add_evaluated_items(const Json& value, const Json& schema, std::vector<bool>& known);
  Pattern& compiled(const std::string& pattern);
  bool follow(const Json& value, const Json& target, Report* report, const std::string& at);

  WorkBudget& budget_;
  SchemaReferences references_;
  std::map<std::string, std::unique_ptr<Pattern>> patterns_;
  std::map<const Json*, std::set<std::string>> enums_;  // their values' canonical texts
  std::set<std::pair<const Json*, const Json*>> open_;  // values, and schemas that a $ref is being followed to for them
  int depth_ = 0;
};

// As holds() for the members of an enum: equal values have equal texts, whatever the order of their members.
std::string canonical_text(const nlohmann::ordered_json& value, WorkBudget& budget);

// Whether a decimal number is a multiple of another, exactly.
bool is_multiple(const nlohmann::ordered_json& value, const nlohmann::ordered_json& of);

// Of the arguments of a finished call, in JSON: what they break of the tool's parameters, in sentences of warnings.
// Nothing where the parameters are more than a check can follow (a $ref to another document).
std::vector<std::string> check_arguments(std::string_view arguments, const nlohmann::ordered_json& parameters,
                                         const std::string& tool, WorkBudget& budget);

// Of a finished answer in JSON: what it breaks of the schema, in the same way. Throws the budget's errors, and
// Error where the schema is none.
std::vector<std::string> check_json(std::string_view text, std::string_view schema, WorkBudget& budget);

}  // namespace gemma4
