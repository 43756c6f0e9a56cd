//! Text from a model, token by token.
//!
//! On a GPU the host has to ask for some ten operations per layer and token, and does so
//! while the GPU still computes the token before: it never waits for a token that it
//! has just asked for. (To record them once as a CUDA graph would spare the asking; but
//! the memory pool that a recording needs is in libtorch's C++ interface alone, not in
//! the C interface that tch has.)
use crate::device::Coming;
use crate::models::Decoder;
use crate::nn::{Mode, dropout::philox};
use crate::{Error, Result};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor, no_grad};

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
    // A GPU's token is read while it computes the one after.
    let late = model.device() != Device::Cpu;
    no_grad(|| write(model, prompt, stop, sampling, late, see))
}

fn write(
    model: &Decoder,
    prompt: &[i64],
    stop: &[i64],
    sampling: &Sampling,
    late: bool,
    see: &mut dyn FnMut(i64) -> Result<ControlFlow<()>>,
) -> Result<Vec<i64>> {
    let mut written = Vec::new();
    let mut read = |pair: Coming| {
        let pair = pair.wait();
        if !pair[1].is_finite() {
            let what = "the model's scores are not finite; are its weights?";
            return Err(Error::NonFinite(what.into()));
        }
        let id = pair[0] as i64;
        if stop.contains(&id) {
            return Ok(ControlFlow::Break(()));
        }
        written.push(id);
        see(id)
    };
    // ANCHOR: loop
    let mut cache = model.cache();
    let mut coming = None;
    // The whole prompt in one pass; then a token at a time, which need not leave the
    // device to be the next input.
    let mut next = Tensor::from_slice(prompt).to_device(model.device());
    for position in 0..sampling.max_new_tokens {
        let ids = next.unsqueeze(0);
        let hidden = model.hidden(&ids, Mode::Eval, Some(&mut cache))?; // (1, T, D)
        let logits = model.logits(&hidden.select(1, -1))?; // (1, V)
        let logits = logits.view([-1]).to_kind(Kind::Float);
        let (id, score) = choose(&logits, sampling, position)?;
        let pair = Tensor::cat(&[id.to_kind(Kind::Double), score], 0);
        let pair = Coming::new(&pair); // all that the host waits for
        let due = if late { coming.replace(pair) } else { Some(pair) };
        if let Some(due) = due
            && read(due)?.is_break()
        {
            return Ok(written);
        }
        next = id;
    }
    if let Some(last) = coming {
        let _ = read(last)?;
    }
    // ANCHOR_END: loop
    Ok(written)
}

/// The next token from its scores [V], and a number that is finite if they are: both
/// [1], where the scores are.
fn choose(
    logits: &Tensor,
    s: &Sampling,
    position: usize,
) -> Result<(Tensor, Tensor)> {
    if s.temperature == 0. {
        let id = logits.f_argmax(0, true)?;
        let score = logits.f_index_select(0, &id)?;
        return Ok((id, score.to_kind(Kind::Double)));
    }
    // ANCHOR: nucleus
    let p = (logits.to_kind(Kind::Double) / s.temperature).softmax(0, Kind::Double);
    let (p, order) = p.f_sort(0, true)?;
    // The nucleus: as many of the likeliest as it takes to reach top_p, at least one.
    let within = (p.f_cumsum(0, Kind::Double)? - &p).lt(s.top_p);
    // ANCHOR_END: nucleus
    let mass = (&p * &within).f_cumsum(0, Kind::Double)?;
    let key = [s.seed as u32, (s.seed >> 32) as u32];
    let word = philox([position as u32, 0, 0, 3], key)[0];
    let drawn = (f64::from(word) + 0.5) / 2f64.powi(32);
    let below = mass.lt_tensor(&(mass.narrow(0, -1, 1) * drawn)).sum(Kind::Int64);
    let last = (within.sum(Kind::Int64) - 1).clamp_min(0);
    let rank = below.minimum(&last).view([1]);
    Ok((order.f_index_select(0, &rank)?, p.sum(Kind::Double).view([1])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::DecoderConfig;

    fn model() -> Decoder {
        let config = DecoderConfig {
            vocab_size: 61,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 128,
            ..DecoderConfig::default()
        };
        Decoder::random(config, 5).expect("a model")
    }

    /// What is shown and what comes back, read at once or a token late.
    #[test]
    fn a_token_read_late_is_the_token() {
        let model = model();
        for temperature in [0., 2.] {
            let of = |max_new_tokens, stop: &[i64], late, enough| {
                let seed = 7;
                let s = Sampling { max_new_tokens, temperature, top_p: 1., seed };
                let mut shown = vec![];
                let see = &mut |id| {
                    shown.push(id);
                    Ok(match shown.len() == enough {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    })
                };
                let text =
                    no_grad(|| write(&model, &[3, 1, 4], stop, &s, late, see));
                (text.expect("text"), shown)
            };
            let whole = of(9, &[], false, 0).0;
            assert_eq!(whole.len(), 9);
            let stop = [whole[5]];
            for tokens in [0, 1, 2, 9] {
                for stop in [&[][..], &stop] {
                    for enough in [0, 1, 4, 9] {
                        let at_once = of(tokens, stop, false, enough);
                        let late = of(tokens, stop, true, enough);
                        assert_eq!(at_once, late, "{tokens} {stop:?} {enough}");
                        assert_eq!(late.0, late.1);
                        assert!(whole.starts_with(&late.0));
                    }
                }
            }
        }
    }
}
