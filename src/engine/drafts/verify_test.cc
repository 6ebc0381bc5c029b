// The distribution: answers that are drawn with drafts are distributed as those without. A model of few tokens, whose
// logits depend on the last two, stands in; the sampler, the counts, the masks and the rule are the engine's. Rules
// that are wrong must fail.
#include "engine/drafts/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <map>

#include "base/slow_build_testing.h"
#include "backend/sample.h"
#include "base/file.h"
#include "base/models_testing.h"

namespace gemma4 {
namespace {

using Ids = std::vector<int32_t>;
using Tally = std::map<Ids, int>;  // how often each answer came

const Tokenizer& words() {
  static const Tokenizer instance = Tokenizer::from_json(read_file(std::string(kDemo) + "/tokenizer.json"));
  return instance;
}

constexpr int kTokens = 4;  // of an answer

// Logits in [-2, 2] from a hash of the tokens.
std::vector<float> logits_after(int32_t before, int32_t last, int vocab) {
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (int id = 0; id < vocab; ++id) {
    uint64_t x = (static_cast<uint64_t>(before) * 1'000'003 + static_cast<uint64_t>(last)) * 1'000'003 + id;
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9;
    logits[id] = static_cast<float>(x >> 40) * 0x1p-22f - 2;
  }
  return logits;
}

struct Case {
  SamplingParams sampling;
  int vocab = 8;
  std::optional<Grammar> grammar;
  Ids proposals;  // a draft is one of these, by its position and the token before it
};

// What of `drawn` the engine is told: the right rule tells it all as it is.
using Tamper = std::function<void(Ids& drawn, const Ids& drafts, const std::vector<std::vector<float>>& logits)>;

class Speculation {
 public:
  Speculation(const Case& c, int drafts, Tamper tamper = nullptr)
      : case_(c), drafts_(drafts), tamper_(std::move(tamper)), output_(words(), {words().require("<turn|>")}) {}

  Ids answer(uint64_t seed) {
    Sequence sequence{OutputParser(words(), OutputOptions())};
    sequence.sink = [](const Event&) {};
    sequence.ids = {1, 2};
    sequence.prompt = 2;
    sequence.limit = 2 + kTokens;
    sequence.sampling = case_.sampling;
    sequence.sampling.seed = seed;
    sequence.grammar = case_.grammar;
    sequence.masked = case_.grammar.has_value();
    output_.begin(sequence);
    while (round(sequence)) {
    }
    return {sequence.ids.begin() + 2, sequence.ids.end()};
  }

 private:
  bool round(Sequence& sequence) {
    propose(sequence);
    Ids drafts, drawn;
    for (int i = 0; i < sequence.draft_count(); ++i) drafts.push_back(sequence.draft(i));
    std::deque<DrawState> states = {sequence};
    std::vector<std::vector<float>> all;
    Ids ids = sequence.ids;
    for (size_t i = 0; i <= drafts.size(); ++i) {
      all.push_back(logits_after(ids[ids.size() - 2], ids.back(), case_.vocab));
      std::vector<float> row = all.back();
      const SamplingInput input = verify_input(output_, sequence, states.back(), static_cast<int>(i));
      drawn.push_back(sample_row(row.data(), case_.vocab, input, scratch_));
      if (i == drafts.size()) break;
      ids.push_back(drafts[i]);
      states.push_back(states.back());
      output_.follow(sequence, states.back(), drafts[i]);
    }
    if (tamper_) tamper_(drawn, drafts, all);
    const Round round = accept_drafts(output_, sequence, drafts, drawn);
    OutputJob job;
    job.tokens = round.tokens;
    const bool stops = output_.read_all(sequence, job).has_value();
    return !round.finish && !stops;
  }

  void propose(Sequence& sequence) {
    const int left = sequence.limit - static_cast<int>(sequence.ids.size()) - 1;
    sequence.drafts.clear();
    int32_t before = sequence.ids.back();
    for (int i = 0; i < std::min(drafts_, left); ++i) {
      before = case_.proposals[static_cast<size_t>(before + i) % case_.proposals.size()];
      sequence.drafts.push_back(before);
    }
    if (sequence.masked) output_.look_ahead(sequence, sequence.drafts);
  }

