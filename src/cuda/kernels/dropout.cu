// Dropout whose mask is a function of (seed, step, place) and of where an element
// lies: backward draws it again. The masks are those of src/nn/dropout.rs, bit for
// bit.

// Philox4x32-10: Salmon et al. 2011.
__device__ inline void philox(u32 (&c)[4], u32 k0, u32 k1) {
  for (int round = 0; round < 10; ++round) {
    u64 p = (u64)c[0] * 0xD2511F53u, q = (u64)c[2] * 0xCD9E8D57u;
    c[0] = (u32)(q >> 32) ^ c[1] ^ k0;
    c[1] = (u32)q;
    c[2] = (u32)(p >> 32) ^ c[3] ^ k1;
    c[3] = (u32)p;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

// y = x times 0, where a draw of 16 bits is below `below`, or `kept`. A counter
// gives eight draws: 16 threads beside each other have 128 elements, of each
// thread's words the low halves, then the high ones, lane by lane.
template <class X>
__device__ void dropped(const X *x, X *y, i64 n, i64 at, u32 counter, u64 seed,
                        u64 step, u32 place, u32 below, float kept) {
  i64 first = at / 16 * 128 + at % 16;
  if (first >= n) return;
  u32 words[4] = {counter, place, (u32)step, (u32)(step >> 32)};
  philox(words, (u32)seed, (u32)(seed >> 32));
  for (int j = 0; j < 8; ++j) {
    i64 i = first + 16 * j;
    u32 draw = words[j / 2] >> j % 2 * 16 & 0xFFFFu;
    if (i < n) narrow(widen(x[i]) * (draw >= below ? kept : 0.0f), y[i]);
  }
}

__device__ inline i64 thread() {
  return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// The same for rows of several dropouts, sorted by them: `owner` says whose a row is,
// and `ends` where those of each end. Its elements are counted from the first row of
// its own, and its place is `apart` after that of the one before. A row is some
// groups of 128 elements, and has `counters` of 16 for each.
template <class X>
__device__ void dropped_rows(const X *x, X *y, i64 n, i64 counters,
                             const i64 *owner, const int *ends, u64 seed, u64 step,
                             u32 place, u32 apart, u32 below, float kept) {
  i64 at = thread(), row = at / counters;
  if (row * counters * 8 >= n) return;
  i64 e = owner[row], start = e == 0 ? 0 : ends[e - 1];
  dropped(x, y, n, at, (u32)(at - start * counters), seed, step,
          place + (u32)e * apart, below, kept);
}

#define FOR(X, NAME)                                                                \
  extern "C" __global__ void dropout_##NAME(const X *x, X *y, i64 n, u64 seed,      \
                                            u64 step, u32 place, u32 below,         \
                                            float kept) {                           \
    dropped(x, y, n, thread(), (u32)thread(), seed, step, place, below, kept);      \
  }
#define ROWS(X, NAME)                                                               \
  extern "C" __global__ void dropout_rows_##NAME(                                   \
      const X *x, X *y, i64 n, i64 counters, const i64 *owner, const int *ends,     \
      u64 seed, u64 step, u32 place, u32 apart, u32 below, float kept) {            \
    dropped_rows(x, y, n, counters, owner, ends, seed, step, place, apart, below,   \
                 kept);                                                             \
  }
FOR(float, f32)
FOR(bf16, bf16)
ROWS(float, f32)
ROWS(bf16, bf16)
