// HttpFormat: how answers look on the wire (RFC 9112). Called by http.cc only.
#pragma once

#include <string>
#include <string_view>

#include "server/http/http.h"

namespace gemma4 {

struct HttpFraming {
  bool chunked = false;  // a stream over HTTP/1.1; over HTTP/1.0 the end of the connection ends it
  bool keep_alive = false;
  double idle_seconds = 0;  // for Keep-Alive
};

// The status line and the header fields, up to and with the empty line.
std::string http_head(const HttpResponse& response, const HttpFraming& framing);

// `bytes` as a chunk. No bytes: the last one.
std::string http_chunk(std::string_view bytes);

// False: a Range field that is not well formed. Ranges are not served, so a good one changes nothing.
bool good_range(std::string_view value);

}  // namespace gemma4
