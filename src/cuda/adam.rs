//! Adam over many tensors at once, on a card: see `kernels/adam.cu`, and `optim::Adam`
//! for what it is.
use super::call::{Call, Kernels, Source};
use crate::Result;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("adam");
const THREADS: u32 = 256;

/// Tensors of one launch: as many as its arguments have room for.
pub const AT_ONCE: usize = 64;

/// The numbers that all tensors share.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// β₁ and β₂.
    pub beta: [f64; 2],
    /// ε.
    pub eps: f64,
    /// Climb instead of descend.
    pub maximize: bool,
}

/// A tensor, its gradient and its moments, all f32 and of one shape; the parameter and
/// the moments lie in a row, and are changed.
#[derive(Debug)]
pub struct AdamTensor {
    /// θ.
    pub theta: Tensor,
    /// Its gradient.
    pub g: Tensor,
    /// m.
    pub m: Tensor,
    /// v.
    pub v: Tensor,
    /// Its steps so far, this one included.
    pub t: i32,
    /// λ, added to the gradient.
    pub l2: f64,
    /// λ, by which it shrinks before the step.
    pub decoupled: f64,
}

impl Kernels {
    /// One step of at most [`AT_ONCE`] tensors, in one launch.
    pub fn adam(&self, step: &AdamStep, tensors: &[AdamTensor]) -> Result<()> {
        let AdamStep { lr, beta: [beta1, beta2], eps, maximize } = *step;
        let gradients: Vec<_> = tensors.iter().map(|t| t.g.contiguous()).collect();
        let mut words = Vec::with_capacity(7 * AT_ONCE);
        for (t, g) in tensors.iter().zip(&gradients) {
            let n = t.theta.numel() as i64;
            for x in [&t.theta, g, &t.m, &t.v] {
                self.check("Adam", x, n, Kind::Float)?;
                words.push(x.data_ptr() as u64);
            }
            let pair = |a: f64, b: f64| {
                let [a, b] = [a, b].map(|x| u64::from((x as f32).to_bits()));
                a | b << 32
            };
            words.push(n as u64);
            words.push(pair(1. - lr * t.decoupled, t.l2));
            words.push(pair(1. - beta1.powi(t.t), 1. - beta2.powi(t.t)));
        }
        words.resize(7 * AT_ONCE, 0);
        let most = tensors.iter().map(|t| t.theta.numel()).max().unwrap_or(0) as u64;
        let blocks = most.div_ceil(4 * u64::from(THREADS)).clamp(1, 1024) as i64;
        let call = Call::new(SOURCE, "adam".into());
        let call = call.over(blocks, tensors.len() as i64, THREADS)?.words(words);
        let sign = if maximize { -1. } else { 1. };
        let rest = [1. - beta1, 1. - beta2];
        let numbers = [lr, beta1, beta2, rest[0], rest[1], eps, sign];
        self.run(&numbers.into_iter().fold(call, |call, x| call.arg(x as f32)))
    }
}
