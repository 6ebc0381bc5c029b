// /v1/completions: echo, log probabilities of the prompt, best_of; and what other servers' parameters do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "serving_testing.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;

Json completion(const Json& more) {
  Json body = {{"model", "demo"}, {"temperature", 0}, {"max_tokens", 8}};
  body.update(more);
  return body;
}

class ServerCompletions : public ServerTest {
 protected:
  static Json first_choice(const Json& body) { return good("/v1/completions", body)["choices"][0]; }

  static std::vector<int> ids_of(const Json& prompt) {
    return good("/tokenize", prompt)["tokens"].get<std::vector<int>>();
  }

  static std::vector<int> conversation_ids() { return ids_of({{"messages", chat(kCount)["messages"]}}); }

  // The tokens of the answer to that, each of which is one by itself. The model ends its answer after them.
  static std::vector<int> answer_ids() {
    std::vector<int> ids;
    const Json body = completion({{"prompt", conversation_ids()}, {"max_tokens", 30}, {"logprobs", 0}});
    const Json choice = first_choice(body);
    for (const Json& token : choice["logprobs"]["tokens"]) {
      const std::vector<int> one = ids_of({{"prompt", token}, {"add_special_tokens", false}});
      EXPECT_EQ(one.size(), 1u) << token;
      ids.push_back(one[0]);
    }
    return ids;
  }

  // The prompt is longer than the rows that are scored in one pass.
  static std::vector<int> long_ids() {
    std::vector<int> ids = conversation_ids();
    const std::vector<int> more = answer_ids();
    for (int i = 0; i < 5; ++i) ids.insert(ids.end(), more.begin(), more.end());
    return ids;
  }
};

TEST_F(ServerCompletions, EchoPutsThePromptBeforeTheAnswer) {
  const std::string prompt = "Count from 9";
  const std::string answer = first_choice(completion({{"prompt", prompt}}))["text"];
  EXPECT_EQ(first_choice(completion({{"prompt", prompt}, {"echo", true}}))["text"], prompt + answer);
  const Json nothing = first_choice(completion({{"prompt", prompt}, {"echo", true}, {"max_tokens", 0}}));
  EXPECT_EQ(nothing["text"], prompt);
  EXPECT_EQ(nothing["finish_reason"], "length");
  EXPECT_EQ(first_choice(completion({{"prompt", prompt}, {"max_tokens", 0}}))["text"], "");
  const std::vector<int> ids = conversation_ids();
  EXPECT_THAT(first_choice(completion({{"prompt", ids}, {"echo", true}}))["text"].get<std::string>(),
              HasSubstr(kCount));
}

// The log probabilities that tokens had when they were drawn are those that they have in a prompt.
TEST_F(ServerCompletions, PromptsHaveTheLogProbabilitiesOfAnswers) {
  std::vector<int> ids = conversation_ids();
  const Json drawn = first_choice(completion({{"prompt", ids}, {"max_tokens", 30}, {"logprobs", 2}}));
  const Json& tokens = drawn["logprobs"]["tokens"];
  ASSERT_GT(tokens.size(), 7u);
  const size_t begin = ids.size();
  for (const int id : answer_ids()) ids.push_back(id);
  const Json scored =
      first_choice(completion({{"prompt", ids}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 2}}))["logprobs"];
  ASSERT_EQ(scored["token_logprobs"].size(), ids.size());
  EXPECT_TRUE(scored["token_logprobs"][0].is_null());
  EXPECT_TRUE(scored["top_logprobs"][0].is_null());
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(scored["tokens"][begin + i], tokens[i]);
    EXPECT_NEAR(scored["token_logprobs"][begin + i].get<double>(), drawn["logprobs"]["token_logprobs"][i].get<double>(),
                2e-3)
        << i;
    EXPECT_EQ(scored["top_logprobs"][begin + i].size(), 2u);
  }
}

// As lm-evaluation-harness asks, and reads: all but the last are of the prompt.
TEST_F(ServerCompletions, OneTokenMoreIsScoredEvenAtTheEnd) {
  std::vector<int> ids = conversation_ids();
  const size_t begin = ids.size();
  for (const int id : answer_ids()) ids.push_back(id);
  const Json choice = first_choice(completion({{"prompt", ids}, {"max_tokens", 1}, {"echo", true}, {"logprobs", 1}}));
  ASSERT_EQ(choice["logprobs"]["token_logprobs"].size(), ids.size() + 1);  // the model ends its answer here
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_THAT(choice["text"].get<std::string>(), testing::EndsWith(kCounted));
  for (size_t i = begin; i < ids.size(); ++i) {
    double best = -1e9;
    for (const auto& [token, value] : choice["logprobs"]["top_logprobs"][i].items()) {
      best = std::max(best, value.get<double>());
    }
    EXPECT_EQ(choice["logprobs"]["token_logprobs"][i].get<double>(), best);  // greedy, so exactly the likeliest
  }
}

