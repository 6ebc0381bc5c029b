#include "model/warm_up.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace gemma4 {
namespace {

constexpr int kPromptRows = 8;
constexpr int kSteps = 3;  // a GPU's graph of a size is recorded at its second and third run

void give_pages(Model& model, AttentionKind kind, int count) {
  std::vector<int32_t> pages(static_cast<size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  model.set_pages(kind, 0, pages);
}

// Positions begin .. begin + rows - 1 of sequence 0; a token is drawn after the last.
void step(Model& model, int begin, int rows) {
  Batch batch;
  for (int i = 0; i < rows; ++i) append_row(batch, model.config(), 0, 0, begin + i, -1);
  batch.logit_rows.push_back(rows - 1);
  batch.sampling.emplace_back();
  model.forward(batch);
}

}  // namespace

void warm_up(Model& model) {
  const ModelOptions& options = model.options();
  const int full_pages = std::min(1, options.pages[kFull]);
  const int room = std::min(full_pages * options.page, options.rows_max);
  if (room < kPromptRows + kSteps) return;  // a model for tests
  give_pages(model, kSliding, options.pages_per_seq[kSliding]);
  give_pages(model, kFull, full_pages);
  step(model, 0, kPromptRows);
  for (int i = 0; i < kSteps; ++i) step(model, kPromptRows + i, 1);
  give_pages(model, kFull, 0);
}

}  // namespace gemma4
