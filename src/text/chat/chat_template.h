// ChatTemplate: which of Google's chat templates for the large Gemma 4 models a prompt follows. Both are compiled in
// (text/chat/chat.h). A checkpoint's own template is Jinja text; recognise_template() tells by what that text does and
// writes which of the two it is. Jinja is never run.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace gemma4 {

enum class ChatTemplate {
  kSpring,  // of April and May 2026
  kJuly,    // of 2026-07-09
};

const char* template_name(ChatTemplate which);  // "spring", "july"
std::optional<ChatTemplate> template_named(std::string_view name);

struct TemplateMatch {
  ChatTemplate closest = ChatTemplate::kJuly;
  std::string difference;  // why it is neither of the two; empty: it is `closest`
};

// Linear in the text, which may be anything.
TemplateMatch recognise_template(std::string_view jinja);

}  // namespace gemma4
