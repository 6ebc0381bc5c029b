// Long texts made to be slow: each of these is linear, or nearly so, in the text. A quadratic one takes minutes. CPU
// time of the process, so that a busy machine does not matter.
#include <gtest/gtest.h>

#include <ctime>

#include "base/exact_json.h"
#include "base/slow_build_testing.h"
#include "text/chat/chat.h"
#include "text/chat/output.h"
#include "text/data_testing.h"

namespace gemma4 {
namespace {

using test::demo;

// Bytes of the shortest text. Measured with 1 MiB too; what was quadratic once still is.
constexpr int kUnit = kSlowBuild ? 1 << 16 : 1 << 18, kLong = 4 * kUnit;

template <typename Work>
double seconds_of(const Work& work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

// The time for a text four times as long is at most a small multiple; `made` gives a text of n bytes.
template <typename Make, typename Work>
void expect_near_linear(const char* name, const Make& made, const Work& work, int unit = kUnit) {
  double seconds[3];
  for (int i = 0; i < 3; ++i) {
    const auto text = made(unit << i);
    seconds[i] = seconds_of([&] { work(text); });
  }
  std::printf("%-24s %.3f %.3f %.3f s for %d, %d, %d KiB\n", name, seconds[0], seconds[1], seconds[2], unit >> 10,
              unit >> 9, unit >> 8);
  EXPECT_LT(seconds[2], 10 * seconds[0] + 1) << name;
  EXPECT_LT(seconds[2], 30) << name;
}

std::string times(const std::string& piece, size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += piece;
  return out;
}

TEST(HostileText, EncodingIsNearLinear) {
  for (const char* piece : {"a", " ", "\n", "ab", "aaaaaaab", "\xf0\x9f\x98\x80", "\xe2\x96\x81", "<|", "<|turn",
                            "\xcc\x81", "\t ", "<turn|>", "0123456789"}) {
    expect_near_linear(
        piece, [&](size_t n) { return times(piece, n); },
        [](const std::string& text) { demo().encode(text, true), demo().encode(text, false); });
  }
}

TEST(HostileText, DecodingIsNearLinear) {
  for (const char* piece : {"a", "\n", "<0xF0>", "<turn|>"}) {
    const int32_t id = demo().require(piece);
    expect_near_linear(
        piece, [&](size_t n) { return std::vector<int32_t>(n / 4, id); },
        [](const std::vector<int32_t>& ids) {
          demo().decode(ids, false);
          Detokenizer detokenizer(demo(), {"never"});
          for (const int32_t one : ids) detokenizer.push(one);
          detokenizer.finish();
        });
  }
}

// Every suffix of the text begins the stop string, and nearly all of it.
TEST(HostileText, StopStringsAreNearLinear) {
  expect_near_linear(
      "a...ab", [](size_t n) { return std::string(n, 'a'); },
      [](const std::string& text) {
        StopFilter filter({std::string(text.size() / 2, 'a') + "b", times("ab", text.size() / 2) + "c"});
        for (size_t at = 0; at < text.size(); at += 16) filter.push(std::string_view(text).substr(at, 16));
        filter.finish();
      });
  expect_near_linear(
      "ab...abc", [](size_t n) { return times("aba", n); },
      [](const std::string& text) {
        StopFilter filter({times("aba", text.size() / 2) + "c"});
        for (const char c : text) filter.push({&c, 1});
        filter.finish();
      });
}

std::vector<Message> tool_messages(size_t calls, size_t tools) {
  std::vector<Message> messages = {Message::text("user", "q"), Message::text("assistant", "")};
  for (size_t i = 0; i < calls; ++i) messages[1].tool_calls.push_back({"c" + std::to_string(i), "f", ""});
  for (size_t i = 0; i < tools; ++i) {
    messages.push_back(Message::text("tool", "x"));
    messages.back().tool_call_id = "c" + std::to_string(tools - i - 1);
  }
  return messages;
}

TEST(HostileText, ManyToolMessagesAreNearLinear) {
  const auto render = [](const std::vector<Message>& messages) { render_chat(messages, "", {}); };
  expect_near_linear(
      "tool messages", [](size_t n) { return tool_messages(1, n / 32); }, render, kLong);
  expect_near_linear(
      "calls and results", [](size_t n) { return tool_messages(n / 64, n / 64); }, render, kLong);
  expect_near_linear(
      "turns", [](size_t n) { return std::vector<Message>(n / 16, Message::text("assistant", "x")); }, render);
}

TEST(HostileText, ThoughtsInAnswersAreNearLinear) {
  for (const char* piece : {"<|channel>", "<channel|>", "<|channel><channel|>", " ", "\xe3\x80\x80"}) {
    expect_near_linear(
        piece, [&](size_t n) { return times(piece, n); },
        [](const std::string& text) {
          const Message messages[] = {Message::text("assistant", text), Message::text("user", text)};
          render_chat(messages, "", {});
        });
  }
}

TEST(HostileText, ArgumentsAreNearLinear) {
  const auto members = [](size_t n) {
    std::string text = "{";
    for (size_t i = 0; text.size() < n; ++i) text += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":1";
    return text + "}";
  };
  const auto render = [](const std::string& text) {
    Message call = Message::text("assistant", "");
    call.tool_calls.push_back({"c", "f", text});
    render_chat(std::span(&call, 1), "", {});
  };
  expect_near_linear("arguments", members, render, kLong);
  expect_near_linear(
      "one long key", [](size_t n) { return "{\"" + std::string(n, 'A') + "\":1,\"b\":2}"; }, render);
}

TEST(HostileText, ToolCallsAreNearLinear) {
  const auto parse = [](const std::string& text) {
    OutputParser parser(demo(), {"stop"});
    for (const int32_t id : demo().encode(text, true)) parser.push(id);
    parser.finish();
  };
  for (const char* piece : {"k:1,", "[", "{a:", "<|\"|>", "a", "\\", "\"", ","}) {
    expect_near_linear(
        piece, [&](size_t n) { return "<|tool_call>call:f{a:" + times(piece, n) + "}<tool_call|>"; }, parse);
  }
  expect_near_linear(
      "members",
      [](size_t n) {
        std::string text = "<|tool_call>call:f{";
        for (size_t i = 0; text.size() < n; ++i) text += "k" + std::to_string(i) + ":<|\"|>x<|\"|>,";
        return text + "z:1}<tool_call|>";
      },
      parse);
  for (const char* piece : {"<|channel>", "<|tool_call>", "<|channel>thought\n", "thought\n\n"}) {
    expect_near_linear(
        piece, [&](size_t n) { return times(piece, n); }, parse);
  }
}

}  // namespace
}  // namespace gemma4
