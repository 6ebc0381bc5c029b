#include "engine/engine_core.h"

#include <algorithm>
#include <new>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr size_t kRecentImages = 16;  // embeddings kept for requests that repeat an image

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

Stepper::Stepper(Model& model, const Answerer& answerer, const EngineOptions& options)
    : model_(model),
      answerer_(answerer),
      pages_({model.options().page,
              model.config().window,
              {model.options().pages[kSliding], model.options().pages[kFull]},
              options.prefix_cache}),
      scheduler_({options.max_seqs, options.chunk, model.options().rows_max}, pages_) {
  static_assert(kSliding == 0 && kFull == 1);
}

void Stepper::add(std::unique_ptr<Sequence> sequence) {
  stats_.images += sequence->images.size();
  scheduler_.add(std::move(sequence));
}

void Stepper::end(Sequence* sequence, Finish how) {
  const std::unique_ptr<Sequence> owned = scheduler_.remove(sequence);
  ++(how == Finish::kCancelled ? stats_.cancelled : stats_.finished);
  answerer_.finish(*owned, how);
}

void Stepper::fail(Sequence* sequence, const std::string& message, bool device) {
  const std::unique_ptr<Sequence> owned = scheduler_.remove(sequence);
  ++stats_.failed;
  answerer_.fail(*owned, message, device);
}

void Stepper::cancel(uint64_t id) {
  if (Sequence* sequence = scheduler_.find(id)) end(sequence, Finish::kCancelled);
}

void Stepper::cancel_all() {
  for (Sequence* sequence : scheduler_.all()) end(sequence, Finish::kCancelled);
}

void Stepper::fail_all(const std::string& message, bool device) {
  for (Sequence* sequence : scheduler_.all()) fail(sequence, message, device);
}

// Images.

bool Stepper::encode(Sequence& sequence, PromptImage& image) {
  const auto known = std::ranges::find(recent_images_, image.hash, &std::pair<uint64_t, Model::ImageEmbeddings>::first);
  if (known != recent_images_.end()) {
    std::rotate(recent_images_.begin(), known, known + 1);
    image.soft = recent_images_.front().second;
    return true;
  }
  const Clock::time_point start = Clock::now();
  try {
    const Patches& patches = *image.patches;
    image.soft = model_.encode({patches.values.data(), patches.xy.data(), patches.grid_w * patches.grid_h});
    CHECK(image.soft.rows.rows() == image.end - image.begin);
  } catch (const DeviceError&) {
    throw;
  } catch (const Error& error) {
    fail(&sequence, error.what(), false);
    return false;
  } catch (const std::bad_alloc&) {
    fail(&sequence, "there is no memory for this image", false);
    return false;
  }
  if (recent_images_.size() == kRecentImages) recent_images_.pop_back();
  recent_images_.insert(recent_images_.begin(), {image.hash, image.soft});
  const double spent = milliseconds_since(start);
  sequence.usage.image_ms += spent;
  stats_.image_ms += spent;
  ++stats_.images_encoded;
  return true;
}

// Encodes every image that the step computes. A sequence whose image fails leaves the step.
void Stepper::encode_images(Step& step) {
  std::erase_if(step.parts, [&](const Step::Part& part) {
    Sequence& sequence = *part.sequence;
    if (!sequence.started) {
      sequence.started = true;
      sequence.scheduled = Clock::now();
      stats_.prompt_tokens += sequence.usage.prompt_tokens;
      stats_.cached_tokens += sequence.usage.cached_tokens;
      stats_.prefix_hits += sequence.usage.cached_tokens > 0;
    }
    for (PromptImage& image : sequence.images) {
      if (image.soft.rows || image.begin < part.begin || image.begin >= part.begin + part.count) continue;
      if (!encode(sequence, image)) return true;
    }
    return false;
  });
}

// Forward.

