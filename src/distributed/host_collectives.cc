#include "distributed/host_collectives.h"

#include <cstring>
#include <vector>

namespace gemma4 {
namespace {

using Bytes = std::vector<std::byte>;

size_t row_bytes(const Tensor& x) { return static_cast<size_t>(x.row_size()) * dtype_size(x.dtype); }

Bytes packed(const Tensor& x) {
  Bytes bytes(static_cast<size_t>(x.bytes()));
  for (int64_t i = 0; i < x.rows(); ++i) {
    std::memcpy(bytes.data() + static_cast<size_t>(i) * row_bytes(x), x.slice(i, 1).data, row_bytes(x));
  }
  return bytes;
}

void unpack(const Tensor& x, const Bytes& bytes) {
  for (int64_t i = 0; i < x.rows(); ++i) {
    std::memcpy(x.slice(i, 1).data, bytes.data() + static_cast<size_t>(i) * row_bytes(x), row_bytes(x));
  }
}

void receive(ControlChannel& channel, int from, const Tensor& x) {
  Bytes bytes(static_cast<size_t>(x.bytes()));
  channel.receive(from, ControlChannel::Message::kTensor, bytes);
  unpack(x, bytes);
}

void add_rows(std::vector<double>& sum, const Bytes& bytes) {
  for (size_t i = 0; i < sum.size(); ++i) {
    float value;
    std::memcpy(&value, bytes.data() + i * sizeof(value), sizeof(value));
    sum[i] += double{value};
  }
}

}  // namespace

void all_reduce(ControlChannel& channel, Tensor x) {
  CHECK(x.dtype == DType::kF32);
  Bytes bytes = packed(x);
  if (channel.rank() > 0) {
    channel.send(0, ControlChannel::Message::kTensor, bytes);
    return receive(channel, 0, x);
  }
  std::vector<double> sum(static_cast<size_t>(x.size()), 0.0);
  add_rows(sum, bytes);
  for (int from = 1; from < channel.world(); ++from) {
    channel.receive(from, ControlChannel::Message::kTensor, bytes);
    add_rows(sum, bytes);
  }
  for (size_t i = 0; i < sum.size(); ++i) {
    const auto value = static_cast<float>(sum[i]);
    std::memcpy(bytes.data() + i * sizeof(value), &value, sizeof(value));
  }
  unpack(x, bytes);
  channel.send_all(ControlChannel::Message::kTensor, bytes);
}

void broadcast(ControlChannel& channel, Tensor x) {
  if (channel.rank() > 0) return receive(channel, 0, x);
  channel.send_all(ControlChannel::Message::kTensor, packed(x));
}

void gather_columns(ControlChannel& channel, Tensor x, std::span<const int64_t> begins) {
  CHECK(begins.size() == static_cast<size_t>(channel.world()) + 1);
  const auto share = [&](int rank) {
    const int64_t begin = begins[static_cast<size_t>(rank)];
    return x.columns(begin, begins[static_cast<size_t>(rank) + 1] - begin);
  };
  if (channel.rank() > 0) return channel.send(0, ControlChannel::Message::kTensor, packed(share(channel.rank())));
  for (int from = 1; from < channel.world(); ++from) receive(channel, from, share(from));
}

}  // namespace gemma4
