// Fuzz target: the image decoders, the size that headers claim, then resize and patches of every decoded picture. The
// structured inputs are whole containers, with right lengths and checksums, of mutated pixels and chunks.
#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/generate_testing.h"
#include "base/mutate_testing.h"
#include "image/container_testing.h"
#include "image/patches.h"

namespace gemma4 {
namespace {

// Of a format whose library was not there when this was built.
bool left_out(const std::string& file) {
  try {
    read_image_size(std::as_bytes(std::span(file)));
  } catch (const Error& error) {
    return std::string_view(error.what()).find("built without") != std::string_view::npos;
  }
  return false;
}

const std::vector<std::string>& image_files() {
  static const std::vector<std::string> files = [] {
    std::vector<std::filesystem::path> paths;
    for (const char* folder : {"tests/golden/decode", "tests/golden/decode_heif"}) {
      for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(SOURCE_DIR) / folder)) {
        if (entry.path().extension() != ".ppm") paths.push_back(entry.path());
      }
    }
    std::sort(paths.begin(), paths.end());
    std::vector<std::string> read;
    for (const auto& path : paths) {
      read.push_back(read_file(path));
      if (left_out(read.back())) read.pop_back();
    }
    return read;
  }();
  return files;
}

std::vector<std::string> image_seeds() { return image_files(); }

void flip(Generator& g, std::string& bytes, size_t first, size_t times) {
  for (size_t i = 0; i < times && bytes.size() > first; ++i) {
    bytes[first + g.below(bytes.size() - first)] ^= static_cast<char>(1 << g.below(8));
  }
}

std::string noise(Generator& g, size_t size, int percent) {
  std::string bytes(size, static_cast<char>(g.below(256)));
  for (size_t i = size * static_cast<size_t>(percent) / 100; i-- > 0;)
    bytes[g.below(size)] = static_cast<char>(g.below(256));
  return bytes;
}

// A TIFF block with an orientation.
std::string exif(Generator& g) {
  std::string block("MM\0*\0\0\0\x8\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0", 26);
  block[19] = static_cast<char>(g.below(10));
  if (g.chance(10)) flip(g, block, 0, 3);
  return block;
}

std::string xmp(Generator& g) { return "<x tiff:Orientation=\"" + std::to_string(g.below(10)) + "\"/>"; }

// PNG.

// Chunks that decoders need not look into.
std::pair<std::string, std::string> png_extra(Generator& g) {
  const std::string zeros = g.chance(5) ? std::string(2'000'000, 0) : g.letters();
  switch (g.below(8)) {
    case 0:
      return {"eXIf", exif(g)};
    case 1:
      return {"zTXt", std::string("Raw profile type exif\0\0", 23) + deflated(zeros)};
    case 2:
      return {"iTXt", std::string("XML:com.adobe.xmp\0\1\0\0\0", 22) + deflated(g.chance(50) ? xmp(g) : zeros)};
    case 3:
      return {"iTXt", std::string("XML:com.adobe.xmp\0\0\0\0\0", 22) + xmp(g)};
    case 4:
      return {"zTXt", std::string("Comment\0\0", 9) + deflated(zeros)};
    case 5:
      return {"iCCP", std::string("p\0\0", 3) + deflated(zeros)};
    case 6:
      return {"tEXt", std::string("Comment\0", 8) + g.letters()};
    default:
      return {g.pick({"gAMA", "cHRM", "sBIT", "bKGD", "hIST", "pHYs", "sPLT", "tIME", "acTL", "abCd"}),
              noise(g, g.below(40), 100)};
  }
}

