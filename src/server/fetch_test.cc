#include "server/fetch.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/check.h"
#include "server/curl.h"
#include "server/http/http.h"
#include "server/json.h"
#include "server/server_testing.h"

namespace gemma4 {
namespace {

using std::chrono::milliseconds;

// A host with good and bad pictures.
HttpHandlers pictures(std::atomic<int>& asked) {
  HttpHandlers handlers;
  handlers.gate = [](const HttpRequest&) { return std::nullopt; };
  handlers.refuse = [](const HttpRequest&, int status, const std::string& message) {
    HttpResponse response;
    response.status = status;
    response.body = message;
    return response;
  };
  handlers.handle = [&asked](HttpRequest& request) {
    ++asked;
    HttpResponse response;
    if (request.path == "/good") response.body = "a picture";
    if (request.path == "/away") {
      response.status = 302;
      response.headers.emplace_back("Location", "/good");
    }
    if (request.path == "/missing") response.status = 404;
    if (request.path == "/large") response.body = std::string(5000, 'x');
    if (request.path == "/endless" || request.path == "/slow") {
      const milliseconds pause(request.path == "/slow" ? 50 : 0);
      response.stream = [pause](HttpWriter& writer) {
        while (writer.write("xxxxxxxxxx")) std::this_thread::sleep_for(pause);
      };
    }
    return response;
  };
  return handlers;
}

class Fetch : public testing::Test {
 protected:
  static HttpOptions any_port() {
    HttpOptions options;
    options.port = 0;
    return options;
  }

  std::string url(const std::string& path, const std::string& host = "127.0.0.1") const {
    return "http://" + host + ":" + std::to_string(server_.port()) + path;
  }
  std::string here(const std::string& host = "127.0.0.1") const { return host + ":" + std::to_string(server_.port()); }

  std::string refusal(const std::string& url, std::vector<std::string> hosts) const {
    try {
      fetch_image(url, 1000, {.hosts = std::move(hosts), .connect_seconds = 1, .seconds = 0.5}, "messages[0].url");
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status, 400);
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with("messages[0].url ")) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      return message;
    }
    ADD_FAILURE() << "was fetched: " << url;
    return "";
  }

  std::atomic<int> asked_ = 0;
  HttpServer server_{any_port(), pictures(asked_)};
};

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST_F(Fetch, AllowedHostsAreFetched) {
  EXPECT_EQ(fetch_image(url("/good"), 1000, {.hosts = {here()}}, "url"), "a picture");
  EXPECT_EQ(fetch_image(url("/good?size=large#part"), 9, {.hosts = {"other.example", here()}}, "url"), "a picture");
}

TEST_F(Fetch, OtherHostsAreRefused) {
  EXPECT_SAYS(refusal(url("/good"), {}), "'127.0.0.1' is not allowed");
  EXPECT_SAYS(refusal(url("/good"), {"127.0.0.1"}), "is not allowed");  // another port
  EXPECT_SAYS(refusal(url("/good"), {"127.0.0.2:" + std::to_string(server_.port())}), "is not allowed");
  EXPECT_SAYS(refusal("https://pictures.example/a.png", {}), "'pictures.example' is not allowed");
  EXPECT_SAYS(refusal("http://pictures.example.evil.example/", {"pictures.example"}), "is not allowed");
  EXPECT_SAYS(refusal("http://PICTURES.example:99999/", {"pictures.example"}), "not a URL");
  EXPECT_SAYS(refusal("http:///a.png", {""}), "not a URL");
  EXPECT_SAYS(refusal("http://pictures.example@127.0.0.1/", {"pictures.example", "127.0.0.1"}), "user's name");
  EXPECT_SAYS(refusal(url("/good\r\nX-Evil: 1"), {here()}), "spells with %");
  // A name that resolves to this machine: the operator allowed the name, not the address.
  EXPECT_SAYS(refusal(url("/good", "localhost"), {here("localhost")}), "inside a private network");
  EXPECT_EQ(asked_, 0);
}

