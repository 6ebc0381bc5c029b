// OwnedTensors: allocates tensors and KV caches on a backend and releases them when it is destroyed.
#pragma once

#include <initializer_list>
#include <vector>

#include "backend/backend.h"

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
