#include "image/decode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <random>

#include "image/container_testing.h"
#include "image/golden_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> decode_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_path("decode"))) {
    if (entry.path().extension() != ".ppm") names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class DecodeGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(DecodeGolden, ShowsWhatPillowShows) {
  if (GetParam().ends_with(".gif") && !gif_is_read()) GTEST_SKIP() << kNoGif;
  const Image image = decode_golden("decode/" + GetParam());
  const Image want = read_ppm("decode/" + GetParam() + ".ppm");
  ASSERT_EQ(image.width, want.width);
  ASSERT_EQ(image.height, want.height);
  EXPECT_EQ(image.rgb, want.rgb);
}

INSTANTIATE_TEST_SUITE_P(Decode, DecodeGolden, ::testing::ValuesIn(decode_cases()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name) c = c == '.' ? '_' : c;
  return name;
});

// Every picture of the tests: the header alone gives the size that the decoder gives.
TEST(ReadImageSize, EqualsTheDecodersForEveryPicture) {
  int pictures = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(golden_path(""))) {
    const auto extension = entry.path().extension();
    if (extension != ".png" && extension != ".jpg" && extension != ".jpeg" && extension != ".webp" &&
        extension != ".gif" && extension != ".bmp" && extension != ".heic" && extension != ".avif") {
      continue;
    }
    const std::string bytes = read_file(entry.path());
    std::optional<Image> image;
    try {
      image = decode_text(bytes);
    } catch (const Error&) {
      continue;  // tests/golden/image_corpus/refused
    }
    const ImageSize size = read_image_size(std::as_bytes(std::span(bytes)));
    EXPECT_EQ(size.width, image->width) << entry.path();
    EXPECT_EQ(size.height, image->height) << entry.path();
    ++pictures;
  }
  EXPECT_GT(pictures, 300);
}

TEST(ReadImageSize, NeedsTheHeaderOnly) {
  for (const char* name : {"rgb.png", "rgb_420.jpg", "lossy.webp", "lossless_alpha.webp"}) {
    const std::string whole = read_file(golden_path(std::string("decode/") + name));
    const std::string cut = whole.substr(0, whole.size() - 20);
    const Image image = decode_text(whole);
    EXPECT_THROW(decode_text(cut), Error) << name;
    EXPECT_EQ(read_image_size(std::as_bytes(std::span(cut))), (ImageSize{image.width, image.height})) << name;
  }
}

TEST(ReadImageSize, EqualsTheDecodersWhereBitsFlip) {
  std::mt19937 random(8);
  for (const std::string& name : decode_cases()) {
    std::string bytes = read_file(golden_path("decode/" + name));
    for (int round = 0; round < 20; ++round) {
      std::string flipped = bytes;
      flipped[random() % flipped.size()] ^= static_cast<char>(1 << random() % 8);
      std::optional<Image> image;
      try {
        image = decode_text(flipped);
      } catch (const Error&) {
        continue;
      }
      EXPECT_EQ(read_image_size(std::as_bytes(std::span(flipped))), (ImageSize{image->width, image->height})) << name;
    }
  }
}

