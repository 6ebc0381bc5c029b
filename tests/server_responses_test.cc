// What /v1/responses keeps: previous_response_id, conversations, item references, and their reading and deleting.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving_testing.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;

using ServerResponses = ServerTest;

Json response_body(const Json& more) {
  Json body = {{"model", "demo"}, {"temperature", 0}, {"max_output_tokens", 40}};
  body.update(more);
  return body;
}

// The tokens of a prompt show what it holds.
int prompt_tokens(const Json& response) { return response["usage"]["input_tokens"]; }

Json user_item(const std::string& text) { return {{"role", "user"}, {"content", text}}; }

TEST_F(ServerResponses, GoOnFromAnEarlierOne) {
  const Json first = good("/v1/responses", response_body({{"input", kCount}}));
  EXPECT_EQ(first["store"], true);
  const std::string id = first["id"];
  const Json second = good("/v1/responses", response_body({{"input", "Go on."}, {"previous_response_id", id}}));
  EXPECT_EQ(second["previous_response_id"], id);
  const Json whole = {user_item(kCount), first["output"][0], user_item("Go on.")};
  const Json same = good("/v1/responses", response_body({{"input", whole}, {"store", false}}));
  EXPECT_EQ(prompt_tokens(second), prompt_tokens(same));
  EXPECT_EQ(second["output"][0]["content"][0]["text"], same["output"][0]["content"][0]["text"]);
  // And on from there; instructions are those of this request alone.
  const Json third =
      good("/v1/responses",
           response_body({{"input", "More."}, {"instructions", "Be brief."}, {"previous_response_id", second["id"]}}));
  EXPECT_GT(prompt_tokens(third), prompt_tokens(second));
}

TEST_F(ServerResponses, TheirTokensAreCounted) {
  const Json first = good("/v1/responses", response_body({{"input", kCount}}));
  const Json body = response_body({{"input", "Go on."}, {"previous_response_id", first["id"]}});
  const Json counted = good("/v1/responses/input_tokens", body);
  EXPECT_EQ(counted["object"], "response.input_tokens");
  EXPECT_EQ(counted["input_tokens"], prompt_tokens(good("/v1/responses", body)));
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "count ";
  EXPECT_GT(good("/v1/responses/input_tokens", {{"model", "demo"}, {"input", text}})["input_tokens"], 3000);
  EXPECT_EQ(post("/v1/responses/input_tokens", Json::array()).status, 400);
}

TEST_F(ServerResponses, WhatIsNotThereIsRefusedWithAWayOut) {
  const Response lost = post("/v1/responses", response_body({{"input", "x"}, {"previous_response_id", "resp_1"}}));
  EXPECT_EQ(lost.status, 400);
  EXPECT_THAT(lost.body, HasSubstr("send the whole conversation as input"));
  const Response kept = post("/v1/responses", response_body({{"prompt", {{"id", "pmpt_1"}}}}));
  EXPECT_EQ(kept.status, 400);
  EXPECT_THAT(kept.body, HasSubstr("prompt: {\\\"id\\\":\\\"pmpt_1\\\"} is not supported"));
}

TEST_F(ServerResponses, StreamedOnesAreKeptToo) {
  const auto events = streamed("/v1/responses", response_body({{"input", kCount}}));
  const Json response = events.back().data["response"];
  const std::string id = response["id"];
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "GET", "/v1/responses/" + id).body), response);
  const Json next = good("/v1/responses", response_body({{"input", "Go on."}, {"previous_response_id", id}}));
  EXPECT_GT(prompt_tokens(next), prompt_tokens(response));
}

TEST_F(ServerResponses, AreReadAndDeleted) {
  const Json response = good("/v1/responses", response_body({{"input", kCount}}));
  const std::string path = "/v1/responses/" + response["id"].get<std::string>();
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "GET", path).body), response);
  const Json items = read_json<Json>(ask(server_->port(), "GET", path + "/input_items").body);
  EXPECT_EQ(items["data"][0]["content"], kCount);
  const Json deleted = read_json<Json>(ask(server_->port(), "DELETE", path).body);
  EXPECT_EQ(deleted["deleted"], true);
  EXPECT_EQ(ask(server_->port(), "GET", path).status, 404);
  EXPECT_EQ(ask(server_->port(), "DELETE", path).status, 404);
  const Response gone =
      post("/v1/responses", response_body({{"input", "x"}, {"previous_response_id", response["id"]}}));
  EXPECT_EQ(gone.status, 400);
  EXPECT_EQ(read_json<Json>(gone.body)["error"]["code"], "previous_response_not_found");
  EXPECT_EQ(ask(server_->port(), "GET", path + "/x").status, 404);
}

