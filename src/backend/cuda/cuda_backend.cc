// CudaBackend: memory, graphs, and which kernel runs which op. The kernels are plain functions of the folders
// attention/, gemm/, ops/ and comm/.
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/qk_norm_rope_cache.h"
#include "backend/cuda/comm/nccl.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/megakernel/recording_backend.h"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/ops/sample.h"
#include "backend/cuda/runtime/device_profile.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/graphs.h"
#include "backend/cuda/runtime/memory.h"
#include "backend/gpu.h"

namespace gemma4 {
namespace {

using cuda::DeviceMatrix;

class CudaBackend final : public RecordingBackend<CudaBackend> {
 public:
  // `communicator`: this rank's, if there are several; otherwise null.
  CudaBackend(int device, std::unique_ptr<cuda::Communicator> communicator)
      : device_(open(device)),
        communicator_(std::move(communicator)),
        linear_(std::make_unique<cuda::Linear>(device)),
        sampler_(&memory_) {
    const cuda::DeviceProfile profile = cuda::device_profile(device_);
    attention_.sms = profile.sms;
    attention_.shared_bytes_max = profile.shared_max;
    attention_.has_wgmma = profile.wgmma;
    attention_.partial = static_cast<float*>(memory_.allocate(cuda::kAttentionPartialBytes));
    attention_.counters = zeros<int>(cuda::kAttentionCounters);
    make_recorder(megakernel_workspace());
    CUDA_CHECK(cudaDeviceSynchronize());
  }

  ~CudaBackend() override { cudaStreamSynchronize(stream_.get()); }

  const char* name() const override { return "cuda"; }
  DType gemm_input_type(const Matrix& w) const override { return linear_->gemm_input_type(cuda::device_matrix(w)); }

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    use();
    Tensor t(nullptr, type, shape);
    t.data = memory_.allocate(t.bytes());
    CUDA_CHECK(cudaMemsetAsync(t.data, 0, static_cast<size_t>(t.bytes()), stream()));
    return t;
  }

