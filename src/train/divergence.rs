//! How far the predictions of two models are apart.
use super::Rows;
use super::loss::hidden;
use crate::Result;
use crate::models::Decoder;
use crate::nn::Mode;
use tch::{Device, Kind, Tensor, no_grad};

/// What a model says before the first learned tokens of `rows`, at most `limit` of
/// them: logarithms of probabilities, [tokens, V], in f32 in host memory, so that the
/// next model can be loaded after this one.
///
/// # Errors
/// A row that cannot be read; what libtorch refuses.
pub fn predictions(model: &Decoder, rows: &Rows, limit: usize) -> Result<Tensor> {
    let (mut all, mut left) = (vec![], limit as i64);
    for i in 0..rows.len() {
        let Some(batch) = rows.batch(&[i])? else { continue };
        if left == 0 {
            break;
        }
        let batch = batch.to(model.device());
        all.push(no_grad(|| -> Result<Tensor> {
            let hidden = hidden(model, &batch, Mode::Eval, &mut |_, _| ())?;
            let learned = batch.learned.narrow(0, 0, left.min(batch.supervised()));
            let logits = model.logits(&hidden.index_select(0, &learned))?;
            Ok(logits.log_softmax(-1, Kind::Float).to_device(Device::Cpu))
        })?);
        left -= left.min(batch.supervised());
    }
    Ok(Tensor::f_cat(&all, 0)?)
}

/// The Kullback-Leibler divergence of the predictions `q` from `p`, both as
/// [`predictions`] gives them: nats per token.
pub fn divergence(p: &Tensor, q: &Tensor) -> f64 {
    let rows = (p.exp() * (p - q)).sum_dim_intlist(1, false, Kind::Double);
    rows.mean(Kind::Double).double_value(&[])
}
