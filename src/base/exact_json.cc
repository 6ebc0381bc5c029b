#include "base/exact_json.h"

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

// Builds the tree as the library's own parser does, but for long integers.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(int depth_max, int values_max) : depth_max_(depth_max), values_max_(values_max) {}
  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& text) override {
    const bool whole = text.find_first_not_of("0123456789", text[0] == '-') == std::string::npos;
    return whole ? add(Json::binary(std::vector<uint8_t>(text.begin(), text.end()))) : add(value);
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // no such thing in a text
  bool start_object(size_t) override { return open(Json::object()); }
  bool key(string_t& name) override { return member_ = &member(open_.back(), name), true; }
  bool end_object() override { return open_.pop_back(), true; }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return open_.pop_back(), true; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override { throw error; }

 private:
  struct Open {
    Json* value;
    std::unordered_map<std::string, size_t> index = {};  // of a large object: where each member is
  };

  // An ordered object searches all its members for a name.
  static Json& member(Open& open, const std::string& name) {
    constexpr size_t kLarge = 32;
    auto& members = open.value->get_ref<Json::object_t&>();
    if (members.size() < kLarge) return members[name];
    if (open.index.empty()) {
      for (const auto& [known, value] : members) open.index.emplace(known, open.index.size());
    }
    const auto [found, added] = open.index.emplace(name, members.size());
    if (added) members.emplace_back(name, nullptr);
    return members.begin()[static_cast<std::ptrdiff_t>(found->second)].second;
  }

  Json* place(Json value) {
    if (++values_ > values_max_) throw Error("more than " + std::to_string(values_max_) + " values");
    if (open_.empty()) return &(root_ = std::move(value));
    Json& parent = *open_.back().value;
    if (parent.is_object()) return &(*member_ = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool add(Json value) { return place(std::move(value)), true; }
  bool open(Json value) {
    if (static_cast<int>(open_.size()) >= depth_max_) {
      throw Error("nested more than " + std::to_string(depth_max_) + " deep");
    }
    open_.push_back({place(std::move(value))});
    return true;
  }

  const int depth_max_, values_max_;
  int values_ = 0;
  Json root_;
  std::vector<Open> open_;  // from the root to where values go now; only the last of them grows
  Json* member_ = nullptr;  // of an object: where the value goes
};

// The value of the escape (\u and four digits) that stands at text[at], or -1.
int escape_at(std::string_view text, size_t at) {
  if (text.size() - at < 6 || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int value = 0;
  for (const char c : text.substr(at + 2, 4)) {
    const int letter = (c | 0x20) - 'a';
    if ((c < '0' || c > '9') && (letter < 0 || letter > 5)) return -1;
    value = value * 16 + (c <= '9' ? c - '0' : letter + 10);
  }
  return value;
}

bool is_surrogate(int value, int half) { return value >> 10 == (half == 1 ? 0xd800 : 0xdc00) >> 10; }

// `text` with half surrogate pairs as \ufffd and, because the library takes NUL for the end of a text, with each NUL as
// another byte that JSON does not have. Every offset stays the same. `copy` is used only where something changes.
std::string_view repaired(std::string_view text, std::string& copy) {
  const auto change = [&](size_t at, std::string_view bytes) {
    if (copy.empty()) copy = text;
    copy.replace(at, bytes.size(), bytes);
  };
  for (size_t at = text.find_first_of(std::string_view("\\\0", 2)); at < text.size();
       at = text.find_first_of(std::string_view("\\\0", 2), at)) {
    if (text[at] == '\0') {
      change(at++, "\1");
      continue;
    }
    const int first = escape_at(text, at);
    const bool high = is_surrogate(first, 1);
    const bool whole = high && at + 6 < text.size() && is_surrogate(escape_at(text, at + 6), 2);
    if (!whole && (high || is_surrogate(first, 2))) change(at + 2, "fffd");
    at += whole ? 12 : first >= 0 ? 6 : 2;
  }
  return copy.empty() ? text : copy;
}

std::string plain(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

void write(const Json& value, std::string& out) {
  if (is_long_integer(value)) {
    out.append(value.get_binary().begin(), value.get_binary().end());
  } else if (value.is_structured()) {
    const char* comma = "";
    out += value.is_object() ? '{' : '[';
    for (const auto& [key, one] : value.items()) {
      out += comma;
      if (value.is_object()) out += plain(key) + ':';
      write(one, out);
      comma = ",";
    }
    out += value.is_object() ? '}' : ']';
  } else {
    out += plain(value);
  }
}

}  // namespace

Json parse_exact_json(std::string_view text, int depth_max, int values_max) {
  refuse_nul(text);
  Builder builder(depth_max, values_max);
  std::string copy;
  Json::sax_parse(repaired(text, copy), &builder);
  return builder.take();
}

bool is_json(std::string_view text) { return text.find('\0') == std::string_view::npos && Json::accept(text); }
bool is_exact_json(std::string_view text, int depth_max) {
  try {
    parse_exact_json(text, depth_max);
    return true;
  } catch (const Json::exception&) {
  } catch (const Error&) {
  }
  return false;
}

std::string dump_exact_json(const Json& value) {
  std::string out;
  write(value, out);
  return out;
}

}  // namespace gemma4
