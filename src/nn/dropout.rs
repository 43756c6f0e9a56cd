//! Dropout whose masks are a function of (seed, step, place): a resumed run draws the
//! same ones, and a recomputed layer need not store its own.
use crate::Result;
use crate::autograd::{Fill, custom, filled, upload};
use crate::cuda::{self, Kernels, Mask};
use tch::{Kind, Tensor};

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

// ANCHOR: philox
/// Philox4x32-10: four random words from a 128-bit counter and a 64-bit key.
///
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|c| [c]), key).map(|[word]| word)
}

/// [`philox`] of L counters side by side, which a processor computes as vectors.
#[inline(always)]
fn philox_lanes<const L: usize>(
    [mut c0, mut c1, mut c2, mut c3]: [[u32; L]; 4],
    [mut k0, mut k1]: [u32; 2],
) -> [[u32; L]; 4] {
    for _ in 0..10 {
        for l in 0..L {
            let p = u64::from(c0[l]) * 0xD251_1F53;
            let q = u64::from(c2[l]) * 0xCD9E_8D57;
            (c0[l], c1[l], c2[l], c3[l]) = (
                (q >> 32) as u32 ^ c1[l] ^ k0,
                q as u32,
                (p >> 32) as u32 ^ c3[l] ^ k1,
                p as u32,
            );
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}
// ANCHOR_END: philox

/// Where a decoder drops what, each with a probability in [0, 1).
///
/// Source: Vaswani et al. 2017, arXiv 1706.03762, §5.4, has the residual one and that
/// of the embedding; that of the attention probabilities is in their code.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of the embedded tokens.
    pub embedding: f64,
    /// Of the attention probabilities: `attention_dropout` in `config.json`.
    pub attention: f64,
    /// Of what attention and feed-forward part add to the stream.
    pub residual: f64,
}

// ANCHOR: dropout
/// Inverted dropout: zeroes each element with probability `p` and divides the others
/// by `1 − p`. `place` tells the dropouts of one step apart.
///
/// Source: Srivastava et al. 2014, in the form that leaves evaluation untouched.
/// Departure: `p` is rounded to a multiple of 2⁻¹⁶, the resolution of a draw.
pub fn dropout(x: &Tensor, p: f64, mode: Mode, place: u32) -> Tensor {
    if let Some(y) = by_kernel(x, p, mode, place) {
        return y; // on a card
    }
    match factors(x, p, mode, place) {
        Some(factors) => (x * factors).to_kind(x.kind()),
        None => x.shallow_clone(),
    }
}

/// What [`dropout`] multiplies `x` by, in at least f32: 0 or `1 / (1 − p)`. None if by
/// nothing.
pub fn factors(x: &Tensor, p: f64, mode: Mode, place: u32) -> Option<Tensor> {
    mask(p, mode, place).map(|mask| {
        let flat = filled(x.numel(), PART, &mask);
        let factors = upload(&flat.view_(x.size()), x.device());
        if x.kind() == Kind::Double {
            factors.to_kind(Kind::Double)
        } else {
            factors
        }
    })
}

/// The mask of one dropout: 0 where a draw of 16 bits is below `below`.
pub(super) fn mask(p: f64, mode: Mode, place: u32) -> Option<Mask> {
    let Mode::Train { seed, step } = mode else { return None };
    (p > 0.).then(|| {
        let below = (p * 65536.).round() as u32;
        let kept = (1. / (1. - f64::from(below) / 65536.)) as f32;
        Mask { seed, step, place, below, kept }
    })
}
// ANCHOR_END: dropout

fn by_kernel(x: &Tensor, p: f64, mode: Mode, place: u32) -> Option<Tensor> {
    let (kernels, mask) = (cuda::kernels(&[x])?, mask(p, mode, place)?);
    let masked = move |x: &Tensor| kernels.dropout(x, mask);
    let forward = || Ok(vec![masked(x)?]);
    let y = custom(&[x], forward, move |dy| {
        Ok(vec![dy[0].as_ref().map(masked).transpose()?])
    });
    // Should it not run, libtorch's operations do the same.
    y.ok()?.pop()
}

/// A dropout that is applied twice: to an input, and to its gradient.
pub(super) enum Twice {
    /// Nothing falls.
    Not,
    /// Factors, kept from one time to the other.
    Kept(Tensor),
    /// Drawn again.
    Drawn(Kernels, Mask),
}

impl Twice {
    /// For an input `x`.
    pub(super) fn new(x: &Tensor, p: f64, mode: Mode, place: u32) -> Self {
        match (mask(p, mode, place), cuda::kernels(&[x])) {
            (None, _) => Self::Not,
            (Some(mask), Some(kernels)) => Self::Drawn(kernels, mask),
            (Some(_), None) => {
                factors(x, p, mode, place).map_or(Self::Not, Self::Kept)
            }
        }
    }

    /// `x`, dropped.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Not => Ok(x.shallow_clone()),
            Self::Kept(factors) => Ok((x * factors).to_kind(x.kind())),
            Self::Drawn(kernels, mask) => kernels.dropout(x, *mask),
        }
    }

    /// Whether nothing falls.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::Not)
    }

    /// Whether to apply it again is as cheap as to keep what it gave.
    pub(super) fn is_cheap(&self) -> bool {
        !matches!(self, Self::Kept(_))
    }
}

impl Fill for Mask {
    #[inline(always)]
    fn fill(&self, start: usize, part: &mut [f32]) {
        let halves = |n: u64| [n as u32, (n >> 32) as u32];
        let [step, carry] = halves(self.step).map(|half| [half; LANES]);
        for (group, out) in (start / GROUP..).zip(part.chunks_mut(GROUP)) {
            let first = (group * LANES) as u32;
            let lanes = std::array::from_fn(|lane| first.wrapping_add(lane as u32));
            let counter = [lanes, [self.place; LANES], step, carry];
            let words = philox_lanes(counter, halves(self.seed));
            // Of each word the low half, then the high one, lane by lane.
            let mut factors = [[[0.; LANES]; 2]; 4];
            for (factors, word) in factors.iter_mut().zip(&words) {
                for lane in 0..LANES {
                    let draw = [word[lane] & 0xFFFF, word[lane] >> 16];
                    let factor = |d| if d >= self.below { self.kept } else { 0. };
                    [factors[0][lane], factors[1][lane]] = draw.map(factor);
                }
            }
            let factors = factors.as_flattened().as_flattened();
            out.copy_from_slice(&factors[..out.len()]);
        }
    }
}

/// Counters taken together.
const LANES: usize = 16;
/// Factors from as many counters: each gives four words of two draws.
const GROUP: usize = 8 * LANES;
/// Factors that one thread draws at a time, at least.
pub(super) const PART: usize = 64 * GROUP;

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
