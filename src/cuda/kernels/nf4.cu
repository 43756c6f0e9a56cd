// 4-bit weights: the rules of src/quant/nf4.rs and double.rs, bit for bit. Products
// and sums that are rounded one by one there are so here (`__fmul_rn`, `__fadd_rn`):
// the compiler would make one fused operation of them, with another last bit.

// nf4::CODE and nf4::THRESHOLDS.
__constant__ float LEVEL[16] = {
    -1.0f,        -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
    -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
    0.44070983f,   0.562617f,    0.72295684f,  1.0f};

__device__ inline int code_of(float x) {
  const float border[15] = {
      -0.84809643f, -0.6106329f,  -0.45999527f, -0.33967942f, -0.2346074f,
      -0.13791174f, -0.045525018f, 0.03979015f,  0.120255254f, 0.20352125f,
      0.29201376f,   0.38931254f,  0.5016634f,   0.6427869f,   0.8614784f};
  int code = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) code += x > border[i];
  return code;
}

// The levels in shared memory: 16 in 16 banks, so that no two threads ever wait for
// one another, whichever they look up.
__device__ inline void load_levels(float *levels) {
  if (threadIdx.x < 16) levels[threadIdx.x] = LEVEL[threadIdx.x];
  __syncthreads();
}

// Element `e` of a little-endian word of codes: two to a byte, the first one high.
__device__ inline int nibble(u32 word, int e) { return word >> 4 * (e ^ 1) & 15; }

// The scales of blocks of `1 << shift` weights. Without `codes` they are `absmax`;
// with them, `level[codes] absmax + offset`, one absmax for 256.
struct Scales {
  const u8 *codes;
  const float *absmax, *level;
  float offset;
  int shift;

  __device__ float of(i64 weight) const {
    i64 block = weight >> shift;
    if (!codes) return absmax[block];
    return __fadd_rn(__fmul_rn(level[codes[block]], absmax[block >> 8]), offset);
  }
};

// Weights again. A thread writes 16 bytes at a time, and a warp 512 in a row; four
// times, so that four loads are on their way before the first is used. A block of
// threads that meets the end, or addresses off the grid, goes weight by weight.
const int ROUNDS = 4;

template <class T>
__device__ void dequantize(const u8 *__restrict__ packed, Scales scales,
                           T *__restrict__ out, i64 n) {
  __shared__ float levels[16];
  load_levels(levels);
  const int wide = Wide<T>::COUNT;
  const i64 step = (i64)blockDim.x * wide;
  const i64 start = blockIdx.x * step * ROUNDS;
  const i64 end = start + step * ROUNDS;
  if (end > n || !aligned(packed) || !aligned(out)) {
    for (i64 i = start + threadIdx.x; i < end && i < n; i += blockDim.x) {
      int code = nibble(packed[i / 2], i & 1);
      narrow(__fmul_rn(levels[code], scales.of(i)), out[i]);
    }
    return;
  }
  u32 words[ROUNDS];
  float scale[ROUNDS];
  const i64 first = start + threadIdx.x * wide;
#pragma unroll
  for (int k = 0; k < ROUNDS; ++k) {
    const u8 *at = packed + (first + k * step) / 2;
    words[k] = wide == 8 ? *(const u32 *)at : *(const u16 *)at;
  }
#pragma unroll
  for (int k = 0; k < ROUNDS; ++k) scale[k] = scales.of(first + k * step);
#pragma unroll
  for (int k = 0; k < ROUNDS; ++k) {
    float w[wide];
#pragma unroll
    for (int e = 0; e < wide; ++e)
      w[e] = __fmul_rn(levels[nibble(words[k], e)], scale[k]);
    Wide<T> to;
    pack(w, to);
    *(Wide<T> *)(out + first + k * step) = to;
  }
}

// Of one of several matrices, as many as fit into the 4 KB of a kernel's arguments.
struct Matrix {
  const u8 *packed;
  Scales scales;
};
struct Matrices {
  Matrix at[64];
};

