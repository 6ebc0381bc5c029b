// Backend: the interface between the model and the hardware, with the only virtual functions in the program. Every op
// reads and writes Tensors that this backend allocated. Ops take effect in call order and may return before the work is
// done; sync() waits. ref.cc defines every op; cpu/ and cuda/ agree with it within the tolerances of docs/NUMERICS.md.
// The fused ops at the end have defaults made of the other ops. A backend overrides one only where it is measurably
// faster.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/kv_cache.h"
#include "backend/sampling.h"
#include "base/tensor.h"
#include "quant/matrix.h"

namespace gemma4 {

class ProcessGroup;    // distributed/process_group.h
class ControlChannel;  // distributed/control_channel.h

// RoPE in the rotate-half pairing. A head is cut into blocks of `block` elements. In block b, elements i and i +
// block/2 are a pair, which rotates by pos[axis b] * inv_freq[i]. Text: one block, one axis. Vision: two blocks, two
// axes (x, y).
struct Rope {
  Tensor inv_freq;  // F32 [block / 2]; 0: this pair does not rotate
  int block = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;

  // Element types. A backend may compute some tensors in a more exact type than activation_type():
  // residual_type(): the residual stream x. attention_type(): the queries that attention() reads.
  // gemm_output_type(): outputs of linear() that a norm or geglu() reads next. gemm_input_type(w): the type that
  // linear() reads for such an output if the rounding of activations would cause most of the error with weights like w.
  // reduce_type(rows): the type in which all_reduce() adds this many rows; no wider than gemm_output_type().
  virtual DType activation_type() const = 0;
  virtual DType residual_type() const { return activation_type(); }
  virtual DType attention_type() const { return activation_type(); }
  virtual DType gemm_output_type() const { return activation_type(); }
  virtual DType gemm_input_type(const Matrix& w) const { return (void)w, activation_type(); }
  virtual DType reduce_type(int64_t rows) const { return (void)rows, activation_type(); }

  // Memory. Called when a model is opened or an image arrives, never in an engine step. alloc() zeroes, where possible
  // without touching the memory before it is used. All throw Error if memory is short.
  virtual Tensor alloc(DType type, std::initializer_list<int64_t> shape) = 0;
  virtual void release(Tensor t) = 0;  // frees what alloc() returned
  virtual KvCache kv_alloc(const KvCacheConfig& config);
  virtual void kv_release(const KvCache& kv);
  // Page `to` becomes a copy of page `from`, in op order. The default copies through the host and assumes that rows of
  // kv.k and kv.v are slots. A backend with another layout overrides it together with kv_alloc().
  virtual void kv_copy(const KvCache& kv, int32_t from, int32_t to);
  // Copies `matrices`, stacked along rows, into this backend's own layout. All have the same format, cols and group.
  virtual Matrix upload(std::span<const Matrix> matrices) = 0;
  // An uploaded matrix as bytes, which a later process loads without packing them again. The bytes depend on name() and
  // layout(): a process can load them if both are equal. load_prepacked() first checks the description against the
  // size. It throws Error, as do these defaults.
  virtual std::string layout() const { return ""; }
  virtual PrepackedWeight serialize(const Matrix& uploaded);
  virtual Matrix load_prepacked(const PrepackedWeight& stored);
  virtual void write(Tensor dst, const void* src) = 0;  // contiguous dst; `src` may be reused on return
  virtual void read(void* dst, Tensor src) = 0;         // waits
  virtual int64_t memory_used() const = 0;              // bytes allocated
  // What alloc() can still get. `shared`: it is this machine's, so other processes and other ranks on it take of the
  // same. The default is that.
  struct MemoryLeft {
    int64_t bytes;
    bool shared;
  };
  virtual MemoryLeft memory_left() const;
  // cpu: products of many rows may round their inputs to bf16 where the processor has matrix units for that. At first
  // they may not. Elsewhere this changes nothing.
  virtual void allow_bf16(bool allowed) { (void)allowed; }
  virtual bool rounds_to_bf16() const { return activation_type() != DType::kF32; }  // in products, in whole or in part
  virtual std::string device() const { return ""; }  // what computes, for reports: "8 threads", a GPU's name

