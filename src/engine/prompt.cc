#include "engine/prompt.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/utf8.h"
#include "image/decode.h"

namespace gemma4 {
namespace {

std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

PromptMaker::PromptMaker(const Tokenizer& tokenizer, const Config& config, const PromptLimits& limits)
    : tokenizer_(tokenizer), config_(config), limits_(limits), key_(HashKey::random()) {}

std::vector<Piece> PromptMaker::pieces(const Request& request) const {
  if (request.raw) {
    if (!utf8_valid(*request.raw)) throw Error("the prompt is not valid UTF-8");
    return parse_raw(*request.raw, tokenizer_);
  }
  if (request.messages.empty()) throw Error("there is no message to answer");
  return render_chat(request.messages, request.tools, request.chat);
}

PromptImage PromptMaker::prepare(const std::string& file, int index, int budget) const {
  const std::string name = "image " + std::to_string(index + 1);
  const VisionConfig& vision = config_.vision;
  try {
    const Image image = decode_image(as_bytes(file));
    auto patches = std::make_shared<Patches>(preprocess_image(image, budget, vision.patch, vision.pool));
    if (std::max(patches->grid_w, patches->grid_h) > vision.positions) {
      throw Error("at a budget of " + std::to_string(budget) + " it is " + std::to_string(patches->grid_w) + " x " +
                  std::to_string(patches->grid_h) + " patches, but the model knows " +
                  std::to_string(vision.positions) + " positions on a side");
    }
    Hasher hasher(key_);
    hasher.add(budget);
    hasher.add(as_bytes(file));
    PromptImage prepared;
    prepared.patches = std::move(patches);
    prepared.hash = hasher.finish();
    return prepared;
  } catch (const Error& error) {
    throw Error(name + ": " + error.what());
  }
}

void PromptMaker::check_ids(const std::vector<int32_t>& ids) const {
  for (const int32_t id : ids) {
    if (id >= 0 && id < config_.vocab) continue;
    throw Error("token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                std::to_string(config_.vocab));
  }
}

PreparedPrompt PromptMaker::make(const Request& request) const {
  PreparedPrompt out;
  if (!request.ids.empty()) {
    if (!request.images.empty()) throw Error("a prompt given as token ids cannot hold images");
    if (std::ranges::count(request.ids, config_.image_id) > 0) {
      throw Error("a prompt given as token ids cannot hold images");
    }
    out.ids = request.ids;
  } else {
    if (!request.images.empty() && !limits_.vision)
      throw Error("this model was loaded without its vision tower (for a .gguf model, --mmproj says where it is)");
    if (static_cast<int>(request.images.size()) > limits_.images_max) {
      throw Error(std::to_string(request.images.size()) + " images are more than the " +
                  std::to_string(limits_.images_max) + " that one request may hold");
    }
    const int budget = request.image_budget > 0 ? request.image_budget : limits_.image_budget;
    if (!request.images.empty() && budget > limits_.image_budget_max) {
      throw Error("an image budget of " + std::to_string(budget) + " soft tokens is more than the " +
                  std::to_string(limits_.image_budget_max) + " this engine was started for");
    }
    const std::vector<Piece> parts = pieces(request);
    if (count_images(parts) != static_cast<int>(request.images.size())) {
      throw Error("the prompt has places for " + std::to_string(count_images(parts)) + " images, but " +
                  std::to_string(request.images.size()) + " were given");
    }
    std::vector<int> soft_tokens;
    for (size_t i = 0; i < request.images.size(); ++i) {
      out.images.push_back(prepare(request.images[i], static_cast<int>(i), budget));
      soft_tokens.push_back(out.images.back().patches->soft_tokens);
    }
    Prompt prompt = encode_pieces(tokenizer_, parts, soft_tokens);
    out.ids = std::move(prompt.ids);
    for (const ImageSpan& span : prompt.images) {
      out.images[span.image].begin = span.begin;
      out.images[span.image].end = span.end;
    }
    std::ranges::sort(out.images, {}, &PromptImage::begin);
  }
  if (out.ids.empty()) throw Error("the prompt is empty");
  check_ids(out.ids);  // also of a text: a tokenizer may know more tokens than the model
  if (static_cast<int>(out.ids.size()) >= limits_.max_seq_len) {
    throw Error("the prompt is " + std::to_string(out.ids.size()) + " tokens long, but the context holds " +
                std::to_string(limits_.max_seq_len) + ", the answer included");
  }
  out.keys.assign(out.ids.begin(), out.ids.end());
  for (const PromptImage& image : out.images) {
    for (int i = image.begin; i < image.end; ++i) {
      Hasher hasher(key_);
      hasher.add(image.hash);
      hasher.add(static_cast<uint64_t>(i - image.begin));
      out.keys[i] = hasher.finish() | uint64_t{1} << 63;
    }
  }
  return out;
}

}  // namespace gemma4
