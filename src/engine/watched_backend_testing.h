// WatchedBackend: wraps a backend for tests. It counts allocations and calls, and fails where a test wants it to.
#pragma once

#include <atomic>
#include <chrono>
#include <limits>
#include <memory>
#include <thread>

#include "backend/forwarding_backend.h"

namespace gemma4 {

struct Watch {
  std::atomic<int64_t> allocations{0};
  std::atomic<int64_t> samples{0};
  std::atomic<int64_t> linears{0};
  // These throw DeviceError from then on.
  std::atomic<int64_t> fail_at_sample{std::numeric_limits<int64_t>::max()};
  std::atomic<int64_t> fail_at_linear{std::numeric_limits<int64_t>::max()};
  std::atomic<int64_t> stop_at_linear{std::numeric_limits<int64_t>::max()};  // stands still until this is larger
};

class WatchedBackend : public ForwardingBackend {
 public:
  WatchedBackend(std::unique_ptr<Backend> inner, std::shared_ptr<Watch> watch)
      : ForwardingBackend(*inner), owned_(std::move(inner)), watch_(std::move(watch)) {}

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    ++watch_->allocations;
    return ForwardingBackend::alloc(type, shape);
  }
  void linear(Tensor out, Tensor x, const Matrix& w) override {
    if (++watch_->linears >= watch_->fail_at_linear) throw DeviceError("the device lost its memory");
    while (watch_->linears >= watch_->stop_at_linear) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ForwardingBackend::linear(out, x, w);
  }
  void linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch) override {
    Backend::linear_geglu(out, x, gate_up, scratch);  // through linear() above
  }
  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override {
    if (++watch_->samples >= watch_->fail_at_sample) throw DeviceError("the device fell off the bus");
    ForwardingBackend::sample(ids, logits, sampling);
  }
  // The ranks of a test are tied together by join() of this backend, not of the one inside.
  int rank() const override { return Backend::rank(); }
  int world() const override { return Backend::world(); }
  void all_reduce(Tensor x) override { Backend::all_reduce(x); }
  void broadcast(Tensor x) override { Backend::broadcast(x); }
  void gather_columns(Tensor x, std::span<const int64_t> begins) override { Backend::gather_columns(x, begins); }
  void abort(const std::string& why) override { Backend::abort(why); }

 private:
  std::unique_ptr<Backend> owned_;
  std::shared_ptr<Watch> watch_;
};

}  // namespace gemma4
