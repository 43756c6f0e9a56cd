//! The loss of a batch, and where it stopped being a number.
use super::Head;
use crate::data::{Batch, Dataset};
use crate::models::Decoder;
use crate::nn::Mode;
use crate::{Error, Result};
use tch::{Kind, Tensor, no_grad};

// ANCHOR: batch_loss
/// Cross-entropy summed over the learned tokens of a batch: each position's scores
/// against the next position's label, −100 left out.
///
/// A sum, because the mean is taken over the whole step: micro-batches with few
/// learned tokens must not weigh as much as those with many. The head runs only where
/// a label is.
pub fn batch_loss(model: &Decoder, batch: &Batch, mode: Mode) -> Result<Tensor> {
    let hidden = hidden(model, batch, mode, &mut |_, _| ())?; // (N, D)
    model.loss(&hidden.index_select(0, &batch.learned), &batch.targets)
}
// ANCHOR_END: batch_loss

/// As [`batch_loss`], or the head's loss of the rows.
pub(super) fn loss_of(
    model: &Decoder,
    head: Option<&Head>,
    batch: &Batch,
    mode: Mode,
) -> Result<Tensor> {
    let Some(head) = head else { return batch_loss(model, batch, mode) };
    let hidden = hidden(model, batch, mode, &mut |_, _| ())?; // (N, D)
    head.loss(&hidden.index_select(0, &batch.learned), &batch.targets)
}

pub(super) fn hidden(
    model: &Decoder,
    batch: &Batch,
    mode: Mode,
    see: &mut dyn FnMut(&str, &Tensor),
) -> Result<Tensor> {
    model.hidden_rows(&batch.ids, &batch.lengths, mode, see)
}

/// Mean loss per learned token over a data set, without dropout.
pub fn mean_loss(model: &Decoder, data: &Dataset, batch_size: usize) -> Result<f64> {
    no_grad(|| {
        let (mut sum, mut count) = (0., 0);
        let numbers: Vec<usize> = (0..data.len()).collect();
        for rows in numbers.chunks(batch_size.max(1)) {
            let rows = rows.iter().filter_map(|&i| data.row(i).transpose());
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let rows: Vec<_> = rows.iter().map(|row| &**row).collect();
            if rows.is_empty() {
                continue;
            }
            let batch = Batch::collate(&rows).to(model.device());
            let loss = batch_loss(model, &batch, Mode::Eval)?;
            sum += loss.double_value(&[]);
            count += batch.supervised();
        }
        Ok(sum / count.max(1) as f64)
    })
}

/// The first layer whose output is infinite or NaN, and the lines of the rows in which
/// it is; none if the loss of this batch is finite.
pub(super) fn at_fault(
    model: &Decoder,
    head: Option<&Head>,
    (batch, mode): (&Batch, Mode),
) -> Result<Option<(String, Vec<usize>)>> {
    let finite = |t: &Tensor| {
        let kind = Kind::Float;
        t.to_kind(kind).sum(kind).double_value(&[]).is_finite()
    };
    // The lines of the rows whose part of `x` is at fault.
    let faulty = |x: &Tensor| -> Vec<usize> {
        let rows = x.split_with_sizes(&batch.lengths, 0);
        let rows = rows.iter().zip(&batch.lines).filter(|(row, _)| !finite(row));
        rows.map(|(_, line)| *line).collect()
    };
    no_grad(|| {
        let mut found = None;
        let x = hidden(model, batch, mode, &mut |name, x| {
            if found.is_none() && !finite(x) {
                found = Some((name.to_string(), faulty(x)));
            }
        })?;
        if found.is_none() && !finite(&loss_of(model, head, batch, mode)?) {
            found = Some(match head {
                None => ("lm_head".into(), faulty(&model.logits(&x)?)),
                Some(head) => ("score".into(), faulty(&head.scores(&x)?)),
            });
        }
        Ok(found)
    })
}

/// Says which rows and which layer made the loss of a step infinite or NaN.
pub(super) fn blame_loss(
    model: &Decoder,
    head: Option<&Head>,
    batches: &[(Batch, Mode)],
    step: i64,
) -> Error {
    for (batch, mode) in batches {
        if let Ok(Some((layer, lines))) = at_fault(model, head, (batch, *mode)) {
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
