// The log of requests: one line for each, with who asked for what, the status, tokens and milliseconds. It holds no
// text of prompts or answers, no headers and no keys.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "server/http/http.h"

namespace gemma4 {

enum class RequestLog { kOff, kErrors, kRequests };

struct AccessEntry {
  std::string method, path, client, id;
  int status = 0;
  std::chrono::steady_clock::time_point began;
  std::shared_ptr<RequestTokens> tokens;  // null: it generates nothing
};

bool is_error(const AccessEntry& entry);  // also a stream that broke off

// 2026-05-01T12:00:00.123Z 127.0.0.1 POST /v1/chat/completions 200 in=12 cached=0 out=30 ms=81 id=req_...
// What a client may choose is cut, and blanks and control characters in it become '?'. A stream that broke off has the
// status of why behind its own: 200/499.
std::string access_line(const AccessEntry& entry, std::chrono::system_clock::time_point now,
                        std::chrono::steady_clock::time_point ended);

void log_to_standard_error(const std::string& line);

}  // namespace gemma4
