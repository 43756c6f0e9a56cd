//! Text from a model, token by token.
use crate::models::Decoder;
use crate::nn::{Mode, dropout::philox};
use crate::{Error, Result};
use std::ops::ControlFlow;
use tch::{Kind, Tensor, no_grad};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens to write at most.
    pub max_new_tokens: usize,
    /// 0: the likeliest token (greedy). Otherwise logits are divided by it.
    pub temperature: f64,
    /// Draw from the likeliest tokens that together reach this probability.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { max_new_tokens: 256, temperature: 0., top_p: 1., seed: 0 }
    }
}

impl Sampling {
    /// Refuses values that cannot work, by flag.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0. && self.temperature.is_finite()) {
            let what = format!("{}; a number from 0 up", self.temperature);
            return Err(Error::setting("--temperature", what));
        }
        if !(self.top_p > 0. && self.top_p <= 1.) {
            let what = format!("{}; above 0, at most 1", self.top_p);
            return Err(Error::setting("--top-p", what));
        }
        Ok(())
    }
}

/// Continues `prompt`, showing `see` each new token, until one of `stop`, the limit,
/// or `see` breaks. Returns the new tokens, the stop token excluded.
///
/// # Errors
/// An empty prompt; a token id outside the vocabulary; scores that are not finite.
pub fn generate(
    model: &Decoder,
    prompt: &[i64],
    stop: &[i64],
    sampling: &Sampling,
    see: &mut dyn FnMut(i64) -> Result<ControlFlow<()>>,
) -> Result<Vec<i64>> {
    sampling.check()?;
    let vocab = model.config.vocab_size;
    if prompt.is_empty() {
        return Err(Error::setting("--prompt", "empty: nothing to continue"));
    }
    if let Some(id) = prompt.iter().find(|id| !(0..vocab).contains(*id)) {
        let what = format!("token id {id} is outside the model's {vocab} tokens");
        return Err(Error::setting("--prompt", what));
    }
    no_grad(|| {
        // ANCHOR: loop
        let mut cache = model.cache();
        let mut written = Vec::new();
        let mut next = prompt.to_vec();
        while written.len() < sampling.max_new_tokens {
            let ids =
                Tensor::from_slice(&next).unsqueeze(0).to_device(model.device());
            let hidden = model.hidden(&ids, Mode::Eval, Some(&mut cache))?; // (1, T, D)
            let logits = model.logits(&hidden.select(1, -1))?; // (1, V)
            let logits = logits.view([-1]).to_kind(Kind::Float);
            let id = choose(&logits, sampling, written.len())?;
            if stop.contains(&id) {
                break;
            }
            written.push(id);
            if see(id)?.is_break() {
                break;
            }
            next = vec![id];
        }
        Ok(written)
        // ANCHOR_END: loop
    })
}

/// The next token from its scores [V].
fn choose(logits: &Tensor, s: &Sampling, position: usize) -> Result<i64> {
    if s.temperature == 0. {
        let id = logits.argmax(0, false).int64_value(&[]);
        if !logits.double_value(&[id]).is_finite() {
            return Err(not_finite());
        }
        return Ok(id);
    }
    // ANCHOR: nucleus
    let p = (logits.to_kind(Kind::Double) / s.temperature).softmax(0, Kind::Double);
    let (p, order) = p.sort(0, true);
    let p = Vec::<f64>::try_from(p.to_device(tch::Device::Cpu))?;
    if !p.iter().all(|p| p.is_finite()) {
        return Err(not_finite());
    }
    // The nucleus: as many of the likeliest as it takes to reach top_p, at least one.
    let mut mass = 0.;
    let within = |p: &&f64| {
        let open = mass < s.top_p;
        mass += **p;
        open
    };
    let nucleus: Vec<f64> = p.iter().take_while(within).copied().collect();
    // ANCHOR_END: nucleus
    let key = [s.seed as u32, (s.seed >> 32) as u32];
    let word = philox([position as u32, 0, 0, 3], key)[0];
    let mut left =
        (f64::from(word) + 0.5) / 2f64.powi(32) * nucleus.iter().sum::<f64>();
    let drawn = nucleus.iter().position(|p| {
        left -= p;
        left <= 0.
    });
    let rank = drawn.unwrap_or(nucleus.len() - 1);
    Ok(order.int64_value(&[rank as i64]))
}

fn not_finite() -> Error {
    Error::NonFinite("the model's scores are not finite; are its weights?".into())
}
