// CudaBackend: memory, and which function serves which op. The kernels are plain functions (ops.h, linear.h).
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "backend/cuda/comm/nccl.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/megakernel/recorder.h"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/ops/sample.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/graphs.h"
#include "backend/cuda/runtime/memory.h"

namespace gemma4 {
namespace {

using cuda::DeviceMatrix;

// What KvCache::extra points to.
struct KvCacheLayout {
  int page, row, rotated;
  bool tiled;
};

class CudaBackend final : public Backend {
 public:
  // `communicator`: of this rank among several, or null.
  CudaBackend(int device, std::unique_ptr<cuda::Communicator> communicator)
      : device_(open(device)),
        communicator_(std::move(communicator)),
        linear_(std::make_unique<cuda::Linear>(device)),
        sampler_(&memory_) {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device_));
    scratch_.multiprocessors = properties.multiProcessorCount;
    scratch_.shared_most = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
    scratch_.warpgroups = properties.major == 9;
    scratch_.partial = static_cast<float*>(memory_.allocate(cuda::kAttendPartialBytes));
    scratch_.counters = zeros<int>(cuda::kAttendCounters);
    cuda::StepPeers peers = communicator_ ? communicator_->step_peers() : cuda::StepPeers();
    if (!peers.inbox[0]) peers.inbox[0] = zeros<uint32_t>(2 * cuda::kStepDim), peers.number = zeros<uint32_t>(1);
    cuda::StepWorkspace step;
    step.decode = linear_->decode_workspace();
    step.partial = scratch_.partial, step.counters = scratch_.counters;
    step.barrier = zeros<unsigned>(2);
    step.words = zeros<uint32_t>(int64_t{cuda::kStepRegions} * cuda::kRegionWords);
    step.parts = zeros<uint64_t>(cuda::step_parts(step.decode.blocks));
    step.numbers = zeros<uint32_t>(cuda::kStepRegions + 1);
    step.peers = peers;
    step_ = std::make_unique<cuda::StepRecorder>(step);
    CUDA_CHECK(cudaDeviceSynchronize());
  }

  ~CudaBackend() override { cudaStreamSynchronize(stream_.get()); }

