#include "server/http/http_format.h"

#include <algorithm>
#include <array>
#include <ctime>

namespace gemma4 {
namespace {

const char* reason(int status) {
  struct Reason {
    int status;
    const char* text;
  };
  static constexpr Reason kReasons[] = {
      {200, "OK"},
      {204, "No Content"},
      {304, "Not Modified"},
      {400, "Bad Request"},
      {401, "Unauthorized"},
      {403, "Forbidden"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {408, "Request Timeout"},
      {411, "Length Required"},
      {413, "Content Too Large"},
      {414, "URI Too Long"},
      {415, "Unsupported Media Type"},
      {416, "Range Not Satisfiable"},
      {417, "Expectation Failed"},
      {422, "Unprocessable Content"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {499, "Client Closed Request"},  // not of any RFC; nginx's
      {500, "Internal Server Error"},
      {503, "Service Unavailable"},
      {504, "Gateway Timeout"},
      {505, "HTTP Version Not Supported"},
  };
  const auto* found = std::ranges::find(kReasons, status, &Reason::status);
  return found == std::end(kReasons) ? "Status" : found->text;  // the text means nothing to a program
}

std::string date() {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm t = {};
  gmtime_r(&now, &t);
  char text[64];
  std::snprintf(text, sizeof(text), "%s, %02d %s %d %02d:%02d:%02d GMT", kDays[t.tm_wday], t.tm_mday, kMonths[t.tm_mon],
                1900 + t.tm_year, t.tm_hour, t.tm_min, t.tm_sec);
  return text;
}

// A value with a line break would add a field.
void add(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ");
  std::ranges::copy_if(value, std::back_inserter(out),
                       [](char c) { return static_cast<unsigned char>(c) >= 0x20 || c == '\t'; });
  out += "\r\n";
}

void skip_digits(std::string_view& text) {
  while (!text.empty() && text.front() >= '0' && text.front() <= '9') text.remove_prefix(1);
}

}  // namespace

std::string http_head(const HttpResponse& response, const HttpFraming& framing) {
  std::string out = "HTTP/1.1 " + std::to_string(response.status) + " " + reason(response.status) + "\r\n";
  add(out, "Date", date());
  for (const auto& [name, value] : response.headers) add(out, name, value);
  if (!response.body.empty() || response.stream) add(out, "Content-Type", response.content_type);
  if (framing.chunked) {
    add(out, "Transfer-Encoding", "chunked");
  } else if (!response.stream && response.status != 204 && response.status != 304) {
    add(out, "Content-Length", std::to_string(response.body.size()));
  }
  add(out, "Connection", framing.keep_alive ? "keep-alive" : "close");
  if (framing.keep_alive) {
    add(out, "Keep-Alive", "timeout=" + std::to_string(static_cast<int>(framing.idle_seconds)));
  }
  return out + "\r\n";
}

std::string http_chunk(std::string_view bytes) {
  char size[24];
  std::string out(size, std::snprintf(size, sizeof(size), "%zx\r\n", bytes.size()));
  out.append(bytes).append("\r\n");
  return out;
}

bool good_range(std::string_view value) {
  if (!value.starts_with("bytes=")) return false;
  value.remove_prefix(6);
  while (true) {
    skip_digits(value);
    if (!value.starts_with('-')) return false;
    value.remove_prefix(1);
    skip_digits(value);
    if (value.empty()) return true;
    if (value.front() != ',') return false;
    value.remove_prefix(1);
    while (value.starts_with(' ') || value.starts_with('\t')) value.remove_prefix(1);
  }
}

}  // namespace gemma4
