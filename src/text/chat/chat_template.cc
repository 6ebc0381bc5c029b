#include "text/chat/chat_template.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>

namespace gemma4 {
namespace {

constexpr size_t kTemplateMax = 1 << 20;  // bytes; Google's have 19,000

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// What recognition looks at.
struct JinjaText {
  std::string code;             // without comments, white space, \n and the dashes of tags; quotes are '
  std::set<std::string> words;  // of what it may write: text outside tags, and strings inside
};

// Reads Jinja text from its beginning to its end.
class JinjaReader {
 public:
  explicit JinjaReader(std::string_view text) : text_(text) {}

  JinjaText read() {
    while (at_ < text_.size()) {
      if (skips("{#")) {
        const size_t end = text_.find("#}", at_);
        at_ = end == std::string_view::npos ? text_.size() : end + 2;
      } else if (skips("{{") || skips("{%")) {
        out_.code += text_[at_ - 2];
        out_.code += text_[at_ - 1];
        read_tag(text_[at_ - 1] == '{' ? "}}" : "%}");
      } else {
        take(text_[at_++], true);
      }
    }
    end_word();
    return std::move(out_);
  }

 private:
  bool skips(std::string_view what) {
    if (!text_.substr(at_).starts_with(what)) return false;
    end_word();
    at_ += what.size();
    return true;
  }

  void end_word() {
    // A number alone says nothing.
    if (!word_.empty() && !std::ranges::all_of(word_, [](unsigned char c) { return std::isdigit(c); })) {
      out_.words.insert(word_);
    }
    word_.clear();
  }

  void take(char c, bool written) {
    if (written && is_word(c)) {
      if (word_.size() < 40) word_ += c;
    } else {
      end_word();
    }
    if (!std::isspace(static_cast<unsigned char>(c))) out_.code += c;
  }

  void read_tag(std::string_view end) {
    if (at_ < text_.size() && text_[at_] == '-') ++at_;
    while (at_ < text_.size() && !skips(end)) {
      const char c = text_[at_];
      if (c == '\'' || c == '"') {
        read_string(c);
      } else if (c == '-' && text_.substr(at_ + 1).starts_with(end)) {
        ++at_;
      } else {
        take(c, false);
        ++at_;
      }
    }
    out_.code += end;
  }

  void read_string(char quote) {
    // The message of an error is not part of a prompt.
    const bool written = !out_.code.ends_with("raise_exception(") && !in_message_;
    in_message_ = !written;
    out_.code += '\'';
    for (++at_; at_ < text_.size() && text_[at_] != quote; ++at_) {
      if (text_[at_] == '\\' && at_ + 1 < text_.size()) {
        ++at_;
        if (text_[at_] == 'n' || text_[at_] == 't') {
          end_word();
          continue;
        }
      }
      take(text_[at_], written);
    }
    end_word();
    out_.code += '\'';
    ++at_;
    // A message may go on in the next string.
    const size_t next = text_.find_first_not_of(" \t\r\n", std::min(at_, text_.size()));
    if (next == std::string_view::npos || (text_[next] != '\'' && text_[next] != '"')) in_message_ = false;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string word_;
  bool in_message_ = false;
  JinjaText out_;
};

// What both of Google's texts do: control tokens, tool declarations, results that follow their call as messages, the
// empty thought that closes the prompt of a large model.
constexpr std::array kBoth = {"<|turn>",          "<turn|>",
                              "'<|think|>'",      "<|tool>",
                              "<tool|>",          "declaration:",
                              "<|tool_call>",     "<tool_call|>",
                              "<|tool_response>", "<tool_response|>",
                              "<|image|>",        "dictsort",
                              "enable_thinking",  "add_generation_prompt",
                              "tool_call_id",     "reasoning_content",
                              "system'",          "'<|channel>thought<channel|>'"};

// What only July's does: null is written as null, the thoughts of answers without calls are kept, a turn of the model
// goes on in its next message, and a thought is opened after a tool's result.
constexpr std::array kJulyOnly = {"'null'", "preserve_thinking", "continues_into_next", "{{'<|channel>thought'}}"};

// Words that Google's texts write, and those by which they look up members.
const std::set<std::string, std::less<>>& known_words() {
  static const std::set<std::string, std::less<>> words = {
      "OBJECT",   "STRING",   "ARRAY",       "arguments",    "assistant",   "audio",         "call",
      "channel",  "content",  "declaration", "description",  "developer",   "enum",          "false",
      "function", "id",       "image",       "image_url",    "input_audio", "items",         "model",
      "name",     "null",     "nullable",    "parameters",   "properties",  "reasoning",     "reasoning_content",
      "required", "response", "role",        "string",       "system",      "text",          "think",
      "thought",  "tool",     "tool_call",   "tool_call_id", "tool_calls",  "tool_response", "tool_responses",
      "true",     "turn",     "type",        "unknown",      "upper",       "user",          "value",
      "video"};
  return words;
}

}  // namespace

const char* template_name(ChatTemplate which) { return which == ChatTemplate::kSpring ? "spring" : "july"; }

std::optional<ChatTemplate> template_named(std::string_view name) {
  if (name == "spring") return ChatTemplate::kSpring;
  if (name == "july") return ChatTemplate::kJuly;
  return std::nullopt;
}

TemplateMatch recognise_template(std::string_view jinja) {
  if (jinja.size() > kTemplateMax) return {ChatTemplate::kJuly, "it is longer than 1 MiB"};
  const JinjaText text = JinjaReader(jinja).read();
  std::string code = text.code;
  const auto has = [&](const char* part) { return code.find(part) != std::string::npos; };
  const auto lacks = [&](const char* part) { return !has(part); };
  const auto july = std::ranges::count_if(kJulyOnly, has);
  TemplateMatch match;
  const auto missing = std::ranges::find_if(kBoth, lacks);
  if (july == 0 && has("<|turn>") && has("<|tool_call>")) match.closest = ChatTemplate::kSpring;
  if (missing != kBoth.end()) {
    match.difference = std::string("it lacks ") + *missing;
  } else if (july != 0 && july != std::ssize(kJulyOnly)) {
    match.difference = std::string("it lacks ") + *std::ranges::find_if(kJulyOnly, lacks);
  } else {
    const auto other =
        std::ranges::find_if(text.words, [](const std::string& w) { return !known_words().contains(w); });
    if (other != text.words.end()) match.difference = "it writes '" + *other + "'";
  }
  return match;
}

}  // namespace gemma4
