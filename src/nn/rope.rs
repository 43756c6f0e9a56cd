//! Rotary position embedding.
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
    /// `ω_i = θ^(−2i/K)` for i in 0..K/2, scaled; radians per position, f32.
    ///
    /// Source: Su et al. 2021, arXiv 2104.09864.
    pub fn frequencies(&self, head_dim: i64) -> Vec<f32> {
        let theta = self.theta as f32;
        let omega = |i: i64| 1. / theta.powf((2 * i) as f32 / head_dim as f32);
        let scale = |i: i64| match self.scaling {
            RopeScaling::Default => omega(i),
            RopeScaling::Linear { factor } => omega(i) / factor as f32,
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

    /// Cosines and sines for the `positions` [N] of tokens.
    pub fn rotation(
        &self,
        positions: &Tensor,
        head_dim: i64,
        kind: Kind,
        device: Device,
    ) -> Rotation {
        let omega = autograd::upload(
            &Tensor::from_slice(&self.frequencies(head_dim)),
            device,
        );
        let angle = positions.to_kind(Kind::Float).view([-1, 1, 1]) * omega; // [N, 1, K/2]
        let angle = Tensor::cat(&[&angle, &angle], -1); // [N, 1, K]
        let (mut cos, mut sin) = (angle.cos(), angle.sin());
        if let RopeScaling::Yarn { attention_factor, .. } = self.scaling {
            (cos, sin) = (cos * attention_factor, sin * attention_factor);
        }
        Rotation { cos: cos.to_kind(kind), sin: sin.to_kind(kind) }
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
    /// also stretches it by the attention factor.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let kept = self.shallow_clone();
        let forward = || Ok(vec![self.turn(x, false)]);
        // The transpose of a rotation turns back (and stretches as much).
        let mut y = autograd::custom(&[x], forward, move |dy| {
            Ok(vec![dy[0].as_ref().map(|dy| kept.turn(dy, true))])
        })?;
        Ok(y.remove(0))
    }

    /// By the angle, or `back` by as much.
    fn turn(&self, x: &Tensor, back: bool) -> Tensor {
        let half = x.size().last().copied().unwrap_or(0) / 2;
        let (a, b) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
        let across = Tensor::cat(&if back { [b, -a] } else { [-b, a] }, -1);
        (x * &self.cos).addcmul_(&across, &self.sin)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}
