#include "cli/terminal/path_text.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "base/check.h"

namespace gemma4 {
namespace {

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n"), end = text.find_last_not_of(" \t\n");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin, end - begin + 1);
}

// `quote`: of the part that is not closed, or 0.
std::string unquoted(std::string_view text, char& quote) {
  std::string path;
  quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == 0 && (c == '\'' || c == '"')) {
      quote = c;
    } else if (c == quote) {
      quote = 0;
    } else if (c == '\\' && quote != '\'' && i + 1 < text.size()) {
      path += text[++i];
    } else {
      path += c;
    }
  }
  return path;
}

}  // namespace

std::string expand_home(const std::string& path) {
  const char* home = std::getenv("HOME");
  if (home == nullptr || (path != "~" && !path.starts_with("~/"))) return path;
  return home + path.substr(1);
}

std::string typed_path(std::string_view text) {
  const std::string_view whole = trimmed(text);
  std::error_code ignored;
  if (whole.find('\\') == std::string_view::npos && std::filesystem::exists(whole, ignored)) return std::string(whole);
  char quote;
  const std::string path = unquoted(whole, quote);
  if (quote == 0) return expand_home(path);
  if (whole.front() != quote) return expand_home(std::string(whole));  // an apostrophe in a name
  throw Error("the quote " + std::string(1, quote) + " is not closed");
}

std::string typeable_path(const std::string& path) {
  std::string text;
  for (const char c : path) {
    if (std::string_view(" \t\\'\"").find(c) != std::string_view::npos) text += '\\';
    text += c;
  }
  return text;
}

std::vector<std::string> paths_beginning(std::string_view text) {
  namespace fs = std::filesystem;
  char quote;
  const std::string typed = unquoted(text, quote);
  const size_t slash = typed.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : typed.substr(0, slash + 1);
  const std::string begin = typed.substr(folder.size());
  std::vector<std::string> found;
  std::error_code failed;
  for (fs::directory_iterator at(folder.empty() ? "." : expand_home(folder), failed), end; !failed && at != end;
       at.increment(failed)) {
    const std::string name = at->path().filename();
    if (!name.starts_with(begin) || (name.starts_with('.') && !begin.starts_with('.'))) continue;
    std::error_code ignored;
    found.push_back(typeable_path(folder + name) + (at->is_directory(ignored) ? "/" : ""));
  }
  std::ranges::sort(found);
  return found;
}

}  // namespace gemma4
