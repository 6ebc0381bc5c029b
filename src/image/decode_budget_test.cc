// What a picture may cost: files that are small and ask for much, and stopping a decoder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <ctime>
#include <fstream>
#include <new>

#include "base/slow_build_testing.h"
#include "image/container_testing.h"
#include "image/golden_testing.h"

namespace gemma4 {
namespace {

using ::testing::HasSubstr;

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

std::string golden_file(const std::string& name) { return read_file(golden_path("decode/" + name)); }

Image decode(const std::string& file, const ImageLimits& limits = {}) {
  return decode_image(std::as_bytes(std::span(file)), limits);
}

std::string decode_error(const std::string& file, const ImageLimits& limits = {}) {
  try {
    decode(file, limits);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Behind the first chunk.
std::string png_with(const std::string& file, const Chunks& added) {
  Chunks chunks = read_png(file);
  chunks.insert(chunks.begin() + 1, added.begin(), added.end());
  return write_png(chunks);
}

constexpr int kBig = 8192;

// A progressive JPEG of 8192 x 8192: a small one whose header claims it, with its last scan many times.
std::string big_progressive(int more_scans) {
  Chunks chunks = read_jpeg(golden_file("progressive.jpg"));
  for (auto& [name, data] : chunks) {
    if (name == "\xc2") data.replace(1, 4, std::string("\x20\0\x20\0", 4));
  }
  const Chunks last(chunks.end() - 2, chunks.end());
  for (int i = 0; i < more_scans; ++i) chunks.insert(chunks.end(), last.begin(), last.end());
  return write_jpeg(chunks);
}

// A PNG of 8192 x 8192 with one bit for each pixel, interlaced: 8 KB.
std::string big_png() {
  size_t bytes = 0;
  for (const auto& [first_x, first_y, step_x, step_y] :
       {std::array{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}}) {
    const int width = (kBig - first_x + step_x - 1) / step_x, height = (kBig - first_y + step_y - 1) / step_y;
    bytes += static_cast<size_t>(height) * (1 + (width + 7) / 8);
  }
  return write_png(
      {{"IHDR", png_header(kBig, kBig, 1, 0, true)}, {"IDAT", deflated(std::string(bytes, 0))}, {"IEND", ""}});
}

TEST(DecodeBudget, InflatesNoTextOfAPng) {
  const std::string zeros = deflated(std::string(15'000'000, 0));
  const Image plain = decode(golden_file("rgb.png"));
  const std::pair<std::string, std::string> kinds[] = {
      {"zTXt", std::string("Comment\0\0", 9) + zeros},
      {"iTXt", std::string("Comment\0\1\0\0\0", 12) + zeros},
      {"iCCP", std::string("profile\0\0", 9) + zeros},
      {"zTXt", std::string("Raw profile type exif\0\0", 23) + zeros},
      {"iTXt", std::string("XML:com.adobe.xmp\0\1\0\0\0", 22) + zeros}};
  for (const auto& kind : kinds) {
    const std::string file = png_with(golden_file("rgb.png"), Chunks(250, kind));
    const double start = cpu_seconds();
    EXPECT_EQ(decode(file).rgb, plain.rgb);
    EXPECT_EQ(read_image_size(std::as_bytes(std::span(file))), (ImageSize{plain.width, plain.height}));
    EXPECT_LT(cpu_seconds() - start, 3) << kind.first;
  }
}

TEST(DecodeBudget, FindsTheOrientationBehindManyTexts) {
  const std::string exif("\nexif\n26\n4d4d002a000000080001011200030000000100060000\n");
  Chunks added(1000, {"tEXt", std::string("Comment\0x", 9)});
  added.emplace_back("zTXt", std::string("Raw profile type exif\0\0", 23) + deflated(exif));
  const Image plain = decode(golden_file("rgb.png"));
  const Image turned = decode(png_with(golden_file("rgb.png"), added));
  EXPECT_EQ(turned.width, plain.height);
  EXPECT_NE(turned.rgb, plain.rgb);
}

TEST(DecodeBudget, BoundsScansTimesPixels) {
  EXPECT_EQ(decode_error(big_progressive(0)), "");
  const double start = cpu_seconds();
  EXPECT_THAT(decode_error(big_progressive(50)), HasSubstr("more than the 16 scans"));
  EXPECT_LT(cpu_seconds() - start, kSlowBuild ? 30 : 10);
}

TEST(DecodeBudget, BoundsMemory) {
  const ImageLimits limits = {.memory_max = int64_t{200} << 20};
  EXPECT_THAT(decode_error(big_progressive(0), limits), HasSubstr("MiB to be decoded, more than the 200 MiB"));
  EXPECT_EQ(decode_error(big_png(), limits), "");
  EXPECT_THAT(decode_error(big_png(), {.memory_max = int64_t{100} << 20}), HasSubstr("192 MiB"));
  EXPECT_THAT(decode_error(golden_file("lossless.webp"), {.memory_max = 100}), HasSubstr("MiB"));
  Chunks chunks = read_jpeg(big_progressive(0));  // four components of all pixels, as CMYK has, are too much
  for (auto& [name, data] : chunks) {
    if (name == "\xc2") data = data.substr(0, 5) + "\4" + std::string("\1\x11\0\2\x11\0\3\x11\0\4\x11\0", 12);
  }
  EXPECT_THAT(decode_error(write_jpeg(chunks)), HasSubstr("704 MiB to be decoded, more than the 512 MiB"));
}

TEST(DecodeBudget, BoundsGifAndBmp) {
  for (const char* name : {"plain.gif", "frame_in_canvas.gif", "rgb.bmp", "rle8.bmp"}) {
    if (std::string_view(name).ends_with(".gif") && !gif_is_read()) continue;
    EXPECT_THAT(decode_error(golden_file(name), {.memory_max = 100}), HasSubstr("MiB to be decoded")) << name;
    const std::string file = golden_file(name);
    EXPECT_THROW(decode_image(std::as_bytes(std::span(file)), {}, [] { return true; }), DecodeStopped) << name;
  }
  // 8192 x 8192 of runs, half a megabyte: rows of 255 and 32 pixels each.
  std::string runs;
  for (int y = 0; y < kBig; ++y) {
    for (int x = 0; x < 32; ++x) runs += "\xff\1";
    runs += std::string("\0\0", 2);
  }
  const std::string bmp = "BM" + little_endian(0) + little_endian(0) + little_endian(54) + little_endian(40) +
                          little_endian(kBig) + little_endian(kBig) + little_endian(1 | 8 << 16) + little_endian(1) +
                          std::string(20, '\0') + runs + std::string("\0\1", 2);
  int calls = 0;
  const double start = cpu_seconds();
  decode_image(std::as_bytes(std::span(bmp)), {}, [&] { return ++calls, false; });
  EXPECT_GE(calls, 8);
  EXPECT_LT(cpu_seconds() - start, kSlowBuild ? 30 : 10);
}

TEST(DecodeBudget, KeepsNoMarkersOfAJpeg) {
  const std::string file = golden_file("rgb_420.jpg");
  std::string markers;
  for (int i = 0; i < 1'000'000; ++i) markers.append("\xff\xe1\0\2", 4);
  const std::string many = file.substr(0, 2) + markers + file.substr(2);
  const double start = cpu_seconds();
  EXPECT_EQ(decode(many).rgb, decode(file).rgb);
  EXPECT_EQ(decode_error(many, {.memory_max = 1 << 20}), "");
  EXPECT_LT(cpu_seconds() - start, 5);
}

TEST(DecodeBudget, StopsWhenAsked) {
  for (const std::string& file :
       {big_png(), big_progressive(4), golden_file("lossy.webp"), golden_file("rgb_420.jpg")}) {
    const auto bytes = std::as_bytes(std::span(file));
    EXPECT_THROW(decode_image(bytes, {}, [] { return true; }), DecodeStopped);
  }
  for (const std::string& file : {big_png(), big_progressive(4)}) {  // stops in the middle, and was asked often
    int calls = 0;
    const auto bytes = std::as_bytes(std::span(file));
    decode_image(bytes, {}, [&] { return ++calls, false; });
    EXPECT_GT(calls, 60);
    const int half = calls / 2;
    calls = 0;
    EXPECT_THROW(decode_image(bytes, {}, [&] { return ++calls > half; }), DecodeStopped);
    EXPECT_EQ(calls, half + 1);
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// The server answers 503 to std::bad_alloc: the file is not at fault.
TEST(DecodeBudgetDeathTest, ShortMemoryIsNotAFaultOfTheFile) {
  const auto decode_with_little = [](const std::string& file) {
    size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t bytes = pages * 4096 + (rlim_t{64} << 20);
    const rlimit limit = {bytes, bytes};
    setrlimit(RLIMIT_AS, &limit);
    try {
      decode(file);
    } catch (const std::bad_alloc&) {
      std::exit(7);
    } catch (const Error& error) {
      std::fprintf(stderr, "%s", error.what());
    }
    std::exit(0);
  };
  const std::string jpeg = big_progressive(0), png = big_png();
  EXPECT_EXIT(decode_with_little(jpeg), ::testing::ExitedWithCode(7), "");
  EXPECT_EXIT(decode_with_little(png), ::testing::ExitedWithCode(7), "");
}
#endif

}  // namespace
}  // namespace gemma4
