#include "backend/ranks.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/mutex.h"
#include "distributed/process_group.h"

namespace gemma4 {
namespace {

// The first exception of several threads.
class FirstFailure {
 public:
  bool keep(std::exception_ptr failure) {  // false: it is not the first
    const MutexLock lock(mutex_);
    if (first_) return false;
    first_ = std::move(failure);
    return true;
  }
  void rethrow() {
    const MutexLock lock(mutex_);
    if (first_) std::rethrow_exception(first_);
  }

 private:
  Mutex mutex_;
  std::exception_ptr first_ GUARDED_BY(mutex_);
};

}  // namespace

Ranks::Ranks(std::unique_ptr<Backend> backend) {
  if (backend) backends_.push_back(std::move(backend));
}

Ranks::Ranks(Backend& backend) { backends_.emplace_back(std::shared_ptr<void>(), &backend); }

Ranks::Ranks(std::vector<std::unique_ptr<Backend>> backends) {
  for (auto& backend : backends) backends_.push_back(std::move(backend));
  for (int i = 0; i < size(); ++i) CHECK((*this)[i].rank() == i && (*this)[i].world() == size());
  if (size() > 1) threads_ = std::make_shared<ThreadPool>(size());
}

Ranks::Ranks(std::unique_ptr<Backend> backend, std::shared_ptr<ControlChannel> channel) : channel_(std::move(channel)) {
  CHECK(backend->rank() == channel_->rank() && backend->world() == channel_->world());
  // NCCL requires that the backends of all processes are destroyed at the same time.
  channel_->on_peer_lost([watched = backend.get()](const std::string& why) { watched->abort(why); });
  backends_.push_back({backend.release(), [channel = channel_](Backend* last) {
                         channel->end();
                         channel->on_peer_lost(nullptr);
                         delete last;
                       }});
}

Ranks Ranks::in_series(std::vector<std::unique_ptr<Backend>> devices) {
  CHECK(!devices.empty());
  Ranks one(std::move(devices.front()));
  for (size_t i = 1; i < devices.size(); ++i) one.series_.push_back(std::move(devices[i]));
  return one;
}

std::vector<Backend*> Ranks::devices(int rank) const {
  std::vector<Backend*> devices = {&(*this)[rank]};
  for (const auto& backend : series_) devices.push_back(backend.get());
  return devices;
}

int64_t Ranks::memory_used() const {
  int64_t bytes = 0;
  for (const auto& backend : backends_) bytes += backend->memory_used();
  for (const auto& backend : series_) bytes += backend->memory_used();
  return bytes;
}

void Ranks::replace(Backend& first) { backends_[0] = {std::shared_ptr<Backend>(backends_[0]), &first}; }

void Ranks::run(FunctionRef<void(int rank)> work) const {
  if (channel_) return run_with_channel(work);
  if (!threads_) return work(0);
  FirstFailure first;
  threads_->run([&](int rank) {
    try {
      work(rank);
    } catch (const std::exception& error) {
      if (!first.keep(std::current_exception())) return;  // the others fail because the first one did
      for (const auto& backend : backends_) backend->abort(error.what());
    }
  });
  first.rethrow();
}

void Ranks::fail(int code, const std::string& why) const {
  if (channel_) channel_->fail(code, why);
  for (const auto& backend : backends_) backend->abort(why);
}

void Ranks::run_with_channel(FunctionRef<void(int rank)> work) const {
  try {
    work(0);
  } catch (const DeviceError& error) {
    fail(kExitDevice, error.what());
    throw;
  } catch (const std::exception& error) {
    fail(kExitBadInput, error.what());
    throw;
  }
}

void join_ranks(const std::vector<std::unique_ptr<Backend>>& backends) {
  const auto group = std::make_shared<ProcessGroup>(static_cast<int>(backends.size()));
  for (size_t i = 0; i < backends.size(); ++i) backends[i]->join(group, static_cast<int>(i));
}

Ranks make_ranks(const std::string& name, int threads, int count) {
  if (count < 1) throw Error("a model runs on at least 1 device, not on " + std::to_string(count));
  if (count == 1) return make_backend(name, threads);
  if (name == "cuda") return Ranks(make_cuda_ranks(count));
  const int all = name == "cpu" ? ThreadPool::threads_for(threads) : count;
  std::vector<std::unique_ptr<Backend>> backends;
  for (int i = 0; i < count; ++i) backends.push_back(make_backend(name, std::max(1, all / count)));
  join_ranks(backends);
  return Ranks(std::move(backends));
}

Ranks make_ranks(const std::string& name, int threads, int count, const std::shared_ptr<ControlChannel>& channel) {
  if (!channel) return make_ranks(name, threads, count);
  if (name == "cuda") return {make_cuda_rank(*channel), channel};
  if (threads == 0) threads = std::max(1, ThreadPool::threads_for(0) / channel->process().local_world);
  std::unique_ptr<Backend> backend = make_backend(name, threads);
  backend->join(std::make_shared<ProcessGroup>(channel), channel->rank());
  return {std::move(backend), channel};
}

}  // namespace gemma4
