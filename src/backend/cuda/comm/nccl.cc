#include "backend/cuda/comm/nccl.h"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <shared_mutex>

#include "backend/cuda/comm/nccl_abi.h"
#include "backend/cuda/comm/peer_all_reduce.h"
#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {
namespace {

using namespace nccl;

// The functions of libnccl, loaded once and kept.
struct Library {
  Library();

  GetErrorString error_string = nullptr;
  CommInitAll init_all = nullptr;
  GetUniqueId unique_id = nullptr;
  CommInitRank init_rank = nullptr;
  CommDestroy destroy = nullptr;
  CommAbort abort = nullptr;
  AllReduce all_reduce = nullptr;
  Broadcast broadcast = nullptr;
  Send send = nullptr;
  Recv recv = nullptr;
  GroupCall group_start = nullptr, group_end = nullptr;

  void check(Result result, const char* what) const {
    if (result != kSuccess) throw DeviceError(std::string("NCCL failed: ") + what + ": " + error_string(result));
  }
};

template <typename Function>
void resolve(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw Error(std::string("libnccl.so.2 has no ") + name + "; install NCCL 2.10 or later");
}

Library::Library() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    throw Error("libnccl.so.2 was not found; several GPUs need NCCL: install it or add its folder to LD_LIBRARY_PATH");
  }
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  resolve(library, error_string, "ncclGetErrorString");
  resolve(library, init_all, "ncclCommInitAll");
  resolve(library, unique_id, "ncclGetUniqueId");
  resolve(library, init_rank, "ncclCommInitRank");
  resolve(library, destroy, "ncclCommDestroy");
  resolve(library, abort, "ncclCommAbort");
  resolve(library, all_reduce, "ncclAllReduce");
  resolve(library, broadcast, "ncclBroadcast");
  resolve(library, send, "ncclSend");
  resolve(library, recv, "ncclRecv");
  resolve(library, group_start, "ncclGroupStart");
  resolve(library, group_end, "ncclGroupEnd");
}

const Library& library() {
  static const Library loaded;
  return loaded;
}

Type type_of(const Tensor& t) {
  CHECK(t.dtype == DType::kF32 || t.dtype == DType::kBF16);
  return t.dtype == DType::kF32 ? kFloat32 : kBFloat16;
}

}  // namespace

// Enqueueing locks `mutex` shared and abort() locks it exclusively, so no call runs on a communicator that is being
// freed. A call may itself wait for a rank that has failed. So abort() waits for the lock for kPatience only, then
// aborts the communicator under that call, which wakes it.
struct Communicator::Shared {
  static constexpr std::chrono::seconds kPatience{2};

  int world = 0;                         // ranks of all processes
  int first = 0;                         // this process's first rank
  std::vector<Comm> comms;               // of this process's ranks
  std::shared_ptr<PeerAllReduce> peers;  // for small all-reduces, or null
  std::shared_timed_mutex mutex;
  std::atomic<bool> aborted{false};
  std::string why;  // written before `aborted`
  std::mutex abort_mutex;

  ~Shared() {
    for (const Comm comm : comms) library().destroy(comm);
  }
};

Communicator::~Communicator() = default;

int Communicator::world() const { return shared_->world; }

RankBuffers Communicator::rank_buffers() const {
  return shared_->peers ? shared_->peers->rank_buffers(rank_) : RankBuffers();
}

void Communicator::check() {
  if (shared_->aborted.load(std::memory_order_acquire)) throw DeviceError(shared_->why);
}

void Communicator::abort(const std::string& why) {
  Shared& s = *shared_;
  const std::lock_guard once(s.abort_mutex);
  if (s.aborted) return;
  s.why = why;
  s.aborted.store(true, std::memory_order_release);
  if (s.peers) s.peers->abort();
  const std::unique_lock lock(s.mutex, Shared::kPatience);
  for (Comm& comm : s.comms) library().abort(comm);
  s.comms.clear();
}

