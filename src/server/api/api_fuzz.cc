// Fuzz targets: request bodies of every API.
#include "base/mutate_testing.h"
#include "server/api/anthropic.h"
#include "server/api/openai.h"
#include "server/fetch.h"

namespace gemma4 {
namespace {

ApiContext context() {
  ApiContext context;
  context.models = {"demo"};
  context.image_budget_max = 1120;
  context.fetch = [](const std::string& url, const std::string& path) {
    return fetch_image(url, 1, {.hosts = {"[::1]:1"}}, path);  // an address on which nothing listens
  };
  return context;
}

template <typename Parse>
void run(const std::string& input, Parse parse) {
  parse(parse_body(input), context());
}

const std::vector<std::string> kWords = {"null", "true",     "[]",      "{}",    "-1",  "1e999",
                                         "\"\"", "\"type\"", "\\u0000", "data:", "[[[["};

const RegisterFuzz chat(
    {"api_chat",
     [] {
       return std::vector<std::string>{
           R"({"model":"demo","messages":[{"role":"user","content":[{"type":"text","text":"a"},)"
           R"({"type":"image_url","image_url":{"url":"data:image/png;base64,aGVsbG8=","detail":"low"}}]},)"
           R"({"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f",)"
           R"("arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"x"}],"tools":[{"type":)"
           R"("function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto",)"
           R"("response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}},)"
           R"("stop":["a"],"n":2,"seed":5,"logit_bias":{"5":1},"stream":true,"stream_options":)"
           R"({"include_usage":true},"logprobs":true,"top_logprobs":2,"reasoning_effort":"low"})"};
     },
     [](const std::string& input) { run(input, parse_chat); }, kWords});

const RegisterFuzz completions({"api_completions",
                                [] {
                                  return std::vector<std::string>{
                                      R"({"model":"demo","prompt":["a","b"],"max_tokens":5,"logprobs":2,"n":3})",
                                      R"({"model":"demo","prompt":[1,2,3],"stream":true})",
                                      R"({"model":"demo","prompt":[[1,2],[3]],"echo":false})"};
                                },
                                [](const std::string& input) { run(input, parse_completions); }, kWords});

const RegisterFuzz responses(
    {"api_responses",
     [] {
       return std::vector<std::string>{
           R"({"model":"demo","input":[{"role":"user","content":[{"type":"input_image","image_url":)"
           R"("data:image/png;base64,aGVsbG8="}]},{"type":"function_call","call_id":"c","name":"f",)"
           R"("arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"x"}],"tools":)"
           R"([{"type":"function","name":"f","parameters":{}}],"text":{"format":{"type":"text"}},)"
           R"("reasoning":{"effort":"low"},"include":["message.output_text.logprobs"]})"};
     },
     [](const std::string& input) { run(input, parse_responses); }, kWords});

const RegisterFuzz messages(
    {"api_messages",
     [] {
       return std::vector<std::string>{
           R"({"model":"demo","max_tokens":5,"system":[{"type":"text","text":"s"}],"messages":[)"
           R"({"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":)"
           R"("image/png","data":"aGVsbG8="}}]},{"role":"assistant","content":[{"type":"thinking",)"
           R"("thinking":"h","signature":""},{"type":"tool_use","id":"t","name":"f","input":{}}]},)"
           R"({"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"x"}]}],)"
           R"("tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"any"},"thinking":)"
           R"({"type":"enabled","budget_tokens":1024}})"};
     },
     [](const std::string& input) { run(input, parse_messages); }, kWords});

}  // namespace
}  // namespace gemma4
