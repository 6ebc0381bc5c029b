#include "server/answer_check.h"

#include "text/schema/schema_check.h"

namespace gemma4 {
namespace {

// About a tenth of a second of one core.
constexpr WorkLimits kCheckLimits = {.steps = 10'000'000, .bytes = uint64_t{64} << 20};

}  // namespace

AnswerCheck::AnswerCheck(const std::vector<Request>& requests) {
  if (requests.empty() || requests.front().format.type != ResponseFormat::kSchema) return;
  // An answer that the conversation begins is not whole here.
  const std::vector<Message>& messages = requests.front().messages;
  if (!messages.empty() && messages.back().role == "assistant") return;
  schema_ = requests.front().format.schema;
}

void AnswerCheck::take(int choice, const Event& event, const std::shared_ptr<Warnings>& warnings) {
  if (!wanted()) return;
  const auto index = static_cast<size_t>(choice);
  if (texts_.size() <= index) texts_.resize(index + 1);
  if (event.type == Event::kText) texts_[index] += event.text;
  if (event.type != Event::kDone) return;
  Choice done;
  done.text = std::move(texts_[index]);
  done.finish = event.finish;
  done.stop = event.stop;
  for (std::string& sentence : broken(done)) warn(warnings, std::move(sentence));
}

std::vector<std::string> AnswerCheck::broken(const Choice& choice) const {
  const bool whole = choice.finish == Finish::kStop && choice.stop.empty() && choice.tool_calls.empty();
  if (!wanted() || !whole || choice.text.empty()) return {};
  WorkBudget budget("the check of the answer against its schema", kCheckLimits);
  try {
    return check_json(choice.text, schema_, budget);
  } catch (const Error& error) {
    return {error.what()};
  }
}

}  // namespace gemma4
