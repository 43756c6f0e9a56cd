//! Rows of a batch, end to end; and the padded grid in which attention sees them.
use crate::{Result, autograd};
use tch::{Device, Tensor};

/// How the tokens of a batch lie: B rows end to end, N tokens in all, T in the longest.
///
/// Everything but attention treats tokens one by one and computes on `[N, ..]`, nothing
/// for padding. Attention gets the grid `[B, T, ..]`, where zeros stand behind shorter
/// rows: under the causal mask no token sees what comes after it, so that no further
/// mask is needed.
#[derive(Debug)]
pub struct Rows {
    lengths: Vec<i64>,
    /// Where in B·T places each token stands, unless all rows are of one length.
    slots: Option<Tensor>,
}

impl Rows {
    /// Rows of so many tokens each, on `device`.
    pub fn new(lengths: &[i64], device: Device) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let slots = lengths.iter().any(|&t| t < longest).then(|| {
            let row = |(b, &t): (i64, &i64)| b * longest..b * longest + t;
            let slots: Vec<i64> = (0..).zip(lengths).flat_map(row).collect();
            autograd::upload(&Tensor::from_slice(&slots), device)
        });
        Self { lengths: lengths.to_vec(), slots }
    }

    // ANCHOR: grid
    /// The place of each token in its row, counted from `start`.
    pub fn positions(&self, start: i64) -> Vec<i64> {
        self.lengths.iter().flat_map(|t| start..start + t).collect()
    }

    /// `[N, ..]` to `[B, T, ..]`.
    pub fn grid(&self, x: &Tensor) -> Result<Tensor> {
        let grid = match &self.slots {
            Some(slots) => self.spread(x, slots)?,
            None => x.shallow_clone(),
        };
        Ok(grid.f_unflatten(0, [self.lengths.len() as i64, -1])?)
    }

    // ANCHOR_END: grid
    /// `[B, T, ..]` to `[N, ..]`: what [`Rows::grid`] did, undone.
    pub fn line(&self, grid: &Tensor) -> Result<Tensor> {
        let x = grid.f_flatten(0, 1)?;
        match &self.slots {
            Some(slots) => self.gather(&x, slots),
            None => Ok(x),
        }
    }

    /// Each is the other's backward: libtorch would add token by token instead.
    fn spread(&self, x: &Tensor, slots: &Tensor) -> Result<Tensor> {
        let (places, kept) = (self.places(), slots.shallow_clone());
        let forward = || Ok(vec![put(x, slots, places)?]);
        let mut grid = autograd::custom(&[x], forward, move |dy| {
            let take = |dy: &Tensor| dy.f_index_select(0, &kept);
            Ok(vec![dy[0].as_ref().map(take).transpose()?])
        })?;
        Ok(grid.remove(0))
    }

    fn gather(&self, x: &Tensor, slots: &Tensor) -> Result<Tensor> {
        let (places, kept) = (self.places(), slots.shallow_clone());
        let forward = || Ok(vec![x.f_index_select(0, slots)?]);
        let mut line = autograd::custom(&[x], forward, move |dy| {
            let put = |dy: &Tensor| put(dy, &kept, places);
            Ok(vec![dy[0].as_ref().map(put).transpose()?])
        })?;
        Ok(line.remove(0))
    }

    fn places(&self) -> i64 {
        self.lengths.len() as i64 * self.longest()
    }

    /// T.
    pub(super) fn longest(&self) -> i64 {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let slots = self.slots.as_ref().map(Tensor::shallow_clone);
        Self { lengths: self.lengths.clone(), slots }
    }
}

/// Zeros in so many places, and `x` in those of `slots`.
fn put(x: &Tensor, slots: &Tensor, places: i64) -> Result<Tensor> {
    let mut shape = x.size();
    shape[0] = places;
    let mut grid = x.f_new_zeros(shape, (x.kind(), x.device()))?;
    Ok(grid.f_index_copy_(0, slots, x)?)
}
