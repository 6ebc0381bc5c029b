// Model::draft() on two threads: four tokens for one to eight sequences, with the demo model and its drafter. Most of
// it is the drafter's own matrices: 1.2 M parameters, 0.3 M of them the head's, for each token.
#include <numeric>

#include "backend/roofline_testing.h"
#include "checkpoint/drafter.h"
#include "model/model.h"

namespace gemma4 {
namespace {

constexpr int kDrafts = 4, kContext = 128;

void draft(benchmark::State& state) {
  const auto seqs = static_cast<int>(state.range(0));
  // From the source folder, where benchmarks run.
  const Checkpoint checkpoint = open_checkpoint("models/demo"), assistant = open_drafter("models/demo-assistant");
  const Config config = parse_config(checkpoint.config);
  const auto be = make_cpu(kBenchThreads);
  ModelOptions options = options_for(config, kContext + 1, kContext, seqs);
  options.vision = false;
  options.drafter = &assistant;
  Model model(checkpoint, config, *be, options);
  std::vector<DraftRow> rows;
  for (int seq = 0; seq < seqs; ++seq) {
    for (const AttentionKind kind : {kSliding, kFull}) {
      std::vector<int32_t> pages(static_cast<size_t>(options.pages_per_seq[kind]));
      std::iota(pages.begin(), pages.end(), seq * options.pages_per_seq[kind]);
      model.set_pages(kind, seq, pages);
    }
    Batch batch;
    for (int i = 0; i < kContext - 1; ++i) append_row(batch, config, 100 + i, seq, i, -1);
    model.forward(batch);
    rows.push_back({seq, 500 + seq, kContext, seq});
  }
  Batch last;
  for (int seq = 0; seq < seqs; ++seq) {
    last.logit_rows.push_back(seq);
    append_row(last, config, 300, seq, kContext - 1, -1);
  }
  model.forward(last);
  for (auto _ : state) benchmark::DoNotOptimize(model.draft(rows, kDrafts));
  state.SetItemsProcessed(state.iterations() * seqs * kDrafts);
}
BENCHMARK(draft)->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace gemma4
