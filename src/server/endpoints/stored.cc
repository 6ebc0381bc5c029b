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

// `items`: a JSON array.
HttpResponse list_response(const std::string& items, const Json& first_id, const Json& last_id, bool more) {
  HttpResponse response;
  response.body = R"({"object":"list","data":)" + items + R"(,"first_id":)" + dump(first_id) + R"(,"last_id":)" +
                  dump(last_id) + R"(,"has_more":)" + (more ? "true" : "false") + "}";
  return response;
}

// Items of a list, as they are found. As texts: a value takes far more memory than its text.
class Page {
 public:
  explicit Page(const HttpRequest& request) : after_(request.query_value("after")), begun_(after_.empty()) {
    const std::string limit = request.query_value("limit"), order = request.query_value("order");
    if (!order.empty() && order != "asc" && order != "desc") fail_at("order", "must be asc or desc");
    newest_first_ = order != "asc";
    const bool number = limit.find_first_not_of("0123456789") == std::string::npos;
    const size_t digits = limit.size() - std::min(limit.find_first_not_of('0'), limit.size());  // after any zeros
    if (!number || (digits == 0 && !limit.empty())) fail_at("limit", "must be a whole number from 1");
    if (!limit.empty()) most_ = digits > 3 ? kPageItemsMax : std::min(std::stoul(limit), kPageItemsMax);
  }

  bool newest_first() const { return newest_first_; }

  // False: the page is full, and there are more.
  bool add(const Json& item) {
    if (!begun_) {
      begun_ = id_of(item) == after_;
      return true;
    }
    more_ = count_ == most_;
    if (more_) return false;
    if (count_++ == 0) first_ = id_of(item);
    last_ = id_of(item);
    data_ += (data_.empty() ? "" : ",") + dump(item);
    return true;
  }

  HttpResponse response() const {
    if (!begun_) fail_at("after", "names no item of this list");
    return list_response("[" + data_ + "]", first_, last_, more_);
  }

 private:
  const std::string after_;
  size_t most_ = kPageItems, count_ = 0;
  bool newest_first_ = true, begun_ = false, more_ = false;
  Json first_, last_;
  std::string data_;
};

