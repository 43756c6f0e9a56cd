//! Batches in the ways that other programs make them, to be compared with.
use downhill::Result;
use downhill::data::{Batch, Example, Grouping, IGNORED, Plan};
use downhill::models::Decoder;
use downhill::nn::Mode;
use downhill::plot::{Figure, Strips};
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

/// How the rows of a batch are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// At random.
    Random,
    /// Of similar length.
    Grouped,
    /// Packed: strips of so many tokens as this many rows have on average.
    Packed,
}

/// An epoch of batches of `size` rows of these lengths, each batch by the strips that
/// are computed side by side and the rows in each strip.
pub fn batches(
    lengths: &[u32],
    size: usize,
    choice: Choice,
    seed: u64,
) -> Vec<Vec<Vec<usize>>> {
    let tokens: usize = lengths.iter().map(|n| *n as usize).sum();
    let grouping = match choice {
        Choice::Random => Grouping::Alone,
        Choice::Grouped => Grouping::ByLength(size),
        Choice::Packed => {
            return packs(
                lengths,
                size * tokens.div_ceil(lengths.len().max(1)),
                seed,
            );
        }
    };
    let plan = Plan::new(lengths.len(), lengths.to_vec(), grouping, seed, true);
    let strips: Vec<Vec<usize>> =
        (0..plan.packs()).map(|k| vec![plan.pack(k)[0] as usize]).collect();
    strips.chunks(size).map(<[_]>::to_vec).collect()
}

/// Packs of up to so many tokens, each a batch of one strip.
fn packs(lengths: &[u32], tokens: usize, seed: u64) -> Vec<Vec<Vec<usize>>> {
    let packed = Grouping::Packed(tokens);
    let plan = Plan::new(lengths.len(), lengths.to_vec(), packed, seed, true);
    let strip = |k| plan.pack(k).iter().map(|row| *row as usize).collect();
    (0..plan.packs()).map(|k| vec![strip(k)]).collect()
}

// ANCHOR: padding
/// The share of places that hold padding, where each batch is a rectangle as wide as its
/// longest strip, and `width` at least.
pub fn padding(lengths: &[u32], batches: &[Vec<Vec<usize>>], width: u32) -> f64 {
    let tokens: u32 = lengths.iter().sum();
    let long = |strip: &Vec<usize>| strip.iter().map(|row| lengths[*row]).sum();
    let places = batches.iter().map(|batch| {
        let longest: u32 = batch.iter().map(long).max().unwrap_or(0);
        f64::from(longest.max(width)) * batch.len() as f64
    });
    1. - f64::from(tokens) / places.sum::<f64>()
}
// ANCHOR_END: padding

/// The first sixteen of these rows that are shorter than 450, batched in three ways.
pub fn picture(lengths: &[u32], seed: u64) -> Figure {
    let few = lengths.iter().copied().filter(|n| *n < 450).take(16);
    let few: Vec<u32> = few.collect();
    let most = few.iter().max().copied().unwrap_or(0);
    let mut picture = Strips::new("Sixteen rows in batches of eight");
    for (name, choice) in [
        ("at random", Choice::Random),
        ("by length", Choice::Grouped),
        ("packed", Choice::Packed),
    ] {
        let (plan, width) = match choice {
            Choice::Packed => (packs(&few, most as usize, seed), most),
            _ => (batches(&few, 8, choice, seed), 0),
        };
        let share = 100. * padding(&few, &plan, width);
        let heading = format!("{name}: {share:.0} % is padding");
        picture = picture.group(&heading, &strips(&few, &plan, width as usize));
    }
    picture.draw()
}

/// Strips to draw: the lengths of the rows in each, and its batch's longest or `width`.
fn strips(
    lengths: &[u32],
    batches: &[Vec<Vec<usize>>],
    width: usize,
) -> Vec<(Vec<usize>, usize)> {
    let pieces = |strip: &Vec<usize>| -> Vec<usize> {
        strip.iter().map(|row| lengths[*row] as usize).collect()
    };
    let batch = |batch: &Vec<Vec<usize>>| {
        let all: Vec<Vec<usize>> = batch.iter().map(pieces).collect();
        let most = all.iter().map(|p| p.iter().sum::<usize>()).max().unwrap_or(0);
        all.into_iter().map(move |p| (p, most.max(width))).collect::<Vec<_>>()
    };
    batches.iter().flat_map(batch).collect()
}

