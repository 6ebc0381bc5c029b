// token_logprobs: the log-probability of a sampled token, and of its likeliest alternatives.
#pragma once

#include <cstdint>
#include <span>

#include "engine/request.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// Natural logarithm of softmax(logits) for `token` and for the `top` likeliest tokens.
TokenLogprobs token_logprobs(const Tokenizer& tokenizer, std::span<const float> logits, int32_t token, int top);

}  // namespace gemma4
