// The whole way from file to patches, against Hugging Face's own results.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "image/golden_testing.h"
#include "image/patches.h"
#include "image/resize.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

struct Difference {
  int64_t values = 0, above_1 = 0, above_2 = 0, any = 0;
};

// The reference keeps every `stride`-th patch as 8-bit values, and the sum of all of them.
Difference compare(const json& row, const GoldenArrays& arrays, const Patches& patches) {
  const std::string key =
      row["image"].get<std::string>() + "." + std::to_string(row["budget"].get<int>()) + ".torchvision";
  const auto want = arrays.get<uint8_t>(key + ".patches_u8");
  const auto positions = arrays.get<int32_t>(key + ".positions");
  const int stride = row["stride"];
  Difference d;
  for (size_t i = 0; i < positions.size() / 2; ++i) {
    EXPECT_EQ(patches.xy[2 * i * stride], positions[2 * i]);
    EXPECT_EQ(patches.xy[2 * i * stride + 1], positions[2 * i + 1]);
    for (int j = 0; j < 768; ++j, ++d.values) {
      const int got = static_cast<int>(std::lround(patches.values[i * stride * 768 + j] * 255));
      const int error = std::abs(got - want[i * 768 + j]);
      d.any += error > 0;
      d.above_1 += error > 1;
      d.above_2 += error > 2;
    }
  }
  return d;
}

int64_t pixel_sum(const Patches& patches) {
  int64_t sum = 0;
  for (const float v : patches.values) sum += std::lround(v * 255);
  return sum;
}

TEST(Preprocess, EqualsTorchvision) {
  const json rows = read_json<json>(read_file(golden_path("preprocess/golden.json")));
  const GoldenArrays arrays("preprocess/golden.safetensors");
  int checked = 0;
  for (const json& row : rows) {
    if (row["backend"] != "torchvision") continue;
    const std::string name = row["image"];
    SCOPED_TRACE(name + " at " + row["budget"].dump());
    const Image image = decode_golden("preprocess/images/" + name);
    EXPECT_EQ(image.width, row["width"].get<int>());
    EXPECT_EQ(image.height, row["height"].get<int>());
    const Patches patches = preprocess_image(image, row["budget"], 16, 3);
    EXPECT_EQ(patches.grid_w, row["grid"][0].get<int>());
    EXPECT_EQ(patches.grid_h, row["grid"][1].get<int>());
    EXPECT_EQ(patches.soft_tokens, row["soft_tokens"].get<int>());
    ASSERT_EQ(patches.xy.size(), 2 * row["patches"].get<size_t>());
    const Difference d = compare(row, arrays, patches);
    const int64_t sum = pixel_sum(patches), want_sum = row["pixel_sum"];
    if (name.ends_with(".png")) {
      EXPECT_EQ(d.any, 0);
      EXPECT_EQ(sum, want_sum);
    } else {  // another build of libjpeg may round chroma differently
      EXPECT_LE(d.above_1, d.values / 1000);
      EXPECT_EQ(d.above_2, 0);
      EXPECT_NEAR(static_cast<double>(sum), static_cast<double>(want_sum), 1e-3 * want_sum);
    }
    ++checked;
  }
  EXPECT_EQ(checked, 27);
}

TEST(Preprocess, EqualsTheTinyModelsPixels) {
  const json cases = read_json<json>(read_file(golden_path("tiny/golden/cases.json")));
  int images = 0;
  for (const json& c : cases["cases"]) {
    if (c["images"].empty()) continue;
    const GoldenArrays arrays("tiny/golden/" + c["name"].get<std::string>() + ".safetensors");
    std::vector<float> values;
    std::vector<int32_t> xy;
    for (const json& name : c["images"]) {
      const Patches p = preprocess_image(decode_golden("tiny/images/" + name.get<std::string>()), 70, 16, 3);
      values.insert(values.end(), p.values.begin(), p.values.end());
      xy.insert(xy.end(), p.xy.begin(), p.xy.end());
      ++images;
    }
    const auto want = arrays.get<float>("pixel_values");
    ASSERT_EQ(values.size(), want.size()) << c["name"];
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(values[i], want[i], 0) << c["name"] << " value " << i;
    EXPECT_EQ(xy, arrays.get<int32_t>("pixel_position_ids")) << c["name"];
  }
  EXPECT_EQ(images, 4);
}

