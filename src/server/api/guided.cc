#include "server/api/guided.h"

#include <string>
#include <utility>
#include <vector>

#include "server/api/openai.h"

namespace gemma4 {
namespace {

// The form that was asked for, and by which field.
struct Guided {
  ResponseFormat format;
  std::string path;

  // Clients that know several servers, or versions of one, ask for the same form by several names (guidance does).
  void set(ResponseFormat one, const std::string& where) {
    const bool same = one.type == format.type && one.schema == format.schema && one.text == format.text &&
                      one.choices == format.choices;
    if (path.empty()) {
      format = std::move(one);
      path = where;
    } else if (!same) {
      fail_at(where, "cannot be combined with " + path + ": one form of the answer at a time");
    }
  }
};

void take_json(Guided& guided, const Json* schema, const std::string& path) {
  if (schema == nullptr) return;
  ResponseFormat format;
  format.type = ResponseFormat::kSchema;
  format.schema = schema->is_string() ? schema->get<std::string>() : schema_text(*schema, path);
  guided.set(std::move(format), path);
}

void take_text(Guided& guided, ResponseFormat::Type type, const std::optional<std::string>& text,
               const std::string& path) {
  if (!text || text->empty()) return;  // llama.cpp's clients send an empty grammar for none
  ResponseFormat format;
  format.type = type;
  format.text = *text;
  guided.set(std::move(format), path);
}

void take_choices(Guided& guided, const Json* choices, const std::string& path) {
  if (choices == nullptr) return;
  ResponseFormat format;
  format.type = ResponseFormat::kChoice;
  for (const Json& one : expect_array(*choices, path)) {
    format.choices.push_back(expect_string(one, path + "[" + std::to_string(format.choices.size()) + "]"));
  }
  if (format.choices.empty()) fail_at(path, "must list at least one choice");
  guided.set(std::move(format), path);
}

void parse_structured_outputs(const Json& value, Guided& guided, const ApiContext& context) {
  Fields fields(value, "structured_outputs");
  take_json(guided, fields.find("json"), fields.where("json"));
  take_text(guided, ResponseFormat::kRegex, fields.string("regex"), fields.where("regex"));
  take_choices(guided, fields.find("choice"), fields.where("choice"));
  take_text(guided, ResponseFormat::kGrammar, fields.string("grammar"), fields.where("grammar"));
  if (fields.boolean("json_object").value_or(false)) {
    ResponseFormat format;
    format.type = ResponseFormat::kJson;
    guided.set(std::move(format), fields.where("json_object"));
  }
  fields.hints(context.warnings,
               {"disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"});
  fields.done();
}

}  // namespace

void parse_guided(Fields& body, Request& request, const ApiContext& context) {
  Guided guided;
  take_json(guided, body.find("guided_json"), "guided_json");
  take_text(guided, ResponseFormat::kRegex, body.string("guided_regex"), "guided_regex");
  take_choices(guided, body.find("guided_choice"), "guided_choice");
  take_text(guided, ResponseFormat::kGrammar, body.string("guided_grammar"), "guided_grammar");
  if (const Json* outputs = body.find("structured_outputs")) parse_structured_outputs(*outputs, guided, context);
  take_text(guided, ResponseFormat::kGrammar, body.string("grammar"), "grammar");
  take_text(guided, ResponseFormat::kRegex, body.string("regex"), "regex");
  take_text(guided, ResponseFormat::kGrammar, body.string("ebnf"), "ebnf");
  take_json(guided, body.find("json_schema"), "json_schema");
  body.hints(context.warnings, {"guided_decoding_backend", "guided_whitespace_pattern"});
  if (guided.path.empty() || request.format.type == ResponseFormat::kToolCall) return;
  if (request.format.type != ResponseFormat::kFree) fail_at(guided.path, "cannot be combined with response_format");
  request.format = std::move(guided.format);
}

}  // namespace gemma4
