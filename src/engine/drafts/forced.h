// Which token does a grammar force? Where all tokens that a mask allows spell one text, the rest of an answer up to the
// end of that text is known. It is a draft that costs nothing. On a worker's thread.
#pragma once

#include <cstdint>
#include <span>

#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// Of the tokens allowed by `mask` (Grammar::mask()), the longest, if each of the others is a beginning of it: a model
// writes a text in its longest tokens. -1: the text is open, or more than kForcedChoicesMax tokens are allowed.
int32_t forced_token(const Tokenizer& tokenizer, std::span<const uint32_t> mask);

// One text has as many beginnings as its longest token has bytes, few of which are tokens.
constexpr int kForcedChoicesMax = 64;

}  // namespace gemma4
