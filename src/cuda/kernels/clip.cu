// Over many f32 tensors in one launch, of which blockIdx.y names one: the sums of
// their squares, and their scaling. Their definition is `clip_grad_norm_late` in
// src/optim/clip.rs.

struct Vector {
  float *at;
  i64 n;
};

// As many as fit beside the other arguments: CUDA takes 4 KB of them.
struct Batch {
  Vector at[128];
};

// What each block of threads found, to part [gridDim.y, gridDim.x].
extern "C" __global__ void squares(Batch batch, float *part) {
  const Vector &v = batch.at[blockIdx.y];
  i64 step = 4 * (i64)gridDim.x * blockDim.x;
  float sum = 0.0f, x[4];
  for (i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x); i < v.n; i += step) {
    take(v.at, i, v.n, x);
    for (int j = 0; j < 4; ++j) sum += x[j] * x[j];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) part[(i64)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// By 1 nothing is read or written. By 0 everything becomes 0, also what is no number.
extern "C" __global__ void scale(Batch batch, const float *by) {
  const Vector &v = batch.at[blockIdx.y];
  const float factor = *by;
  if (factor == 1.0f) return;
  i64 step = 4 * (i64)gridDim.x * blockDim.x;
  float x[4];
  for (i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x); i < v.n; i += step) {
    take(v.at, i, v.n, x);
    for (int j = 0; j < 4; ++j) x[j] = factor == 0.0f ? 0.0f : x[j] * factor;
    put(v.at, i, v.n, x);
  }
}
