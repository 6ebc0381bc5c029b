#include "server/http/http.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "base/priority.h"
#include "server/server_testing.h"

namespace gemma4 {
namespace {

using test::ask;
using test::http_text;
using test::Response;
using test::Socket;

HttpHandlers echo() {
  HttpHandlers handlers;
  handlers.gate = [](const HttpRequest& request) -> std::optional<HttpResponse> {
    if (request.path != "/closed") return std::nullopt;
    HttpResponse response;
    response.status = 403;
    response.body = "closed";
    return response;
  };
  handlers.handle = [](HttpRequest& request) {
    HttpResponse response;
    response.body = request.method + " " + request.path + " " + std::to_string(request.body.size());
    return response;
  };
  handlers.refuse = [](const HttpRequest&, int status, const std::string& message) {
    HttpResponse response;
    response.status = status;
    response.body = message;
    return response;
  };
  return handlers;
}

HttpOptions small() {
  HttpOptions options;
  options.port = 0;
  options.body_bytes = 1000;
  options.header_seconds = 1;
  options.body_seconds = 1;
  options.connections = 8;
  return options;
}

TEST(Http, AnswersAndKeepsTheConnection) {
  HttpServer server(small(), echo());
  Socket socket(server.port());
  for (int i = 0; i < 3; ++i) {
    socket.send(http_text("POST", "/a%20b?c=d", "12345"));
    const Response response = socket.response();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "POST /a b 5");
  }
  socket.send(http_text("GET", "/x", "") + http_text("GET", "/y", ""));  // two requests in one write
  EXPECT_EQ(socket.response().body, "GET /x 0");
  EXPECT_EQ(socket.response().body, "GET /y 0");
}

TEST(Http, RefusesBodiesPastTheLimit) {
  HttpServer server(small(), echo());
  EXPECT_EQ(ask(server.port(), "POST", "/", std::string(1000, 'x')).status, 200);
  EXPECT_EQ(ask(server.port(), "POST", "/", std::string(1001, 'x')).status, 413);
  // A chunked body has no length in its headers.
  Socket socket(server.port());
  socket.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 11; ++i) socket.send("64\r\n" + std::string(100, 'x') + "\r\n");
  EXPECT_EQ(socket.response().status, 413);
}

TEST(Http, LimitsWhatAllBodiesHoldTogether) {
  HttpOptions options = small();
  options.bodies_bytes = 1500;
  options.body_seconds = 30;
  HttpServer server(options, echo());
  std::optional<Socket> half;
  int status = 0;
  // Repeated until the first 900 bytes were read: while they are in flight, they may be the ones that are refused.
  for (int i = 0; i < 400 && status != 503; ++i) {
    if (i % 20 == 0) {
      half.emplace(server.port());
      half->send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + std::string(900, 'x'));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    status = ask(server.port(), "POST", "/", std::string(900, 'x')).status;
  }
  EXPECT_EQ(status, 503);
  half->send(std::string(100, 'x'));
  EXPECT_EQ(half->response().status, 200);
  EXPECT_EQ(ask(server.port(), "POST", "/", std::string(900, 'x')).status, 200);  // their bytes were released
}

