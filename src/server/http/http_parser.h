// HttpParser: one HTTP/1.1 request from bytes, strictly by RFC 9112. Where the RFC lets a server be lenient, it is not:
// two readers that differ about where a request ends are how one is smuggled behind another. HttpServer feeds it what
// arrives, in pieces of any size. Work is linear in the bytes, memory is bounded by HttpLimits, the body is not kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gemma4 {

struct HttpLimits {
  size_t target_bytes = 8192;        // more is 414
  size_t head_bytes = 64 << 10;      // request line and header fields; more is 431
  size_t fields = 256;               // header fields; more is 431
  size_t trailer_bytes = 8 << 10;    // of a chunked body; more is 400
  size_t extension_bytes = 4 << 10;  // of all chunks of a body; more is 400
  uint64_t body_bytes = 32 << 20;    // after removing the framing of chunks; more is 413
};

struct HttpHead {
  std::string method, target;                               // as sent
  std::string path;                                         // of the target: percent-decoded, without the query
  int minor = 1;                                            // of HTTP/1.x: 0 or 1
  std::vector<std::pair<std::string, std::string>> fields;  // names in lower case; values raw, without outer whitespace
  bool chunked = false;
  std::optional<uint64_t> length;  // Content-Length
  bool keep_alive = true;
  bool expects_continue = false;  // the client waits for status 100 before it sends the body

  bool has_body() const { return chunked || length.value_or(0) > 0; }
};

class HttpParser {
 public:
  enum class Stage { kHead, kBody, kDone, kFailed };

  explicit HttpParser(const HttpLimits& limits) : limits_(limits) {}

  // Consumes bytes of `in` up to the end of the head, of a piece of the body, of the request or of `in`, whichever is
  // first. `body` is the piece of the body among them, a part of `in`. Returns the number of bytes consumed.
  size_t parse(std::string_view in, std::string_view& body);

  Stage stage() const;
  bool started() const { return head_bytes_ > 0; }
  const HttpHead& head() const { return head_; }  // whole from kBody on
  // kFailed: what to answer. The connection is then closed, as nobody knows where a next request would begin.
  int status() const { return status_; }
  const std::string& message() const { return message_; }

 private:
  enum class Step { kRequestLine, kField, kBody, kChunkSize, kChunkData, kChunkEnd, kTrailer, kDone, kFailed };

  void take(char c);
  bool count(char c);
  void end_line();
  void request_line();
  void version(std::string_view text);
  void target();
  void field();
  void end_head();
  bool framing();
  bool host();
  void connection();
  void chunk_size();
  void fail(int status, const char* message);

  const HttpLimits limits_;
  HttpHead head_;
  Step step_ = Step::kRequestLine;
  std::string line_, authority_;
  bool cr_ = false, blank_ = false;
  size_t head_bytes_ = 0, trailer_bytes_ = 0, extension_bytes_ = 0;
  uint64_t left_ = 0, body_bytes_ = 0;  // of the chunk or body that is being read; in all chunks
  int status_ = 0;
  std::string message_;
};

}  // namespace gemma4
