// What clients send beside the parameters that the APIs' references show: taken with its meaning, or as a hint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/api/anthropic.h"
#include "server/api/openai.h"
#include "server/api/tool_list.h"

namespace gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Taken {
  Request request;
  bool one_tool_call = false;
  std::vector<std::string> warnings;
};

using TakingParser = CompletionRequest (*)(const Json&, const ApiContext&);

Taken taken(TakingParser parse, const Json& body) {
  ApiContext context;
  context.models = {"demo"};
  context.warnings = std::make_shared<Warnings>();
  CompletionRequest completion = parse(body, context);
  return {completion.requests[0], completion.one_tool_call, context.warnings->list()};
}

Json taken_base(const Json& more) {
  Json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  body.update(more);
  return body;
}

Taken chat_taken(const Json& more) { return taken(parse_chat, taken_base(more)); }
Taken messages_taken(const Json& more) {
  Json body = taken_base({{"max_tokens", 9}});
  body.update(more);
  return taken(parse_messages, body);
}
Taken responses_taken(const Json& more) {
  Json body = {{"input", "hi"}};
  body.update(more);
  return taken(parse_responses, body);
}

std::string taken_text(const Message& message) {
  std::string text;
  for (const ContentPart& part : message.content) text += part.text;
  return text;
}

TEST(TakenChat, HintsAreListed) {
  for (const char* name : {"prediction", "web_search_options", "service_tier", "verbosity", "keep_alive", "num_ctx",
                           "use_mmap", "num_thread", "include", "ttl", "draft_model"}) {
    EXPECT_THAT(chat_taken({{name, "x"}}).warnings,
                ElementsAre("the parameter '" + std::string(name) + "' has no effect here"));
  }
  EXPECT_THAT(chat_taken({{"stream_options", {{"include_usage", true}}}}).warnings, ElementsAre(HasSubstr("stream_o")));
  EXPECT_THAT(chat_taken({{"store", true}}).warnings, ElementsAre(HasSubstr("'store'")));
}

TEST(TakenChat, WhatAsksForTheUsualIsNoHint) {
  EXPECT_THAT(chat_taken({{"service_tier", "auto"},
                          {"modalities", {"text"}},
                          {"store", false},
                          {"audio", nullptr},
                          {"skip_special_tokens", true},
                          {"mirostat", 0},
                          {"typical_p", 1.0},
                          {"user", "someone"},
                          {"metadata", {{"a", "b"}}}})
                  .warnings,
              IsEmpty());
}

TEST(TakenChat, NoLikeliestTokensNeedNoLogprobs) {
  EXPECT_EQ(chat_taken({{"logprobs", false}, {"top_logprobs", 0}}).request.logprobs, -1);
  EXPECT_THROW(chat_taken({{"top_logprobs", 1}}), ApiError);
}

// Of some servers' models the calls have no ids.
TEST(TakenChat, AnEmptyIdIsAnId) {
  const Json call = {{"id", ""}, {"type", "function"}, {"function", {{"name", "f"}, {"arguments", "{}"}}}};
  const Json calls = {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {call}}};
  Json result = {{"role", "tool"}, {"tool_call_id", ""}, {"content", "done"}};
  const Request request = chat_taken({{"messages", {calls, result}}}).request;
  std::string rendered;
  for (const Piece& piece : render_chat(request.messages, "", {})) rendered += piece.text;
  EXPECT_THAT(rendered, HasSubstr("response:f{"));
  result.erase("tool_call_id");
  EXPECT_THROW(chat_taken({{"messages", {calls, result}}}), ApiError);
}

