#include "server/json.h"

#include <algorithm>
#include <cmath>

#include "base/exact_json.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

constexpr int kDepthMax = 64;
constexpr int kValuesMax = 1 << 19;
constexpr int kMembersMax = 2048;  // counted by commas and by nested values

// Checked before parsing: a parsed value takes some 40 bytes while a bracket is one byte, and an ordered object
// searches all its members for each new one.
class ShapeCheck {
 public:
  void run(std::string_view text) {
    for (size_t i = 0; i < text.size(); ++i) {
      const char c = text[i];
      if (in_string_) {
        i += c == '\\';
        in_string_ = c != '"';
      } else if (c == '"') {
        in_string_ = true;
      } else if (c == '[' || c == '{') {
        open(c == '{');
      } else if (c == ']' || c == '}') {
        depth_ -= depth_ > 0;
      } else if (c == ',') {
        value();
      }
    }
  }

 private:
  void open(bool object) {
    value();
    if (++depth_ > kDepthMax) {
      throw ApiError(400, "the body is nested more than " + std::to_string(kDepthMax) + " deep");
    }
    members_[depth_] = object ? 0 : kUncounted;
  }

  void value() {
    if (++values_ > kValuesMax) {
      throw ApiError(400, "the body has more than " + std::to_string(kValuesMax) + " values");
    }
    if (members_[depth_] != kUncounted && ++members_[depth_] > kMembersMax) {
      throw ApiError(400, "an object in the body has more than " + std::to_string(kMembersMax) + " members");
    }
  }

  static constexpr int kUncounted = -1;
  bool in_string_ = false;
  int depth_ = 0, values_ = 0;
  int members_[kDepthMax + 1] = {kUncounted};
};

}  // namespace

Json parse_body(std::string_view text) {
  ShapeCheck().run(text);
  try {
    return parse_exact_json(text, kDepthMax);
  } catch (const Json::exception& error) {
    std::string what = json_complaint(error);
    if (what.size() > 200) what = what.substr(0, 200) + "...";
    throw ApiError(400, "the body is not JSON: " + what);
  } catch (const Error& error) {
    throw ApiError(400, std::string("the body is not JSON: ") + error.what());
  }
}

std::string dump(const Json& json) { return dump_exact_json(json); }

void fail_at(const std::string& path, const std::string& what) { throw ApiError(400, path + " " + what, path); }

const Json& expect_array(const Json& value, const std::string& path) {
  if (!value.is_array()) fail_at(path, "must be an array");
  return value;
}

const std::string& expect_string(const Json& value, const std::string& path) {
  if (!value.is_string()) fail_at(path, "must be a string");
  return value.get_ref<const std::string&>();
}

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (object_.is_object()) return;
  if (path_.empty()) throw ApiError(400, "the body must be a JSON object");
  fail_at(path_, "must be an object");
}

std::string Fields::where(const char* name) const { return path_.empty() ? name : path_ + "." + name; }

void Fields::fail(const char* name, const std::string& what) const { fail_at(where(name), what); }

const Json* Fields::find(const char* name) {
  read_.insert(name);
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const Json& Fields::require(const char* name) {
  const Json* value = find(name);
  if (value == nullptr) fail(name, "is missing");
  return *value;
}

std::optional<std::string> Fields::string(const char* name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  return expect_string(*value, where(name));
}

std::string Fields::required_string(const char* name) { return expect_string(require(name), where(name)); }

std::optional<bool> Fields::boolean(const char* name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail(name, "must be true or false");
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const char* name, int64_t least, int64_t most) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const std::string range = "must be a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  if (value->is_number_unsigned()) {
    const uint64_t number = value->get<uint64_t>();
    if (number > static_cast<uint64_t>(most) || static_cast<int64_t>(number) < least) fail(name, range);
    return static_cast<int64_t>(number);
  }
  // Languages whose numbers are all floating-point write 10.0; to JSON it is 10.
  const double real = value->is_number_float() ? value->get<double>() : 0;
  const bool whole_real = value->is_number_float() && std::trunc(real) == real && std::abs(real) < 0x1p53;
  if (!value->is_number_integer() && !whole_real) fail(name, range);
  const int64_t number = whole_real ? static_cast<int64_t>(real) : value->get<int64_t>();
  if (number < least || number > most) fail(name, range);
  return number;
}

std::optional<double> Fields::number(const char* name, double least, double most) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= least && number <= most)) {
    fail(name, "must be a number from " + Json(least).dump() + " to " + Json(most).dump());
  }
  return number;
}

std::vector<std::string> Fields::strings(const char* name) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) fail(name, "must be a string or an array of strings");
  std::vector<std::string> all;
  for (const Json& item : *value)
    all.push_back(expect_string(item, where(name) + "[" + std::to_string(all.size()) + "]"));
  return all;
}

void Fields::ignore(std::initializer_list<const char*> names) {
  for (const char* name : names) read_.insert(name);
}

void Fields::hints(const std::shared_ptr<Warnings>& warnings, std::initializer_list<const char*> names) {
  for (const char* name : names) hint(warnings, name, {});
}

void Fields::hint(const std::shared_ptr<Warnings>& warnings, const char* name, std::initializer_list<Json> usual) {
  const Json* value = find(name);
  if (value == nullptr || std::ranges::find(usual, *value) != usual.end()) return;
  std::string path;  // without indices: one sentence for all messages
  bool index = false;
  for (const char c : where(name)) {
    if (c == ']') index = false;
    if (!index) path += c;
    if (c == '[') index = true;
  }
  warn(warnings, "the parameter '" + path + "' has no effect here");
}

void Fields::only(const char* name, std::initializer_list<Json> values) {
  const Json* value = find(name);
  if (value == nullptr) return;
  for (const Json& allowed : values) {
    if (*value == allowed) return;
  }
  std::string text = dump(*value);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  throw ApiError(400, where(name) + ": " + text + " is not supported", where(name), "unsupported_value");
}

void Fields::done() const {
  for (const auto& [name, value] : object_.items()) {
    if (read_.contains(name) || value.is_null()) continue;
    const std::string path = where(name.substr(0, 100).c_str());
    throw ApiError(400, "the parameter '" + path + "' is not supported", path, "unsupported_parameter");
  }
}

}  // namespace gemma4