TEST_F(ServerResponses, AreNotKeptAgainstTheClientsWill) {
  const Json response = good("/v1/responses", response_body({{"input", kCount}, {"store", false}}));
  EXPECT_EQ(response["store"], false);
  EXPECT_EQ(ask(server_->port(), "GET", "/v1/responses/" + response["id"].get<std::string>()).status, 404);
}

TEST_F(ServerResponses, ItemsAreReferredTo) {
  const Json first = good("/v1/responses", response_body({{"input", kCount}}));
  const Json reference = {{"type", "item_reference"}, {"id", first["output"][0]["id"]}};
  const Json input = {user_item(kCount), reference, user_item("Go on.")};
  const Json second = good("/v1/responses", response_body({{"input", input}}));
  const Json whole = {user_item(kCount), first["output"][0], user_item("Go on.")};
  EXPECT_EQ(prompt_tokens(second), prompt_tokens(good("/v1/responses", response_body({{"input", whole}}))));
  // What is stored is the item, not the reference.
  const Json third = good("/v1/responses", response_body({{"input", "More."}, {"previous_response_id", second["id"]}}));
  EXPECT_GT(prompt_tokens(third), prompt_tokens(second));
  const Json unknown = {{"type", "item_reference"}, {"id", "msg_x"}};
  const Response refused = post("/v1/responses", response_body({{"input", Json::array({unknown})}}));
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("msg_x"));
}

TEST_F(ServerResponses, ConversationsGrow) {
  const Json made = good("/v1/conversations", {{"items", Json::array({user_item("My number is 9.")})}});
  const std::string id = made["id"];
  const std::string path = "/v1/conversations/" + id;
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "GET", path).body), made);
  const Json first = good("/v1/responses", response_body({{"input", kCount}, {"conversation", id}}));
  const Json second = good("/v1/responses", response_body({{"input", "Go on."}, {"conversation", {{"id", id}}}}));
  EXPECT_GT(prompt_tokens(second), prompt_tokens(first));
  good(path + "/items", {{"items", Json::array({user_item("One more.")})}});
  const Json items = read_json<Json>(ask(server_->port(), "GET", path + "/items?order=asc").body)["data"];
  ASSERT_EQ(items.size(), 6u);
  EXPECT_TRUE(items[0]["id"].is_string());
  EXPECT_EQ(items[5]["content"], "One more.");
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "DELETE", path).body)["deleted"], true);
  EXPECT_EQ(post("/v1/responses", response_body({{"input", "x"}, {"conversation", id}})).status, 404);
  EXPECT_EQ(post("/v1/conversations", {{"items", Json::array({{{"type", "nonsense"}}})}}).status, 400);
}

TEST_F(ServerResponses, ConversationsHaveMetadata) {
  const Json made = good("/v1/conversations", {{"metadata", {{"topic", "demo"}}}});
  EXPECT_EQ(made["metadata"], Json({{"topic", "demo"}}));
  const std::string path = "/v1/conversations/" + made["id"].get<std::string>();
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "GET", path).body), made);
  const Json changed = good(path, {{"metadata", {{"topic", "other"}, {"project", "x"}}}});
  EXPECT_EQ(changed["metadata"]["topic"], "other");
  EXPECT_EQ(changed["created_at"], made["created_at"]);
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "GET", path).body), changed);
  for (const Json& bad : std::vector<Json>{{{"a", 1}}, Json::array(), {{"a", std::string(513, 'x')}}}) {
    EXPECT_EQ(post(path, {{"metadata", bad}}).status, 400) << bad;
    EXPECT_EQ(post("/v1/conversations", {{"metadata", bad}}).status, 400) << bad;
  }
  EXPECT_EQ(post(path, Json::object()).status, 400);
  EXPECT_EQ(good("/v1/conversations", Json::object())["metadata"], Json::object());
  EXPECT_EQ(ask(server_->port(), "POST", "/v1/conversations", "").status, 200);  // no body says as much
  EXPECT_EQ(post("/v1/conversations/conv_none", {{"metadata", Json::object()}}).status, 404);
}

// What one request brings may need what is stored: the result of a call, or nothing more at all.
TEST_F(ServerResponses, AResultGoesToAStoredCall) {
  const Json call = {{"type", "function_call"}, {"call_id", "c1"}, {"name", "f"}, {"arguments", "{}"}};
  const Json result = {{"type", "function_call_output"}, {"call_id", "c1"}, {"output", "done"}};
  const std::string id = good("/v1/conversations", {{"items", {user_item("Do it."), call}}})["id"];
  good("/v1/conversations/" + id + "/items", {{"items", Json::array({result})}});
  const Json whole = good("/v1/responses", response_body({{"input", {user_item("Do it."), call, result}}}));
  EXPECT_EQ(prompt_tokens(good("/v1/responses", response_body({{"conversation", id}}))), prompt_tokens(whole));
}

