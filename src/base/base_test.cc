#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cmath>
#include <filesystem>

#include "base/bf16.h"
#include "base/bytes.h"
#include "base/exact_json.h"
#include "base/file.h"
#include "base/json_text.h"
#include "base/mapped_file.h"
#include "base/threads.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

TEST(Error, ShowsAZeroByteAndGoesOn) {
  EXPECT_STREQ(Error(std::string("the model 'a\0b' is not served", 29)).what(), "the model 'a\\0b' is not served");
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bf16(1.00390625f), 0x3f80);  // half a step above 1: to the even one
  EXPECT_EQ(float_to_bf16(1.01171875f), 0x3f82);  // half a step above the odd one: up
  EXPECT_EQ(round_to_bf16(std::sqrt(5376.0f)), 73.5f);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(NAN))));
}

TEST(F16, EveryValueRoundTrips) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = f16_to_float(static_cast<uint16_t>(h));
    if (std::isnan(value)) continue;
    ASSERT_EQ(float_to_f16(value), h);
  }
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_f16(0x1p-25f), 0);  // tie to even
}

TEST(Reader, RefusesToReadPastTheEnd) {
  const std::byte bytes[3] = {};
  Reader reader(bytes, "thing");
  EXPECT_THROW(reader.read<uint32_t>(), Error);
  EXPECT_THROW(reader.take(~uint64_t{0}), Error);
  EXPECT_THROW(checked_mul(int64_t{1} << 40, int64_t{1} << 40, "thing"), Error);
}

TEST(Utf8, KnowsWholeCharacters) {
  EXPECT_TRUE(utf8_valid("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"));
  EXPECT_FALSE(utf8_valid("\xc0\xaf"));
  EXPECT_TRUE(utf8_valid(""));
  EXPECT_TRUE(utf8_valid("plain"));
  EXPECT_TRUE(
      utf8_valid("\xc3\xa9"
                 "plain\xc3\xa9"));
  EXPECT_FALSE(utf8_valid("plain\xff"));
  EXPECT_FALSE(
      utf8_valid("\xff"
                 "plain"));
  EXPECT_FALSE(utf8_valid("\xed\xa0\x80"));
  EXPECT_EQ(utf8_complete("ab\xe2\x82"), 2u);
  EXPECT_EQ(utf8_complete("ab\xf0\x9f\x98"), 2u);
  EXPECT_EQ(utf8_complete("ab\xe2\x82\xac"), 5u);
  EXPECT_EQ(utf8_complete("ab\x82"), 3u);
  EXPECT_EQ(utf8_repair("a\xff"
                        "b"),
            "a\xef\xbf\xbd"
            "b");
}

TEST(ThreadPool, CoversEachIndexOnceAndRethrows) {
  ThreadPool pool(3);
  for (int64_t count : {0, 1, 7, 1000}) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
    pool.parallel_for(count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    for (auto& s : seen) EXPECT_EQ(s, 1);
  }
  EXPECT_THROW(pool.parallel_for(100, 1,
                                 [](int64_t begin, int64_t) {
                                   if (begin == 0) throw Error("x");
                                 }),
               Error);
}

TEST(ExactJson, KeepsEveryDigitOfAWholeNumber) {
  const std::string text = R"({"a":[18446744073709551616,-9223372036854775809,1],"b":{"c":)" + std::string(300, '7') +
                           R"(,"d":null,"e":"18446744073709551616"},"f":1.5,"g":{},"h":[],"i":true})";
  const auto value = parse_exact_json(text, 3);
  EXPECT_EQ(dump_exact_json(value), text);
  EXPECT_TRUE(is_long_integer(value["a"][0]));
  EXPECT_FALSE(is_long_integer(value["a"][2]));
  EXPECT_EQ(dump_exact_json(parse_exact_json("18446744073709551616.0", 1)), "1.8446744073709552e+19");
  EXPECT_EQ(dump_exact_json(parse_exact_json("123456789012345678901234567890", 1)), "123456789012345678901234567890");
  EXPECT_EQ(dump_exact_json(parse_exact_json(R"({"x":1,"x":2})", 1)), R"({"x":2})");
  EXPECT_THROW(parse_exact_json("[[[[]]]]", 3), Error);
  for (const char* bad : {"", "[", "1 2", "{\"a\"}", "1e999", "\"\xff\""}) {
    EXPECT_THROW(parse_exact_json(bad, 3), nlohmann::json::exception) << bad;
  }
}

// nlohmann's lexer takes NUL for the end of the text.
TEST(ExactJson, NulIsNoJson) {
  using namespace std::string_view_literals;
  for (const std::string_view bad : {"{}\0anything"sv, "-1\0005e3"sv, "\0"sv, "[1,\0 2]"sv, "{}\0"sv, "\"a\0b\""sv}) {
    EXPECT_THROW(parse_strict_json(bad, "x"), Error) << bad;
    EXPECT_FALSE(is_json(bad)) << bad;
  }
  EXPECT_TRUE(is_json("{\"a\":\"\\u0000\"}"));
  EXPECT_FALSE(is_json("1 2"));
}

