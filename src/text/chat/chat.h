// Chat: the chat template. Messages, tool declarations and images become pieces; pieces become token ids. The format is
// that of the chat templates which Google published for Gemma 4 31B, of spring and of July 2026 (of the large models:
// if thinking is off, an empty thought closes the generation prompt); tests/golden/chat holds what they render,
// docs/CHAT.md says where this differs. Text from outside is never parsed for control tokens: a user who writes <turn|>
// sends six characters, not an end of turn.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat/chat_template.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct ContentPart {
  enum Type { kText, kImage } type = kText;
  std::string text;  // kText
  // Images carry no data here: they are numbered 0, 1, ... in the order of the messages.
};

struct ToolCall {
  std::string id, name;
  std::string arguments;  // a JSON object as text; empty: no arguments
};

struct ToolResponse {
  std::string name;
  std::string response;  // JSON as text: an object's members are written, any other value becomes {value:...}
};

struct Message {
  std::string role;  // system, developer, user, assistant (or model), tool
  std::vector<ContentPart> content;
  std::string reasoning;                     // assistant: the thought before the answer
  std::vector<ToolCall> tool_calls;          // assistant
  std::vector<ToolResponse> tool_responses;  // assistant: answers held in the same message
  std::string tool_call_id, name;            // tool: the id of the call; the name of the tool if no call has that id

  static Message text(std::string role, std::string text);
};

struct ChatOptions {
  ChatTemplate chat_template = ChatTemplate::kJuly;  // a front end leaves this to the engine
  bool enable_thinking = false;
  bool preserve_thinking = false;  // keep the thoughts of earlier turns that called tools
  bool add_generation_prompt = true;
  bool continue_final = false;  // a last message of the assistant is the beginning of the answer, and stays open
};

struct Piece {
  enum Type {
    kText,     // text, never parsed for control tokens
    kControl,  // the name of one control token
    kImage,    // the position of an image
  } type = kText;
  std::string text;  // kText, kControl
  int image = -1;    // kImage: its number
};

// `tools`: a JSON array of {"type": "function", "function": {name, description, parameters}} as text, or empty.
// Throws Error for an unknown role, invalid JSON, or messages that the template cannot render.
std::vector<Piece> render_chat(std::span<const Message> messages, std::string_view tools, const ChatOptions& options);

struct BegunAnswer {
  std::string text;   // the prompt ends with it; empty where there is none
  std::string space;  // stood behind it. A prompt that ended with it would not be what the model has learnt, so the
                      // model writes it again, and the answer leaves it out
};
BegunAnswer begun_answer(std::span<const Message> messages, const ChatOptions& options);

// A prompt with its own markup: the names of control tokens in it are control tokens, <|image|> is the next image, and
// <bos> is added in front if it is missing.
std::vector<Piece> parse_raw(std::string_view prompt, const Tokenizer& tokenizer);

std::string to_text(std::span<const Piece> pieces);  // as the template renders it: an image is <|image|>

int count_images(std::span<const Piece> pieces);

struct ImageSpan {
  int image = 0;           // which image
  int begin = 0, end = 0;  // its soft tokens are ids[begin, end), without <|image> and <image|>
};

struct Prompt {
  std::vector<int32_t> ids;
  std::vector<ImageSpan> images;
};

// An image becomes <|image>, soft_tokens[image] times <|image|>, <image|>. Throws Error if the numbers of images and of
// soft-token counts differ, on invalid UTF-8, and if the vocabulary lacks a control token that a piece names.
// `between` is called before each piece; it may throw.
Prompt encode_pieces(const Tokenizer& tokenizer, std::span<const Piece> pieces, std::span<const int> soft_tokens,
                     const std::function<void()>& between = nullptr);

}  // namespace gemma4
