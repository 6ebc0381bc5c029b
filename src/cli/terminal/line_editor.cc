#include "cli/terminal/line_editor.h"

#include <langinfo.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cstdio>
#include <map>
#include <string_view>

#ifdef GEMMA4_LIBEDIT
#include <histedit.h>
#endif

#include "base/utf8.h"
#include "cli/terminal/history.h"
#include "cli/terminal/terminal_input.h"

namespace gemma4 {
namespace {

using Got = TerminalInput::Got;
using Result = LineEditor::Result;

constexpr size_t kDriverLineMax = 4095;  // of a terminal's driver (N_TTY_BUF_SIZE), without the line feed

// A paste of more than this is shown as one short mark: a screen has few lines, and drawing them takes time.
constexpr ptrdiff_t kShownLines = 8;
constexpr size_t kShownBytes = 1000;

size_t characters(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
}

void put_error(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stderr); }

// Lines as the terminal's driver gives them. Without libedit pastes still come as one, where the terminal marks them.
Result read_plain_line(TerminalInput& input, std::string& line) {
  const std::string begins = TerminalInput::kPasteBegins;
  size_t line_began = 0;
  bool cut = false;
  while (true) {
    char byte;
    const Got got = input.next(byte);
    if (got == Got::kInterrupted) return Result::kInterrupted;
    if (got == Got::kEnd) return line.empty() ? Result::kEnd : Result::kText;
    if (got != Got::kByte) continue;
    if (byte == '\n') {
      cut |= line.size() - line_began >= kDriverLineMax;
      return cut ? Result::kCut : Result::kText;
    }
    line += byte;
    if (!line.ends_with(begins)) continue;
    line.resize(line.size() - begins.size());
    std::string bytes;
    if (input.paste(bytes) == Got::kInterrupted) return Result::kInterrupted;
    for (size_t at = 0; at < bytes.size();) {
      const size_t end = std::min(bytes.find('\n', at), bytes.size());
      cut |= end - at >= kDriverLineMax - begins.size();
      at = end + 1;
    }
    line += cleaned_paste(bytes);
    line_began = line.size();
  }
}

}  // namespace

std::string cleaned_paste(const std::string& bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const bool line_ends = bytes[i] == '\r' && (i + 1 == bytes.size() || bytes[i + 1] != '\n');
    text += line_ends ? '\n' : bytes[i];
  }
  text = without_controls(utf8_repair(text));
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

struct LineEditor::Impl {
  explicit Impl(LineEditorOptions given)
      : options(std::move(given)), history(options.history), input(options.interrupted) {}

  LineEditorOptions options;
  LineHistory history;
  TerminalInput input;
  std::string problem;
  bool marks_pastes = false;
  termios cooked = {};
  bool has_cooked = false, hidden = false;

  void mark_pastes(bool on) const {
    if (marks_pastes) put_error(on ? TerminalInput::kPasteOn : TerminalInput::kPasteOff);
  }
  void show_typing() {
    if (hidden) tcsetattr(STDIN_FILENO, TCSADRAIN, &cooked);
    hidden = false;
  }

#ifdef GEMMA4_LIBEDIT
  EditLine* el = nullptr;
  History* lines = nullptr;
  FILE* out = nullptr;
  std::string prompt;
  bool was_interrupted = false;
  std::map<std::string, std::string> pastes;  // by the mark that stands for them

  bool start();
  void bind_keys() const;
  void remember(const std::string& line) const {
    HistEvent event;
    ::history(lines, &event, H_ENTER, line.c_str());
  }
  int read_character(wchar_t* out_character);
  Result read_edited(std::string& line, bool continued);
  void insert_paste();
  unsigned char complete();
  void list(const std::vector<std::string>& candidates) const;
  std::string expanded(std::string line) const;

  static Impl* of(EditLine* edited) {
    void* data = nullptr;
    el_get(edited, EL_CLIENTDATA, &data);
    return static_cast<Impl*>(data);
  }
#endif
};

#ifdef GEMMA4_LIBEDIT

std::string line_editor_name() { return "libedit"; }

namespace {

// libedit shows and moves over characters as the locale has them; what people type is UTF-8.
bool use_utf8() {
  for (const char* locale : {"", "C.UTF-8"}) {
    if (std::setlocale(LC_CTYPE, locale) != nullptr && std::string_view(nl_langinfo(CODESET)) == "UTF-8") return true;
  }
  return false;
}

}  // namespace

