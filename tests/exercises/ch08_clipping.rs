//! Chapter 8: clipping.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};

// ANCHOR: ex1_starter
/// The norm of all gradients together, from the norm of each tensor's.
fn joint(norms: &[f64]) -> f64 {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn joint_solved(norms: &[f64]) -> f64 {
    norms.iter().map(|n| n * n).sum::<f64>().sqrt()
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&[f64]) -> f64) {
    assert_eq!(answer(&[]), 0.);
    assert_eq!(answer(&[3., 4.]), 5.);
    assert!((answer(&[1.; 16]) - 4.).abs() < 1e-12);
}

#[test]
fn ex1() {
    check1(joint_solved);
    refused(|| check1(|norms| norms.iter().sum()));
    starter(|| check1(joint));
}

// ANCHOR: ex2_starter
/// By what to multiply gradients whose norm is `norm`, so that it becomes `max` at
/// most; 1 where the norm is no number, so that the fault stays where it is.
fn factor(norm: f64, max: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn factor_solved(norm: f64, max: f64) -> f64 {
    // For a NaN the comparison is false, and for infinity 0 * infinity would be NaN.
    if norm > max && norm.is_finite() { max / norm } else { 1. }
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(f64, f64) -> f64) {
    assert_eq!(answer(4., 1.), 0.25);
    assert_eq!(answer(0.5, 1.), 1., "short gradients are not stretched");
    assert_eq!(answer(0., 1.), 1., "nothing divided by nothing");
    assert_eq!(answer(f64::NAN, 1.), 1.);
    assert_eq!(answer(f64::INFINITY, 1.), 1.);
}

#[test]
fn ex2() {
    check2(factor_solved);
    refused(|| check2(|norm, max| max / norm));
    refused(|| check2(|norm, max| (max / norm).min(1.)));
    starter(|| check2(factor));
}

// ANCHOR: ex3_starter
/// A gradient (a, b) in the plane is cut by value at `max`: the angle between before
/// and after, in degrees.
fn turned_by(a: f64, b: f64, max: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn turned_by_solved(a: f64, b: f64, max: f64) -> f64 {
    let (c, d) = (a.clamp(-max, max), b.clamp(-max, max));
    // Sine and cosine, both times the lengths: an arc cosine is blurred near zero.
    (a * d - b * c).abs().atan2(a * c + b * d).to_degrees()
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(f64, f64, f64) -> f64) {
    let near = |a, b, max, expected: f64| {
        let found = answer(a, b, max);
        assert!((found - expected).abs() < 1e-6, "({a}, {b}) at {max}: {found}");
    };
    near(0.3, -0.4, 1., 0.);
    near(5., 5., 1., 0.);
    near(1e9, 1., 1., 45.);
    near(-3., 3f64.sqrt(), 3f64.sqrt(), 15.);
}

#[test]
fn ex3() {
    check3(turned_by_solved);
    refused(|| check3(|a, b, max| 45. * f64::from(a.abs().max(b.abs()) > max)));
    starter(|| check3(turned_by));
}

// ANCHOR: ex4_starter
/// A threshold from the norms of some steps without clipping, such that about one step
/// in ten would have been clipped.
fn threshold(norms: &[f64]) -> f64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn threshold_solved(norms: &[f64]) -> f64 {
    let mut sorted = norms.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() * 9 / 10]
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(&[f64]) -> f64) {
    // One norm in fifty is a hundred times too large: a mean would be led astray.
    let norms: Vec<f64> = (0..1000)
        .map(|i| {
            (1. + f64::from(i * 37 % 1000) / 1000.)
                * if i % 50 == 0 { 100. } else { 1. }
        })
        .collect();
    let max = answer(&norms);
    let clipped = norms.iter().filter(|n| **n > max).count();
    assert!((90..=110).contains(&clipped), "{clipped} of 1000 steps at {max}");
}

#[test]
fn ex4() {
    check4(threshold_solved);
    refused(|| check4(|norms| norms.iter().sum::<f64>() / norms.len() as f64));
    starter(|| check4(threshold));
}

// ANCHOR: ex5_starter
/// Adam has seen gradients of 1 for so long that m = v = 1; then comes one of size
/// `spike`, then again gradients of 1. After how many of these is its step back to
/// nine tenths of the rate? (β₁ = 0.9, β₂ = 0.999, no ε, no correction left.)
fn recovery(spike: f64) -> usize {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn recovery_solved(spike: f64) -> usize {
    let (mut m, mut v) = (0.9 + 0.1 * spike, 0.999 + 0.001 * spike * spike);
    let mut steps = 0;
    // The step is too long at first, because m jumps as well; then too short.
    let mut short = false;
    loop {
        (m, v) = (0.9 * m + 0.1, 0.999 * v + 0.001);
        steps += 1;
        let step: f64 = m / v.sqrt();
        short |= step < 0.9;
        if short && step >= 0.9 {
            return steps;
        }
    }
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(f64) -> usize) {
    // v falls back by a thousandth a step: 0.001 s² 0.999^n = 1 / 0.81 − 1.
    for spike in [100f64, 1000.] {
        let decay = (1f64 / 0.81 - 1.) / (0.001 * (spike * spike - 1.));
        let expected = decay.ln() / 0.999f64.ln();
        let found = answer(spike) as f64;
        assert!((found - expected).abs() < 3., "{spike}: {found}, not {expected}");
    }
}

#[test]
fn ex5() {
    check5(recovery_solved);
    refused(|| check5(|_| 1000));
    starter(|| check5(recovery));
}
