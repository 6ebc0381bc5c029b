// What the engine's tests share: the small models, requests for them, and an answer gathered from its events.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/models_testing.h"
#include "engine/engine.h"
#include "engine/event_queue.h"

namespace gemma4 {

inline EngineOptions tiny_options() {
  EngineOptions options;
  options.model = kTiny;
  options.backend = "ref";
  options.max_seq_len = 400;
  options.image_budget_max = 70;
  options.page = 8;
  return options;
}

inline EngineOptions demo_options() {
  EngineOptions options;
  options.model = kDemo;
  options.backend = "cpu";
  options.threads = 2;
  options.max_seq_len = 1024;
  options.image_budget_max = 70;
  options.page = 16;
  return options;
}

struct Heard {
  std::vector<int32_t> ids;  // without the end token
  std::vector<TokenLogprobs> logprobs;
  std::string text, thinking, error;
  std::vector<ToolCall> calls;
  int ends = 0;  // kDone and kError events
  bool device = false;
  Finish finish = Finish::kStop;
  std::string stop;
  Usage usage;

  void hear(const Event& event) {
    for (const TokenLogprobs& token : event.logprobs) ids.push_back(token.token.id), logprobs.push_back(token);
    if (event.type == Event::kText) text += event.text;
    if (event.type == Event::kThinking) thinking += event.text;
    if (event.type == Event::kToolCall) calls.push_back(event.tool_call);
    if (event.type == Event::kError) error = event.text, device = event.device, ++ends;
    if (event.type != Event::kDone) return;
    ++ends;
    finish = event.finish, stop = event.stop, usage = event.usage;
  }
};

// A request on its way; get() waits for its end. Token ids are gathered where the request asks for logprobs.
class Ask {
 public:
  Ask(Engine& engine, const Request& request) : queue_(std::make_shared<EventQueue>(size_t{64} << 20)) {
    id = engine.submit(request, [queue = queue_](const Event& event) { queue->push(event); });
  }
  Heard get() {
    while (heard_.ends == 0) {
      const auto event = queue_->pop(std::chrono::seconds(120));
      if (!event) {
        ADD_FAILURE() << "no event in two minutes";
        break;
      }
      heard_.hear(*event);
    }
    return heard_;
  }
  uint64_t id = 0;

 private:
  std::shared_ptr<EventQueue> queue_;
  Heard heard_;
};

inline Request raw_request(const std::string& prompt, int tokens) {
  Request request;
  request.raw = prompt;
  request.max_new_tokens = tokens;
  request.sampling.temperature = 0;
  request.logprobs = 0;
  return request;
}

inline Request chat_request(const std::string& text, int tokens, const std::vector<std::string>& image_files = {}) {
  Request request;
  Message message;
  message.role = "user";
  for (const std::string& file : image_files) {
    request.images.push_back(read_file(file));
    message.content.push_back({ContentPart::kImage, ""});
  }
  message.content.push_back({ContentPart::kText, text});
  request.messages.push_back(message);
  request.max_new_tokens = tokens;
  request.sampling.temperature = 0;
  request.logprobs = 0;
  return request;
}

// One request with several choices on its way; get() waits for the end of all.
class AskChoices {
 public:
  AskChoices(Engine& engine, const Request& request)
      : queue_(std::make_shared<EventQueue>(size_t{64} << 20)), heard_(request.n) {
    id = engine.submit(request, [queue = queue_](const Event& event) { queue->push(event); });
  }
  std::vector<Heard> get() {
    for (size_t ended = 0; ended < heard_.size();) {
      const auto event = queue_->pop(std::chrono::seconds(120));
      if (!event) {
        ADD_FAILURE() << "no event in two minutes";
        break;
      }
      Heard& heard = heard_.at(event->choice);
      heard.hear(*event);
      ended += event->type == Event::kDone || event->type == Event::kError;
    }
    return heard_;
  }
  uint64_t id = 0;  // of choice 0

 private:
  std::shared_ptr<EventQueue> queue_;
  std::vector<Heard> heard_;
};

struct TinyCase {
  std::string name;
  Request request;  // greedy, through end tokens
  std::vector<int32_t> greedy;
};

// The five cases of tests/golden/tiny, whose greedy continuations transformers computed.
inline std::vector<TinyCase> tiny_cases() {
  const std::string root = SOURCE_DIR "/tests/golden/tiny/";
  const auto file = read_json<nlohmann::json>(read_file(root + "golden/cases.json"));
  std::vector<TinyCase> cases;
  for (const auto& row : file.at("cases")) {
    TinyCase c{row.at("name"), raw_request(row.at("prompt"), 0), row.at("greedy")};
    c.request.max_new_tokens = static_cast<int>(c.greedy.size());
    c.request.ignore_eos = true;
    for (const auto& image : row.at("images")) {
      c.request.images.push_back(read_file(root + "images/" + image.get<std::string>()));
    }
    cases.push_back(std::move(c));
  }
  return cases;
}

inline std::string demo_image(const std::string& name) { return SOURCE_DIR "/tests/golden/demo_eval/images/" + name; }

}  // namespace gemma4
