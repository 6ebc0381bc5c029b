#include "checkpoint/recognise.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kLfsPointer = "version https://git-lfs.github.com/spec/";
constexpr const char* kRuns = "; this program runs the dense ones (31B)";

const json& child(const json& object, const char* key) {
  static const json none;
  return object.is_object() && object.contains(key) ? object[key] : none;
}

bool positive(const json& value) { return value.is_number() && value.get<double>() > 0; }

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : ""; }

// The family's other members. `text`: the text model's part of the config.
std::string other_member(const json& top, const json& text) {
  const std::string type = text_of(child(top, "model_type")), inner = text_of(child(text, "model_type"));
  if (child(text, "enable_moe_block") == true || positive(child(text, "num_experts"))) {
    return "is a mixture of experts, as Gemma 4 26B-A4B (config.json: enable_moe_block)" + std::string(kRuns);
  }
  if (positive(child(text, "hidden_size_per_layer_input"))) {
    return "has per-layer embeddings, as Gemma 4 E2B and E4B (config.json: hidden_size_per_layer_input)" +
           std::string(kRuns);
  }
  if (type.starts_with("gemma4_unified") || inner.starts_with("gemma4_unified")) {
    return "is the unified model (12B), whose pictures and sound are read without a tower. Its text half runs from a "
           "GGUF file: convert_hf_to_gguf.py of llama.cpp writes one";
  }
  if (child(top, "audio_config").is_object()) {
    return "reads sound (config.json: audio_config), which is not implemented; without that entry and its tensors the "
           "rest would run";
  }
  return "";
}

// Models of other families, and Gemma's that are no Gemma 4. Empty: model_type is right or absent.
std::string other_family(const json& top) {
  const std::string type = text_of(child(top, "model_type"));
  if (type.empty() || type == "gemma4" || type == "gemma4_text" || type == "gemma4_assistant") return "";
  if (type.starts_with("gemma4")) return "is of the type '" + printable(type) + "', a Gemma 4 that is not known here";
  return "is a model of the type '" + printable(type) + "', not Gemma 4";
}

std::vector<std::string> names_in(const fs::path& directory, const char* extension) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == extension) names.push_back(it->path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

[[noreturn]] void refuse_adapter(const fs::path& directory) {
  std::string base;
  try {
    base = text_of(child(parse_strict_json(read_file(directory / "adapter_config.json"), "adapter_config.json"),
                         "base_model_name_or_path"));
  } catch (const Error&) {  // it is an adapter all the same
  }
  throw Error(directory.string() + " is an adapter (adapter_config.json)" +
              (base.empty() ? "" : " for " + printable(base)) +
              ", not a model: merge it into its base first (PEFT: merge_and_unload(), then save_pretrained())");
}

}  // namespace

void refuse_other_models(const std::string& config, const std::string& what) {
  const json top = read_json_or_discard<json>(config);
  if (!top.is_object()) return;  // parse_config() says what is wrong
  const json& nested = child(top, "text_config");
  const json& text = nested.is_object() ? nested : top;
  for (const std::string& reason : {other_member(top, text), other_family(top)}) {
    if (!reason.empty()) throw Error(what + " " + reason);
  }
}

void refuse_directory(const fs::path& directory) {
  std::error_code ignored;
  if (fs::exists(directory / "adapter_config.json", ignored)) refuse_adapter(directory);
  const std::vector<std::string> gguf = names_in(directory, ".gguf");
  if (!gguf.empty()) {
    std::string list = printable(gguf[0]);
    for (size_t i = 1; i < std::min<size_t>(gguf.size(), 4); ++i) list += ", " + printable(gguf[i]);
    throw Error(directory.string() + " is a folder of .gguf files: name the one to open (" + list +
                (gguf.size() > 4 ? ", ..." : "") + ")");
  }
  throw Error(directory.string() + " holds no config.json (or an empty one)");
}

void refuse_lfs_pointer(std::span<const std::byte> bytes, const std::string& what) {
  if (bytes.size() < kLfsPointer.size() || std::memcmp(bytes.data(), kLfsPointer.data(), kLfsPointer.size()) != 0)
    return;
  throw Error(what +
              " is the pointer that git-lfs keeps in a file's place, not the file: run `git lfs pull` there, or " +
              "fetch the checkpoint with `hf download`");
}

void refuse_missing(const fs::path& path) {
  const std::string name = path.string();
  const auto slashes = std::count(name.begin(), name.end(), '/');
  const bool hub = slashes == 1 && name.front() != '/' && name.front() != '.' && name.back() != '/';
  std::error_code ignored;
  const bool folder_is_there = fs::exists(path.parent_path(), ignored);
  throw Error("there is no checkpoint at " + name +
              (hub && !folder_is_there ? "; if that is its name on the Hugging Face hub, fetch it first: hf download " +
                                             name + " --local-dir DIR"
                                       : ""));
}

std::string way_around(const std::string& quant_method) {
  if (quant_method == "fp8") {
    return "llama.cpp's convert_hf_to_gguf.py makes a GGUF file of it, which is read";
  }
  return "take the model's unquantised checkpoint (gemma4 quantize makes a small one of it), or one of its GGUF files";
}

}  // namespace gemma4
