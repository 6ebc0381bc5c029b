#include "base/json_text.h"

#include <set>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"

namespace gemma4 {

using nlohmann::json;

nlohmann::json parse_strict_json(std::string_view text, const std::string& what) {
  constexpr int kDepthMax = 16;
  std::vector<std::set<std::string>> keys(kDepthMax + 2);
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if (depth > kDepthMax) throw Error(what + " is nested too deeply");
    if (event == Event::object_start) keys[static_cast<size_t>(depth) + 1].clear();
    if (event == Event::key && !keys[static_cast<size_t>(depth)].insert(parsed.get<std::string>()).second) {
      throw Error(what + " has the key " + printable(parsed.get<std::string>()) + " twice");
    }
    return true;
  };
  if (text.find('\0') != std::string_view::npos) throw Error(what + " is not valid JSON (it holds a NUL byte)");
  try {
    return read_json(text, watch);
  } catch (const json::exception& error) {
    throw Error(what + " is not valid JSON (" + printable(json_complaint(error)) + ")");
  }
}

void refuse_nul(std::string_view text) {
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    throw Error("a NUL byte at byte " + std::to_string(at) + " is not JSON");
  }
}

std::string json_complaint(const std::exception& error) {
  const std::string what = error.what();
  const size_t end = what.starts_with("[json.exception.") ? what.find("] ") : std::string::npos;
  return end == std::string::npos ? what : what.substr(end + 2);
}

std::string printable(std::string_view name) {
  constexpr size_t kMax = 120;
  std::string text = utf8_repair(name.substr(0, kMax));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return name.size() > kMax ? text + "..." : text;
}

}  // namespace gemma4
