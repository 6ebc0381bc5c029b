// Schemas that refer to themselves for one and the same value. {"anyOf": [{"type": "string"}, {"$ref": "#"}]} is a
// string; {"not": {"$ref": "#"}} says nothing, whatever the value. Found by Tarjan's algorithm (strongly connected
// components, SIAM J. Comput. 1, 1972), without recursion.
#include <algorithm>
#include <unordered_map>

#include "text/schema/schema_keywords.h"

namespace gemma4 {
namespace {

class CycleFinder {
  using Json = nlohmann::ordered_json;

 public:
  CycleFinder(SchemaReferences& references, WorkBudget& budget) : references_(references), budget_(budget) {}

  void run(const Json& root) {
    starts_.push_back({&root, "#"});
    while (!starts_.empty()) {
      const Start start = std::move(starts_.back());
      starts_.pop_back();
      visit_from(start.schema, start.path);
    }
    for (const Edge& edge : doubtful_) {
      if (known_.at(edge.from).component != known_.at(edge.to).component) continue;
      refuse_schema(edge.path, std::string(edge.keyword) +
                                   " refers back to the schema that it is part of, so whether a value matches would "
                                   "depend on itself");
    }
  }

 private:
  struct Start {
    const Json* schema;
    std::string path;
  };
  struct Edge {  // of a keyword whose schemas are about the same value
    const Json *from, *to;
    const char* keyword;
    std::string path;
  };
  struct Known {
    int index, low;
    int component = -1;
  };
  struct Visit {
    const Json* schema;
    std::string path;
    std::vector<Start> within;  // about the same value
    size_t next = 0;
  };

  void visit_from(const Json* schema, const std::string& path) {
    if (!enter(schema, path)) return;
    while (!visits_.empty()) {
      Visit& top = visits_.back();
      if (top.next < top.within.size()) {
        const Start to = std::move(top.within[top.next++]);
        if (enter(to.schema, to.path)) continue;
        const Known& other = known_.at(to.schema);
        Known& mine = known_.at(visits_.back().schema);
        if (other.component < 0) mine.low = std::min(mine.low, other.index);
        continue;
      }
      leave();
    }
  }

  // False where it was entered before.
  bool enter(const Json* schema, const std::string& path) {
    budget_.charge(20 + path.size() / 8);
    const int index = static_cast<int>(known_.size());
    if (!known_.try_emplace(schema, Known{index, index}).second) return false;
    open_.push_back(schema);
    visits_.push_back({schema, path, {}});
    if (schema->is_object()) add_within(visits_.back());
    return true;
  }

  void leave() {
    const Known mine = known_.at(visits_.back().schema);
    if (mine.low == mine.index) {
      const Json* one = nullptr;
      do {
        one = open_.back();
        open_.pop_back();
        known_.at(one).component = mine.index;
      } while (one != visits_.back().schema);
    }
    visits_.pop_back();
    if (visits_.empty()) return;
    Known& outer = known_.at(visits_.back().schema);
    outer.low = std::min(outer.low, mine.low);
  }

  void add_within(Visit& visit) {
    for (const auto& [keyword, value] : visit.schema->items()) {
      budget_.charge(5);
      if (keyword == "$ref") {
        if (const Json* target = resolve(value, visit.path)) visit.within.push_back({target, value});
        continue;
      }
      const SameValue* same = std::find_if(std::begin(kSameValue), std::end(kSameValue),
                                           [&name = keyword](const SameValue& one) { return name == one.keyword; });
      const bool is_same = same != std::end(kSameValue);
      if (!is_same && std::find(std::begin(kOtherValues), std::end(kOtherValues), keyword) == std::end(kOtherValues)) {
        continue;
      }
      const bool is_map = keyword == "properties" || keyword == "patternProperties" || keyword == "dependentSchemas" ||
                          keyword == "dependencies";
      const std::string path = path_of(visit.path, keyword);
      const auto add = [&](const Json& one) {
        if (!one.is_object()) return;
        if (!is_same) return starts_.push_back({&one, path});
        visit.within.push_back({&one, path});
        if (!same->adds_alternatives) doubtful_.push_back({visit.schema, &one, same->keyword, visit.path});
      };
      if (value.is_array() || is_map) {
        for (const Json& one : value) budget_.charge(5), add(one);
      } else {
        add(value);
      }
    }
  }

  static std::string path_of(const std::string& path, const std::string& keyword) {
    constexpr size_t kPathMax = 400;
    return path.size() < kPathMax ? path + "/" + keyword : path;
  }

  // Null where it leads nowhere, or out of the schema: who follows it says so.
  const Json* resolve(const Json& reference, const std::string& path) {
    try {
      return &references_.resolve(reference, path);
    } catch (const BudgetError&) {
      throw;
    } catch (const CancelledError&) {
      throw;
    } catch (const Error&) {
      return nullptr;
    }
  }

  struct SameValue {
    const char* keyword;
    bool adds_alternatives;  // a schema that is its own alternative, or part of it, is what the others say
  };
  static constexpr SameValue kSameValue[] = {
      {"allOf", true},        {"anyOf", true}, {"oneOf", false}, {"not", false},
      {"if", false},          {"then", false}, {"else", false},  {"dependentSchemas", false},
      {"dependencies", false}};
  static constexpr const char* kOtherValues[] = {
      "properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames",
      "items",      "prefixItems",       "additionalItems",      "unevaluatedItems",      "contains"};

  SchemaReferences& references_;
  WorkBudget& budget_;
  std::vector<Start> starts_;
  std::vector<Edge> doubtful_;
  std::unordered_map<const Json*, Known> known_;
  std::vector<const Json*> open_;  // Tarjan's stack
  std::vector<Visit> visits_;
};

}  // namespace

void check_cycles(const nlohmann::ordered_json& root, SchemaReferences& references, WorkBudget& budget) {
  CycleFinder(references, budget).run(root);
}

}  // namespace gemma4
