// Questions: counts how many answers of a model are right, and how many equal a reference's. Sends every question of a
// file through the Engine with greedy sampling. The file is tests/golden/demo_eval/demo_eval.json (pictures) or
// demo_text_eval.json (prompts), or has the same layout.
#pragma once

#include <filesystem>

#include "engine/engine.h"

namespace gemma4 {

struct QuestionsOptions {
  EngineOptions engine;
  std::filesystem::path questions;
  std::filesystem::path images;  // folder of the pictures; empty: "images" beside the questions
  int at_a_time = 8;
  double equal_min = 0, right_min = 0;  // minimum shares
};

// Prints each answer that differs and the two shares. Returns kExitFailed if a share is below its minimum. Throws
// Error.
int eval_questions(const QuestionsOptions& options);

}  // namespace gemma4
