// CommandLine: the values that each type of option accepts, and the error messages for others.
#include "cli/command_line.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "base/check.h"

namespace gemma4 {
namespace {

struct Values {
  std::string name = "default";
  std::filesystem::path path;
  int count = 7, places = 1;
  int64_t memory = 0;
  std::string kind = "a", text = "none";
  double share = 0.5;
  std::optional<float> heat;
  std::vector<std::string> many;
  std::vector<int> sizes = {1, 2};
  bool on = false, of_b = false;
};

struct Parsed {
  std::optional<int> code;
  Values values;
  std::string out, err;
};

Parsed parse(std::vector<std::string> words) {
  Parsed outcome;
  Values& v = outcome.values;
  CommandLine line("gemma4 test", "About it.");
  line.option("FILE", v.path, "a file").required();
  line.option("--name,--other-name", v.name, "a name").one_of({"default", "a", "b"}).show_default();
  line.option("--count", v.count, "a count").not_negative();
  line.option("--places", v.places, "places").positive().excludes("--count");
  line.option("--share", v.share, "a share").between(0.0, 1.0);
  line.option("--heat", v.heat, "heat");
  line.option("--many", v.many, "many").may_repeat();
  line.option("--sizes", v.sizes, "sizes").positive().separated_by_commas();
  line.flag("--on", v.on, "on");
  line.option("--memory", v.memory, "memory").bytes();
  line.option("--text", v.text, "a text").may_be_empty().needs("--on");
  line.option("--kind", v.kind, "a kind").one_of({"a", "b"});
  line.flag("--of-b", v.of_b, "of b").only_with("--kind", "b");
  words.insert(words.begin(), "test");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  outcome.code = line.parse(static_cast<int>(argv.size()), argv.data());
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(CommandLine, ReadsEachType) {
  const Parsed got = parse({"x.gguf", "--other-name", "b", "--count", "0", "--share", "0.25", "--heat", "1.5", "--many",
                            "p", "--many", "q,r", "--sizes", "3,4,5", "--on"});
  ASSERT_FALSE(got.code) << got.err;
  EXPECT_EQ(got.values.path, "x.gguf");
  EXPECT_EQ(got.values.name, "b");
  EXPECT_EQ(got.values.count, 0);
  EXPECT_EQ(got.values.share, 0.25);
  EXPECT_EQ(got.values.heat, 1.5f);
  EXPECT_EQ(got.values.many, (std::vector<std::string>{"p", "q,r"}));
  EXPECT_EQ(got.values.sizes, (std::vector<int>{3, 4, 5}));
  EXPECT_TRUE(got.values.on);
}

TEST(CommandLine, WhatIsNotGivenKeepsItsValue) {
  const Parsed got = parse({"x"});
  ASSERT_FALSE(got.code);
  EXPECT_EQ(got.values.name, "default");
  EXPECT_EQ(got.values.count, 7);
  EXPECT_FALSE(got.values.heat);
  EXPECT_EQ(got.values.sizes, (std::vector<int>{1, 2}));
  EXPECT_FALSE(got.values.on);
}

TEST(CommandLine, MistakesAreOneSentenceAndExitCode2) {
  const auto refused = [](const std::vector<std::string>& words, const std::string& sentence) {
    const Parsed got = parse(words);
    EXPECT_EQ(got.code, kExitBadInput);
    EXPECT_EQ(got.err, "gemma4 test: " + sentence + "\n");
    EXPECT_EQ(got.out, "");
  };
  refused({}, "FILE is required");
  refused({"x", "--nope"}, "there is no option --nope");
  refused({"x", "--nmae", "b"}, "there is no option --nmae (did you mean --name?)");
  refused({"--cuont=3"}, "there is no option --cuont (did you mean --count?)");
  refused({"x", "second", "--other", "third"},
          "'second' was not expected; there is no option --other (did you mean --other-name?) (put quotes around what "
          "holds spaces)");
  refused({"x", "photo.PNG"}, "'photo.PNG' was not expected (put quotes around what holds spaces)");
  refused({"x", "--name", "c"}, "--name: c not in {default,a,b}");
  refused({"x", "--count", "-1"}, "--count: -1 is not zero or more");
  refused({"x", "--count", "many"}, "--count: many is not a whole number");
  refused({"x", "--count", "1.5"}, "--count: 1.5 is not a whole number");
  refused({"x", "--count", "99999999999"}, "--count: 99999999999 is not a whole number that this option can have");
  refused({"x", "--count", "nan"}, "--count: nan is not a whole number");
  for (const char* text : {"0x10", "1e3", "+5", " 5", "5 ", "0b1", "1'000", "1_000", "inf", "5,6", "-", "٣"}) {
    refused({"x", "--count", text}, std::string("--count: ") + text + " is not a whole number");
  }
  for (const char* text : {"0x1p3", "inf", "-nan", "+1.5", " 1", "1 ", "1.5f", "1,5"}) {
    refused({"x", "--heat", text}, std::string("--heat: ") + text + " is not a number");
  }
  refused({"x", "--heat", "1e99"}, "--heat: 1e99 is not a number that this option can have");
  refused({"x", "--heat", "hot"}, "--heat: hot is not a number");
  refused({"x", "--sizes", "3,four"}, "--sizes: four is not a whole number");
  refused({"x", "--places", "0"}, "--places: 0 is not above zero");
  refused({"x", "--places", "1", "--count", "1"}, "--count excludes --places");
  refused({"x", "--sizes", "3,0"}, "--sizes: 0 is not above zero");
  refused({"x", "--share", "1.5"}, "--share: 1.5 is not from 0 to 1");
  refused({"x", "--share", "nan"}, "--share: nan is not a number");
}

TEST(CommandLine, NumbersAreDecimal) {
  EXPECT_EQ(parse({"x", "--count", "010"}).values.count, 10) << "not octal";
  EXPECT_EQ(parse({"x", "--sizes", "08,9"}).values.sizes, (std::vector<int>{8, 9}));
  EXPECT_EQ(parse({"x", "--heat", "-1.5e-2"}).values.heat, -0.015f);
  EXPECT_EQ(parse({"x", "--share", ".5"}).values.share, 0.5);
}

TEST(CommandLine, SizesAreDecimalNumbersWithAUnit) {
  const auto bytes = [](const std::string& text) {
    const Parsed got = parse({"x", "--memory", text});
    return got.code ? got.err.substr(got.err.find("--memory")) : std::to_string(got.values.memory);
  };
  EXPECT_EQ(bytes("512"), "512");
  EXPECT_EQ(bytes("8G"), "8589934592");
  EXPECT_EQ(bytes("010m"), "10485760");
  EXPECT_EQ(bytes("2KiB"), "2048");
  EXPECT_EQ(bytes("1TB"), "1099511627776");
  for (const char* text : {"0x8G", "1e3", "1.5G", "8 G", " 8G", "-8G", "+8G", "8Q", "8GG", "G", "much", "nan"}) {
    EXPECT_EQ(bytes(text), std::string("--memory: ") + text + " is not a number of bytes, such as 512M or 8G\n");
  }
  for (const char* text : {"0", "0G", "9999999999T", "99999999999999999999999"}) {
    EXPECT_EQ(bytes(text), std::string("--memory: ") + text + " is not from 1 to 1e18 bytes\n");
  }
  EXPECT_EQ(bytes(""), "--memory needs a value; an empty one was given\n");
}

TEST(CommandLine, EmptyValuesAreRefusedUnlessTheyMeanSomething) {
  const auto refused = [](const std::vector<std::string>& words, const std::string& name) {
    const Parsed got = parse(words);
    EXPECT_EQ(got.code, kExitBadInput);
    EXPECT_EQ(got.err, "gemma4 test: " + name + " needs a value; an empty one was given\n");
  };
  refused({""}, "FILE");
  refused({"x", "--name", ""}, "--name");
  refused({"x", "--other-name="}, "--name");
  refused({"x", "--count", ""}, "--count");
  refused({"x", "--heat="}, "--heat");
  refused({"x", "--many", "a", "--many", ""}, "--many");
  refused({"x", "--many=", "--on"}, "--many");
  refused({"x", "--sizes", ""}, "--sizes");
  for (const char* list : {"1,,2", ",1", "1,", ","}) {
    EXPECT_EQ(parse({"x", "--sizes", list}).err,
              std::string("gemma4 test: --sizes: ") + list + " has an empty element\n");
  }
  EXPECT_EQ(parse({"x", "--on", "--text", ""}).values.text, "");
  EXPECT_EQ(parse({"x", "--on", "--text="}).values.text, "");
}

TEST(CommandLine, WordsAfterValuesStayThemselves) {
  const Parsed got = parse({"--sizes", "3", "x", "--many=--on", "--name=a"});
  ASSERT_FALSE(got.code) << got.err;
  EXPECT_EQ(got.values.path, "x") << "a list takes one word";
  EXPECT_EQ(got.values.many, std::vector<std::string>{"--on"});
  EXPECT_FALSE(got.values.on);
  EXPECT_EQ(parse({"--", "--on"}).values.path, "--on");
}

TEST(CommandLine, OptionsThatMeanNothingAreRefused) {
  EXPECT_EQ(parse({"x", "--text", "y"}).err, "gemma4 test: --text requires --on\n");
  EXPECT_EQ(parse({"x", "--kind", "a", "--of-b"}).err,
            "gemma4 test: --of-b belongs to --kind b, and this is --kind a\n");
  EXPECT_EQ(parse({"x", "--of-b"}).err, "gemma4 test: --of-b belongs to --kind b, which was not given\n");
  EXPECT_TRUE(parse({"x", "--kind", "b", "--of-b"}).values.of_b);
  EXPECT_FALSE(parse({"x", "--kind", "a"}).code);
}

// In the words of a list, each with what it means.
int declares(int argc, char** argv) {
  static std::string file, kind = "a";
  static bool on = false;
  static std::vector<std::string> many;
  CommandLine line("gemma4 declares", "About it.");
  line.option("-f,--file,--old-file,FILE", file, "a file; whatever").file().required();
  line.option("--kind", kind, "a kind").one_of({"a", "b"}).show_default();
  line.option("--many", many, "many").may_repeat();
  line.flag("--on", on, "on");
  if (const auto code = line.parse(argc, argv)) return *code;
  throw Error("it must not run");
}

TEST(CommandLine, DescribesItsDeclarationsAndDoesNotRun) {
  const CommandInfo info = describe(declares);
  EXPECT_EQ(info.about, "About it.");
  ASSERT_EQ(info.options.size(), 5u);  // --help is the first
  const OptionInfo &help = info.options[0], &file = info.options[1], &kind = info.options[2], &many = info.options[3];
  EXPECT_EQ(help.names, (std::vector<std::string>{"-h", "--help"}));
  EXPECT_EQ(help.value, "");
  EXPECT_EQ(file.names, (std::vector<std::string>{"-f", "--file", "--old-file"}));
  EXPECT_EQ(file.position, "FILE");
  EXPECT_EQ(file.value, "PATH");
  EXPECT_TRUE(file.required);
  EXPECT_EQ(kind.choices, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(kind.shown_default, "a");
  EXPECT_TRUE(many.repeats);
  EXPECT_EQ(many.value, "TEXT");
  EXPECT_EQ(info.options[4].value, "");
  char name[] = "declares", word[] = "--file", value[] = "x";
  char* argv[] = {name, word, value, nullptr};
  EXPECT_THROW(declares(3, argv), Error) << "described once, it parses as before";
}

TEST(CommandLine, HelpGoesToStandardOutput) {
  const Parsed got = parse({"--help"});
  EXPECT_EQ(got.code, kExitOk);
  EXPECT_EQ(got.err, "");
  EXPECT_EQ(got.out.substr(0, 10), "About it.\n");
  EXPECT_NE(got.out.find("gemma4 test [OPTIONS] FILE"), std::string::npos) << got.out;
}

TEST(CommandLine, HelpExplainsAnOptionWithAPlaceOnce) {
  char name[] = "declares", help[] = "--help";
  char* argv[] = {name, help, nullptr};
  testing::internal::CaptureStdout();
  EXPECT_EQ(declares(2, argv), kExitOk);
  const std::string out = testing::internal::GetCapturedStdout();
  EXPECT_NE(out.find("  -f,--file,--old-file\n"), std::string::npos) << out;
  EXPECT_NE(out.find("the same as FILE\n"), std::string::npos) << out;
  EXPECT_EQ(out.find("REQUIRED"), out.rfind("REQUIRED")) << out;
}

}  // namespace
}  // namespace gemma4
