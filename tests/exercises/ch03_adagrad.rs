//! Chapter 3: Adagrad.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::optim::{Adagrad, Hyper, Rule};
use tch::Tensor;

// ANCHOR: ex1_starter
/// A step of Adagrad on plain numbers, epsilon 1e-10.
fn adagrad(theta: &mut f64, g: f64, s: &mut f64, lr: f64) {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn adagrad_solved(theta: &mut f64, g: f64, s: &mut f64, lr: f64) {
    *s += g * g;
    *theta -= lr * g / (s.sqrt() + 1e-10);
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&mut f64, f64, &mut f64, f64)) {
    let rule = Adagrad::default();
    let mut tensor = Tensor::from_slice(&[1f64]);
    let mut slots = rule.init(&tensor);
    let (mut theta, mut s) = (1., 0.);
    for i in 1..=50 {
        let g = f64::from(i).sin() * 10f64.powi(i % 9 - 8);
        let h = Hyper { t: i, lr: 0.1, wd: 0. };
        rule.update(&mut tensor, &Tensor::from_slice(&[g]), slots.each_mut(), h);
        answer(&mut theta, g, &mut s, 0.1);
        let expected = tensor.double_value(&[0]);
        assert!(
            (theta - expected).abs() < 1e-12,
            "step {i}: {theta}, not {expected}"
        );
    }
}

#[test]
fn ex1() {
    check1(adagrad_solved);
    refused(|| {
        check1(|theta, g, s, lr| {
            *theta -= lr * g / (s.sqrt() + 1e-10); // the sum before this gradient
            *s += g * g;
        })
    });
    starter(|| check1(adagrad));
}

// ANCHOR: ex2_starter
/// How far Adagrad comes in n steps along a gradient that never changes, in units of
/// the rate: to within one, without a loop.
fn comes(n: u32) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn comes_solved(n: u32) -> f64 {
    // The sum of 1/√t lies between 2√n − 2 and 2√n − 1.
    2. * f64::from(n).sqrt() - 1.5
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(u32) -> f64) {
    for n in [1, 10, 100, 100_000] {
        let sum: f64 = (1..=n).map(|t| 1. / f64::from(t).sqrt()).sum();
        let found = answer(n);
        assert!((found - sum).abs() < 1., "{n} steps: {found}, not {sum}");
    }
}

#[test]
fn ex2() {
    check2(comes_solved);
    refused(|| check2(|n| f64::from(n).sqrt()));
    starter(|| check2(comes));
}

// ANCHOR: ex3_starter
/// The bound of Adagrad's regret, from the norm over time of each coordinate's
/// gradients: `Σ √(Σ g²)`. And that of gradient descent, which has one rate for all:
/// `√d √(Σ Σ g²)` for d coordinates.
fn bounds(norms: &[f64]) -> (f64, f64) {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn bounds_solved(norms: &[f64]) -> (f64, f64) {
    let squares: f64 = norms.iter().map(|n| n * n).sum();
    (norms.iter().sum(), (norms.len() as f64 * squares).sqrt())
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&[f64]) -> (f64, f64)) {
    // Alike: no difference. Word frequencies as 1/rank: a factor.
    let (ours, theirs) = answer(&[2.; 50]);
    assert!((ours - 100.).abs() < 1e-9 && (theirs - 100.).abs() < 1e-9);
    let words: Vec<f64> = (1..=10_000).map(f64::from).map(|r| 1. / r).collect();
    let (ours, theirs) = answer(&words);
    assert!((ours - 9.7876).abs() < 1e-3, "{ours}");
    assert!((theirs / ours - 13.1).abs() < 0.1, "{theirs}");
}

#[test]
fn ex3() {
    check3(bounds_solved);
    refused(|| {
        check3(|n| (n.iter().sum(), n.iter().map(|n| n * n).sum::<f64>().sqrt()))
    });
    starter(|| check3(bounds));
}

// ANCHOR: ex4_starter
/// TensorFlow starts the sum at 0.1 instead of 0: the first step in units of the rate,
/// for a first gradient g.
fn first_step(g: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn first_step_solved(g: f64) -> f64 {
    g / (0.1 + g * g).sqrt()
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(f64) -> f64) {
    let rule = Adagrad { initial_accumulator_value: 0.1, ..Adagrad::default() };
    for g in [100., 1., 0.01, -1e-4] {
        let mut theta = Tensor::from_slice(&[0f64]);
        let mut slots = rule.init(&theta);
        let h = Hyper { t: 1, lr: 1., wd: 0. };
        rule.update(&mut theta, &Tensor::from_slice(&[g]), slots.each_mut(), h);
        let (found, expected) = (answer(g), -theta.double_value(&[0]));
        assert!((found - expected).abs() < 1e-9, "{g}: {found}, not {expected}");
    }
}

#[test]
fn ex4() {
    check4(first_step_solved);
    refused(|| check4(f64::signum));
    starter(|| check4(first_step));
}

// ANCHOR: ex5_starter
/// A word is in one paragraph of `every`. How much further does Adagrad move its
/// weight, per paragraph that it is in, than that of a word that is in all of them?
/// (n paragraphs, gradients of 1 wherever a word is.)
fn advantage(every: u32, n: u32) -> f64 {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn advantage_solved(every: u32, n: u32) -> f64 {
    // Both come as far as the root of their own number of steps.
    let far = |n: u32| (1..=n).map(|t| 1. / f64::from(t).sqrt()).sum::<f64>();
    let seen = n / every;
    (far(seen) / f64::from(seen)) / (far(n) / f64::from(n))
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(u32, u32) -> f64) {
    for (every, n) in [(1, 100), (10, 10_000), (100, 1_000_000)] {
        // About the root of how rare it is.
        let (found, root) = (answer(every, n), f64::from(every).sqrt());
        assert!((found / root - 1.).abs() < 0.03, "{every}: {found}, about {root}");
    }
}

#[test]
fn ex5() {
    check5(advantage_solved);
    refused(|| check5(|every, _| f64::from(every)));
    starter(|| check5(advantage));
}
