// tokenizer.json, as the `tokenizers` library writes it (its src/tokenizer/serialization.rs and models/bpe).

#include "base/json.h"
#include "text/tokenizer/json_scan.h"
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
    for (const json& part : component.at("normalizers")) {
      if (type_of(part) != "Replace") refuse("the normalizer " + type_of(part));
      out.push_back(replacement(part));
    }
  } else if (type_of(component) == "Replace") {
    out.push_back(replacement(component));
  } else {
    refuse("the normalizer " + type_of(component));
  }
}

// Gemma's pre-tokenizer splits at spaces after the normalizer has replaced them all, so it never fires. Anything else
// would.
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

void read_decoder(const json& component, TokenizerParts& parts) {
  if (component.is_null()) return;
  const json steps = type_of(component) == "Sequence" ? component.at("decoders") : json::array({component});
  for (const json& step : steps) {
    const std::string type = type_of(step);
    if (type == "Replace") {
      if (parts.decode_bytes) refuse("a decoder with Replace after ByteFallback");
      parts.decoder.push_back(replacement(step));
    } else if (type == "ByteFallback") {
      parts.decode_bytes = true;
    } else if (type != "Fuse") {
      refuse("the decoder " + type);
    }
  }
}

// BOS is put in front by whoever builds a prompt, so all that matters here is that nothing else happens to the ids.
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

void read_vocabulary(JsonScanner& scan, TokenizerParts& parts) {
  scan.object([&](std::string_view token) { parts.vocabulary.emplace_back(token, small_id(scan.integer())); });
}

// Each merge is ["left", "right"] or, in older files, "left right".
void read_merges(JsonScanner& scan, TokenizerParts& parts) {
  std::string left_scratch, right_scratch;
  scan.array([&] {
    if (scan.peek() == '"') {
      const std::string_view both = scan.string(left_scratch);
      const size_t space = both.find(' ');
      if (space == std::string_view::npos) scan.fail("a merge without a space between its two tokens");
      parts.merges.emplace_back(both.substr(0, space), both.substr(space + 1));
      return;
    }
    int count = 0;
    std::pair<std::string, std::string> merge;
    scan.array([&] {
      if (count >= 2) scan.fail("a merge of more than two tokens");
      (count++ == 0 ? merge.first : merge.second) = scan.string(left_scratch);
    });
    if (count != 2) scan.fail("a merge of fewer than two tokens");
    parts.merges.push_back(std::move(merge));
  });
}

void read_model_option(std::string_view key, const json& value, TokenizerParts& parts) {
  const bool off = value.is_null() || value == "" || value == false || value == 0 || value == 0.0;
  if (key == "type") {
    if (value != "BPE") refuse("the model " + value.dump());
  } else if (key == "unk_token") {
    if (!value.is_null()) parts.unknown = value.get<std::string>();
  } else if (key == "byte_fallback") {
    parts.byte_fallback = value.get<bool>();
  } else if (key == "fuse_unk") {
    parts.fuse_unknown = value.get<bool>();
  } else if (!off) {  // dropout, continuing_subword_prefix, end_of_word_suffix, ignore_merges, or one we never met
    refuse("the model's " + std::string(key) + " = " + value.dump());
  }
}

void read_model(JsonScanner& scan, TokenizerParts& parts) {
  bool vocabulary = false, merges = false;
  scan.object([&](std::string_view key) {
    if (key == "vocab") {
      read_vocabulary(scan, parts);
      vocabulary = true;
    } else if (key == "merges") {
      read_merges(scan, parts);
      merges = true;
    } else {
      read_model_option(key, json::parse(scan.raw()), parts);
    }
  });
  if (!vocabulary || !merges) throw Error(std::string(kWhat) + ": its model lacks vocab or merges");
}

}  // namespace

TokenizerParts parse_tokenizer_json(std::string_view text) {
  TokenizerParts parts;
  json normalizer, pre_tokenizer, decoder, post_processor;
  bool model = false;
  try {
    JsonScanner scan(text, kWhat);
    scan.object([&](std::string_view key) {
      if (key == "added_tokens") {
        scan.array([&] { parts.added.push_back(read_added(json::parse(scan.raw()))); });
      } else if (key == "model") {
        read_model(scan, parts);
        model = true;
      } else if (key == "normalizer") {
        normalizer = json::parse(scan.raw());
      } else if (key == "pre_tokenizer") {
        pre_tokenizer = json::parse(scan.raw());
      } else if (key == "decoder") {
        decoder = json::parse(scan.raw());
      } else if (key == "post_processor") {
        post_processor = json::parse(scan.raw());
      } else {
        scan.raw();  // version, truncation, padding: nothing that changes an id of one text
      }
    });
    scan.end();
    if (!model) throw Error(std::string(kWhat) + ": has no model");
    read_normalizer(normalizer, parts.normalizer);
    check_pre_tokenizer(pre_tokenizer, parts.normalizer);
    read_decoder(decoder, parts);
    check_post_processor(post_processor);
  } catch (const json::exception& e) {
    throw Error(std::string(kWhat) + ": " + e.what());
  }
  return parts;
}

}  // namespace gemma4
