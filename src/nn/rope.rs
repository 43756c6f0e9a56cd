//! Rotary position embedding.
use crate::cuda::{self, Pairs};
use crate::{Result, autograd};
use tch::{Device, Kind, Tensor};

/// How positions beyond the trained length are squeezed into it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// How many times longer the text may be.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3,
    /// `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`).
    Llama3 {
        /// How many times longer the text may be.
        factor: f64,
        /// Wavelengths longer than `original / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the first training.
        original_max_position_embeddings: i64,
    },
    /// The same by the number of turns rather than by wavelength, and longer texts
    /// sharpen attention (Peng et al. 2023, arXiv 2309.00071; transformers'
    /// `_compute_yarn_parameters`).
    Yarn {
        /// How many times longer the text may be.
        factor: f64,
        /// Waves that turn so often within the trained length are kept.
        beta_fast: f64,
        /// Waves that turn so seldom are scaled.
        beta_slow: f64,
        /// Context length of the first training.
        original_max_position_embeddings: i64,
        /// Start and end the ramp between at whole dimensions.
        truncate: bool,
        /// Cosines and sines are multiplied by it.
        attention_factor: f64,
    },
    /// As `Default` up to the trained length; for a longer text θ grows with it
    /// ("NTK-aware"; transformers' `_compute_dynamic_ntk_parameters`).
    Dynamic {
        /// How fast.
        factor: f64,
        /// The trained length.
        max_position_embeddings: i64,
    },
    /// Each frequency divided by a number of its own, from one list up to the trained
    /// length and from another beyond (Ding et al. 2024, arXiv 2402.13753;
    /// transformers' `_compute_longrope_parameters`).
    LongRope {
        /// K/2 divisors up to the trained length.
        short_factor: Vec<f64>,
        /// And for longer texts.
        long_factor: Vec<f64>,
        /// Context length of the first training.
        original_max_position_embeddings: i64,
        /// Cosines and sines are multiplied by it.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// Whether frequencies change with the length of the text.
    fn sees_length(&self) -> bool {
        matches!(self, Self::Dynamic { .. } | Self::LongRope { .. })
    }

    /// By what cosines and sines are multiplied.
    fn stretch(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. }
            | Self::LongRope { attention_factor, .. } => *attention_factor,
            _ => 1.,
        }
    }
}

/// Between which of the K/2 frequencies YaRN ramps: where waves turn `fast` and `slow`
/// times within the `trained` length.
fn ramp(
    (fast, slow): (f64, f64),
    trained: i64,
    truncate: bool,
    head_dim: i64,
    theta: f64,
) -> (f64, f64) {
    let k = head_dim as f64;
    // The i at which a wave of ω = θ^(−2i/K) makes so many turns.
    let at = |turns: f64| {
        let longest = trained as f64 / (turns * std::f64::consts::TAU);
        k * longest.ln() / (2. * theta.ln())
    };
    let (low, high) = match truncate {
        true => (at(fast).floor(), at(slow).ceil()),
        false => (at(fast), at(slow)),
    };
    // `K − 1` rather than `K/2 − 1` is transformers', and DeepSeek's own.
    let (low, high) = (low.max(0.), high.min(k - 1.));
    (low, if low == high { high + 0.001 } else { high })
}

/// The setting: base and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// θ: wavelengths grow from 2π to 2πθ.
    pub theta: f64,
    /// See [`RopeScaling`].
    pub scaling: RopeScaling,
}