  void release(Tensor t) override {
    use();
    stream();  // launches recorded ops, which may use it
    memory_.release(t.data);
  }

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
  std::string device() const override {
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device_));
    const std::string profile = cuda::device_profile(device_).name;
    return std::string(properties.name) + (profile == "sm90" ? "" : ", kernels of " + profile);
  }
  MemoryLeft memory_left() const override {
    use();
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return {static_cast<int64_t>(free), false};
  }

  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    linear_->embed(out, cuda::device_matrix(table), ids, scale, stream());
  }
  void linear(Tensor out, Tensor x, const Matrix& w) override {
    end_upload();
    RecordingBackend::linear(out, x, w);
  }
  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override {
    cuda::rms_norm(stream(), out, x, weight, eps);
  }
  void add(Tensor x, Tensor y, float scale) override { cuda::add(stream(), x, y, scale); }
  void geglu(Tensor out, Tensor gate_up) override { cuda::geglu(stream(), out, gate_up); }
  void rope(Tensor x, Tensor pos, const Rope& by) override { cuda::rope(stream(), x, pos, by); }
  void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) override {
    cuda::kv_write(stream(), cuda::kv_cache_view(kv), k, v, rows.device);
  }
  void convert(Tensor out, Tensor x) override { cuda::convert(stream(), out, x); }
  void gather(Tensor out, Tensor x, Tensor index) override { cuda::gather(stream(), out, x, index); }
  void scatter(Tensor x, Tensor rows, Tensor index) override { cuda::scatter(stream(), x, rows, index); }
  void pool(Tensor out, Tensor x, Tensor group, float scale) override { cuda::pool(stream(), out, x, group, scale); }
  void affine(Tensor x, Tensor bias, Tensor scale) override { cuda::affine(stream(), x, bias, scale); }
  void softcap(Tensor x, float cap) override { cuda::softcap(stream(), x, cap); }
  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override {
    CHECK(!capturing());
    sampler_.sample(ids, logits, sampling, staging_, stream());
  }

  int rank() const override { return communicator_ ? communicator_->rank() : 0; }
  int world() const override { return communicator_ ? communicator_->world() : 1; }
  void all_reduce(Tensor x) override {
    if (communicator_) RecordingBackend::all_reduce(x);
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
    if (communicator_) communicator_->check();  // a graph refers to buffers that a group frees when it ends
    const auto record = [&] { record_step(key, issue); };
    graphs_.replay(key, record, stream());
    count_step(key);
  }

  void sync() override {
    use();
    CUDA_CHECK(cudaStreamSynchronize(stream()));
  }

 private:
  friend RecordingBackend<CudaBackend>;
  void run_linear(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t on) { linear_->linear(out, x, w, on); }
  void run_linear_geglu(Tensor out, Tensor x, const DeviceMatrix& w, Tensor scratch, cudaStream_t on) {
    linear_->linear_geglu(out, x, w, scratch, on);
  }
  void run_qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, const QkNorms& norms, Tensor pos,
                              const Rope& rope_by, const cuda::KvCacheView& kv, Tensor rows, cudaStream_t on) {
    cuda::qk_norm_rope_cache(on, query, q, k, v, norms, pos, rope_by, kv, rows);
  }
  void run_attention(Tensor out, Tensor q, const cuda::KvCacheView& kv, const Rows& rows, cudaStream_t on) {
    cuda::attention(on, out, q, kv, rows.device, rows.host, attention_);
  }
  void run_add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps,
                        cudaStream_t on) {
    cuda::add_rms_norm(on, out, x, y, post, scale, next, eps);
  }
  void run_all_reduce(Tensor x, cudaStream_t on) { communicator_->all_reduce(x, on); }
  // Work may follow that this thread gave to another GPU.
  cudaStream_t device_stream() {
    use();
    return stream_.get();
  }
  bool capturing() const { return graphs_.capturing(); }

  cuda::RowsWorkspace rows_workspace(int blocks) {
    cuda::RowsWorkspace w;
    w.limbs = zeros<uint8_t>(cuda::kRowsLimbBytes);
    w.flags = zeros<uint32_t>(int64_t{cuda::kLimbSources} * cuda::kRowsTilesMax * cuda::kRowsMax);
    w.values = zeros<uint64_t>(int64_t{cuda::kRowsMax} * cuda::kChannelValues);
    w.sums = zeros<uint64_t>(int64_t{cuda::kRowsMax} * cuda::kResidualDimMax);
    w.partials = zeros<uint64_t>(cuda::rows_partials(blocks));
    w.rotations = zeros<float2>(int64_t{blocks} * cuda::kRowsMax * cuda::kRotationsOfRow);
    return w;
  }

  cuda::MegakernelWorkspace megakernel_workspace() {
    cuda::MegakernelWorkspace w;
    w.decode = linear_->gemv_workspace();
    w.attention_partials = attention_.partial;
    w.attention_counters = attention_.counters;
    w.grid_barrier = zeros<unsigned>(2);
    w.channels = zeros<uint32_t>(int64_t{cuda::kChannels} * cuda::kChannelValues);
    w.partials = zeros<uint64_t>(cuda::split_k_partials(w.decode.blocks));
    w.epochs = zeros<uint32_t>(cuda::kChannels + 1);
    const int64_t residual = cuda::megakernel_residual_bytes(w.decode);
    if (residual > 0) w.residual = reinterpret_cast<float4*>(zeros<float>(residual / 4));
    if (communicator_) {
      w.ranks = communicator_->rank_buffers();
    } else if (cuda::megakernel_fits(w.decode)) {
      w.rows = rows_workspace(w.decode.blocks);
    }
    if (!w.ranks.receive[0]) {  // the sums of this rank alone
      w.ranks.receive[0] = zeros<uint32_t>(2 * cuda::kResidualDimMax);
      w.ranks.epoch = zeros<uint32_t>(1);
    }
    return w;
  }

  template <typename T>
  T* zeros(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    T* memory = static_cast<T*>(memory_.allocate(bytes));
    CUDA_CHECK(cudaMemset(memory, 0, static_cast<size_t>(bytes)));
    return memory;
  }

  friend std::string gemma4::why_no_gpu();

  // Empty if there is such a GPU. CUDA calls a driver that is not there an old one.
  static std::string why_absent(int device) {
    int count = 0, driver = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && device < count) return "";
    cudaDriverGetVersion(&driver);
    cudaGetLastError();
    if (error == cudaErrorNoDevice || driver == 0) return "no NVIDIA GPU was found";
    if (error != cudaSuccess) return std::string("the GPU cannot be used: ") + cudaGetErrorString(error);
    return "there is no GPU " + std::to_string(device) + " here, but " + std::to_string(count);
  }

  // Checks the device and makes it this thread's.
  static int open(int device) {
    if (const std::string why = why_absent(device); !why.empty()) throw Error(why + "; use --backend cpu");
    CUDA_CHECK(cudaSetDevice(device));
    if (!cuda::has_device_code()) {
      cudaDeviceProp gpu;
      CUDA_CHECK(cudaGetDeviceProperties(&gpu, device));
      throw Error("this binary has no code for " + std::string(gpu.name) + " (compute capability " +
                  std::to_string(gpu.major) + "." + std::to_string(gpu.minor) +
                  "); build it on this machine with make, or use --backend cpu");
    }
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

  void use() const { CUDA_CHECK(cudaSetDevice(device_)); }  // CUDA's current device belongs to the thread

  void end_upload() {  // the pinned upload buffers are released once a model is open
    if (!uploading_ || capturing()) return;
    uploading_ = false;
    linear_->end_upload();
  }

  Matrix matrix_of(const DeviceMatrix& uploaded, int group);

  int device_;
  std::unique_ptr<cuda::Communicator> communicator_;  // outlives the graphs, as NCCL requires
  Stream stream_;
  cuda::Memory memory_;
  cuda::Staging staging_;
  std::unique_ptr<cuda::Linear> linear_;
  cuda::DeviceSampler sampler_;
  cuda::AttentionWorkspace attention_;
  cuda::Graphs graphs_;
  bool uploading_ = false;
};

