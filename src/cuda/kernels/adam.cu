// Adam and AdamW over many f32 tensors in one launch: blockIdx.y names the tensor.
// Each operation rounds by itself and in the order of src/optim/adam.rs, which
// defines it: nothing here may become a fused multiply-add.

struct Tensor {
  float *theta;
  const float *g;
  float *m, *v;
  i64 n;
  float decay;  // 1 - lr wd where the decay is decoupled, else 1
  float l2;     // wd where it is not, else 0
  float m_bias; // 1 - beta1^t
  float v_bias; // 1 - beta2^t
};

// As many as fit beside the other arguments: CUDA takes 4 KB of them.
struct Batch {
  Tensor at[64];
};

extern "C" __global__ void adam(Batch batch, float lr, float beta1, float beta2,
                                float rest1, float rest2, float eps, float sign) {
  const Tensor &t = batch.at[blockIdx.y];
  i64 step = 4 * (i64)gridDim.x * blockDim.x;
  for (i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x); i < t.n;
       i += step) {
    float theta[4], g[4], m[4], v[4];
    take(t.theta, i, t.n, theta), take(t.g, i, t.n, g);
    take(t.m, i, t.n, m), take(t.v, i, t.n, v);
    for (int j = 0; j < 4; ++j) {
      theta[j] = __fmul_rn(theta[j], t.decay);
      g[j] = __fmul_rn(g[j], sign);
      if (t.l2 != 0.0f) g[j] = __fadd_rn(g[j], __fmul_rn(t.l2, theta[j]));
      m[j] = __fadd_rn(__fmul_rn(m[j], beta1), __fmul_rn(rest1, g[j]));
      v[j] =
          __fadd_rn(__fmul_rn(v[j], beta2), __fmul_rn(rest2, __fmul_rn(g[j], g[j])));
      float up = __fmul_rn(lr, __fdiv_rn(m[j], t.m_bias));
      float down = __fadd_rn(__fsqrt_rn(__fdiv_rn(v[j], t.v_bias)), eps);
      theta[j] = __fsub_rn(theta[j], __fdiv_rn(up, down));
    }
    put(t.theta, i, t.n, theta), put(t.m, i, t.n, m), put(t.v, i, t.n, v);
  }
}
