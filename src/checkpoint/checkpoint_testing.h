// Helpers of this module's tests: a temporary folder, a safetensors file from a header and bytes, SHA-256 (FIPS 180-4).
#pragma once

#include <unistd.h>

#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>

#include "base/file.h"
#include "base/json.h"

namespace gemma4::testing_files {

// A fresh folder under the system's own, removed with the object.
struct Folder {
  std::filesystem::path path;
  Folder() {
    static int count = 0;
    path = std::filesystem::temp_directory_path() /
           ("gemma4_test_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  void put(const std::string& name, const std::string& text) const { write_file(path / name, text); }
};

inline std::string container(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + data;
}

// A safetensors file without the tensors whose names `drop` picks. They leave torchao's list of names too, unless
// `listed` keeps them there.
inline std::string without_tensors(const std::string& file, const std::function<bool(const std::string&)>& drop,
                                   bool listed = false) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  const auto header = read_json<nlohmann::json>(file.substr(8, length));
  auto kept = nlohmann::json::object();
  std::string data;
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__" && drop(name)) continue;
    kept[name] = entry;
    if (name == "__metadata__") continue;
    const uint64_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    kept[name]["data_offsets"] = {data.size(), data.size() + (end - begin)};
    data += file.substr(8 + length + begin, end - begin);
  }
  if (!listed && kept.contains("__metadata__") && kept["__metadata__"].contains("tensor_names")) {
    auto names = nlohmann::json::array();
    for (const auto& name : read_json<nlohmann::json>(header["__metadata__"]["tensor_names"].get<std::string>())) {
      if (!drop(name)) names.push_back(name);
    }
    kept["__metadata__"]["tensor_names"] = names.dump();
  }
  return container(kept.dump(), data);
}

inline void sha256_block(const uint8_t* block, std::array<uint32_t, 8>& state, const std::array<uint32_t, 64>& k) {
  std::array<uint32_t, 64> w;
  for (size_t i = 0; i < 16; ++i) {
    w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 | uint32_t{block[4 * i + 2]} << 8 |
           block[4 * i + 3];
  }
  for (size_t i = 16; i < 64; ++i) {
    const uint32_t a = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t b = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + a + w[i - 7] + b;
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t i = 0; i < 64; ++i) {
    const uint32_t t1 =
        h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
    const uint32_t t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<uint32_t, 8> add = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) state[i] += add[i];
}

// The first 32 bits of the fractional part of the `power`-th root of a prime, by whole-number arithmetic.
inline uint32_t root_fraction(uint64_t prime, int power) {
  unsigned __int128 low = 0, high = static_cast<unsigned __int128>(1) << 40;  // root * 2^32 lies between them
  while (high - low > 1) {
    const unsigned __int128 middle = (low + high) / 2;
    // middle^power <= prime * 2^(32 power)? Compared without overflow: middle < 2^40, so middle^3 < 2^120.
    unsigned __int128 value = 1;
    for (int i = 0; i < power; ++i) value *= middle;
    (value <= (static_cast<unsigned __int128>(prime) << (32 * power)) ? low : high) = middle;
  }
  return static_cast<uint32_t>(low);
}

inline std::string sha256(std::string bytes) {
  std::array<uint32_t, 64> k{};
  std::array<uint32_t, 8> state{};
  size_t count = 0;
  for (uint64_t n = 2; count < 64; ++n) {
    bool prime = true;
    for (uint64_t d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
    if (!prime) continue;
    if (count < 8) state[count] = root_fraction(n, 2);
    k[count++] = root_fraction(n, 3);
  }
  const uint64_t bits = bytes.size() * 8;
  bytes += '\x80';
  while (bytes.size() % 64 != 56) bytes += '\0';
  for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(bits >> shift);
  for (size_t at = 0; at < bytes.size(); at += 64) {
    sha256_block(reinterpret_cast<const uint8_t*>(bytes.data()) + at, state, k);
  }
  std::string text;
  for (uint32_t word : state) {
    char digits[9];
    std::snprintf(digits, sizeof digits, "%08x", word);
    text += digits;
  }
  return text;
}

}  // namespace gemma4::testing_files
