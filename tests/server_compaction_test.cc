// Compaction of a conversation: POST /v1/responses/compact, and an item of type compaction_trigger at the end of an
// input. The summaries are the demo model's, which cannot write one; what is tested is where they stand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/api/compaction.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

struct ServerCompaction : ServerTest {
  static int input_tokens(const Json& input) {
    return good("/v1/responses/input_tokens", {{"model", "demo"}, {"input", input}})["input_tokens"];
  }
};

Json body_of(const Json& more) {
  Json body = {{"model", "demo"}, {"temperature", 0}, {"max_output_tokens", 40}};
  body.update(more);
  return body;
}

Json said(const std::string& role, const std::string& text) {
  return {{"type", "message"}, {"role", role}, {"content", text}};
}

Json call_and_result() {
  return Json::array({{{"type", "function_call"}, {"call_id", "c1"}, {"name", "set_timer"}, {"arguments", "{}"}},
                      {{"type", "function_call_output"}, {"call_id", "c1"}, {"output", "done"}}});
}

// As a coding agent's: instructions, a question, a call with its result, an answer, another question.
Json agent_items() {
  Json items = {said("developer", "Be brief."), said("user", "Set a timer for 6 minutes.")};
  for (const Json& item : call_and_result()) items.push_back(item);
  items.push_back(said("assistant", "The timer is set."));
  items.push_back(said("user", kCount));
  return items;
}

std::vector<std::string> types_of(const Json& items) {
  std::vector<std::string> types;
  for (const Json& item : items) types.push_back(item["type"]);
  return types;
}

