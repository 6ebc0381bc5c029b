// Reads tokenizer.json as the `tokenizers` library writes it (its src/tokenizer/serialization.rs and models/bpe).

#include "base/json.h"
#include "base/json_text.h"
#include "text/tokenizer/json_scanner.h"
#include "text/tokenizer/tokenizer_state.h"

namespace gemma4 {
namespace {

using nlohmann::json;
constexpr const char* kWhat = "tokenizer.json";

[[noreturn]] void refuse(const std::string& what) {
  throw Error(std::string(kWhat) + ": " + what + " is not implemented");
}

std::string type_of(const json& component) { return component.at("type").get<std::string>(); }

Replacement replacement(const json& component) {
  const json& pattern = component.at("pattern");
  if (!pattern.contains("String")) refuse("a Replace with the pattern " + pattern.dump());
  Replacement result{pattern["String"].get<std::string>(), component.at("content").get<std::string>()};
  if (result.from.empty()) refuse("a Replace of nothing");
  return result;
}

void read_normalizer(const json& component, std::vector<Replacement>& out) {
  if (component.is_null()) return;
  if (type_of(component) == "Sequence") {
    for (const json& item : component.at("normalizers")) {
      if (type_of(item) != "Replace") refuse("the normalizer " + type_of(item));
      out.push_back(replacement(item));
    }
  } else if (type_of(component) == "Replace") {
    out.push_back(replacement(component));
  } else {
    refuse("the normalizer " + type_of(component));
  }
}

// Gemma's pre-tokenizer splits at spaces, but the normalizer has replaced all of them, so it has no effect. Any other
// pre-tokenizer would have one.
void check_pre_tokenizer(const json& component, const std::vector<Replacement>& normalizer) {
  if (component.is_null()) return;
  if (type_of(component) != "Split") refuse("the pre_tokenizer " + type_of(component));
  const json& pattern = component.at("pattern");
  const std::string split = pattern.contains("String") ? pattern["String"].get<std::string>() : "";
  for (const Replacement& r : normalizer) {
    if (r.from == split && r.to.find(split) == std::string::npos) return;
  }
  refuse("a pre_tokenizer that splits at " + pattern.dump());
}

void read_decoder(const json& component, TokenizerDefinition& definition) {
  if (component.is_null()) return;
  const json items = type_of(component) == "Sequence" ? component.at("decoders") : json::array({component});
  for (const json& item : items) {
    const std::string type = type_of(item);
    if (type == "Replace") {
      if (definition.decode_bytes) refuse("a decoder with Replace after ByteFallback");
      definition.decoder.push_back(replacement(item));
    } else if (type == "ByteFallback") {
      definition.decode_bytes = true;
    } else if (type != "Fuse") {
      refuse("the decoder " + type);
    }
  }
}

// The post-processor only adds BOS, which the chat module does. Any other type would change the ids.
void check_post_processor(const json& component) {
  if (!component.is_null() && type_of(component) != "TemplateProcessing") {
    refuse("the post_processor " + type_of(component));
  }
}

int32_t small_id(int64_t id) {
  if (id < 0 || id >= (1 << 24))
    throw Error(std::string(kWhat) + ": the id " + std::to_string(id) + " is out of range");
  return static_cast<int32_t>(id);
}

AddedToken read_added(const json& token) {
  AddedToken added;
  added.id = small_id(token.at("id").get<int64_t>());
  added.content = token.at("content").get<std::string>();
  added.single_word = token.value("single_word", false);
  added.lstrip = token.value("lstrip", false);
  added.rstrip = token.value("rstrip", false);
  added.normalized = token.value("normalized", false);
  added.special = token.value("special", false);
  return added;
}

void read_vocabulary(JsonScanner& scan, TokenizerDefinition& definition) {
  scan.object([&](std::string_view token) { definition.vocabulary.emplace_back(token, small_id(scan.integer())); });
}

// Each merge is ["left", "right"] or, in older files, "left right".
void read_merges(JsonScanner& scan, TokenizerDefinition& definition) {
  std::string left_scratch, right_scratch;
  scan.array([&] {
    if (scan.peek() == '"') {
      const std::string_view both = scan.string(left_scratch);
      const size_t space = both.find(' ');
      if (space == std::string_view::npos) scan.fail("a merge without a space between its two tokens");
      definition.merges.emplace_back(both.substr(0, space), both.substr(space + 1));
      return;
    }
    int count = 0;
    std::pair<std::string, std::string> merge;
    scan.array([&] {
      if (count >= 2) scan.fail("a merge of more than two tokens");
      (count++ == 0 ? merge.first : merge.second) = scan.string(left_scratch);
    });
    if (count != 2) scan.fail("a merge of fewer than two tokens");
    definition.merges.push_back(std::move(merge));
  });
}

void read_model_option(std::string_view key, const json& value, TokenizerDefinition& definition) {
  const bool off = value.is_null() || value == "" || value == false || value == 0 || value == 0.0;
  if (key == "type") {
    if (value != "BPE") refuse("the model " + value.dump());
  } else if (key == "unk_token") {
    if (!value.is_null()) definition.unknown = value.get<std::string>();
  } else if (key == "byte_fallback") {
    definition.byte_fallback = value.get<bool>();
  } else if (key == "fuse_unk") {
    definition.fuse_unknown = value.get<bool>();
  } else if (!off) {  // dropout, continuing_subword_prefix, end_of_word_suffix, ignore_merges, or an unknown one
    refuse("the model's " + std::string(key) + " = " + value.dump());
  }
}

void read_model(JsonScanner& scan, TokenizerDefinition& definition) {
  bool vocabulary = false, merges = false;
  scan.object([&](std::string_view key) {
    if (key == "vocab") {
      read_vocabulary(scan, definition);
      vocabulary = true;
    } else if (key == "merges") {
      read_merges(scan, definition);
      merges = true;
    } else {
      read_model_option(key, read_json<json>(scan.raw()), definition);
    }
  });
  if (!vocabulary || !merges) throw Error(std::string(kWhat) + ": its model lacks vocab or merges");
}

}  // namespace

TokenizerDefinition parse_tokenizer_json(std::string_view text) {
  TokenizerDefinition definition;
  json normalizer, pre_tokenizer, decoder, post_processor;
  bool model = false;
  try {
    JsonScanner scan(text, kWhat);
    scan.object([&](std::string_view key) {
      if (key == "added_tokens") {
        scan.array([&] { definition.added.push_back(read_added(read_json<json>(scan.raw()))); });
      } else if (key == "model") {
        read_model(scan, definition);
        model = true;
      } else if (key == "normalizer") {
        normalizer = read_json<json>(scan.raw());
      } else if (key == "pre_tokenizer") {
        pre_tokenizer = read_json<json>(scan.raw());
      } else if (key == "decoder") {
        decoder = read_json<json>(scan.raw());
      } else if (key == "post_processor") {
        post_processor = read_json<json>(scan.raw());
      } else {
        scan.raw();  // version, truncation, padding: they do not change the ids of a single text
      }
    });
    scan.end();
    if (!model) throw Error(std::string(kWhat) + ": has no model");
    read_normalizer(normalizer, definition.normalizer);
    check_pre_tokenizer(pre_tokenizer, definition.normalizer);
    read_decoder(decoder, definition);
    check_post_processor(post_processor);
  } catch (const json::exception& e) {
    throw Error(std::string(kWhat) + ": " + json_complaint(e));
  }
  return definition;
}

}  // namespace gemma4