// Clients cut texts between the halves of a surrogate pair, and send the conversation again with every request.
TEST(ExactJson, TakesHalfASurrogatePairAsTheReplacementCharacter) {
  const std::pair<const char*, const char*> cases[] = {{R"("a\ud83db")",
                                                        "a\xef\xbf\xbd"
                                                        "b"},
                                                       {R"("\uDE00")", "\xef\xbf\xbd"},
                                                       {R"("\ud83d\ud83d\ude00")", "\xef\xbf\xbd\xf0\x9f\x98\x80"},
                                                       {R"("\ude00\ud83d\n")", "\xef\xbf\xbd\xef\xbf\xbd\n"},
                                                       {R"("\\ud83d")", "\\ud83d"},
                                                       {R"("\\\ud83d\u0041")",
                                                        "\\\xef\xbf\xbd"
                                                        "A"},
                                                       {R"("\ud83d\ude00")", "\xf0\x9f\x98\x80"}};
  for (const auto& [json, text] : cases) EXPECT_EQ(parse_exact_json(json, 1).get<std::string>(), text) << json;
  EXPECT_EQ(dump_exact_json(parse_exact_json(R"({"\ud83d":["\udc00"]})", 2)), "{\"\xef\xbf\xbd\":[\"\xef\xbf\xbd\"]}");
  for (const char* bad : {"\"\\ud83\"", "\"\\ud83d", "\"\\", "\"\\ud83x\"", "\"\xed\xa0\xbd\""}) {
    EXPECT_THROW(parse_exact_json(bad, 3), nlohmann::json::exception) << bad;
  }
}

TEST(ExactJson, RefusesNul) {
  using namespace std::string_literals;
  for (const std::string& bad : {"{}\0x"s, "{}\0"s, "-1\0005e3"s, "[1\0]"s, "\"a\0b\""s}) {
    EXPECT_FALSE(is_exact_json(bad, 3));
  }
  EXPECT_TRUE(is_exact_json("\"\\u0000\"", 3));
}

TEST(ExactJson, TakesLargeObjectsAndBoundsValues) {
  std::string text = "{";
  for (int i = 0; i < 100'000; ++i) text += "\"k" + std::to_string(i % 60'000) + "\":" + std::to_string(i) + ",";
  const auto value = parse_exact_json(text + "\"z\":1}", 1);
  EXPECT_EQ(value.size(), 60'001u);
  EXPECT_EQ(value.begin()->get<int>(), 60'000);  // of equal keys the last value, at the place of the first
  EXPECT_EQ(value.begin().key(), "k0");
  std::string many = "[0";
  for (int i = 0; i < kJsonValuesMax; ++i) many += ",0";
  EXPECT_THROW(parse_exact_json(many + "]", 1), Error);
}

TEST(ReadFile, RefusesWhatHasNoEndOrIsTooLarge) {
  const auto folder = std::filesystem::temp_directory_path();
  const auto pipe = folder / "gemma4_pipe_test", file = folder / "gemma4_size_test";
  std::filesystem::remove(pipe);
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const auto error_of = [](auto read) -> std::string {
    try {
      read();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  for (const std::filesystem::path& path : {pipe, std::filesystem::path("/dev/zero"), folder}) {
    const std::string why = path == folder ? "it is a directory" : "it is not a regular file";
    EXPECT_EQ(error_of([&] { read_file(path); }), "cannot read " + path.string() + ": " + why);
    EXPECT_EQ(error_of([&] { MappedFile::open(path); }), "cannot read " + path.string() + ": " + why);
  }
  EXPECT_EQ(error_of([&] { read_file_or_pipe("/dev/zero", 100000); }),
            "cannot read /dev/zero: it is larger than 100000 bytes");
  write_file(file, "four");
  EXPECT_EQ(read_file(file, 4), "four");
  EXPECT_EQ(error_of([&] { read_file(file, 3); }), "cannot read " + file.string() + ": it is larger than 3 bytes");
  EXPECT_GT(read_file("/proc/self/status").size(), 100u) << "a regular file that does not say how long it is";
  std::filesystem::remove(pipe);
  std::filesystem::remove(file);
}

TEST(AtomicFile, LeavesNothingWhenNotCommitted) {
  const auto path = std::filesystem::temp_directory_path() / "gemma4_atomic_test";
  std::filesystem::remove(path);
  {
    AtomicFile file(path);
    file.write("abc", 3);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  write_file(path, "abc");
  EXPECT_EQ(read_file(path), "abc");
  EXPECT_THROW(AtomicFile("/nonexistent/x"), Error);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace gemma4
