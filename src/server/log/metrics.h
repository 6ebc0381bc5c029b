// Metrics: the server's counters and histograms, in Prometheus' text format. Histograms are lock-free, because the
// engine's thread adds to them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/mutex.h"
#include "engine/engine.h"
#include "server/http/http.h"

namespace gemma4 {

class Histogram {
 public:
  static constexpr std::array<double, 16> kBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                                                     0.5,   1,     2,     5,    10,   20,   60,  300};  // seconds
  void add(double seconds);
  std::string text(const std::string& name, const std::string& help) const;

 private:
  std::array<std::atomic<uint64_t>, kBounds.size() + 1> counts_ = {};
  std::atomic<uint64_t> sum_us_ = 0;
};

struct Metrics {
  Histogram first_token, between_pieces, whole_request;
  std::atomic<int> streams = 0;  // in progress
  std::atomic<uint64_t> preparations = 0;  // turns of requests to be read and prepared

  void answered(const std::string& route, int status);  // counts one answered HTTP request
  std::string text(const EngineStats& engine, const HttpStats& http) const;

 private:
  mutable Mutex mutex_;
  std::map<std::pair<std::string, int>, uint64_t> answered_ GUARDED_BY(mutex_);
};

}  // namespace gemma4