// As the query asks: `order` (the newest first, unless it is asc), those `after` an id, at most `limit`.
HttpResponse list_of(ServerState& server, const HttpRequest& request, std::vector<const std::string*> texts,
                     int64_t bytes) {
  Page page(request);
  if (page.newest_first()) std::ranges::reverse(texts);
  prepare(
      server, request,
      [&](const ApiContext&, const Preparation& preparation) {
        for (const std::string* text : texts) {
          preparation.check_and_make_way();
          Json items = parse_stored(*text);
          if (page.newest_first()) std::reverse(items.begin(), items.end());
          if (!std::ranges::all_of(items, [&](const Json& item) { return page.add(item); })) return;
        }
      },
      bytes);
  return page.response();
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

int64_t history_bytes(const std::shared_ptr<const StoredTurn>& turn) { return turn ? turn->history_bytes : 0; }

Json::iterator find_item(Json& items, const std::string& id) {
  return std::find_if(items.begin(), items.end(), [&](const Json& item) { return id_of(item) == id; });
}

// The item with this id, as JSON.
std::string item_text(const StoredTurn* turn, const std::string& id, const Preparation& preparation) {
  const std::vector<const std::string*> texts = turn ? stored_texts(*turn) : std::vector<const std::string*>();
  for (const std::string* text : texts) {
    preparation.check_and_make_way();
    Json items = parse_stored(*text);
    if (const auto found = find_item(items, id); found != items.end()) return dump(*found);
  }
  not_stored("Item", id);
}

[[noreturn]] void too_much() { throw ApiError(503, "the memory for conversations is used up", "", "out_of_memory"); }

// The turns up to `last` without one item: those from the one that had it are stored anew. Each was read as the body of
// a request once, so they stay apart. Null if no item is left.
std::shared_ptr<const StoredTurn> without_item(ServerState& server, const std::string& client,
                                               const std::shared_ptr<const StoredTurn>& last, const std::string& id,
                                               const Preparation& preparation) {
  std::vector<std::shared_ptr<const StoredTurn>> later;
  for (std::shared_ptr<const StoredTurn> turn = last; turn; turn = turn->before) {
    std::string texts[] = {turn->input, turn->output};
    for (std::string& text : texts) {
      if (text.empty()) continue;
      preparation.check_and_make_way();
      Json items = parse_stored(text);
      const auto found = find_item(items, id);
      if (found == items.end()) continue;
      items.erase(found);
      text = items.empty() ? "" : dump(items);
      std::shared_ptr<const StoredTurn> made = turn->before;
      const auto begin = [&](std::string input, std::string output) {
        made = server.responses.begin(client, made, std::move(input), std::move(output));
        if (!made) too_much();
      };
      if (!texts[0].empty() || !texts[1].empty()) begin(texts[0].empty() ? "[]" : texts[0], texts[1]);
      std::reverse(later.begin(), later.end());
      for (const auto& kept : later) begin(kept->input, kept->output);
      return made;
    }
    later.push_back(turn);
  }
  not_stored("Item", id);
}

HttpResponse delete_item(ServerState& server, const HttpRequest& request, const std::string& id,
                         const std::string& item) {
  const std::string client = client_of(request, server.options);
  const auto about = server.responses.response(client, id);
  if (!id.starts_with(kConversationId) || !about) not_stored("Conversation", id);
  prepare(
      server, request,
      [&](const ApiContext&, const Preparation& preparation) {
        while (true) {  // another request may have added to it, or deleted it, meanwhile
          const auto before = server.responses.conversation(client, id);
          const auto turn = without_item(server, client, before, item, preparation);
          if (server.responses.set_turn(client, id, before, turn)) return;
          if (!server.responses.has_conversation(client, id)) not_stored("Conversation", id);
        }
      },
      history_bytes(server.responses.conversation(client, id)));
  HttpResponse response;
  response.body = *about;
  return response;
}

// Adds items to the conversation and answers with them. `made`: a new one, which gets its metadata.
HttpResponse add_items(ServerState& server, const HttpRequest& request, const std::string& id, Json* made = nullptr) {
  const std::string client = client_of(request, server.options);
  std::string text = "[]";
  HttpResponse added;
  prepare(server, request, [&](const ApiContext& context, const Preparation& preparation) {
    const Json json = made != nullptr && request.body.empty() ? Json::object() : parse_body(request.body);
    Fields body(json, "");
    const Json items = items_of(body, context);
    if (made != nullptr) (*made)["metadata"] = parse_metadata(body);
    body.ignore({"include"});
    body.done();
    preparation.check_and_make_way();
    text = dump(items);
    added = items.empty() ? list_response(text, nullptr, nullptr, false)
                          : list_response(text, id_of(items.front()), id_of(items.back()), false);
  });
  while (true) {  // another request may have added to it, or deleted it, meanwhile
    const std::shared_ptr<const StoredTurn> before = server.responses.conversation(client, id);
    std::shared_ptr<const StoredTurn> turn = before;
    if (text != "[]") {
      turn = server.responses.begin(client, before, text);
      if (!turn) too_much();
    }
    if (made != nullptr) {
      if (!server.responses.add_conversation(client, id, dump(*made), turn)) too_much();
      return added;
    }
    if (server.responses.set_turn(client, id, before, turn)) return added;
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
    changed["metadata"] = parse_metadata(body);
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
    return list_of(server, request, {&turn->input}, static_cast<int64_t>(turn->input.size()));
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
    return add_items(server, request, id);
  }
  const auto turn = server.responses.conversation(client, id);
  if (rest.starts_with(kItems)) {
    const std::string item = rest.substr(std::string_view(kItems).size());
    HttpResponse response;
    prepare(
        server, request,
        [&](const ApiContext&, const Preparation& preparation) {
          response.body = item_text(turn.get(), item, preparation);
        },
        history_bytes(turn));
    return response;
  }
  if (rest == "items") {
    return list_of(server, request, turn ? stored_texts(*turn) : std::vector<const std::string*>(),
                   history_bytes(turn));
  }
  HttpResponse response;
  response.body = *about;
  return response;
}

HttpResponse delete_conversation(ServerState& server, HttpRequest& request) {
  const auto [id, rest] = parts_of(request, kConversations);
  if (rest.starts_with(kItems)) return delete_item(server, request, id, rest.substr(std::string_view(kItems).size()));
  return deleted(server, request, kConversations, "conversation.deleted", kConversationId, "Conversation");
}

}  // namespace endpoints
}  // namespace gemma4
