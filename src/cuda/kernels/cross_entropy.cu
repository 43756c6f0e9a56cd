// Cross-entropy of scores z [rows, V] against the targets, a block to a row, in f32:
// loss = -log softmax(z)[target], and z becomes its gradient, softmax(z) -
// 1[target]. Its definition is `cross_entropy` in src/nn/cross_entropy.rs.

template <class T>
__device__ void rows(T *z, const i64 *targets, float *loss, i64 v, i64 ignored,
                     bool gradient) {
  i64 row = blockIdx.x, target = targets[row];
  z += row * v;
  bool counts = target != ignored, known = 0 <= target && target < v;
  // A finite start: -inf less -inf is not a number.
  float max = -3.4e38f, sum = 0.0f, x[4];
  for (i64 i = 4 * threadIdx.x; i < v; i += 4 * blockDim.x) {
    take(z, i, v, x);
    for (int j = 0; j < 4 && i + j < v; ++j) {
      if (x[j] > max) {
        sum = sum * expf(max - x[j]) + 1.0f;
        max = x[j];
      } else {
        sum += expf(x[j] - max);
      }
    }
  }
  float of_target = counts && known ? widen(z[target]) : 0.0f;
  float top = block_max(max);
  float log_sum = logf(block_sum(sum * expf(max - top)));
  // A target that is no class must not pass for one.
  float nan = __uint_as_float(0x7FC00000u);
  float found = known ? -(of_target - top - log_sum) : nan;
  if (threadIdx.x == 0) loss[row] = counts ? found : 0.0f;
  if (!gradient) return;
  for (i64 i = 4 * threadIdx.x; i < v; i += 4 * blockDim.x) {
    take(z, i, v, x);
    for (int j = 0; j < 4; ++j) {
      float p = expf(x[j] - top - log_sum);
      x[j] = counts ? p - (i + j == target ? 1.0f : 0.0f) : 0.0f;
    }
    put(z, i, v, x);
  }
}

#define FOR(T, NAME)                                                                \
  extern "C" __global__ void cross_entropy_##NAME(                                  \
      T *z, const i64 *targets, float *loss, i64 v, i64 ignored, int gradient) {    \
    rows(z, targets, loss, v, ignored, gradient);                                   \
  }
FOR(float, f32)
FOR(bf16, bf16)
