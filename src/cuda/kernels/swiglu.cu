// SwiGLU, four elements to a thread: y = silu(gate) up, silu(x) = x sigmoid(x). Its
// definition is libtorch's silu and product, each of which rounds.

template <class T> __device__ void forward(const T *gate, const T *up, T *y, i64 n) {
  i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  float g[4], u[4];
  take(gate, i, n, g), take(up, i, n, u);
  for (int j = 0; j < 4; ++j) g[j] = rounded<T>(g[j] / (1.0f + expf(-g[j]))) * u[j];
  put(y, i, n, g);
}

// d silu(x)/dx = s (1 + x (1 - s)) with s = sigmoid(x).
template <class T>
__device__ void backward(const T *dy, const T *gate, const T *up, T *dgate, T *dup,
                         i64 n) {
  i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  float d[4], g[4], u[4];
  take(dy, i, n, d), take(gate, i, n, g), take(up, i, n, u);
  for (int j = 0; j < 4; ++j) {
    float x = g[j], s = 1.0f / (1.0f + expf(-x));
    g[j] = rounded<T>(d[j] * u[j]) * (s * (1.0f + x * (1.0f - s)));
    u[j] = d[j] * rounded<T>(x * s);
  }
  put(dgate, i, n, g), put(dup, i, n, u);
}

#define FOR(T, NAME)                                                                \
  extern "C" __global__ void swiglu_##NAME(const T *gate, const T *up, T *y,        \
                                           i64 n) {                                 \
    forward(gate, up, y, n);                                                        \
  }                                                                                 \
  extern "C" __global__ void swiglu_backward_##NAME(                                \
      const T *dy, const T *gate, const T *up, T *dgate, T *dup, i64 n) {           \
    backward(dy, gate, up, dgate, dup, n);                                          \
  }
FOR(float, f32)
FOR(bf16, bf16)
