// RMSNorm, a block to a row of D: with r = 1/sqrt(mean(x^2) + eps), y = w (r x). Its
// definition is `RmsNorm` in src/nn/norm.rs.

// If `added` is given the row is x + added, which goes to `sum`: the residual
// stream. `r` is kept for backward.
template <class T>
__device__ void forward(const T *x, const T *added, T *sum, const T *w, T *y,
                        float *r, i64 d, float eps) {
  i64 row = blockIdx.x;
  x += row * d;
  float squares = 0.0f;
  for (i64 i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
    float v[4];
    take(x, i, d, v);
    if (added) {
      float a[4];
      take(added + row * d, i, d, a);
      for (int j = 0; j < 4; ++j) v[j] = rounded<T>(v[j] + a[j]);
      put(sum + row * d, i, d, v);
    }
    for (int j = 0; j < 4; ++j) squares += v[j] * v[j];
  }
  float by = rsqrtf(block_sum(squares) / (float)d + eps);
  if (threadIdx.x == 0) r[row] = by;
  // A thread reads again what it wrote itself.
  const T *from = added ? sum + row * d : x;
  for (i64 i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
    float v[4], scale[4];
    take(from, i, d, v);
    take(w, i, d, scale);
    for (int j = 0; j < 4; ++j) v[j] = scale[j] * rounded<T>(v[j] * by);
    put(y + row * d, i, d, v);
  }
}

// dx = r (g - n mean(g n)) with n = r x and g = w dy; plus what reaches x by the
// residual stream, if given.
template <class T>
__device__ void backward(const T *dy, const T *x, const T *w, const float *r,
                         const T *beside, T *dx, i64 d) {
  i64 row = blockIdx.x;
  dy += row * d, x += row * d, dx += row * d;
  float by = r[row], along = 0.0f;
  float g[4], n[4], scale[4];
  for (i64 i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
    take(dy, i, d, g), take(x, i, d, n), take(w, i, d, scale);
    for (int j = 0; j < 4; ++j) along += g[j] * scale[j] * (n[j] * by);
  }
  along = block_sum(along) / (float)d;
  for (i64 i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
    float more[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    take(dy, i, d, g), take(x, i, d, n), take(w, i, d, scale);
    if (beside) take(beside + row * d, i, d, more);
    for (int j = 0; j < 4; ++j)
      g[j] = (g[j] * scale[j] - n[j] * by * along) * by + more[j];
    put(dx, i, d, g);
  }
}

// dw = sum over rows of dy n: the rows blockIdx.y, + gridDim.y, .. into one row of
// `part` [gridDim.y, D], a thread to four columns.
template <class T>
__device__ void backward_weight(const T *dy, const T *x, const float *r, float *part,
                                i64 rows, i64 d) {
  i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= d) return;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, g[4], n[4];
  for (i64 row = blockIdx.y; row < rows; row += gridDim.y) {
    take(dy + row * d, i, d, g), take(x + row * d, i, d, n);
    for (int j = 0; j < 4; ++j) sum[j] += g[j] * (n[j] * r[row]);
  }
  put(part + blockIdx.y * d, i, d, sum);
}

#define FOR(T, NAME)                                                                \
  extern "C" __global__ void rms_norm_##NAME(const T *x, const T *added, T *sum,    \
                                             const T *w, T *y, float *r, i64 d,     \
                                             float eps) {                           \
    forward(x, added, sum, w, y, r, d, eps);                                        \
  }                                                                                 \
  extern "C" __global__ void rms_norm_backward_##NAME(                              \
      const T *dy, const T *x, const T *w, const float *r, const T *beside, T *dx,  \
      i64 d) {                                                                      \
    backward(dy, x, w, r, beside, dx, d);                                           \
  }                                                                                 \
  extern "C" __global__ void rms_norm_weight_##NAME(                                \
      const T *dy, const T *x, const float *r, float *part, i64 rows, i64 d) {      \
    backward_weight(dy, x, r, part, rows, d);                                       \
  }
FOR(float, f32)
FOR(bf16, bf16)
