// Golden: reads the reference files under tests/golden for the tests of src/image.
#pragma once

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "image/decode.h"

namespace gemma4 {

inline std::string golden_path(const std::string& name) { return std::string(SOURCE_DIR) + "/tests/golden/" + name; }

inline Image decode_text(const std::string& bytes) {
  return decode_image(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

inline Image decode_golden(const std::string& name) { return decode_text(read_file(golden_path(name))); }

// Whether this build reads a file's format: without giflib or libheif it refuses GIF, or HEIC and AVIF, by a sentence
// that tests check; others are skipped then. Any other error is the test's.
inline bool is_in_this_build(const std::string& name) {
  try {
    decode_golden(name);
  } catch (const Error& error) {
    if (std::string_view(error.what()).find("was built without") == std::string_view::npos) throw;
    return false;
  }
  return true;
}
inline bool gif_is_read() { return is_in_this_build("decode/plain.gif"); }
inline bool heif_is_read() { return is_in_this_build("decode_heif/444.heic"); }
constexpr const char* kNoGif = "this build has no giflib";
constexpr const char* kNoHeif = "this build has no libheif";

inline Image read_ppm(const std::string& name) {
  std::istringstream in(read_file(golden_path(name)));
  std::string magic;
  int depth = 0;
  Image image;
  in >> magic >> image.width >> image.height >> depth;
  in.get();
  image.rgb.resize(size_t{3} * image.width * image.height);
  in.read(reinterpret_cast<char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size()));
  if (magic != "P6" || depth != 255 || !in) throw Error(name + " is not a PPM file");
  return image;
}

// A safetensors file's arrays by name, as raw elements.
class GoldenArrays {
 public:
  explicit GoldenArrays(const std::string& name) : bytes_(read_file(golden_path(name))) {
    uint64_t size;
    std::memcpy(&size, bytes_.data(), 8);
    header_ = read_json<nlohmann::json>(bytes_.substr(8, size));
    data_ = 8 + size;
  }

  template <typename T>
  std::vector<T> get(const std::string& name) const {
    const auto& offsets = header_.at(name).at("data_offsets");
    const size_t begin = offsets[0], end = offsets[1];
    std::vector<T> out((end - begin) / sizeof(T));
    std::memcpy(out.data(), bytes_.data() + data_ + begin, end - begin);
    return out;
  }

 private:
  std::string bytes_;
  nlohmann::json header_;
  size_t data_;
};

}  // namespace gemma4
