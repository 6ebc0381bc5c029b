// BackgroundWork: runs a function on a thread of its own, so that the thread of a connection can say meanwhile that it
// is still there. Called by endpoints that stream.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <string_view>
#include <thread>

#include "base/mutex.h"

namespace gemma4 {

class BackgroundWork {
 public:
  explicit BackgroundWork(std::function<void()> work);
  ~BackgroundWork() { thread_.join(); }
  BackgroundWork(const BackgroundWork&) = delete;
  BackgroundWork& operator=(const BackgroundWork&) = delete;

  bool wait_until(std::chrono::steady_clock::time_point deadline) EXCLUDES(mutex_);  // false: it is not done
  void get() EXCLUDES(mutex_);  // waits, and throws what the function threw

 private:
  void run(const std::function<void()>& work) EXCLUDES(mutex_);
  void done(std::exception_ptr error) EXCLUDES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  bool done_ GUARDED_BY(mutex_) = false;
  std::exception_ptr error_ GUARDED_BY(mutex_);
  std::thread thread_;  // goes first
};

// Whether a JSON body has "stream": true among the members of its object. Reads it once, without building a tree, and
// takes text that is no JSON too.
bool wants_stream(std::string_view body);

}  // namespace gemma4
