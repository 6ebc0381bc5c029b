#include "text/chat/tool_format.h"

#include <algorithm>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cwctype>
#include <vector>

#include "base/check.h"
#include "base/exact_json.h"
#include "base/json.h"
#include "base/json_text.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kDepthMax = 100;  // the writer recurses, and a request must not exhaust the stack

std::string upper(std::string text) {  // ASCII only: types are English words
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 128) c = static_cast<char>(std::toupper(c));
  }
  return text;
}

// Like Python's lower(), letter by letter; `text` is valid UTF-8. Uses libc's table whatever the program's locale is.
std::string lower(std::string_view text) {
  static const locale_t unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  std::string result;
  for (; !text.empty(); text.remove_prefix(utf8_length(text))) {
    const wint_t letter = utf8_point(text);
    utf8_append(result, unicode ? towlower_l(letter, unicode) : towlower(letter));
  }
  return result;
}

// Like Python's repr(float), which the template prints: the shortest digits that are read back as the same number, with
// an exponent below 1e-4 and from 1e16 on.
std::string python_float(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
  char buffer[400];
  const double size = std::fabs(value);
  const bool exponent = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto format = exponent ? std::chars_format::scientific : std::chars_format::fixed;
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, format).ptr;
  std::string text(buffer, end);
  if (!exponent && text.find('.') == std::string::npos) text += ".0";
  return text;
}

// Like Python's str() of a JSON scalar.
std::string python_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_null()) return "None";
  if (value.is_number_float()) return python_float(value.get<double>());
  return dump_exact_json(value);
}

const Json& member(const Json& value, const char* key) {  // null if there is none
  static const Json kNone;
  if (!value.is_object()) return kNone;
  const auto found = value.find(key);
  return found == value.end() ? kNone : *found;
}

bool truthy(const Json& value) {
  if (value.is_null() || value == false) return false;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  if (value.is_number()) return value.get<double>() != 0;
  return !value.is_structured() || !value.empty();
}

std::vector<std::pair<std::string, const Json*>> sorted_members(const Json& object) {
  if (!object.is_object()) return {};
  struct Entry {
    std::string lower, key;
    const Json* value;
  };
  std::vector<Entry> entries;
  for (const auto& [key, value] : object.items()) entries.push_back({lower(key), key, &value});
  std::ranges::stable_sort(entries, {}, &Entry::lower);
  std::vector<std::pair<std::string, const Json*>> members;
  for (Entry& entry : entries) members.emplace_back(std::move(entry.key), entry.value);
  return members;
}

std::string upper_type(const Json& schema) {  // empty: none, or several
  const Json& type = member(schema, "type");
  return type.is_null() || type.is_structured() ? "" : upper(python_text(type));
}

// Writes a comma before every element but the first.
class Commas {
 public:
  explicit Commas(PieceWriter& out) : out_(out) {}
  PieceWriter& next() {
    if (!first_) out_.text(",");
    first_ = false;
    return out_;
  }

 private:
  PieceWriter& out_;
  bool first_ = true;
};

void write_required(const Json& required, PieceWriter& out) {
  out.text("required:[");
  Commas commas(out);
  if (required.is_array()) {
    for (const Json& name : required) commas.next().quoted(python_text(name));
  }
  out.text("]");
}

// Several types are written as the template writes those of an array's items.
void write_type(const Json& schema, PieceWriter& out) {
  const Json& type = member(schema, "type");
  out.text("type:");
  if (!type.is_array()) return out.quoted(upper_type(schema));
  out.text("[");
  Commas commas(out);
  for (const Json& one : type) commas.next().quoted(upper(python_text(one)));
  out.text("]");
}

void write_properties(const Json& properties, bool skip_keywords, PieceWriter& out);
void write_property(const Json& schema, PieceWriter& out);

// What the template does not know: schemas of which one holds, where they cannot be written as one.
void write_branches(const Json& branches, PieceWriter& out) {
  out.text("anyOf:[");
  Commas commas(out);
  for (const Json& branch : branches) write_property(branch, commas.next());
  out.text("]");
}

// An array's `items`: every keyword is kept, in sorted order.
void write_items(const Json& items, PieceWriter& out) {
  out.text("items:{");
  Commas commas(out);
  for (const auto& [key, value] : sorted_members(items)) {
    if (value->is_null()) continue;
    commas.next();
    if (key == "properties") {
      out.text("properties:{");
      write_properties(*value, false, out);
      out.text("}");
    } else if (key == "required") {
      write_required(*value, out);
    } else if (key == "type") {
      write_type(items, out);
    } else if (key == "anyOf" && value->is_array()) {
      write_branches(*value, out);
    } else {
      out.text(key + ":");
      write_value(*value, true, out);
    }
  }
  out.text("}");
}

