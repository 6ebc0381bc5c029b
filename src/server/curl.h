// How is one HTTP(S) resource got with libcurl? Called by fetch.cc. The library is opened with dlopen when it is first
// needed: it brings some twenty others, and only a server with --allow-image-host asks for any address.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace gemma4 {

struct CurlRequest {
  std::string url;      // http or https; no name or password
  std::string address;  // digits of an IPv4 or IPv6 address (without brackets): what is connected to, whatever the host
  double connect_seconds = 0;
  double seconds = 0;                            // for all of it
  std::function<bool(std::string_view)> accept;  // a part of the body of an answer with status 200; false ends it
};

struct CurlAnswer {
  int status = 0;          // 0: there was none
  bool timed_out = false;  // within the seconds
  std::string error;       // empty: the whole answer came
};

// The library's name is an argument for tests. Throws Error with what to install where it is missing.
class Curl {
 public:
  explicit Curl(const char* library = "libcurl.so.4");

  // GET, without redirects, proxies, cookies or decompression. Certificates are checked against the system's, or
  // those of the file that SSL_CERT_FILE names. It blocks; several threads may call it at once.
  CurlAnswer get(const CurlRequest& request) const;

 private:
  void* library_;
};

// The one that the server uses, opened at the first call. Throws Error as the constructor does.
const Curl& system_curl();

}  // namespace gemma4
