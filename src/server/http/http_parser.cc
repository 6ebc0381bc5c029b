#include "server/http/http_parser.h"

#include <algorithm>

namespace gemma4 {
namespace {

constexpr size_t kMethodMax = 32;
constexpr size_t kChunkDigitsMax = 16;

bool digit(char c) { return c >= '0' && c <= '9'; }
bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool blank(char c) { return c == ' ' || c == '\t'; }
char lower_byte(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

int hex(char c) {
  if (digit(c)) return c - '0';
  const char small = lower_byte(c);
  return small >= 'a' && small <= 'f' ? small - 'a' + 10 : -1;
}

bool one_of(std::string_view set, char c) { return set.find(c) != std::string_view::npos; }
bool token_char(char c) { return letter(c) || digit(c) || one_of("!#$%&'*+-.^_`|~", c); }
bool token(std::string_view text) { return !text.empty() && std::ranges::all_of(text, token_char); }

std::string lowered(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), lower_byte);
  return out;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// False: a percent sign without two hex digits.
bool percent_decode(std::string_view text, std::string& out) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size() || hex(text[i + 1]) < 0 || hex(text[i + 2]) < 0) return false;
    out += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
    i += 2;
  }
  return true;
}

// uri-host [ ":" port ], without the comma: a list of hosts is not one.
bool host_text(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return letter(c) || digit(c) || one_of("-._~%!$&'()*+;=:[]", c); });
}

// Removes a chunk extension's value, a token or a quoted string, from the front. False: it is neither.
bool skip_value(std::string_view& text) {
  size_t at = 0;
  if (!text.starts_with('"')) {
    while (at < text.size() && token_char(text[at])) ++at;
    text.remove_prefix(at);
    return at > 0;
  }
  for (at = 1; at < text.size() && text[at] != '"'; ++at) {
    if (text[at] == '\\') ++at;
  }
  if (at >= text.size()) return false;
  text.remove_prefix(at + 1);
  return true;
}

void skip_blanks(std::string_view& text) {
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
}

// chunk-ext = *( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )
bool extensions(std::string_view text) {
  while (!text.empty()) {
    skip_blanks(text);
    if (!text.starts_with(';')) return false;  // also blanks that nothing follows
    text.remove_prefix(1);
    skip_blanks(text);
    if (text.starts_with('"') || !skip_value(text)) return false;
    std::string_view after = text;
    skip_blanks(after);
    if (!after.starts_with('=')) continue;
    after.remove_prefix(1);
    skip_blanks(after);
    if (!skip_value(after)) return false;
    text = after;
  }
  return true;
}

}  // namespace

HttpParser::Stage HttpParser::stage() const {
  switch (step_) {
    case Step::kRequestLine:
    case Step::kField:
      return Stage::kHead;
    case Step::kDone:
      return Stage::kDone;
    case Step::kFailed:
      return Stage::kFailed;
    default:
      return Stage::kBody;
  }
}

size_t HttpParser::parse(std::string_view in, std::string_view& body) {
  body = {};
  const bool in_head = stage() == Stage::kHead;
  size_t at = 0;
  while (at < in.size() && step_ != Step::kDone && step_ != Step::kFailed) {
    if (step_ == Step::kBody || step_ == Step::kChunkData) {
      body = in.substr(at, static_cast<size_t>(std::min<uint64_t>(left_, in.size() - at)));
      left_ -= body.size();
      if (left_ == 0) step_ = step_ == Step::kBody ? Step::kDone : Step::kChunkEnd;
      return at + body.size();
    }
    take(in[at++]);
    if (in_head && stage() != Stage::kHead) break;
  }
  return at;
}

// A byte of a line. A line ends with CRLF; a CR or LF by itself is an error, as are other control bytes.
void HttpParser::take(char c) {
  if (!count(c)) return;
  if (cr_) {
    cr_ = false;
    if (c != '\n') return fail(400, "the request has a CR that no LF follows");
    end_line();
    line_.clear();
    return;
  }
  if (c == '\r') {
    cr_ = true;
  } else if (c == '\n') {
    fail(400, "a line of the request ends without CR");
  } else if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f) {
    fail(400, "the request's header has a control byte");
  } else {
    line_ += c;
  }
}

