// Json and Fields: what a client sent, read with care. Every member of an object is either read or refused by name, so
// that no wish is dropped in silence. Errors say which member, as a path ("messages[2].content").
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"

namespace gemma4 {

using Json = nlohmann::ordered_json;

// What a request is answered with when it cannot be served. Each API spells it its own way.
struct ApiError : Error {
  ApiError(int http_status, const std::string& message, std::string parameter = "", std::string error_code = "")
      : Error(message), status(http_status), param(std::move(parameter)), code(std::move(error_code)) {}
  int status;
  std::string param, code;
};

// Throws ApiError 400: not JSON, not UTF-8, nested too deep or with too many values (each costs far more memory than
// its text).
Json parse_body(std::string_view text);

std::string dump(const Json& json);  // on one line

// The members of one JSON object. A member that is null counts as absent.
class Fields {
 public:
  Fields(const Json& object, std::string path);  // throws where it is no object

  const Json* find(const char* name);         // and marks it as read
  const Json& require(const char* name);      // throws where it is absent
  std::string where(const char* name) const;  // its path

  std::optional<std::string> string(const char* name);
  std::optional<bool> boolean(const char* name);
  std::optional<int64_t> integer(const char* name, int64_t least, int64_t most);
  std::optional<double> number(const char* name, double least, double most);
  std::string required_string(const char* name);
  std::vector<std::string> strings(const char* name);  // a string or an array of strings

  // Read, and without effect here: the meaning is kept whatever they say.
  void ignore(std::initializer_list<const char*> names);
  // Only these values, which ask for what is done anyway; any other is refused by name.
  void only(const char* name, std::initializer_list<Json> values);
  // Throws for the first member that nobody read.
  void done() const;

  [[noreturn]] void fail(const char* name, const std::string& what) const;  // "<path> <what>"

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string> read_;
};

// As a message, "model" or "messages[0]: expected an object".
[[noreturn]] void fail_at(const std::string& path, const std::string& what);
const Json& expect_array(const Json& value, const std::string& path);
const std::string& expect_string(const Json& value, const std::string& path);

}  // namespace gemma4
