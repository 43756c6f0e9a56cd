//! How good predictions are, as scikit-learn defines it.

/// Rows by their class (first index) and by the class that was predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Confusion(pub Vec<Vec<u64>>);

impl Confusion {
    /// Counts pairs of a true and a predicted class, each below `classes`.
    pub fn count(
        classes: usize,
        pairs: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let mut table = vec![vec![0; classes]; classes];
        for (truth, predicted) in pairs {
            table[truth][predicted] += 1;
        }
        Self(table)
    }

    /// Share of rows on the diagonal.
    pub fn accuracy(&self) -> f64 {
        let all: u64 = self.0.iter().flatten().sum();
        let right: u64 = (0..self.0.len()).map(|i| self.0[i][i]).sum();
        right as f64 / all.max(1) as f64
    }

    /// The mean over classes of `F1 = 2 TP / (2 TP + FP + FN)`. A class that neither
    /// occurs nor is predicted does not count.
    pub fn macro_f1(&self) -> f64 {
        let scores = (0..self.0.len()).filter_map(|i| {
            let truth: u64 = self.0[i].iter().sum();
            let predicted: u64 = self.0.iter().map(|row| row[i]).sum();
            let both = truth + predicted; // 2 TP + FP + FN
            (both > 0).then(|| 2. * self.0[i][i] as f64 / both as f64)
        });
        let scores: Vec<f64> = scores.collect();
        scores.iter().sum::<f64>() / scores.len().max(1) as f64
    }
}

/// Mean absolute error of (true, predicted) numbers.
pub fn mae(pairs: &[(f64, f64)]) -> f64 {
    let sum: f64 = pairs.iter().map(|(y, p)| (y - p).abs()).sum();
    sum / pairs.len().max(1) as f64
}

/// `R² = 1 − Σ (y − p)² / Σ (y − ȳ)²`: the share of the variance that is predicted.
/// None where the true numbers do not vary.
pub fn r2(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len().max(1) as f64;
    let mean = pairs.iter().map(|(y, _)| y).sum::<f64>() / n;
    let left: f64 = pairs.iter().map(|(y, p)| (y - p).powi(2)).sum();
    let all: f64 = pairs.iter().map(|(y, _)| (y - mean).powi(2)).sum();
    (all > 0.).then(|| 1. - left / all)
}