impl Rope {
    /// `ω_i = θ^(−2i/K)` for i in 0..K/2, scaled; radians per position, f32. Only for
    /// some scalings does the `length` of the text matter.
    ///
    /// Source: Su et al. 2021, arXiv 2104.09864.
    pub fn frequencies(&self, head_dim: i64, length: i64) -> Vec<f32> {
        let theta = self.theta_at(head_dim, length) as f32;
        let exponent = |i: i64| (2 * i) as f32 / head_dim as f32;
        let omega = |i: i64| 1. / theta.powf(exponent(i));
        let scale = |i: i64| match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => omega(i),
            RopeScaling::Linear { factor } => omega(i) / factor as f32,
            RopeScaling::LongRope {
                short_factor: ref short,
                long_factor: ref long,
                original_max_position_embeddings: trained,
                ..
            } => {
                let factors = if length > trained { long } else { short };
                1. / (factors[i as usize] as f32 * theta.powf(exponent(i)))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: trained,
            } => {
                let omega = omega(i);
                // How often this wave turns within the trained length.
                let turns =
                    trained as f64 * omega as f64 / (2. * std::f64::consts::PI);
                let kept = ((turns - low) / (high - low)).clamp(0., 1.);
                let omega = omega as f64;
                ((1. - kept) * omega / factor + kept * omega) as f32
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: trained,
                truncate,
                ..
            } => {
                let turns = (beta_fast, beta_slow);
                let (low, high) =
                    ramp(turns, trained, truncate, head_dim, self.theta);
                let kept = 1. - ((i as f64 - low) / (high - low)).clamp(0., 1.);
                let omega = omega(i) as f64;
                ((1. - kept) * omega / factor + kept * omega) as f32
            }
        };
        (0..head_dim / 2).map(scale).collect()
    }

    /// θ, for a text of this `length`.
    fn theta_at(&self, head_dim: i64, length: i64) -> f64 {
        match self.scaling {
            RopeScaling::Dynamic { factor, max_position_embeddings: trained } => {
                let longer = (length as f64 / trained as f64).max(1.);
                let k = head_dim as f64;
                self.theta * (factor * longer - (factor - 1.)).powf(k / (k - 2.))
            }
            _ => self.theta,
        }
    }

    /// Cosines and sines in `kind` for the `positions` [N] of tokens, of which the
    /// last counts as the length of the text: of all texts of a batch, as in
    /// transformers. (Keys in a cache stay turned as they were. transformers also keeps
    /// a θ that a longer text before has raised; here texts do not know each other.)
    pub fn rotation(
        &self,
        positions: &[i64],
        head_dim: i64,
        kind: Kind,
        device: Device,
    ) -> Rotation {
        let length = match self.scaling.sees_length() {
            true => positions.iter().max().map_or(0, |last| last + 1),
            false => 0,
        };
        let omega = self.frequencies(head_dim, length);
        let omega = autograd::upload(&Tensor::from_slice(&omega), device);
        let positions = autograd::upload(&Tensor::from_slice(positions), device);
        let angle = positions.to_kind(Kind::Float).view([-1, 1, 1]) * omega; // [N, 1, K/2]
        let angle = Tensor::cat(&[&angle, &angle], -1); // [N, 1, K]
        let stretched = |t: Tensor| (t * self.scaling.stretch()).to_kind(kind);
        Rotation { cos: stretched(angle.cos()), sin: stretched(angle.sin()) }
    }
}

/// What [`Rope::rotation`] gives: computed once, used by every layer.
#[derive(Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Turns each pair `(x_i, x_{i+K/2})` of `x` [N, H, K] by its angle. (The
    /// "half" layout of transformers' Llama; the paper pairs neighbours.) Under YaRN it
    /// also stretches it by the attention factor. In the kind of cosines and sines, each
    /// product rounded by itself: in 16 bits the same numbers as transformers'.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(y) = self.by_kernel(x, Pairs::Halves)? {
            return Ok(y);
        }
        let kept = self.shallow_clone();
        let forward = || Ok(vec![self.turn(x, false)]);
        // The transpose of a rotation turns back (and stretches as much).
        let mut y = autograd::custom(&[x], forward, move |dy| {
            Ok(vec![dy[0].as_ref().map(|dy| kept.turn(dy, true))])
        })?;
        Ok(y.remove(0))
    }

    // ANCHOR: neighbours
    /// Turns neighbours `(x_{2i}, x_{2i+1})` and brings them to where [`Rotation::apply`]
    /// has its pairs. With queries and keys in the same order, their products stay.
    pub fn apply_to_neighbours(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(y) = self.by_kernel(x, Pairs::Neighbours)? {
            return Ok(y);
        }
        self.apply(&x.unflatten(-1, [-1, 2]).transpose(-1, -2).flatten(-2, -1))
    }
    // ANCHOR_END: neighbours

    fn by_kernel(&self, x: &Tensor, from: Pairs) -> Result<Option<Tensor>> {
        let kind = self.cos.kind();
        let fits = kind == Kind::Float || kind == x.kind();
        let angles = [x.size()[0], 1, *x.size().last().unwrap_or(&0)];
        let Some(kernels) = cuda::kernels(&[x]).filter(|_| {
            let shape = x.dim() == 3 && angles[2] % 2 == 0;
            fits && shape && self.cos.size() == angles
        }) else {
            return Ok(None);
        };
        let kept = self.shallow_clone();
        let to = Pairs::Halves;
        let angles = (&self.cos, &self.sin);
        let forward = || Ok(vec![kernels.rotate(x, angles, (from, to), false)?]);
        let mut y = autograd::custom(&[x], forward, move |dy| {
            let angles = (&kept.cos, &kept.sin);
            let back = |dy| kernels.rotate(dy, angles, (to, from), true);
            Ok(vec![dy[0].as_ref().map(back).transpose()?])
        })?;
        Ok(y.pop())
    }

    // ANCHOR: turn
    /// By the angle, or `back` by as much.
    fn turn(&self, x: &Tensor, back: bool) -> Tensor {
        let (half, kind) = (x.size().last().copied().unwrap_or(0) / 2, x.kind());
        let x = x.to_kind(self.cos.kind());
        let (a, b) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
        let mut across = Tensor::cat(&if back { [b, -a] } else { [-b, a] }, -1);
        across *= &self.sin;
        across += x * &self.cos;
        across.to_kind(kind)
    }
    // ANCHOR_END: turn

    /// Cosines and sines [N, 1, K], each angle twice.
    pub(super) fn angles(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}
