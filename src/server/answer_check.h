// AnswerCheck: what finished answers break of the schema they were asked for. Masks keep most of a schema
// (docs/STRUCTURED_OUTPUT.md); the rest is checked here, on the thread that writes the answer, with bounded work.
// Whatever an answer breaks becomes a sentence of its warnings.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/warnings.h"
#include "server/completion_request.h"

namespace gemma4 {

class AnswerCheck {
 public:
  AnswerCheck() = default;
  explicit AnswerCheck(const std::vector<Request>& requests);  // all of one format

  bool wanted() const { return !schema_.empty(); }
  // Of a stream: gathers the text, and warns before the last event of a choice is written.
  void take(int choice, const Event& event, const std::shared_ptr<Warnings>& warnings);
  // Sentences. An answer that was cut, or that is a call, is not checked.
  std::vector<std::string> broken(const Choice& choice) const;

 private:
  std::string schema_;  // empty: nothing is checked
  std::vector<std::string> texts_;
};

}  // namespace gemma4