TEST_F(ServerResponses, MetadataHasBounds) {
  const Json made = good("/v1/conversations", {{"metadata", {{"topic", "demo"}, {"\u00e9", std::string(512, 'x')}}}});
  EXPECT_EQ(made["metadata"]["topic"], "demo");
  const std::string path = "/v1/conversations/" + made["id"].get<std::string>();
  const auto read = [&] { return read_json<Json>(ask(server_->port(), "GET", path).body); };
  EXPECT_EQ(read(), made);
  good(path + "/items", {{"items", Json::array({user_item("a")})}});
  good("/v1/responses", response_body({{"input", kCount}, {"conversation", made["id"]}}));
  EXPECT_EQ(read(), made);
  const Json changed = good(path, {{"metadata", {{"topic", "other"}}}});
  EXPECT_EQ(changed["metadata"], (Json{{"topic", "other"}}));
  EXPECT_EQ(changed["id"], made["id"]);
  EXPECT_EQ(read(), changed);
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "GET", path + "/items").body)["data"].size(), 3u);
  EXPECT_EQ(good("/v1/conversations", Json::object())["metadata"], Json::object());

  Json many = Json::object(), sixteen = Json::object();
  for (int i = 0; i < 17; ++i) (i < 16 ? sixteen : many)["k" + std::to_string(i)] = "v";
  many.update(sixteen);
  EXPECT_EQ(post(path, {{"metadata", sixteen}}).status, 200);
  const std::string long_key(65, 'k'), wide = [] {
    std::string text;
    for (int i = 0; i < 512; ++i) text += "\xc3\xa9";
    return text;
  }();
  EXPECT_EQ(post(path, {{"metadata", {{"a", wide}}}}).status, 200);  // characters, not bytes
  const std::pair<Json, const char*> bad[] = {{many, "has 17 pairs, but up to 16 are kept"},
                                              {{{long_key, "v"}}, "has a key of more than 64 characters"},
                                              {{{"a", wide + "x"}}, "metadata.a has more than 512 characters"},
                                              {{{"a", 1}}, "metadata.a must be a string"},
                                              {"x", "metadata must be an object"}};
  for (const auto& [metadata, expected] : bad) {
    for (const std::string& where : {std::string("/v1/conversations"), path}) {
      const Response refused = post(where, {{"metadata", metadata}});
      EXPECT_EQ(refused.status, 400) << expected;
      EXPECT_THAT(refused.body, HasSubstr(expected));
    }
  }
  EXPECT_EQ(post(path, Json::object()).status, 400);
  EXPECT_EQ(post("/v1/conversations/conv_x", {{"metadata", sixteen}}).status, 404);

  // A response repeats and keeps them, too.
  for (const auto& [metadata, expected] : bad) {
    const Response refused = post("/v1/responses", response_body({{"input", kCount}, {"metadata", metadata}}));
    EXPECT_EQ(refused.status, 400) << expected;
    EXPECT_THAT(refused.body, HasSubstr(expected));
  }
  const Json answered =
      good("/v1/responses", response_body({{"input", kCount}, {"metadata", sixteen}, {"user", "someone"}}));
  EXPECT_EQ(answered["metadata"], sixteen);
  EXPECT_EQ(answered["user"], "someone");
  EXPECT_EQ(post("/v1/responses", response_body({{"input", kCount}, {"user", std::string(513, 'u')}})).status, 400);
}

