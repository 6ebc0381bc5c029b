// Fuzz target: the parser of HTTP requests. An input is a list of choices. They spell one to three requests that are
// well formed in all the ways that RFC 9112 allows, and sometimes damage to them. Requests that are whole must be found
// exactly, one after the other; damaged ones must give the same parse however they are cut.
#include <algorithm>
#include <cstdlib>

#include "base/mutate_testing.h"
#include "server/http/http_parser.h"

namespace gemma4 {
namespace {

constexpr HttpLimits kLimits = {.target_bytes = 300,
                                .head_bytes = 1200,
                                .fields = 12,
                                .trailer_bytes = 200,
                                .extension_bytes = 6000,
                                .body_bytes = 400};

const std::vector<std::string> kDictionary = {"\r\n",
                                              "\n",
                                              "\r",
                                              "\r\n\r\n",
                                              "0\r\n\r\n",
                                              "0x5",
                                              ";",
                                              "=\"",
                                              " ",
                                              "\t",
                                              ":",
                                              "%20",
                                              "%00",
                                              std::string(1, '\0'),
                                              "chunked",
                                              "Transfer-Encoding: CHUNKED\r\n",
                                              "Content-Length: 5\r\n",
                                              "Content-Length: %35\r\n",
                                              "Content-Length: 05\r\n",
                                              "Host: a\r\n",
                                              "\r\n folded",
                                              "Connection: close\r\n",
                                              "Expect: 100-continue\r\n",
                                              "HTTP/1.1",
                                              "HTTP/1.0",
                                              "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                                              "ffffffffffffffff",
                                              "\"\\\""};

// Takes choices from the front of an input; when it is used up, all are 0.
class Choices {
 public:
  explicit Choices(std::string_view bytes) : bytes_(bytes) {}
  size_t below(size_t n) {
    if (bytes_.empty()) return 0;
    const auto byte = static_cast<unsigned char>(bytes_.front());
    bytes_.remove_prefix(1);
    return byte % n;
  }
  std::string text(size_t most, std::string_view of) {
    std::string out(below(most + 1), ' ');
    for (char& c : out) c = of[below(of.size())];
    return out;
  }
  std::string any(size_t most) {
    std::string out(below(most + 1), ' ');
    for (char& c : out) c = static_cast<char>(below(256));
    return out;
  }

