// Json and Fields: strict reading of JSON that a client sent. Every member of an object is either read or refused by
// name, so nothing that a client asks for is ignored silently. Errors name the member as a path
// ("messages[2].content").
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "base/warnings.h"

namespace gemma4 {

using Json = nlohmann::ordered_json;

// The error answer to a request. Each API has its own form of it.
struct ApiError : Error {
  ApiError(int http_status, const std::string& message, std::string parameter = "", std::string error_code = "")
      : Error(message), status(http_status), param(std::move(parameter)), code(std::move(error_code)) {}
  int status;
  std::string param, code;
};

// Throws ApiError 400 if the text is not JSON, is not UTF-8, is nested too deeply or has too many values (a value takes
// far more memory than its text).
Json parse_body(std::string_view text);

std::string dump(const Json& json);  // on one line

// The members of one JSON object. A member that is null counts as absent.
class Fields {
 public:
  Fields(const Json& object, std::string path);  // throws if it is no object

  const Json* find(const char* name);         // and marks it as read
  const Json& require(const char* name);      // throws if it is absent
  std::string where(const char* name) const;  // its path

  std::optional<std::string> string(const char* name);
  std::optional<bool> boolean(const char* name);
  std::optional<int64_t> integer(const char* name, int64_t least, int64_t most);
  std::optional<double> number(const char* name, double least, double most);
  std::string required_string(const char* name);
  std::vector<std::string> strings(const char* name);  // a string or an array of strings

  // Accepts members that have no effect here, whatever their values are.
  void ignore(std::initializer_list<const char*> names);
  // Accepts members that only hint at how to answer, and warns for those that are given. A value in `usual` asks for
  // nothing and is no reason to warn.
  void hints(const std::shared_ptr<Warnings>& warnings, std::initializer_list<const char*> names);
  void hint(const std::shared_ptr<Warnings>& warnings, const char* name, std::initializer_list<Json> usual);
  // Accepts only these values, which ask for the default behaviour; any other is refused by name.
  void only(const char* name, std::initializer_list<Json> values);
  // Throws for the first member that was not read.
  void done() const;

  [[noreturn]] void fail(const char* name, const std::string& what) const;  // "<path> <what>"

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string> read_;
};

// Throws ApiError 400 with "<path> <what>".
[[noreturn]] void fail_at(const std::string& path, const std::string& what);
const Json& expect_array(const Json& value, const std::string& path);
const std::string& expect_string(const Json& value, const std::string& path);

}  // namespace gemma4
