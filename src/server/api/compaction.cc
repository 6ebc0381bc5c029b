#include "server/api/compaction.h"

#include <algorithm>

#include "base/utf8.h"
#include "server/api/build_request.h"

namespace gemma4 {
namespace {

constexpr std::string_view kSealMark = "gemma4 summary 1\n";
constexpr int64_t kBytesPerToken = 4, kKeptShare = 4;  // of the context: a quarter, at four bytes a token
constexpr int64_t kPictureBytes = 280 * kBytesPerToken;
constexpr int kSummaryShare = 4, kSummaryTokensMax = 8192;  // of the context: a quarter

constexpr const char* kQuestion =
    "The context is nearly full. Write a summary of this conversation; it will stand in place of all that was said and "
    "done so far, and the work goes on from it alone. Say what the user asked for and how they want it; what was done, "
    "found and decided, with the names of files, numbers, commands and results that are still needed; what failed; "
    "what is left to do, and what comes next. Write the summary only, and call no tools.";

bool is_blank(const std::string& text) { return text.find_first_not_of(" \t\r\n") == std::string::npos; }

int64_t size_of(const Json& content) {
  if (content.is_string()) return static_cast<int64_t>(content.get_ref<const std::string&>().size());
  int64_t bytes = 0;
  for (const Json& part : content) {
    if (!part.is_object()) continue;
    if (part.contains("image_url")) bytes += kPictureBytes;
    for (const char* member : {"text", "refusal", "file_data"}) {
      const auto it = part.find(member);
      if (it != part.end() && it->is_string()) bytes += static_cast<int64_t>(it->get_ref<const std::string&>().size());
    }
  }
  return bytes;
}

// The state of an answer.
struct Compacting {
  CompactionAnswer answer;
  std::function<void(Json& response, Finish, const Usage&)> finish;
  Json item = {{"type", "compaction"}, {"id", make_id("cmp_")}, {"encrypted_content", ""}};
  std::string summary;
  int sequence = 0;

  size_t index() const { return answer.response["output"].size(); }

  std::string event(const std::string& type, const Json& members) {
    Json json = {{"type", type}, {"sequence_number", sequence++}};
    json.update(members);
    return sse(json, type);
  }

  void done(Finish reason, const Usage& usage) {
    if (is_blank(summary)) {
      throw ApiError(422, "the model wrote no summary; the conversation is as it was", "", "compaction_failed");
    }
    if (reason == Finish::kLength) {
      warn(answer.warnings,
           "the summary was cut after " + std::to_string(usage.generated_tokens) + " tokens, and is used as it is");
    }
    item["encrypted_content"] = seal_summary(summary);
    finish(answer.response, Finish::kStop, usage);
  }

  Json whole() {
    Json response = answer.response;
    response["output"].push_back(item);
    add_warnings(response, answer.warnings);
    if (answer.keep) answer.keep(response);
    return response;
  }
};

}  // namespace

bool is_compaction(const Json& item) {
  const Json type = item.is_object() ? item.value("type", Json()) : Json();
  return type == "compaction" || type == "compaction_summary";  // Codex has both names
}

bool is_compaction_trigger(const Json& item) {
  return item.is_object() && item.value("type", Json()) == "compaction_trigger";
}

std::string seal_summary(const std::string& summary) { return encode_base64(std::string(kSealMark) + summary); }

std::string open_summary(const std::string& sealed, const std::string& path) {
  std::string text;
  try {
    text = decode_base64(sealed, path);
  } catch (const ApiError&) {  // as what another server made may be
  }
  if (!text.starts_with(kSealMark) || !utf8_valid(text)) {
    fail_at(path, "was not made by this program, which cannot read it; send the conversation itself");
  }
  return text.substr(kSealMark.size());
}

std::string summary_message(const std::string& summary) {
  return "The conversation had become too long. This is a summary of it that the assistant wrote; go on from it.\n\n" +
         summary;
}

KeptMessages::KeptMessages(const ApiContext& context)
    : bytes_left_(int64_t{context.max_seq_len} * kBytesPerToken / kKeptShare) {}

void KeptMessages::add(std::string path, const Json& item) {
  if (!item.is_object() || item.value("type", Json("message")) != "message") return;
  const Json role = item.value("role", Json());
  if (role == "user") {
    const int64_t bytes = size_of(item.value("content", Json("")));
    if (bytes > bytes_left_) return;
    bytes_left_ -= bytes;
  } else if (role != "system" && role != "developer") {
    return;
  }
  kept_.push_back({std::move(path), item});
}

std::vector<PlacedItem> KeptMessages::take() {
  std::ranges::reverse(kept_);
  return std::move(kept_);
}

void ask_for_summary(Request& request, const ApiContext& context) {
  add_text(add_message(request, "user"), kQuestion);
  request.tools.clear();
  request.format = {};
  request.logprobs = -1;
  const int most = std::min(kSummaryTokensMax, std::max(1, context.max_seq_len / kSummaryShare));
  request.max_new_tokens = request.max_new_tokens > 0 ? std::min(request.max_new_tokens, most) : most;
  request.thinking_share = std::min(request.thinking_share, 0.5);
}

ResponseSerializer compaction_serializer(CompactionAnswer answer,
                                         std::function<void(Json& response, Finish, const Usage&)> finish) {
  const std::shared_ptr<Compacting> state(new Compacting{std::move(answer), std::move(finish)});
  ResponseSerializer serializer;
  serializer.whole = [state](const std::vector<Choice>& choices) {
    state->summary = choices.front().text;
    state->done(choices.front().finish, choices.front().usage);
    return dump(state->whole());
  };
  serializer.begin = [state] {
    const Json response = {{"response", state->answer.response}};
    std::string out = state->event("response.created", response);
    out += state->event("response.in_progress", response);
    out += state->event("response.output_item.added", {{"output_index", state->index()}, {"item", state->item}});
    return out;
  };
  serializer.piece = [state](int, const Event& event) -> std::string {
    if (event.type == Event::kDone) state->done(event.finish, event.usage);
    if (event.type != Event::kText) return "";
    state->summary += event.text;
    return state->event("response.compaction.compacting",
                        {{"item_id", state->item["id"]}, {"output_index", state->index()}});
  };
  serializer.end = [state] {
    const std::string done =
        state->event("response.output_item.done", {{"output_index", state->index()}, {"item", state->item}});
    Json members = {{"response", state->whole()}};
    add_warnings(members, state->answer.warnings);
    return done + state->event("response.completed", members);
  };
  serializer.error = [state](const ApiError& error) {
    Json& response = state->answer.response;
    response["status"] = "failed";
    response["error"] = {{"code", "server_error"}, {"message", error.what()}};
    return state->event("response.failed", {{"response", response}});
  };
  return serializer;
}

}  // namespace gemma4
