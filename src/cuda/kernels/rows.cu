// What the kernels over rows and elements begin with, after common.cu: four elements
// at a time, and sums over a block.

typedef unsigned long long u64;

// Threads of the largest block that reduces.
#define THREADS 256

// What is left of x when T has stored it: libtorch rounds between two operations.
template <class T> __device__ inline float rounded(float x) {
  T stored;
  narrow(x, stored);
  return widen(stored);
}

// Four elements in one access of memory.
template <class T> struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

template <class T> __device__ inline bool whole(const T *p, i64 at, i64 n) {
  return at + 4 <= n && (u64)(p + at) % sizeof(Four<T>) == 0;
}

// p[at..at + 4], zeros beyond n.
template <class T>
__device__ inline void take(const T *p, i64 at, i64 n, float (&out)[4]) {
  if (whole(p, at, n)) {
    Four<T> four = *(const Four<T> *)(p + at);
    for (int j = 0; j < 4; ++j) out[j] = widen(four.at[j]);
  } else {
    for (int j = 0; j < 4; ++j) out[j] = at + j < n ? widen(p[at + j]) : 0.0f;
  }
}

// p[at..at + 4] = in, as far as n.
template <class T>
__device__ inline void put(T *p, i64 at, i64 n, const float (&in)[4]) {
  if (whole(p, at, n)) {
    Four<T> four;
    for (int j = 0; j < 4; ++j) narrow(in[j], four.at[j]);
    *(Four<T> *)(p + at) = four;
  } else {
    for (int j = 0; j < 4 && at + j < n; ++j) narrow(in[j], p[at + j]);
  }
}

// The sum over the block, the same for all its threads and in every run, since it
// goes by halves. The block is a power of two, at most THREADS.
__device__ inline float block_sum(float x) {
  __shared__ float part[THREADS];
  const u32 t = threadIdx.x;
  part[t] = x;
  for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) part[t] += part[t + half];
  }
  __syncthreads();
  float sum = part[0];
  __syncthreads(); // all have read it before the next call writes
  return sum;
}

__device__ inline float block_max(float x) {
  __shared__ float part[THREADS];
  const u32 t = threadIdx.x;
  part[t] = x;
  for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) part[t] = fmaxf(part[t], part[t + half]);
  }
  __syncthreads();
  float max = part[0];
  __syncthreads();
  return max;
}
