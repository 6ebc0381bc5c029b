// TerminalInput: bytes of standard input, one at a time, with an eye on the signals of a terminal: Ctrl-C, Ctrl-Z and a
// new window size end the wait for the next byte.
#pragma once

#include <atomic>
#include <string>

namespace gemma4 {

class TerminalInput {
 public:
  enum class Got { kByte, kEnd, kInterrupted, kResized, kSuspend };

  explicit TerminalInput(const std::atomic<bool>* interrupted) : interrupted_(interrupted) {}

  // While one lives, a new size and Ctrl-Z are reported in place of what they do by themselves.
  class Signals {
   public:
    explicit Signals(bool wanted);
    ~Signals();
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;

   private:
    bool wanted_;
  };

  Got next(char& byte);
  Got paste(std::string& bytes);  // up to the mark that ends it, which is read and left out
  void drop() { buffer_.clear(), at_ = 0; }

  static void suspend();  // this process, as Ctrl-Z would; returns when it goes on

  static constexpr const char* kPasteOn = "\033[?2004h";
  static constexpr const char* kPasteOff = "\033[?2004l";
  static constexpr const char* kPasteBegins = "\033[200~";
  static constexpr const char* kPasteEnds = "\033[201~";

 private:
  const std::atomic<bool>* interrupted_;
  std::string buffer_;
  size_t at_ = 0;
};

}  // namespace gemma4
