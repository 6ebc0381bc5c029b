// AddedTokens: finds the tokens that are matched as whole strings before any merging: at the leftmost position, and
// there the longest. The flags single_word, lstrip and rstrip mean what they mean in the `tokenizers` library
// (src/tokenizer/added_vocabulary.rs).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
  bool control = false;  // never text: not matched where control tokens are not parsed
};

class AddedTokens {
 public:
  void add(const AddedToken& token, std::string_view pattern);

  struct Segment {
    std::string_view text;
    const AddedToken* token;  // null: plain text
  };
  // Splits `text` into matches and the text between them, in order. Joined, the segments are the text.
  std::vector<Segment> split(std::string_view text, bool parse_control) const;

  bool empty() const { return tokens_.empty(); }

 private:
  struct Node {
    int32_t child = 0, sibling = 0;  // node numbers, 0 for none
    int32_t token = -1;              // index into tokens_
    char byte = 0;
  };
  int32_t child(int32_t node, char byte) const;
  // The longest token that begins at text[at]; -1 for none.
  int32_t longest(std::string_view text, size_t at, size_t& length) const;

  std::vector<Node> nodes_{1};
  std::vector<AddedToken> tokens_;
  bool begins_[256] = {};  // whether a token begins with the byte
};

}  // namespace gemma4