// To 4 bits: eight weights to a thread, `blocksize / 8` threads to a block of
// weights, whose maximum they find in halves of halves.
template <class T>
__device__ void quantize(const T *__restrict__ w, u8 *__restrict__ packed,
                         float *__restrict__ absmax, int blocksize, i64 n) {
  __shared__ int top[512];
  const int t = threadIdx.x;
  const i64 first = ((i64)blockIdx.x * blockDim.x + t) * 8;
  const bool whole = first + 8 <= n && aligned(w) && aligned(packed);
  const int wide = Wide<T>::COUNT;
  float x[8];
  if (whole) {
#pragma unroll
    for (int e = 0; e < 8; e += wide)
      unpack(*(const Wide<T> *)(w + first + e), x + e);
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) x[e] = first + e < n ? widen(w[first + e]) : 0.0f;
  }
  int most = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    // Without its sign a float is ordered as the integer of its bits, with infinity
    // and NaN on top.
    int size = __float_as_int(x[e]) & 0x7FFFFFFF;
    most = size > most ? size : most;
  }
  const int group = blocksize / 8, place = t & (group - 1);
  top[t] = most;
  for (int d = group / 2; d > 0; d /= 2) {
    __syncthreads();
    if (place < d && top[t + d] > top[t]) top[t] = top[t + d];
  }
  __syncthreads();
  if (first >= n) return;
  const float scale = __int_as_float(top[t - place]);
  if (place == 0) absmax[first / blocksize] = scale;
  const float inverse = __fdiv_rn(1.0f, scale);
  u32 codes = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    codes |= (u32)code_of(__fmul_rn(x[e], inverse)) << 4 * (e ^ 1);
  u8 *to = packed + first / 2;
  if (whole) {
    *(u32 *)to = codes;
  } else {
    for (int i = 0; i < 4 && first + 2 * i < n; ++i) to[i] = (u8)(codes >> 8 * i);
  }
}

// A layer: the matrix W of a product, and what it adds to W x: a bias, and B h of a
// low-rank update, h = s A x.
struct Layer {
  const u8 *packed;
  Scales scales;
  const void *bias;   // [out], of the kind of x, or none
  const float *a, *b; // [rank, in] and [out, rank], or none
  float *h;           // [rows, rank]
  void *y;            // [rows, out]
  i64 out;
  int rank;
  float scale;
};

// Those of one launch.
struct Group {
  Layer at[3];
};

// h, a block to a row of one of the A and to a row of x. A is rounded to the kind of x,
// and each result as libtorch would store it.
template <class T>
__device__ void lower(const Group &group, const T *__restrict__ x, i64 in) {
  int i = 0, row = blockIdx.x;
  while (row >= group.at[i].rank) row -= group.at[i].rank, ++i;
  const Layer &w = group.at[i];
  const float *a = w.a + row * in;
  x += blockIdx.y * in;
  float sum = 0.0f;
  for (i64 c = 4 * threadIdx.x; c < in; c += 4 * blockDim.x) {
    float u[4], v[4];
    take(a, c, in, u), take(x, c, in, v);
    for (int j = 0; j < 4; ++j) sum += rounded<T>(u[j]) * v[j];
  }
  sum = rounded<T>(block_sum(sum));
  if (threadIdx.x == 0) w.h[blockIdx.y * w.rank + row] = rounded<T>(sum * w.scale);
}

// The element of W x, and what its layer adds.
template <class T>
__device__ float finish(const Layer &w, float sum, i64 row, int m) {
  sum = rounded<T>(sum);
  if (w.bias) sum = rounded<T>(sum + widen(((const T *)w.bias)[row]));
  if (!w.b) return sum;
  const float *b = w.b + row * w.rank, *h = w.h + m * w.rank;
  float more = 0.0f;
  for (int k = 0; k < w.rank; ++k) more += rounded<T>(b[k]) * h[k];
  return rounded<T>(sum + more);
}

// y = x W^T for a few rows of x: W [out, in] is read once, in 4 bits, and never
// written. A block of threads takes R rows of W, a thread 32 weights of each at a
// time, which share a scale; `in` is a multiple of 32. M is the room for rows of x.
// With P = 1 the matrices of a group come one after another; with P = 2 a block has the
// same rows of two, a gate and what it gates: y = silu(gate) up, as in swiglu.cu.
template <class T, int M, int R, int P>
__device__ void matvec(const Group &group, const T *__restrict__ x, int rows, i64 in) {
  __shared__ float levels[16];
  __shared__ float parts[P * R * M][16][17]; // one more than 16: no two in one bank
  load_levels(levels);
  const int wide = Wide<T>::COUNT;
  int row = blockIdx.x * R;
  int first = 0;
  if (P == 1) {
    for (int all; row >= (all = (group.at[first].out + R - 1) / R * R); ++first)
      row -= all;
  }
  const int out = group.at[first].out;
  float sum[P * R * M] = {};
  for (i64 c = (i64)threadIdx.x * 32; c < in; c += (i64)blockDim.x * 32) {
    Wide<u8> words[P * R];
    float scale[P * R];
#pragma unroll
    for (int r = 0; r < P * R; ++r) {
      // Rows past the last read the last one again, and are not written.
      const int own = row + r % R;
      const i64 at = (i64)(own < out ? own : out - 1) * in + c;
      const Layer &w = group.at[first + r / R];
      words[r] = *(const Wide<u8> *)(w.packed + at / 2);
      scale[r] = w.scales.of(at);
    }
#pragma unroll
    for (int r = 0; r < P * R; ++r) {
      float w[32];
#pragma unroll
      for (int e = 0; e < 32; ++e)
        w[e] = levels[nibble(words[r].word[e / 8], e % 8)];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (m >= rows) break;
        float dot = 0.0f;
#pragma unroll
        for (int e = 0; e < 32; e += wide) {
          float v[wide];
          unpack(*(const Wide<T> *)(x + m * in + c + e), v);
#pragma unroll
          for (int k = 0; k < wide; ++k) dot += w[e + k] * v[k];
        }
        sum[r * M + m] += scale[r] * dot;
      }
    }
  }
  // The sums of 16 threads each, then the sum of those, always in this order.
  const int t = threadIdx.x, groups = blockDim.x / 16;
