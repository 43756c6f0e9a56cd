//! Learning rates as pure functions of the step: nothing to save, nothing to wear out.
//!
//! The convention is transformers' (`optimization.py`): steps count from 0, warmup
//! rises linearly from 0 at step 0 to the peak at step `warmup`, and the end of a
//! decay is reached at step `total`, one after the last that is taken.

/// The learning rate at each step. Every `Fn(i64) -> f64` is one.
pub trait Schedule {
    /// Learning rate at `step`, counted from 0.
    fn lr(&self, step: i64) -> f64;
}

impl<F: Fn(i64) -> f64> Schedule for F {
    fn lr(&self, step: i64) -> f64 {
        self(step)
    }
}

/// `η(t) = peak`.
pub fn constant(peak: f64) -> impl Schedule {
    move |_| peak
}

/// `peak · t / warmup` up to the peak, then the peak.
pub fn constant_with_warmup(peak: f64, warmup: i64) -> impl Schedule {
    move |t| peak * rise(t, warmup).unwrap_or(1.)
}

/// Warmup, then a straight line to 0 at step `total`.
pub fn linear(peak: f64, warmup: i64, total: i64) -> impl Schedule {
    move |t| {
        // As in transformers, 0 from `total` on even where the warmup never ends.
        let left = || i64::max(total - t, 0) as f64 / (total - warmup).max(1) as f64;
        peak * rise(t, warmup).unwrap_or_else(left)
    }
}

/// Warmup, then half a cosine to 0 at step `total`:
/// `peak · ½ (1 + cos π (t − warmup) / (total − warmup))`.
///
/// Source: Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts. Past `total`
/// it stays at 0, where transformers' formula would rise again.
pub fn cosine(peak: f64, warmup: i64, total: i64) -> impl Schedule {
    move |t| {
        let p = progress(t, warmup, total).min(1.);
        let fall = || 0.5 * (1. + (std::f64::consts::PI * p).cos());
        peak * rise(t, warmup).unwrap_or_else(fall)
    }
}

/// The warmup's factor, while it lasts.
fn rise(t: i64, warmup: i64) -> Option<f64> {
    (t < warmup).then(|| t as f64 / warmup.max(1) as f64)
}

/// How much of the decay is behind us: 0 at the end of warmup, 1 at `total`.
fn progress(t: i64, warmup: i64, total: i64) -> f64 {
    (t - warmup) as f64 / (total - warmup).max(1) as f64
}
