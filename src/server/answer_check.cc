#include "server/answer_check.h"

#include "text/schema/schema_check.h"

namespace gemma4 {
namespace {

// About a tenth of a second of one core.
constexpr WorkLimits kCheckLimits = {.steps = 10'000'000, .bytes = uint64_t{64} << 20};
// Larger tools are not enforced, and a warning says so (Grammar).
constexpr size_t kToolsMax = 256 << 10;

}  // namespace

AnswerCheck::AnswerCheck(const std::vector<Request>& requests) {
  if (requests.empty()) return;
  const Request& first = requests.front();
  if (first.tools.size() <= kToolsMax) tools_ = first.tools;
  if (first.format.type != ResponseFormat::kSchema) return;
  // An answer that the conversation begins is not whole here.
  if (!first.messages.empty() && first.messages.back().role == "assistant") return;
  schema_ = first.format.schema;
}

void AnswerCheck::take(int choice, const Event& event, const std::shared_ptr<Warnings>& warnings) {
  std::vector<std::string> sentences;
  if (event.type == Event::kToolCall && !event.cut) check_call(event.tool_call, sentences);
  if (!schema_.empty()) {
    const auto index = static_cast<size_t>(choice);
    if (texts_.size() <= index) texts_.resize(index + 1);
    if (event.type == Event::kText) texts_[index] += event.text;
    if (event.type == Event::kDone) {
      Choice done;
      done.text = std::move(texts_[index]);
      done.finish = event.finish;
      done.stop = event.stop;
      check_text(done, sentences);
    }
  }
  for (std::string& sentence : sentences) warn(warnings, std::move(sentence));
}

void AnswerCheck::check_text(const Choice& choice, std::vector<std::string>& sentences) const {
  const bool whole = choice.finish == Finish::kStop && choice.stop.empty() && choice.tool_calls.empty();
  if (schema_.empty() || !whole || choice.text.empty()) return;
  WorkBudget budget("the check of the answer against its schema", kCheckLimits);
  try {
    sentences = check_json(choice.text, schema_, budget);
  } catch (const Error& error) {
    sentences = {error.what()};
  }
}

void AnswerCheck::check_call(const ToolCall& call, std::vector<std::string>& sentences) const {
  if (tools_.empty()) return;
  if (!offered_) offered_ = std::make_shared<const OfferedTools>(tools_);
  const Json* parameters = offered_->parameters(call.name);
  if (parameters == nullptr) return;
  WorkBudget budget("the check of the call against its schema", kCheckLimits);
  try {
    const std::vector<std::string> found = check_arguments(call.arguments, *parameters, call.name, budget);
    sentences.insert(sentences.end(), found.begin(), found.end());
  } catch (const Error& error) {
    sentences.emplace_back(error.what());
  }
}

std::vector<std::string> AnswerCheck::broken(const Choice& choice) const {
  std::vector<std::string> sentences;
  check_text(choice, sentences);
  for (size_t i = 0; i + choice.cut_call < choice.tool_calls.size(); ++i) check_call(choice.tool_calls[i], sentences);
  return sentences;
}

}  // namespace gemma4
