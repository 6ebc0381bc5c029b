#include "server/http/http_parser.h"

#include <gtest/gtest.h>

namespace gemma4 {
namespace {

struct Parsed {
  HttpParser parser;
  std::string body;
  size_t used = 0;
};

Parsed parse(const std::string& text, const HttpLimits& limits = {}) {
  Parsed out = {HttpParser(limits), "", 0};
  while (out.used < text.size()) {
    std::string_view piece;
    const size_t used = out.parser.parse(std::string_view(text).substr(out.used), piece);
    out.body += piece;
    out.used += used;
    if (used == 0) break;
  }
  return out;
}

int status_of(const std::string& text, const HttpLimits& limits = {}) {
  const Parsed parsed = parse(text, limits);
  return parsed.parser.stage() == HttpParser::Stage::kDone ? 200 : parsed.parser.status();  // 0: wants more
}

std::string get(const std::string& fields) { return "GET / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n"; }
std::string chunks(const std::string& body) {
  return "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body;
}

TEST(HttpParser, ReadsTheHead) {
  const Parsed parsed =
      parse("POST /a%2Fb?q=%zz HTTP/1.1\r\nHost: h:1\r\nX-Key:\t a%20b \t\r\nContent-Length: 3\r\n\r\nabcGET");
  const HttpHead& head = parsed.parser.head();
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path, "/a/b");
  EXPECT_EQ(head.fields[1], (std::pair<std::string, std::string>("x-key", "a%20b")));
  EXPECT_EQ(parsed.body, "abc");
  EXPECT_EQ(parsed.parser.stage(), HttpParser::Stage::kDone);
  EXPECT_TRUE(head.keep_alive);
  EXPECT_EQ(parse("GET http://other:80/x HTTP/1.1\r\nHost: h\r\n\r\n").parser.head().fields[0].second, "other:80");
  EXPECT_FALSE(parse(get("Connection: keep-alive, Close\r\n")).parser.head().keep_alive);
  EXPECT_EQ(status_of("\r\n" + get("")), 200);
}

TEST(HttpParser, RefusesWhatIsNotRfc9112) {
  for (const char* text :
       {"GET  / HTTP/1.1\r\n", "GET / HTTP/1.1 \r\n", " GET / HTTP/1.1\r\n", "GET / http/1.1\r\n", "GET /\r\n",
        "G(T / HTTP/1.1\r\n", "GET / HTTP/1.1\n", "GET / HTTP/1.1\rX", "GET a HTTP/1.1\r\n", "GET /# HTTP/1.1\r\n",
        "GET /% HTTP/1.1\r\n", "GET /\x80 HTTP/1.1\r\n", "\r\n\r\n", "GET http://u@h/ HTTP/1.1\r\n"}) {
    EXPECT_EQ(status_of(text), 400) << text;
  }
  EXPECT_EQ(status_of(std::string("GET /\0 HTTP/1.1\r\n", 18)), 400);
  EXPECT_EQ(status_of("GET / HTTP/2.0\r\n"), 505);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400);  // no Host
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\n\r\n"), 200);
  for (const char* field : {"A : b",
                            "A b: c",
                            ": c",
                            "nothing",
                            " folded: x",
                            "A: b\r\n c",
                            "A: b\nC: d",
                            "A: \x01",
                            "A: \x7f",
                            "Host: b",
                            "Content-Length:",
                            "Content-Length: -1",
                            "Content-Length: 0x1",
                            "Content-Length: 1 1",
                            "Content-Length: 0\r\nContent-Length: 0",
                            "Transfer-Encoding: gzip, chunked",
                            "Transfer-Encoding: chunked, chunked",
                            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                            "Transfer-Encoding: ",
                            "Content-Length: 1\r\nTransfer-Encoding: chunked"}) {
    EXPECT_EQ(status_of(get(std::string(field) + "\r\n")), 400) << field;
  }
  EXPECT_EQ(status_of("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"), 400);
  EXPECT_EQ(status_of(get("Expect: tea\r\n")), 417);
}

TEST(HttpParser, ReadsChunksExactly) {
  EXPECT_EQ(
      parse(chunks("3\r\nabc\r\nA \t; x = \"y\\\" z\" ;w\r\n0123456789\r\n0;q\r\nT: 1\r\nContent-Length: 9\r\n\r\nGET"))
          .body,
      "abc0123456789");
  for (const char* body : {"3\r\nabcd",    "3\r\nabc\n",  "3\r\nabc\rX",    "3\n",
                           "0x3\r\n",      "g\r\n",       "\r\n",           " 3\r\n",
                           "3 \r\n",       "+3\r\n",      "3;\r\n",         "3;=a\r\n",
                           "3;a=\r\n",     "3;a=\"b\r\n", "3;a b\r\n",      "00000000000000003\r\n",
                           "0\r\n: x\r\n", "0\r\nx\r\n",  "0\r\nA : b\r\n", "0\r\n\n",
                           "0\r\nA: b\nC"}) {
    EXPECT_EQ(status_of(chunks(body)), 400) << body;
  }
  EXPECT_EQ(status_of(chunks("ffffffffffffffff\r\n")), 413);
}

TEST(HttpParser, Limits) {
  const std::string a100(100, 'a');
  EXPECT_EQ(status_of("GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n"), 414);
  EXPECT_EQ(status_of(std::string(100000, 'A')), 414);
  EXPECT_EQ(status_of(get("A: " + a100 + "\r\n"), {.head_bytes = 100}), 431);
  EXPECT_EQ(status_of(get("A: 1\r\nB: 2\r\n"), {.fields = 2}), 431);
  EXPECT_EQ(status_of(chunks("0\r\nA: " + a100), {.trailer_bytes = 100}), 400);
  std::string many;
  for (int i = 0; i < 100; ++i) many += "1;name=" + a100 + "\r\nx\r\n";
  EXPECT_EQ(status_of(chunks(many), {.extension_bytes = 5000}), 400);
  EXPECT_EQ(status_of(chunks("6\r\nabcdef\r\n5\r\n"), {.body_bytes = 10}), 413);
}

}  // namespace
}  // namespace gemma4
