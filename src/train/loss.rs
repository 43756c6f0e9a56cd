//! The loss of a batch, and where it stopped being a number.
use crate::data::{Batch, Dataset};
use crate::models::Decoder;
use crate::nn::Mode;
use crate::{Error, Result};
use tch::{Kind, Reduction, Tensor, no_grad};

/// Cross-entropy summed over the learned tokens of a batch: each position's scores
/// against the next position's label, −100 left out.
///
/// A sum, because the mean is taken over the whole step: micro-batches with few
/// learned tokens must not weigh as much as those with many. The head runs only where
/// a label is.
pub fn batch_loss(model: &Decoder, batch: &Batch, mode: Mode) -> Result<Tensor> {
    let hidden = model.hidden(&batch.ids, mode, None)?; // (B, T, D)
    let (b, t, d) = hidden.size3()?;
    let label = batch.labels.narrow(1, 1, t - 1).reshape([-1]);
    let hidden = hidden.narrow(1, 0, t - 1).reshape([b * (t - 1), d]);
    let learned = label.ne(-100).nonzero().view([-1]);
    let logits = model.logits(&hidden.index_select(0, &learned))?; // (N, V)
    let label = label.index_select(0, &learned);
    let logits = logits.to_kind(Kind::Float);
    let none = None::<Tensor>;
    Ok(logits.f_cross_entropy_loss(&label, none, Reduction::Sum, -100, 0.)?)
}

/// Mean loss per learned token over a data set, without dropout.
pub fn mean_loss(
    model: &Decoder,
    data: &Dataset,
    batch_size: usize,
    pad_id: i64,
) -> Result<f64> {
    no_grad(|| {
        let (mut sum, mut count) = (0., 0);
        for rows in data.examples.chunks(batch_size.max(1)) {
            let rows: Vec<_> = rows.iter().collect();
            let batch = Batch::collate(&rows, pad_id).to(model.device());
            let loss = batch_loss(model, &batch, Mode::Eval)?;
            sum += loss.double_value(&[]);
            count += batch.supervised;
        }
        Ok(sum / count.max(1) as f64)
    })
}

/// Says which rows and which layer made the loss of a step infinite or NaN.
pub(super) fn blame_loss(
    model: &Decoder,
    batches: &[(Batch, Mode)],
    step: i64,
) -> Error {
    let finite = |t: &Tensor| {
        let kind = Kind::Float;
        t.to_kind(kind).sum(kind).double_value(&[]).is_finite()
    };
    for (batch, mode) in batches {
        let look = || -> Result<Option<(String, Vec<usize>)>> {
            let mut layer = None;
            let mut lines = vec![];
            let x =
                model.hidden_observed(&batch.ids, *mode, None, &mut |name, x| {
                    if layer.is_none() && !finite(x) {
                        layer = Some(name.to_string());
                        let row =
                            |&(i, _): &(usize, &usize)| !finite(&x.get(i as i64));
                        let rows = batch.lines.iter().enumerate().filter(row);
                        lines = rows.map(|(_, line)| *line).collect();
                    }
                })?;
            if layer.is_none() && !finite(&batch_loss(model, batch, *mode)?) {
                let row = |&(i, _): &(usize, &usize)| {
                    !model.logits(&x.get(i as i64)).is_ok_and(|y| finite(&y))
                };
                let rows = batch.lines.iter().enumerate().filter(row);
                lines = rows.map(|(_, line)| *line).collect();
                layer = Some("lm_head".into());
            }
            Ok(layer.map(|layer| (layer, lines)))
        };
        if let Ok(Some((layer, lines))) = no_grad(look) {
            return Error::NonFinite(format!(
                "step {step}: the loss is not finite. First layer at fault: {layer}; \
                 rows at lines {lines:?} of the training file. Try a lower \
                 --learning-rate, or look at these rows and at the weights of that \
                 layer"
            ));
        }
    }
    let lines: Vec<_> = batches.iter().flat_map(|(b, _)| &b.lines).collect();
    Error::NonFinite(format!(
        "step {step}: the loss is not finite (rows at lines {lines:?} of the training \
         file), though every layer's output is"
    ))
}

/// Says which gradient stopped being finite first: backward runs from the last layer
/// to the first, so the last parameter at fault is where it began.
pub(super) fn blame_gradient(
    params: &[crate::optim::Param],
    batches: &[(Batch, Mode)],
    step: i64,
) -> Error {
    let broken = |p: &&crate::optim::Param| {
        let g = p.tensor.grad();
        g.defined() && !g.sum(Kind::Double).double_value(&[]).is_finite()
    };
    let name = params.iter().rev().find(broken).map_or("none found", |p| &p.name);
    let lines: Vec<_> = batches.iter().flat_map(|(b, _)| &b.lines).collect();
    Error::NonFinite(format!(
        "step {step}: the gradient is not finite, though the loss is. First layer at \
         fault: {name}; rows at lines {lines:?} of the training file. Try a lower \
         --learning-rate"
    ))
}