std::string error_of(const std::string& bytes) {
  try {
    decode_text(bytes);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Decode, RefusesWhatIsNoPicture) {
  EXPECT_EQ(error_of(""), "the image is empty");
  EXPECT_THAT(error_of("hello, this is text"), HasSubstr("neither JPEG, PNG, WebP, GIF, BMP, HEIC nor AVIF"));
  EXPECT_THAT(error_of("GIF89a\1"), HasSubstr(gif_is_read() ? "the GIF image is cut short" : "the image is a GIF"));
  EXPECT_THAT(error_of("BM\1"), HasSubstr("the BMP image is cut short"));
  EXPECT_THAT(error_of("\xff\xd8\xff"), HasSubstr("JPEG"));
  EXPECT_THAT(error_of("\x89PNG\r\n\x1a\n"), HasSubstr("PNG"));
  EXPECT_THAT(error_of(std::string("RIFF\4\0\0\0WEBP", 12)), HasSubstr("WebP"));
}

// A PNG whose header claims this size and whose pixel data is next to nothing.
std::string png_claiming(uint32_t width, uint32_t height) {
  return write_png({{"IHDR", png_header(width, height, 8, 2)}, {"IDAT", deflated("")}, {"IEND", ""}});
}

TEST(Decode, ChecksClaimedSizesBeforeAllocating) {
  EXPECT_THAT(error_of(png_claiming(60000, 60000)), HasSubstr("60000 x 60000"));
  EXPECT_NE(error_of(png_claiming(0x7fffffff, 0x7fffffff)), "");
  EXPECT_NE(error_of(png_claiming(0xffffffff, 1)), "");
  EXPECT_NE(error_of(png_claiming(0, 5)), "");
  EXPECT_NE(error_of(png_claiming(5, 0)), "");
  EXPECT_THAT(error_of(png_claiming(8000, 8000)), HasSubstr("too short to hold the pixels"));

  std::string jpeg = read_file(golden_path("decode/rgb_444.jpg"));
  const size_t frame = jpeg.find(std::string("\xff\xc0", 2));  // marker, length, depth, height, width
  ASSERT_NE(frame, jpeg.npos);
  jpeg.replace(frame + 5, 4, "\xff\xdc\xff\xdc");  // 65500, the most libjpeg takes
  EXPECT_THAT(error_of(jpeg), HasSubstr("65500 x 65500"));
  jpeg.replace(frame + 5, 4, std::string("\0\0\0\5", 4));
  EXPECT_NE(error_of(jpeg), "");

  std::string webp = read_file(golden_path("decode/lossless.webp"));
  const size_t signature = webp.find('\x2f', 16);  // VP8L: signature, then 14 bits each of width - 1 and height - 1
  ASSERT_NE(signature, webp.npos);
  webp.replace(signature + 1, 3, "\xff\xff\xff");
  webp[signature + 4] |= 0x0f;
  EXPECT_THAT(error_of(webp), HasSubstr("16384 x 16384"));
}

std::string gif_claiming(uint32_t width, uint32_t height) {
  const auto pair = [](uint32_t v) { return little_endian(v).substr(0, 2); };
  return "GIF89a" + pair(5) + pair(5) + std::string(3, '\0') + "," + std::string(4, '\0') + pair(width) + pair(height) +
         std::string("\0\2\2\x44\1\0;", 7);
}

std::string bmp_claiming(uint32_t width, uint32_t height, uint32_t bits = 24, uint32_t compression = 0) {
  return "BM" + little_endian(0) + little_endian(0) + little_endian(54) + little_endian(40) + little_endian(width) +
         little_endian(height) + little_endian(1 | bits << 16) + little_endian(compression) + std::string(20, '\0') +
         std::string(8, '\1');
}

// cmake --preset dev -B build/nogif -DCMAKE_DISABLE_FIND_PACKAGE_GIF=ON makes such a build.
TEST(Decode, RefusesAGifWhereGiflibIsMissing) {
  if (gif_is_read()) GTEST_SKIP() << "this build has giflib";
  const char* sentence = "the image is a GIF, which this program was built without (giflib was not there)";
  EXPECT_EQ(error_of(read_file(golden_path("decode/plain.gif"))), sentence);
  EXPECT_EQ(error_of(gif_claiming(65535, 65535)), sentence);
}

TEST(Decode, ChecksClaimedSizesOfGif) {
  if (!gif_is_read()) GTEST_SKIP() << kNoGif;
  EXPECT_THAT(error_of(gif_claiming(65535, 65535)), HasSubstr("65535 x 65535"));
  EXPECT_THAT(error_of(gif_claiming(0, 5)), HasSubstr("no pixels"));
  EXPECT_THAT(error_of(gif_claiming(8000, 8000)), HasSubstr("GIF image is"));
  EXPECT_THAT(error_of("GIF89a" + std::string(7, '\0') + ";"), HasSubstr("holds no frame"));
}

TEST(Decode, ChecksClaimedSizesOfBmp) {
  EXPECT_THAT(error_of(bmp_claiming(60000, 60000)), HasSubstr("60000 x 60000"));
  EXPECT_THAT(error_of(bmp_claiming(0x80000000u, 1)), HasSubstr("2147483648 x 1"));
  EXPECT_THAT(error_of(bmp_claiming(1, 0x80000000u)), HasSubstr("1 x 2147483648"));
  EXPECT_THAT(error_of(bmp_claiming(0, 5)), HasSubstr("no pixels"));
  EXPECT_THAT(error_of(bmp_claiming(8000, 8000)), HasSubstr("cut short"));
  EXPECT_THAT(error_of(bmp_claiming(1, 1, 24, 4)), HasSubstr("24 bits for a pixel in a compression of the kind 4"));
  EXPECT_THAT(error_of(bmp_claiming(1, 1, 13)), HasSubstr("13 bits"));
  EXPECT_EQ(error_of(bmp_claiming(2, 1)), "");
}

TEST(Decode, RefusesEveryTruncation) {
  for (const char* name : {"rgb.png", "interlaced.png", "rgb_420.jpg", "lossy.webp", "lossless_alpha.webp", "plain.gif",
                           "interlaced.gif", "palette4.bmp", "rle8.bmp", "565.bmp"}) {
    const std::string whole = read_file(golden_path(std::string("decode/") + name));
    // The last two bytes of a JPEG are its end marker, which libjpeg itself notices; a PNG needs its IEND.
    for (size_t size = 0; size + 1 < whole.size(); size += 1 + size / 40) {
      EXPECT_NE(error_of(whole.substr(0, size)), "") << name << " cut to " << size << " of " << whole.size();
    }
  }
}

// Whatever bits flip: a picture or an Error, never anything else (run under the sanitizers).
TEST(Decode, SurvivesBitFlips) {
  std::mt19937 random(7);
  int decoded = 0, refused = 0;
  for (const std::string& name : decode_cases()) {
    const std::string whole = read_file(golden_path("decode/" + name));
    for (int round = 0; round < 60; ++round) {
      std::string bytes = whole;
      const int flips = 1 + static_cast<int>(random() % 4);
      for (int i = 0; i < flips; ++i) bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
      try {
        const Image image = decode_text(bytes);
        EXPECT_EQ(image.rgb.size(), size_t{3} * image.width * image.height);
        ++decoded;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(decoded, 100);
  EXPECT_GT(refused, 100);
}

TEST(Decode, StopsAJpegOfEndlessScans) {
  std::string jpeg = read_file(golden_path("decode/progressive.jpg"));
  const size_t first = jpeg.find(std::string("\xff\xda", 2));
  const size_t second = jpeg.find(std::string("\xff\xda", 2), first + 2);
  ASSERT_NE(second, jpeg.npos);
  const std::string last_scan = jpeg.substr(jpeg.rfind(std::string("\xff\xda", 2)));
  std::string many = jpeg.substr(0, jpeg.size() - 2);
  for (int i = 0; i < 200; ++i) many += last_scan.substr(0, last_scan.size() - 2);
  EXPECT_THAT(error_of(many + "\xff\xd9"), HasSubstr("scans"));
}

}  // namespace
}  // namespace gemma4