 private:
  std::string_view bytes_;
};

constexpr std::string_view kToken = "abcXYZ019!#$%&'*+-.^_`|~";
constexpr std::string_view kValue = "abc XYZ\t019%:;,\"=\\/\x80\xff";

struct Made {
  std::string text, method, target, body;
  std::vector<std::pair<std::string, std::string>> fields;  // as the parser should give them
};

std::string mixed_case(Choices& choices, std::string text) {
  for (char& c : text) {
    if (choices.below(3) == 0) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return text;
}

void add_field(Choices& choices, Made& made, const std::string& name, const std::string& value) {
  made.text += mixed_case(choices, name) + ":" + choices.text(2, " \t") + value + choices.text(2, " \t") + "\r\n";
  made.fields.emplace_back(name, value);
}

std::string extension(Choices& choices) {
  std::string out;
  for (size_t i = choices.below(8) == 7 ? 2 : 0; i > 0; --i) {
    out += choices.text(1, " \t") + ";" + choices.text(1, " \t") + "x" + choices.text(3, kToken);
    if (choices.below(2)) out += choices.text(1, " ") + "=" + choices.text(1, " ") + "y" + choices.text(3, kToken);
    if (choices.below(4) == 3) out += ";q=\"a\\\" " + choices.text(3, "bc;=\t") + "\"";
  }
  return out;
}

void add_chunks(Choices& choices, Made& made) {
  for (size_t at = 0; at < made.body.size();) {
    const size_t size = 1 + choices.below(std::min<size_t>(made.body.size() - at, 64));
    char digits[20];
    std::snprintf(digits, sizeof(digits), choices.below(2) ? "%zx" : "%03zX", size);
    made.text += digits + extension(choices) + "\r\n" + made.body.substr(at, size) + "\r\n";
    at += size;
  }
  made.text += std::string(1 + choices.below(3), '0') + extension(choices) + "\r\n";
  for (size_t i = choices.below(3); i > 0; --i)
    made.text += "t" + choices.text(5, kToken) + ":" + choices.text(9, kValue) + "\r\n";
  made.text += "\r\n";
}

Made make(Choices& choices) {
  static constexpr const char* kMethods[] = {"POST", "GET", "HEAD", "OPTIONS", "PUT", "x-~method"};
  Made made;
  made.method = kMethods[choices.below(6)];
  made.target = "/" + choices.text(20, "ab/?=&.-_~!$'()*+,;:@09");
  if (choices.below(8) == 7) made.target = "http://h:80" + made.target;
  if (choices.below(8) == 7) made.target += "%2f%00";
  if (choices.below(8) == 7) made.text = "\r\n";
  made.text += made.method + " " + made.target + " HTTP/1.1\r\n";
  add_field(choices, made, "host", made.target.starts_with("h") ? "h:80" : "a.b:" + choices.text(3, "019"));
  for (size_t i = choices.below(5); i > 0; --i) {
    std::string value = choices.text(20, kValue);
    while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.pop_back();
    value.erase(0, value.find_first_not_of(" \t"));
    add_field(choices, made, "x" + choices.text(6, "abc019!#$%&'*+-.^_`|~"), value);
  }
  const size_t how = choices.below(4);
  if (how > 0) made.body = choices.any(100);
  if (how == 1) add_field(choices, made, "transfer-encoding", mixed_case(choices, "chunked"));
  if (how > 1)
    add_field(choices, made, "content-length", std::string(choices.below(3), '0') + std::to_string(made.body.size()));
  made.text += "\r\n";
  if (how == 1) add_chunks(choices, made);
  if (how > 1) made.text += made.body;
  return made;
}

struct Result {
  int status = 0;
  HttpParser::Stage stage = HttpParser::Stage::kHead;
  size_t used = 0;
  std::string method, target, path, message, body;
  std::vector<std::pair<std::string, std::string>> fields;
  bool operator==(const Result&) const = default;
};

// Parses the first request of `text`, fed in pieces of `first` bytes and then of `rest`.
Result parse(std::string_view text, size_t first, size_t rest) {
  HttpParser parser(kLimits);
  Result out;
  for (size_t begin = 0, end = first; begin < text.size(); begin = end, end = begin + rest) {
    end = std::min(end, text.size());
    while (out.used < end) {
      const HttpParser::Stage before = parser.stage();
      std::string_view piece;
      const size_t used = parser.parse(text.substr(out.used, end - out.used), piece);
      out.body += piece;
      out.used += used;
      if (used == 0 && parser.stage() == before) break;
    }
    if (out.used < end) break;
  }
  const HttpHead& head = parser.head();
  out.status = parser.status();
  out.message = parser.message();
  out.stage = parser.stage();
  out.method = head.method, out.target = head.target, out.path = head.path, out.fields = head.fields;
  if (out.body.size() > kLimits.body_bytes && head.chunked) std::abort();
  if (head.fields.size() > kLimits.fields) std::abort();
  if ((out.stage == HttpParser::Stage::kFailed) != (out.status >= 400 && !out.message.empty())) std::abort();
  return out;
}

// The first request of `text`: the same with a cut after every byte, and with one cut (long texts: at 128 places).
Result parse_every_way(std::string_view text) {
  const Result whole = parse(text, text.size(), 1);
  if (parse(text, 1, 1) != whole) std::abort();
  for (size_t first = 1; first < text.size(); first += 1 + text.size() / 128) {
    if (parse(text, first, text.size()) != whole) std::abort();
  }
  return whole;
}

void check_found(const Result& found, const Made& made) {
  if (found.stage != HttpParser::Stage::kDone || found.used != made.text.size()) std::abort();
  if (found.method != made.method || found.target != made.target || found.body != made.body) std::abort();
  if (found.fields != made.fields) std::abort();
}

void damage(Choices& choices, std::string& text) {
  for (size_t i = 1 + choices.below(3); i > 0; --i) {
    const size_t at = text.empty() ? 0 : (choices.below(256) * 256 + choices.below(256)) % text.size();
    switch (choices.below(5)) {
      case 0:
        text.insert(at, kDictionary[choices.below(kDictionary.size())]);
        break;
      case 1:
        text.erase(at, 1 + choices.below(3));
        break;
      case 2:
        text.insert(at, choices.any(2));
        break;
      case 3:
        if (at < text.size()) text[at] = static_cast<char>(choices.below(256));
        break;
      default:
        text.insert(at, text.substr(0, choices.below(64)));
    }
  }
}

int sum_of(const std::string& input) {
  int sum = 0;
  for (const char c : input) sum += static_cast<unsigned char>(c);
  return sum;
}

void run_http(const std::string& input) {
  Choices choices(input);
  const bool whole = sum_of(input) % 8 < 5;  // any change of the input may change it
  std::vector<Made> requests;
  std::string text;
  for (size_t i = 1 + choices.below(3); i > 0; --i) text += requests.emplace_back(make(choices)).text;
  if (!whole) damage(choices, text);
  std::string_view left = text;
  for (size_t i = 0; !left.empty(); ++i) {
    const Result found = parse_every_way(left);
    if (whole) check_found(found, requests.at(i));
    if (found.stage == HttpParser::Stage::kFailed) throw Error(found.message);
    if (found.stage != HttpParser::Stage::kDone) throw Error("the request is not whole");
    left.remove_prefix(found.used);
  }
}

std::vector<std::string> http_seeds() {
  std::mt19937_64 random(7);
  std::vector<std::string> seeds;
  for (int i = 0; i < 64; ++i) {
    std::string seed(1 + random() % 400, ' ');
    for (char& c : seed) c = static_cast<char>(random());
    seed.back() = static_cast<char>(seed.back() - sum_of(seed) % 8);  // whole requests
    seeds.push_back(seed);
  }
  return seeds;
}

const RegisterFuzz kHttp({"http", http_seeds, run_http, kDictionary});

}  // namespace
}  // namespace gemma4