template <typename Call>
void Communicator::enqueue(const Call& call) {
  const std::shared_lock lock(shared_->mutex);
  check();
  call(library(), shared_->comms[static_cast<size_t>(rank_ - shared_->first)]);
}

void Communicator::all_reduce(Tensor x, cudaStream_t stream) {
  CHECK(x.contiguous());
  if (shared_->peers && shared_->peers->supports(x)) {
    check();
    return shared_->peers->all_reduce(rank_, x, stream);
  }
  enqueue([&](const Library& l, Comm comm) {
    const size_t count = static_cast<size_t>(x.size());
    l.check(l.all_reduce(x.data, x.data, count, type_of(x), kSum, comm, stream), "all-reduce");
  });
}

void Communicator::broadcast(Tensor x, cudaStream_t stream) {
  CHECK(x.contiguous());
  enqueue([&](const Library& l, Comm comm) {
    l.check(l.broadcast(x.data, x.data, static_cast<size_t>(x.size()), type_of(x), 0, comm, stream), "broadcast");
  });
}

// A message for each row and rank, written straight to its position in x.
void Communicator::gather_columns(Tensor x, std::span<const int64_t> begins, cudaStream_t stream) {
  CHECK(x.dtype == DType::kF32 && static_cast<int>(begins.size()) == world() + 1);
  const auto message = [&](const Library& l, Comm comm, int64_t row, int from) {
    float* at = x.row<float>(row) + begins[static_cast<size_t>(from)];
    const size_t count = static_cast<size_t>(begins[static_cast<size_t>(from) + 1] - begins[static_cast<size_t>(from)]);
    l.check(rank_ == 0 ? l.recv(at, count, kFloat32, from, comm, stream) : l.send(at, count, kFloat32, 0, comm, stream),
            "gather");
  };
  if (world() == 1) return check();
  enqueue([&](const Library& l, Comm comm) {
    l.check(l.group_start(), "gather");
    for (int64_t row = 0; row < x.rows(); ++row) {
      for (int from = 1; from < world(); ++from) {
        if (rank_ == 0 || rank_ == from) message(l, comm, row, from);
      }
    }
    l.check(l.group_end(), "gather");
  });
}

std::vector<std::unique_ptr<Communicator>> connect_gpus(int count) {
  auto shared = std::make_shared<Communicator::Shared>();
  std::vector<int> devices(static_cast<size_t>(count));
  std::iota(devices.begin(), devices.end(), 0);
  std::vector<Comm> comms(devices.size());
  library().check(library().init_all(comms.data(), count, devices.data()), "connecting the GPUs");
  shared->world = count;
  shared->comms = std::move(comms);
  shared->peers = PeerAllReduce::connect(count);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < count; ++r) ranks.push_back(std::unique_ptr<Communicator>(new Communicator(shared, r)));
  return ranks;
}

// Rank 0 waits for the others before it begins, because inside ncclCommInitRank it could not learn that one has failed.
std::unique_ptr<Communicator> connect_process(ControlChannel& channel, int device) {
  const Library& nccl = library();
  UniqueId id = {};
  const auto bytes = std::as_writable_bytes(std::span(&id, 1));
  if (channel.rank() == 0) {
    channel.wait_ready();
    nccl.check(nccl.unique_id(&id), "beginning");
    channel.send_all(ControlChannel::Message::kNcclId, bytes);
  } else {
    channel.send_ready();
    channel.receive(0, ControlChannel::Message::kNcclId, bytes);
  }
  CUDA_CHECK(cudaSetDevice(device));
  Comm comm = nullptr;
  nccl.check(nccl.init_rank(&comm, channel.world(), id, channel.rank()), "connecting the processes");
  auto shared = std::make_shared<Communicator::Shared>();
  shared->world = channel.world();
  shared->first = channel.rank();
  shared->comms = {comm};
  shared->peers = PeerAllReduce::connect(channel, device);
  return std::unique_ptr<Communicator>(new Communicator(shared, channel.rank()));
}

}  // namespace gemma4::cuda
