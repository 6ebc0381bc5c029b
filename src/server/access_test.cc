// Which access options a server starts with, which names it then answers under, and the keys of a file.
#include "server/access.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace gemma4 {
namespace {

// What check_options() says; "" where it has nothing to say.
std::string said(const ServerOptions& options) {
  try {
    check_options(options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string said_of(std::vector<std::string> ServerOptions::*list, const std::string& value) {
  ServerOptions options;
  (options.*list).push_back(value);
  return said(options);
}

TEST(Access, AKeyMustFitIntoAHeader) {
  EXPECT_EQ(said_of(&ServerOptions::api_keys, "sk-~!,=sesame"), "");
  for (const char* key : {"", "open sesame", "sesame\n", "caf\xc3\xa9", "a\x7f"}) {
    EXPECT_EQ(said_of(&ServerOptions::api_keys, key),
              "an API key must be printable ASCII characters without spaces, and one is not");
  }
}

TEST(Access, AnOriginHasNoPath) {
  for (const char* origin : {"*", "https://good.example", "http://localhost:8080", "http://[::1]:3000",
                             "chrome-extension://abcdef", "http://10.0.0.7"}) {
    EXPECT_EQ(said_of(&ServerOptions::cors_origins, origin), "") << origin;
  }
  for (const char* origin :
       {"", "good.example", "https://", "https://good.example/", "https://good.example/chat", "https://*.example",
        "https://good.example:", "https://good.example:99999", "https://Good.example", "https://me@good.example",
        "://good.example", "null", "https://good.example?x", "https://a b"}) {
    const std::string why = said_of(&ServerOptions::cors_origins, origin);
    EXPECT_EQ(why.find("--cors-origin is an origin"), 0u) << origin << why;
    EXPECT_TRUE(why.ends_with(std::string("not '") + origin + "'")) << why;
  }
}

TEST(Access, AHostIsAName) {
  for (const char* host : {"*", "mybox", "MyBox.example", "10.0.0.7", "[fd00::7]", "fd00::7", "my_box"}) {
    EXPECT_EQ(said_of(&ServerOptions::allowed_hosts, host), "") << host;
  }
  for (const char* host : {"", "http://mybox", "mybox:8000", "mybox/", "my box", "*.example", ".example", "[::1]:80"}) {
    EXPECT_EQ(said_of(&ServerOptions::allowed_hosts, host).find("--allow-host is a host name"), 0u) << host;
  }
  const auto pictures = [](const std::string& host) {
    ServerOptions options;
    options.fetch.hosts = {host};
    return said(options);
  };
  for (const char* host : {"pictures.example", "pictures.example:8080", "10.0.0.7:9000", "[fd00::7]", "[fd00::7]:80"}) {
    EXPECT_EQ(pictures(host), "") << host;
  }
  for (const char* host : {"", "*", "https://pictures.example", "pictures.example/", "pictures.example:0",
                           "pictures.example:x", "fd00::7", "a b"}) {
    EXPECT_EQ(pictures(host).find("--allow-image-host is a host name or address"), 0u) << host;
  }
}

TEST(Access, AnMcpServerIsAnHttpUrl) {
  const std::pair<const char*, const char*> good[] = {{"http://127.0.0.1:9000/mcp", "http://127.0.0.1:9000"},
                                                      {"https://tools.example", "https://tools.example"},
                                                      {"https://Tools.example/a?key=b", "https://tools.example"},
                                                      {"http://localhost?x", "http://localhost"}};
  for (const auto& [url, origin] : good) {
    EXPECT_EQ(said_of(&ServerOptions::mcp_servers, url), "") << url;
    EXPECT_EQ(mcp_origin(url), origin);
  }
  for (const char* url : {"", "tools.example/mcp", "ftp://tools.example", "https://", "https:///mcp",
                          "https://me:pw@tools.example/", "https://me@tools.example", "https://tools.example/#a",
                          "http://[::1]:9000/mcp", "http://a b/", "http://*/", "http://tools.example:0/",
                          "http://tools.example;script-src/", "javascript://x", "http://a\nb/", "http://a\\b"}) {
    const std::string why = said_of(&ServerOptions::mcp_servers, url);
    EXPECT_EQ(why.find("--mcp is the http or https URL of an MCP server"), 0u) << url << why;
  }
}

TEST(Access, AServerOfThisMachineAnswersUnderAllowedNames) {
  const auto answers = [](const std::vector<std::string>& allowed, const std::string& host) {
    ServerOptions options;
    options.allowed_hosts = allowed;
    HttpRequest request;
    request.headers = {{"host", host}};
    return !check_access(request, options, false).has_value();
  };
  EXPECT_TRUE(answers({}, "localhost:8000"));
  EXPECT_FALSE(answers({}, "mybox:8000"));
  EXPECT_TRUE(answers({"mybox"}, "mybox:8000"));
  EXPECT_TRUE(answers({"MyBox"}, "mybox:8000")) << "names have no capitals";
  EXPECT_FALSE(answers({"mybox"}, "other"));
  EXPECT_TRUE(answers({"fd00::7"}, "[fd00::7]:8000"));
  for (const char* host : {"mybox", "other.example:80", "[fd00::7]:8000"}) EXPECT_TRUE(answers({"*"}, host)) << host;
}

TEST(Access, KeysAreTheLinesOfAFile) {
  EXPECT_EQ(keys_of("\xef\xbb\xbfone\r\n\r\n  two\t\n\nthree", "f"), (std::vector<std::string>{"one", "two", "three"}));
  for (const char* none : {"", "\n", " \r\n", "\xef\xbb\xbf"}) EXPECT_THROW(keys_of(none, "f"), Error);
}

}  // namespace
}  // namespace gemma4
