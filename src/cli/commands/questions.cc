#include "cli/commands/questions.h"

#include <cstdio>
#include <future>

#include "base/file.h"
#include "base/json.h"
#include "base/json_text.h"
#include "cli/engine_flags.h"
#include "engine/event_queue.h"
#include "image/decode.h"

namespace gemma4 {
namespace {

using nlohmann::json;

struct Question {
  std::string name, answer, reference;
  Request request;
};

Question read_question(const json& row, const std::filesystem::path& images) {
  Question question;
  question.answer = row.at("answer");
  question.reference = row.at("reference_output");
  Request& request = question.request;
  if (row.contains("image")) {
    const std::string file = row.at("image");
    question.name = file + ": " + row.at("question").get<std::string>();
    request.images.push_back(read_file(images / file, kMaxImageFileBytes));
    Message message;
    message.role = "user";
    message.content = {{ContentPart::kImage, ""}, {ContentPart::kText, row.at("question")}};
    request.messages.push_back(std::move(message));
  } else {
    question.name = row.at("prompt");
    request.raw = row.at("prompt").get<std::string>();
  }
  request.sampling.temperature = 0;
  request.max_new_tokens = 120;  // the limit of the reference
  request.logprobs = 0;          // so that events contain token ids
  return question;
}

std::vector<Question> read_questions(const QuestionsOptions& options) {
  const std::string what = options.questions.string();
  const auto images = options.images.empty() ? options.questions.parent_path() / "images" : options.images;
  try {
    const json file = read_json<json>(read_file(options.questions));
    std::vector<Question> questions;
    for (const json& row : file.is_array() ? file : file.at("rows")) questions.push_back(read_question(row, images));
    if (questions.empty()) throw Error(what + ": there are no questions in it");
    return questions;
  } catch (const json::exception& error) {
    throw Error(what + ": not a file of questions (" + json_complaint(error) + ")");
  }
}

// The whole answer with its control tokens, but without the end token.
std::string receive(EventQueue& queue, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  while (true) {
    const Event event = queue.pop();
    for (const TokenLogprobs& token : event.logprobs) ids.push_back(token.token.id);
    if (event.type == Event::kDone) return tokenizer.decode(ids, false);
    if (event.type != Event::kError) continue;
    if (event.device) throw DeviceError(event.text);
    throw Error(event.text);
  }
}

bool enough(int count, int total, double share, const char* what) {
  if (count >= share * total) return true;
  std::printf("too few are %s: %.1f %% were asked for\n", what, share * 100);
  return false;
}

}  // namespace

int eval_questions(const QuestionsOptions& options) {
  const std::vector<Question> questions = read_questions(options);
  EngineOptions engine_options = options.engine;
  engine_options.max_seqs = options.at_a_time;
  engine_options.max_queue = static_cast<int>(questions.size()) + 1;
  Engine engine(engine_options);
  report_placement(engine.placement());
  warn_of_template(engine);
  std::vector<std::shared_ptr<EventQueue>> queues;
  for (const Question& question : questions) {
    queues.push_back(std::make_shared<EventQueue>());
    engine.submit(question.request, [queue = queues.back()](const Event& event) { queue->push(event); });
  }
  int right = 0, equal = 0;
  for (size_t i = 0; i < questions.size(); ++i) {
    const Question& question = questions[i];
    const std::string text = receive(*queues[i], engine.tokenizer());
    right += text == question.answer;
    equal += text == question.reference;
    if (text == question.reference) continue;
    std::printf("%s\n  ours:      %s\n  reference: %s\n", question.name.c_str(), text.c_str(),
                question.reference.c_str());
  }
  const int total = static_cast<int>(questions.size());
  std::printf("%s, %s on %s: %d questions, %d right (%.1f %%), %d equal to the reference (%.1f %%)\n",
              options.questions.filename().c_str(), engine_options.model.c_str(), engine_options.backend.c_str(), total,
              right, 100.0 * right / total, equal, 100.0 * equal / total);
  const bool equals = enough(equal, total, options.equal_min, "equal");  // each says what it misses
  const bool rights = enough(right, total, options.right_min, "right");
  return equals && rights ? kExitOk : kExitFailed;
}

}  // namespace gemma4