void CudaBackend::kv_copy(const KvCache& kv, int32_t from, int32_t to) {
  use();
  const auto* extra = static_cast<const cuda::KvCacheLayout*>(kv.extra.get());
  CHECK(extra != nullptr && !extra->tiled);  // a tiled cache has no pages
  for (const Tensor& slots : {kv.k, kv.v}) {
    if (!slots) continue;
    // In the layout [pages, heads, page, row] a page of the table is one piece of memory, unless the layout has a
    // single page: then it is one piece for each head, and the pieces are a head's slots apart.
    const auto heads = static_cast<size_t>(slots.shape[1]);
    const size_t piece = static_cast<size_t>(kv.page * slots.shape[2]) * dtype_size(slots.dtype);
    const size_t pitch = piece / kv.page * extra->page;
    char* data = static_cast<char*>(slots.data);
    if (extra->page == kv.page) {
      CUDA_CHECK(cudaMemcpyAsync(data + to * piece * heads, data + from * piece * heads, piece * heads,
                                 cudaMemcpyDeviceToDevice, stream()));
      continue;
    }
    CUDA_CHECK(cudaMemcpy2DAsync(data + to * piece, pitch, data + from * piece, pitch, piece, heads,
                                 cudaMemcpyDeviceToDevice, stream()));
  }
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
  const DeviceMatrix& w = cuda::device_matrix(m);
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

std::string why_no_gpu() {
  if (std::string why = CudaBackend::why_absent(0); !why.empty()) return why;
  try {
    cuda::device_profile(CudaBackend::open(0));
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

std::unique_ptr<Backend> make_cuda(int device) { return std::make_unique<CudaBackend>(device, nullptr); }

static int count_gpus() {
  int found = 0;
  if (cudaGetDeviceCount(&found) != cudaSuccess) cudaGetLastError();
  return found;
}

// A launcher may make only its own GPU visible to each process.
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