  // Ops. x, y, out: [rows, ...] activations.
  virtual void embed(Tensor out, const Matrix& table, Tensor ids, float scale) = 0;  // out = table[ids] * scale
  virtual void linear(Tensor out, Tensor x, const Matrix& w) = 0;                    // out = x w^T
  // Over the last dimension: out = x / sqrt(mean(x^2) + eps) * weight; `weight` F32 or empty; out may be x.
  virtual void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) = 0;
  virtual void add(Tensor x, Tensor y, float scale) = 0;          // x = (x + y) * scale
  virtual void geglu(Tensor out, Tensor gate_up) = 0;             // gate_up [rows, 2n]: out = gelu_tanh(gate) * up
  virtual void rope(Tensor x, Tensor pos, const Rope& rope) = 0;  // x [rows, heads, dim], pos I32 [rows, axes]
  virtual void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) = 0;  // k, v [rows, heads, dim]
  // softmax(q k^T) v, scores unscaled (Gemma 4's scale is 1 in both towers). q, out [rows, q heads, dim], q of
  // attention_type(); query head h reads KV head h / (q heads / KV heads).
  virtual void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) = 0;
  virtual void convert(Tensor out, Tensor x) = 0;                 // out = x, in out's element type
  virtual void gather(Tensor out, Tensor x, Tensor index) = 0;    // out[i] = x[index[i]]
  virtual void scatter(Tensor x, Tensor rows, Tensor index) = 0;  // x[index[i]] = rows[i]
  // out[group[i]] += x[i] * scale, after out is zeroed; group I32 [rows of x].
  virtual void pool(Tensor out, Tensor x, Tensor group, float scale) = 0;
  virtual void affine(Tensor x, Tensor bias, Tensor scale) = 0;  // x = (x - bias) * scale, F32 [cols] each
  virtual void softcap(Tensor x, float cap) = 0;                 // x = tanh(x / cap) * cap
  virtual void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) = 0;  // ids I32 [rows]

  // Fused ops.
  // x = (x + norm(y) * post) * scale; out = norm(x) * next. `out` empty: only x.
  virtual void add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps);
  // out = gelu_tanh(x gate^T) * (x up^T); gate_up: gate's rows, then up's. scratch [rows, 2n].
  virtual void linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch);
  // query = rope(norm(q) * q_norm), of attention_type(); v = norm(v), or norm(k) where v is empty;
  // k = rope(norm(k) * k_norm); then kv_write. `query` may be q if their types agree. q, k and v may be overwritten, so
  // read only query and the cache afterwards. scratch [rows, KV heads, dim] receives v if v is empty.
  struct QkNorms {
    Tensor q, k;  // F32 [dim]
    float eps;
  };
  virtual void qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const QkNorms& norms,
                                  Tensor pos, const Rope& rope, const KvCache& kv, const Rows& rows);

  // Tensor parallelism: this backend is one of world() ranks that compute one model together, each on its own thread
  // (ranks.h). All ranks call the collective ops in the same order, with tensors of the same shape. The defaults are
  // for ranks with tensors in host memory, which join() connects. Without join() there is one rank.
  virtual int rank() const { return rank_; }
  virtual int world() const;
  virtual void all_reduce(Tensor x);  // x = its sum over the ranks, equal to the bit on all of them
  virtual void broadcast(Tensor x);   // x = rank 0's x
  // x [rows, n]: rank 0 receives columns begins[r] .. begins[r + 1] - 1 of rank r. On the others x is undefined.
  virtual void gather_columns(Tensor x, std::span<const int64_t> begins);
  // A rank has failed: collective ops that wait for it, and all later ones, throw DeviceError(why).
  virtual void abort(const std::string& why);
  void join(std::shared_ptr<ProcessGroup> group, int rank) { group_ = std::move(group), rank_ = rank; }

  // Runs `issue`. A backend with graphs records its launches under `key` and replays them next time. Everything that
  // differs between two calls with one key must be read from device tensors.
  virtual void replay(uint64_t key, const std::function<void()>& issue) { (void)key, issue(); }
  virtual void sync() {}

  // Whether decode steps run in the megakernel (cuda; elsewhere all are 0). Counts steps of one row run by replay().
  struct Stats {
    int64_t steps = 0;
    int64_t megakernel_steps = 0;  // of those: all ops of the layers ran in the megakernel
    int64_t ops = 0;               // of the layers of the last such step
    int64_t megakernel_ops = 0;    // of those: in the megakernel; the others ran by their own kernels
  };
  virtual Stats stats() const { return {}; }

 private:
  std::shared_ptr<ProcessGroup> group_;
  int rank_ = 0;
};

std::unique_ptr<Backend> make_ref();
std::unique_ptr<Backend> make_cpu(int threads);  // 0: all cores
std::unique_ptr<Backend> make_cuda(int device);  // throws Error where there is no CUDA in the build or no GPU
// GPUs 0 .. count-1 as the ranks of one model, connected by NCCL. Throws Error where GPUs or NCCL are missing.
std::vector<std::unique_ptr<Backend>> make_cuda_ranks(int count);
// The GPU of this process as a rank of a model over the processes of `channel`, connected by NCCL.
std::unique_ptr<Backend> make_cuda_rank(ControlChannel& channel);

// "ref", "cpu" or "cuda"; throws Error for another name.
std::unique_ptr<Backend> make_backend(const std::string& name, int threads);

}  // namespace gemma4