// Tells the model where the sequence's pages are. Sliding pages stand at their index modulo the table's width, which is
// at least as wide as the stretch of pages that live at a time.
void Stepper::place(Sequence& sequence) {
  PageTable& table = sequence.table;
  if (!table.changed) return;
  table.changed = false;
  model_.set_pages(kFull, sequence.slot, table.pages[kFull]);
  const std::vector<int32_t>& sliding = table.pages[kSliding];
  const int width = model_.options().pages_per_seq[kSliding];
  CHECK(static_cast<int>(sliding.size()) - table.first_sliding <= width);
  page_list_.assign(width, 0);
  for (size_t i = table.first_sliding; i < sliding.size(); ++i) page_list_[i % width] = sliding[i];
  model_.set_pages(kSliding, sequence.slot, page_list_);
}

void Stepper::append(const Step::Part& part) {
  Sequence& sequence = *part.sequence;
  const Config& config = model_.config();
  auto image = sequence.images.begin();
  for (int pos = part.begin; pos < part.begin + part.count; ++pos) {
    while (image != sequence.images.end() && image->end <= pos) ++image;
    const bool soft = image != sequence.images.end() && image->begin <= pos;
    if (soft) {
      if (pos == image->begin) batch_.soft.push_back(image->soft.rows);
      batch_.image_index.push_back(static_cast<int32_t>(batch_.ids.size()));
    }
    append_row(batch_, config, sequence.ids[pos], sequence.slot, pos, soft ? image->end - 1 : -1);
  }
  if (!part.last) return;
  batch_.logit_rows.push_back(static_cast<int32_t>(batch_.ids.size()) - 1);
  SamplingInput sampling{sequence.sampling};
  sampling.step = sequence.ids.size() - sequence.prompt;
  sampling.counts = sequence.counts;
  sampling.bias = sequence.bias;
  if (sequence.grammar) sampling.allowed = sequence.grammar->mask();
  batch_.sampling.push_back(sampling);
}

void Stepper::fill_batch(const Step& step) {
  batch_.ids.clear();
  for (auto& rows : batch_.rows) rows.clear();
  batch_.image_index.clear();
  batch_.soft.clear();
  batch_.logit_rows.clear();
  batch_.sampling.clear();
  for (const Step::Part& part : step.parts) {
    place(*part.sequence);
    append(part);
  }
}

void Stepper::step() {
  Step step = scheduler_.next();
  encode_images(step);
  for (const PageCopy& copy : step.copies) model_.copy_page(copy.kind, copy.from, copy.to);
  if (step.parts.empty()) return;
  fill_batch(step);
  const Clock::time_point start = Clock::now();
  const std::vector<int32_t> tokens = model_.forward(batch_);
  const bool logprobs =
      std::ranges::any_of(step.parts, [](const Step::Part& part) { return part.last && part.sequence->logprobs >= 0; });
  if (logprobs) {
    logits_.resize(static_cast<size_t>(model_.options().logits_max) * model_.config().vocab);
    model_.read_logits(logits_.data());
  }
  stats_.forward_ms += milliseconds_since(start);
  ++stats_.steps;
  stats_.computed_tokens += batch_.ids.size();
  commit(step, tokens);
}

void Stepper::commit(const Step& step, const std::vector<int32_t>& tokens) {
  scheduler_.computed(step);
  const size_t vocab = model_.config().vocab;
  size_t row = 0;
  for (const Step::Part& part : step.parts) {
    if (!part.last) continue;
    Sequence& sequence = *part.sequence;
    std::span<const float> logits;
    if (sequence.logprobs >= 0) logits = std::span(logits_).subspan(row * vocab, vocab);
    ++stats_.generated_tokens;
    if (const auto finish = answerer_.accept(sequence, tokens[row++], logits)) end(&sequence, *finish);
  }
}

EngineStats Stepper::stats() const {
  EngineStats stats = stats_;
  stats.waiting = scheduler_.waiting();
  stats.running = scheduler_.running();
  stats.preemptions = scheduler_.preemptions();
  for (const AttentionKind kind : {kSliding, kFull}) {
    stats.pages_total[kind] = pages_.total(kind);
    stats.pages_used[kind] = pages_.used(kind);
    stats.pages_cached[kind] = pages_.cached(kind);
  }
  return stats;
}

}  // namespace gemma4
