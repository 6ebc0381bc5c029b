// Conversation: what was said in a chat so far, and the pictures that wait for the next message. Every turn sends all
// of it. A turn that fails leaves it as it was.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace gemma4 {

class Conversation {
 public:
  // `base`: a system message at most, tools, options; its pictures wait for the first message.
  explicit Conversation(const Request& base);

  Request request;                   // its messages and pictures are all that was said
  std::vector<std::string> pending;  // pictures for the next message

  void say(const std::string& text);  // the user's message, with the pending pictures
  void hear(const std::string& text, const std::string& thinking, const std::vector<ToolCall>& calls);

  // Calls of the last answer that have no result yet; add_result() gives the first of them one.
  std::vector<ToolCall> open_calls() const;
  void add_result(const std::string& text);

  // Forgets the user's last message and all that followed. Returns its text; nothing where there is none.
  std::optional<std::string> undo();
  bool drop_answer();  // of the last message or result, to ask again; false where there is nothing to ask

  void set_system(const std::string& text);  // empty: none
  std::string system() const;
  void clear();  // all but the system message, tools and options

  // While a turn is tried: what restore() goes back to.
  struct Mark {
    std::vector<Message> messages;
    std::vector<std::string> pending;
    size_t images;
  };
  Mark mark() const { return {request.messages, pending, request.images.size()}; }
  void restore(Mark mark);

  // As the body of a request to /v1/chat/completions: "messages" and "tools", pictures as data: URLs. load() takes what
  // save() wrote, or such a body that others wrote; throws Error and changes nothing where it is none.
  std::string save() const;
  void load(const std::string& text);

 private:
  size_t first() const;  // the first message that is not the system's
};

}  // namespace gemma4
