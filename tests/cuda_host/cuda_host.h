// Runs CUDA kernels on a CPU, so that a test needs no card: put before a kernel's
// own source, it gives a C++ compiler the words of CUDA that our kernels use. A
// block is a set of fibers, which change places at `__syncthreads` only; blocks run
// one after another. What is checked is arithmetic, indices and barriers, not the
// memory model.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

struct dim3 {
  unsigned x, y, z;
};
extern thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __ldg(p) (*(p))

void __syncthreads();

// What thread `threadIdx.x ^ mask` gives; here all threads of the block have to come.
float __shfl_xor_sync(unsigned, float x, int mask);

struct uint4 {
  unsigned x, y, z, w;
};

using std::max, std::min;

// The roundings that we ask for by name; compiled with -ffp-contract=off, each
// operation is one of them.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.f / std::sqrt(a); }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }

template <class To, class From> inline To same_bits(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return (unsigned)((unsigned long long)a * b >> 32);
}

// 0, or 1 where some threads of a block wait at a barrier that others do not reach.
int run_grid(const unsigned *grid, const unsigned *block, bool backwards,
             const std::function<void()> &thread);

// Calls a kernel with arguments by their addresses, as `cuLaunchKernel` does.
template <class... A, size_t... I>
int run_kernel(void (*kernel)(A...), void **args, const unsigned *grid,
               const unsigned *block, bool backwards, std::index_sequence<I...>) {
  return run_grid(grid, block, backwards, [=] { kernel(*(A *)args[I]...); });
}

template <class... A>
int run_kernel(void (*kernel)(A...), void **args, const unsigned *grid,
               const unsigned *block, bool backwards) {
  return run_kernel(kernel, args, grid, block, backwards,
                    std::index_sequence_for<A...>());
}

// Exports a kernel as `run_<its name>_<tag>`.
#define EXPORT(NAME, TAG)                                                           \
  extern "C" __attribute__((visibility("default"))) int run_##NAME##_##TAG(         \
      void **args, const unsigned *grid, const unsigned *block, bool backwards) {   \
    return run_kernel(NAME, args, grid, block, backwards);                          \
  }

// f16 by its bits, as a card rounds it: to the nearest, ties to even.
unsigned short f16_bits(float x);
float f16_value(unsigned short bits);
