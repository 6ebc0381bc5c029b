#include "distributed/process_group.h"

#include <algorithm>
#include <cstring>

#include "distributed/host_collectives.h"

namespace gemma4 {
namespace {

void copy_rows(const Tensor& to, const Tensor& from) {
  CHECK(to.dtype == from.dtype && to.rows() == from.rows() && to.row_size() == from.row_size());
  const size_t bytes = static_cast<size_t>(to.row_size()) * dtype_size(to.dtype);
  for (int64_t i = 0; i < to.rows(); ++i) std::memcpy(to.slice(i, 1).data, from.slice(i, 1).data, bytes);
}

}  // namespace

void ProcessGroup::barrier() {
  const MutexLock lock(mutex_);
  if (aborted_) throw DeviceError(why_);
  const uint64_t meeting = generation_;
  if (++waiting_ == size()) {
    waiting_ = 0;
    ++generation_;
    wake_.notify_all();
    return;
  }
  while (generation_ == meeting && !aborted_) wake_.wait(mutex_);
  if (generation_ == meeting) throw DeviceError(why_);
}

void ProcessGroup::abort(const std::string& why) {
  if (channel_) channel_->fail(kExitDevice, why);
  const MutexLock lock(mutex_);
  if (aborted_) return;
  aborted_ = true;
  why_ = why;
  wake_.notify_all();
}

// Each rank sums a share of every row and writes it to all ranks' tensors.
void ProcessGroup::all_reduce(int rank, Tensor x) {
  if (channel_) return gemma4::all_reduce(*channel_, x);
  CHECK(x.dtype == DType::kF32);
  tensors_[static_cast<size_t>(rank)] = x;
  barrier();
  for (const Tensor& t : tensors_) CHECK(t.rows() == x.rows() && t.row_size() == x.row_size());
  const int64_t begin = x.row_size() * rank / size(), end = x.row_size() * (rank + 1) / size();
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0;
      for (const Tensor& t : tensors_) sum += double{t.row<float>(i)[c]};
      for (const Tensor& t : tensors_) t.row<float>(i)[c] = static_cast<float>(sum);
    }
  }
  barrier();
}

void ProcessGroup::broadcast(int rank, Tensor x) {
  if (channel_) return gemma4::broadcast(*channel_, x);
  tensors_[static_cast<size_t>(rank)] = x;
  barrier();
  if (rank > 0) copy_rows(x, tensors_[0]);
  barrier();
}

void ProcessGroup::gather_columns(int rank, Tensor x, std::span<const int64_t> begins) {
  if (channel_) return gemma4::gather_columns(*channel_, x, begins);
  CHECK(begins.size() == tensors_.size() + 1);
  tensors_[static_cast<size_t>(rank)] = x;
  barrier();
  for (size_t from = 1; rank == 0 && from < tensors_.size(); ++from) {
    const int64_t begin = begins[from], count = begins[from + 1] - begin;
    copy_rows(x.columns(begin, count), tensors_[from].columns(begin, count));
  }
  barrier();
}

}  // namespace gemma4
