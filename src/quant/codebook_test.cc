#include "quant/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <vector>

#include "base/file.h"

namespace gemma4 {
namespace {

constexpr int kBlocks = 4;

std::vector<float> unpack(const CodebookType& type, const std::string& blocks) {
  std::vector<float> values;
  std::vector<int8_t> codes(static_cast<size_t>(type.block_cols));
  std::vector<float> scales(codes.size() / static_cast<size_t>(type.group));
  for (int i = 0; i < kBlocks; ++i) {
    type.unpack(reinterpret_cast<const uint8_t*>(blocks.data()) + i * type.block_bytes, codes.data(), scales.data());
    for (size_t c = 0; c < codes.size(); ++c) values.push_back(codes[c] * scales[c / static_cast<size_t>(type.group)]);
  }
  return values;
}

// Equal to the gguf package's dequantize to the last bit (tools/make_blocks_golden.py): no rounding happens on the way.
TEST(Codebook, ValuesAreThoseOfGguf) {
  EXPECT_EQ(codebook_types().size(), 13u);
  for (const CodebookType& type : codebook_types()) {
    SCOPED_TRACE(type.name);
    std::string file(type.name);
    std::ranges::transform(file, file.begin(), [](unsigned char c) { return std::tolower(c); });
    const std::string base = std::string(SOURCE_DIR) + "/tests/golden/blocks/" + file;
    const std::string blocks = read_file(base + ".blocks"), floats = read_file(base + ".f32");
    ASSERT_EQ(blocks.size(), static_cast<size_t>(kBlocks * type.block_bytes));
    std::vector<float> want(floats.size() / sizeof(float));
    std::memcpy(want.data(), floats.data(), floats.size());
    const std::vector<float> got = unpack(type, blocks);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i], want[i]) << i;
  }
}

TEST(Codebook, FindsATypeByItsNumber) {
  EXPECT_EQ(codebook_of_ggml_type(23)->name, "IQ4_XS");
  EXPECT_EQ(codebook_of_ggml_type(12), nullptr);  // Q4_K
  EXPECT_EQ(codebook_of_ggml_type(1000), nullptr);
}

}  // namespace
}  // namespace gemma4
