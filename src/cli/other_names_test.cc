// OtherNames: what other programs call our options is answered with an option that exists.
#include "cli/other_names.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "cli/shell/command_list.h"

namespace gemma4 {
namespace {

std::vector<std::string> options_of(const std::string& name) {
  const auto commands = list_commands();
  const auto command = std::ranges::find(commands, name, &ListedCommand::name);
  std::vector<std::string> names;
  for (const OptionInfo& option : command->info.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  return names;
}

TEST(OtherNames, AreThoseOfTheCommand) {
  const auto run = options_of("run"), serve = options_of("serve"), make = options_of("export"),
             quantize = options_of("quantize");
  for (const auto& [theirs, ours] : {std::pair("--ctx-size", "--max-seq-len"),
                                     {"-n", "--max-new-tokens"},
                                     {"--max-tokens", "--max-new-tokens"},
                                     {"--temp", "--temperature"},
                                     {"-t", "--threads"},
                                     {"-ngl", "--gpu-layers"},
                                     {"--device", "--backend"},
                                     {"-sys", "--system"},
                                     {"-f", "--prompt-file"},
                                     {"--json-schema", "--schema"},
                                     {"--draft-max", "--draft-tokens"},
                                     {"--picture", "--image"},
                                     {"--repeat-penalty", "--repetition-penalty"},
                                     {"-md", "--drafter"}}) {
    EXPECT_EQ(name_here(theirs, run), ours);
  }
  for (const auto& [theirs, ours] : {std::pair("--max-model-len", "--max-seq-len"),
                                     {"--parallel", "--max-seqs"},
                                     {"--alias", "--model-name"},
                                     {"--tensor-parallel-size", "--gpus"},
                                     {"--batch-size", "--prefill-chunk"},
                                     {"-sm", "--split"}}) {
    EXPECT_EQ(name_here(theirs, serve), ours);
  }
  EXPECT_EQ(name_here("--outfile", make), "--output");
  EXPECT_EQ(name_here("--outtype", make), "--type");
  EXPECT_EQ(name_here("--quantization", quantize), "--recipe");
  EXPECT_EQ(name_here("--temp", quantize), "") << "it has no such option";
  EXPECT_EQ(name_here("--nonsense", run), "");
}

TEST(OtherNames, PicturesAreKnownByTheirEndings) {
  for (const char* name : {"a.png", "/tmp/A B.JPG", "x.jpeg", "x.webp", "x.gif", "x.bmp", "x.heic", "x.AVIF"}) {
    EXPECT_TRUE(names_picture(name)) << name;
  }
  for (const char* name : {"", ".png", "png", "a.txt", "what is in a.png?", "model.gguf"}) {
    EXPECT_FALSE(names_picture(name)) << name;
  }
}

}  // namespace
}  // namespace gemma4
