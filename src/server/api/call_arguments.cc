#include "server/api/call_arguments.h"

#include <algorithm>
#include <cctype>

#include "base/exact_json.h"
#include "server/api/build_request.h"

namespace gemma4 {
namespace {

constexpr std::string_view kBlank = " \t\r\n";

// The arrays and objects that are open after a text, by what closes them, the outermost first; and where the text may
// end before that, since a value or a beginning of an array or object ends there.
struct Opened {
  std::string closers;
  std::string closing() const { return {closers.rbegin(), closers.rend()}; }
  bool in_string = false;
  size_t escape = std::string::npos;  // where an escape begins that the end cuts
  size_t last_end = 0;
};

Opened read_opened(std::string_view text) {
  Opened at;
  for (size_t i = 0; i < text.size() && at.closers.size() <= kCallDepthMax; ++i) {
    const char c = text[i];
    if (at.in_string) {
      if (c == '\\') {
        const size_t length = i + 1 < text.size() && text[i + 1] == 'u' ? 6 : 2;
        if (i + length > text.size()) at.escape = i;
        i += length - 1;
      }
      at.in_string = c != '"';
    } else if (c == '"') {
      at.in_string = true;
    } else if (c == '{' || c == '[') {
      at.closers += c == '{' ? '}' : ']';
      at.last_end = i + 1;
    } else if ((c == '}' || c == ']') && !at.closers.empty()) {
      at.closers.pop_back();
      at.last_end = i + 1;
    } else if (c == ',') {
      at.last_end = i;
    }
  }
  return at;
}

// Whether a text is the beginning of a member, or of an item: a key, its colon, a number or a name.
bool begins_member(std::string_view text, bool in_object) {
  const auto skip_blanks = [&] { text.remove_prefix(std::min(text.find_first_not_of(kBlank), text.size())); };
  skip_blanks();
  if (text.starts_with(',')) text.remove_prefix(1);
  skip_blanks();
  if (text.starts_with('"') && in_object) {
    size_t end = 1;
    while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
    text.remove_prefix(std::min(end + 1, text.size()));
    skip_blanks();
    if (text.starts_with(':')) text.remove_prefix(1);
    skip_blanks();
  } else if (in_object && !text.empty()) {
    return false;
  }
  return std::ranges::all_of(text, [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '+' || c == '.'; });
}

bool is_object(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlank);
  return first != std::string_view::npos && text[first] == '{' && is_exact_json(text, kCallDepthMax);
}

// The beginning of a JSON object as a whole one: an open text and all that is open are closed, or a member that has no
// value yet is left out. Empty where neither gives an object.
std::string close_object(std::string_view begun) {
  const size_t first = begun.find_first_not_of(kBlank);
  if (first == std::string_view::npos || begun[first] != '{') return "";
  const Opened all = read_opened(begun);
  if (all.closers.empty() || all.closers.size() > kCallDepthMax) return "";
  std::string whole(begun.substr(0, all.escape));
  if (all.in_string) whole += '"';
  whole += all.closing();
  if (is_exact_json(whole, kCallDepthMax)) return whole;
  const std::string_view kept = begun.substr(0, all.last_end);
  if (!begins_member(begun.substr(all.last_end), all.closers.back() == '}')) return "";
  whole = std::string(kept) + all.closing();
  return is_exact_json(whole, kCallDepthMax) ? whole : "";
}

}  // namespace

std::string call_arguments(const Json* value, const ApiContext& context, const std::string& path) {
  if (value == nullptr) return "";
  if (value->is_object()) return dump(*value);
  const std::string& text = expect_string(*value, path);
  if (text.empty() || text == "null") return "";
  if (is_object(text)) return text;
  const std::string closed = close_object(text);
  if (closed.empty()) {
    warn(context.warnings, "the arguments of a call in the conversation are no JSON object, and are told as one text");
    return dump({{"input", text}});
  }
  warn(context.warnings, "the arguments of a call in the conversation were cut; what there is of them is taken");
  return closed;
}

}  // namespace gemma4
