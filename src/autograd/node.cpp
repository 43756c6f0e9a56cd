// Gives Rust what tch lacks: an autograd node whose backward is a Rust closure.
// The only C++ of this crate; src/autograd/mod.rs is its one caller and its docs.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <memory>

using at::Tensor;
using torch::autograd::variable_list;

// Both receive tensors as libtorch's own handles; null means "no gradient". `call`
// gives up ownership of what it writes to `out`, and fills `error` when it fails.
typedef bool (*CallFn)(void *state, Tensor **grads, size_t n_grads, Tensor **out,
                       size_t n_out, char *error, size_t error_len);
typedef void (*DropFn)(void *state);

struct RustNode : torch::autograd::Node {
  void *state;
  CallFn call;
  DropFn drop;

  RustNode(void *s, CallFn c, DropFn d) : state(s), call(c), drop(d) {}
  ~RustNode() override { release(); }
  std::string name() const override { return "RustFunction"; }

  variable_list apply(variable_list &&grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(state, "this graph's state was freed by an earlier backward; "
                       "pass keep_graph to run backward twice");
    std::vector<Tensor *> in(grads.size()), out(num_outputs(), nullptr);
    for (size_t i = 0; i < in.size(); ++i)
      in[i] = grads[i].defined() ? &grads[i] : nullptr;
    char error[4096] = "";
    bool ok = call(state, in.data(), in.size(), out.data(), out.size(), error,
                   sizeof error);
    variable_list result(out.size());
    for (size_t i = 0; i < out.size(); ++i)
      if (std::unique_ptr<Tensor> owned{out[i]}) result[i] = *owned;
    TORCH_CHECK(ok, error);
    return result;
  }
  // Called by the engine after `apply` unless the graph is kept.
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    release();
  }
  void release() {
    if (state) drop(state);
    state = nullptr;
  }
};

// oneDNN's product, which libtorch itself takes for bf16 and not for f32
// (ATen/native/mkldnn/Matmul.h, not among the installed headers).
namespace at::native {
void mkldnn_matmul(const Tensor &, const Tensor &, const Tensor &, float, float);
}

// oneDNN compiles a product for each shape of its factors and keeps it, and so does
// libtorch's wrapper around it: two thirds of a MiB in all, for up to 1,024 shapes, and
// with rows of unequal lengths nearly every step brings new ones. Both read how many to
// keep when they are first used. 64 are more than a step takes, and what is set already
// stays.
static const int kept = setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64", 0) +
                        setenv("LRU_CACHE_CAPACITY", "64", 0);

extern "C" {
// out = a b + beta out, by oneDNN. 0, or 1 and why not.
int dh_onednn_mm(Tensor *a, Tensor *b, Tensor *out, float beta, char *error,
                 size_t len) {
  try {
    at::native::mkldnn_matmul(*a, *b, *out, beta, 1.f);
    return 0;
  } catch (const std::exception &e) {
    std::strncpy(error, e.what(), len - 1);
    return 1;
  }
}

// Makes `outputs` depend on `inputs` through the closure. Returns 0 when recorded, 1
// when nothing needs a gradient (the caller keeps `state`), 2 on error.
int dh_attach(Tensor **inputs, size_t n_in, Tensor **outputs, size_t n_out,
              void *state, CallFn call, DropFn drop, char *error, size_t len) {
  try {
    variable_list in, out;
    bool needed = false;
    for (size_t i = 0; i < n_in; ++i) {
      in.push_back(*inputs[i]);
      needed |= inputs[i]->requires_grad();
    }
    if (!needed || !at::GradMode::is_enabled()) return 1;
    std::shared_ptr<RustNode> node(new RustNode(state, call, drop),
                                   torch::autograd::deleteNode);
    node->set_next_edges(torch::autograd::collect_next_edges(in));
    for (size_t i = 0; i < n_out; ++i) out.push_back(*outputs[i]);
    torch::autograd::set_history(out, node);
    return 0;
  } catch (const std::exception &e) {
    std::strncpy(error, e.what(), len - 1);
    return 2;
  }
}

// `.grad = None`, for which tch has no call.
void dh_clear_grad(Tensor *t) { t->mutable_grad().reset(); }

// Takes the algorithms that give the same bits again. cuBLAS wants its workspace named
// for that. New tensors are not filled, which libtorch would add.
void dh_deterministic(bool on) {
  if (on) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  at::globalContext().setDeterministicFillUninitializedMemory(!on);
  at::globalContext().setDeterministicAlgorithms(on, false);
}

// The most bytes handed out and reserved on a GPU since the start, or since this was
// last asked `anew`. False: nothing was asked of its allocator yet.
bool dh_device_peak(int index, bool anew, uint64_t *found) {
  try {
    auto *all = c10::getDeviceAllocator(c10::kCUDA);
    if (!all->initialized()) return false;
    auto stats = all->getDeviceStats(static_cast<c10::DeviceIndex>(index));
    found[0] = stats.allocated_bytes[0].peak; // of both pools
    found[1] = stats.reserved_bytes[0].peak;
    if (anew) all->resetPeakStats(static_cast<c10::DeviceIndex>(index));
    return true;
  } catch (const std::exception &) {
    return false;
  }
}

// Loads a shared library, its symbols for all to see. Null, or why not.
const char *dh_load_library(const char *name) {
  return dlopen(name, RTLD_NOW | RTLD_GLOBAL) ? nullptr : dlerror();
}

// The address of a function in any of the loaded libraries. Null: there is none.
void *dh_symbol(const char *name) { return dlsym(RTLD_DEFAULT, name); }

// The file that the code at this address was loaded from. Null: not known.
const char *dh_file_of(const void *address) {
  Dl_info info;
  return dladdr(address, &info) ? info.dli_fname : nullptr;
}

// Splits [0, n) over libtorch's own threads, so that our CPU kernels and its matrix
// products do not compete for cores.
void dh_parallel_for(int64_t n, int64_t grain, void *ctx,
                     void (*body)(void *, int64_t, int64_t)) {
  at::parallel_for(0, n, grain,
                   [=](int64_t begin, int64_t end) { body(ctx, begin, end); });
}
}
