// ToolSchemas: prepares the JSON schemas of tools for the chat template, which knows `type`, `enum`, `items`,
// `properties` and `nullable` and nothing else of JSON Schema. $ref and allOf are written out, [T, "null"] becomes T
// with `nullable`, anyOf and oneOf become one of these or stay as `anyOf`, and every schema gets a type.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace gemma4 {

// For all tools of one prompt: they share a limit on what their $refs may add.
class ToolSchemas {
 public:
  // `parameters`: the schema of a tool's arguments. A $ref into itself, past the limit or to nothing becomes a stub
  // with its name. The result nests less than 200 deep if the schema does less than 100.
  nlohmann::ordered_json readable(const nlohmann::ordered_json& parameters);

 private:
  using Json = nlohmann::ordered_json;
  struct Flat;
  struct Types;
  Json read(const Json& schema, int depth);
  Flat flatten(const Json& schema, int depth);
  const Json* follow(const Json& reference, int depth, Flat& flat);
  void read_children(const Flat& flat, int depth, Json& out);
  void read_unions(const Flat& flat, int depth, Json& out, Types& types);
  static void write_type(const Flat& flat, Types& types, Json& out);

  int left_ = 8000;  // schemas that $refs may still add
  const Json* root_ = nullptr;
  std::vector<const Json*> open_;  // the targets of $refs that are being read
};

}  // namespace gemma4