// Bytes of the rows of all passes, each with a filter's number.
std::string png_rows(Generator& g, int width, int height, int bits, bool interlaced) {
  constexpr int kPasses[7][4] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                 {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
  const int share = static_cast<int>(g.below(3)) * 30;
  std::string rows;
  for (int pass = 0; pass < (interlaced ? 7 : 1); ++pass) {
    const auto [x, y, dx, dy] = interlaced
                                    ? std::array{kPasses[pass][0], kPasses[pass][1], kPasses[pass][2], kPasses[pass][3]}
                                    : std::array{0, 0, 1, 1};
    const int across = (width - x + dx - 1) / dx, down = (height - y + dy - 1) / dy;
    for (int row = 0; across > 0 && row < down; ++row) {
      rows += static_cast<char>(g.below(5));
      rows += noise(g, (static_cast<size_t>(across) * bits + 7) / 8, share);
    }
  }
  return rows;
}

std::string generate_png(Generator& g) {
  constexpr std::pair<int, int> kKinds[] = {{0, 1}, {0, 2}, {0, 4}, {0, 8}, {0, 16}, {2, 8}, {2, 16}, {3, 1},
                                            {3, 2}, {3, 4}, {3, 8}, {4, 8}, {4, 16}, {6, 8}, {6, 16}};
  const auto [colour, depth] = kKinds[g.below(std::size(kKinds))];
  const int samples = colour == 2 ? 3 : colour == 4 ? 2 : colour == 6 ? 4 : 1;
  const int most = g.chance(2) ? 1500 : 60, width = 1 + static_cast<int>(g.below(most)),
            height = 1 + static_cast<int>(g.below(most));
  const bool interlaced = g.chance(40);
  Chunks chunks = {{"IHDR", png_header(width, height, depth, colour, interlaced)}};
  for (size_t i = g.count(3, 300); i-- > 0;) chunks.push_back(png_extra(g));
  if (colour == 3) chunks.emplace_back("PLTE", noise(g, 3 * (1 + g.below(size_t{1} << depth)), 100));
  if (colour != 4 && colour != 6 && g.chance(30)) {
    chunks.emplace_back("tRNS",
                        noise(g, colour == 3 ? 1 + g.below(size_t{1} << depth) : 2 * static_cast<size_t>(samples), 50));
  }
  std::string pixels = deflated(png_rows(g, width, height, samples * depth, interlaced));
  if (g.chance(5)) flip(g, pixels, 0, 1);
  for (size_t at = 0; at < pixels.size();) {
    const size_t size = g.chance(70) ? pixels.size() - at : 1 + g.below(pixels.size() - at);
    chunks.emplace_back("IDAT", pixels.substr(at, size));
    at += size;
  }
  for (size_t i = g.count(2, 100); i-- > 0;) chunks.push_back(png_extra(g));
  chunks.emplace_back("IEND", "");
  if (g.chance(3)) std::swap(chunks[g.below(chunks.size())], chunks[g.below(chunks.size())]);
  return write_png(chunks);
}

// JPEG and WebP: a file of the tests, with other pixels and other chunks.

std::string file_that_begins(Generator& g, std::string_view magic, size_t at = 0) {
  while (true) {
    const std::string& file = image_files()[g.below(image_files().size())];
    if (file.size() > at && std::string_view(file).substr(at).starts_with(magic)) return file;
  }
}

std::string generate_jpeg(Generator& g) {
  Chunks chunks = read_jpeg(file_that_begins(g, "\xff\xd8"));
  const auto any = [&] { return chunks.begin() + static_cast<std::ptrdiff_t>(g.below(chunks.size())); };
  const auto scan = std::find_if(chunks.begin(), chunks.end(), [](const auto& chunk) { return chunk.first == "\xda"; });
  Chunks added;
  for (size_t i = g.count(2, 2000); i-- > 0;) {
    const std::string data = g.chance(50)   ? std::string("Exif\0\0", 6) + exif(g)
                             : g.chance(50) ? std::string("http://ns.adobe.com/xap/1.0/\0", 29) + xmp(g)
                                            : noise(g, g.below(200), 100);
    added.emplace_back(g.pick({"\xe0", "\xe1", "\xe2", "\xed", "\xfe"}), data);
  }
  chunks.insert(g.chance(50) ? scan : chunks.begin(), added.begin(), added.end());
  if (g.chance(20)) chunks.insert(chunks.end(), *any());
  if (g.chance(10)) {  // the last scan many times
    const Chunks last(chunks.end() - 2, chunks.end());
    for (size_t i = g.below(80); i-- > 0;) chunks.insert(chunks.end(), last.begin(), last.end());
  }
  for (auto& [name, data] : chunks) {
    if (name == "scan" && g.chance(40)) flip(g, data, 0, 1 + g.below(4));
    const bool frame = name == "\xc0" || name == "\xc1" || name == "\xc2";
    if (frame && data.size() > 5 && g.chance(10)) data[2] = data[4] = static_cast<char>(g.below(256));
    if (frame && data.size() > 5 && g.chance(2)) data[1] = data[3] = static_cast<char>(g.below(16));
    if (g.chance(1)) flip(g, data, 0, 1);
  }
  return write_jpeg(chunks);
}

std::string generate_webp(Generator& g) {
  Chunks chunks = read_webp(file_that_begins(g, "RIFF"));
  for (auto& [name, data] : chunks) {
    const size_t header = name == "VP8 " ? 40 : name == "VP8L" ? 60 : name == "ANMF" ? 70 : data.size();
    if (g.chance(30)) flip(g, data, header, 1 + g.below(3));
    if (g.chance(2)) flip(g, data, 0, 1);
  }
  for (size_t i = g.count(2, 300); i-- > 0;) {
    chunks.emplace_back(g.pick({"EXIF", "XMP ", "ICCP", "abcd"}), g.chance(50) ? exif(g) : xmp(g));
  }
  return write_webp(chunks);
}

std::string two_bytes(size_t v) { return little_endian(static_cast<uint32_t>(v)).substr(0, 2); }

// Blocks of at most 255 bytes, then an empty one.
std::string gif_blocks(const std::string& data) {
  std::string out;
  for (size_t at = 0; at < data.size(); at += 255) {
    const std::string block = data.substr(at, 255);
    out += static_cast<char>(block.size()) + block;
  }
  return out + '\0';
}

// Codes of random values, none of them longer than the first: the table is cleared before it grows.
std::string gif_codes(Generator& g, size_t pixels, int depth) {
  std::string out;
  uint64_t held = 0;
  int bits = 0;
  const auto put = [&](uint64_t code) {
    held |= code << bits;
    for (bits += depth + 1; bits >= 8; bits -= 8, held >>= 8) out += static_cast<char>(held);
  };
  const size_t most = (size_t{1} << depth) - 2;
  for (size_t i = 0; i < pixels; ++i) {
    if (i % most == 0) put(uint64_t{1} << depth);
    put(g.below(size_t{1} << depth));
  }
  put((uint64_t{1} << depth) + 1);
  return bits > 0 ? out + static_cast<char>(held) : out;
}

std::string generate_gif(Generator& g) {
  if (g.chance(20)) {
    std::string file = file_that_begins(g, "GIF");
    flip(g, file, 6, 1 + g.below(4));
    return file;
  }
  const int depth = 2 + static_cast<int>(g.below(7)), table = static_cast<int>(g.below(8));
  const size_t most = g.chance(2) ? 1500 : 60, width = 1 + g.below(most), height = 1 + g.below(most);
  const bool shared = g.chance(70);
  std::string file = "GIF89a" + two_bytes(g.below(most)) + two_bytes(g.below(most)) +
                     static_cast<char>(shared ? 0x80 | table : 0) + std::string(2, '\0');
  if (shared) file += noise(g, size_t{6} << table, 100);
  for (size_t i = g.count(2, 300); i-- > 0;) {
    const bool control = g.chance(50);
    const std::string data = control ? noise(g, 4, 100) : g.letters();
    file += std::string("!") + (control ? '\xf9' : static_cast<char>(g.below(256))) + gif_blocks(data);
  }
  file += "," + two_bytes(g.below(20)) + two_bytes(g.below(20)) + two_bytes(width) + two_bytes(height);
  const bool own = g.chance(30);
  file += static_cast<char>((own ? 0x80 | table : 0) | (g.chance(30) ? 0x40 : 0));
  if (own) file += noise(g, size_t{6} << table, 100);
  std::string codes = gif_codes(g, width * height, depth);
  if (g.chance(30)) flip(g, codes, 0, 1 + g.below(3));
  return file + static_cast<char>(depth) + gif_blocks(codes) + ";";
}

std::string generate_bmp(Generator& g) {
  if (g.chance(30)) {
    std::string file = file_that_begins(g, "BM");
    flip(g, file, 10, 1 + g.below(4));
    return file;
  }
  constexpr std::pair<uint32_t, uint32_t> kKinds[] = {{1, 0},  {4, 0},  {8, 0},  {16, 0}, {24, 0}, {32, 0},
                                                      {16, 3}, {32, 3}, {32, 6}, {8, 1},  {4, 2}};
  const auto [bits, compression] = kKinds[g.below(std::size(kKinds))];
  const uint32_t most = g.chance(2) ? 1500 : 60, width = 1 + static_cast<uint32_t>(g.below(most)),
                 height = 1 + static_cast<uint32_t>(g.below(most));
  constexpr uint32_t kSizes[] = {40, 40, 52, 56, 64, 108, 124};
  const uint32_t size = kSizes[g.below(std::size(kSizes))];
  std::string info = little_endian(size) + little_endian(width) + little_endian(g.chance(30) ? 0u - height : height) +
                     little_endian(1 | bits << 16) + little_endian(compression) + std::string(12, '\0') +
                     little_endian(static_cast<uint32_t>(g.below(300))) + little_endian(0);
  const std::string masks =
      g.chance(90) ? little_endian(0xf800) + little_endian(0x7e0) + little_endian(0x1f) : noise(g, 12, 100);
  info += masks + little_endian(0);
  info.resize(std::max<size_t>(size, compression == 3 ? 52 : compression == 6 ? 56 : 40), '\0');
  if (bits <= 8) info += noise(g, size_t{4} << bits, 100);
  const bool runs = compression == 1 || compression == 2;
  const size_t bytes = runs ? g.below(2000) : size_t{(bits * width + 31) / 32 * 4} * height;
  return "BM" + little_endian(0) + little_endian(0) + little_endian(static_cast<uint32_t>(14 + info.size())) + info +
         noise(g, bytes, 100) + (runs ? std::string("\0\1", 2) : "");
}

// HEIC and AVIF: a file of the tests with other bits, mostly in the coded pictures.
std::string generate_heif(Generator& g) {
  std::string file = file_that_begins(g, "ftyp", 4);
  const size_t data = file.find("mdat");
  if (g.chance(70) && data != file.npos) flip(g, file, data + 4, 1 + g.below(6));
  if (g.chance(30)) {
    std::string boxes = file.substr(0, data);
    flip(g, boxes, 8, 1 + g.below(3));
    file.replace(0, boxes.size(), boxes);
  }
  return file;
}

std::string generate_image(std::mt19937_64& random) {
  Generator g(random);
  const auto kind = g.below(16);
  const auto there = [](std::string_view magic, size_t at) {
    return std::ranges::any_of(image_files(),
                               [&](std::string_view file) { return file.substr(at).starts_with(magic); });
  };
  static const bool gif = there("GIF", 0), heif = there("ftyp", 4);
  if (kind >= 14 && heif) return generate_heif(g);
  if (kind >= 10) return kind < 12 && gif ? generate_gif(g) : generate_bmp(g);
  return kind < 5 ? generate_png(g) : kind < 8 ? generate_jpeg(g) : generate_webp(g);
}

void run_image(const std::string& input) {
  const auto bytes = std::as_bytes(std::span(input.data(), input.size()));
  const Image image = decode_image(bytes);
  if (image.rgb.size() != size_t{3} * image.width * image.height) std::abort();
  if (read_image_size(bytes) != ImageSize{image.width, image.height}) std::abort();
  if (image.rgb.size() < 4'000'000) preprocess_image(image, 70, 16, 3);
}

const RegisterFuzz kImage({"image",
                           image_seeds,
                           run_image,
                           {"\xff\xda", "\xff\xc0", "\xff\xc4", "IHDR", "eXIf", "VP8X", "ALPH", "ANMF", "GIF89a", "BM",
                            "ispe", "hvcC", "iloc"},
                           generate_image,
                           640});

}  // namespace
}  // namespace gemma4
