// Compaction of a conversation, for /v1/responses: the model writes a summary, which then stands for all that was said
// before it, but for what the user said. POST /v1/responses/compact asks for it, or an item of type compaction_trigger
// at the end of an input. The summary is in the item itself, so nothing is kept here. Source: OpenAI's API reference
// ("Compact a response") and its guide to compaction.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/completion_request.h"
#include "server/json.h"

namespace gemma4 {

bool is_compaction(const Json& item);
bool is_compaction_trigger(const Json& item);

// What stands in an item's encrypted_content: the summary, marked, in base64. It is not secret from the client, which
// has the conversation.
std::string seal_summary(const std::string& summary);
// The other way; throws ApiError where it was not made here.
std::string open_summary(const std::string& sealed, const std::string& path);
// As the model reads it.
std::string summary_message(const std::string& summary);

// One item of a conversation, and where it stands in the request or in what is stored.
struct PlacedItem {
  std::string path;
  Json item;
};

// The messages that a compaction leaves as they are, of all items before it, which are given from the last to the
// first: what the user said, the newest first, as much as a quarter of the context takes; and system messages.
class KeptMessages {
 public:
  explicit KeptMessages(const ApiContext& context);
  void add(std::string path, const Json& item);
  std::vector<PlacedItem> take();  // in the conversation's order

 private:
  int64_t bytes_left_;
  std::vector<PlacedItem> kept_;
};

// Asks for the summary in place of an answer: the request ends with the question for it, and has no tools.
void ask_for_summary(Request& request, const ApiContext& context);

struct CompactionAnswer {
  Json response;  // as its API begins it; `output` holds what stands before the compaction
  std::shared_ptr<Warnings> warnings;
  std::function<void(const Json& response)> keep;  // called with the whole response, where it is stored; may be null
};

// Of /v1/responses, streamed or not. `finish` adds status and usage.
ResponseSerializer compaction_serializer(CompactionAnswer answer,
                                         std::function<void(Json& response, Finish, const Usage&)> finish);

}  // namespace gemma4
