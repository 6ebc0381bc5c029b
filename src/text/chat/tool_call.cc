// Parses Gemma's tool-call syntax to JSON.
#include <set>

#include "base/exact_json.h"
#include "base/utf8.h"
#include "text/chat/output.h"

namespace gemma4 {
namespace {

using nlohmann::json;

constexpr int kArgumentDepthMax = 100;

std::string_view strip(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::string json_string(std::string_view text) { return json(utf8_repair(text)).dump(); }

// A recursive-descent parser of bytes with quote tokens between them. Every function returns false on a syntax error.
class CallReader {
 public:
  CallReader(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
    const int32_t quote = tokenizer.find("<|\"|>").value_or(-1);
    for (const int32_t id : ids) {
      if (id == quote) {
        quotes_.push_back(text_.size());
      } else {
        text_ += tokenizer.piece(id);
      }
    }
  }

  bool call(std::string& name, std::string& out) {
    skip_space();
    constexpr std::string_view kCall = "call:";
    if (at_quote() || !std::string_view(text_).substr(at_).starts_with(kCall)) return false;
    at_ += kCall.size();
    if (!bare("{", name) || name.empty() || name.find_first_of(" \t\r\n") != std::string::npos) return false;
    if (!object(out, 0)) return false;
    skip_space();
    return at_ == text_.size() && !at_quote();
  }

 private:
  // A quote token stands before text_[at_].
  bool at_quote() const { return quote_ < quotes_.size() && quotes_[quote_] == at_; }

  void skip_space() {
    while (!at_quote() && at_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) {
      ++at_;
    }
  }

  bool accept(char c) {
    skip_space();
    if (at_quote() || at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  // The text up to one of `ends`, without white space around it.
  bool bare(std::string_view ends, std::string& out) {
    const size_t end = text_.find_first_of(ends, at_);
    if (at_quote() || end == std::string::npos) return false;
    if (quote_ < quotes_.size() && quotes_[quote_] <= end) return false;
    out = strip(std::string_view(text_).substr(at_, end - at_));
    at_ = end;
    return true;
  }

  bool quoted(std::string& out) {  // between two quote tokens
    if (quote_ + 1 >= quotes_.size()) return false;
    out = text_.substr(at_, quotes_[quote_ + 1] - at_);
    at_ = quotes_[quote_ + 1];
    quote_ += 2;
    return true;
  }

  bool json_quoted(std::string& out) {  // "..." with JSON's escapes
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size() || (quote_ < quotes_.size() && quotes_[quote_] <= end)) return false;
    const json value = json::parse(text_.substr(at_, end + 1 - at_), nullptr, false);
    if (!value.is_string()) return false;
    out = value.get<std::string>();
    at_ = end + 1;
    return true;
  }

  bool key(std::string& out) {
    skip_space();
    if (at_quote()) return quoted(out);
    if (at_ < text_.size() && text_[at_] == '"') return json_quoted(out);
    return bare(":{}[],", out) && !out.empty();
  }

  bool object(std::string& out, int depth) {
    if (depth > kArgumentDepthMax || !accept('{')) return false;
    out += '{';
    std::set<std::string> keys;
    if (accept('}')) return out += '}', true;
    do {
      std::string name;
      if (!key(name) || !keys.insert(name).second || !accept(':')) return false;
      if (keys.size() > 1) out += ',';
      out += json_string(name) + ':';
      if (!value(out, depth + 1)) return false;
    } while (accept(','));
    out += '}';
    return accept('}');
  }

  bool array(std::string& out, int depth) {
    if (depth > kArgumentDepthMax || !accept('[')) return false;
    out += '[';
    if (accept(']')) return out += ']', true;
    bool first = true;
    do {
      if (!first) out += ',';
      first = false;
      if (!value(out, depth + 1)) return false;
    } while (accept(','));
    out += ']';
    return accept(']');
  }

  bool value(std::string& out, int depth) {
    skip_space();
    std::string text;
    if (at_quote()) return quoted(text) && (out += json_string(text), true);
    if (at_ >= text_.size()) return false;
    if (text_[at_] == '{') return object(out, depth);
    if (text_[at_] == '[') return array(out, depth);
    if (text_[at_] == '"') return json_quoted(text) && (out += json_string(text), true);
    if (!bare(",}]", text) || text.empty()) return false;
    out += word(text);
    return true;
  }

  // The library takes NUL for the end of a text.
  static bool is_json(const std::string& text) { return text.find('\0') == std::string::npos && json::accept(text); }

  // true, false, null and numbers have their JSON meaning; any other bare word is a string.
  static std::string word(const std::string& text) {
    if (text == "None") return "null";  // as the chat template writes null
    const bool number = text[0] == '-' || (text[0] >= '0' && text[0] <= '9');
    if (text == "true" || text == "false" || text == "null" || (number && is_json(text))) return text;
    return json_string(text);
  }

  std::string text_;
  std::vector<size_t> quotes_;  // offsets in text_ at which quote tokens stand
  size_t at_ = 0, quote_ = 0;   // indices of the next byte and of the next quote
};

}  // namespace

bool parse_tool_call(const Tokenizer& tokenizer, std::span<const int32_t> ids, std::string& name,
                     std::string& arguments) {
  arguments.clear();
  if (!CallReader(tokenizer, ids).call(name, arguments)) return false;
  name = utf8_repair(name);
  return true;
}

}  // namespace gemma4
