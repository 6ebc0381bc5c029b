#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace gemma4 {
namespace {

std::string without_nul(const std::string& text) {
  std::string shown;
  for (const char c : text) c == '\0' ? shown += "\\0" : shown += c;
  return shown;
}

}  // namespace

Error::Error(const std::string& message) : std::runtime_error(without_nul(message)) {}

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: CHECK(%s) failed: this is a bug in gemma4\n", file, line, condition);
  std::abort();
}

}  // namespace gemma4
