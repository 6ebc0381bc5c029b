// What /set of a chat changes: how tokens are chosen, and what the terminal shows.
#pragma once

#include <string>
#include <vector>

#include "engine/request.h"
#include "model/config.h"

namespace gemma4 {

struct ChatView {
  bool stats = true;     // a line after each answer
  bool thoughts = true;  // are shown
};

// What holds where a request says nothing.
struct ChatDefaults {
  GenerationConfig checkpoint;
  int thinking_budget = -1;  // of --thinking-budget; negative: no limit
};

std::vector<std::string> setting_names();
std::vector<std::string> setting_values(const std::string& name);  // where there are few; else empty

// `value`: a number or on or off; "default" is what `base`, the request that the chat began with, says. Returns what
// holds now, as one sentence. Throws Error for a name or a value that is none.
std::string apply_setting(const std::string& name, const std::string& value, const Request& base, Request& request,
                          ChatView& view, const ChatDefaults& defaults);

// A line each, in columns: name, value, what it means.
std::string list_settings(const Request& request, const ChatView& view, const ChatDefaults& defaults);

}  // namespace gemma4
