#include "text/grammar/conjunction.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr int kChainMax = 100;  // of $ref and allOf

}  // namespace

bool Conjunction::has(const char* keyword) const {
  return std::any_of(parts.begin(), parts.end(), [&](const Part& part) { return part.schema->contains(keyword); });
}

uint32_t Conjunction::most_of(const char* keyword, uint32_t otherwise) const {
  uint32_t result = otherwise;
  for (const Part& part : parts) result = std::max(result, count_of(*part.schema, keyword, otherwise));
  return result;
}

uint32_t Conjunction::least_of(const char* keyword, uint32_t otherwise) const {
  uint32_t result = otherwise;
  for (const Part& part : parts) result = std::min(result, count_of(*part.schema, keyword, otherwise));
  return result;
}

struct ConjunctionBuilder::Adding {
  Conjunction& to;
  const std::string& path;
  std::unordered_map<const Json*, bool> active;
  std::unordered_map<int32_t, size_t> known;  // parts by their ids
};

void ConjunctionBuilder::add(Conjunction& to, const Json& schema, const std::string& path) {
  Adding adding{to, path, {}, {}};
  budget_.charge(10 + to.parts.size());
  for (size_t i = 0; i < to.parts.size(); ++i) adding.known.emplace(to.parts[i].id, i);
  add(adding, schema, 0);
}

void ConjunctionBuilder::add(Adding& adding, const Json& schema, int depth) {
  if (schema == true) return;
  if (schema == false) {
    adding.to.never = true;
    return;
  }
  if (!schema.is_object()) refuse_schema(adding.path, "is neither an object nor true or false");
  const auto [seen, is_new] = adding.active.try_emplace(&schema, true);
  if (!is_new && !seen->second) return;  // all of it holds already
  if (!is_new) refuse_schema(adding.path, "$ref and allOf go on without end");
  if (depth > kChainMax) cannot_enforce(adding.path, "$ref and allOf follow each other too often");
  bool own = false;
  for (const auto& [keyword, value] : schema.items()) {
    budget_.charge(5);
    own |= keyword != "$ref" && keyword != "allOf" && restricts(keyword);
  }
  if (own) {
    const int32_t id = id_of(schema);
    const auto [known, is_new_part] = adding.known.try_emplace(id, adding.to.parts.size());
    if (is_new_part) {
      adding.to.parts.push_back({&schema, id, 0});
    } else {
      adding.to.parts[known->second].expanded = 0;
    }
  }
  if (const auto target = schema.find("$ref"); target != schema.end()) {
    add(adding, references_.resolve(*target, adding.path), depth + 1);
  }
  if (const auto all = schema.find("allOf"); all != schema.end()) {
    for (const Json& one : *all) add(adding, one, depth + 1);
  }
  adding.active[&schema] = false;
}

int32_t ConjunctionBuilder::id_of(const Json& schema) {
  const auto [known, is_new] = ids_.try_emplace(&schema, -1);
  if (!is_new) return known->second;
  const auto print = fingerprint(schema, budget_);
  return known->second = fingerprints_.try_emplace(print, static_cast<int32_t>(fingerprints_.size())).first->second;
}

bool ConjunctionBuilder::holds(const Json& value, const Conjunction& all) {
  return !all.never && std::all_of(all.parts.begin(), all.parts.end(),
                                   [&](const Conjunction::Part& part) { return check_.holds(value, *part.schema); });
}

std::optional<std::vector<nlohmann::ordered_json>> ConjunctionBuilder::finite(const Conjunction& all) {
  std::vector<Json> values;
  bool found = false;
  const auto take = [&](const Json& schema) {
    if (!schema.is_object()) return false;
    if (const auto nullable = schema.find("nullable"); nullable != schema.end() && *nullable == true) {
      values.emplace_back(nullptr);
    }
    if (const auto one = schema.find("const"); one != schema.end()) {
      values.push_back(*one);
      return true;
    }
    const auto list = schema.find("enum");
    if (list != schema.end()) {
      for (const Json& one : *list) budget_.charge(10), values.push_back(one);
      return true;
    }
    const auto type = schema.find("type");
    const unsigned types = type == schema.end() ? 0u : type_bits(*type);
    if (types == 0 || types & ~unsigned{kBooleanType | kNullType}) return false;
    if (types & kBooleanType) values.insert(values.end(), {true, false});
    if (types & kNullType) values.emplace_back(nullptr);
    return true;
  };
  for (const Conjunction::Part& part : all.parts) {
    if (found) break;
    found = take(*part.schema);
    if (!found) values.clear();
    for (const char* keyword : {"anyOf", "oneOf"}) {
      const auto list = part.schema->find(keyword);
      if (found || list == part.schema->end()) continue;
      found = std::all_of(list->begin(), list->end(), take);
      if (!found) values.clear();
    }
  }
  if (!found) return std::nullopt;
  std::set<std::string> seen;
  std::erase_if(values, [&](const Json& value) {
    return !holds(value, all) || !seen.insert(canonical_text(value, budget_)).second;
  });
  return values;
}

}  // namespace gemma4
