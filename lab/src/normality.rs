//! How far some numbers are from a normal distribution.
use tch::{Kind, Tensor};

/// By row of a matrix `[rows, n]`: `n / 6 (skewness² + excess kurtosis² / 4)`, large
/// where a row is not normal (Jarque and Bera, 1980).
pub fn jarque_bera(w: &Tensor) -> Tensor {
    let z = w - w.mean_dim(1, true, Kind::Float);
    let z = &z / z.square().mean_dim(1, true, Kind::Float).sqrt();
    let mean = |p: f64| z.pow_tensor_scalar(p).mean_dim(1, false, Kind::Float);
    let far = mean(3.).square() + (mean(4.) - 3.).square() / 4.;
    far * (w.size()[1] as f64 / 6.)
}

/// Numbers less their mean, in standard deviations.
fn standard(w: &Tensor) -> Tensor {
    (w - w.mean(Kind::Float)) / w.std(true)
}

/// The mean fourth power of all of them in standard deviations, less the 3 of a normal
/// distribution: above zero, the tails are heavier.
pub fn excess_kurtosis(w: &Tensor) -> f64 {
    standard(w).pow_tensor_scalar(4.).mean(Kind::Double).double_value(&[]) - 3.
}

/// The quantiles of `w` at 200 places and a few near the ends, in standard deviations,
/// each after the normal distribution's: a straight line for normal numbers.
pub fn against_normal(w: &Tensor) -> Vec<(f64, f64)> {
    let inner = (1..200).map(|i| f64::from(i) / 200.);
    let p: Vec<f64> =
        [0.0002, 0.001].into_iter().chain(inner).chain([0.999, 0.9998]).collect();
    let p = Tensor::from_slice(&p);
    let (sorted, _) = standard(w).flatten(0, -1).sort(0, false);
    let index = (&p * (sorted.numel() as f64 - 1.)).round().to_kind(Kind::Int64);
    let (normal, ours) = (p.special_ndtri(), sorted.index_select(0, &index));
    let at = |i| (normal.double_value(&[i]), ours.double_value(&[i]));
    (0..p.numel() as i64).map(at).collect()
}
