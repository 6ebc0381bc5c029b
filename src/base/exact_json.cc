#include "base/exact_json.h"

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
  explicit Builder(int depth_max) : depth_max_(depth_max) {}
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
  bool key(string_t& name) override { return member_ = &(*open_.back())[name], true; }
  bool end_object() override { return open_.pop_back(), true; }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return open_.pop_back(), true; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override { throw error; }

 private:
  Json* place(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_object()) return &(*member_ = std::move(value));
    open_.back()->push_back(std::move(value));
    return &open_.back()->back();
  }
  bool add(Json value) { return place(std::move(value)), true; }
  bool open(Json value) {
    if (static_cast<int>(open_.size()) >= depth_max_) {
      throw Error("nested more than " + std::to_string(depth_max_) + " deep");
    }
    open_.push_back(place(std::move(value)));
    return true;
  }

  int depth_max_;
  Json root_;
  std::vector<Json*> open_;  // from the root to where values go now; only the last of them grows
  Json* member_ = nullptr;   // of an object: where the value goes
};

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

Json parse_exact_json(std::string_view text, int depth_max) {
  refuse_nul(text);
  Builder builder(depth_max);
  Json::sax_parse(text, &builder);
  return builder.take();
}

bool is_json(std::string_view text) { return text.find('\0') == std::string_view::npos && Json::accept(text); }

std::string dump_exact_json(const Json& value) {
  std::string out;
  write(value, out);
  return out;
}

}  // namespace gemma4
