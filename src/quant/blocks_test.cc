#include "quant/blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/file.h"

namespace gemma4 {
namespace {

struct Case {
  Format format;
  const char* file;
};

class Blocks : public ::testing::TestWithParam<Case> {};

// Against the gguf package's dequantize (tools/make_blocks_golden.py).
TEST_P(Blocks, UnpackLikeGguf) {
  const std::string base = std::string(SOURCE_DIR) + "/tests/golden/blocks/" + GetParam().file;
  const std::string blocks = read_file(base + ".blocks"), floats = read_file(base + ".f32");
  const FormatInfo& facts = info(GetParam().format);
  ASSERT_EQ(blocks.size(), 4u * facts.block_bytes);
  std::vector<float> want(floats.size() / 4), got(want.size());
  ASSERT_EQ(want.size(), 4u * facts.block_cols);
  std::memcpy(want.data(), floats.data(), floats.size());
  unpack_blocks(GetParam().format, reinterpret_cast<const uint8_t*>(blocks.data()), 4 * facts.block_cols, got.data());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_FLOAT_EQ(got[i], want[i]) << i;
}

INSTANTIATE_TEST_SUITE_P(All, Blocks,
                         ::testing::Values(Case{Format::kQ4_0, "q4_0"}, Case{Format::kQ4_1, "q4_1"},
                                           Case{Format::kQ5_0, "q5_0"}, Case{Format::kQ5_1, "q5_1"},
                                           Case{Format::kQ8_0, "q8_0"}, Case{Format::kQ2_K, "q2_k"},
                                           Case{Format::kQ3_K, "q3_k"}, Case{Format::kQ4_K, "q4_k"},
                                           Case{Format::kQ5_K, "q5_k"}, Case{Format::kQ6_K, "q6_k"}),
                         [](const auto& info) { return std::string(info.param.file); });

// Packing is checked against the gguf package through whole files in checkpoint/gguf/gguf_export_test.cc; here: what it
// makes of values that are easy to get wrong.
TEST(PackBlocks, KeepsTheLargestValueAndZero) {
  std::vector<float> in(32, 0.f), out(32);
  for (const Format format : {Format::kQ4_0, Format::kQ4_1, Format::kQ5_0, Format::kQ5_1, Format::kQ8_0}) {
    std::vector<uint8_t> block(info(format).block_bytes, 0xff);
    for (const float largest : {0.f, 1.f, -1.f, 0x1p-10f}) {
      in[5] = largest;
      pack_blocks(format, in.data(), 32, block.data());
      unpack_blocks(format, block.data(), 32, out.data());
      EXPECT_NEAR(out[5], largest, 1e-3 * std::abs(largest)) << info(format).name;
      EXPECT_NEAR(out[6], 0, 1e-3 * std::abs(largest)) << info(format).name;
    }
  }
  EXPECT_FALSE(can_pack_blocks(Format::kQ4_K));
}

}  // namespace
}  // namespace gemma4