// Vectors of transformers' test_image_processing_gemma4.py.
TEST(FitSize, FollowsTheRule) {
  const auto fit = [](int patch, int max_patches, int pool, int h, int w) {
    return fit_size({w, h}, max_patches, patch, pool);
  };
  EXPECT_EQ(fit(16, 256, 1, 256, 256), (ImageSize{256, 256}));
  EXPECT_EQ(fit(16, 256, 1, 512, 512), (ImageSize{256, 256}));
  EXPECT_EQ(fit(10, 200, 1, 50, 10000), (ImageSize{2000, 10}));
  EXPECT_EQ(fit(10, 200, 1, 25, 10000), (ImageSize{2000, 10}));
  EXPECT_EQ(fit(16, 2304, 6, 2785, 34), (ImageSize{96, 6144}));
  EXPECT_EQ(fit(10, 200, 1, 25, 20000), (ImageSize{2000, 10}));
  EXPECT_EQ(fit(4, 64, 2, 50, 1000), (ImageSize{128, 8}));
  EXPECT_EQ(fit(5, 100, 3, 100, 100), (ImageSize{45, 45}));
  EXPECT_EQ(fit(5, 20, 3, 5, 100), (ImageSize{30, 15}));
  EXPECT_EQ(fit(16, 2520, 3, 1080, 1920), (ImageSize{1056, 576}));
  EXPECT_EQ(fit(16, 10080, 3, 480, 640), (ImageSize{1824, 1344}));
  EXPECT_EQ(fit(16, 2520, 3, 1, 60000), (ImageSize{280 * 48, 48}));
  EXPECT_THROW(fit(16, 4, 3, 100, 100), Error);
}

TEST(ImageBudget, NamesTheAllowedOnes) {
  for (const int budget : kImageBudgets) EXPECT_NO_THROW(check_image_budget(budget));
  try {
    check_image_budget(100);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("70, 140, 280, 560, 1120 soft tokens, not 100"));
  }
}

Image noise(int width, int height) {
  Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  uint32_t state = 1;
  for (uint8_t& v : image.rgb) v = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  return image;
}

TEST(Resize, KeepsAFlatPictureFlatAndTouchesNoOtherByte) {
  for (const ImageSize from :
       {ImageSize{1, 1}, ImageSize{1, 300}, ImageSize{300, 1}, ImageSize{17, 9}, ImageSize{257, 31}}) {
    for (const ImageSize to :
         {ImageSize{48, 48}, ImageSize{48, from.height}, ImageSize{from.width, 48}, ImageSize{3, 5}, ImageSize{1, 1}}) {
      const Image flat{from.width, from.height, std::vector<uint8_t>(size_t{3} * from.width * from.height, 77)};
      const Image out = resize_image(flat, to);
      EXPECT_EQ(out.width, to.width);
      EXPECT_EQ(out.height, to.height);
      EXPECT_EQ(out.rgb, std::vector<uint8_t>(size_t{3} * to.width * to.height, 77));
    }
  }
}

// Rows are filtered in tiles through a ring; a picture's mirror image must give the mirrored result.
TEST(Resize, CommutesWithTurningUpsideDown) {
  const Image image = noise(61, 143);
  Image turned = image;
  for (int i = 0; i < 61 * 143; ++i) {
    for (int c = 0; c < 3; ++c) turned.rgb[3 * (61 * 143 - 1 - i) + c] = image.rgb[3 * i + c];
  }
  const ImageSize to{48, 96};
  const Image a = resize_image(image, to), b = resize_image(turned, to);
  int different = 0;
  for (int i = 0; i < to.width * to.height; ++i) {
    for (int c = 0; c < 3; ++c) {
      different += std::abs(a.rgb[3 * i + c] - b.rgb[3 * (to.width * to.height - 1 - i) + c]) > 1;
    }
  }
  EXPECT_EQ(different, 0);
}

TEST(Patches, OfAnyPatchSizeAndPooling) {
  const Image image = noise(24, 16);
  const Patches p = make_patches(image, 4, 2);
  EXPECT_EQ(p.grid_w, 6);
  EXPECT_EQ(p.grid_h, 4);
  EXPECT_EQ(p.soft_tokens, 6);
  EXPECT_EQ(p.xy[2 * 7], 1);
  EXPECT_EQ(p.xy[2 * 7 + 1], 1);
  // Patch 7 is column 1, row 1; its pixel (dy 2, dx 3), green.
  EXPECT_EQ(p.values[7 * 48 + (2 * 4 + 3) * 3 + 1], image.rgb[3 * ((4 + 2) * 24 + 4 + 3) + 1] * (1 / 255.f));
}

}  // namespace
}  // namespace gemma4
