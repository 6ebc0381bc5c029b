// Questions: how many answers of a model are right, and how many equal a reference's? Asks every question of a file
// through the Engine, greedily, and counts. The file is tests/golden/demo_eval/demo_eval.json (pictures) or
// demo_text_eval.json (prompts), or one laid out like them.
#pragma once

#include <filesystem>

#include "engine/engine.h"

namespace gemma4 {

struct QuestionsOptions {
  EngineOptions engine;
  std::filesystem::path questions;
  std::filesystem::path images;  // folder of the pictures; empty: "images" beside the questions
  int at_a_time = 8;
  double equal_min = 0, right_min = 0;  // shares that must be reached
};

// Prints each answer that differs and the two shares. kExitFailed where a share is missed; throws Error.
int eval_questions(const QuestionsOptions& options);

}  // namespace gemma4