TEST_F(Fetch, OnlyAWholeAnswerWithinTheLimits) {
  EXPECT_SAYS(refusal(url("/away"), {here()}), "redirect");
  EXPECT_EQ(asked_, 1);
  EXPECT_SAYS(refusal(url("/missing"), {here()}), "status 404");
  EXPECT_SAYS(refusal(url("/empty"), {here()}), "sent nothing");
  EXPECT_SAYS(refusal(url("/large"), {here()}), "more than the 1000 bytes");
  EXPECT_SAYS(refusal(url("/endless"), {here()}), "more than the 1000 bytes");
  const auto start = std::chrono::steady_clock::now();
  EXPECT_SAYS(refusal(url("/slow"), {here()}), "took too long");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_SAYS(refusal("http://127.0.0.1:1/", {"127.0.0.1:1"}), "did not answer");
  EXPECT_SAYS(refusal("https://127.0.0.1:" + std::to_string(server_.port()) + "/", {here()}),
              "did not answer");  // no TLS
}

// Neither a proxy nor a name server is asked: the address that was checked is the one that is connected to.
TEST_F(Fetch, TheCheckedAddressIsTheOneConnectedTo) {
  setenv("http_proxy", "http://127.0.0.1:1", 1);
  std::string body;
  const CurlAnswer answer = system_curl().get({
      .url = "http://name.invalid:" + std::to_string(server_.port()) + "/good",
      .address = "127.0.0.1",
      .connect_seconds = 5,
      .seconds = 5,
      .accept = [&](std::string_view part) { return body.append(part).size() < 100; },
  });
  unsetenv("http_proxy");
  EXPECT_EQ(answer.error, "");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(body, "a picture");
}

TEST(FetchLibrary, ThatIsMissingIsNamed) {
  try {
    Curl("libcurl-that-is-missing.so.4");
    ADD_FAILURE() << "it was opened";
  } catch (const Error& error) {
    EXPECT_SAYS(std::string(error.what()), "need libcurl-that-is-missing.so.4");
    EXPECT_SAYS(std::string(error.what()), "install libcurl4");
  }
}

// Each byte comes in time, but the headers never end.
TEST(FetchHeaders, ThatNeverEndAreCut) {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(listener, 1), 0);
  socklen_t size = sizeof(address);
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  std::thread dripping([&] {
    const int fd = ::accept(listener, nullptr, nullptr);
    const std::string text = "HTTP/1.1 200 OK\r\nX: ";
    for (size_t i = 0; i < 2000; ++i) {
      if (::send(fd, i < text.size() ? &text[i] : "y", 1, MSG_NOSIGNAL) != 1) break;
      std::this_thread::sleep_for(milliseconds(10));
    }
    ::close(fd);
  });
  const std::string host = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const auto start = std::chrono::steady_clock::now();
  try {
    fetch_image("http://" + host + "/", 1000, {.hosts = {host}, .connect_seconds = 0.5, .seconds = 0.5}, "url");
    ADD_FAILURE() << "there was an answer";
  } catch (const ApiError& error) {
    EXPECT_SAYS(std::string(error.what()), "took too long");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  dripping.join();
  ::close(listener);
}

TEST(FetchAddresses, PublicAndPrivate) {
  const auto is_public = [](const char* text) {
    uint8_t bytes[16];
    const bool v6 = std::string(text).find(':') != std::string::npos;
    EXPECT_EQ(inet_pton(v6 ? AF_INET6 : AF_INET, text, bytes), 1) << text;
    return public_address({bytes, v6 ? size_t{16} : size_t{4}});
  };
  for (const char* text :
       {"8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.0", "100.63.0.1", "100.128.0.1", "198.20.0.1",
        "223.255.255.255", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "2002:808:808::1"}) {
    EXPECT_TRUE(is_public(text)) << text;
  }
  for (const char* text : {"0.0.0.0",
                           "10.1.2.3",
                           "127.0.0.1",
                           "127.255.0.1",
                           "169.254.169.254",
                           "172.16.0.1",
                           "172.31.255.255",
                           "192.168.1.1",
                           "100.64.0.1",
                           "192.0.0.1",
                           "192.0.2.1",
                           "198.18.0.1",
                           "198.19.255.255",
                           "198.51.100.1",
                           "203.0.113.9",
                           "224.0.0.1",
                           "240.0.0.1",
                           "255.255.255.255",
                           "::",
                           "::1",
                           "fe80::1",
                           "fd00::7",
                           "fc00::1",
                           "ff02::1",
                           "2001:db8::1",
                           "2001::1",
                           "::ffff:127.0.0.1",
                           "::ffff:10.0.0.1",
                           "64:ff9b::7f00:1",
                           "2002:7f00:1::1",
                           "2002:a00:1::"}) {
    EXPECT_FALSE(is_public(text)) << text;
  }
}

}  // namespace
}  // namespace gemma4