bool LineEditor::Impl::start() {
  if (!is_smart_terminal(STDIN_FILENO) || !isatty(STDERR_FILENO) || !use_utf8()) return false;
  const int descriptor = dup(STDERR_FILENO);
  if (descriptor < 0 || (out = fdopen(descriptor, "w")) == nullptr) return false;  // buffered, unlike stderr
  if ((el = el_init("gemma4", stdin, out, out)) == nullptr) return false;
  lines = history_init();
  HistEvent event;
  ::history(lines, &event, H_SETSIZE, static_cast<int>(LineHistory::kEntriesMax));
  ::history(lines, &event, H_SETUNIQUE, 1);
  for (const std::string& entry : history.entries()) remember(entry);
  el_set(el, EL_CLIENTDATA, this);
  el_set(
      el, EL_PROMPT_ESC, +[](EditLine* edited) { return of(edited)->prompt.data(); }, '\1');
  el_set(el, EL_HIST, ::history, lines);
  el_wset(
      el, EL_GETCFN, +[](EditLine* edited, wchar_t* character) { return of(edited)->read_character(character); });
  bind_keys();
  return true;
}

void LineEditor::Impl::bind_keys() const {
  using Function = unsigned char (*)(EditLine*, wint_t);
  el_set(el, EL_EDITOR, "emacs");
  // The wide call keeps what it is given; the narrow one makes a copy of each name that nothing frees.
  el_wset(el, EL_ADDFN, L"gemma4-paste", L"what a terminal pastes", static_cast<Function>([](EditLine* edited, wint_t) {
            of(edited)->insert_paste();
            return static_cast<unsigned char>(CC_REFRESH);
          }));
  el_wset(el, EL_ADDFN, L"gemma4-complete", L"complete",
          static_cast<Function>([](EditLine* edited, wint_t) { return of(edited)->complete(); }));
  el_wset(el, EL_ADDFN, L"gemma4-line-feed", L"a line feed", static_cast<Function>([](EditLine* edited, wint_t) {
            el_insertstr(edited, "\n");
            return static_cast<unsigned char>(CC_REFRESH);
          }));
  constexpr const char* kKeys[][2] = {
      {"\t", "gemma4-complete"},     {"\033\r", "gemma4-line-feed"},     {"\033\n", "gemma4-line-feed"},
      {"\033[200~", "gemma4-paste"}, {"^R", "em-inc-search-prev"},       {"^W", "ed-delete-prev-word"},
      {"^U", "vi-kill-line-prev"},   {"\033[H", "ed-move-to-beg"},       {"\033[F", "ed-move-to-end"},
      {"\033OH", "ed-move-to-beg"},  {"\033OF", "ed-move-to-end"},       {"\033[1~", "ed-move-to-beg"},
      {"\033[4~", "ed-move-to-end"}, {"\033[3~", "ed-delete-next-char"}, {"\033[1;5C", "em-next-word"},
      {"\033[1;5D", "ed-prev-word"},
  };
  for (const auto& [key, function] : kKeys) el_set(el, EL_BIND, key, function, nullptr);
  el_source(el, nullptr);  // ~/.editrc, which comes last
}

int LineEditor::Impl::read_character(wchar_t* character) {
  std::string bytes;
  while (true) {
    char byte;
    switch (input.next(byte)) {
      case Got::kInterrupted:
        was_interrupted = true;
        return -1;
      case Got::kEnd:
        return 0;
      case Got::kResized:
        el_resize(el);
        el_set(el, EL_REFRESH);
        continue;
      case Got::kSuspend:
        mark_pastes(false);
        el_set(el, EL_PREP_TERM, 0);
        TerminalInput::suspend();
        el_set(el, EL_PREP_TERM, 1);
        mark_pastes(true);
        el_set(el, EL_REFRESH);
        continue;
      case Got::kByte:
        bytes += byte;
    }
    if (utf8_length(bytes) > 0) {
      *character = static_cast<wchar_t>(utf8_point(bytes));
      return 1;
    }
    if (utf8_complete(bytes) == bytes.size()) {  // no beginning of a character
      *character = L'\ufffd';
      return 1;
    }
  }
}

void LineEditor::Impl::insert_paste() {
  std::string bytes;
  if (input.paste(bytes) != Got::kByte) return;  // the next character is not there either
  const std::string text = cleaned_paste(bytes);
  const ptrdiff_t feeds = std::ranges::count(text, '\n');
  if (feeds < kShownLines && text.size() <= kShownBytes) {
    el_insertstr(el, text.c_str());
    return;
  }
  const std::string mark = "[pasted text " + std::to_string(pastes.size() + 1) + ": " + std::to_string(feeds + 1) +
                           (feeds == 0 ? " line, " : " lines, ") + std::to_string(text.size()) + " bytes]";
  pastes[mark] = text;
  el_insertstr(el, mark.c_str());
}

