//! Learning rates as pure functions of the step: nothing to save, nothing to wear out.
//!
//! The convention is transformers' (`optimization.py`): steps count from 0, warmup
//! rises linearly from 0 at step 0 to the peak at step `warmup`, and the end of a
//! decay is reached at step `total`, one after the last that is taken.

// ANCHOR: trait
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
// ANCHOR_END: trait

impl Schedule for f64 {
    fn lr(&self, _: i64) -> f64 {
        *self
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
// ANCHOR: cosine
pub fn cosine(peak: f64, warmup: i64, total: i64) -> impl Schedule {
    move |t| {
        let p = progress(t, warmup, total).min(1.);
        peak * rise(t, warmup).unwrap_or_else(|| half_cosine(p))
    }
}
// ANCHOR_END: cosine

/// Warmup, then `end + (peak − end) (1 − p)^power` with p the share of the decay that
/// is behind us.
///
/// As transformers' `get_polynomial_decay_schedule_with_warmup`.
pub fn polynomial(
    peak: f64,
    warmup: i64,
    total: i64,
    power: f64,
    end: f64,
) -> impl Schedule {
    move |t| {
        // As in transformers, the end beyond `total` even where the warmup is longer.
        let over = t > total;
        let p = if over { 1. } else { progress(t, warmup, total).min(1.) };
        let fall = || end + (peak - end) * (1. - p).powf(power);
        rise(t, warmup).map_or_else(fall, |r| peak * r)
    }
}

/// Warmup, then `cycles` half cosines of equal length, each from the peak to 0.
///
/// As transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.
pub fn cosine_restarts(
    peak: f64,
    warmup: i64,
    total: i64,
    cycles: i64,
) -> impl Schedule {
    move |t| {
        let p = progress(t, warmup, total);
        let fall = || if p < 1. { half_cosine(cycles as f64 * p % 1.) } else { 0. };
        peak * rise(t, warmup).unwrap_or_else(fall)
    }
}

/// Half cosines from the peak to `floor`, the first of `first` steps, each `factor`
/// times as long as the one before, for ever.
///
/// Source: Loshchilov & Hutter 2017, arXiv 1608.03983 (SGDR); as PyTorch's
/// `CosineAnnealingWarmRestarts`.
pub fn warm_restarts(
    peak: f64,
    floor: f64,
    first: i64,
    factor: i64,
) -> impl Schedule {
    move |t| {
        let (mut since, mut length) = (t, first.max(1));
        while since >= length {
            since -= length;
            length *= factor.max(1);
        }
        floor + (peak - floor) * half_cosine(since as f64 / length as f64)
    }
}

/// Warmup, then `peak / √(1 + (t − warmup) / timescale)`.
///
/// As transformers' `get_inverse_sqrt_schedule`, whose timescale is the warmup's
/// length, or 10,000 without one, unless given.
pub fn inverse_sqrt(peak: f64, warmup: i64, timescale: i64) -> impl Schedule {
    move |t| {
        let scale = timescale.max(1) as f64;
        let fall = || (1. + (t - warmup) as f64 / scale).sqrt().recip();
        peak * rise(t, warmup).unwrap_or_else(fall)
    }
}

/// The first Transformer's: `width^−½ · min(n^−½, n · warmup^−³ᐟ²)` at step n = t + 1.
///
/// Source: Vaswani et al. 2017, arXiv 1706.03762, equation 3.
pub fn noam(width: i64, warmup: i64) -> impl Schedule {
    let (width, warmup) = (width as f64, warmup.max(1) as f64);
    move |t: i64| {
        let n = (t + 1) as f64;
        width.powf(-0.5) * n.powf(-0.5).min(n * warmup.powf(-1.5))
    }
}

/// `peak · gammaᵗ`. As PyTorch's `ExponentialLR`.
pub fn exponential(peak: f64, gamma: f64) -> impl Schedule {
    move |t| peak * gamma.powf(t as f64)
}

/// Times gamma after every so many steps. As PyTorch's `StepLR`.
pub fn step(peak: f64, every: i64, gamma: f64) -> impl Schedule {
    move |t| peak * gamma.powf((t / every.max(1)) as f64)
}

/// Times gamma at each milestone. As PyTorch's `MultiStepLR`.
pub fn multi_step(
    peak: f64,
    milestones: &[i64],
    gamma: f64,
) -> impl Schedule + use<> {
    let milestones = milestones.to_vec();
    move |t| peak * gamma.powf(milestones.iter().filter(|&&m| m <= t).count() as f64)
}

/// Warmup, then the peak; √0.1 of it after 80 % of the steps, a tenth after 90 %.
///
/// Source: DeepSeek-AI 2024, arXiv 2401.02954 (DeepSeek LLM), section 2.3, which says
/// 31.6 % and 10 % and counts tokens; its warmup has 2000 steps.
pub fn deepseek(peak: f64, warmup: i64, total: i64) -> impl Schedule {
    let fall = multi_step(peak, &[total * 8 / 10, total * 9 / 10], 0.1f64.sqrt());
    move |t| rise(t, warmup).map_or_else(|| fall.lr(t), |r| peak * r)
}

/// Half a cosine up from `peak / 25` in 30 % of the steps, then half a cosine down to
/// 10⁻⁴ of the start.
///
/// Source: Smith & Topin 2018, arXiv 1708.07120; as PyTorch's `OneCycleLR` with its
/// defaults, momentum left alone.
pub fn one_cycle(peak: f64, total: i64) -> impl Schedule {
    let (up, end) = (0.3 * total as f64 - 1., (total - 1) as f64);
    move |t| {
        let (t, low) = (t as f64, peak / 25.);
        let between = |a: f64, b: f64, p: f64| b + (a - b) * half_cosine(p.min(1.));
        match t <= up {
            true => between(low, peak, t / up),
            false => between(peak, low / 1e4, (t - up) / (end - up)),
        }
    }
}

/// Warmup, stable, decay: up in a line, flat, down half a cosine to 0. The end need
/// not be known before the decay begins.
///
/// Source: Hu et al. 2024, arXiv 2404.06395 (MiniCPM), section 4, whose decay is
/// exponential; with a cosine, as transformers' `get_wsd_schedule`.
// ANCHOR: wsd
pub fn wsd(peak: f64, warmup: i64, stable: i64, decay: i64) -> Phase {
    self::warmup(peak, warmup)
        .then(hold(peak, stable))
        .then(cosine_to(peak, 0., decay))
}
// ANCHOR_END: wsd

/// A piece of a schedule, so many steps long, to be followed by others.
pub struct Phase {
    rate: Box<dyn Fn(i64) -> f64 + Send + Sync>,
    steps: i64,
}

impl Phase {
    /// Of any function of the step, counted from the beginning of the phase.
    pub fn new(
        steps: i64,
        rate: impl Fn(i64) -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self { rate: Box::new(rate), steps: steps.max(0) }
    }

    // ANCHOR: then
    /// This one, then `next`, which counts its steps from its own beginning.
    pub fn then(self, next: Phase) -> Phase {
        let steps = self.steps;
        let rate = move |t| match t < steps {
            true => (self.rate)(t),
            false => (next.rate)(t - steps),
        };
        Phase { rate: Box::new(rate), steps: steps + next.steps }
    }
    // ANCHOR_END: then
}

impl Schedule for Phase {
    /// After its last step it stays where it ended.
    fn lr(&self, step: i64) -> f64 {
        (self.rate)(step.min(self.steps))
    }
}

/// From 0 to the peak in a straight line.
pub fn warmup(peak: f64, steps: i64) -> Phase {
    line(0., peak, steps)
}

/// The same rate.
pub fn hold(rate: f64, steps: i64) -> Phase {
    Phase::new(steps, move |_| rate)
}

/// A straight line.
pub fn line(from: f64, to: f64, steps: i64) -> Phase {
    Phase::new(steps, move |t| from + (to - from) * share(t, steps))
}

/// Half a cosine.
pub fn cosine_to(from: f64, to: f64, steps: i64) -> Phase {
    Phase::new(steps, move |t| to + (from - to) * half_cosine(share(t, steps)))
}

/// How much of a phase is behind us, 0 to 1: all of it if it has no length.
fn share(t: i64, steps: i64) -> f64 {
    if steps < 1 { 1. } else { (t as f64 / steps as f64).min(1.) }
}

/// 1 at p = 0, 0 at p = 1: `½ (1 + cos π p)`.
fn half_cosine(p: f64) -> f64 {
    0.5 * (1. + (std::f64::consts::PI * p).cos())
}

/// The warmup's factor, while it lasts.
fn rise(t: i64, warmup: i64) -> Option<f64> {
    (t < warmup).then(|| t as f64 / warmup.max(1) as f64)
}

/// How much of the decay is behind us: 0 at the end of warmup, 1 at `total`.
fn progress(t: i64, warmup: i64, total: i64) -> f64 {
    (t - warmup) as f64 / (total - warmup).max(1) as f64
}
