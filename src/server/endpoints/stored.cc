// What /v1/responses keeps: /v1/responses/ID (read, delete), /v1/responses/ID/input_items, /v1/conversations (create),
// /v1/conversations/ID (read, delete), /v1/conversations/ID/items (read, add) and .../items/ID (read, delete).
#include <algorithm>

#include "server/access.h"
#include "server/api/openai.h"
#include "server/endpoint.h"

namespace gemma4 {
namespace {

constexpr std::string_view kResponses = "/v1/responses/", kConversations = "/v1/conversations/";
constexpr const char* kResponseId = "resp_";
constexpr const char* kConversationId = "conv_";
constexpr const char* kItems = "items/";
constexpr size_t kPageItems = 20, kPageItemsMax = 100;  // OpenAI's

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

Json id_of(const Json& item) { return item.value("id", Json()); }

Json all_items(const std::vector<const std::string*>& texts) {
  Json data = Json::array();
  for (const std::string* text : texts) {
    for (Json& item : parse_body(*text)) data.push_back(std::move(item));
  }
  return data;
}

HttpResponse list_response(Json data, bool more) {
  const Json first = data.empty() ? Json() : id_of(data.front()), last = data.empty() ? Json() : id_of(data.back());
  return json_response(
      {{"object", "list"}, {"data", std::move(data)}, {"first_id", first}, {"last_id", last}, {"has_more", more}});
}

// As the query asks: `order` (the newest first, unless it is asc), those `after` an id, at most `limit`.
HttpResponse list_of(const HttpRequest& request, const std::vector<const std::string*>& texts) {
  Json all = all_items(texts), data = Json::array();
  const std::string order = request.query_value("order"), after = request.query_value("after");
  const std::string limit = request.query_value("limit");
  if (!order.empty() && order != "asc" && order != "desc") fail_at("order", "must be asc or desc");
  const bool number = limit.find_first_not_of("0123456789") == std::string::npos;
  const size_t digits = limit.size() - std::min(limit.find_first_not_of('0'), limit.size());  // after any zeros
  if (!number || (digits == 0 && !limit.empty())) fail_at("limit", "must be a whole number from 1");
  if (order != "asc") std::reverse(all.begin(), all.end());
  auto from = all.begin();
  if (!after.empty()) {
    from = std::find_if(from, all.end(), [&](const Json& item) { return id_of(item) == after; });
    if (from == all.end()) fail_at("after", "names no item of this list");
    ++from;
  }
  const size_t most = limit.empty() ? kPageItems
                      : digits > 3  ? kPageItemsMax
                                    : std::min(std::stoul(limit), kPageItemsMax);
  for (; from != all.end() && data.size() < most; ++from) data.push_back(std::move(*from));
  return list_response(std::move(data), from != all.end());
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

Json items_in(const std::shared_ptr<const StoredTurn>& turn) {
  return turn ? all_items(stored_texts(*turn)) : Json::array();
}

Json::iterator item_of(Json& items, const std::string& id) {
  const auto found = std::find_if(items.begin(), items.end(), [&](const Json& item) { return id_of(item) == id; });
  if (found == items.end()) not_stored("Item", id);
  return found;
}

[[noreturn]] void too_much() { throw ApiError(503, "the memory for conversations is used up", "", "out_of_memory"); }

size_t characters_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

// Labels of the client's, which are given back. OpenAI's bounds, in characters.
Json metadata_of(Fields& body) {
  constexpr size_t kPairsMax = 16, kKeyMax = 64, kValueMax = 512;
  const Json* given = body.find("metadata");
  if (given == nullptr) return Json::object();
  if (!given->is_object()) fail_at("metadata", "must be an object");
  if (given->size() > kPairsMax) {
    fail_at("metadata",
            "has " + std::to_string(given->size()) + " pairs, but up to " + std::to_string(kPairsMax) + " are kept");
  }
  for (const auto& [key, value] : given->items()) {
    if (characters_of(key) > kKeyMax) {
      fail_at("metadata", "has a key of more than " + std::to_string(kKeyMax) + " characters");
    }
    const std::string where = "metadata." + key;
    if (characters_of(expect_string(value, where)) > kValueMax) {
      fail_at(where, "has more than " + std::to_string(kValueMax) + " characters");
    }
  }
  return *given;
}

// Adds items to the conversation. `made`: a new one, which gets its metadata.
Json add_items(ServerState& server, const HttpRequest& request, const std::string& id, Json* made = nullptr) {
  const std::string client = client_of(request, server.options);
  Json items;
  prepare(server, request, [&](const ApiContext& context, const Preparation&) {
    const Json json = made != nullptr && request.body.empty() ? Json::object() : parse_body(request.body);
    Fields body(json, "");
    items = items_of(body, context);
    if (made != nullptr) (*made)["metadata"] = metadata_of(body);
    body.ignore({"include"});
    body.done();
  });
  while (true) {  // another request may have added to it, or deleted it, meanwhile
    const std::shared_ptr<const StoredTurn> before = server.responses.conversation(client, id);
    std::shared_ptr<const StoredTurn> turn = before;
    if (!items.empty()) {
      turn = server.responses.begin(client, before, dump(items));
      if (!turn) too_much();
    }
    if (made != nullptr) {
      if (!server.responses.add_conversation(client, id, dump(*made), turn)) too_much();
      return items;
    }
    if (server.responses.set_turn(client, id, before, turn)) return items;
    if (!server.responses.has_conversation(client, id)) not_stored("Conversation", id);
  }
}

Json set_metadata(ServerState& server, const HttpRequest& request, const std::string& client, const std::string& id,
                  const std::string& about) {
  Json changed = parse_body(about);
  prepare(server, request, [&](const ApiContext&, const Preparation&) {
    const Json json = parse_body(request.body);
    Fields body(json, "");
    body.require("metadata");
    changed["metadata"] = metadata_of(body);
    body.done();
  });
  if (!server.responses.describe(client, id, dump(changed))) not_stored("Conversation", id);
  return changed;
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
    return list_of(request, {&turn->input});
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
  Json about = {{"id", id}, {"object", "conversation"}, {"created_at", unix_time()}};
  add_items(server, request, id, &about);
  return json_response(about);
}

HttpResponse conversation(ServerState& server, HttpRequest& request) {
  const auto [id, rest] = parts_of(request, kConversations);
  const std::string client = client_of(request, server.options);
  const auto about = server.responses.response(client, id);
  if (!id.starts_with(kConversationId) || !about) not_stored("Conversation", id);
  if (rest != "" && rest != "items" && !(rest.starts_with(kItems) && request.method == "GET")) nothing_there(request);
  if (request.method == "POST") {
    if (rest.empty()) return json_response(set_metadata(server, request, client, id, *about));
    return list_response(add_items(server, request, id), false);
  }
  const auto turn = server.responses.conversation(client, id);
  if (rest.starts_with(kItems)) {
    Json all = items_in(turn);
    return json_response(*item_of(all, rest.substr(std::string_view(kItems).size())));
  }
  if (rest == "items") {
    return list_of(request, turn ? stored_texts(*turn) : std::vector<const std::string*>());
  }
  HttpResponse response;
  response.body = *about;
  return response;
}

HttpResponse delete_conversation(ServerState& server, HttpRequest& request) {
  const auto [id, rest] = parts_of(request, kConversations);
  if (rest.starts_with(kItems)) {
    const std::string client = client_of(request, server.options);
    const auto about = server.responses.response(client, id);
    if (!id.starts_with(kConversationId) || !about) not_stored("Conversation", id);
    while (true) {  // as in add_items
      const auto before = server.responses.conversation(client, id);
      Json items = items_in(before);
      items.erase(item_of(items, rest.substr(std::string_view(kItems).size())));
      const auto turn = server.responses.begin(client, nullptr, dump(items));
      if (!turn) too_much();
      if (server.responses.set_turn(client, id, before, turn)) return json_response(parse_body(*about));
      if (!server.responses.has_conversation(client, id)) not_stored("Conversation", id);
    }
  }
  return deleted(server, request, kConversations, "conversation.deleted", kConversationId, "Conversation");
}

}  // namespace endpoints
}  // namespace gemma4