unsigned char LineEditor::Impl::complete() {
  const LineInfo* info = el_line(el);
  const std::string before(info->buffer, info->cursor);
  const LineCompletion found = options.complete ? options.complete(before) : LineCompletion();
  if (found.candidates.empty()) return CC_ERROR;
  std::string common = found.candidates.front();
  for (const std::string& candidate : found.candidates) {
    const auto [end, other] = std::ranges::mismatch(common, candidate);
    common.erase(end, common.end());
  }
  common.resize(utf8_complete(common));
  const std::string typed = before.substr(before.size() - found.replaced);
  const bool only = found.candidates.size() == 1;
  if (only && !common.ends_with('/')) common += ' ';
  if (common.size() > typed.size() || only) {
    if (!typed.empty()) el_deletestr(el, static_cast<int>(characters(typed)));
    el_insertstr(el, common.c_str());
    return CC_REFRESH;
  }
  list(found.candidates);
  return CC_REDISPLAY;
}

void LineEditor::Impl::list(const std::vector<std::string>& candidates) const {
  constexpr size_t kMost = 100;
  std::fputc('\n', out);
  for (size_t i = 0; i < std::min(candidates.size(), kMost); ++i) {
    std::fprintf(out, "%s%s", i == 0 ? "" : "  ", without_controls(candidates[i]).c_str());
  }
  if (candidates.size() > kMost) std::fprintf(out, "  and %zu more", candidates.size() - kMost);
  std::fputc('\n', out);
}

std::string LineEditor::Impl::expanded(std::string line) const {
  for (const auto& [mark, text] : pastes) {
    for (size_t at = 0; (at = line.find(mark, at)) != std::string::npos; at += text.size()) {
      line.replace(at, mark.size(), text);
    }
  }
  return line;
}

Result LineEditor::Impl::read_edited(std::string& line, bool continued) {
  const TerminalInput::Signals signals(true);
  const TerminalStyle& style = options.style;
  const auto hidden_part = [](const char* sequence) { return *sequence ? "\1" + std::string(sequence) + "\1" : ""; };
  prompt = hidden_part(style.bold) + (continued ? ". " : "> ") + hidden_part(style.plain);
  was_interrupted = false;
  int count = 0;
  const char* got = el_gets(el, &count);
  if (was_interrupted) {
    const LineInfo* info = el_line(el);
    line.assign(info->buffer, info->lastchar);
    input.drop();
    std::fputc('\n', out);
    std::fflush(out);
    return Result::kInterrupted;
  }
  if (got == nullptr || count <= 0) return Result::kEnd;
  line.assign(got, static_cast<size_t>(count));
  if (line.ends_with('\n')) line.pop_back();
  return Result::kText;
}

#else

std::string line_editor_name() { return ""; }

#endif

LineEditor::LineEditor(LineEditorOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {
  impl_->has_cooked = tcgetattr(STDIN_FILENO, &impl_->cooked) == 0;
#ifdef GEMMA4_LIBEDIT
  if (!impl_->start()) impl_->el = nullptr;
#endif
  impl_->marks_pastes = is_smart_terminal(STDERR_FILENO);
  impl_->mark_pastes(true);
  impl_->problem = impl_->history.problem();
}

LineEditor::~LineEditor() {
  impl_->show_typing();
  impl_->mark_pastes(false);
#ifdef GEMMA4_LIBEDIT
  if (impl_->el != nullptr) el_end(impl_->el);
  if (impl_->lines != nullptr) history_end(impl_->lines);
  if (impl_->out != nullptr) std::fclose(impl_->out);
#endif
}

bool LineEditor::edits() const {
#ifdef GEMMA4_LIBEDIT
  return impl_->el != nullptr;
#else
  return false;
#endif
}

const std::string& LineEditor::problem() const { return impl_->problem; }

void LineEditor::hide_typing() {
  if (!edits() || !impl_->has_cooked) return;
  termios quiet = impl_->cooked;
  quiet.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
  quiet.c_cc[VMIN] = 1, quiet.c_cc[VTIME] = 0;
  impl_->hidden = tcsetattr(STDIN_FILENO, TCSADRAIN, &quiet) == 0;
}

Result LineEditor::read(std::string& text) {
  impl_->show_typing();
  text.clear();
  std::string typed;  // with marks for long pastes
  while (true) {
    std::string line;
    Result result;
    if (!edits()) put_error(typed.empty() ? "> " : ". ");
#ifdef GEMMA4_LIBEDIT
    result = edits() ? impl_->read_edited(line, !typed.empty()) : read_plain_line(impl_->input, line);
#else
    result = read_plain_line(impl_->input, line);
#endif
    if (result == Result::kInterrupted && !edits()) impl_->input.drop(), put_error("\n");
    typed += line;
    if (result == Result::kInterrupted) text = typed;
    if (result != Result::kText) return result;
    if (!typed.ends_with('\\')) break;
    typed.back() = '\n';
  }
#ifdef GEMMA4_LIBEDIT
  if (edits() && !typed.empty()) impl_->remember(typed);
  text = edits() ? impl_->expanded(typed) : typed;
#else
  text = typed;
#endif
  impl_->history.add(text);
  impl_->problem = impl_->history.problem();
  return Result::kText;
}

}  // namespace gemma4