TEST(Http, RefusesWhatIsNotHttp) {
  HttpServer server(small(), echo());
  const auto status = [&](const std::string& text) {
    Socket socket(server.port());
    socket.send(text);
    return socket.response().status;
  };
  EXPECT_EQ(status("nonsense\r\n\r\n"), 400);
  EXPECT_EQ(status("GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n\r\n"), 414);
  EXPECT_EQ(status("POST / HTTP/1.1\r\nHost: a\r\n\r\n"), 411);
  EXPECT_EQ(status("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"), 400);
  EXPECT_EQ(status("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400);
  EXPECT_EQ(status("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 400);
  EXPECT_EQ(status("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"), 413);
  EXPECT_EQ(status("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}"), 415);
  EXPECT_EQ(
      status(
          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n{}"),
      415);
  EXPECT_EQ(status("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"), 405);
  EXPECT_EQ(status("GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=x\r\n\r\n"), 416);
  EXPECT_EQ(status("GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1,0-1,0-1\r\n\r\n"),
            200);  // the whole body: ranges are not supported
  EXPECT_EQ(status("POST /closed HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"), 403);
}

TEST(Http, CutsEndlessHeaders) {
  HttpServer server(small(), echo());
  Socket socket(server.port());
  std::string text = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 5000; ++i) text += "X-" + std::to_string(i) + ": 0123456789\r\n";
  socket.send(text);
  const Response response = socket.response();
  EXPECT_EQ(response.status, 431);
}

TEST(Http, CutsSlowSenders) {
  HttpServer server(small(), echo());
  const auto start = std::chrono::steady_clock::now();
  Socket silent(server.port()), slow(server.port());
  slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(silent.response().status, 0);
  EXPECT_EQ(slow.response().status, 400);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

// Requests that are being answered hold their places: one more is turned away. `release` ends them.
struct Busy {
  explicit Busy(HttpOptions options) : server(options, handlers()) {}

  HttpHandlers handlers() {
    HttpHandlers out = echo();
    out.handle = [this](HttpRequest& request) {
      HttpResponse response;
      response.body = request.path;
      if (request.path == "/long") {
        ++running;
        while (!release) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
      return response;
    };
    return out;
  }
  void fill(int count) {
    for (int i = 0; i < count; ++i) {
      open.push_back(std::make_unique<Socket>(server.port()));
      open.back()->send(http_text("GET", "/long", ""));
    }
    while (running < count) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }

  std::atomic<int> running = 0;
  std::atomic<bool> release = false;
  std::vector<std::unique_ptr<Socket>> open;
  HttpServer server;
};

TEST(Http, TurnsAwayMoreConnectionsThanAllowed) {
  HttpOptions options = small();
  options.connections_per_address = 8;
  options.reserve = 2;
  Busy busy(options);
  busy.fill(8);
  EXPECT_EQ(ask(busy.server.port(), "GET", "/").status, 503);
  EXPECT_GE(busy.server.stats().turned_away, 1u);
  // The reserve is for these, also while somebody sits in it.
  Socket silent(busy.server.port()), silent_too(busy.server.port()), third(busy.server.port());
  for (const char* path : {"/health", "/metrics"}) EXPECT_EQ(ask(busy.server.port(), "GET", path).status, 200) << path;
  EXPECT_EQ(ask(busy.server.port(), "POST", "/health", "x").status, 503);
  busy.release = true;
  for (auto& socket : busy.open) EXPECT_EQ(socket->response().body, "/long");
  int status = 0;
  for (int i = 0; i < 200 && status != 200; ++i) {
    status = ask(busy.server.port(), "GET", "/").status;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(status, 200);
}

TEST(Http, AnAddressHasABoundAndStillItsHealth) {
  HttpOptions options = small();  // half of 8 connections
  Busy busy(options);
  busy.fill(4);
  EXPECT_EQ(ask(busy.server.port(), "GET", "/").status, 503);
  EXPECT_EQ(ask(busy.server.port(), "GET", "/health").status, 200);
  busy.release = true;
}

// Idle connections, half headers and half bodies make room; the oldest goes first and is told so if it had asked.
TEST(Http, WhatWaitsMakesRoomForNewConnections) {
  HttpOptions options = small();
  options.header_seconds = options.body_seconds = 30;
  HttpServer server(options, echo());
  const std::string parts[] = {"", "GET / HT", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
                               "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"};
  std::vector<std::unique_ptr<Socket>> open;
  for (int i = 0; i < 100; ++i) {
    open.push_back(std::make_unique<Socket>(server.port()));
    open.back()->send(parts[i % 4]);
    if (i % 10 != 9) continue;
    EXPECT_EQ(ask(server.port(), "POST", "/", "12345").status, 200) << i;
  }
  EXPECT_EQ(open[0]->response().status, 0);
  EXPECT_EQ(open[2]->response().status, 503);
  EXPECT_LE(server.stats().connections, 8 + 16);
  EXPECT_GE(server.stats().dropped, 90u);
}

// Bodies that stand still do not keep the memory of all bodies from others.
TEST(Http, ABodyThatStandsStillMakesRoomForOthers) {
  HttpOptions options = small();
  options.bodies_bytes = 1500;
  options.body_seconds = 100;
  HttpServer server(options, echo());
  Socket half(server.port());
  half.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + std::string(900, 'x'));
  const auto start = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));
  int status = 0;
  for (int i = 0; i < 100 && status != 200; ++i) {
    status = ask(server.port(), "POST", "/", std::string(900, 'x')).status;
    if (status != 200) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(status, 200);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  EXPECT_EQ(half.response().status, 503);
}

// What follows a broken chunk is never served as a second request.
TEST(Http, ABrokenChunkEndsTheConnection) {
  HttpServer server(small(), echo());
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string next = "GET /second HTTP/1.1\r\nHost: a\r\n\r\n";
  for (const char* body :
       {"5\r\nhelloX", "5\r\nhello0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\n", "-1\r\n", "\r\n", "5 \r\nhello\r\n0\r\n\r\n"}) {
    Socket socket(server.port());
    socket.send(head + body + next);
    EXPECT_EQ(socket.response().status, 400) << body;
    EXPECT_EQ(socket.response().status, 0) << body;
  }
  for (const char* body : {"5\r\nhello\r\n0\r\n\r\n", "5;a=b;c=\"d e\"\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
                           "0005\r\nhello\r\n000\r\n\r\n"}) {
    Socket socket(server.port());
    socket.send("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: CHUNKED\r\n\r\n" + (body + next));
    EXPECT_EQ(socket.response().body, "POST / 5") << body;
    EXPECT_EQ(socket.response().body, "GET /second 0") << body;
  }
}

TEST(Http, HeaderValuesAreRaw) {
  HttpHandlers handlers = echo();
  handlers.handle = [](HttpRequest& request) {
    HttpResponse response;
    response.body = request.header("x-key");
    return response;
  };
  HttpServer server(small(), handlers);
  EXPECT_EQ(ask(server.port(), "GET", "/", "", {{"X-Key", "abc%20def%"}}).body, "abc%20def%");
  for (const char* field : {"Content-Length: %31%34", "Transfer-Encoding: chunke%64", "Content-Length: +5",
                            "Content-Length: 5, 5", "Content-Length: 5\r\nContent-Length: 5", "Content-Length : 5"}) {
    Socket socket(server.port());
    socket.send(std::string("POST / HTTP/1.1\r\nHost: a\r\n") + field + "\r\n\r\nhello");
    EXPECT_EQ(socket.response().status, 400) << field;
  }
}

TEST(Http, SpeaksHttp10AndHeadAndContinue) {
  HttpHandlers handlers = echo();
  handlers.handle = [](HttpRequest& request) {
    HttpResponse response;
    response.body = request.method;
    if (request.path == "/stream")
      response.stream = [](HttpWriter& writer) { writer.write("one"), writer.write("two"); };
    return response;
  };
  HttpServer server(small(), handlers);
  Socket old(server.port());
  old.send("GET /stream HTTP/1.0\r\n\r\n");
  std::string all;
  for (std::string more; !(more = old.receive()).empty();) all += more;
  EXPECT_TRUE(all.ends_with("\r\n\r\nonetwo")) << all;
  EXPECT_NE(all.find("Connection: close"), std::string::npos);
  Socket kept(server.port());
  kept.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(kept.response().headers["connection"], "keep-alive");
  kept.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::string head = kept.receive_until("\r\n\r\n");
  EXPECT_NE(head.find("Content-Length: 3"), std::string::npos);
  EXPECT_TRUE(head.ends_with("\r\n\r\n"));
  kept.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(kept.response().status, 100);
  kept.send("{}");
  EXPECT_EQ(kept.response().body, "POST");
  kept.send("GET /stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const Response last = kept.response();
  EXPECT_EQ(last.body, "onetwo");
  EXPECT_EQ(kept.receive(), "");
}

TEST(Http, StreamsAndNoticesThatTheClientHasGone) {
  std::promise<void> gone;
  HttpHandlers handlers = echo();
  handlers.handle = [&](HttpRequest&) {
    HttpResponse response;
    response.content_type = "text/event-stream";
    response.stream = [&](HttpWriter& writer) {
      writer.write("first\n");
      while (writer.alive()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      gone.set_value();
    };
    return response;
  };
  HttpServer server(small(), handlers);
  {
    Socket socket(server.port());
    socket.send(http_text("POST", "/", "{}"));
    EXPECT_NE(socket.receive_until("first").find("first"), std::string::npos);
  }
  EXPECT_EQ(gone.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST(Http, GivesUpOnAReaderThatDoesNotRead) {
  std::promise<bool> ended;
  HttpHandlers handlers = echo();
  handlers.handle = [&](HttpRequest&) {
    HttpResponse response;
    response.stream = [&](HttpWriter& writer) {
      const std::string much(1 << 20, 'x');
      bool good = true;
      for (int i = 0; i < 100 && good; ++i) good = writer.write(much);
      ended.set_value(good);
    };
    return response;
  };
  HttpOptions options = small();
  options.write_seconds = 0.3;
  HttpServer server(options, handlers);
  Socket socket(server.port());
  socket.send(http_text("POST", "/", "{}"));
  EXPECT_FALSE(ended.get_future().get());
  EXPECT_EQ(ask(server.port(), "GET", "/closed").status, 403);  // other requests are served meanwhile and afterwards
}

TEST(Http, AFailingHandlerIsOneAnswer) {
  HttpHandlers handlers = echo();
  handlers.handle = [&](HttpRequest&) -> HttpResponse { throw std::runtime_error("broken"); };
  HttpServer server(small(), handlers);
  const Response response = ask(server.port(), "GET", "/");
  EXPECT_EQ(response.status, 500);
  EXPECT_NE(response.body.find("broken"), std::string::npos);
}

TEST(Http, StopWaitsForAnswersAndCutsTheRest) {
  std::atomic<bool> began = false;
  HttpHandlers handlers = echo();
  handlers.handle = [&](HttpRequest& request) {
    began = true;
    HttpResponse response;
    if (request.path == "/short") {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    } else {
      while (request.alive()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    response.body = "done";
    return response;
  };
  for (const char* path : {"/short", "/long"}) {
    began = false;
    HttpServer server(small(), handlers);
    Socket socket(server.port()), idle(server.port());
    socket.send(http_text("GET", path, ""));
    while (!began) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    HttpResponse last;
    last.status = 503;
    EXPECT_EQ(server.stop(2, last), true);
    EXPECT_EQ(socket.response().status, std::string(path) == "/short" ? 200 : 503);
  }
}

// A thread that does not look whether its request is wanted (one of low priority on a busy machine looks late): its
// client is told all the same, and who stops the server hears that the thread is still there.
TEST(Http, StopTellsAClientWhoseThreadIsBusy) {
  HttpHandlers handlers = echo();
  std::atomic<bool> began = false, released = false;
  handlers.handle = [&](HttpRequest&) {
    began = true;
    while (!released) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    HttpResponse response;
    response.body = "too late";
    return response;
  };
  HttpServer server(small(), handlers);
  Socket socket(server.port());
  socket.send(http_text("GET", "/", ""));
  while (!began) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  HttpResponse last;
  last.status = 503;
  last.body = "stopping";
  EXPECT_FALSE(server.stop(0.1, last));
  const Response told = socket.response();
  EXPECT_EQ(told.status, 503);
  EXPECT_EQ(told.body, "stopping");
  released = true;
}

// Priority cannot be raised again: who comes next must not be served by a thread that was lowered for another client.
TEST(Http, AThreadOfLowPriorityServesNobodyElse) {
  HttpHandlers handlers = echo();
  handlers.handle = [](HttpRequest& request) {
    HttpResponse response;
    response.body = priority_is_lowered() ? "low" : "full";
    if (request.path == "/heavy") lower_priority();
    return response;
  };
  HttpServer server(small(), handlers);
  const auto answer = [&](const char* path) {  // on a busy machine connections that have ended are counted for a while
    Response response = ask(server.port(), "GET", path, "");
    for (; response.status == 503; response = ask(server.port(), "GET", path, "")) std::this_thread::yield();
    return response.body;
  };
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(answer("/heavy"), "full");
    EXPECT_EQ(answer("/light"), "full");
  }
  std::vector<std::future<std::string>> many;
  for (int i = 0; i < 60; ++i) {
    many.push_back(std::async(std::launch::async, [&] { return ask(server.port(), "GET", "/heavy", "").body; }));
  }
  for (auto& one : many) EXPECT_NE(one.get(), "low");
}

}  // namespace
}  // namespace gemma4
