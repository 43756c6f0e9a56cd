//! Text from a model in ways that `generate` does not have, to compare with it.
use downhill::Result;
use downhill::models::Decoder;
use downhill::nn::{KvCache, Mode};
use std::time::Instant;
use tch::{Device, Kind, Tensor, no_grad};

/// Scores [1, V] of what follows the last of `ids` [1, T].
fn next(
    model: &Decoder,
    ids: &Tensor,
    cache: Option<&mut KvCache>,
) -> Result<Tensor> {
    no_grad(|| {
        let hidden = model.hidden(ids, Mode::Eval, cache)?;
        model.logits(&hidden.select(1, -1))
    })
}

/// Greedy text without a cache: all of it again for every token.
///
/// # Errors
/// What libtorch refuses.
pub fn without_cache(
    model: &Decoder,
    prompt: &[i64],
    tokens: usize,
) -> Result<Vec<i64>> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let logits = next(model, &Tensor::from_slice(&ids).unsqueeze(0), None)?;
        ids.push(logits.argmax(1, false).int64_value(&[0]));
    }
    Ok(ids.split_off(prompt.len()))
}

// ANCHOR: beam
/// `tokens` tokens after `prompt` and the logarithm of their probability, by a search
/// that keeps the `width` likeliest beginnings. With a width of 1 it is greedy.
///
/// # Errors
/// What libtorch refuses.
pub fn beam(
    model: &Decoder,
    prompt: &[i64],
    tokens: usize,
    width: i64,
) -> Result<(Vec<i64>, f64)> {
    let mut rows = Tensor::from_slice(prompt).unsqueeze(0);
    let mut sums = Tensor::zeros([1], (Kind::Double, Device::Cpu));
    for _ in 0..tokens {
        let logits = next(model, &rows, None)?;
        let says = logits.log_softmax(-1, Kind::Double) + sums.unsqueeze(1); // (W, V)
        let (best, place) = says.view([-1]).topk(width, 0, true, true);
        let vocabulary = logits.size()[1];
        let (from, with) =
            (place.divide_scalar_mode(vocabulary, "floor"), place.fmod(vocabulary));
        rows = Tensor::cat(&[rows.index_select(0, &from), with.unsqueeze(1)], 1);
        sums = best;
    }
    let ids = Vec::<i64>::try_from(&rows.get(0))?;
    Ok((ids[prompt.len()..].to_vec(), sums.double_value(&[0])))
}
// ANCHOR_END: beam

/// The share of runs of four tokens that stand there for the first time.
pub fn fresh(ids: &[i64]) -> f64 {
    let runs: Vec<&[i64]> = ids.windows(4).collect();
    let first = (0..runs.len()).filter(|i| !runs[..*i].contains(&runs[*i]));
    first.count() as f64 / runs.len().max(1) as f64
}

/// Seconds for one token of `row` [1, ..] after `at` others: from a cache that holds
/// them, or computed with all of them. The shortest of some runs.
///
/// # Errors
/// What libtorch refuses.
pub fn seconds(model: &Decoder, row: &Tensor, at: i64, cached: bool) -> Result<f64> {
    let mut cache = model.cache();
    if cached {
        let _ = next(model, &row.narrow(1, 0, at), Some(&mut cache))?;
    }
    let mut best = f64::INFINITY;
    for i in 0..if cached { 12 } else { 3 } {
        let began = Instant::now();
        let _ = match cached {
            true => next(model, &row.narrow(1, at + i, 1), Some(&mut cache))?,
            false => next(model, &row.narrow(1, 0, at + 1), None)?,
        };
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}