TEST(TakenChat, OtherServersNames) {
  EXPECT_EQ(chat_taken({{"repeat_penalty", 1.5}}).request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(chat_taken({{"repeat_penalty", 1.5}, {"repetition_penalty", 1.2}}).request.sampling.repetition_penalty,
            1.2f);
  EXPECT_TRUE(chat_taken({{"ignore_eos", true}}).request.ignore_eos);
  EXPECT_EQ(chat_taken({{"min_tokens", 7}}).request.min_new_tokens, 7);
  EXPECT_THAT(chat_taken({{"stop_token_ids", {5, 6}}}).request.stop_ids, ElementsAre(5, 6));
  EXPECT_FALSE(chat_taken({{"cache_prompt", false}}).request.reuse_prefix);
  EXPECT_THAT(chat_taken({{"stop", ""}}).request.stop, IsEmpty());
  EXPECT_THAT(chat_taken({{"stop", {"", "x"}}}).request.stop, ElementsAre("x"));
  EXPECT_GT(chat_taken({{"top_p", 0}}).request.sampling.top_p, 0.f);
  for (const char* name : {"max_tokens", "max_completion_tokens", "num_predict", "n_predict"}) {
    EXPECT_EQ(chat_taken({{name, -1}}).request.max_new_tokens, 0) << name;
    EXPECT_EQ(chat_taken({{name, 5}}).request.max_new_tokens, 5) << name;
    EXPECT_THROW(chat_taken({{name, -5}}), ApiError) << name;
  }
}

TEST(TakenChat, ThinkingInEveryForm) {
  for (const Json& more : std::vector<Json>{{{"reasoning", {{"effort", "low"}}}},
                                            {{"reasoning", {{"enabled", true}}}},
                                            {{"thinking", {{"type", "enabled"}}}},
                                            {{"think", true}},
                                            {{"think", "high"}},
                                            {{"enable_thinking", true}}}) {
    EXPECT_TRUE(chat_taken(more).request.chat.enable_thinking) << more;
  }
  EXPECT_FALSE(chat_taken({{"thinking", {{"type", "disabled"}}}}).request.chat.enable_thinking);
  EXPECT_FALSE(chat_taken({{"reasoning", {{"effort", "none"}}}}).request.chat.enable_thinking);
}

TEST(TakenChat, BudgetsOfThoughtsInEveryForm) {
  struct Form {
    Json body;
    bool thinks;
    int budget;
    double share;
  };
  const Form forms[] = {
      {{{"think", "low"}}, true, 2048, 0.2},
      {{{"think", "medium"}}, true, 8192, 0.5},
      {{{"think", "high"}}, true, 32768, 0.8},
      {{{"think", true}}, true, -1, 1},
      {{{"reasoning", {{"max_tokens", 700}}}}, true, 700, 1},
      {{{"reasoning", {{"max_tokens", 700}, {"effort", "low"}}}}, true, 700, 1},
      {{{"reasoning", {{"effort", "low"}}}}, true, 2048, 0.2},
      {{{"reasoning", {{"max_tokens", 0}}}}, false, 0, 1},
      {{{"reasoning", {{"max_tokens", 700}, {"enabled", false}}}}, false, 700, 1},
      {{{"reasoning_effort", "low"}, {"reasoning", {{"effort", "max"}}}}, true, -1, 1},
      {{{"thinking_budget", 90}, {"enable_thinking", true}}, true, 90, 1},
      {{{"thinking_token_budget", 90}, {"reasoning", {{"effort", "high"}}}}, true, 90, 1},
      {{{"reasoning_effort", "low"}, {"thinking", {{"type", "enabled"}, {"budget_tokens", 5000}}}}, true, 5000, 1},
  };
  for (const Form& form : forms) {
    const Request request = chat_taken(form.body).request;
    EXPECT_EQ(request.chat.enable_thinking, form.thinks) << form.body;
    EXPECT_EQ(request.thinking_budget, form.budget) << form.body;
    EXPECT_EQ(request.thinking_share, form.share) << form.body;
  }
  const Request request = responses_taken({{"reasoning", {{"max_tokens", 700}}}}).request;
  EXPECT_TRUE(request.chat.enable_thinking);
  EXPECT_EQ(request.thinking_budget, 700);
  for (const Json& bad : std::vector<Json>{{{"max_tokens", -1}}, {{"max_tokens", "many"}}, {{"effort", "some"}}}) {
    EXPECT_THROW(chat_taken({{"reasoning", bad}}), ApiError) << bad;
  }
  EXPECT_THROW(chat_taken({{"think", 3}}), ApiError);
}

TEST(TakenChat, AJsonObjectMayHaveASchema) {
  const Request request =
      chat_taken({{"response_format", {{"type", "json_object"}, {"schema", {{"type", "object"}}}}}}).request;
  EXPECT_EQ(request.format.type, ResponseFormat::kSchema);
  EXPECT_EQ(request.format.schema, R"({"type":"object"})");
}

TEST(TakenChat, EchoedMessagesOfOtherServers) {
  const Json call = {{"id", "c1"}, {"type", "function"}, {"function", {{"name", "f"}, {"arguments", "null"}}}};
  const Json assistant = {{"role", "assistant"},
                          {"id", "msg_1"},
                          {"content", nullptr},
                          {"thinking_blocks", {{{"type", "thinking"}, {"thinking", "hm"}, {"signature", "s"}}}},
                          {"provider_specific_fields", {{"x", 1}}},
                          {"audio", nullptr},
                          {"function_call", nullptr},
                          {"tool_calls", Json::array({call})}};
  const Json details = {{"role", "assistant"},
                        {"content", "ok"},
                        {"reasoning_details", {{{"type", "reasoning.text"}, {"text", "well"}}}}};
  const Json result = {{"role", "tool"}, {"tool_call_id", "c1"}, {"content", nullptr}};
  const Request request =
      chat_taken({{"messages", {{{"role", "user"}, {"content", "hi"}}, assistant, result, details}}}).request;
  EXPECT_EQ(request.messages[1].reasoning, "hm");
  EXPECT_EQ(request.messages[1].tool_calls[0].arguments, "");
  EXPECT_EQ(request.messages[2].role, "tool");
  EXPECT_EQ(request.messages[3].reasoning, "well");
}

TEST(TakenChat, SystemMessagesStandAnywhere) {
  const Request request = chat_taken({{"messages",
                                       {{{"role", "user"}, {"content", "hi"}},
                                        {{"role", "developer"}, {"content", "be brief"}},
                                        {{"role", "user"}, {"content", "go on"}}}}})
                              .request;
  EXPECT_FALSE(render_chat(request.messages, "", {}).empty());
}

TEST(TakenChat, OlderFunctions) {
  const Json functions = {{{"name", "f"}, {"parameters", {{"type", "object"}}}}, {{"name", "g"}}};
  const Taken auto_call = chat_taken({{"functions", functions}});
  EXPECT_THAT(auto_call.request.tools, HasSubstr("\"name\":\"g\""));
  EXPECT_TRUE(auto_call.one_tool_call);
  const Request forced = chat_taken({{"functions", functions}, {"function_call", {{"name", "g"}}}}).request;
  EXPECT_EQ(forced.format.type, ResponseFormat::kToolCall);
  EXPECT_EQ(forced.format.tool_name, "g");
  EXPECT_EQ(chat_taken({{"functions", functions}, {"function_call", "none"}}).request.tools, "");
  const Json called = {
      {"role", "assistant"}, {"content", nullptr}, {"function_call", {{"name", "f"}, {"arguments", "{\"a\":1}"}}}};
  const Json result = {{"role", "function"}, {"name", "f"}, {"content", "done"}};
  const Request request = chat_taken({{"messages", {{{"role", "user"}, {"content", "hi"}}, called, result}}}).request;
  EXPECT_EQ(request.messages[1].tool_calls[0].arguments, "{\"a\":1}");
  EXPECT_EQ(request.messages[2].name, "f");
  EXPECT_FALSE(render_chat(request.messages, "", {}).empty());
}

Json taken_function(const std::string& name) { return {{"type", "function"}, {"function", {{"name", name}}}}; }

TEST(TakenChat, AllowedTools) {
  const Json tools = {taken_function("f"), taken_function("g")};
  Json allowed = {{"mode", "required"}, {"tools", Json::array({taken_function("g")})}};
  const Request request =
      chat_taken({{"tools", tools}, {"tool_choice", {{"type", "allowed_tools"}, {"allowed_tools", allowed}}}}).request;
  EXPECT_EQ(request.tools.find("\"f\""), std::string::npos);
  EXPECT_EQ(request.format.type, ResponseFormat::kToolCall);
  allowed["tools"] = Json::array({taken_function("h")});
  EXPECT_THROW(chat_taken({{"tools", tools}, {"tool_choice", {{"type", "allowed_tools"}, {"allowed_tools", allowed}}}}),
               ApiError);
}

TEST(TakenChat, HostedToolsAreLeftOutAndCustomOnesTakeAText) {
  const Json custom = {
      {"type", "custom"},
      {"custom",
       {{"name", "patch"},
        {"description", "Patches."},
        {"format", {{"type", "grammar"}, {"grammar", {{"syntax", "lark"}, {"definition", "start: /x/"}}}}}}}};
  const Taken result = chat_taken({{"tools", {taken_function("f"), {{"type", "web_search"}}, custom}}});
  const Json tools = read_json<Json>(result.request.tools);
  ASSERT_EQ(tools.size(), 2u);
  EXPECT_EQ(tools[1]["function"]["parameters"]["properties"]["input"]["type"], "string");
  EXPECT_THAT(tools[1]["function"]["parameters"]["properties"]["input"]["description"].get<std::string>(),
              HasSubstr("start: /x/"));
  EXPECT_EQ(tools[1]["function"]["text_grammar"], (Json{{"syntax", "lark"}, {"definition", "start: /x/"}}));
  EXPECT_EQ(tools[1]["function"]["strict"], true);
  EXPECT_THAT(result.warnings, ElementsAre(HasSubstr("'web_search'")));
}

TEST(TakenTools, ACustomToolsTextSurvives) {
  const std::string text = "*** Begin\n\"quoted\" \\ end";
  EXPECT_EQ(custom_input(custom_arguments(text)), text);
  EXPECT_EQ(custom_input("{\"input\":\"cut he"), "cut he");
  EXPECT_EQ(custom_input(""), "");
}

TEST(TakenMessages, WhatClaudeCodeSends) {
  const Taken result =
      messages_taken({{"messages",
                       {{{"role", "user"}, {"content", "hi"}},
                        {{"role", "system"}, {"content", {{{"type", "text"}, {"text", "note"}}}}}}},
                      {"output_config", {{"effort", "high"}}},
                      {"context_management", {{"edits", {{{"type", "clear_thinking_20251015"}, {"keep", "all"}}}}}},
                      {"thinking", {{"type", "adaptive"}, {"display", "omitted"}}},
                      {"diagnostics", Json::object()},
                      {"cache_control", {{"type", "ephemeral"}}},
                      {"tools",
                       {{{"name", "f"}, {"input_schema", {{"type", "object"}}}, {"eager_input_streaming", true}},
                        {{"type", "web_search_20250305"}, {"name", "web_search"}}}}});
  EXPECT_EQ(result.request.messages[1].role, "system");
  EXPECT_TRUE(result.request.chat.enable_thinking);
  EXPECT_EQ(result.request.thinking_budget, chat_taken({{"reasoning_effort", "high"}}).request.thinking_budget);
  EXPECT_GT(result.request.thinking_budget, 0);
  EXPECT_EQ(read_json<Json>(result.request.tools).size(), 1u);
  EXPECT_THAT(result.warnings, ElementsAre(HasSubstr("web_search")));
}

TEST(TakenMessages, OtherEditsOfTheContextAreHints) {
  EXPECT_THAT(messages_taken({{"context_management", {{"edits", {{{"type", "clear_tool_uses_20250919"}}}}}}}).warnings,
              ElementsAre(HasSubstr("context_management")));
}

TEST(TakenMessages, ASystemMessageMayPass) {
  const Json note = {{"role", "system"}, {"content", "note"}, {"clear_at", "next_user_message"}};
  const Json user = {{"role", "user"}, {"content", "hi"}};
  EXPECT_EQ(messages_taken({{"messages", {user, note}}}).request.messages.size(), 2u);
  EXPECT_EQ(messages_taken({{"messages", {user, note, user}}}).request.messages.size(), 2u);
}

TEST(TakenMessages, DocumentsThatAreTexts) {
  const Json plain = {{"type", "document"},
                      {"title", "Notes"},
                      {"source", {{"type", "text"}, {"media_type", "text/plain"}, {"data", "six"}}}};
  const Json encoded = {{"type", "document"},
                        {"source", {{"type", "base64"}, {"media_type", "text/plain"}, {"data", "aGVsbG8="}}}};
  const Json blocks = {{"type", "document"},
                       {"source", {{"type", "content"}, {"content", {{{"type", "text"}, {"text", "seven"}}}}}}};
  const Request request =
      messages_taken({{"messages", {{{"role", "user"}, {"content", {plain, encoded, blocks}}}}}}).request;
  EXPECT_EQ(taken_text(request.messages[0]), "Notes\nsixhelloseven");
  Json pdf = encoded;
  pdf["source"]["media_type"] = "application/pdf";
  EXPECT_THROW(messages_taken({{"messages", {{{"role", "user"}, {"content", {pdf}}}}}}), ApiError);
}

TEST(TakenMessages, EchoedBlocks) {
  const Json assistant = {{"role", "assistant"},
                          {"content",
                           {{{"type", "redacted_thinking"}, {"data", "x"}},
                            {{"type", "server_tool_use"}, {"id", "s1"}, {"name", "web_search"}, {"input", {{"q", 1}}}},
                            {{"type", "web_search_tool_result"}, {"tool_use_id", "s1"}, {"content", Json::array()}},
                            {{"type", "tool_use"}, {"id", "t1"}, {"name", "f"}, {"input", Json::object()}}}}};
  const Json result = {{"role", "user"},
                       {"content",
                        {{{"type", "tool_result"},
                          {"tool_use_id", "t1"},
                          {"content", {{{"type", "tool_reference"}, {"tool_name", "Grep"}}}}}}}};
  const Taken got = messages_taken({{"messages", {{{"role", "user"}, {"content", "hi"}}, assistant, result}}});
  EXPECT_THAT(taken_text(got.request.messages[2]), HasSubstr("Grep"));
  EXPECT_THAT(got.warnings, ElementsAre(HasSubstr("redacted_thinking"), HasSubstr("server_tool_use"),
                                        HasSubstr("web_search_tool_result")));
}

TEST(TakenResponses, WhatCodexSends) {
  const Json space = {{"type", "namespace"},
                      {"name", "mcp__files"},
                      {"description", "Files."},
                      {"tools", {{{"type", "function"}, {"name", "read"}, {"parameters", {{"type", "object"}}}}}}};
  const Json custom = {{"type", "custom"}, {"name", "apply_patch"}, {"format", {{"type", "text"}}}};
  const Taken result =
      responses_taken({{"tools", {space, custom, {{"type", "web_search"}}}},
                       {"input",
                        {{{"type", "message"},
                          {"role", "user"},
                          {"content", "hi"},
                          {"phase", "commentary"},
                          {"internal_chat_message_metadata_passthrough", {{"turn_id", "x"}}}},
                         {{"type", "function_call"},
                          {"call_id", "c1"},
                          {"namespace", "mcp__files"},
                          {"name", "read"},
                          {"arguments", "{}"}},
                         {{"type", "message"}, {"role", "assistant"}, {"content", "Let me look."}},
                         {{"type", "function_call_output"}, {"call_id", "c1"}, {"output", "text"}},
                         {{"type", "custom_tool_call"}, {"call_id", "c2"}, {"name", "apply_patch"}, {"input", "x"}},
                         {{"type", "custom_tool_call_output"}, {"call_id", "c2"}, {"output", "done"}}}},
                       {"client_metadata", {{"x-codex-installation-id", "x"}}},
                       {"reasoning", {{"effort", "medium"}, {"summary", "detailed"}}},
                       {"text", {{"verbosity", "low"}}},
                       {"truncation", "auto"},
                       {"include", {"reasoning.encrypted_content"}},
                       {"store", true}});
  const Json tools = read_json<Json>(result.request.tools);
  ASSERT_EQ(tools.size(), 2u);
  EXPECT_EQ(tools[0]["function"]["name"], "mcp__files__read");
  EXPECT_EQ(result.request.messages[1].tool_calls[0].name, "mcp__files__read");
  EXPECT_EQ(taken_text(result.request.messages[1]), "Let me look.");
  EXPECT_EQ(result.request.messages[2].role, "tool");
  EXPECT_EQ(result.request.messages[3].tool_calls[0].arguments, "{\"input\":\"x\"}");
  EXPECT_EQ(result.request.messages[4].tool_call_id, "c2");
  EXPECT_FALSE(render_chat(result.request.messages, result.request.tools, {}).empty());
  EXPECT_THAT(result.warnings, ElementsAre(HasSubstr("'web_search'"), HasSubstr("verbosity"), HasSubstr("summary"),
                                           HasSubstr("truncation")));
}

// A conversation that began at OpenAI goes on here.
TEST(TakenResponses, WhatProvidersToolsLeftIsLeftOut) {
  Json input = {{{"role", "user"}, {"content", "hi"}}};
  const std::vector<const char*> types = {"web_search_call",   "file_search_call",        "code_interpreter_call",
                                          "mcp_list_tools",    "mcp_approval_request",    "mcp_call",
                                          "computer_call",     "local_shell_call",        "tool_search_call",
                                          "ghost_snapshot",    "local_shell_call_output", "image_generation_call",
                                          "shell_call_output", "apply_patch_call"};
  for (const char* type : types) input.push_back({{"type", type}, {"id", "x"}, {"anything", {{"status", nullptr}}}});
  const Taken got = responses_taken({{"input", input}});
  EXPECT_EQ(got.request.messages.size(), 1u);
  ASSERT_EQ(got.warnings.size(), types.size());
  for (size_t i = 0; i < types.size(); ++i) EXPECT_THAT(got.warnings[i], HasSubstr(types[i]));
}

TEST(TakenResponses, WhatIsWrongWithAnInputIsSaid) {
  const auto refusal = [](const Json& input) -> std::string {
    try {
      responses_taken({{"input", input}});
    } catch (const ApiError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal(Json::array()), "input must not be empty");
  EXPECT_EQ(refusal(5), "input must be a string or an array of items");
  const Json lost = {{"type", "function_call_output"}, {"call_id", "c1"}, {"output", "x"}};
  EXPECT_EQ(refusal({{{"role", "user"}, {"content", "hi"}}, lost}),
            "input[1].call_id is 'c1', of which there is no call before it");
}

TEST(TakenResponses, ToolsOfTheSameNameAreRefused) {
  const Json inner = {{"type", "function"}, {"name", "read"}};
  const Json space = {{"type", "namespace"}, {"name", "a"}, {"tools", Json::array({inner})}};
  const Json flat = {{"type", "function"}, {"name", "a__read"}};
  EXPECT_THROW(responses_taken({{"tools", {space, flat}}}), ApiError);
}

TEST(TakenResponses, AllowedTools) {
  const Json f = {{"type", "function"}, {"name", "f"}}, g = {{"type", "function"}, {"name", "g"}};
  const Json allowed = {{"type", "allowed_tools"}, {"mode", "auto"}, {"tools", Json::array({g})}};
  const Request request = responses_taken({{"tools", {f, g}}, {"tool_choice", allowed}}).request;
  EXPECT_EQ(read_json<Json>(request.tools).size(), 1u);
  EXPECT_EQ(request.format.type, ResponseFormat::kFree);
}

}  // namespace
}  // namespace gemma4
