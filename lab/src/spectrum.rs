//! How much of a matrix lies in how few directions.
use super::Spread;
use tch::{Kind, Tensor};

/// The share of a matrix's square that its largest 1, 2, .. singular values hold.
pub fn shares(w: &Tensor) -> Vec<f64> {
    let (_, s, _) = w.svd(true, true);
    let squares = s.square().cumsum(0, Kind::Double);
    let shares = &squares / squares.max();
    (0..shares.size()[0]).map(|i| shares.double_value(&[i])).collect()
}

/// The middle one of several matrices, number by number.
pub fn median(all: &[Vec<f64>]) -> Vec<(f64, f64)> {
    let least = all.iter().map(Vec::len).min().unwrap_or(0);
    let at = |i: usize| Spread::of(all.iter().map(|v| v[i])).median;
    (0..least).map(|i| ((i + 1) as f64, at(i))).collect()
}
