// LineHistory: what the user typed in earlier chats, and in this one. Kept in a file that only its owner may read; one
// entry a line, with \n for a line feed and \\ for a backslash.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace gemma4 {

class LineHistory {
 public:
  // An empty path keeps nothing. A file that cannot be read or written is said once in problem(), and is no error.
  explicit LineHistory(std::filesystem::path file);

  void add(const std::string& text);
  const std::vector<std::string>& entries() const { return entries_; }  // the oldest first
  const std::string& problem() const { return problem_; }

  static std::filesystem::path default_file();  // $XDG_STATE_HOME/gemma4/history; empty without a home

  static constexpr size_t kEntriesMax = 1000;
  static constexpr size_t kEntryBytesMax = 16384;  // longer ones are not kept in the file

 private:
  void load();
  void rewrite();

  std::filesystem::path file_;
  std::vector<std::string> entries_;
  std::string problem_;
};

}  // namespace gemma4