  const char* name() const override { return "cuda"; }
  DType activation_type() const override { return DType::kBF16; }
  DType residual_type() const override { return DType::kF32; }
  DType attention_type() const override { return DType::kF16; }
  DType gemm_output_type() const override { return DType::kF32; }
  DType gemm_input_type(const Matrix& w) const override { return linear_->gemm_input_type(device_matrix(w)); }
  // Few rows are written into the other GPUs' memory as BF16, or as words by the step kernel (peers.h); of many the
  // bytes count. Between them latency counts most, and a rounding of each rank's part is spared.
  DType reduce_type(int64_t rows) const override {
    constexpr int64_t kPeerRows = 16, kExactRows = 512;
    return rows > kPeerRows && rows <= kExactRows ? DType::kF32 : DType::kBF16;
  }

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    use();
    Tensor t(nullptr, type, shape);
    t.data = memory_.allocate(t.bytes());
    CUDA_CHECK(cudaMemsetAsync(t.data, 0, static_cast<size_t>(t.bytes()), stream()));
    return t;
  }

  void release(Tensor t) override {
    use();
    stream();  // what is recorded may need it
    memory_.release(t.data);
  }

  KvCache kv_alloc(const KvCacheConfig& config) override;
  void kv_copy(const KvCache& kv, int32_t from, int32_t to) override;
  Matrix upload(std::span<const Matrix> parts) override;
  std::string layout() const override { return "chunks of 16 x 64, version 1"; }
  PrepackedWeight serialize(const Matrix& uploaded) override;
  Matrix load_prepacked(const PrepackedWeight& stored) override;

  void write(Tensor dst, const void* src) override {
    use();
    CHECK(dst.contiguous());
    staging_.write(dst.data, src, dst.bytes(), stream());
  }

  void read(void* dst, Tensor src) override {
    use();
    const int64_t item = static_cast<int64_t>(dtype_size(src.dtype)), row = src.row_size() * item;
    if (src.contiguous()) return staging_.read(dst, src.data, src.bytes(), 1, src.bytes(), stream());
    staging_.read(dst, src.data, row, src.rows(), src.stride * item, stream());
  }

  int64_t memory_used() const override { return memory_.used() + linear_->memory_used(); }

  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    linear_->embed(out, device_matrix(table), ids, scale, stream());
  }
  void linear(Tensor out, Tensor x, const Matrix& w) override {
    end_upload();
    const DeviceMatrix& matrix = device_matrix(w);
    const auto plain = [=, this](cudaStream_t on) { linear_->linear(out, x, matrix, on); };
    if (!step_->linear(out, x, matrix, false, plain)) plain(stream());
  }
  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override {
    cuda::rms_norm(stream(), out, x, weight, eps);
  }
  void add(Tensor x, Tensor y, float scale) override { cuda::add(stream(), x, y, scale); }
  void geglu(Tensor out, Tensor gate_up) override { cuda::geglu(stream(), out, gate_up); }
  void rope(Tensor x, Tensor pos, const Rope& by) override { cuda::rope(stream(), x, pos, by); }
  void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) override {
    cuda::kv_write(stream(), view(kv), k, v, rows.device);
  }
  void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) override {
    const std::span<const Row> host = graphs_.capturing() ? std::span<const Row>() : rows.host;
    const cuda::KvCacheView at = view(kv);
    const Tensor device = rows.device;
    const auto plain = [=, this](cudaStream_t on) { cuda::attention(on, out, q, at, device, host, scratch_); };
    if (!step_->attention(out, q, at, device, plain)) plain(stream());
  }
  void convert(Tensor out, Tensor x) override { cuda::convert(stream(), out, x); }
  void gather(Tensor out, Tensor x, Tensor index) override { cuda::gather(stream(), out, x, index); }
  void scatter(Tensor x, Tensor rows, Tensor index) override { cuda::scatter(stream(), x, rows, index); }
  void pool(Tensor out, Tensor x, Tensor group, float scale) override { cuda::pool(stream(), out, x, group, scale); }
  void affine(Tensor x, Tensor bias, Tensor scale) override { cuda::affine(stream(), x, bias, scale); }
  void softcap(Tensor x, float cap) override { cuda::softcap(stream(), x, cap); }
  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override {
    CHECK(!graphs_.capturing());
    sampler_.sample(ids, logits, sampling, staging_, stream());
  }

  void add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps) override {
    const auto plain = [=](cudaStream_t on) { cuda::add_rms_norm(on, out, x, y, post, scale, next, eps); };
    if (!step_->add_rms_norm(out, x, y, post, scale, next, eps, plain)) plain(stream());
  }
  void linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch) override {
    const DeviceMatrix& matrix = device_matrix(gate_up);
    const auto plain = [=, this](cudaStream_t on) { linear_->linear_geglu(out, x, matrix, scratch, on); };
    if (!step_->linear(out, x, matrix, true, plain)) plain(stream());
  }
  void qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const QkNorms& norms, Tensor pos,
                          const Rope& rope_by, const KvCache& kv, const Rows& rows) override {
    if (!cuda::qk_norm_rope_cache_fits(query, q, k, v)) {
      return Backend::qk_norm_rope_cache(query, q, k, v, scratch, norms, pos, rope_by, kv, rows);
    }
    const cuda::KvCacheView at = view(kv);
    const Tensor device = rows.device;
    const auto plain = [=](cudaStream_t on) {
      cuda::qk_norm_rope_cache(on, query, q, k, v, norms, pos, rope_by, at, device);
    };
    if (!step_->qk_norm_rope_cache(query, q, k, v, norms, pos, rope_by, at, device, plain)) plain(stream());
  }

  int rank() const override { return communicator_ ? communicator_->rank() : 0; }
  int world() const override { return communicator_ ? communicator_->world() : 1; }
  void all_reduce(Tensor x) override {
    if (!communicator_) return;
    const auto plain = [=, this](cudaStream_t on) { communicator_->all_reduce(x, on); };
    if (!step_->all_reduce(x, plain)) plain(stream());
  }
  void broadcast(Tensor x) override {
    if (communicator_) communicator_->broadcast(x, stream());
  }
  void gather_columns(Tensor x, std::span<const int64_t> begins) override {
    if (communicator_) communicator_->gather_columns(x, begins, stream());
  }
  void abort(const std::string& why) override {
    if (communicator_) communicator_->abort(why);
  }

  void replay(uint64_t key, const std::function<void()>& issue) override {
    use();
    if (communicator_) communicator_->check();  // a graph holds what a group that has ended gave back
    const auto whole = [&] {
      step_->begin();
      try {
        issue();
      } catch (...) {
        step_->drop();
        throw;
      }
      step_->end(graphs_.capturing(), stream_.get());
    };
    graphs_.replay(key, whole, stream());
  }

  void sync() override {
    use();
    CUDA_CHECK(cudaStreamSynchronize(stream()));
  }

 private:
  template <typename T>
  T* zeros(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    T* memory = static_cast<T*>(memory_.allocate(bytes));
    CUDA_CHECK(cudaMemset(memory, 0, static_cast<size_t>(bytes)));
    return memory;
  }

  // Checks the device and makes it this thread's.
  static int open(int device) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || device >= count) {
      cudaGetLastError();
      throw Error("there is no GPU " + std::to_string(device) + " here (" +
                  (error != cudaSuccess ? cudaGetErrorString(error) : "found " + std::to_string(count)) +
                  "); use --backend cpu");
    }
    CUDA_CHECK(cudaSetDevice(device));
    return device;
  }

  class Stream {
   public:
    Stream() { CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }

   private:
    cudaStream_t stream_ = nullptr;
  };

  // Whatever is put on the stream goes behind what the step recorder holds.
  cudaStream_t stream() {
    if (step_->open()) step_->flush(graphs_.capturing(), stream_.get());
    return stream_.get();
  }
  void use() const { CUDA_CHECK(cudaSetDevice(device_)); }  // CUDA's current device is a thread's own

  static const DeviceMatrix& device_matrix(const Matrix& m) {
    CHECK(m.uploaded != nullptr);
    return *static_cast<const DeviceMatrix*>(m.uploaded.get());
  }

  void end_upload() {  // the pinned upload buffers are given back once a model is open
    if (!uploading_ || graphs_.capturing()) return;
    uploading_ = false;
    linear_->end_upload();
  }

  Matrix matrix_of(const DeviceMatrix& uploaded, int group);
  static cuda::KvCacheView view(const KvCache& kv);

  int device_;
  std::unique_ptr<cuda::Communicator> communicator_;  // outlives the graphs, which NCCL asks for
  Stream stream_;
  cuda::Memory memory_;
  cuda::Staging staging_;
  std::unique_ptr<cuda::Linear> linear_;
  std::unique_ptr<cuda::StepRecorder> step_;
  cuda::DeviceSampler sampler_;
  cuda::AttendScratch scratch_;
  cuda::Graphs graphs_;
  bool uploading_ = false;
};

