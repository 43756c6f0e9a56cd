//! Chapter 7: schedules.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::schedule::{Schedule, cosine, inverse_sqrt, linear, noam, wsd};

// ANCHOR: ex1_starter
/// A cosine from `peak` at step 0 down to `floor` at step `total`, and `floor` ever
/// after. Many recipes keep a tenth of the peak.
fn to_floor(peak: f64, floor: f64, total: i64, t: i64) -> f64 {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn to_floor_solved(peak: f64, floor: f64, total: i64, t: i64) -> f64 {
    floor + cosine(peak - floor, 0, total).lr(t)
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(f64, f64, i64, i64) -> f64) {
    let near = |t, expected: f64| {
        let found = answer(1., 0.1, 100, t);
        assert!((found - expected).abs() < 1e-12, "step {t}: {found}");
    };
    near(0, 1.);
    near(50, 0.55);
    near(100, 0.1);
    near(5000, 0.1);
}

#[test]
fn ex1() {
    check1(to_floor_solved);
    // Cut off at the floor, which it then reaches too early.
    refused(|| check1(|peak, floor, n, t| cosine(peak, 0, n).lr(t).max(floor)));
    starter(|| check1(to_floor));
}

// ANCHOR: ex2_starter
/// The step at which the first Transformer's schedule is highest, and its rate there.
fn highest(width: i64, warmup: i64) -> (i64, f64) {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn highest_solved(width: i64, warmup: i64) -> (i64, f64) {
    // The two terms of the minimum meet at n = warmup, and n = t + 1.
    (warmup - 1, ((width * warmup) as f64).powf(-0.5))
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(i64, i64) -> (i64, f64)) {
    for (width, warmup) in [(512, 4000), (64, 10), (1, 1)] {
        let (t, rate) = answer(width, warmup);
        let s = noam(width, warmup);
        assert!((s.lr(t) - rate).abs() < 1e-12, "{rate} at step {t}");
        assert!((0..3 * warmup).all(|u| s.lr(u) <= rate * (1. + 1e-12)));
    }
}

#[test]
fn ex2() {
    check2(highest_solved);
    refused(|| {
        check2(|width, warmup| (warmup, ((width * warmup) as f64).powf(-0.5)))
    });
    starter(|| check2(highest));
}

// ANCHOR: ex3_starter
/// How far a schedule could carry a weight if every step went the same way by exactly
/// the rate, as Adam's nearly do: in units of peak times steps.
fn reach(schedule: &dyn Schedule, peak: f64, total: i64) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn reach_solved(schedule: &dyn Schedule, peak: f64, total: i64) -> f64 {
    (0..total).map(|t| schedule.lr(t)).sum::<f64>() / (peak * total as f64)
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&dyn Schedule, f64, i64) -> f64) {
    let far = |s: &dyn Schedule| answer(s, 2e-4, 10_000);
    let line = far(&linear(2e-4, 0, 10_000));
    let bow = far(&cosine(2e-4, 0, 10_000));
    let flat = far(&wsd(2e-4, 0, 8000, 2000));
    assert!((line - 0.5).abs() < 1e-3, "half of it in a straight line: {line}");
    assert!((bow - 0.5).abs() < 1e-3, "half of it in a cosine as well: {bow}");
    assert!((flat - 0.9).abs() < 1e-3, "flat for four fifths: {flat}");
}

#[test]
fn ex3() {
    check3(reach_solved);
    refused(|| check3(|s, peak, total| s.lr(total / 3) / peak));
    starter(|| check3(reach));
}

// ANCHOR: ex4_starter
/// Two schedules as one: `first` for `steps` steps, then `second` from its own
/// beginning.
fn joined(
    first: impl Fn(i64) -> f64,
    steps: i64,
    second: impl Fn(i64) -> f64,
) -> impl Fn(i64) -> f64 {
    let _ = (&first, &second);
    |t| todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn joined_solved(
    first: impl Fn(i64) -> f64,
    steps: i64,
    second: impl Fn(i64) -> f64,
) -> impl Fn(i64) -> f64 {
    move |t| if t < steps { first(t) } else { second(t - steps) }
}
// ANCHOR_END: ex4_solution

fn check4(both: &dyn Fn(i64) -> f64) {
    let found: Vec<f64> = (0..6).map(both).collect();
    assert_eq!(found, [0., 1., 2., 10., 20., 30.]);
}

const UP: fn(i64) -> f64 = |t| t as f64;
const TENS: fn(i64) -> f64 = |t| 10. * (t + 1) as f64;

#[test]
fn ex4() {
    check4(&joined_solved(UP, 3, TENS));
    refused(|| check4(&|t| if t < 3 { UP(t) } else { TENS(t) }));
    starter(|| check4(&joined(UP, 3, TENS)));
}

// ANCHOR: ex5_starter
/// One weight x, loss ½ x², noise of variance `noise` on every gradient: the mean of x²
/// after these rates, when it is 1 at the start.
fn mean_square(rates: &[f64], noise: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn mean_square_solved(rates: &[f64], noise: f64) -> f64 {
    // x − η (x + ε): the mean of the square of a sum of two independent parts.
    let step = |square: f64, lr: &f64| (1. - lr).powi(2) * square + lr * lr * noise;
    rates.iter().fold(1., step)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(&[f64], f64) -> f64) {
    let near = |rates: &[f64], noise, expected: f64| {
        let found = answer(rates, noise);
        assert!((found - expected).abs() < 1e-9, "{rates:?}: {found}");
    };
    near(&[], 1., 1.);
    near(&[1.], 0.25, 0.25);
    near(&[0.5, 0.5], 0., 0.0625);
    // The floor of a constant rate: η / (2 − η) times the noise.
    near(&[0.1; 500], 4., 4. * 0.1 / 1.9);
    // With 1/t the estimate is the mean of what was seen: its variance falls as 1/t.
    let falling: Vec<f64> = (1..=100).map(|t| 1. / f64::from(t)).collect();
    near(&falling, 4., 0.04);
}

#[test]
fn ex5() {
    check5(mean_square_solved);
    refused(|| {
        check5(|rates, noise| {
            rates
                .iter()
                .fold(1., |square, lr| (1. - lr).powi(2) * square + lr * noise)
        })
    });
    starter(|| check5(mean_square));
}

// ANCHOR: ex6_starter
/// After how many steps an inverse square root with this warmup, and the timescale
/// equal to it, is down to `share` of its peak.
fn falls_to(share: f64, warmup: i64) -> i64 {
    todo!()
}
// ANCHOR_END: ex6_starter

// ANCHOR: ex6_solution
fn falls_to_solved(share: f64, warmup: i64) -> i64 {
    // √(warmup / t) = share.
    (warmup as f64 / (share * share)).ceil() as i64
}
// ANCHOR_END: ex6_solution

fn check6(answer: fn(f64, i64) -> i64) {
    for (share, warmup) in [(0.5, 100), (0.1, 50), (0.01, 2000)] {
        let t = answer(share, warmup);
        let s = inverse_sqrt(1., warmup, warmup);
        let (here, before) = (s.lr(t), s.lr(t - 1));
        assert!(here <= share + 1e-12 && before > share, "{before}, then {here}");
    }
}

#[test]
fn ex6() {
    check6(falls_to_solved);
    refused(|| check6(|share, warmup| (warmup as f64 / share) as i64));
    starter(|| check6(falls_to));
}