void write_property(const Json& schema, PieceWriter& out) {
  const std::string type = upper_type(schema);
  Commas commas(out);
  out.text("{");
  if (const Json& description = member(schema, "description"); truthy(description)) {
    commas.next().text("description:");
    out.quoted(python_text(description));
  }
  if (const Json& branches = member(schema, "anyOf"); branches.is_array()) write_branches(branches, commas.next());
  if (const Json& choices = member(schema, "enum"); type == "STRING" && truthy(choices)) {
    commas.next().text("enum:");
    write_value(choices, true, out);
  }
  if (const Json& items = member(schema, "items"); type == "ARRAY" && items.is_object() && !items.empty()) {
    write_items(items, commas.next());
  }
  if (truthy(member(schema, "nullable"))) commas.next().text("nullable:true");
  if (type == "OBJECT") {
    const Json& properties = member(schema, "properties");
    if (properties.is_object() || !schema.contains("anyOf")) {
      commas.next().text("properties:{");
      // For a schema without `properties` the template lists the members that are no keywords.
      write_properties(properties.is_object() ? properties : schema, !properties.is_object(), out);
      out.text("}");
    }
    if (const Json& required = member(schema, "required"); truthy(required)) write_required(required, commas.next());
  }
  write_type(schema, commas.next());
  out.text("}");
}

void write_properties(const Json& properties, bool skip_keywords, PieceWriter& out) {
  static const std::vector<std::string> kKeywords = {"description", "type", "properties", "required", "nullable"};
  Commas commas(out);
  for (const auto& [key, schema] : sorted_members(properties)) {
    if (skip_keywords && std::find(kKeywords.begin(), kKeywords.end(), key) != kKeywords.end()) continue;
    if (skip_keywords && (!schema->is_object() || !schema->contains("type"))) continue;  // no schema, but a value
    commas.next().text(key + ":");
    write_property(*schema, out);
  }
}

void write_parameters(const Json& parameters, PieceWriter& out) {
  out.text(",parameters:{");
  if (const Json& properties = member(parameters, "properties"); truthy(properties)) {
    out.text("properties:{");
    write_properties(properties, false, out);
    out.text("},");
  }
  if (const Json& required = member(parameters, "required"); truthy(required)) {
    write_required(required, out);
    out.text(",");
  }
  if (const Json& branches = member(parameters, "anyOf"); branches.is_array()) {
    write_branches(branches, out);
    out.text(",");
  }
  // The template leaves the brace open if the type is missing. Here parameters are always an object.
  if (const Json& type = member(parameters, "type"); type.is_array() || type != "any") {
    write_type(parameters, out);
  } else {
    out.text("type:");
    out.quoted("OBJECT");
  }
  out.text("}");
}

}  // namespace

Json parse_json(std::string_view text, const std::string& what) {
  try {
    return parse_exact_json(text, kDepthMax);
  } catch (const Json::exception& e) {
    throw Error(what + ": not JSON: " + json_complaint(e));
  } catch (const Error& e) {
    throw Error(what + ": " + e.what());
  }
}

void write_members(const Json& object, bool quote_keys, PieceWriter& out) {
  Commas commas(out);
  for (const auto& [key, value] : sorted_members(object)) {
    commas.next();
    if (quote_keys) {
      out.quoted(key);
    } else {
      out.text(key);
    }
    out.text(":");
    write_value(*value, quote_keys, out);
  }
}

void write_value(const Json& value, bool quote_keys, PieceWriter& out) {
  if (value.is_string()) {
    out.quoted(value.get_ref<const std::string&>());
  } else if (value.is_boolean()) {
    out.text(value.get<bool>() ? "true" : "false");
  } else if (value.is_object()) {
    out.text("{");
    write_members(value, quote_keys, out);
    out.text("}");
  } else if (value.is_array()) {
    out.text("[");
    Commas commas(out);
    for (const Json& one : value) write_value(one, quote_keys, commas.next());
    out.text("]");
  } else {
    out.text(value.is_null() ? out.null_word() : python_text(value));
  }
}

void write_declaration(const Json& tool, ToolSchemas& schemas, PieceWriter& out) {
  const Json& wrapped = member(tool, "function");
  const Json& function = wrapped.is_object() ? wrapped : tool;
  const Json& name = member(function, "name");
  if (!name.is_string() || !truthy(name)) throw Error("tools: a tool has no name");
  // parse_tool_call() reads a name up to the brace of its arguments.
  if (name.get_ref<const std::string&>().find_first_of(" \t\r\n{") != std::string::npos) {
    throw Error("tools: a tool's name holds white space or {, so that the model cannot call it");
  }
  out.text("declaration:" + name.get<std::string>() + "{description:");
  const Json& description = member(function, "description");
  out.quoted(description.is_null() ? "" : python_text(description));
  if (const Json& parameters = member(function, "parameters"); truthy(parameters)) {
    write_parameters(schemas.readable(parameters), out);
  }
  if (const Json& response = member(function, "response"); response.is_object()) {
    out.text(",response:{");
    Commas commas(out);
    if (const Json& text = member(response, "description"); truthy(text)) {
      commas.next().text("description:");
      out.quoted(python_text(text));
    }
    if (upper_type(response) == "OBJECT") {
      commas.next().text("type:");
      out.quoted("OBJECT");
    }
    out.text("}");
  }
  out.text("}");
}

}  // namespace gemma4
