// Test support: runs the built gemma4 as a child process and returns its exit code and output.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/models_testing.h"

namespace gemma4 {

struct Ran {
  int code = -1;  // exit code; -1 - signal if a signal ended it
  std::string out, err;
};

struct RunSetting {
  std::string out_path = {};  // where standard output goes; empty: it is returned in Ran
  std::string input = {};     // standard input
  int64_t file_size = -1;     // limit of a file's size, in place of a full disk
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

inline void spill(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A folder that is removed at the end of the test.
struct Scratch {
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "gemma4_test_XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path = name;
  }
  ~Scratch() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

inline void redirect(const std::string& path, int flags, int to) {
  const int fd = open(path.c_str(), flags, 0600);
  if (fd < 0 || dup2(fd, to) < 0) _exit(99);
  close(fd);
}

inline Ran run_gemma4(const std::vector<std::string>& arguments, const RunSetting& setting = {}) {
  const Scratch scratch;
  const std::string in = scratch.path / "in", out = scratch.path / "out", err = scratch.path / "err";
  spill(in, setting.input);
  std::vector<char*> argv = {const_cast<char*>(GEMMA4_BINARY)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    redirect(in, O_RDONLY, STDIN_FILENO);
    redirect(setting.out_path.empty() ? out : setting.out_path, O_WRONLY | O_CREAT, STDOUT_FILENO);
    redirect(err, O_WRONLY | O_CREAT, STDERR_FILENO);
    if (setting.file_size >= 0) {
      signal(SIGXFSZ, SIG_IGN);  // so that writing fails with EFBIG, as it fails with ENOSPC on a full disk
      const rlimit limit = {static_cast<rlim_t>(setting.file_size), static_cast<rlim_t>(setting.file_size)};
      setrlimit(RLIMIT_FSIZE, &limit);
    }
    execv(argv[0], argv.data());
    _exit(98);
  }
  int status = 0;
  waitpid(child, &status, 0);
  Ran ran;
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1 - WTERMSIG(status);
  ran.out = slurp(out);
  ran.err = slurp(err);
  return ran;
}

}  // namespace gemma4