// Counts a byte against the limit of where it is. False: past the limit.
bool HttpParser::count(char c) {
  switch (step_) {
    case Step::kRequestLine:
      if (line_.size() > kMethodMax + limits_.target_bytes + 10) fail(414, "the request's address is too long");
      [[fallthrough]];
    case Step::kField:
      if (++head_bytes_ > limits_.head_bytes) fail(431, "the request's header is too long");
      break;
    case Step::kChunkSize:
      if (line_.size() > kChunkDigitsMax && ++extension_bytes_ > limits_.extension_bytes) {
        fail(400, "the extensions of the body's chunks are too long");
      }
      break;
    case Step::kChunkEnd:
      if (c != (cr_ ? '\n' : '\r')) fail(400, "a chunk of the body is longer than its size says");
      break;
    default:
      if (++trailer_bytes_ > limits_.trailer_bytes) fail(400, "the trailer of the body is too long");
  }
  return step_ != Step::kFailed;
}

void HttpParser::end_line() {
  switch (step_) {
    case Step::kRequestLine:
      if (!line_.empty()) return request_line();
      if (blank_) fail(400, "the request begins with empty lines");
      blank_ = true;  // RFC 9112, 2.2: one is ignored
      return;
    case Step::kField:
      return line_.empty() ? end_head() : field();
    case Step::kChunkSize:
      return chunk_size();
    case Step::kChunkEnd:
      step_ = Step::kChunkSize;
      return;
    default:  // trailers are checked and ignored
      if (line_.empty()) {
        step_ = Step::kDone;
      } else if (!token(std::string_view(line_).substr(0, line_.find(':'))) || line_.find(':') == std::string::npos) {
        fail(400, "the trailer of the body is not well formed");
      }
  }
}

void HttpParser::request_line() {
  const std::string_view line = line_;
  const size_t first = line.find(' ');
  const size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos || first > kMethodMax || !token(line.substr(0, first))) {
    return fail(400, "the request is not well formed HTTP");
  }
  head_.method = line.substr(0, first);
  head_.target = line.substr(first + 1, second - first - 1);
  if (head_.target.size() > limits_.target_bytes) return fail(414, "the request's address is too long");
  version(line.substr(second + 1));
  if (step_ == Step::kFailed) return;
  step_ = Step::kField;
  target();
}

void HttpParser::version(std::string_view text) {
  const bool known =
      text.size() == 8 && text.starts_with("HTTP/") && digit(text[5]) && text[6] == '.' && digit(text[7]);
  if (!known) return fail(400, "the request is not well formed HTTP");
  if (text[5] != '1' || text[7] > '1') return fail(505, "only HTTP/1.1 and HTTP/1.0 are served");
  head_.minor = text[7] - '0';
}

// The path of "/path?query", "http://host/path?query" or "*".
void HttpParser::target() {
  std::string_view text = head_.target;
  const bool visible = std::ranges::all_of(text, [](char c) { return c > 0x20 && c < 0x7f && c != '#'; });
  if (!visible) return fail(400, "the request's address has a character that a URL spells with %");
  if (text == "*" && head_.method == "OPTIONS") {
    head_.path = "*";
    return;
  }
  const size_t scheme = text.find("://");
  const std::string name = scheme == std::string_view::npos ? "" : lowered(text.substr(0, scheme));
  if (name == "http" || name == "https") {
    text.remove_prefix(scheme + 3);
    const size_t end = std::min(text.find_first_of("/?"), text.size());
    authority_ = text.substr(0, end);
    if (authority_.empty() || !host_text(authority_)) return fail(400, "the request's address names no host");
    text.remove_prefix(end);
    if (text.empty() || text.front() == '?') head_.path = "/";
  } else if (!text.starts_with('/')) {
    return fail(400, "the request's address is not a path");
  }
  if (!percent_decode(text.substr(0, text.find('?')), head_.path)) {
    fail(400, "the request's address has a % that two hex digits do not follow");
  }
}

void HttpParser::field() {
  const std::string_view line = line_;
  if (blank(line.front())) return fail(400, "a header field is folded over two lines");
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !token(line.substr(0, colon))) {
    return fail(400, "the name of a header field is not well formed");
  }
  if (head_.fields.size() >= limits_.fields) return fail(431, "the request has too many header fields");
  head_.fields.emplace_back(lowered(line.substr(0, colon)), trimmed(line.substr(colon + 1)));
}

