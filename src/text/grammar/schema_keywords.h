// The keywords of JSON Schema: which are known, what kind of value each must have, and what several schemas that hold
// at once (allOf, the keywords beside $ref) are as one. Called by SchemaGrammar. Errors name the place in the schema.
#pragma once

#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/work_budget.h"

namespace gemma4 {

[[noreturn]] void refuse_schema(const std::string& path, const std::string& why);

bool is_annotation(const std::string& keyword);  // restricts no instance, or is handled apart

// Throws Error where a keyword that is known has a value of the wrong kind: {"required": "a"}.
void check_kinds(const nlohmann::ordered_json& schema, const std::string& path);

// Throws Error where the schema has a keyword that is not implemented.
void check_keywords(const nlohmann::ordered_json& schema, const std::string& path);

// The types that `type` names or that keywords imply; none: any.
std::vector<std::string> types_of(const nlohmann::ordered_json& schema, const std::string& path);

// Whether a value of an enum or const is within the schema's type and its bounds on numbers, lengths and names.
bool is_within(const nlohmann::ordered_json& value, const nlohmann::ordered_json& schema, const std::string& path);

// A whole number; `otherwise` where the keyword is absent.
uint32_t count_of(const nlohmann::ordered_json& schema, const char* keyword, uint32_t otherwise,
                  const std::string& path);

// Steps of a WorkBudget for copying or comparing a value.
uint64_t copy_steps(const nlohmann::ordered_json& value);

// Equal for schemas that are equal but for their annotations. A hash of 128 bits, without a key: whoever makes two
// schemas collide spoils the grammar of their own request.
using SchemaFingerprint = std::pair<uint64_t, uint64_t>;
SchemaFingerprint fingerprint(const nlohmann::ordered_json& schema, WorkBudget& budget);

// Finds what "$ref" names; each is looked up once.
class SchemaReferences {
 public:
  SchemaReferences(const nlohmann::ordered_json& root, WorkBudget& budget) : root_(root), budget_(budget) {}
  const nlohmann::ordered_json& resolve(const nlohmann::ordered_json& reference, const std::string& path);

 private:
  const nlohmann::ordered_json* walk(const std::string& pointer) const;

  const nlohmann::ordered_json& root_;
  WorkBudget& budget_;
  std::unordered_map<std::string, const nlohmann::ordered_json*> found_;
};

// One schema for `schema` with what its $ref and allOf name. Throws Error where two of them contradict each other.
nlohmann::ordered_json merge_schemas(const nlohmann::ordered_json& schema, const std::string& path,
                                     SchemaReferences& references, WorkBudget& budget);

}  // namespace gemma4
