// Fetch: the image behind an http(s) URL, from a host that the operator has named (--allow-image-host), or a sentence
// why not. A client chooses the URL, so this asks nobody else: no host that is not named, no address inside a private
// network unless that address itself is named, no redirects, no more bytes and no more time than allowed. The address
// that was checked is the one that is asked, whatever the name says a moment later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace gemma4 {

struct FetchOptions {
  // "pictures.example", "pictures.example:8080", "10.0.0.7:9000", "[fd00::7]". Without a port: the scheme's own.
  std::vector<std::string> hosts;
  double connect_seconds = 5;
  double seconds = 15;  // for the whole answer, once connected
};

// The body of at most `bytes` bytes that the URL answers with status 200. Throws ApiError 400, whose sentence begins
// with `path`, the parameter that held the URL. Blocks: call it where no turn is held that others need.
std::string fetch_image(const std::string& url, size_t bytes, const FetchOptions& options, const std::string& path);

// Whether an address (4 or 16 bytes, as on the wire) belongs to the public internet (RFC 6890 and its successors).
bool public_address(std::span<const uint8_t> address);

}  // namespace gemma4