void HttpParser::end_head() {
  if (!host() || !framing()) return;
  connection();
  for (const auto& [name, value] : head_.fields) {
    if (name != "expect") continue;
    if (lowered(value) != "100-continue") return fail(417, "the only expectation that is met is 100-continue");
    head_.expects_continue = head_.minor > 0;  // a client of HTTP/1.0 would not understand the answer
  }
  step_ = head_.chunked ? Step::kChunkSize : head_.has_body() ? Step::kBody : Step::kDone;
  left_ = head_.length.value_or(0);
}

bool HttpParser::host() {
  std::string* value = nullptr;
  for (auto& [name, text] : head_.fields) {
    if (name != "host") continue;
    if (value != nullptr) return fail(400, "the request has two Host fields"), false;
    value = &text;
  }
  if (value == nullptr && head_.minor > 0) return fail(400, "the request has no Host field"), false;
  if (value != nullptr && !host_text(*value)) return fail(400, "the Host field is not a host"), false;
  // RFC 9112, 3.2.2: the host of an absolute address replaces that of the field.
  if (!authority_.empty() && value != nullptr) *value = authority_;
  if (!authority_.empty() && value == nullptr) head_.fields.emplace_back("host", authority_);
  return true;
}

// RFC 9112, 6: how long the body is.
bool HttpParser::framing() {
  const std::string *length = nullptr, *coding = nullptr;
  for (const auto& [name, value] : head_.fields) {
    const std::string** which = name == "content-length" ? &length : name == "transfer-encoding" ? &coding : nullptr;
    if (which == nullptr) continue;
    if (*which != nullptr) return fail(400, "the request gives its length twice"), false;
    *which = &value;
  }
  if (length != nullptr && coding != nullptr) {
    return fail(400, "Content-Length and Transfer-Encoding exclude each other"), false;
  }
  if (coding != nullptr) {
    if (head_.minor == 0) return fail(400, "HTTP/1.0 has no Transfer-Encoding"), false;
    if (lowered(*coding) != "chunked") return fail(400, "the only transfer encoding that is known is chunked"), false;
    head_.chunked = true;
  }
  if (length != nullptr) {
    if (length->empty() || !std::ranges::all_of(*length, digit)) {
      return fail(400, "Content-Length is not a number"), false;
    }
    uint64_t value = 0;
    for (const char c : *length) value = std::min<uint64_t>(value * 10 + (c - '0'), uint64_t{1} << 56);
    head_.length = value;  // past the limit of bodies it is refused when the request may be read
  }
  return true;
}

void HttpParser::connection() {
  bool close = false, keep = false;
  for (const auto& [name, value] : head_.fields) {
    if (name != "connection") continue;
    for (size_t at = 0; at <= value.size();) {
      const size_t comma = std::min(value.find(',', at), value.size());
      const std::string option = lowered(trimmed(std::string_view(value).substr(at, comma - at)));
      close |= option == "close";
      keep |= option == "keep-alive";
      at = comma + 1;
    }
  }
  head_.keep_alive = !close && (keep || head_.minor > 0);
}

void HttpParser::chunk_size() {
  size_t digits = 0;
  uint64_t size = 0;
  while (digits < line_.size() && hex(line_[digits]) >= 0) {
    if (digits == kChunkDigitsMax) return fail(400, "the size of a chunk is not well formed");
    size = size << 4 | static_cast<uint64_t>(hex(line_[digits++]));
  }
  if (digits == 0 || !extensions(std::string_view(line_).substr(digits))) {
    return fail(400, "the size of a chunk is not well formed");
  }
  if (size > limits_.body_bytes - body_bytes_) {
    fail(413, "");
    message_ =
        "the request's body is larger than the " + std::to_string(limits_.body_bytes) + " bytes that are allowed";
    return;
  }
  body_bytes_ += size;
  left_ = size;
  step_ = size == 0 ? Step::kTrailer : Step::kChunkData;
}

void HttpParser::fail(int status, const char* message) {
  step_ = Step::kFailed;
  status_ = status;
  message_ = message;
}

}  // namespace gemma4
