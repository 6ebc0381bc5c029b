#include "engine/prompt_images.h"

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "image/decode.h"
#include "image/resize.h"

namespace gemma4 {
namespace {

constexpr std::chrono::milliseconds kCancelCheck(50);

// What a decoder takes of memory: 3 bytes a pixel of the result, as much again where it is turned or converted, and up
// to 2 for the coefficients of a JPEG of several scans.
constexpr int64_t kBytesAPixel = 8;

// A picture of at most 12 Mi pixels, as phones make them, is decoded within one turn (0.1 s): the turns bound how many
// there are at a time. So it never waits for the memory of larger ones, however many someone sends.
constexpr int64_t kSmallPixels = int64_t{12} << 20;

std::span<const std::byte> as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

template <typename Work>
auto naming_image(int index, const Work& work) {
  try {
    return work();
  } catch (const DecodeStopped&) {
    throw CancelledError("the request was cancelled");
  } catch (const CancelledError&) {  // while it waited for memory or a turn: no fault of the image
    throw;
  } catch (const Error& error) {
    throw Error("image " + std::to_string(index + 1) + ": " + error.what());
  }
}

}  // namespace

bool PreparedBytes::try_take(int64_t bytes) {
  const MutexLock lock(mutex_);
  if (!queue_.empty() || !fits(bytes)) return false;
  bytes_ += bytes;
  return true;
}

void PreparedBytes::wait(int64_t bytes, const Preparation& preparation) {
  const MutexLock lock(mutex_);
  const auto place = queue_.insert(queue_.end(), bytes);
  while ((place != queue_.begin() || !fits(bytes)) &&
         !(preparation.cancellation && preparation.cancellation->cancelled())) {
    changed_.wait_until(mutex_, std::chrono::steady_clock::now() + kCancelCheck);
  }
  const bool mine = place == queue_.begin() && fits(bytes);
  queue_.erase(place);
  changed_.notify_all();
  if (!mine) throw CancelledError("the request was cancelled");
  bytes_ += bytes;
}

void PreparedBytes::give_back(int64_t bytes) {
  const MutexLock lock(mutex_);
  bytes_ -= bytes;
  changed_.notify_all();
}

PreparedBytes::Held PreparedBytes::take(int64_t bytes, const Preparation& preparation) {
  if (bytes == 0) return nullptr;
  const auto hold = [&] {
    return Held(this, [bytes](void* self) { static_cast<PreparedBytes*>(self)->give_back(bytes); });
  };
  if (try_take(bytes)) return hold();
  Held held;
  const auto wait_here = [&] {
    wait(bytes, preparation);
    held = hold();
  };
  if (preparation.pause) {
    preparation.pause(wait_here);
  } else {
    wait_here();
  }
  return held;
}

int64_t PreparedBytes::bytes() const {
  const MutexLock lock(mutex_);
  return bytes_;
}

int PreparedBytes::waiting() const {
  const MutexLock lock(mutex_);
  return static_cast<int>(queue_.size());
}

PromptImages::PromptImages(const Config& config, ImageCache& cache, int64_t decoding_bytes)
    : config_(config), cache_(cache), key_(HashKey::random()), decoding_(decoding_bytes) {}

uint64_t PromptImages::hash(const std::string& file, int budget, uint64_t salt) const {
  Hasher hasher(key_);
  hasher.add(salt);
  hasher.add(budget);
  hasher.add(as_bytes(file));
  return hasher.finish();
}

int PromptImages::count_tokens(const std::string& file, int index, int budget) const {
  const VisionConfig& vision = config_.vision;
  return naming_image(index, [&] {
    const ImageSize size = fit_budget(read_image_size(as_bytes(file)), budget, vision.patch, vision.pool);
    const int grid_w = size.width / vision.patch, grid_h = size.height / vision.patch;
    if (std::max(grid_w, grid_h) > vision.positions) {
      throw Error("at a budget of " + std::to_string(budget) + " it is " + std::to_string(grid_w) + " x " +
                  std::to_string(grid_h) + " patches, but the model knows " + std::to_string(vision.positions) +
                  " positions on a side");
    }
    return soft_tokens(size, vision.patch, vision.pool);
  });
}

int64_t PromptImages::prepared_bytes(int tokens) const {
  const VisionConfig& vision = config_.vision;
  const int64_t values = int64_t{3} * vision.patch * vision.patch;
  return int64_t{tokens} * vision.pool * vision.pool *
         (values * static_cast<int64_t>(sizeof(float)) + 2 * static_cast<int64_t>(sizeof(int32_t)));
}

PromptImage PromptImages::prepare(const std::string& file, int index, int budget, uint64_t salt,
                                  const Preparation& preparation) const {
  PromptImage prepared;
  prepared.hash = hash(file, budget, salt);
  if (const auto known = cache_.find(prepared.hash)) {
    prepared.embeddings = *known;
    return prepared;
  }
  bool large = false;
  const auto stop = [&] {  // a decoder may be C code, through which no exception can pass
    try {
      large ? preparation.check_and_make_way() : preparation.check();
      return false;
    } catch (const CancelledError&) {
      return true;
    }
  };
  return naming_image(index, [&] {
    const ImageSize size = read_image_size(as_bytes(file));
    const int64_t pixels = int64_t{size.width} * size.height;
    large = pixels > kSmallPixels;
    const PreparedBytes::Held held = decoding_.take(large ? pixels * kBytesAPixel : 0, preparation);
    ++decoded_;
    const Image image = decode_image(as_bytes(file), {}, stop);
    prepared.patches =
        std::make_shared<Patches>(preprocess_image(image, budget, config_.vision.patch, config_.vision.pool));
    if (prepared.patches->soft_tokens != count_tokens(file, index, budget)) {
      throw Error("its header and its data disagree about its size");  // the prompt has places for the header's
    }
    return prepared;
  });
}

}  // namespace gemma4
