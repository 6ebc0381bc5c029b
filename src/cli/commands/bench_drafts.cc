#include "cli/commands/bench_drafts.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <string>

#include "base/check.h"
#include "cli/engine_flags.h"
#include "engine/drafts/draft_source.h"

namespace gemma4 {
namespace {

constexpr int kDefaultTokens = 4;

class Rounds {
 public:
  Rounds(Model& model, const BenchDraftFlags& flags, int seqs, int depth, AcceptCoin& coin)
      : model_(model), drafts_(flags.tokens), counts_on_coin_(!flags.accept.empty()), coin_(coin) {
    for (int s = 0; s < seqs; ++s) sequences_.push_back({token(), depth, std::vector<int32_t>()});
    for (Sequence& sequence : sequences_) sequence.drafts = arbitrary_drafts();
  }

  // Verifies the drafts of all sequences, accepts, and drafts anew. Returns the new tokens of all sequences.
  int next() {
    Batch batch;
    for (size_t s = 0; s < sequences_.size(); ++s) append(batch, static_cast<int>(s));
    const std::vector<int32_t> drawn = model_.forward(batch);
    std::vector<DraftRow> rows;
    int tokens = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const int first = static_cast<int>(s) * (drafts_ + 1);
      const int accepted = counts_on_coin_ ? coin_.toss() : equal(sequences_[s], drawn, first);
      const int row = first + accepted;
      tokens += accepted + 1;
      sequences_[s].token = drawn[static_cast<size_t>(row)];
      sequences_[s].position += accepted + 1;
      rows.push_back({static_cast<int>(s), sequences_[s].token, sequences_[s].position, row});
    }
    draft(rows);
    return tokens;
  }

 private:
  struct Sequence {
    int32_t token;  // the last one, at `position`
    int position;
    std::vector<int32_t> drafts;
  };

  int32_t token() { return static_cast<int32_t>(random_() % static_cast<uint64_t>(model_.config().vocab)); }
  std::vector<int32_t> arbitrary_drafts() {
    std::vector<int32_t> drafts;
    for (int i = 0; i < drafts_; ++i) drafts.push_back(token());
    return drafts;
  }

  void append(Batch& batch, int s) {
    const Sequence& sequence = sequences_[static_cast<size_t>(s)];
    for (int i = 0; i <= drafts_; ++i) {
      const int32_t id = i == 0 ? sequence.token : sequence.drafts[static_cast<size_t>(i) - 1];
      append_row(batch, model_.config(), id, s, sequence.position + i, -1);
      batch.logit_rows.push_back(static_cast<int32_t>(batch.ids.size()) - 1);
      SamplingInput& sampling = batch.sampling.emplace_back();
      sampling.top_k = 64, sampling.top_p = 0.95f, sampling.seed = 1;
      sampling.step = static_cast<uint64_t>(sequence.position + i);
    }
  }

  int equal(const Sequence& sequence, const std::vector<int32_t>& drawn, int first) const {
    const auto differ = std::ranges::mismatch(sequence.drafts, std::span(drawn).subspan(static_cast<size_t>(first)));
    return static_cast<int>(differ.in1 - sequence.drafts.begin());
  }

  void draft(const std::vector<DraftRow>& rows) {
    if (!model_.has_drafter()) {
      for (Sequence& sequence : sequences_) sequence.drafts = arbitrary_drafts();
      return;
    }
    const std::vector<int32_t> ids = model_.draft(rows, drafts_);
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const auto begin = ids.begin() + static_cast<ptrdiff_t>(s) * drafts_;
      sequences_[s].drafts.assign(begin, begin + drafts_);
    }
  }

  Model& model_;
  const int drafts_;
  const bool counts_on_coin_;
  AcceptCoin& coin_;
  std::vector<Sequence> sequences_;
  std::mt19937_64 random_{7};
};

}  // namespace

void add_bench_draft_flags(CommandLine& line, EngineOptions& options, BenchDraftFlags& flags) {
  add_drafter_flags(line, options);
  line.option("--accept", flags.accept,
              "with --drafter: the share of rounds whose first 1, 2, ... drafts are all accepted (0.9,0.7,0.5). A coin "
              "decides by it, for weights that accept nothing. Without it: what the model draws is compared")
      .separated_by_commas();
}

void resolve_draft_flags(const EngineOptions& options, BenchDraftFlags& flags) {
  if ((options.drafter.empty() && options.draft_tokens < 0) || options.draft_tokens == 0) {
    if (!flags.accept.empty()) throw Error("--accept is for rounds with drafts: give --drafter, too");
    return;
  }
  const auto listed = static_cast<int>(flags.accept.size());
  flags.tokens = options.draft_tokens > 0 ? options.draft_tokens : listed > 0 ? listed : kDefaultTokens;
  if (flags.tokens > kDraftsMax) {
    throw Error("--accept has " + std::to_string(listed) + " shares, but a round has at most " +
                std::to_string(kDraftsMax) + " drafts");
  }
  if (listed > 0 && listed != flags.tokens) {
    throw Error("--accept has " + std::to_string(listed) + " shares, but --draft-tokens is " +
                std::to_string(flags.tokens) + "; it must have one for each draft");
  }
  double before = 1;
  for (const double share : flags.accept) {
    if (!(share >= 0 && share <= before)) {
      throw Error("--accept must be shares from 1 to 0 that never rise: a draft counts only where all before it do");
    }
    before = share;
  }
}

int AcceptCoin::toss() {
  const double at = std::uniform_real_distribution<double>(0, 1)(random_);
  return static_cast<int>(std::ranges::count_if(accept_, [&](double share) { return at < share; }));
}

DraftRounds measure_rounds(Model& model, const BenchDraftFlags& flags, int seqs, int depth, int rounds, int repeat,
                           AcceptCoin& coin) {
  using Clock = std::chrono::steady_clock;
  {
    Rounds warm_up(model, flags, seqs, depth, coin);  // records the graphs
    for (int i = 0; i < 3; ++i) warm_up.next();
  }
  std::vector<DraftRounds> all;
  for (int r = 0; r < repeat; ++r) {
    Rounds measured(model, flags, seqs, depth, coin);
    int tokens = 0;
    model.backend().sync();
    const auto start = Clock::now();
    for (int i = 0; i < rounds; ++i) tokens += measured.next();
    model.backend().sync();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    all.push_back({rounds, seconds, static_cast<double>(tokens) / seqs});
  }
  std::ranges::sort(all, {}, &DraftRounds::seconds);
  return all[all.size() / 2];
}

}  // namespace gemma4
