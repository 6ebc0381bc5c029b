#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "image/container_testing.h"
#include "image/golden_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;

std::string heif_file(const std::string& name) { return read_file(golden_path("decode_heif/" + name)); }

std::string heif_error(const std::string& file, const ImageLimits& limits = {}) {
  try {
    decode_image(std::as_bytes(std::span(file)), limits);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// The file with other bytes at the beginning of what its pictures' data is.
std::string with_data(std::string file, const std::string& data) {
  const size_t at = file.find("mdat") + 4;
  return file.replace(at, data.size(), data);
}

// Fields of H.265 and AV1.
class BitText {
 public:
  void bits(uint64_t value, int count) {
    while (count-- > 0) text_ += static_cast<char>('0' + (value >> count & 1));
  }
  void exp_golomb(uint32_t value) {
    int length = 0;
    while (value + 1 >= 2u << length) ++length;
    bits(0, length);
    bits(value + 1, length + 1);
  }
  std::string bytes() {
    while (text_.size() % 8 != 0) text_ += '0';
    std::string out;
    for (size_t i = 0; i < text_.size(); i += 8) out += static_cast<char>(std::stoi(text_.substr(i, 8), nullptr, 2));
    return out;
  }

 private:
  std::string text_;
};

// A sequence parameter set of H.265 that says this size; no three bytes in it need an escape.
std::string hevc_parameters(uint32_t width, uint32_t height) {
  BitText out;
  out.bits(0, 4 + 3);
  out.bits(1, 1);
  for (int i = 0; i < 12; ++i) out.bits(0xff, 8);  // profile and level
  out.exp_golomb(0);
  out.exp_golomb(1);
  out.exp_golomb(width);
  out.exp_golomb(height);
  const std::string unit = std::string("\x42\1", 2) + out.bytes();
  return big_endian(static_cast<uint32_t>(unit.size())) + unit;
}

class Heif : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!heif_is_read()) GTEST_SKIP() << kNoHeif;
  }
};

// -DPORTABLE=ON makes a build without it.
TEST(HeifMissing, IsRefusedByName) {
  if (heif_is_read()) GTEST_SKIP() << "this build has libheif";
  for (const char* name : {"444.heic", "444.avif"}) {
    EXPECT_EQ(heif_error(heif_file(name)),
              "the image is HEIC or AVIF, which this program was built without (libheif was not there)");
  }
}

// Other versions of the decoders and of libheif made the references; they round and upsample otherwise.
TEST_F(Heif, ShowsWhatPillowShows) {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden_path("decode_heif"))) {
    if (entry.path().extension() == ".ppm") continue;
    const std::string name = entry.path().filename();
    const Image image = decode_text(heif_file(name)), want = read_ppm("decode_heif/" + name + ".ppm");
    ASSERT_EQ(image.width, want.width) << name;
    ASSERT_EQ(image.height, want.height) << name;
    int64_t sum = 0;
    int most = 0;
    for (size_t i = 0; i < want.rgb.size(); ++i) {
      const int difference = std::abs(int{image.rgb[i]} - int{want.rgb[i]});
      sum += difference;
      most = std::max(most, difference);
    }
    const double mean = static_cast<double>(sum) / static_cast<double>(want.rgb.size());
    const bool subsampled = name.starts_with("420");
    EXPECT_LT(mean, subsampled ? 3 : 0.6) << name;
    EXPECT_LE(most, subsampled ? 60 : 3) << name;
    ++seen;
  }
  EXPECT_EQ(seen, 13);
}

TEST_F(Heif, SizesThatTheDataClaimsAreCheckedBeforeDecoding) {
  const std::string file = heif_file("444.heic");
  EXPECT_THAT(heif_error(with_data(file, hevc_parameters(60000, 50000))), HasSubstr("60000 x 50000"));
  EXPECT_THAT(heif_error(with_data(file, hevc_parameters(8192, 8192) + hevc_parameters(9000, 9000))),
              HasSubstr("9000 x 9000"));
  std::string boxes = file;
  for (size_t at = 0; (at = boxes.find("ispe", at + 1)) != boxes.npos;) {
    boxes.replace(at + 8, 8, big_endian(20000) + big_endian(20000));
  }
  EXPECT_THAT(heif_error(boxes), HasSubstr("20000 x 20000"));
  BitText sequence;  // AV1's short form for still pictures
  sequence.bits(0b00011, 5);
  sequence.bits(0, 5);
  sequence.bits(0xff, 8);
  sequence.bits(0xfffffffe, 32);
  const std::string unit = sequence.bytes();
  EXPECT_THAT(
      heif_error(with_data(heif_file("444.avif"), "\x0a" + std::string(1, static_cast<char>(unit.size())) + unit)),
      HasSubstr("65536 x 65535"));
}

// Each unit of data says its length; the last one takes what is left of the file.
TEST_F(Heif, OnePictureForAPart) {
  const auto left = [](const std::string& file, size_t used) { return file.size() - (file.find("mdat") + 4) - used; };
  const std::string heic = heif_file("444.heic"), avif = heif_file("444.avif");
  const std::string slice = big_endian(4) + std::string("\x26\1\xaf\1", 4);
  std::string units = slice + slice;
  units += big_endian(static_cast<uint32_t>(left(heic, units.size() + 4)));
  EXPECT_THAT(heif_error(with_data(heic, units + "\x40")), HasSubstr("several pictures"));
  units = "\x12";  // a temporal delimiter, frames, and padding
  units += '\0';
  for (int i = 0; i < 5; ++i) units += "\x32\1\x10";
  const size_t rest = left(avif, units.size() + 3);
  ASSERT_LT(rest, size_t{1} << 14);
  units += std::string("\x7a") + static_cast<char>(0x80 | (rest & 127)) + static_cast<char>(rest >> 7);
  EXPECT_THAT(heif_error(with_data(avif, units)), HasSubstr("several pictures"));
}

TEST_F(Heif, BoundsMemory) {
  EXPECT_THAT(heif_error(heif_file("grid.heic"), {.memory_max = 1000}), HasSubstr("MiB to be decoded"));
  EXPECT_EQ(heif_error(heif_file("grid.heic"), {.memory_max = 1 << 20}), "");
  const std::string file = heif_file("444.avif");
  EXPECT_THROW(decode_image(std::as_bytes(std::span(file)), {}, [] { return true; }), DecodeStopped);
}

TEST_F(Heif, RefusesEveryTruncation) {
  for (const char* name : {"444.heic", "grid.heic", "444.avif", "alpha.avif"}) {
    const std::string whole = heif_file(name);
    for (size_t size = 0; size < whole.size(); size += 1 + size / 40) {
      EXPECT_NE(heif_error(whole.substr(0, size)), "") << name << " cut to " << size << " of " << whole.size();
    }
  }
}

TEST_F(Heif, SurvivesBitFlips) {
  std::mt19937 random(9);
  int decoded = 0, refused = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden_path("decode_heif"))) {
    if (entry.path().extension() == ".ppm") continue;
    const std::string whole = read_file(entry.path());
    for (int round = 0; round < 60; ++round) {
      std::string bytes = whole;
      for (int i = 0; i < 1 + round % 4; ++i) bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
      try {
        const Image image = decode_text(bytes);
        EXPECT_EQ(image.rgb.size(), size_t{3} * image.width * image.height);
        EXPECT_EQ(read_image_size(std::as_bytes(std::span(bytes))), (ImageSize{image.width, image.height}));
        ++decoded;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(decoded, 100);
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace gemma4
