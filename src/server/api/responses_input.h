// The input of /v1/responses: its items, those that they refer to, and the stored conversation that they continue.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/api/compaction.h"
#include "server/completion_request.h"
#include "server/response_store.h"

namespace gemma4 {

// The conversation before a request's input.
struct History {
  std::shared_ptr<const StoredTurn> before;
  std::string conversation;  // its id, or ""
};

// Of `previous_response_id` or `conversation`. Throws ApiError where what they name is not stored.
History find_history(Fields& body, const ApiContext& context);

// The items of `input`, with what its references stand for.
Json input_items(const Json& input, const ApiContext& context);

// Makes messages of `instructions`, the history and the items. Of what stands before a compaction only the messages
// that it leaves.
void parse_input(Fields& body, const History& history, const Json& items, Request& request, const ApiContext& context);

// What a compaction of all of them leaves (compaction.h).
std::vector<PlacedItem> kept_messages(const History& history, const Json& items, const ApiContext& context);

// The name of a call, or of a choice: of a tool in a namespace the one that the model is told.
std::string called_name(Fields& item);

}  // namespace gemma4
