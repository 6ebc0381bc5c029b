// What /v1/responses keeps: /v1/responses/ID (read, delete), /v1/responses/ID/input_items, /v1/conversations (create),
// /v1/conversations/ID (read, delete) and /v1/conversations/ID/items (read, add).
#include "server/access.h"
#include "server/api/openai.h"
#include "server/endpoint.h"

namespace gemma4 {
namespace {

constexpr std::string_view kResponses = "/v1/responses/", kConversations = "/v1/conversations/";
constexpr const char* kResponseId = "resp_";
constexpr const char* kConversationId = "conv_";

// "ID" or "ID/items": the id, and what of it.
std::pair<std::string, std::string> parts_of(const HttpRequest& request, std::string_view prefix) {
  const std::string rest = request.path.substr(prefix.size());
  const size_t slash = rest.find('/');
  return {rest.substr(0, slash), slash == std::string::npos ? "" : rest.substr(slash + 1)};
}

[[noreturn]] void not_stored(const std::string& what, const std::string& id) {
  throw ApiError(404, what + " with id '" + id.substr(0, 100) + "' not found");
}

[[noreturn]] void nothing_there(const HttpRequest& request) {
  throw ApiError(404, "there is nothing at '" + request.path.substr(0, 200) + "'");
}

HttpResponse list_of(const std::vector<const std::string*>& texts) {
  Json data = Json::array();
  for (const std::string* text : texts) {
    for (Json& item : parse_body(*text)) data.push_back(std::move(item));
  }
  const auto id_of = [](const Json& item) { return item.value("id", Json()); };
  const Json first = data.empty() ? Json() : id_of(data.front()), last = data.empty() ? Json() : id_of(data.back());
  return json_response({{"object", "list"},
                        {"data", std::move(data)},
                        {"first_id", first},
                        {"last_id", last},
                        {"has_more", false}});
}

HttpResponse deleted(ServerState& server, const HttpRequest& request, std::string_view prefix, const char* object,
                     const std::string& begin, const char* what) {
  const auto [id, rest] = parts_of(request, prefix);
  if (!rest.empty()) nothing_there(request);
  if (!id.starts_with(begin) || !server.responses.remove(client_of(request, server.options), id)) not_stored(what, id);
  return json_response({{"id", id}, {"object", object}, {"deleted", true}});
}

// Items that are checked, and have ids.
Json items_of(Fields& body, const ApiContext& context) {
  const Json* given = body.find("items");
  Json items = given == nullptr ? Json::array() : expect_array(*given, "items");
  check_items(items, context);
  for (Json& item : items) {
    if (!item.contains("id")) item["id"] = make_id("msg_");
  }
  return items;
}

[[noreturn]] void too_much() {
  throw ApiError(503, "the memory for conversations is used up", "", "out_of_memory");
}

// Adds items to the conversation, which may be new.
Json add_items(ServerState& server, const HttpRequest& request, const std::string& id, const std::string& about) {
  const std::string client = client_of(request, server.options);
  Json items;
  prepare(server, request, [&](const ApiContext& context, const Preparation&) {
    const Json json = parse_body(request.body);
    Fields body(json, "");
    items = items_of(body, context);
    body.ignore({"metadata", "include"});
    body.done();
  });
  std::shared_ptr<const StoredTurn> turn = server.responses.conversation(client, id);
  if (!items.empty()) {
    turn = server.responses.begin(turn, dump(items));
    if (!turn) too_much();
  }
  if (!server.responses.add_conversation(client, id, about, turn)) too_much();
  return items;
}

}  // namespace

namespace endpoints {

HttpResponse stored_response(ServerState& server, HttpRequest& request) {
  const auto [id, rest] = parts_of(request, kResponses);
  const std::string client = client_of(request, server.options);
  const auto text = server.responses.response(client, id);
  if (!id.starts_with(kResponseId) || !text) not_stored("Response", id);
  if (rest == "input_items") {
    const auto turn = server.responses.turn(client, id);
    if (!turn) not_stored("Response", id);
    return list_of({&turn->input});
  }
  if (!rest.empty()) nothing_there(request);
  HttpResponse response;
  response.body = *text;
  return response;
}

HttpResponse delete_response(ServerState& server, HttpRequest& request) {
  return deleted(server, request, kResponses, "response", kResponseId, "Response");
}

HttpResponse create_conversation(ServerState& server, HttpRequest& request) {
  const std::string id = make_id(kConversationId);
  const Json about = {
      {"id", id}, {"object", "conversation"}, {"created_at", unix_time()}, {"metadata", Json::object()}};
  add_items(server, request, id, dump(about));
  return json_response(about);
}

HttpResponse conversation(ServerState& server, HttpRequest& request) {
  const auto [id, rest] = parts_of(request, kConversations);
  const std::string client = client_of(request, server.options);
  const auto about = server.responses.response(client, id);
  if (!id.starts_with(kConversationId) || !about) not_stored("Conversation", id);
  if (rest != "" && rest != "items") nothing_there(request);
  if (request.method == "POST") {
    if (rest.empty()) throw ApiError(405, "the metadata of a conversation cannot be changed");
    const std::string added = dump(add_items(server, request, id, *about));
    return list_of({&added});
  }
  if (rest == "items") {
    const auto turn = server.responses.conversation(client, id);
    return list_of(turn ? stored_texts(*turn) : std::vector<const std::string*>());
  }
  HttpResponse response;
  response.body = *about;
  return response;
}

HttpResponse delete_conversation(ServerState& server, HttpRequest& request) {
  return deleted(server, request, kConversations, "conversation.deleted", kConversationId, "Conversation");
}

}  // namespace endpoints
}  // namespace gemma4
