// New tokens on their way into attention, in one launch: queries [N, H, K] and keys
// [N, G, K] are turned by their positions' angles as in rope.cu; keys go to the cache,
// and values beside them. Its definition is `LayerCache::turned` in src/nn/cache.rs.

// A thread has the pairs i..i + 4 of one head, K/2 apart. A token's heads are numbered
// through: H queries, G keys, G values. Token n is the t-th of row b.
template <class T>
__device__ void turn_and_store(const T *q, const T *k, const T *v, const T *cos,
                               const T *sin, T *y, T *room, i64 by_row, i64 by_group,
                               i64 by_token, i64 tokens, i64 each, i64 heads,
                               i64 groups, i64 half) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x, fours = (half + 3) / 4;
  i64 i = at % fours * 4, head = at / fours % (heads + 2 * groups);
  i64 n = at / fours / (heads + 2 * groups);
  if (n >= tokens) return;
  const T *from;
  T *to;
  if (head < heads) {
    from = q + (n * heads + head) * 2 * half, to = y + (n * heads + head) * 2 * half;
  } else {
    i64 g = (head - heads) % groups;
    bool value = head >= heads + groups;
    from = (value ? v : k) + (n * groups + g) * 2 * half;
    to = room + n / each * by_row + g * by_group + n % each * by_token;
    if (value) to += 2 * half;
  }
  float a[4], b[4];
  take(from, i, half, a), take(from + half, i, half, b);
  if (head < heads + groups) {
    float c[4], s[4];
    take(cos + n * 2 * half, i, half, c), take(sin + n * 2 * half, i, half, s);
    for (int j = 0; j < 4; ++j) {
      float before = a[j];
      a[j] = rounded<T>(a[j] * c[j]) - b[j] * s[j];
      b[j] = rounded<T>(b[j] * c[j]) + before * s[j];
    }
  }
  put(to, i, half, a), put(to + half, i, half, b);
}

#define FOR(T, NAME)                                                                \
  extern "C" __global__ void turn_and_store_##NAME(                                 \
      const T *q, const T *k, const T *v, const T *cos, const T *sin, T *y,         \
      T *room, i64 by_row, i64 by_group, i64 by_token, i64 tokens, i64 each,        \
      i64 heads, i64 groups, i64 half) {                                            \
    turn_and_store(q, k, v, cos, sin, y, room, by_row, by_group, by_token, tokens,  \
                   each, heads, groups, half);                                      \
  }
FOR(float, f32)
FOR(bf16, bf16)
