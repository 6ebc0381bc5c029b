// AnswerCheck: what finished answers break of the schema they were asked for, and calls of their tools' schemas. Masks
// keep most of a schema (docs/STRUCTURED_OUTPUT.md); the rest is checked here, on the thread that writes the answer,
// with bounded work. Whatever an answer breaks becomes a sentence of its warnings.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/warnings.h"
#include "server/completion_request.h"
#include "text/chat/offered_tools.h"

namespace gemma4 {

class AnswerCheck {
 public:
  AnswerCheck() = default;
  explicit AnswerCheck(const std::vector<Request>& requests);  // all of one format, with the same tools

  // Of a stream: gathers the text, and warns before the last event of a choice, or of a call, is written.
  void take(int choice, const Event& event, const std::shared_ptr<Warnings>& warnings);
  // Sentences. What a limit cut is not checked.
  std::vector<std::string> broken(const Choice& choice) const;

 private:
  void check_text(const Choice& choice, std::vector<std::string>& sentences) const;
  void check_call(const ToolCall& call, std::vector<std::string>& sentences) const;

  std::string schema_;  // empty: text is not checked
  std::string tools_;   // in the form of Request::tools; empty: calls are not checked
  mutable std::shared_ptr<const OfferedTools> offered_;  // tools_, read at the first call
  std::vector<std::string> texts_;
};

}  // namespace gemma4
