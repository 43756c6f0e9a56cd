//! From the columns of a table to what a network can read.
use super::table::{Column, Table};
use crate::{Error, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// What is done to a column of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Nothing.
    None,
    /// `(x − mean) / standard deviation`.
    Standard,
    /// The rank among the rows fitted, as a quantile of N(0, 1).
    Quantile,
}

/// Turns rows into tensors, by what the rows that it was fitted on are like: means,
/// ranks, and the categories that occur in them. Fitted on the training rows alone, it
/// tells a model nothing of the others.
#[derive(Clone, Debug)]
pub struct Encoder {
    numbers: Vec<(String, Scaler, bool)>,
    categories: Vec<(String, BTreeMap<String, i64>)>,
}

/// Rows as tensors.
#[derive(Debug)]
pub struct Features {
    /// Numbers [N, F'], f32.
    pub numbers: Tensor,
    /// Categories [N, F''], i64.
    pub categories: Tensor,
}

/// One column's scale.
#[derive(Clone, Debug)]
enum Scaler {
    None { mean: f64 },
    Standard { mean: f64, std: f64 },
    Quantile { sorted: Vec<f64> },
}

impl Encoder {
    /// Learns from `rows` of `table`; `target` is left out.
    ///
    /// A missing number becomes the mean (the median under [`Scale::Quantile`]), and a
    /// column in which one is missing gets a second one that says so, 0 or 1. A missing
    /// category is a category. One that `rows` do not have is the last.
    ///
    /// # Errors
    /// A column of numbers in which all of `rows` are missing.
    pub fn fit(
        table: &Table,
        target: &str,
        rows: &[usize],
        scale: Scale,
    ) -> Result<Self> {
        let (mut numbers, mut categories) = (vec![], vec![]);
        for name in table.names().iter().filter(|n| *n != target) {
            match table.column(name)? {
                Column::Numbers(x) => {
                    let all: Vec<f64> = rows.iter().map(|r| x[*r]).collect();
                    let here: Vec<f64> =
                        all.iter().copied().filter(|x| !x.is_nan()).collect();
                    if here.is_empty() {
                        let what = format!("column `{name}`: no number in it");
                        return Err(Error::file(table.path(), what));
                    }
                    let gaps = here.len() < all.len();
                    numbers.push((name.clone(), Scaler::fit(here, scale), gaps));
                }
                Column::Categories(x) => {
                    let mut codes = BTreeMap::new();
                    for value in
                        rows.iter().map(|r| x[*r].clone().unwrap_or_default())
                    {
                        codes.insert(value, 0);
                    }
                    for (i, code) in codes.values_mut().enumerate() {
                        *code = i as i64;
                    }
                    categories.push((name.clone(), codes));
                }
            }
        }
        Ok(Self { numbers, categories })
    }

    /// Number of numeric features.
    pub fn n_cont_features(&self) -> i64 {
        self.numbers.iter().map(|(_, _, gaps)| 1 + i64::from(*gaps)).sum()
    }

    /// Of each categorical feature, the number of values, one for all others included.
    pub fn cat_cardinalities(&self) -> Vec<i64> {
        self.categories.iter().map(|(_, codes)| codes.len() as i64 + 1).collect()
    }

    /// Rows as tensors.
    ///
    /// # Errors
    /// A column that was there in [`Encoder::fit`] is missing, or of another kind.
    pub fn encode(&self, table: &Table, rows: &[usize]) -> Result<Features> {
        let n = rows.len() as i64;
        let mut columns = vec![];
        for (name, scaler, gaps) in &self.numbers {
            let Column::Numbers(x) = table.column(name)? else {
                return Err(kind(table, name, "numbers"));
            };
            let scaled = rows.iter().map(|r| scaler.apply(x[*r]) as f32);
            columns.push(Tensor::from_slice(&scaled.collect::<Vec<_>>()));
            if *gaps {
                let gap = rows.iter().map(|r| f32::from(x[*r].is_nan()));
                columns.push(Tensor::from_slice(&gap.collect::<Vec<_>>()));
            }
        }
        let mut codes = vec![];
        for (name, known) in &self.categories {
            let Column::Categories(x) = table.column(name)? else {
                return Err(kind(table, name, "categories"));
            };
            let other = known.len() as i64;
            let code = |r: &usize| {
                let value = x[*r].as_deref().unwrap_or_default();
                known.get(value).copied().unwrap_or(other)
            };
            let column: Vec<i64> = rows.iter().map(code).collect();
            codes.push(Tensor::from_slice(&column));
        }
        let stack = |columns: Vec<Tensor>, kind| match columns.is_empty() {
            true => Tensor::zeros([n, 0], (kind, tch::Device::Cpu)),
            false => Tensor::stack(&columns, 1),
        };
        let numbers = stack(columns, Kind::Float);
        Ok(Features { numbers, categories: stack(codes, Kind::Int64) })
    }
}

fn kind(table: &Table, name: &str, wanted: &str) -> Error {
    let what = format!("column `{name}`: not of {wanted}, as in the table fitted");
    Error::file(table.path(), what)
}

impl Scaler {
    fn fit(mut x: Vec<f64>, scale: Scale) -> Self {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        match scale {
            Scale::None => Self::None { mean },
            Scale::Standard => {
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                // A column that is the same everywhere stays 0.
                let std = if variance > 0. { variance.sqrt() } else { 1. };
                Self::Standard { mean, std }
            }
            Scale::Quantile => {
                x.sort_by(f64::total_cmp);
                Self::Quantile { sorted: x }
            }
        }
    }

    /// Source of the quantiles: scikit-learn's `QuantileTransformer` with as many
    /// quantiles as rows and a normal output.
    fn apply(&self, x: f64) -> f64 {
        match self {
            Self::None { mean } => {
                if x.is_nan() {
                    *mean
                } else {
                    x
                }
            }
            Self::Standard { .. } | Self::Quantile { .. } if x.is_nan() => 0.,
            Self::Standard { mean, std } => (x - mean) / std,
            Self::Quantile { sorted } => normal_quantile(rank(sorted, x)),
        }
    }
}

/// Where `x` stands among sorted numbers, from 0 to 1, interpolated; amid equal ones,
/// in their middle.
fn rank(sorted: &[f64], x: f64) -> f64 {
    let last = (sorted.len() - 1).max(1) as f64;
    let below = sorted.partition_point(|s| *s < x); // how many are smaller
    let upto = sorted.partition_point(|s| *s <= x);
    if below < upto {
        // At the ends the quantile is that of the end, as in scikit-learn.
        return match (below == 0, upto == sorted.len()) {
            (true, _) => 0.,
            (_, true) => 1.,
            _ => (below + upto - 1) as f64 / 2. / last,
        };
    }
    if below == 0 || below == sorted.len() {
        return if below == 0 { 0. } else { 1. };
    }
    let (a, b) = (sorted[below - 1], sorted[below]);
    ((below - 1) as f64 + (x - a) / (b - a)) / last
}

/// The quantile of N(0, 1), cut off at ranks of 10⁻⁷.
fn normal_quantile(rank: f64) -> f64 {
    let rank = rank.clamp(1e-7, 1. - 1e-7);
    Tensor::from(rank).special_ndtri().double_value(&[])
}
