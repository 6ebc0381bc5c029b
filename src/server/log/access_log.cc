#include "server/log/access_log.h"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr size_t kPathMax = 200;

std::string printable(std::string text, size_t most) {
  if (text.size() > most) text = text.substr(0, most) + "...";
  std::ranges::replace_if(
      text, [](unsigned char c) { return c <= 0x20 || c == 0x7f; }, '?');
  return text.empty() ? "-" : utf8_repair(text);
}

std::string time_text(std::chrono::system_clock::time_point now) {
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  const std::time_t seconds = milliseconds / 1000;
  std::tm parts = {};
  gmtime_r(&seconds, &parts);
  char text[64];
  const size_t length = std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof(text) - length, ".%03dZ", static_cast<int>(milliseconds % 1000));
  return text;
}

}  // namespace

bool is_error(const AccessEntry& entry) { return entry.status >= 400 || (entry.tokens && entry.tokens->failed > 0); }

std::string access_line(const AccessEntry& entry, std::chrono::system_clock::time_point now,
                        std::chrono::steady_clock::time_point ended) {
  std::string line = time_text(now) + " " + printable(entry.client, kPathMax) + " " + printable(entry.method, 20) +
                     " " + printable(entry.path, kPathMax) + " " + std::to_string(entry.status);
  if (entry.tokens) {
    const RequestTokens& tokens = *entry.tokens;
    if (tokens.failed > 0) line += "/" + std::to_string(tokens.failed);
    line += " in=" + std::to_string(tokens.prompt) + " cached=" + std::to_string(tokens.cached) +
            " out=" + std::to_string(tokens.generated);
  }
  const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(ended - entry.began).count();
  return line + " ms=" + std::to_string(spent) + " id=" + entry.id;
}

void log_to_standard_error(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

}  // namespace gemma4
