// Fetch: downloads the image behind an http(s) URL from a host that the operator allows (--allow-image-host). The
// client chooses the URL, so the following is refused: hosts that are not named; addresses inside a private network,
// unless that address itself is named; redirects; more bytes or more time than allowed. The name is resolved once: the
// address that was checked is the one that is connected to, so a later DNS answer cannot change it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace gemma4 {

struct FetchOptions {
  // "pictures.example", "pictures.example:8080", "10.0.0.7:9000", "[fd00::7]". Without a port: the scheme's default.
  std::vector<std::string> hosts;
  double connect_seconds = 5;
  double seconds = 15;  // for the whole answer, once connected
};

// The body of the answer, which must have status 200 and at most `bytes` bytes. Throws ApiError 400, whose message
// begins with `path`, the parameter that held the URL. It blocks, so do not hold a permit that other requests need.
std::string fetch_image(const std::string& url, size_t bytes, const FetchOptions& options, const std::string& path);

// Whether an address (4 or 16 bytes, as on the wire) belongs to the public internet (RFC 6890 and its successors).
bool public_address(std::span<const uint8_t> address);

}  // namespace gemma4
