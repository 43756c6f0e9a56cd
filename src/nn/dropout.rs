//! Dropout whose masks are a function of (seed, step, place): a resumed run draws the
//! same ones, and a recomputed layer need not store its own.
use tch::Tensor;

/// Whether a forward pass is part of training, and which step of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// No dropout.
    Eval,
    /// Dropout masks of this step.
    Train {
        /// Seed of the run.
        seed: u64,
        /// Counts forward passes (micro-steps) from the start of the run.
        step: u64,
    },
}

/// Philox4x32-10: four random words from a 128-bit counter and a 64-bit key.
///
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p = u64::from(c0) * 0xD251_1F53;
        let q = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = (
            (q >> 32) as u32 ^ c1 ^ k0,
            q as u32,
            (p >> 32) as u32 ^ c3 ^ k1,
            p as u32,
        );
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Inverted dropout: zeroes each element with probability `p` and divides the others
/// by `1 − p`. `place` tells the dropouts of one step apart.
///
/// Source: Srivastava et al. 2014, in the form that leaves evaluation untouched.
pub fn dropout(x: &Tensor, p: f64, mode: Mode, place: u32) -> Tensor {
    let Mode::Train { seed, step } = mode else { return x.shallow_clone() };
    if p <= 0. {
        return x.shallow_clone();
    }
    let mask = mask(x.numel(), p, seed, step, place);
    x * Tensor::from_slice(&mask)
        .view_(x.size())
        .to_device(x.device())
        .to_kind(x.kind())
}

/// The factors: 0 or `1 / (1 − p)`, `n` of them.
fn mask(n: usize, p: f64, seed: u64, step: u64, place: u32) -> Vec<f32> {
    let dropped_below = (p * 2f64.powi(32)) as u64;
    let kept = (1. / (1. - p)) as f32;
    let key = [seed as u32, (seed >> 32) as u32];
    let mut mask = Vec::with_capacity(n + 3);
    for block in 0..n.div_ceil(4) {
        let counter = [block as u32, place, step as u32, (step >> 32) as u32];
        for word in philox(counter, key) {
            mask.push(if u64::from(word) < dropped_below { 0. } else { kept });
        }
    }
    mask.truncate(n);
    mask
}

/// `n` draws from N(0, 1), a function of (seed, place): Box-Muller over Philox.
pub fn normal(n: usize, seed: u64, place: u32) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut z = Vec::with_capacity(n + 3);
    for block in 0..n.div_ceil(4) {
        let words = philox([block as u32, place, 0, 1], key);
        // (0, 1]: the logarithm of 0 must not happen.
        let u = words.map(|w| (f64::from(w) + 1.) / 2f64.powi(32));
        for (a, b) in [(u[0], u[1]), (u[2], u[3])] {
            let r = (-2. * a.ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * b).sin_cos();
            z.extend([(r * cos) as f32, (r * sin) as f32]);
        }
    }
    z.truncate(n);
    z
}

/// `n` draws from U(−bound, bound), a function of (seed, place).
pub fn uniform(n: usize, bound: f64, seed: u64, place: u32) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let words =
        (0..n.div_ceil(4)).flat_map(|i| philox([i as u32, place, 0, 2], key));
    let unit = |w: u32| (f64::from(w) + 0.5) / 2f64.powi(32);
    words.take(n).map(|w| ((2. * unit(w) - 1.) * bound) as f32).collect()
}
