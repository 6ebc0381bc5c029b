// The keywords of JSON Schema (2020-12, and those of drafts 4 to 7 that libraries still write): which there are, what
// kind of value each must have, where schemas are within a schema, and what "$ref" names. Used by SchemaGrammar, which
// enforces them, and by SchemaCheck, which checks a finished value. Errors name the place in the schema.
#pragma once

#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "base/work_budget.h"

namespace gemma4 {

// A schema that is none, or that no value matches; and one that is right but more than the grammar can keep.
[[noreturn]] void refuse_schema(const std::string& path, const std::string& why);
struct UnenforceableSchema : Error {
  using Error::Error;
};
[[noreturn]] void cannot_enforce(const std::string& path, const std::string& why);

// How far a keyword is kept. The table of docs/STRUCTURED_OUTPUT.md is this one.
struct SchemaKeyword {
  enum Kept {
    kEnforced,  // by the grammar, always
    kPartly,    // by the grammar where it can; otherwise the finished value is checked
    kChecked    // the finished value is checked
  };
  const char* name;
  Kept kept;
  const char* type;  // the type of values that it restricts; "": any
};
std::span<const SchemaKeyword> schema_keywords();

bool restricts(const std::string& keyword);  // one of the above; all others are annotations

bool is_number(const nlohmann::ordered_json& value);

// Throws Error where a keyword has a value of the wrong kind ({"required": "a"}) or contradicts another beside it
// ({"minLength": 2, "maxLength": 1}), in this schema or one within it.
void check_kinds(const nlohmann::ordered_json& schema, const std::string& path, WorkBudget& budget);

// The types of JSON as bits.
enum TypeBit : unsigned {
  kNullType = 1,
  kBooleanType = 2,
  kObjectType = 4,
  kArrayType = 8,
  kStringType = 16,
  kIntegerType = 32,
  kFractionType = 64,  // numbers that are not whole
  kNumberType = kIntegerType | kFractionType,
  kAnyType = 127
};
unsigned type_bits(const nlohmann::ordered_json& type);        // of the value of `type`
unsigned type_of(const nlohmann::ordered_json& value);         // one bit
unsigned implied_types(const nlohmann::ordered_json& schema);  // of keywords that restrict one type; 0: none

// A whole number; `otherwise` where the keyword is absent.
uint32_t count_of(const nlohmann::ordered_json& schema, const char* keyword, uint32_t otherwise);

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
  const nlohmann::ordered_json* find_named(const std::string& keyword, const std::string& name) const;

  const nlohmann::ordered_json& root_;
  WorkBudget& budget_;
  std::unordered_map<std::string, const nlohmann::ordered_json*> found_;
};

// Throws Error where a schema that `root` uses refers to itself for the same value, by a keyword like `not` or `if`, so
// that it has no meaning.
void check_cycles(const nlohmann::ordered_json& root, SchemaReferences& references, WorkBudget& budget);

}  // namespace gemma4