TEST_F(ServerCompletions, ScoresDoNotDependOnWhatIsCachedOrRunsBeside) {
  const std::vector<int> ids = long_ids();
  const Json body = completion({{"prompt", ids}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}});
  const Json alone = first_choice(body)["logprobs"]["token_logprobs"];
  ASSERT_EQ(alone.size(), ids.size());
  Json several = body;
  several["prompt"] = {ids, conversation_ids(), ids, ids, ids};
  const Json choices = good("/v1/completions", several)["choices"];
  ASSERT_EQ(choices.size(), 5u);
  EXPECT_EQ(choices[1]["logprobs"]["token_logprobs"].size(), conversation_ids().size());
  for (const int choice : {0, 2, 3, 4}) {
    const Json& beside = choices[choice]["logprobs"]["token_logprobs"];
    ASSERT_EQ(beside.size(), ids.size());
    for (size_t i = 1; i < ids.size(); ++i) {
      EXPECT_NEAR(beside[i].get<double>(), alone[i].get<double>(), 2e-3) << choice << " " << i;
    }
  }
}

TEST_F(ServerCompletions, APromptOfOneTokenHasNothingToScore) {
  const Json choice = first_choice(completion({{"prompt", {2}}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}}));
  ASSERT_EQ(choice["logprobs"]["token_logprobs"].size(), 1u);
  EXPECT_TRUE(choice["logprobs"]["token_logprobs"][0].is_null());
}

TEST_F(ServerCompletions, OffsetsPointIntoTheText) {
  const Json choice =
      first_choice(completion({{"prompt", "Count from 9"}, {"echo", true}, {"logprobs", 0}, {"max_tokens", 4}}));
  const std::string text = choice["text"];
  const Json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"][0], "<bos>");  // which is not in the text
  for (size_t i = 1; i < logprobs["tokens"].size(); ++i) {
    const std::string token = logprobs["tokens"][i];
    if (token.starts_with("<")) continue;
    EXPECT_EQ(text.substr(logprobs["text_offset"][i].get<size_t>(), token.size()), token) << i;
  }
}

TEST_F(ServerCompletions, EchoStreams) {
  const std::vector<int> ids = long_ids();
  const Json body = completion({{"prompt", ids}, {"echo", true}, {"logprobs", 1}, {"n", 2}, {"max_tokens", 5}});
  const Json whole = good("/v1/completions", body)["choices"];
  std::string texts[2];
  Json values[2] = {Json::array(), Json::array()};
  for (const SseEvent& event : streamed("/v1/completions", body)) {
    if (event.name == "DONE") continue;
    const Json& choice = event.data["choices"][0];
    const int index = choice["index"];
    texts[index] += choice["text"].get<std::string>();
    if (choice["logprobs"].is_null()) continue;
    for (const Json& value : choice["logprobs"]["tokens"]) values[index].push_back(value);
  }
  for (const int i : {0, 1}) {
    EXPECT_EQ(whole[i]["text"], texts[i]);
    EXPECT_EQ(values[i], whole[i]["logprobs"]["tokens"]);
  }
}

TEST_F(ServerCompletions, BestOfGivesTheLikeliest) {
  Json body = completion({{"prompt", "Count"}, {"temperature", 1.5}, {"seed", 1}, {"n", 6}, {"logprobs", 0}});
  const auto mean = [](const Json& choice) {
    double sum = 0;
    for (const Json& value : choice["logprobs"]["token_logprobs"]) sum += value.get<double>();
    return sum / static_cast<double>(choice["logprobs"]["token_logprobs"].size());
  };
  double best = -1e9;
  std::string text;
  const Json all = good("/v1/completions", body);
  for (const Json& choice : all["choices"]) {
    if (mean(choice) > best) best = mean(choice), text = choice["text"];
  }
  body["n"] = 1;
  body["best_of"] = 6;
  const Json json = good("/v1/completions", body);
  ASSERT_EQ(json["choices"].size(), 1u);
  EXPECT_EQ(json["choices"][0]["text"], text);
  EXPECT_GT(json["usage"]["completion_tokens"], 8);  // all six were made
}

TEST_F(ServerCompletions, StopTokensAndTheirEarliestPlace) {
  const std::vector<int> ids = conversation_ids();
  const int second = answer_ids()[1];
  const Json plain = first_choice(completion({{"prompt", ids}, {"max_tokens", 60}}));
  EXPECT_EQ(plain["text"], kCounted);
  const Json stopped = first_choice(completion({{"prompt", ids}, {"max_tokens", 60}, {"stop_token_ids", {second}}}));
  EXPECT_EQ(stopped["text"], "9,");
  EXPECT_EQ(stopped["finish_reason"], "stop");
  Json longer = completion({{"prompt", ids}, {"max_tokens", 80}, {"min_tokens", 60}});
  const Json json = good("/v1/completions", longer);
  EXPECT_GE(json["usage"]["completion_tokens"], 60);
  EXPECT_GT(json["choices"][0]["text"].get<std::string>().size(), std::string(kCounted).size());
}

TEST_F(ServerCompletions, TheTokenizerSaysItsNames) {
  const Json info = read_json<Json>(ask(server_->port(), "GET", "/tokenizer_info").body);
  EXPECT_EQ(info["bos_token"], "<bos>");
  EXPECT_EQ(info["eos_token"], "<eos>");
}

}  // namespace
}  // namespace gemma4
