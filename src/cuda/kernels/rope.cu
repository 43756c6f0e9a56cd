// Rotary positions: turns the pairs of each head of x [N, H, K] by the angles of its
// token, whose cosines and sines [N, K] hold each angle twice. Its definition is
// `Rotation` in src/nn/rope.rs, whose every rounding is here too: products and sums in
// A, the kind of the angles, and the result in T.

// A thread has the pairs i..i + 4 of one head. The two of a pair lie K/2 apart, or
// are neighbours: `from` and `to` say which, for x and for y. `sign` -1 turns back.
template <class T, class A>
__device__ void turn(const T *x, i64 by_token, i64 by_head, const A *cos,
                     const A *sin, T *y, i64 tokens, i64 heads, i64 half, bool from,
                     bool to, float sign) {
  i64 at = (i64)blockIdx.x * blockDim.x + threadIdx.x, fours = (half + 3) / 4;
  i64 i = at % fours * 4, head = at / fours % heads, token = at / fours / heads;
  if (token >= tokens) return;
  x += token * by_token + head * by_head;
  y += (token * heads + head) * 2 * half;
  float a[4], b[4], c[4], s[4];
  take(cos + token * 2 * half, i, half, c), take(sin + token * 2 * half, i, half, s);
  if (from) {
    for (int j = 0; j < 4 && i + j < half; ++j)
      a[j] = widen(x[2 * (i + j)]), b[j] = widen(x[2 * (i + j) + 1]);
  } else {
    take(x, i, half, a), take(x + half, i, half, b);
  }
  for (int j = 0; j < 4; ++j) {
    float across = sign * s[j], before = a[j];
    a[j] = rounded<A>(__fmul_rn(a[j], c[j])) - rounded<A>(__fmul_rn(b[j], across));
    b[j] = rounded<A>(__fmul_rn(b[j], c[j])) + rounded<A>(__fmul_rn(before, across));
  }
  if (to) {
    for (int j = 0; j < 4 && i + j < half; ++j)
      narrow(a[j], y[2 * (i + j)]), narrow(b[j], y[2 * (i + j) + 1]);
  } else {
    put(y, i, half, a), put(y + half, i, half, b);
  }
}

#define FOR(T, A, NAME)                                                             \
  extern "C" __global__ void rope_##NAME(                                           \
      const T *x, i64 by_token, i64 by_head, const A *cos, const A *sin, T *y,      \
      i64 tokens, i64 heads, i64 half, int from, int to, float sign) {              \
    turn(x, by_token, by_head, cos, sin, y, tokens, heads, half, from, to, sign);   \
  }
FOR(float, float, f32_f32)
FOR(bf16, bf16, bf16_bf16)
FOR(bf16, float, bf16_f32)
