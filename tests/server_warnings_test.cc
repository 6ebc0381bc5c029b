// Warnings: hints that were taken and have no effect, in the answers of all APIs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving_testing.h"

namespace gemma4 {
namespace {

using testing::ElementsAre;

const std::string kTierSentence = "the parameter 'service_tier' has no effect here";

struct WarnedApi {
  std::string path;
  Json body;
};

std::vector<WarnedApi> warned_apis() {
  Json conversation = chat(kCount);
  conversation["max_tokens"] = 3;
  Json prompt = {{"model", "demo"}, {"prompt", "Count"}, {"max_tokens", 3}};
  Json input = {{"model", "demo"}, {"input", kCount}, {"max_output_tokens", 3}};
  return {{"/v1/chat/completions", conversation},
          {"/v1/completions", prompt},
          {"/v1/responses", input},
          {"/v1/messages", conversation}};
}

using ServerWarnings = ServerTest;

TEST_F(ServerWarnings, TellOfAResultThatBelongsToNoCall) {
  const Json call = {{"id", "c1"}, {"type", "function"}, {"function", {{"name", "f"}, {"arguments", "{}"}}}};
  Json body = chat(kCount);
  body["max_tokens"] = 2;
  body["messages"].push_back({{"role", "assistant"}, {"tool_calls", Json::array({call})}});
  body["messages"].push_back({{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "x"}});
  EXPECT_FALSE(good("/v1/chat/completions", body).contains("warnings"));
  body["messages"].back()["tool_call_id"] = "c2";
  EXPECT_THAT(good("/v1/chat/completions", body)["warnings"][0].get<std::string>(),
              testing::HasSubstr("('c2') belongs to no call before it"));
  body["messages"].back()["name"] = "f";
  EXPECT_FALSE(good("/v1/chat/completions", body).contains("warnings"));
}

TEST_F(ServerWarnings, AreAtTheTopOfTheAnswer) {
  for (auto& [path, body] : warned_apis()) {
    EXPECT_FALSE(good(path, body).contains("warnings")) << path;
    body["service_tier"] = "flex";
    const Json json = good(path, body);
    ASSERT_TRUE(json.contains("warnings")) << path << json;
    EXPECT_EQ(json["warnings"], Json::array({kTierSentence})) << path;
  }
}

// In the last data event, and in no other; Anthropic's is followed by message_stop.
TEST_F(ServerWarnings, AreInTheLastDataEventOfAStream) {
  for (auto& [path, body] : warned_apis()) {
    body["service_tier"] = "flex";
    std::vector<SseEvent> warned;
    std::vector<SseEvent> events = streamed(path, body);
    std::erase_if(events, [](const SseEvent& event) { return event.name == "DONE" || event.name == "message_stop"; });
    for (const SseEvent& event : events) {
      if (event.data.contains("warnings")) warned.push_back(event);
    }
    ASSERT_EQ(warned.size(), 1u) << path;
    EXPECT_EQ(warned[0].data, events.back().data) << path;
    EXPECT_EQ(warned[0].data["warnings"], Json::array({kTierSentence})) << path;
    if (path == "/v1/responses") {
      EXPECT_EQ(warned[0].data["response"]["warnings"], warned[0].data["warnings"]);
    }
    if (path == "/v1/messages") {
      EXPECT_EQ(warned[0].name, "message_delta");
    }
  }
}

TEST_F(ServerWarnings, FollowTheUsageWhereThatIsLast) {
  for (const char* path : {"/v1/chat/completions", "/v1/completions"}) {
    Json body = path == std::string("/v1/completions") ? warned_apis()[1].body : warned_apis()[0].body;
    body.update({{"service_tier", "flex"}, {"n", 2}, {"stream_options", {{"include_usage", true}}}});
    std::vector<SseEvent> events = streamed(path, body);
    events.pop_back();  // DONE
    EXPECT_TRUE(events.back().data.contains("usage"));
    EXPECT_EQ(events.back().data["warnings"], Json::array({kTierSentence})) << path;
    events.pop_back();
    for (const SseEvent& event : events) EXPECT_FALSE(event.data.contains("warnings")) << path;
  }
}

}  // namespace
}  // namespace gemma4
