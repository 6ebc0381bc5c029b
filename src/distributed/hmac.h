// HMAC-SHA256 (RFC 2104, FIPS 180-4), for the handshake between processes.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace gemma4 {

using Sha256Digest = std::array<uint8_t, 32>;

Sha256Digest hmac_sha256(std::string_view key, std::string_view message);

// Takes the same time wherever the first difference is.
bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace gemma4
