//! Chapter 2: momentum.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::optim::{Hyper, Rule, Sgd};
use tch::Tensor;

/// Positions of `rule` along given gradients, from 0.
fn walk(rule: Sgd, gradients: &[f64], lr: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut theta = Tensor::from_slice(&[0f64]);
    let mut slots = rule.init(&theta);
    let step = |(i, g): (usize, &f64)| {
        let h = Hyper { t: i as i32 + 1, lr: lr(i), wd: 0. };
        rule.update(&mut theta, &Tensor::from_slice(&[*g]), slots.each_mut(), h);
        theta.double_value(&[0])
    };
    gradients.iter().enumerate().map(step).collect()
}

fn sgd(momentum: f64, nesterov: bool) -> Sgd {
    Sgd { momentum, nesterov, ..Sgd::default() }
}

fn gradients() -> Vec<f64> {
    (1..=40).map(|i| f64::from(i).sin() + 0.3).collect()
}

// ANCHOR: ex1_starter
/// A step of the heavy ball on plain numbers, PyTorch's form. `b` is 0 before the
/// first.
fn heavy(theta: &mut f64, g: f64, b: &mut f64, lr: f64, mu: f64) {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn heavy_solved(theta: &mut f64, g: f64, b: &mut f64, lr: f64, mu: f64) {
    *b = mu * *b + g;
    *theta -= lr * *b;
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&mut f64, f64, &mut f64, f64, f64)) {
    let (mut theta, mut b) = (0., 0.);
    let expected = walk(sgd(0.9, false), &gradients(), |_| 0.1);
    for (g, expected) in gradients().iter().zip(expected) {
        answer(&mut theta, *g, &mut b, 0.1, 0.9);
        assert!((theta - expected).abs() < 1e-12, "{theta}, not {expected}");
    }
}

#[test]
fn ex1() {
    check1(heavy_solved);
    refused(|| {
        check1(|theta, g, b, lr, mu| {
            *b = mu * *b + (1. - mu) * g; // a mean: another scale
            *theta -= lr * *b;
        })
    });
    starter(|| check1(heavy));
}

// ANCHOR: ex2_starter
/// The same for Nesterov's form, as PyTorch has it.
fn nesterov(theta: &mut f64, g: f64, b: &mut f64, lr: f64, mu: f64) {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn nesterov_solved(theta: &mut f64, g: f64, b: &mut f64, lr: f64, mu: f64) {
    *b = mu * *b + g;
    // Where the buffer will carry us next, and the gradient once more.
    *theta -= lr * (g + mu * *b);
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&mut f64, f64, &mut f64, f64, f64)) {
    let (mut theta, mut b) = (0., 0.);
    let expected = walk(sgd(0.9, true), &gradients(), |_| 0.1);
    for (g, expected) in gradients().iter().zip(expected) {
        answer(&mut theta, *g, &mut b, 0.1, 0.9);
        assert!((theta - expected).abs() < 1e-12, "{theta}, not {expected}");
    }
}

#[test]
fn ex2() {
    check2(nesterov_solved);
    refused(|| check2(heavy_solved));
    starter(|| check2(nesterov));
}

// ANCHOR: ex3_starter
/// How far the heavy ball moves in all because of a single gradient g, if no other
/// comes after it.
fn carried(g: f64, lr: f64, mu: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn carried_solved(g: f64, lr: f64, mu: f64) -> f64 {
    // 1 + μ + μ² + … = 1/(1 − μ): the effective rate.
    lr * g / (1. - mu)
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(f64, f64, f64) -> f64) {
    for mu in [0.5, 0.9, 0.99] {
        let mut gradients = vec![0.; 5000];
        gradients[0] = 2.;
        let far = -walk(sgd(mu, false), &gradients, |_| 0.1)[4999];
        let found = answer(2., 0.1, mu);
        assert!((found - far).abs() < 1e-9, "{mu}: {found}, not {far}");
    }
}

#[test]
fn ex3() {
    check3(carried_solved);
    refused(|| check3(|g, lr, mu| lr * g * (1. + mu)));
    starter(|| check3(carried));
}

// ANCHOR: ex4_starter
/// The best rate and momentum of the heavy ball on a quadratic of curvatures `low` to
/// `high`, as Polyak found them: `η = 4/(√high + √low)²`, and `μ = (1 − √(η low))²`,
/// with which both ends are critical. What is this momentum in terms of `κ = high/low`
/// alone?
fn polyak(kappa: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn polyak_solved(kappa: f64) -> f64 {
    ((kappa.sqrt() - 1.) / (kappa.sqrt() + 1.)).powi(2)
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(f64) -> f64) {
    for (low, high) in [(1f64, 1f64), (1., 25.), (0.3, 700.)] {
        let eta = 4. / (high.sqrt() + low.sqrt()).powi(2);
        let expected = (1. - (eta * low).sqrt()).powi(2);
        let found = answer(high / low);
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }
}

#[test]
fn ex4() {
    check4(polyak_solved);
    refused(|| check4(|kappa| (kappa.sqrt() - 1.) / (kappa.sqrt() + 1.)));
    starter(|| check4(polyak));
}

// ANCHOR: ex5_starter
/// Rates of PyTorch's form, given those that a recipe states for Sutskever's form,
/// `v ← μ v − η g`, `θ ← θ + v`: with them both must take the same path, step by step.
/// Can it be done by the rates alone? Then do so.
fn translated(rates: &[f64], mu: f64) -> Option<Vec<f64>> {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn translated_solved(rates: &[f64], mu: f64) -> Option<Vec<f64>> {
    // −η_t b_t = v_t for all gradients: only if the rate never changes. A buffer has
    // one rate for all gradients in it, a velocity remembers the rate of each.
    rates.windows(2).all(|w| w[0] == w[1]).then(|| rates.to_vec())
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(&[f64], f64) -> Option<Vec<f64>>) {
    let velocity = |rates: &[f64]| {
        let (mut theta, mut v, mut path) = (0., 0., vec![]);
        for (g, lr) in gradients().iter().zip(rates) {
            v = 0.9 * v - lr * g;
            theta += v;
            path.push(theta);
        }
        path
    };
    let constant = vec![0.1; 40];
    let rates = answer(&constant, 0.9).expect("a constant rate can be translated");
    let path = walk(sgd(0.9, false), &gradients(), |t| rates[t]);
    for (a, b) in path.iter().zip(velocity(&constant)) {
        assert!((a - b).abs() < 1e-12, "{a}, not {b}");
    }
    let falling: Vec<f64> = (0..40).map(|t| 0.1 / f64::from(t + 1)).collect();
    assert!(answer(&falling, 0.9).is_none(), "a falling rate cannot");
}

#[test]
fn ex5() {
    check5(translated_solved);
    refused(|| check5(|rates, _| Some(rates.to_vec())));
    starter(|| check5(translated));
}
