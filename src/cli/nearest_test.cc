#include "cli/nearest.h"

#include <gtest/gtest.h>

namespace gemma4 {
namespace {

TEST(Nearest, NamesWhatFewEditsMake) {
  const std::vector<std::string> names = {"--prompt", "--prompt-file", "--top-p", "--top-k", "-p"};
  EXPECT_EQ(nearest("--promt", names), "--prompt");
  EXPECT_EQ(nearest("--pormpt", names), "--prompt") << "two neighbours swapped are one edit";
  EXPECT_EQ(nearest("--prompt-fle", names), "--prompt-file");
  EXPECT_EQ(nearest("--top_p", names), "--top-p");
  EXPECT_EQ(nearest("/hlep", {"/help", "/set"}), "/help");
}

TEST(Nearest, WhatOneBeganToTypeIsNear) {
  EXPECT_EQ(nearest("--prompt-fi", {"--prompt", "--prompt-file"}), "--prompt-file");
  EXPECT_EQ(nearest("quant", {"run", "quantize"}), "quantize");
  EXPECT_EQ(nearest("--", {"--prompt"}), "");
}

TEST(Nearest, NothingIsNearToWhatIsFar) {
  EXPECT_EQ(nearest("--nope", {"--name", "--prompt"}), "") << "three edits of four letters";
  EXPECT_EQ(nearest("-x", {"-p", "-m"}), "") << "every letter is one edit from every other";
  EXPECT_EQ(nearest(std::string(100000, 'a'), {"run"}), "");
  EXPECT_EQ(nearest("", {"run"}), "");
}

}  // namespace
}  // namespace gemma4
