#include "server/fetch.h"

#include <arpa/inet.h>
#include <netdb.h>

#include <algorithm>
#include <cctype>
#include <memory>

#include "server/curl.h"
#include "server/json.h"

namespace gemma4 {
namespace {

struct Url {
  bool tls = false;
  std::string host;  // in lower case; an IPv6 address without its brackets
  int port = 0;
  std::string target;  // path and query
};

// A host, quoted and shortened, for a message.
std::string shown(const std::string& host) { return "'" + host.substr(0, 100) + "'"; }

// The host and port of "host", "host:port", "[v6]", "[v6]:port"; port 0 if none is given, -1 if it is invalid.
std::pair<std::string, int> split_authority(std::string authority) {
  std::ranges::transform(authority, authority.begin(), [](unsigned char c) { return std::tolower(c); });
  size_t end = authority.find(':');
  std::string host = authority.substr(0, end);
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string::npos) return {authority, -1};
    host = authority.substr(1, close - 1);
    end = close + 1 < authority.size() ? close + 1 : std::string::npos;
    if (end != std::string::npos && authority[end] != ':') return {host, -1};
  }
  if (end == std::string::npos) return {host, 0};
  const std::string port = authority.substr(end + 1);
  const bool number = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  return {host, number && std::stoi(port) > 0 && std::stoi(port) < 65536 ? std::stoi(port) : -1};
}

Url parse_url(const std::string& url, const std::string& path) {
  const size_t scheme = url.find("://");
  Url out;
  out.tls = scheme == 5;  // "https"; the caller has checked that it is one of the two
  size_t end = url.find_first_of("/?#", scheme + 3);
  end = std::min(end, url.size());
  std::string authority = url.substr(scheme + 3, end - scheme - 3);
  const size_t at = authority.rfind('@');
  std::tie(out.host, out.port) = split_authority(at == std::string::npos ? authority : authority.substr(at + 1));
  if (out.host.empty() || out.port < 0) fail_at(path, "is not a URL of a host that can be asked");
  if (at != std::string::npos) fail_at(path, "has a user's name before the host " + shown(out.host));
  if (out.port == 0) out.port = out.tls ? 443 : 80;
  out.target = url.substr(end, std::min(url.find('#', end), url.size()) - end);
  if (!out.target.starts_with('/')) out.target.insert(0, "/");
  // A line break would let the client add headers.
  const bool clean = std::ranges::all_of(out.target, [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (!clean) fail_at(path, "holds a character that a URL spells with %");
  return out;
}

bool is_named(const Url& url, const FetchOptions& options) {
  return std::ranges::any_of(options.hosts, [&](const std::string& entry) {
    const auto [host, port] = split_authority(entry);
    return host == url.host && (port == url.port || (port == 0 && url.port == (url.tls ? 443 : 80)));
  });
}

std::span<const uint8_t> bytes_of(const addrinfo& found) {
  if (found.ai_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(found.ai_addr);
    return {reinterpret_cast<const uint8_t*>(&v4->sin_addr), 4};
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(found.ai_addr);
  return {v6->sin6_addr.s6_addr, 16};
}

// The numeric address to connect to. An address that the operator names may be private; an address that DNS returns for
// a name must be public.
std::string address_of(const Url& url, const std::string& path) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST;
  const bool digits = getaddrinfo(url.host.c_str(), nullptr, &hints, &found) == 0;
  hints.ai_flags = AI_ADDRCONFIG;
  if (!digits && getaddrinfo(url.host.c_str(), nullptr, &hints, &found) != 0) {
    fail_at(path, "names an image on a host that cannot be found: " + shown(url.host));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
  for (const addrinfo* a = found; a != nullptr && !digits; a = a->ai_next) {
    if (!public_address(bytes_of(*a))) {
      fail_at(path, "names the host " + shown(url.host) +
                        ", which is inside a private network; only an address that is named itself is asked there");
    }
  }
  char text[INET6_ADDRSTRLEN];
  inet_ntop(found->ai_family, bytes_of(*found).data(), text, sizeof(text));
  return text;
}

}  // namespace

bool public_address(std::span<const uint8_t> a) {
  if (a.size() == 16) {
    const auto starts = [&](std::initializer_list<uint8_t> with) {
      return std::equal(with.begin(), with.end(), a.begin());
    };
    // IPv4 addresses inside IPv6 ones: mapped, NAT64, 6to4.
    if (starts({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff})) return public_address(a.subspan(12));
    if (starts({0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0})) return public_address(a.subspan(12));
    if (starts({0x20, 0x02})) return public_address(a.subspan(2, 4));
    // Global unicast is 2000::/3, without 2001::/23 (protocols, Teredo) and 2001:db8::/32 (examples).
    return (a[0] & 0xe0) == 0x20 && !(starts({0x20, 0x01}) && a[2] < 2) && !starts({0x20, 0x01, 0x0d, 0xb8});
  }
  const uint32_t v = uint32_t{a[0]} << 24 | a[1] << 16 | a[2] << 8 | a[3];
  struct Block {
    uint32_t address;
    int bits;
  };
  static constexpr Block kNotPublic[] = {
      {0x00000000, 8},   // this network
      {0x0a000000, 8},   // private
      {0x64400000, 10},  // carrier-grade NAT
      {0x7f000000, 8},   // loopback
      {0xa9fe0000, 16},  // link-local; clouds keep credentials there
      {0xac100000, 12},  // private
      {0xc0000000, 24},  // protocols
      {0xc0000200, 24},  // examples
      {0xc0a80000, 16},  // private
      {0xc6120000, 15},  // benchmarks
      {0xc6336400, 24},  // examples
      {0xcb007100, 24},  // examples
      {0xe0000000, 3},   // multicast, reserved, broadcast
  };
  return std::ranges::none_of(kNotPublic, [&](const Block& b) { return (v ^ b.address) >> (32 - b.bits) == 0; });
}

std::string fetch_image(const std::string& url, size_t bytes, const FetchOptions& options, const std::string& path) {
  const Url parsed = parse_url(url, path);
  if (!is_named(parsed, options)) {
    fail_at(path, "names an image on the network, and the host " + shown(parsed.host) +
                      " is not allowed here; send the image itself, in base64 (data:image/png;base64,...)");
  }
  const std::string address = address_of(parsed, path);
  const bool v6 = parsed.host.find(':') != std::string::npos;
  std::string body;
  bool too_large = false;
  const CurlAnswer answer = system_curl().get({
      .url = (parsed.tls ? "https://" : "http://") + (v6 ? "[" + parsed.host + "]" : parsed.host) + ":" +
             std::to_string(parsed.port) + parsed.target,
      .address = address,
      .connect_seconds = options.connect_seconds,
      .seconds = options.connect_seconds + options.seconds,
      .accept =
          [&](std::string_view part) {
            too_large = body.size() + part.size() > bytes;
            if (!too_large) body.append(part);
            return !too_large;
          },
  });
  const auto fail = [&](const std::string& why) {
    fail_at(path, "names an image that could not be fetched: " + shown(parsed.host) + " " + why);
  };
  if (too_large) fail("sent more than the " + std::to_string(bytes) + " bytes that are left for it");
  if (answer.timed_out) fail("took too long");
  if (answer.status >= 300 && answer.status < 400) fail("answered with a redirect, which is not followed");
  if (answer.status != 0 && answer.status != 200) fail("answered with status " + std::to_string(answer.status));
  if (!answer.error.empty()) fail("did not answer (" + answer.error + ")");
  if (body.empty()) fail("sent nothing");
  return body;
}

}  // namespace gemma4
