// Conjunction: the schemas that must all hold for one value: a schema with what its allOf and $ref name, and those that
// several schemas give for one property. Nothing is copied: it is a list of pointers, so that a rule of the grammar is
// found again by them. An anyOf is expanded into one conjunction for each alternative.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/work_budget.h"
#include "text/schema/schema_check.h"
#include "text/schema/schema_keywords.h"

namespace gemma4 {

struct Conjunction {
  using Json = nlohmann::ordered_json;
  // Keywords of a part that were turned into alternatives.
  enum Expanded : uint8_t { kNullable = 1, kAnyOf = 2, kOneOf = 4, kIf = 8 };
  struct Part {
    const Json* schema;  // an object
    int32_t id;          // equal for equal schemas
    uint8_t expanded;
  };
  std::vector<Part> parts;
  bool never = false;  // false is among them

  bool has(const char* keyword) const;
  // Calls `use` with the value of the keyword in each part that has it.
  template <typename Use>
  void each(const char* keyword, const Use& use) const {
    for (const Part& part : parts) {
      if (const auto found = part.schema->find(keyword); found != part.schema->end()) use(*found);
    }
  }
  uint32_t most_of(const char* keyword, uint32_t otherwise) const;   // of counts: the largest
  uint32_t least_of(const char* keyword, uint32_t otherwise) const;  // the smallest
};

// Adds schemas to conjunctions, and finds what is finite in them.
class ConjunctionBuilder {
 public:
  using Json = nlohmann::ordered_json;
  ConjunctionBuilder(const Json& root, WorkBudget& budget)
      : budget_(budget), references_(root, budget), check_(root, budget) {}

  void add(Conjunction& to, const Json& schema, const std::string& path);
  SchemaCheck& checker() { return check_; }
  SchemaReferences& references() { return references_; }
  bool holds(const Json& value, const Conjunction& all);  // for every part, with all of its keywords
  // The values that enum, const, or an anyOf of those leave; nothing where there are others.
  std::optional<std::vector<Json>> finite(const Conjunction& all);

 private:
  struct Adding;
  void add(Adding& adding, const Json& schema, int depth);
  int32_t id_of(const Json& schema);

  WorkBudget& budget_;
  SchemaReferences references_;
  SchemaCheck check_;
  std::unordered_map<const Json*, int32_t> ids_;
  std::map<SchemaFingerprint, int32_t> fingerprints_;
};

}  // namespace gemma4
