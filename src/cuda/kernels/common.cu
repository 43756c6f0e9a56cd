// What every kernel begins with: names for integers, and numbers of 16 bits by their
// bits, since there are no headers here. NVRTC compiles this for a card; the tests
// compile the same text with the C++ compiler, and have their own `f16_bits` and
// `f16_value` (as they have their own `threadIdx` and `__syncthreads`).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

#ifdef __CUDA_ARCH__
__device__ inline u16 f16_bits(float x) {
  u16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

__device__ inline float f16_value(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
#endif

// The nearest bf16, of two the even one; NaN as a card writes it.
__device__ inline u16 bf16_bits(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
#else
  u32 bits = __float_as_uint(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return (u16)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
#endif
}

// To f32, which is exact, and from it, with one rounding.
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ inline float widen(f16 x) { return f16_value(x.bits); }

__device__ inline void narrow(float x, float &y) { y = x; }
__device__ inline void narrow(float x, bf16 &y) { y.bits = bf16_bits(x); }
__device__ inline void narrow(float x, f16 &y) { y.bits = f16_bits(x); }

// 16 bytes, the most that a thread moves at a time: 4 f32, or 8 numbers of 16 bits.
template <class T> struct alignas(16) Wide {
  static const int COUNT = 16 / sizeof(T);
  u32 word[4];
};

// Them as floats. The compiler makes registers of the arrays.
template <class T> __device__ inline void unpack(Wide<T> from, float *to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    T low = {(u16)from.word[i]}, high = {(u16)(from.word[i] >> 16)};
    to[2 * i] = widen(low), to[2 * i + 1] = widen(high);
  }
}

__device__ inline void unpack(Wide<float> from, float *to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = __uint_as_float(from.word[i]);
}

// `low` and `high` side by side, the first one first in memory.
template <class T> __device__ inline u32 pair(float low, float high) {
  T a, b;
  narrow(low, a), narrow(high, b);
  return (u32)b.bits << 16 | a.bits;
}

template <class T> __device__ inline void pack(const float *from, Wide<T> &to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to.word[i] = pair<T>(from[2 * i], from[2 * i + 1]);
}

__device__ inline void pack(const float *from, Wide<float> &to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to.word[i] = __float_as_uint(from[i]);
}

template <class T> __device__ inline bool aligned(const T *address) {
  return (unsigned long long)address % 16 == 0;
}