/// Seconds that a forward over these batches takes, the faster of two times: as
/// rectangles in which padding is computed like anything else, or end to end.
///
/// # Errors
/// What libtorch refuses.
pub fn seconds(
    model: &Decoder,
    lengths: &[u32],
    batches: &[Vec<Vec<usize>>],
    rectangles: bool,
) -> Result<f64> {
    let kind = (Kind::Int64, model.device());
    let mut best = f64::INFINITY;
    for _ in 0..2 {
        let began = Instant::now();
        for batch in batches {
            let rows = batch.concat().into_iter();
            let mut rows: Vec<i64> = rows.map(|r| i64::from(lengths[r])).collect();
            let longest = rows.iter().copied().max().unwrap_or(0);
            if rectangles {
                rows.fill(longest);
            }
            let ids = Tensor::ones([rows.iter().sum()], kind);
            let see = &mut |_: &str, _: &Tensor| ();
            let _ = no_grad(|| model.hidden_rows(&ids, &rows, Mode::Eval, see))?;
        }
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The same batch without walls: of each pack, so many rows, one row is made, in which
/// tokens see those of the rows before and positions run on.
pub fn run_together(batch: &Batch, packs: &[usize]) -> Batch {
    let mut together = batch.to(batch.ids.device());
    let mut rows = batch.lengths.iter();
    let sum = |n: &usize| rows.by_ref().take(*n).sum();
    together.lengths = packs.iter().map(sum).collect();
    together
}

/// The loss of rows as a rectangle, `pad` behind the shorter ones: the mean over the
/// learned tokens.
///
/// # Errors
/// What libtorch refuses.
pub fn padded_loss(model: &Decoder, rows: &[&Example], pad: i64) -> Result<Tensor> {
    let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let fill = |values: &[i64], with| -> Vec<i64> {
        let rest = std::iter::repeat_n(with, longest - values.len());
        values.iter().copied().chain(rest).collect()
    };
    let ids: Vec<i64> = rows.iter().flat_map(|r| fill(&r.ids, pad)).collect();
    // What follows a token is learned where it stands: labels move by one.
    let next = |r: &&Example| fill(&r.labels[1..], IGNORED);
    let next: Vec<i64> = rows.iter().flat_map(next).collect();
    let ids = Tensor::from_slice(&ids).view([rows.len() as i64, longest as i64]);
    let hidden = model.hidden(&ids, Mode::Eval, None)?.flatten(0, 1);
    let next = Tensor::from_slice(&next);
    let learned = next.not_equal(IGNORED).nonzero().view([-1]);
    let [hidden, next] = [hidden, next].map(|t| t.index_select(0, &learned));
    Ok(model.loss(&hidden, &next)? / learned.numel() as f64)
}

/// The loss of a batch as it lies, the mean over the learned tokens.
///
/// # Errors
/// What libtorch refuses.
pub fn line_loss(model: &Decoder, batch: &Batch) -> Result<Tensor> {
    let see = &mut |_: &str, _: &Tensor| ();
    let hidden = model.hidden_rows(&batch.ids, &batch.lengths, Mode::Eval, see)?;
    let hidden = hidden.index_select(0, &batch.learned);
    Ok(model.loss(&hidden, &batch.targets)? / batch.supervised() as f64)
}

/// One batch in three ways: padded, packed, and packed without walls.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// The loss of each.
    pub loss: [f64; 3],
    /// How far the gradients of the last two are from the first's, relative.
    pub gradient: [f64; 2],
}

// ANCHOR: compare
/// Puts the first `packs` packs of up to `tokens` through the model in three ways.
///
/// # Errors
/// What libtorch refuses.
pub fn compare(
    model: &Decoder,
    rows: &[Example],
    (packs, tokens): (usize, usize),
    pad: i64,
    seed: u64,
) -> Result<Compared> {
    let lengths = rows.iter().map(|row| row.ids.len() as u32).collect();
    let plan = Plan::new(rows.len(), lengths, Grouping::Packed(tokens), seed, true);
    let packs: Vec<&[u32]> =
        (0..packs.min(plan.packs())).map(|k| plan.pack(k)).collect();
    let sizes: Vec<usize> = packs.iter().map(|pack| pack.len()).collect();
    let some: Vec<&Example> =
        packs.concat().iter().map(|i| &rows[*i as usize]).collect();
    let named = model.named_parameters().into_iter();
    let weights: Vec<Tensor> =
        named.map(|(_, t)| t.set_requires_grad(true)).collect();
    let packed = Batch::collate(&some);
    let losses = [
        padded_loss(model, &some, pad)?,
        line_loss(model, &packed)?,
        line_loss(model, &run_together(&packed, &sizes))?,
    ];
    let gradient = |loss: &Tensor| {
        let all = Tensor::run_backward(&[loss], &weights, false, false);
        Tensor::cat(&all.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let [first, second, third] = losses.each_ref().map(gradient);
    let far = |g: Tensor| ((g - &first).norm() / first.norm()).double_value(&[]);
    Ok(Compared {
        loss: losses.map(|loss| loss.double_value(&[])),
        gradient: [far(second), far(third)],
    })
}
// ANCHOR_END: compare

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_by_hand() {
        let lengths = [3, 1, 2];
        let two = [vec![vec![0], vec![1]], vec![vec![2]]];
        assert_eq!(padding(&lengths, &two, 0), 1. - 6. / 8.);
        let packed = [vec![vec![0, 1]], vec![vec![2]]];
        assert_eq!(padding(&lengths, &packed, 4), 1. - 6. / 8.);
        assert_eq!(padding(&lengths, &packed, 0), 0.);
    }
}
