// LineEditor: one message of the user at a time, from a terminal. With libedit lines are edited, with history and
// completion, and what is pasted is one message, whatever lines it has. Without it, or on a dumb terminal, lines come
// as the terminal's driver gives them.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/terminal/style.h"

namespace gemma4 {

// What is added to `before`, the text before the cursor, in place of its last `replaced` bytes.
struct LineCompletion {
  size_t replaced = 0;
  std::vector<std::string> candidates;
};

struct LineEditorOptions {
  std::filesystem::path history;  // empty: none is kept
  TerminalStyle style;
  std::function<LineCompletion(const std::string& before)> complete;
  const std::atomic<bool>* interrupted = nullptr;  // set by the handler of SIGINT
};

class LineEditor {
 public:
  enum class Result { kText, kInterrupted, kEnd, kCut };

  explicit LineEditor(LineEditorOptions options);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // kInterrupted: `text` is what was typed until then. kCut: the terminal's driver dropped the end of a line, so that
  // `text` is not whole.
  Result read(std::string& text);

  // While an answer is printed: what is typed is neither shown nor cut, and read() finds it.
  void hide_typing();

  bool edits() const;                  // with libedit
  const std::string& problem() const;  // of the history, once; else empty

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string line_editor_name();  // "libedit"; empty where this build has none

// Text between the marks of bracketed paste, as a message takes it: line feeds for carriage returns, no control
// characters.
std::string cleaned_paste(const std::string& bytes);

}  // namespace gemma4
