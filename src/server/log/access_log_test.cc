#include "server/log/access_log.h"

#include <gtest/gtest.h>

namespace gemma4 {
namespace {

using std::chrono::milliseconds;

TEST(ServeAccessLog, ALineSaysWhoAskedForWhat) {
  const std::chrono::system_clock::time_point now{milliseconds(1'777'638'896'007)};
  const std::chrono::steady_clock::time_point began{milliseconds(5000)};
  AccessEntry entry = {"POST", "/v1/chat/completions", "10.0.0.7", "req_1", 200, began, nullptr};
  EXPECT_EQ(access_line(entry, now, began + milliseconds(12)),
            "2026-05-01T12:34:56.007Z 10.0.0.7 POST /v1/chat/completions 200 ms=12 id=req_1");
  EXPECT_FALSE(is_error(entry));
  entry.tokens = std::make_shared<RequestTokens>(RequestTokens{20, 16, 5, 0});
  EXPECT_EQ(access_line(entry, now, began + milliseconds(12)),
            "2026-05-01T12:34:56.007Z 10.0.0.7 POST /v1/chat/completions 200 in=20 cached=16 out=5 ms=12 id=req_1");
  EXPECT_FALSE(is_error(entry));
  entry.tokens->failed = 499;
  EXPECT_NE(access_line(entry, now, began).find(" 200/499 in=20 "), std::string::npos);
  EXPECT_TRUE(is_error(entry));
}

TEST(ServeAccessLog, WhatAClientChoosesCannotBreakALine) {
  AccessEntry entry = {"GET", "/a\nb 200 ms=1\x1b[2J\xff" + std::string(5000, 'x'), "::1", "req_2", 404, {}, nullptr};
  const std::string line = access_line(entry, {}, {});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.find('\x1b'), std::string::npos);
  EXPECT_NE(line.find("/a?b?200?ms=1?[2J"), std::string::npos);
  EXPECT_LT(line.size(), 400u);
  EXPECT_TRUE(is_error(entry));
}

}  // namespace
}  // namespace gemma4