// Each item list was within the bounds of a body. Together they need not be.
TEST_F(ServerResponses, AConversationOfManyValuesStaysReadableWhenAnItemGoes) {
  const std::string id = good("/v1/conversations", Json::object())["id"];
  const std::string path = "/v1/conversations/" + id + "/items";
  const std::string values = [] {
    std::string text = "{}";
    for (int i = 1; i < 200'000; ++i) text += ",{}";
    return text;
  }();
  for (int i = 0; i < 3; ++i) {
    const std::string name = std::to_string(i);
    const std::string items = R"({"items":[{"type":"mcp_list_tools","id":"large)" + name + R"(","tools":[)" + values +
                              R"(]},{"role":"user","content":"x","id":"small)" + name + R"("}]})";
    ASSERT_EQ(ask(server_->port(), "POST", path, items).status, 200);
  }
  const auto ids = [&] {
    std::string all;
    const Json list = read_json<Json>(ask(server_->port(), "GET", path + "?order=asc").body);
    for (const Json& item : list["data"]) all += item["id"].get<std::string>() + " ";
    EXPECT_EQ(list["has_more"], false);
    return all;
  };
  EXPECT_EQ(ids(), "large0 small0 large1 small1 large2 small2 ");
  EXPECT_EQ(ask(server_->port(), "DELETE", path + "/small1").status, 200);
  EXPECT_EQ(ask(server_->port(), "DELETE", path + "/small0").status, 200);
  EXPECT_EQ(ask(server_->port(), "DELETE", path + "/large0").status, 200);
  EXPECT_EQ(ids(), "large1 large2 small2 ");
  EXPECT_EQ(ask(server_->port(), "GET", path + "/small2").status, 200);
  EXPECT_EQ(ask(server_->port(), "GET", path + "/small0").status, 404);
  EXPECT_EQ(post(path, {{"items", Json::array({user_item("y")})}}).status, 200);
}

// Items get ids, with which a list may have more values than a body may.
TEST_F(ServerResponses, ItemsThatGrowByTheirIdsStayReadable) {
  std::string items = R"({"role":"user","content":"x"})";
  for (int i = 1; i < 140'000; ++i) items += R"(,{"role":"user","content":"x"})";
  const Response made = ask(server_->port(), "POST", "/v1/conversations", R"({"items":[)" + items + "]}");
  ASSERT_EQ(made.status, 200) << made.body.substr(0, 200);
  const std::string path = "/v1/conversations/" + read_json<Json>(made.body)["id"].get<std::string>() + "/items";
  const Response list = ask(server_->port(), "GET", path);
  ASSERT_EQ(list.status, 200) << list.body.substr(0, 200);
  EXPECT_EQ(read_json<Json>(list.body)["data"].size(), 20u);
}

// As OpenAI's agents keep a session: they read the newest items, and take the last one back.
TEST_F(ServerResponses, ItemsOfAConversationAreReadInPagesAndDeleted) {
  const std::string id =
      good("/v1/conversations", {{"items", Json::array({user_item("a"), user_item("b"), user_item("c")})}})["id"];
  good("/v1/responses", response_body({{"input", Json::array({user_item(kCount)})}, {"conversation", id}}));
  const std::string path = "/v1/conversations/" + id + "/items";
  const auto list = [&](const std::string& query) {
    return read_json<Json>(ask(server_->port(), "GET", path + query).body);
  };
  const Json newest = list("?limit=2&order=desc");
  ASSERT_EQ(newest["data"].size(), 2u) << newest;
  EXPECT_EQ(newest["has_more"], true);
  EXPECT_EQ(newest["data"][0]["role"], "assistant");
  EXPECT_EQ(newest["data"][1]["content"], kCount);
  EXPECT_EQ(list("?limit=2")["data"], newest["data"]);  // the newest first, as at OpenAI
  const Json older = list("?order=desc&after=" + newest["last_id"].get<std::string>());
  ASSERT_EQ(older["data"].size(), 3u);
  EXPECT_EQ(older["data"][0]["content"], "c");
  EXPECT_EQ(older["has_more"], false);
  const std::string last = newest["data"][0]["id"];
  EXPECT_EQ(list("/" + last), newest["data"][0]);
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "DELETE", path + "/" + last).body)["id"], id);
  EXPECT_EQ(ask(server_->port(), "DELETE", path + "/" + last).status, 404);
  const Json left = list("?order=asc")["data"];
  ASSERT_EQ(left.size(), 4u);
  EXPECT_EQ(left[3]["content"], kCount);
  EXPECT_EQ(list("?limit=99999999999999&order=asc")["data"].size(), 4u);  // as many as there may be, as above 100
  EXPECT_EQ(list("?limit=002")["data"].size(), 2u);
  for (const char* wrong : {"?limit=0", "?limit=00", "?limit=-1", "?limit=x", "?order=up", "?after=nothing"}) {
    EXPECT_EQ(ask(server_->port(), "GET", path + wrong).status, 400) << wrong;
  }
  EXPECT_EQ(ask(server_->port(), "POST", path + "/" + last, "{}").status, 404);
}

