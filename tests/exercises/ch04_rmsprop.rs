//! Chapter 4: RMSprop.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::optim::{Hyper, RmsProp, Rule};
use tch::Tensor;

// ANCHOR: ex1_starter
/// A step of RMSprop on plain numbers, alpha 0.99 and epsilon 1e-8.
fn rmsprop(theta: &mut f64, g: f64, v: &mut f64, lr: f64) {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn rmsprop_solved(theta: &mut f64, g: f64, v: &mut f64, lr: f64) {
    *v = 0.99 * *v + 0.01 * g * g;
    *theta -= lr * g / (v.sqrt() + 1e-8);
}
// ANCHOR_END: ex1_solution

type Step = fn(&mut f64, f64, &mut f64, f64);

fn check1(answer: Step) {
    let rule = RmsProp::default();
    let mut tensor = Tensor::from_slice(&[1f64]);
    let mut slots = rule.init(&tensor);
    let (mut theta, mut v) = (1., 0.);
    for i in 1..=50 {
        // Of all sizes and both signs, the smallest near epsilon.
        let g = f64::from(i).sin() * 10f64.powi(i % 9 - 8);
        let h = Hyper { t: i, lr: 0.1, wd: 0. };
        rule.update(&mut tensor, &Tensor::from_slice(&[g]), slots.each_mut(), h);
        answer(&mut theta, g, &mut v, 0.1);
        let expected = tensor.double_value(&[0]);
        assert!(
            (theta - expected).abs() < 1e-12,
            "step {i}: {theta}, not {expected}"
        );
    }
}

#[test]
fn ex1() {
    check1(rmsprop_solved);
    refused(|| {
        check1(|theta, g, v, lr| {
            *v = 0.99 * *v + 0.01 * g * g;
            *theta -= lr * g / (*v + 1e-8).sqrt(); // epsilon inside the root
        })
    });
    starter(|| check1(rmsprop));
}

// ANCHOR: ex2_starter
/// The first step of RMSprop in units of the rate, whatever the gradient.
fn first_step(alpha: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn first_step_solved(alpha: f64) -> f64 {
    // v = (1 - alpha) g², and nothing corrects it.
    1. / (1. - alpha).sqrt()
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(f64) -> f64) {
    for alpha in [0., 0.5, 0.9, 0.99] {
        let rule = RmsProp { alpha, eps: 0., ..RmsProp::default() };
        let mut theta = Tensor::from_slice(&[0f64]);
        let mut slots = rule.init(&theta);
        let h = Hyper { t: 1, lr: 1., wd: 0. };
        rule.update(&mut theta, &Tensor::from_slice(&[-7f64]), slots.each_mut(), h);
        let (found, expected) = (answer(alpha), theta.double_value(&[0]));
        assert!((found - expected).abs() < 1e-9, "{alpha}: {found}, not {expected}");
    }
}

#[test]
fn ex2() {
    check2(first_step_solved);
    refused(|| check2(|_| 1.));
    starter(|| check2(first_step));
}

// ANCHOR: ex3_starter
/// After how many steps without a gradient v is down to a hundredth of what it was,
/// and the next step with one ten times as long as it would have been.
fn forgets_after(alpha: f64) -> i64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn forgets_after_solved(alpha: f64) -> i64 {
    (0.01f64.ln() / alpha.ln()).ceil() as i64
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(f64) -> i64) {
    for alpha in [0.5, 0.9, 0.99, 0.999] {
        let n = answer(alpha);
        let left = |n: i64| alpha.powi(n as i32);
        assert!(left(n) <= 0.01 && left(n - 1) > 0.01, "{alpha}: {n}");
    }
}

#[test]
fn ex3() {
    check3(forgets_after_solved);
    refused(|| check3(|alpha| (100. * (1. - alpha)) as i64));
    starter(|| check3(forgets_after));
}

// ANCHOR: ex4_starter
/// `v - a²` of the centered form after these gradients: the mean of the squares less
/// the square of the mean, both with weights that fade by alpha.
fn spread(alpha: f64, gradients: &[f64]) -> f64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn spread_solved(alpha: f64, gradients: &[f64]) -> f64 {
    let (mut v, mut a) = (0., 0.);
    for g in gradients {
        v = alpha * v + (1. - alpha) * g * g;
        a = alpha * a + (1. - alpha) * g;
    }
    v - a * a
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(f64, &[f64]) -> f64) {
    // By Cauchy and Schwarz it is never negative: the weights add up to less than one.
    let wild: Vec<f64> = (1..300).map(|i| f64::from(i * i % 17) - 8.).collect();
    for alpha in [0.5, 0.9, 0.99] {
        assert!(answer(alpha, &wild) >= 0.);
        // A gradient that never changes: only what is missing of the weights is left.
        let missing = f64::powi(alpha, 20);
        let found = answer(alpha, &[3.; 20]);
        let expected = 9. * missing * (1. - missing);
        assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    }
}

#[test]
fn ex4() {
    check4(spread_solved);
    refused(|| {
        check4(|_, g| {
            let n = g.len() as f64;
            let (squares, sum): (f64, f64) =
                (g.iter().map(|g| g * g).sum(), g.iter().sum());
            squares / n - (sum / n).powi(2)
        })
    });
    starter(|| check4(spread));
}

// ANCHOR: ex5_starter
/// RMSprop walks Adagrad's path if alpha and the rate depend on the step t, counted
/// from 1: `(alpha, factor of the rate)`.
fn as_adagrad(t: i32) -> (f64, f64) {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn as_adagrad_solved(t: i32) -> (f64, f64) {
    // v is then the plain mean of all squares, Adagrad's sum divided by t.
    (1. - 1. / f64::from(t), 1. / f64::from(t).sqrt())
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(i32) -> (f64, f64)) {
    let (mut x, mut v, mut y, mut s) = (0., 0., 0., 0.);
    for t in 1..200 {
        let g = f64::from(t).cos() + 0.1;
        let (alpha, factor) = answer(t);
        v = alpha * v + (1. - alpha) * g * g;
        x -= 0.1 * factor * g / f64::sqrt(v);
        s += g * g;
        y -= 0.1 * g / f64::sqrt(s);
        assert!((x - y).abs() < 1e-12, "step {t}: {x}, Adagrad is at {y}");
    }
}

#[test]
fn ex5() {
    check5(as_adagrad_solved);
    refused(|| check5(|t| (1. - 1. / f64::from(t), 1.)));
    starter(|| check5(as_adagrad));
}