KvCache CudaBackend::kv_alloc(const KvCacheConfig& config) {
  // The vision tower's: attend_vision() copies 64 keys at a time.
  const bool tiled = config.page <= 1 && config.dim == 72 && config.rotated_pairs == 0;
  const int all = static_cast<int>(tiled ? (config.slots + 63) / 64 * 64 : config.slots);
  const int page = config.page > 1 ? config.page : all;
  const int64_t slots = (config.slots + page - 1) / page * page;
  const bool compressed = config.rotated_pairs > 0 && (config.dim + 2 * config.rotated_pairs) % 8 == 0;
  const int rotated = compressed ? config.rotated_pairs : 0;
  KvCache kv;
  kv.page = config.page;
  kv.rotated_pairs = config.rotated_pairs;
  kv.v = alloc(attention_type(), {slots, config.heads, config.dim + 2 * rotated});
  if (!compressed) kv.k = alloc(attention_type(), {slots, config.heads, config.dim});
  kv.extra = std::make_shared<KvCacheLayout>(KvCacheLayout{page, config.dim + 2 * rotated, rotated, tiled});
  return kv;
}

void CudaBackend::kv_copy(const KvCache& kv, int32_t from, int32_t to) {
  use();
  const auto* extra = static_cast<const KvCacheLayout*>(kv.extra.get());
  CHECK(extra != nullptr && !extra->tiled);  // it has no pages
  for (const Tensor& part : {kv.k, kv.v}) {
    if (!part) continue;
    // In the layout [pages, heads, page, row] a page of the table is one piece, unless the layout has a single page:
    // then it is a piece of every head, and pieces lie a head's slots apart.
    const auto heads = static_cast<size_t>(part.shape[1]);
    const size_t piece = static_cast<size_t>(kv.page * part.shape[2]) * dtype_size(part.dtype);
    const size_t pitch = piece / kv.page * extra->page;
    char* data = static_cast<char*>(part.data);
    if (extra->page == kv.page) {
      CUDA_CHECK(cudaMemcpyAsync(data + to * piece * heads, data + from * piece * heads, piece * heads,
                                 cudaMemcpyDeviceToDevice, stream()));
      continue;
    }
    CUDA_CHECK(cudaMemcpy2DAsync(data + to * piece, pitch, data + from * piece, pitch, piece, heads,
                                 cudaMemcpyDeviceToDevice, stream()));
  }
}

