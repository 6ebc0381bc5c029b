// OfferedTools: the tools that a request offers, and what their arguments may be, as CallParser needs it: which kinds
// of value a place in the arguments may hold. This is a reading of the schemas for the types alone; grammar/schema.h
// enforces them whole. Immutable after construction; any thread may use it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace gemma4 {

// One place in the arguments of a call: the schemas that describe it. Where alternatives do (anyOf), all of them.
class ArgumentPlace {
 public:
  using Json = nlohmann::ordered_json;
  enum Type : unsigned {
    kString = 1,
    kNumber = 2,
    kInteger = 4,
    kBoolean = 8,
    kNull = 16,
    kObject = 32,
    kArray = 64,
    kAnyType = 127
  };

  ArgumentPlace() = default;  // nothing is known: any type
  explicit ArgumentPlace(const Json& root) : root_(&root) { add(root); }

  unsigned types() const;  // that may stand here
  bool may_be(unsigned type) const { return types() & type; }
  bool declares(const std::string& name) const;         // a schema's `properties` name this member
  ArgumentPlace member(const std::string& name) const;  // of the object here
  ArgumentPlace item(size_t index) const;               // of the array here

 private:
  void add(const Json& schema);

  const Json* root_ = nullptr;
  std::vector<const Json*> schemas_;  // without $ref and alternatives, which were followed; empty: any value
  bool unknown_ = false;              // any value, whatever schemas_ say
};

class OfferedTools {
 public:
  // `tools`: a JSON array as render_chat takes it, or empty. What is no tool is left out.
  explicit OfferedTools(std::string_view tools);

  bool any_strict() const { return any_strict_; }  // one says "strict": true

  // The schema of a tool's arguments; null where no tool has this name.
  const nlohmann::ordered_json* parameters(const std::string& name) const;

 private:
  std::map<std::string, std::unique_ptr<const nlohmann::ordered_json>> parameters_;  // by name
  bool any_strict_ = false;
};

}  // namespace gemma4