TEST_F(ServerResponses, EachKeyHasItsOwn) {
  ServerOptions options = server_options();
  options.api_keys = {"one", "two"};
  Engine engine(served_model());
  Server server(engine, options);
  const auto asked = [&](const std::string& method, const std::string& path, const Json& body, const char* key) {
    return ask(server.port(), method, path, method == "POST" ? body.dump() : "",
               {{"Authorization", std::string("Bearer ") + key}});
  };
  const Json response = read_json<Json>(asked("POST", "/v1/responses", response_body({{"input", kCount}}), "one").body);
  const std::string path = "/v1/responses/" + response["id"].get<std::string>();
  EXPECT_EQ(asked("GET", path, {}, "two").status, 404);
  EXPECT_EQ(asked("DELETE", path, {}, "two").status, 404);
  const Json next = response_body({{"input", "x"}, {"previous_response_id", response["id"]}});
  EXPECT_EQ(asked("POST", "/v1/responses", next, "two").status, 400);
  EXPECT_EQ(asked("POST", "/v1/responses", next, "one").status, 200);
  EXPECT_EQ(asked("GET", path, {}, "none").status, 401);
}

// A call of a tool in a namespace, and of one that takes a text, has the client's form.
TEST_F(ServerResponses, CallsHaveTheClientsNames) {
  const Json schema = {
      {"type", "object"}, {"properties", {{"minutes", {{"type", "integer"}}}}}, {"required", Json::array({"minutes"})}};
  const Json inner = {{"type", "function"}, {"name", "set"}, {"parameters", schema}};
  const Json space = {{"type", "namespace"}, {"name", "timer"}, {"tools", Json::array({inner})}};
  const Json custom = {{"type", "custom"}, {"name", "shell"}};
  Json body = response_body({{"input", "Set a timer for 6 minutes."}, {"tools", {space, custom}}});
  body["parallel_tool_calls"] = false;
  body["tool_choice"] = {{"type", "function"}, {"name", "set"}, {"namespace", "timer"}};
  const Json call = good("/v1/responses", body)["output"][0];
  EXPECT_EQ(call["type"], "function_call");
  EXPECT_EQ(call["name"], "set");
  EXPECT_EQ(call["namespace"], "timer");
  EXPECT_EQ(streamed("/v1/responses", body).back().data["response"]["output"][0]["namespace"], "timer");
  body["tool_choice"] = {{"type", "custom"}, {"name", "shell"}};
  const Json text = good("/v1/responses", body)["output"][0];
  EXPECT_EQ(text["type"], "custom_tool_call");
  EXPECT_EQ(text["name"], "shell");
  EXPECT_TRUE(text["input"].is_string());
  std::string delta;
  for (const SseEvent& event : streamed("/v1/responses", body)) {
    EXPECT_NE(event.name, "response.function_call_arguments.delta");
    if (event.name == "response.custom_tool_call_input.delta") delta += event.data["delta"];
  }
  EXPECT_EQ(text["input"], delta);
}

TEST_F(ServerResponses, OlderFunctionCallsKeepTheirForm) {
  Json body = chat("Set a timer for 6 minutes.");
  body["functions"] = Json::array({kTimer["function"]});
  const Json choice = good("/v1/chat/completions", body)["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "function_call");
  EXPECT_EQ(choice["message"]["function_call"]["name"], "set_timer");
  EXPECT_FALSE(choice["message"].contains("tool_calls"));
  std::string arguments;
  for (const SseEvent& event : streamed("/v1/chat/completions", body)) {
    if (event.name == "DONE") continue;
    const Json& delta = event.data["choices"][0]["delta"];
    EXPECT_FALSE(delta.contains("tool_calls"));
    if (delta.contains("function_call")) arguments += delta["function_call"].value("arguments", "");
  }
  EXPECT_EQ(read_json<Json>(arguments), Json({{"minutes", 6}}));
}

TEST_F(ServerResponses, ThoughtsMayBeLeftOut) {
  Json body = chat(kCount);
  body["max_tokens"] = 60;
  body["thinking"] = {{"type", "enabled"}};
  const auto types = [](const Json& message) {
    std::vector<std::string> all;
    for (const Json& block : message["content"]) all.push_back(block["type"]);
    return all;
  };
  const Json shown = good("/v1/messages", body);
  body["thinking"]["display"] = "omitted";
  const Json omitted = good("/v1/messages", body);
  EXPECT_EQ(types(shown), types(omitted));
  for (const Json& block : omitted["content"]) {
    if (block["type"] == "thinking") {
      EXPECT_EQ(block["thinking"], "");
    }
  }
  for (const SseEvent& event : streamed("/v1/messages", body)) {
    if (event.name == "content_block_delta") {
      EXPECT_NE(event.data["delta"]["type"], "thinking_delta");
    }
  }
}

}  // namespace
}  // namespace gemma4
