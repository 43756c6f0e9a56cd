//! The laboratory of the chapters: small problems on which methods are compared, and
//! what makes a comparison fair. The experiments stand on it, and nothing of the
//! library does. Every method gets the same learning rates, the same
//! seeds and the same batches; results are medians with their range.

pub mod batches;
pub mod codes;
pub mod cost;
pub mod dates;
pub mod faults;
mod memory;
mod named;
pub mod normality;
mod parallel;
pub mod published;
mod recorded;
mod report;
pub mod router;
pub mod rows;
pub mod shipped;
pub mod small;
pub mod spectrum;
pub mod tables;
mod text;
pub mod tune;
mod words;
pub mod writing;

pub use indicatif::ProgressIterator;
pub use memory::peak;
pub use named::{Named, named};
pub use parallel::{by_seed, parallel};
pub use recorded::Recorded;
pub use report::Report;
pub use shipped::Shipped;
pub use text::{Run, Text, find, train, train_all};
pub use words::Words;

use downhill::optim::{Optimizer, Param};
use downhill::plot::Chart;
use downhill::schedule::{Schedule, constant};
use tch::Tensor;

/// Makes an optimizer for these parameters. A plain function, so that it can be kept
/// in a table and sent to another thread.
pub type Make = fn(Vec<Param>) -> Box<dyn Optimizer>;

/// Follows `loss(theta, t)` down from `start`, the steps `t` counted from 0. Returns
/// the position before the first step and after each.
pub fn descend(
    make: Make,
    start: &[f64],
    lr: impl Schedule,
    steps: i64,
    loss: impl Fn(&Tensor, i64) -> Tensor,
) -> Vec<Vec<f64>> {
    let theta = Tensor::from_slice(start).set_requires_grad(true);
    let named = [("theta".to_string(), theta.shallow_clone())];
    let mut optimizer = make(Param::with_decay(named, |_, _| 0.));
    let mut path = vec![start.to_vec()];
    for t in 0..steps {
        optimizer.zero_grad();
        loss(&theta, t).backward();
        optimizer.step(lr.lr(t));
        let n = start.len() as i64;
        path.push((0..n).map(|i| theta.double_value(&[i])).collect());
    }
    path
}

/// The quadratic valley `½ θᵀ A θ` in the plane: curvature 1 along its floor and
/// `steep` across, the floor turned by `degrees` against the axes.
#[derive(Debug)]
pub struct Valley {
    a: Tensor,
    steep: f64,
    degrees: f64,
}

impl Valley {
    /// See [`Valley`].
    pub fn new(steep: f64, degrees: f64) -> Self {
        let (s, c) = degrees.to_radians().sin_cos();
        let turn = Tensor::from_slice2(&[[c, -s], [s, c]]);
        let curvature = Tensor::from_slice(&[1., steep]).diag(0);
        let a = turn.matmul(&curvature).matmul(&turn.tr());
        Self { a, steep, degrees }
    }

    /// `½ θᵀ A θ` of a tensor [2].
    pub fn height(&self, theta: &Tensor) -> Tensor {
        theta.dot(&self.a.mv(theta)) / 2.
    }

    /// The same of a point given by its coordinates.
    pub fn height_at(&self, point: &[f64]) -> f64 {
        self.height(&Tensor::from_slice(point)).double_value(&[])
    }

    /// The point `along` the floor and `across` it.
    pub fn point(&self, along: f64, across: f64) -> [f64; 2] {
        let (s, c) = self.degrees.to_radians().sin_cos();
        [c * along - s * across, s * along + c * across]
    }

    /// The learning rate that gets [`descend`] down fastest from (−9, 1): after how many
    /// steps the distance to the bottom stays below a hundredth of the start's, that
    /// rate, and the path. No rate within `limit` steps: `limit + 1`, NaN, nothing.
    pub fn fastest(&self, make: Make, limit: usize) -> (usize, f64, Vec<Vec<f64>>) {
        let start = self.point(-9., 1.);
        let goal = start[0].hypot(start[1]) / 100.;
        let mut best = (limit + 1, f64::NAN, vec![]);
        for lr in grid(1e-3, 10f64.powf(0.25), 15) {
            let steps = limit.min(2 * best.0) as i64; // enough to be told apart
            let path =
                descend(make, &start, constant(lr), steps, |p, _| self.height(p));
            let near = |p: &Vec<f64>| p[0].hypot(p[1]) <= goal;
            let needed = path.iter().rposition(|p| !near(p)).map_or(0, |i| i + 1);
            if needed < best.0.min(path.len()) {
                best = (needed, lr, path);
            }
        }
        best
    }

    /// Points of the ellipse on which the valley has this height.
    pub fn contour(&self, height: f64) -> Vec<(f64, f64)> {
        let (long, short) =
            ((2. * height).sqrt(), (2. * height / self.steep).sqrt());
        let angle = |i: i32| std::f64::consts::TAU * f64::from(i) / 120.;
        let at = |w: f64| self.point(long * w.cos(), short * w.sin());
        (0..=120).map(|i| at(angle(i)).into()).collect()
    }
}

/// Learning rates `first`, `first · factor`, .., `count` of them.
pub fn grid(first: f64, factor: f64, count: usize) -> Vec<f64> {
    (0..count).map(|k| first * factor.powi(k as i32)).collect()
}

/// The slope of ln y over ln x, by least squares: the power with which y grows.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0.ln()), mean(|p| p.1.ln()));
    let over = |p: &(f64, f64)| (p.0.ln() - x) * (p.1.ln() - y);
    let under = |p: &(f64, f64)| (p.0.ln() - x).powi(2);
    points.iter().map(over).sum::<f64>() / points.iter().map(under).sum::<f64>()
}

/// Lowest, median and highest of some runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The lowest.
    pub low: f64,
    /// The middle one; of an even number, the upper of the two.
    pub median: f64,
    /// The highest; infinite if a run diverged.
    pub high: f64,
}

impl std::fmt::Display for Spread {
    /// `2.345 (2.301 to 2.399)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n = f.precision().unwrap_or(3);
        let Self { low, median, high } = self;
        write!(f, "{median:.n$} ({low:.n$} to {high:.n$})")
    }
}

impl Spread {
    /// Whether some run of one is within the range of the other.
    pub fn overlaps(self, other: Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    /// Which of these has the lowest median.
    pub fn best(all: &[Self]) -> usize {
        let order = |i: &usize, j: &usize| all[*i].median.total_cmp(&all[*j].median);
        (0..all.len()).min_by(order).unwrap_or_default()
    }

    /// Of these values; one that is not finite counts as infinite.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let worst = |x: f64| if x.is_finite() { x } else { f64::INFINITY };
        let mut all: Vec<f64> = values.into_iter().map(worst).collect();
        all.sort_by(f64::total_cmp);
        let at = |i: usize| all.get(i).copied().unwrap_or(f64::NAN);
        let median = at(all.len() / 2);
        Self { low: at(0), median, high: at(all.len().saturating_sub(1)) }
    }
}

/// Adds the medians as a line with the ranges as a band around it, x multiplied by
/// `scale`.
pub fn draw_spread(
    chart: Chart,
    name: &str,
    points: &[(f64, Spread)],
    scale: f64,
) -> Chart {
    let range: Vec<_> =
        points.iter().map(|(x, s)| (x * scale, s.low, s.high)).collect();
    let line = points.iter().map(|(x, s)| (x * scale, s.median)).collect();
    chart.band(&range).line(name, line)
}
