// InputProcessor: a Request becomes Sequences, one for each choice, that only have to be computed. It checks the
// request, renders and tokenizes the conversation, and prepares the pictures: once, however many choices there are.
// Everything that can be wrong with a request is found here, on the thread that brought it. Any thread may call it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/output_processor.h"
#include "engine/prompt_images.h"
#include "engine/sequence.h"
#include "model/config.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct InputLimits {
  int image_budget = 0;      // default, tokens of one image
  int image_budget_max = 0;  // the largest that one pass can hold
  int images_max = 0;        // images of one request
  int max_seq_len = 0;
  bool vision = true;
  uint64_t seed = 0;                          // for requests that give none; 0: random
  int64_t prepared_bytes = int64_t{1} << 30;  // of pictures
  bool share_cache = false;                   // all salts are alike
  ChatTemplate chat_template = ChatTemplate::kJuly;
  int thinking_budget = -1;  // for requests that name none
  bool look_up = false;      // drafts come from the conversation itself (engine/drafts/ngram.h)
};

class InputProcessor {
 public:
  // All references must outlive this object.
  InputProcessor(const Tokenizer& tokenizer, const Config& config, const GenerationConfig& generation,
                 const InputLimits& limits, const OutputProcessor& output, ImageCache& images);

  // Request::n sequences, of choices 0, 1, ... Throws Error. This object must outlive them.
  std::vector<std::unique_ptr<Sequence>> make(const Request& request, const Sink& sink,
                                              const Preparation& preparation = {}) const;

  // The prompt that make() would compute, or would refuse as too long. Reads no more of the pictures than their
  // headers. Throws Error.
  std::vector<int32_t> prompt_ids(const Request& request, const Preparation& preparation = {}) const {
    return tokenize(request, preparation).ids;
  }

  uint64_t images_decoded() const { return images_.decoded(); }
  int64_t prepared_bytes() const { return prepared_.bytes(); }
  int waiting() const { return prepared_.waiting() + images_.waiting(); }  // for other requests' pictures to go
  uint64_t salt(const Request& request) const;  // of its client's key; 0 where there are no keys

 private:
  Prompt tokenize(const Request& request, const Preparation& preparation) const;
  void check_length(const Request& request, const Prompt& prompt, const Preparation& preparation) const;
  Prompt tokenize_pieces(const Request& request, const Preparation& preparation) const;
  std::vector<PromptImage> prepare_images(const Request& request, const Prompt& prompt,
                                          const Preparation& preparation) const;
  std::vector<TokenHash> hash_tokens(const std::vector<int32_t>& ids, const std::vector<PromptImage>& images) const;
  std::vector<Piece> pieces(const Request& request) const;
  ChatOptions chat_options(const Request& request) const;
  int budget(const Request& request) const;
  std::optional<Grammar> grammar(const Request& request, const Prompt& prompt, const CancelFlag& cancelled) const;
  Grammar compile(const Request& request, const GrammarOptions& options) const;
  void read_beginning(const Request& request, Grammar& grammar) const;
  void say_notes(const Grammar& grammar, const Request& request) const;
  std::unique_ptr<Sequence> make_choice(const Request& request, const Prompt& prompt, int choice,
                                        OutputParser parser) const;
  void check_ids(const std::vector<int32_t>& ids) const;

  const Tokenizer& tokenizer_;
  const Config& config_;
  const GenerationConfig& generation_;
  const InputLimits limits_;
  const OutputProcessor& output_;
  const PromptImages images_;
  mutable PreparedBytes prepared_;
  mutable std::once_flag vocabulary_once_;
  mutable std::shared_ptr<const GrammarVocabulary> vocabulary_;
};

}  // namespace gemma4
