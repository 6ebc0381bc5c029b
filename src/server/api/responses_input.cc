#include "server/api/responses_input.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "server/api/build_request.h"
#include "server/api/call_arguments.h"
#include "server/api/compaction.h"
#include "server/api/openai.h"
#include "server/api/tool_list.h"
#include "server/response_store.h"

namespace gemma4 {
namespace {

constexpr const char* kInput = "input";
constexpr const char* kHistory = "conversation";

// What OpenAI's own tools leave in a conversation, and Codex's notes of the work tree.
constexpr std::string_view kProviderItems[] = {"web_search_call",
                                               "file_search_call",
                                               "code_interpreter_call",
                                               "computer_call",
                                               "computer_call_output",
                                               "image_generation_call",
                                               "mcp_call",
                                               "mcp_list_tools",
                                               "mcp_approval_request",
                                               "mcp_approval_response",
                                               "local_shell_call",
                                               "local_shell_call_output",
                                               "shell_call",
                                               "shell_call_output",
                                               "apply_patch_call",
                                               "apply_patch_call_output",
                                               "tool_search_call",
                                               "tool_search_output",
                                               "program",
                                               "program_output",
                                               "ghost_snapshot"};

std::string at(const std::string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

void parse_part(const Json& value, Request& request, Message& message, const ApiContext& context,
                const std::string& path) {
  Fields part(value, path);
  const std::string type = part.required_string("type");
  if (type == "input_text" || type == "output_text" || type == "text") {
    add_text(message, part.required_string("text"));
    part.ignore({"annotations", "logprobs", "parsed", "phase"});
  } else if (type == "refusal") {
    add_text(message, part.required_string("refusal"));
  } else if (type == "input_image") {
    const std::string where = part.where("image_url");
    add_image(request, message, image_of_url(expect_string(part.require("image_url"), where), context, where));
    if (const auto detail = part.string("detail")) set_image_detail(request, *detail, context, part.where("detail"));
    part.only("file_id", {});
  } else if (type == "input_file") {
    const std::string where = part.where("file_data");
    const std::string text = text_of_url(expect_string(part.require("file_data"), where), where);
    add_text(message, named_text(part.string("filename").value_or(""), text));
  } else {
    fail_at(part.where("type"),
            "is '" + type.substr(0, 40) + "'; only input_text, input_image and output_text are " + "supported");
  }
  part.done();
}

void parse_content(const Json& content, Request& request, Message& message, const ApiContext& context,
                   const std::string& path) {
  if (content.is_string()) return add_text(message, content.get<std::string>());
  if (!content.is_array()) fail_at(path, "must be a string or an array of parts");
  for (size_t i = 0; i < content.size(); ++i) parse_part(content[i], request, message, context, at(path, i));
}

// Reasoning, text and tool calls of one assistant turn are separate items in this API, but one message of the chat.
Message& assistant(Request& request) {
  if (!request.messages.empty() && request.messages.back().role == "assistant") return request.messages.back();
  return add_message(request, "assistant");
}

void parse_message_item(Fields& item, Request& request, const ApiContext& context) {
  const std::string role = item.required_string("role");
  if (role != "user" && role != "assistant" && role != "system" && role != "developer") {
    fail_at(item.where("role"), "must be one of user, assistant, system, developer");
  }
  Message& message = role == "assistant" ? assistant(request) : add_message(request, role);
  parse_content(item.require("content"), request, message, context, item.where("content"));
}

void parse_reasoning_item(Fields& item, Request& request) {
  Message& message = assistant(request);
  item.ignore({"summary", "encrypted_content"});
  const Json* content = item.find("content");
  if (content == nullptr) return;
  for (const Json& value : expect_array(*content, item.where("content"))) {
    Fields part(value, item.where("content"));
    part.only("type", {"reasoning_text"});
    message.reasoning += part.required_string("text");
    part.done();
  }
}

void parse_call_item(Fields& item, bool custom, Request& request, const ApiContext& context) {
  ToolCall call;
  call.id = item.required_string("call_id");
  call.name = called_name(item);
  if (custom) {
    call.arguments = custom_arguments(item.string("input").value_or(""));
  } else {
    call.arguments = call_arguments(item.find("arguments"), context, item.where("arguments"));
  }
  assistant(request).tool_calls.push_back(std::move(call));
}

void parse_output_item(Fields& item, Request& request, const ApiContext& context) {
  // Of the first item the call may be stored.
  const bool called =
      request.messages.empty() || request.messages.back().role == "tool" || !request.messages.back().tool_calls.empty();
  const std::string id = item.required_string("call_id");
  if (!called) fail_at(item.where("call_id"), "is '" + id.substr(0, 100) + "', of which there is no call before it");
  Message& message = add_message(request, "tool");
  message.tool_call_id = id;
  if (const auto name = item.string("name")) message.name = *name;
  if (const Json* output = item.find("output")) {
    parse_content(*output, request, message, context, item.where("output"));
  }
}

void parse_item(const Json& value, Request& request, const ApiContext& context, const std::string& path) {
  Fields item(value, path);
  const std::string type = item.string("type").value_or("message");
  if (type == "message") {
    parse_message_item(item, request, context);
  } else if (type == "function_call" || type == "custom_tool_call") {
    parse_call_item(item, type == "custom_tool_call", request, context);
  } else if (type == "function_call_output" || type == "custom_tool_call_output") {
    parse_output_item(item, request, context);
  } else if (type == "reasoning") {
    parse_reasoning_item(item, request);
  } else if (is_compaction(value)) {
    const std::string where = item.where("encrypted_content");
    const std::string summary = open_summary(expect_string(item.require("encrypted_content"), where), where);
    add_text(add_message(request, "user"), summary_message(summary));
  } else if (is_compaction_trigger(value)) {
    fail_at(path, "is a compaction_trigger, which must be the last item of the input");
  } else if (std::ranges::find(kProviderItems, type) != std::end(kProviderItems)) {
    warn(context.warnings, "what a provider's own tool left in the conversation (" + type + ") was left out");
    return;
  } else {
    fail_at(item.where("type"), "is '" + type.substr(0, 40) + "', which is not supported");
  }
  item.ignore({"id", "status", "phase", "caller", "created_by", "metadata",
               "internal_chat_message_metadata_passthrough"});  // the last is Codex's
  item.done();
}

// An item of a conversation: of the turn's list; the turn after the last is the request's input.
struct Place {
  size_t turn, item;
};

std::vector<const std::string*> turns_of(const History& history) {
  return history.before ? stored_texts(*history.before) : std::vector<const std::string*>();
}

std::optional<Place> last_compaction(const std::vector<const std::string*>& turns, const Json& items) {
  for (size_t i = items.size(); i-- > 0;) {
    if (is_compaction(items[i])) return Place{turns.size(), i};
  }
  for (size_t turn = turns.size(); turn-- > 0;) {
    if (turns[turn]->find("\"compaction") == std::string::npos) continue;
    const Json list = parse_stored(*turns[turn]);
    for (size_t i = list.size(); i-- > 0;) {
      if (is_compaction(list[i])) return Place{turn, i};
    }
  }
  return std::nullopt;
}

std::vector<PlacedItem> messages_before(const std::vector<const std::string*>& turns, const Json& items, Place end,
                                        const ApiContext& context) {
  KeptMessages kept(context);
  const auto add = [&](const Json& list, const char* name, size_t count) {
    for (size_t i = count; i-- > 0;) kept.add(at(name, i), list[i]);
  };
  if (end.turn == turns.size()) add(items, kInput, end.item);
  for (size_t turn = std::min(end.turn + 1, turns.size()); turn-- > 0;) {
    const Json list = parse_stored(*turns[turn]);
    add(list, kHistory, turn == end.turn ? end.item : list.size());
  }
  return kept.take();
}

std::string conversation_id(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  Fields fields(value, "conversation");
  std::string id = fields.required_string("id");
  fields.done();
  return id;
}

}  // namespace

std::string called_name(Fields& item) {
  const std::string name = item.required_string("name");
  const auto space = item.string("namespace");
  return space && !space->empty() ? name_in_space(*space, name) : name;
}

History find_history(Fields& body, const ApiContext& context) {
  History history;
  const auto previous = body.string("previous_response_id");
  if (previous) {
    if (context.responses) history.before = context.responses->turn(context.client, *previous);
    if (!history.before) {
      throw ApiError(400,
                     "Previous response with id '" + previous->substr(0, 100) +
                         "' not found: responses are kept, unless store is false, until newer ones need their memory "
                         "or the server ends; send the whole conversation as input",
                     "previous_response_id", "previous_response_not_found");
    }
  }
  const Json* conversation = body.find("conversation");
  if (conversation == nullptr) return history;
  if (previous) fail_at("conversation", "cannot stand beside previous_response_id");
  history.conversation = conversation_id(*conversation);
  const bool known = context.responses && context.responses->has_conversation(context.client, history.conversation);
  if (!known) {
    throw ApiError(404, "Conversation with id '" + history.conversation.substr(0, 100) + "' not found", "conversation");
  }
  history.before = context.responses->conversation(context.client, history.conversation);
  return history;
}

// The items of `input`, with what its references stand for.
Json input_items(const Json& input, const ApiContext& context) {
  if (input.is_string()) {
    return Json::array({{{"type", "message"}, {"id", make_id("msg_")}, {"role", "user"}, {"content", input}}});
  }
  if (!input.is_array()) fail_at("input", "must be a string or an array of items");
  Json items = input;
  for (size_t i = 0; i < items.size(); ++i) {
    Json& item = items[i];
    if (!item.is_object() || item.value("type", Json()) != "item_reference") continue;
    Fields reference(item, at("input", i));
    const std::string id = reference.required_string("id");
    std::optional<std::string> stored;
    if (context.responses) stored = context.responses->item(context.client, id);
    if (!stored) fail_at(at("input", i), "refers to the item '" + id.substr(0, 100) + "', which is not stored");
    item = parse_stored(*stored);
  }
  return items;
}

std::vector<PlacedItem> kept_messages(const History& history, const Json& items, const ApiContext& context) {
  const std::vector<const std::string*> turns = turns_of(history);
  return messages_before(turns, items, {turns.size(), items.size()}, context);
}

void parse_input(Fields& body, const History& history, const Json& items, Request& request, const ApiContext& context) {
  if (const auto text = body.string("instructions")) add_text(add_message(request, "system"), *text);
  const std::vector<const std::string*> turns = turns_of(history);
  Place from = {0, 0};
  if (const auto compaction = last_compaction(turns, items)) {
    from = *compaction;
    for (const PlacedItem& kept : messages_before(turns, items, from, context)) {
      parse_item(kept.item, request, context, kept.path);
    }
  }
  for (size_t turn = from.turn; turn <= turns.size(); ++turn) {
    const Json earlier = turn < turns.size() ? parse_stored(*turns[turn]) : Json();
    const Json& list = turn < turns.size() ? earlier : items;
    for (size_t i = turn == from.turn ? from.item : 0; i < list.size(); ++i) {
      parse_item(list[i], request, context, at(turn < turns.size() ? kHistory : kInput, i));
    }
  }
}

void check_items(const Json& items, const ApiContext& context) {
  Request request;
  for (size_t i = 0; i < items.size(); ++i) parse_item(items[i], request, context, at("items", i));
}

}  // namespace gemma4
