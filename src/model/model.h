// Model: Config and weights on a Backend, or split over several. forward() runs one Batch through the text decoder,
// encode() one image through the vision tower. It knows nothing of text, pixels, requests or time: the caller owns page
// tables and positions. If each rank is a process, rank 0's Model sends the others what all must do (rank_commands.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/ranks.h"
#include "checkpoint/checkpoint.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/placement.h"

namespace gemma4 {

struct ModelOptions {
  int rows_max = 2048;  // rows of one forward pass; at least 1 and, with images, the largest image budget + 2
  int logits_max = 8;   // rows whose logits one pass may want
  int seqs_max = 1;     // sequences that may have pages at a time
  int page = 64;        // tokens in a page
  int pages[kAttentionKinds] = {0, 0};          // pages in each pool
  int pages_per_seq[kAttentionKinds] = {0, 0};  // width of the page tables; see ring_pages()
  bool vision = true;                           // false: the vision tower is not loaded
  // Over devices in series (backend/ranks.h): how many layers each but the last has, or kAsManyAsFit; the last has the
  // rest. Empty: each has its share by free memory.
  std::vector<int> device_layers;
  // The drafter of Model::draft() (checkpoint/drafter.h opens it), read while the model is constructed; or none.
  const Checkpoint* drafter = nullptr;
};

// What the key-value caches can take, once the weights and activations have their memory. Over several ranks: of the
// one with the least.
struct CacheMemory {
  int64_t free = 0;                              // bytes
  int64_t page_bytes[kAttentionKinds] = {0, 0};  // a page in all layers of that kind
};

// Sets pages and pages_per_seq of the options.
using PlanCaches = std::function<void(ModelOptions& options, const CacheMemory& memory)>;

// Pages that one sequence needs. Sliding layers keep a ring with room for the window and a whole chunk, so that the
// last row of a chunk overwrites no key that its first row reads. Full layers keep everything.
int ring_pages(const Config& config, int rows_max, int page);
int flat_pages(int max_seq_len, int page);

// Options for `seqs` sequences of up to max_seq_len tokens each, all pages owned.
ModelOptions options_for(const Config& config, int max_seq_len, int rows_max, int seqs);

// An image as the vision tower reads it (made by image/patches.h).
struct PatchView {
  const float* values;  // [n, 3 * patch * patch] in [0, 1]
  const int32_t* xy;    // [n, 2] column, row
  int n;
};

constexpr int kDraftTokensMax = 16;  // that one call of Model::draft() makes for a row

// A sequence whose next tokens are to be drafted.
struct DraftRow {
  int seq;         // its slot
  int32_t token;   // its last token, whose K and V are not in the cache yet
  int position;    // of that token; at least 1
  int hidden_row;  // index into the last forward()'s logit_rows: the row whose logits drew `token`
};

class Model {
 public:
  // `config` is the checkpoint's, parsed. Where `plan` is given, it is called on this thread after the weights are
  // loaded and before the caches are allocated; and with copies of the options while it is found how many layers fit on
  // a device. Throws Error.
  Model(const Checkpoint& checkpoint, const Config& config, const Ranks& ranks, const ModelOptions& options,
        const PlanCaches& plan = nullptr);
  ~Model();

  const Config& config() const;
  const ModelOptions& options() const;
  Backend& backend() const;  // has the embeddings of images
  // What is where, in one sentence, if the model is spread over devices in series; else empty.
  std::string placement() const;

  // Sets the pages of sequence `seq` in the pool of `kind`. For sliding layers, whose pages are a ring, their number
  // must never change.
  void set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages);

  // Page `to` of the pool of `kind` becomes a copy of page `from`, in every layer of that kind.
  void copy_page(AttentionKind kind, int32_t from, int32_t to);

  // Computes all rows; returns the sampled ids [logit_rows] (empty where batch.sampling is). The logits of the last
  // call stay readable until the next.
  std::vector<int32_t> forward(const Batch& batch);
  void read_logits(float* out) const;  // [logit_rows, vocabulary], after softcap

  // Whether draft() may be called: ModelOptions::drafter was given.
  bool has_drafter() const;

  // The next `count` tokens of each row, greedy: [rows, count]. At most seqs_max rows; 1 to kDraftTokensMax tokens. It
  // must follow a forward() that computed the hidden rows, and reads the caches without writing them: of sliding layers
  // the keys position - 1 - window .. position - 1 (one more than the target's window), of full layers 0 .. position
  // - 1.
  std::vector<int32_t> draft(std::span<const DraftRow> rows, int count);

  // Rows of the stream for these ids, as forward() makes them: [ids, hidden] on the backend, kept as encode()'s are.
  struct ImageEmbeddings {
    Tensor rows;
    std::shared_ptr<const void> hold;
  };
  ImageEmbeddings embed(std::span<const int32_t> ids);

  // Embeddings of one image: [n / pool^2, hidden] on the backend, valid until the Tensor's owner drops `hold`.
  // Throws Error where a position lies outside the position table.
  ImageEmbeddings encode(const PatchView& patches);
  // The same in parts, so that a large image does not delay other work: begin_image() drops an image that is not
  // finished; encode_more() computes about as much as so many rows of a prompt take, at least something, and returns
  // the embeddings once nothing is left. The patches are not read after begin_image().
  void begin_image(const PatchView& patches);
  std::optional<ImageEmbeddings> encode_more(int rows);
  int image_rows(int patches) const;  // how many rows of a prompt take as long: by multiply-adds, at least 1

  // The host gives memory where it is touched; an engine step should not wait for it. reserve_images() allocates the
  // tower's buffers for pictures of at most so many patches, where that takes no memory yet; call it before anything
  // else. populate() takes the memory that computing so many rows, at most rows_max, and a picture of so many patches,
  // or 0, will touch: any thread may call it at any time. Caches and a device's memory are left alone.
  void reserve_images(int patches_max);
  void populate(int rows, int patches) const;
  void encode_again();  // runs the tower once more on the last image, already on the backend; for measuring

  int64_t cache_bytes() const;    // of the caches' pages, on all ranks of this process
  int64_t weights_bytes() const;  // on all ranks of this process, also where they lie in mapped files

  // Bytes of the weights that one step of one row reads on rank 0, as the backend stores them (bench).
  int64_t step_bytes() const;

  // Median seconds of each stage of this batch run by itself, and of the copies between them (bench).
  struct PartTime {
    std::string what;
    double seconds;
  };
  std::vector<PartTime> time_parts(const Batch& batch, int repeat);

  // Called with every named activation of rank 0 while set: "embed", "layers.3.out", "norm", "vision.layers.0.out",
  // ..., and by draft() with "draft.logits" and "draft.hidden" of each step. `backend` has x (tests, eval).
  std::function<void(Backend& backend, const std::string& name, int layer, const Tensor& x)> tap;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma4
