// What /set of a chat changes: how tokens are chosen, and what the terminal shows.
#pragma once

#include <string>
#include <vector>

#include "engine/request.h"

namespace gemma4 {

struct ChatView {
  bool stats = true;     // a line after each answer
  bool thoughts = true;  // are shown
};

std::vector<std::string> setting_names();
std::vector<std::string> setting_values(const std::string& name);  // where there are few; else empty

// `value`: a number or on or off; "default" is what `base`, the request that the chat began with, says. Returns what
// holds now, as one sentence. Throws Error for a name or a value that is none.
std::string apply_setting(const std::string& name, const std::string& value, const Request& base, Request& request,
                          ChatView& view);

std::string list_settings(const Request& request, const ChatView& view);  // a line each

}  // namespace gemma4
