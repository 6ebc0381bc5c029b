// Draws answers that the masks of schemas allow, as a model of equally likely tokens would write them, and measures
// compiling and masks. tools/check_schemas.py runs it and validates the answers.
//
//   draw_answers TOKENIZER.json COUNT < schemas > answers
//
// Each line of the input is {"name": ..., "schema": ...}; each line of the output {"name": ..., "compile_ms": ...,
// "answers": [...], "broken": [...], "mask_us": {...}, "notes": [...]} or {"name": ..., "error": ...}. An answer that
// breaks its schema at the first and second try is drawn again, as the server does.
#include <algorithm>
#include <ctime>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "text/grammar/grammar.h"
#include "text/schema/schema_check.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kTokensMax = 4000, kTries = 3;

// CPU time of this thread, so that other programs on the machine do not count.
double now_us() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

class Drawing {
 public:
  explicit Drawing(const std::string& tokenizer)
      : vocabulary_(std::make_shared<const GrammarVocabulary>(Tokenizer::from_json(read_file(tokenizer)))) {
    const Tokenizer& tokens = vocabulary_->tokenizer();
    end_ = tokens.find("<turn|>").value_or(tokens.find("<eos>").value_or(1));
    for (const char* close : {"\"", "}", "]"}) {
      if (const auto id = tokens.find(close)) closing_.push_back(*id);
    }
  }

  Json answers(const Json& line, int count) {
    Json result = {{"name", line["name"]}};
    const std::string schema = line["schema"].dump();
    try {
      const double begin = now_us();
      const Grammar start = Grammar::json_schema(vocabulary_, schema, {{end_}});
      result["compile_ms"] = (now_us() - begin) / 1000;
      result["notes"] = Json::array();
      for (const SchemaNote& note : start.notes()) result["notes"].push_back(note.keyword + " at " + note.path);
      result["answers"] = result["broken"] = Json::array();
      masks_.clear();
      std::mt19937 random(1);
      for (int i = 0; i < count; ++i) {
        std::vector<std::string> broken;
        for (int attempt = 0; attempt < kTries; ++attempt) {
          // Each answer has a budget of its own in a server.
          const Grammar again =
              i % 100 == 0 ? Grammar::json_schema(vocabulary_, schema, {{end_}}) : kept_.value_or(start);
          kept_ = again;
          const std::string text = draw(again, random, i < 100);
          WorkBudget budget("the check", grammar_limits());
          broken = check_json(text, schema, budget);
          if (broken.empty() || attempt + 1 == kTries) result["answers"].push_back(text);
          if (broken.empty()) break;
          result["broken"].push_back({{"try", attempt}, {"text", text}, {"why", broken}});
        }
      }
      result["mask_us"] = percentiles();
    } catch (const Error& error) {
      result["error"] = error.what();
    }
    kept_.reset();
    return result;
  }

 private:
  std::string draw(Grammar grammar, std::mt19937& random, bool timed) {
    std::vector<int32_t> ids;
    for (unsigned step = 0; step < kTokensMax; ++step) {
      const double begin = now_us();
      const auto mask = grammar.mask();
      if (timed) masks_.push_back(now_us() - begin);
      const auto allows = [&](int32_t id) { return (mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0; };
      int32_t id = grammar.complete() && random() % 8 < 2 + step / 20 ? end_ : any(mask, random);
      if (random() % 8 < 1 + step / 100) {
        const auto close = std::find_if(closing_.begin(), closing_.end(), allows);
        if (close != closing_.end()) id = *close;
      }
      if (!grammar.advance(id)) throw Error("the grammar does not take a token of its mask");
      if (grammar.ended()) return vocabulary_->tokenizer().decode(ids, false);
      ids.push_back(id);
    }
    return vocabulary_->tokenizer().decode(ids, false) + " (no end)";
  }

  int32_t any(std::span<const uint32_t> mask, std::mt19937& random) const {
    size_t count = 0;
    for (const uint32_t word : mask) count += static_cast<size_t>(__builtin_popcount(word));
    if (count == 0) throw Error("a mask allows no token");
    size_t rank = random() % count;
    for (size_t i = 0;; ++i) {
      uint32_t word = mask[i];
      const auto here = static_cast<size_t>(__builtin_popcount(word));
      if (rank >= here) {
        rank -= here;
        continue;
      }
      while (rank-- > 0) word &= word - 1;
      return static_cast<int32_t>(i * 32) + __builtin_ctz(word);
    }
  }

  Json percentiles() {
    if (masks_.size() < 2) return nullptr;
    const double first = masks_[0];
    std::sort(masks_.begin() + 1, masks_.end());
    const auto at = [&](double share) {
      return masks_[1 + static_cast<size_t>(share * static_cast<double>(masks_.size() - 2))];
    };
    return {{"first", first}, {"p50", at(0.5)}, {"p99", at(0.99)}, {"max", masks_.back()}, {"count", masks_.size()}};
  }

  std::shared_ptr<const GrammarVocabulary> vocabulary_;
  int32_t end_ = 0;
  std::vector<int32_t> closing_;
  std::vector<double> masks_;
  std::optional<Grammar> kept_;
};

}  // namespace
}  // namespace gemma4

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: draw_answers TOKENIZER.json COUNT < schemas > answers\n";
    return 2;
  }
  gemma4::Drawing drawing(argv[1]);
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << drawing.answers(gemma4::read_json<nlohmann::ordered_json>(line), std::stoi(argv[2])).dump() << std::endl;
  }
}
