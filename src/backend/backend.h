// Backend: the only door between the model and the hardware, and the only virtual functions in the program. Every op
// reads and writes Tensors that this backend allocated, in call order, and may return before the work is done; sync()
// waits. ref.cc is the definition of every op; cpu/ and cuda/ agree with it within the tolerances of
// docs/NUMERICS.md. The fused ops at the end have a default that is written with the small ones; a backend overrides
// one where a measurement earns it.
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

class ProcessGroup;    // group.h
class ControlChannel;  // channel.h

// Rotary embedding in the rotate-half pairing. A head is cut into blocks of `block` elements; in block b, element i
// pairs with i + block/2 and turns by pos[axis b] * inv_freq[i]. Text: one block, one axis. Vision: two blocks (x, y),
// two axes.
struct Rope {
  Tensor inv_freq;  // F32 [block / 2]; 0: this pair does not rotate
  int block = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;

  // Element types: of activations, and of what a backend may keep more exactly. residual_type(): the stream x.
  // attention_type(): what attend() takes. gemm_output_type(): products that go into a norm or a GeGLU next.
  // gemm_input_type(): what linear() takes, beside activations, for a result of gemm_output_type(), where with weights
  // like these the rounding of activations would be most of the error. reduce_type(): in what all_reduce() takes
  // partial sums of so many rows, no wider than gemm_output_type().
  virtual DType activation_type() const = 0;
  virtual DType residual_type() const { return activation_type(); }
  virtual DType attention_type() const { return activation_type(); }
  virtual DType gemm_output_type() const { return activation_type(); }
  virtual DType gemm_input_type(const Matrix& w) const { return (void)w, activation_type(); }
  virtual DType reduce_type(int64_t rows) const { return (void)rows, activation_type(); }

  // Memory. Called while a model is opened or an image arrives, never while it steps. alloc() zeroes; all throw Error
  // when memory is short.
  virtual Tensor alloc(DType type, std::initializer_list<int64_t> shape) = 0;
  virtual void release(Tensor t) = 0;  // gives back what alloc() returned
  virtual KvCache kv_alloc(const KvCacheConfig& config);
  virtual void kv_release(const KvCache& kv);
  // Page `to` becomes a copy of page `from`, in op order. The default goes through the host and takes rows of kv.k
  // and kv.v to be slots; whoever lays a cache out otherwise overrides it with kv_alloc().
  virtual void kv_copy(const KvCache& kv, int32_t from, int32_t to);
  // Copies `parts`, stacked along rows, into this backend's own layout. All parts have the same format, cols and group.
  virtual Matrix upload(std::span<const Matrix> parts) = 0;
  // An uploaded matrix as bytes that a later process can take back without laying them out again. layout() names all
  // that the bytes depend on beside name(): what one process serializes, another loads where both are equal.
  // load_prepacked() checks the description against the size before it believes either; it throws Error, as do these
  // defaults.
  virtual std::string layout() const { return ""; }
  virtual PrepackedWeight serialize(const Matrix& uploaded);
  virtual Matrix load_prepacked(const PrepackedWeight& stored);
  virtual void write(Tensor dst, const void* src) = 0;  // contiguous dst; `src` may be reused on return
  virtual void read(void* dst, Tensor src) = 0;         // waits
  virtual int64_t memory_used() const = 0;              // bytes allocated

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
  // k = rope(norm(k) * k_norm); then kv_write. `query` may be q where their types agree. q, k and v are overwritten or
  // left as they are: read only query and the cache afterwards. scratch [rows, KV heads, dim] holds v where v is empty.
  struct QkNorms {
    Tensor q, k;  // F32 [dim]
    float eps;
  };
  virtual void qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const QkNorms& norms,
                                  Tensor pos, const Rope& rope, const KvCache& kv, const Rows& rows);

  // Tensor parallelism: this backend is one of world() ranks that compute one model together, each on a thread of its
  // own (ranks.h). All ranks call the collective ops in one order, with tensors of one shape. The defaults serve
  // ranks whose tensors lie in the host's memory and that join() tied together; without join() there is one rank.
  virtual int rank() const { return rank_; }
  virtual int world() const;
  virtual void all_reduce(Tensor x);  // x = its sum over the ranks, equal to the bit on all of them
  virtual void broadcast(Tensor x);   // x = rank 0's x
  // x [rows, n]: rank 0 takes columns begins[r] .. begins[r + 1] - 1 from rank r. What the others hold is undefined.
  virtual void gather_columns(Tensor x, std::span<const int64_t> begins);
  // Said for a rank that failed: collective ops that wait for it, and all later ones, throw DeviceError(why).
  virtual void abort(const std::string& why);
  void join(std::shared_ptr<ProcessGroup> group, int rank) { group_ = std::move(group), rank_ = rank; }

  // Runs `issue` and remembers what it launched under `key`; a backend with graphs replays them next time. Everything
  // that differs between two calls with one key must be read from device tensors.
  virtual void replay(uint64_t key, const std::function<void()>& issue) { (void)key, issue(); }
  virtual void sync() {}

  // Replayed steps since the start, and how many of their ops ran inside the decode megakernel (cuda). Zeros elsewhere.
  struct Stats {
    int64_t steps = 0;             // steps of one row that were offered to the megakernel
    int64_t megakernel_steps = 0;  // of those: no op was launched on its own
    int64_t ops = 0;               // of the last such step
    int64_t megakernel_ops = 0;    // of those: inside the megakernel
  };
  virtual Stats stats() const { return {}; }

 private:
  std::shared_ptr<ProcessGroup> group_;
  int rank_ = 0;
};

std::unique_ptr<Backend> make_ref();
std::unique_ptr<Backend> make_cpu(int threads);  // 0: all cores
std::unique_ptr<Backend> make_cuda(int device);  // throws Error where there is no CUDA in the build or no GPU
// GPUs 0 .. count-1 as the ranks of one model, tied together by NCCL. Throws Error where GPUs or NCCL are missing.
std::vector<std::unique_ptr<Backend>> make_cuda_ranks(int count);
// The GPU of this process as a rank of a model over the processes of `channel`, tied together by NCCL.
std::unique_ptr<Backend> make_cuda_rank(ControlChannel& channel);

// "ref", "cpu" or "cuda"; throws Error for another name.
std::unique_ptr<Backend> make_backend(const std::string& name, int threads);

}  // namespace gemma4
