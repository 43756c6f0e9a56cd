//! The rotary settings of `config.json`, in the spelling of transformers 4
//! (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`).
use super::config::Checked;
use crate::nn::{Rope, RopeScaling};
use serde::Deserialize;

/// The keys that have to do with positions.
#[derive(Deserialize)]
pub(super) struct RopeKeys {
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    /// Where files with `longrope` have it.
    original_max_position_embeddings: Option<i64>,
}

/// R1-0528-Qwen3-8B also carries `attn_factor`, which is read nowhere here, nor in
/// transformers; see [`RopeKeys::read`].
#[derive(Clone, Deserialize)]
struct RopeParameters {
    /// `type` in older files; what transformers loaded and saved again has both.
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<i64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

impl RopeKeys {
    /// Base and scaling; `context` is `max_position_embeddings`.
    ///
    /// YaRN's attention factor is transformers' (4.57 and 5): `attention_factor` if
    /// given, else from `mscale` and `mscale_all_dim`, else `0.1 ln(factor) + 1`. vLLM
    /// multiplies that by `attn_factor`, which makes it 1 for R1-0528-Qwen3-8B; in
    /// transformers, and here, it is 1.1386.
    pub(super) fn read(&self, context: i64) -> Checked<Rope> {
        let given = self.given();
        let key = self.key();
        let theta = given.and_then(|r| r.rope_theta).or(self.rope_theta);
        let theta = theta.unwrap_or(10_000.);
        if !(theta.is_finite() && theta > 0.) {
            return Err(format!("rope_theta: {theta} is not a positive number"));
        }
        let Some(r) = given else {
            return Ok(Rope { theta, scaling: RopeScaling::Default });
        };
        let need = |name: &str, value: Option<f64>| match value {
            Some(x) if x.is_finite() && x > 0. => Ok(x),
            Some(x) => Err(format!("{key}.{name}: {x} is not a positive number")),
            None => Err(format!("{key}.{name}: missing")),
        };
        let trained = r.original_max_position_embeddings.filter(|n| *n > 0);
        let trained = trained.unwrap_or(context);
        let above = |(high, x): (&str, f64), (low, y): (&str, f64)| match x > y {
            true => Ok(()),
            false => Err(format!("{key}.{high}: {x} is not above {low} {y}")),
        };
        let scaling = match r.kind() {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: need("factor", r.factor)? },
            "llama3" => {
                let low = need("low_freq_factor", r.low_freq_factor)?;
                let high = need("high_freq_factor", r.high_freq_factor)?;
                above(("high_freq_factor", high), ("low_freq_factor", low))?;
                RopeScaling::Llama3 {
                    factor: need("factor", r.factor)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: trained,
                }
            }
            "yarn" => {
                let factor = need("factor", r.factor)?;
                let or = |name, x: Option<f64>, default| match x {
                    None | Some(0.) => Ok(default),
                    given => need(name, given),
                };
                let fast = or("beta_fast", r.beta_fast, 32.)?;
                let slow = or("beta_slow", r.beta_slow, 1.)?;
                above(("beta_fast", fast), ("beta_slow", slow))?;
                if theta <= 1. {
                    return Err(format!("rope_theta: {theta}; above 1 for yarn"));
                }
                let attention_factor = match (r.attention_factor, r.mscales()) {
                    (Some(x), _) => need("attention_factor", Some(x))?,
                    (None, Some((a, b))) => mscale(factor, a) / mscale(factor, b),
                    (None, None) => mscale(factor, 1.),
                };
                // Outside of this, mscale and mscale_all_dim were not numbers.
                need("mscale", Some(attention_factor))?;
                RopeScaling::Yarn {
                    factor,
                    beta_fast: fast,
                    beta_slow: slow,
                    original_max_position_embeddings: trained,
                    truncate: r.truncate.unwrap_or(true),
                    attention_factor,
                }
            }
            // transformers too reads no `original_max_position_embeddings` here.
            "dynamic" => RopeScaling::Dynamic {
                factor: need("factor", r.factor)?,
                max_position_embeddings: context,
            },
            "longrope" => self.longrope(r, context)?,
            other => {
                return Err(format!(
                    "{key}: type `{other}` is not known (default, linear, llama3, \
                     yarn, dynamic, longrope)"
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }

    /// The trained length is read beside `rope_scaling` and, as transformers 5 does, in
    /// it. Where it is given, `factor` follows from it.
    fn longrope(&self, r: &RopeParameters, context: i64) -> Checked<RopeScaling> {
        let key = self.key();
        let list = |name: &str, list: &Option<Vec<f64>>| match list {
            Some(l) if l.iter().all(|x| x.is_finite() && *x > 0.) => Ok(l.clone()),
            Some(_) => Err(format!("{key}.{name}: not all are positive numbers")),
            None => Err(format!("{key}.{name}: missing")),
        };
        let original = self.original_max_position_embeddings;
        let original = original.or(r.original_max_position_embeddings);
        let trained = match original {
            Some(n) if n < 2 => {
                return Err(format!("original_max_position_embeddings: {n}"));
            }
            given => given.unwrap_or(context),
        };
        let factor = match (original, r.factor) {
            (Some(n), _) => context as f64 / n as f64,
            (None, Some(factor)) => factor,
            (None, None) => return Err(format!("{key}.factor: missing")),
        };
        let grown = (1. + factor.ln() / (trained as f64).ln()).sqrt();
        let attention_factor =
            r.attention_factor.unwrap_or(if factor <= 1. { 1. } else { grown });
        if !(attention_factor.is_finite() && attention_factor > 0.) {
            return Err(format!("{key}.attention_factor: {attention_factor}"));
        }
        Ok(RopeScaling::LongRope {
            short_factor: list("short_factor", &r.short_factor)?,
            long_factor: list("long_factor", &r.long_factor)?,
            original_max_position_embeddings: trained,
            attention_factor,
        })
    }

    /// By what DeepSeek's models multiply all scores beside 1/√K: `mscale²`, from
    /// `mscale_all_dim`. (YaRN's attention factor is then 1 and reaches no score.)
    ///
    /// Source: `modeling_deepseek.py` beside the checkpoints of V2 and V3. transformers
    /// 4.57 has it for V3 and forgets it for V2 (added there in 2026, #47435).
    pub(super) fn score_scale(&self) -> f64 {
        let yarn = self.given().filter(|r| r.kind() == "yarn");
        let all = yarn.and_then(|r| Some((r.factor?, r.mscale_all_dim?)));
        all.map_or(1., |(factor, all)| match all == 0. {
            true => 1.,
            false => mscale(factor, all).powi(2),
        })
    }

    fn given(&self) -> Option<&RopeParameters> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    fn key(&self) -> &'static str {
        match self.rope_parameters {
            Some(_) => "rope_parameters",
            None => "rope_scaling",
        }
    }
}

impl RopeParameters {
    fn kind(&self) -> &str {
        let kind = self.rope_type.as_deref().or(self.older_type.as_deref());
        kind.unwrap_or("default")
    }

    fn mscales(&self) -> Option<(f64, f64)> {
        let both = (self.mscale?, self.mscale_all_dim?);
        (both.0 != 0. && both.1 != 0.).then_some(both)
    }
}

/// What can be said only when the size of a head is known.
pub(super) fn check(rope: &Rope, head_dim: i64) -> Checked<()> {
    match &rope.scaling {
        RopeScaling::LongRope { short_factor, long_factor, .. } => {
            let lists =
                [("short_factor", short_factor), ("long_factor", long_factor)];
            let wrong = lists.iter().find(|(_, l)| l.len() as i64 != head_dim / 2);
            wrong.map_or(Ok(()), |(name, list)| {
                let (found, pairs) = (list.len(), head_dim / 2);
                Err(format!("{name}: {found} numbers for {pairs} pairs of a head"))
            })
        }
        RopeScaling::Dynamic { .. } if head_dim <= 2 => Err(format!(
            "rope_scaling: type dynamic needs a head of more than {head_dim}"
        )),
        _ => Ok(()),
    }
}

/// `0.1 m ln(factor) + 1`: how much longer texts sharpen attention (YaRN, §3.4).
fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1. { 1. } else { 0.1 * m * factor.ln() + 1. }
}
