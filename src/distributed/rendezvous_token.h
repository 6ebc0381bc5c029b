// The token of a job: what its processes know and a stranger at rank 0's port does not. It comes from the variable
// GEMMA4_RENDEZVOUS_TOKEN. Without the variable, where all processes are on one host, rank 0 writes one to a file that
// only its user can read.
#pragma once

#include <filesystem>
#include <string>

#include "distributed/control_channel.h"

namespace gemma4 {

inline constexpr const char* kTokenVariable = "GEMMA4_RENDEZVOUS_TOKEN";
inline constexpr size_t kTokenLeast = 16;  // characters

// Where the file is: in XDG_RUNTIME_DIR if that is a folder, else in /tmp; named by user and port.
std::filesystem::path token_file(int port);

// Rank 0's token. Its file, if there is one, is removed with this object. Throws Error.
class OfferedToken {
 public:
  explicit OfferedToken(const ProcessInfo& process);
  ~OfferedToken();
  OfferedToken(const OfferedToken&) = delete;
  OfferedToken& operator=(const OfferedToken&) = delete;

  const std::string& text() const { return token_; }

 private:
  std::string token_;
  std::filesystem::path file_;
};

// The token of another rank. Rank 0 already listens. Throws Error.
std::string find_token(const ProcessInfo& process);

}  // namespace gemma4