#pragma unroll
  for (int i = 0; i < P * R * M; ++i) parts[i][t / 16][t % 16] = sum[i];
  __syncthreads();
  for (int s = t; s < P * R * M * groups; s += blockDim.x) {
    float *part = parts[s / groups][s % groups], total = 0.0f;
    for (int k = 0; k < 16; ++k) total += part[k];
    part[16] = total;
  }
  __syncthreads();
  const int m = t % M, of = t / M / R;
  row += t / M % R;
  const bool mine = t < P * R * M && row < out && m < rows;
  float total = 0.0f;
  if (mine) {
    for (int k = 0; k < groups; ++k) total += parts[t][k][16];
    total = finish<T>(group.at[first + of], total, row, m);
  }
  if (P == 2) {
    __shared__ float up[R * M];
    if (mine && of == 1) up[t - R * M] = total;
    __syncthreads();
    if (mine && of == 0) total = rounded<T>(total / (1.0f + expf(-total))) * up[t];
  }
  if (mine && of == 0) narrow(total, ((T *)group.at[first].y)[(i64)m * out + row]);
}

#define SCALES \
  const u8 *codes, const float *absmax, const float *level, float offset, int shift
#define MATVEC(what, name, T, M, R, P)                                             \
  extern "C" __global__ void __launch_bounds__(256)                                \
      nf4_##what##M##_##name(Group group, const T *x, int rows, i64 in) {          \
    matvec<T, M, R, P>(group, x, rows, in);                                        \
  }
#define KERNELS(name, T)                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                \
      nf4_dequantize_##name(const u8 *packed, SCALES, T *out, i64 n) {             \
    Scales scales = {codes, absmax, level, offset, shift};                         \
    dequantize(packed, scales, out, n);                                            \
  }                                                                                \
  /* Matrices of n weights each, one after another: blockIdx.y names one. */       \
  extern "C" __global__ void __launch_bounds__(256)                                \
      nf4_dequantize_all_##name(Matrices matrices, T *out, i64 n) {                \
    const Matrix &one = matrices.at[blockIdx.y];                                   \
    dequantize(one.packed, one.scales, out + blockIdx.y * n, n);                   \
  }                                                                                \
  extern "C" __global__ void nf4_lower_##name(Group group, const T *x, i64 in) {   \
    lower(group, x, in);                                                           \
  }                                                                                \
  MATVEC(matvec, name, T, 1, 4, 1)                                                 \
  MATVEC(matvec, name, T, 2, 2, 1)                                                 \
  MATVEC(matvec, name, T, 4, 1, 1)                                                 \
  MATVEC(matvec, name, T, 8, 1, 1)
#define SWIGLU(name, T)                                                            \
  MATVEC(swiglu, name, T, 1, 2, 2)                                                 \
  MATVEC(swiglu, name, T, 2, 1, 2)                                                 \
  MATVEC(swiglu, name, T, 4, 1, 2)                                                 \
  MATVEC(swiglu, name, T, 8, 1, 2)
#define QUANTIZE(name, T)                                                          \
  extern "C" __global__ void __launch_bounds__(512)                                \
      nf4_quantize_##name(const T *w, u8 *packed, float *absmax, int blocksize,    \
                          i64 n) {                                                 \
    quantize(w, packed, absmax, blocksize, n);                                     \
  }

KERNELS(f32, float)
KERNELS(bf16, bf16)
KERNELS(f16, f16)
QUANTIZE(f32, float)
QUANTIZE(bf16, bf16)
SWIGLU(f32, float)
SWIGLU(bf16, bf16)