TEST_F(ServerCompaction, LeavesWhatTheUserSaidAndASummary) {
  const Json compacted = good("/v1/responses/compact", body_of({{"input", agent_items()}}));
  EXPECT_EQ(compacted["object"], "response.compaction");
  EXPECT_THAT(compacted["id"].get<std::string>(), StartsWith("resp_"));
  EXPECT_GT(compacted["created_at"], 1'700'000'000);
  EXPECT_GT(compacted["usage"]["output_tokens"], 0);
  const Json& output = compacted["output"];
  ASSERT_THAT(types_of(output), ElementsAre("message", "message", "compaction"));
  EXPECT_EQ(output[0]["role"], "user");
  EXPECT_EQ(output[0]["content"], Json::array({{{"type", "input_text"}, {"text", "Set a timer for 6 minutes."}}}));
  EXPECT_EQ(output[1]["content"][0]["text"], kCount);
  EXPECT_THAT(output[2]["id"].get<std::string>(), StartsWith("cmp_"));
  // The model is asked after the whole conversation.
  EXPECT_GT(compacted["usage"]["input_tokens"], input_tokens(agent_items()));
}

TEST_F(ServerCompaction, TheOutputIsTheBeginningOfTheNextInput) {
  Json next = good("/v1/responses/compact", body_of({{"input", agent_items()}}))["output"];
  const std::string summary = open_summary(next.back()["encrypted_content"], "x");
  EXPECT_NE(summary, "");
  const Json spelled = {next[0], next[1], said("user", summary_message(summary)), said("user", "Go on.")};
  next.push_back(said("user", "Go on."));
  EXPECT_EQ(input_tokens(next), input_tokens(spelled));
  const Json answer = good("/v1/responses", body_of({{"input", next}}));
  EXPECT_EQ(answer["output"][0]["content"],
            good("/v1/responses", body_of({{"input", spelled}}))["output"][0]["content"]);
  // A client that sends all that was before it, too, gets the same, with the instructions.
  Json all = agent_items();
  for (const Json& item : {next[2], next[3]}) all.push_back(item);
  Json kept = {all[0], next[0], next[1], next[2], next[3]};
  EXPECT_EQ(input_tokens(all), input_tokens(kept));
  // It is compacted again: of two summaries the later one counts.
  const Json again = good("/v1/responses/compact", body_of({{"input", next}}))["output"];
  EXPECT_THAT(types_of(again), ElementsAre("message", "message", "message", "compaction"));
}

TEST_F(ServerCompaction, ATriggerAtTheEndAsksForIt) {
  Json input = agent_items();
  input.push_back({{"type", "compaction_trigger"}});
  Json body = body_of({{"input", input}, {"tools", Json::array()}, {"parallel_tool_calls", false}});
  body["tools"].push_back({{"type", "function"}, {"name", "set_timer"}, {"parameters", {{"type", "object"}}}});
  body["tool_choice"] = "auto";
  const Json whole = good("/v1/responses", body);
  EXPECT_EQ(whole["status"], "completed");
  ASSERT_THAT(types_of(whole["output"]), ElementsAre("compaction"));
  std::vector<std::string> done;
  int compacting = 0, sequence = 0;
  const auto events = streamed("/v1/responses", body);
  for (const SseEvent& event : events) {
    EXPECT_EQ(event.data["sequence_number"], sequence++);
    if (event.name == "response.output_item.done") done.push_back(event.data["item"]["encrypted_content"]);
    compacting += event.name == "response.compaction.compacting";
    EXPECT_THAT(event.data.dump(), testing::Not(HasSubstr("output_text")));
  }
  EXPECT_GT(compacting, 0);
  ASSERT_EQ(done.size(), 1u);
  EXPECT_EQ(whole["output"][0]["encrypted_content"], done[0]);
  EXPECT_EQ(events.back().name, "response.completed");
  EXPECT_EQ(events.back().data["response"]["output"][0]["encrypted_content"], done[0]);
}

TEST_F(ServerCompaction, AStoredConversationGoesOnFromIt) {
  const Json first = good("/v1/responses", body_of({{"input", agent_items()}}));
  const Json trigger = Json::array({{{"type", "compaction_trigger"}}});
  const Json second = good("/v1/responses", body_of({{"input", trigger}, {"previous_response_id", first["id"]}}));
  const Json third = good("/v1/responses", body_of({{"input", "Go on."}, {"previous_response_id", second["id"]}}));
  Json same = {agent_items()[0], agent_items()[1], agent_items()[5], second["output"][0], said("user", "Go on.")};
  EXPECT_EQ(third["usage"]["input_tokens"], input_tokens(same));
  // The endpoint takes a stored conversation, too, and changes nothing of it.
  const Json apart = good("/v1/responses/compact", body_of({{"previous_response_id", first["id"]}}));
  EXPECT_THAT(types_of(apart["output"]), ElementsAre("message", "message", "compaction"));
  const Json whole = good("/v1/responses", body_of({{"input", "Go on."}, {"previous_response_id", first["id"]}}));
  EXPECT_NE(whole["usage"]["input_tokens"], third["usage"]["input_tokens"]);
}

// Without a bound, a conversation whose user pastes files would be full again at once.
TEST_F(ServerCompaction, OfWhatTheUserSaidTheNewestIsKept) {
  std::string half;  // of what is kept: a quarter of 1,024 tokens at four bytes
  for (int i = 0; i < 85; ++i) half += "count ";
  const Json input = {said("user", half), said("user", "older"), said("user", half), said("user", "newest")};
  const Json output = good("/v1/responses/compact", body_of({{"input", input}}))["output"];
  ASSERT_THAT(types_of(output), ElementsAre("message", "message", "message", "compaction"));
  EXPECT_EQ(output[0]["content"][0]["text"], "older");
  EXPECT_EQ(output[1]["content"][0]["text"], half);
  EXPECT_EQ(output[2]["content"][0]["text"], "newest");
}

TEST_F(ServerCompaction, WhatCannotBeReadIsRefused) {
  const auto refused = [](const std::string& path, const Json& more) -> std::string {
    const Response response = post(path, body_of(more));
    EXPECT_EQ(response.status, 400) << response.body;
    return read_json<Json>(response.body)["error"]["message"];
  };
  const auto item = [](const char* sealed) {
    return Json::array({{{"type", "compaction"}, {"encrypted_content", sealed}}, said("user", "x")});
  };
  for (const char* sealed : {"gAAAAABpM0Yj-abcd=", "////", "Z2VtbWE0IHN1bW1hcnkgMQr/", "*", ""}) {
    EXPECT_THAT(refused("/v1/responses", {{"input", item(sealed)}}),
                HasSubstr("input[0].encrypted_content was not made by this program"));
  }
  Json early = Json::array({{{"type", "compaction_trigger"}}, said("user", "x")});
  EXPECT_THAT(refused("/v1/responses", {{"input", early}}), HasSubstr("must be the last item of the input"));
  EXPECT_THAT(refused("/v1/responses", {{"input", Json::array({early[0]})}}), HasSubstr("nothing to compact"));
  EXPECT_THAT(refused("/v1/responses/compact", Json::object()), HasSubstr("input"));
  EXPECT_THAT(refused("/v1/responses/compact", {{"input", "x"}, {"stream", true}}), HasSubstr("comes as a whole"));
  EXPECT_THAT(refused("/v1/responses/compact", {{"input", "x"}, {"previous_response_id", "resp_1"}}),
              HasSubstr("not found"));
}

TEST_F(ServerCompaction, ASummaryThatIsCutIsSaidToBe) {
  const Json cut = good("/v1/responses/compact", {{"input", kCount}, {"temperature", 0}, {"max_output_tokens", 1}});
  EXPECT_THAT(cut["warnings"][0].get<std::string>(), HasSubstr("the summary was cut after 1 tokens"));
}

// Which the demo model would not write.
TEST(Compaction, ASummaryThatIsEmptyIsAnError) {
  const auto finish = [](Json&, Finish, const Usage&) {};
  const auto made = [&] {
    return compaction_serializer({{{"output", Json::array()}}, nullptr, [](const Json&) { FAIL(); }}, finish);
  };
  Choice blank;
  blank.text = " \n";
  EXPECT_THROW(made().whole({blank}), ApiError);
  const ResponseSerializer stream = made();
  stream.begin();
  Event done;
  done.type = Event::kDone;
  EXPECT_THROW(stream.piece(0, done), ApiError);
}

TEST(Compaction, SummariesComeBackAsTheyWere) {
  std::string text;
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(open_summary(seal_summary(text), "x"), text);
    text += i % 3 == 0 ? "é" : "x\n";
  }
}

}  // namespace
}  // namespace gemma4
