// OwnedTensors: allocates tensors and KV caches on a backend and releases them when it is destroyed. The host's memory
// is taken where it is touched; populate() takes that of the first rows before.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "backend/backend.h"
#include "backend/host_memory.h"

namespace gemma4 {

class OwnedTensors {
 public:
  explicit OwnedTensors(Backend& backend) : be_(backend) {}
  ~OwnedTensors() { clear(); }
  OwnedTensors(const OwnedTensors&) = delete;
  OwnedTensors& operator=(const OwnedTensors&) = delete;

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) {
    tensors_.push_back(be_.alloc(type, shape));
    return tensors_.back();
  }

  KvCache kv_alloc(const KvCacheConfig& config) {
    caches_.push_back(be_.kv_alloc(config));
    return caches_.back();
  }

  // Whether alloc() takes no memory yet.
  bool lazy() const { return be_.memory_left().shared; }

  // Takes the memory of the first `rows` rows (slots) of each. Any thread may call it, but not during alloc() and
  // clear(). Does nothing where memory is not lazy().
  void populate(int64_t rows) const {
    if (!lazy()) return;
    const auto take = [&](const Tensor& t) {
      const Tensor first = t.slice(0, std::min(rows, t.rows()));
      populate_memory(first.data, first.bytes());
    };
    for (const Tensor& t : tensors_) take(t);
    for (const KvCache& kv : caches_) take(kv.k), take(kv.v);
  }

  void clear() {
    for (const Tensor& t : tensors_) be_.release(t);
    for (const KvCache& kv : caches_) be_.kv_release(kv);
    tensors_.clear();
    caches_.clear();
  }

 private:
  Backend& be_;
  std::vector<Tensor> tensors_;
  std::vector<KvCache> caches_;
};

}  // namespace gemma4