  const Case& case_;
  const int drafts_;
  const Tamper tamper_;
  OutputProcessor output_;
  std::vector<int32_t> scratch_;
};

constexpr int kAnswers = kSlowBuild ? 12'000 : 60'000;  // 240,000 draws

Tally tally(const Case& c, int drafts, uint64_t first_seed, const Tamper& tamper = nullptr) {
  Speculation speculation(c, drafts, tamper);
  Tally counts;
  for (uint64_t i = 0; i < kAnswers; ++i) ++counts[speculation.answer(first_seed + i)];
  return counts;
}

// Standard deviations by which chi-square of two tallies of equal size exceeds what equal distributions give. Answers
// that came fewer than 20 times count together.
double excess(const Tally& a, const Tally& b) {
  std::map<Ids, std::pair<double, double>> cells;
  for (const auto& [ids, count] : a) cells[ids].first = count;
  for (const auto& [ids, count] : b) cells[ids].second = count;
  std::pair<double, double> rare;
  double chi = 0;
  int count = 0;
  const auto add = [&](const std::pair<double, double>& cell) {
    const double difference = cell.first - cell.second;
    chi += difference * difference / (cell.first + cell.second);
    ++count;
  };
  for (const auto& [ids, cell] : cells) {
    if (cell.first + cell.second >= 20) {
      add(cell);
    } else {
      rare.first += cell.first, rare.second += cell.second;
    }
  }
  if (rare.first + rare.second > 0) add(rare);
  EXPECT_GT(count, 10) << "the test sees too few different answers";
  return (chi - (count - 1)) / std::sqrt(2.0 * (count - 1));
}

Case plain() {
  Case c;
  c.sampling.temperature = 1;
  c.sampling.top_k = 5;
  c.sampling.top_p = 0.95f;
  c.proposals = {3, 0, 5, 1, 7, 2, 6};
  return c;
}

Case penalised() {
  Case c = plain();
  c.sampling.top_k = 0;
  c.sampling.repetition_penalty = 1.5f;
  c.sampling.frequency_penalty = 1;
  c.sampling.presence_penalty = 1;
  c.sampling.min_p = 0.05f;
  return c;
}

Case with_schema() {
  static const auto vocabulary = std::make_shared<const GrammarVocabulary>(words());
  GrammarOptions options;
  options.end_ids = {words().require("<turn|>")};
  options.budget = std::make_shared<WorkBudget>("the test");
  Case c;
  c.sampling.temperature = 1;
  c.vocab = words().vocab_size();
  c.grammar =
      Grammar::json_schema(vocabulary, R"({"enum": [1, 2, 10, 11, 12, 20, 21, 22, 100, 110, 111, 121, 222]})", options);
  c.grammar->mask();
  for (const char* text : {"1", "2", "0", "11", "12"}) {
    const std::vector<int32_t> ids = words().encode(text, false);
    c.proposals.insert(c.proposals.end(), ids.begin(), ids.end());
  }
  return c;
}

void accept_everything(Ids& drawn, const Ids& drafts, const std::vector<std::vector<float>>&) {
  std::ranges::copy(drafts, drawn.begin());
}

void accept_the_second(Ids& drawn, const Ids& drafts, const std::vector<std::vector<float>>& logits) {
  for (size_t i = 0; i < drafts.size(); ++i) {
    const float its = logits[i][static_cast<size_t>(drafts[i])];
    if (std::ranges::count_if(logits[i], [&](float other) { return other > its; }) == 1) drawn[i] = drafts[i];
  }
}

class Verify : public testing::TestWithParam<int> {
 protected:
  Case make() const { return GetParam() == 0 ? plain() : GetParam() == 1 ? penalised() : with_schema(); }
};

TEST_P(Verify, OneSeedHasOneAnswer) {
  const Case c = make();
  Speculation without(c, 0), with(c, 3);
  for (uint64_t seed = 0; seed < 2000; ++seed) ASSERT_EQ(without.answer(seed), with.answer(seed)) << "seed " << seed;
}

TEST_P(Verify, DraftsLeaveTheDistributionAsItIs) {
  const Case c = make();
  EXPECT_LT(excess(tally(c, 0, 0), tally(c, 3, 1'000'000)), 5);
}

TEST_P(Verify, RulesThatAreWrongChangeIt) {
  const Case c = make();
  const Tally right = tally(c, 0, 0);
  EXPECT_GT(excess(right, tally(c, 3, 1'000'000, accept_everything)), 20);
  if (GetParam() == 2) return;                       // with a mask few tokens are left to be second
  if (GetParam() == 1 && kAnswers < 60'000) return;  // penalties leave a difference that so few answers do not show
  EXPECT_GT(excess(right, tally(c, 3, 1'000'000, accept_the_second)), 20);
}

INSTANTIATE_TEST_SUITE_P(Cases, Verify, testing::Range(0, 3));

}  // namespace
}  // namespace gemma4
