// What real clients send: requests that tests/clients recorded (long texts are cut), one JSON object a line. All are
// taken, and their conversations can be rendered.
#include <gtest/gtest.h>

#include <filesystem>
#include <sstream>

#include "base/file.h"
#include "server/api/anthropic.h"
#include "server/api/ollama.h"
#include "server/api/openai.h"
#include "server/fetch.h"
#include "text/chat/chat.h"

namespace gemma4 {
namespace {

ApiContext recorded_context() {
  ApiContext context;
  context.models = {"demo"};
  context.image_budget_max = 1120;
  context.max_seq_len = 131072;
  context.warnings = std::make_shared<Warnings>();
  return context;
}

CompletionRequest parse_recorded(const std::string& path, const Json& body) {
  const ApiContext context = recorded_context();
  if (path == "/v1/chat/completions") return parse_chat(body, context);
  if (path == "/v1/responses") return parse_responses(body, context);
  if (path == "/v1/completions") return parse_completions(body, context);
  if (path == "/v1/messages") return parse_messages(body, context);
  if (path == "/api/chat") return parse_ollama_chat(body, context);
  if (path == "/api/generate") return parse_ollama_generate(body, context);
  throw Error("no generating endpoint");
}

TEST(ApiRecorded, RequestsOfRealClientsAreTaken) {
  int files = 0, requests = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SOURCE_DIR "/tests/golden/clients")) {
    if (entry.path().extension() != ".jsonl") continue;
    ++files;
    std::istringstream lines(read_file(entry.path()));
    for (std::string line; std::getline(lines, line);) {
      const Json recorded = parse_body(line);
      ++requests;
      try {
        const CompletionRequest completion = parse_recorded(recorded.at("path"), recorded.at("body"));
        for (const Request& request : completion.requests) {
          if (!request.raw && request.ids.empty()) render_chat(request.messages, request.tools, request.chat);
        }
      } catch (const Error& error) {
        ADD_FAILURE() << entry.path().filename() << ": " << error.what() << "\n" << line.substr(0, 300);
      }
    }
  }
  EXPECT_GE(files, 10);
  EXPECT_GE(requests, 20);
}

}  // namespace
}  // namespace gemma4