cuda::KvCacheView CudaBackend::view(const KvCache& kv) {
  cuda::KvCacheView v;
  v.k = kv.k.data;
  v.v = kv.v.data;
  v.heads = static_cast<int>(kv.v.shape[1]);
  v.row = static_cast<int>(kv.v.shape[2]);
  const auto* extra = static_cast<const KvCacheLayout*>(kv.extra.get());
  CHECK(extra != nullptr);  // of kv_alloc()
  v.page = extra->page;
  v.tiled = extra->tiled;
  v.rotated = extra->rotated;
  v.dim = v.row - 2 * v.rotated;
  if (v.rotated) {
    CHECK(kv.k_norm && kv.k_norm.dtype == DType::kF32 && kv.k_norm.size() == v.dim);
    v.k_norm = static_cast<const float*>(kv.k_norm.data);
  }
  if (kv.pages) {
    CHECK(kv.pages.dtype == DType::kI32);
    v.table = static_cast<const int32_t*>(kv.pages.data);
    v.table_cols = static_cast<int>(kv.pages.row_size());
    v.table_stride = kv.pages.stride;
    v.table_page = kv.page;
    if (std::has_single_bit(static_cast<unsigned>(kv.page)))
      v.page_shift = std::countr_zero(static_cast<unsigned>(kv.page));
  }
  return v;
}

Matrix CudaBackend::upload(std::span<const Matrix> parts) {
  use();
  CHECK(!parts.empty());
  uploading_ = true;
  const auto allocate = [this](int64_t bytes) { return memory_.allocate(bytes); };
  return matrix_of(linear_->upload(parts, allocate, stream()), parts[0].group);
}

PrepackedWeight CudaBackend::serialize(const Matrix& m) {
  use();
  const DeviceMatrix& w = device_matrix(m);
  const auto bytes = std::make_shared<const std::vector<std::byte>>(linear_->read_back(w, stream()));
  PrepackedWeight stored = cuda::describe(w, m.group);
  stored.bytes = *bytes;
  stored.hold = bytes;
  return stored;
}

Matrix CudaBackend::load_prepacked(const PrepackedWeight& stored) {
  use();
  const auto allocate = [this](int64_t bytes) { return memory_.allocate(bytes); };
  return matrix_of(linear_->load_prepacked(cuda::described(stored), stored.bytes, allocate, stream()), stored.group);
}

Matrix CudaBackend::matrix_of(const DeviceMatrix& uploaded, int group) {
  Matrix m;
  m.format = uploaded.format;
  m.rows = uploaded.rows;
  m.cols = uploaded.cols;
  m.group = group;
  m.device_bytes = uploaded.bytes;
  m.uploaded = std::shared_ptr<const DeviceMatrix>(new DeviceMatrix(uploaded), [this](const DeviceMatrix* matrix) {
    memory_.release(matrix->data);
    delete matrix;
  });
  return m;
}

}  // namespace

std::unique_ptr<Backend> make_cuda(int device) { return std::make_unique<CudaBackend>(device, nullptr); }

static int count_gpus() {
  int found = 0;
  if (cudaGetDeviceCount(&found) != cudaSuccess) cudaGetLastError();
  return found;
}

// A launcher may show each process one GPU, its own.
std::unique_ptr<Backend> make_cuda_rank(ControlChannel& channel) {
  const int found = count_gpus(), local = channel.process().local_rank;
  if (found == 0 || (found > 1 && local >= found)) {
    throw Error("this is process " + std::to_string(local) + " of its host (they count from 0), and " +
                std::to_string(found) + (found == 1 ? " GPU is" : " GPUs are") + " here");
  }
  const int device = found == 1 ? 0 : local;
  return std::make_unique<CudaBackend>(device, cuda::connect_process(channel, device));
}

std::vector<std::unique_ptr<Backend>> make_cuda_ranks(int count) {
  const int found = count_gpus();
  if (found < count) {
    throw Error("the model cannot be split over " + std::to_string(count) + " GPUs: " + std::to_string(found) +
                (found == 1 ? " is" : " are") + " here");
  }
  auto communicators = cuda::connect_gpus(count);
  std::vector<std::unique_ptr<Backend>> ranks;
  for (int r = 0; r < count; ++r) {
    ranks.push_back(std::make_unique<CudaBackend>(r, std::move(communicators[static_cast<size_t>(r)])));
  }
  return ranks;
}

}  // namespace gemma4
