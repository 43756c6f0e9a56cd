//! Chapter 5: Adam.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::optim::{Adam, Hyper, Rule};
use tch::Tensor;

// ANCHOR: ex1_starter
/// Bytes that training with Adam holds, activations aside: weights and gradients at
/// `weight` bytes a number, both moments at `moment` bytes.
fn training_bytes(parameters: u64, weight: u64, moment: u64) -> u64 {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn training_bytes_solved(parameters: u64, weight: u64, moment: u64) -> u64 {
    parameters * (weight + weight + moment + moment)
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(u64, u64, u64) -> u64) {
    assert_eq!(answer(1_000_000, 4, 4), 16_000_000, "all in f32");
    assert_eq!(answer(1_000_000, 2, 4), 12_000_000, "bf16 weights, f32 moments");
}

#[test]
fn ex1() {
    check1(training_bytes_solved);
    refused(|| check1(|n, weight, moment| n * (weight + 2 * moment)));
    starter(|| check1(training_bytes));
}

// ANCHOR: ex2_starter
/// Step `t` of Adam with the usual settings, on plain numbers instead of tensors.
fn adam(theta: &mut f64, g: f64, m: &mut f64, v: &mut f64, t: i32, lr: f64) {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn adam_solved(theta: &mut f64, g: f64, m: &mut f64, v: &mut f64, t: i32, lr: f64) {
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.999 * *v + 0.001 * g * g;
    let m_hat = *m / (1. - 0.9f64.powi(t));
    let v_hat = *v / (1. - 0.999f64.powi(t));
    *theta -= lr * m_hat / (v_hat.sqrt() + 1e-8);
}
// ANCHOR_END: ex2_solution

type Step = fn(&mut f64, f64, &mut f64, &mut f64, i32, f64);

/// The path of a rule, or of a step on plain numbers, along these gradients.
fn walk<const N: usize>(rule: &impl Rule<N>, gradients: &[f64]) -> Vec<f64> {
    let mut theta = Tensor::from_slice(&[1f64]);
    let mut slots = rule.init(&theta);
    let step = |(i, g): (usize, &f64)| {
        let h = Hyper { t: i as i32 + 1, lr: 0.1, wd: 0. };
        rule.update(&mut theta, &Tensor::from_slice(&[*g]), slots.each_mut(), h);
        theta.double_value(&[0])
    };
    gradients.iter().enumerate().map(step).collect()
}

fn walk_plain(step: Step, gradients: &[f64]) -> Vec<f64> {
    let (mut theta, mut m, mut v) = (1., 0., 0.);
    let step = |(i, g): (usize, &f64)| {
        step(&mut theta, *g, &mut m, &mut v, i as i32 + 1, 0.1);
        theta
    };
    gradients.iter().enumerate().map(step).collect()
}

/// Gradients of all sizes and both signs, the smallest near ε.
fn gradients() -> Vec<f64> {
    let g = |i: i32| f64::from(i).sin() * 10f64.powi(i % 9 - 8);
    (1..=50).map(g).collect()
}

fn check2(answer: Step) {
    let expected = walk(&Adam::default(), &gradients());
    let found = walk_plain(answer, &gradients());
    for (t, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-12, "step {}: {a}, Adam goes to {b}", t + 1);
    }
}

#[test]
fn ex2() {
    check2(adam_solved);
    refused(|| check2(|theta, g, m, v, _, lr| adam_solved(theta, g, m, v, 1, lr)));
    starter(|| check2(adam));
}

// ANCHOR: ex3_starter
/// The settings with which Adam walks the same path on `c` times the loss as `adam`
/// does on the loss itself.
fn rescaled(adam: Adam, c: f64) -> Adam {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn rescaled_solved(adam: Adam, c: f64) -> Adam {
    Adam { eps: c * adam.eps, ..adam }
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(Adam, f64) -> Adam) {
    let adam = Adam { eps: 0.01, ..Adam::default() };
    let c = 2f64.powi(-7); // a power of two rounds nothing
    let smaller: Vec<f64> = gradients().iter().map(|g| c * g).collect();
    let (a, b) = (walk(&answer(adam, c), &smaller), walk(&adam, &gradients()));
    assert_eq!(a, b, "the paths part");
}

#[test]
fn ex3() {
    check3(rescaled_solved);
    refused(|| check3(|adam, _| adam));
    starter(|| check3(rescaled));
}

// ANCHOR: ex4_starter
/// The first step at which `1 - beta^t` is within `tolerance` of 1, so that the bias
/// correction no longer matters.
fn warm(beta: f64, tolerance: f64) -> i32 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn warm_solved(beta: f64, tolerance: f64) -> i32 {
    (tolerance.ln() / beta.ln()).ceil() as i32
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(f64, f64) -> i32) {
    for (beta, tolerance) in [(0.9, 0.01), (0.999, 0.01), (0.99, 0.3), (0.5, 0.2)] {
        let by_trial = (1..).find(|t| f64::powi(beta, *t) <= tolerance);
        assert_eq!(Some(answer(beta, tolerance)), by_trial, "{beta}, {tolerance}");
    }
}

#[test]
fn ex4() {
    check4(warm_solved);
    refused(|| check4(|beta, _| (1. / (1. - beta)) as i32));
    starter(|| check4(warm));
}

// ANCHOR: ex5_starter
/// `n` gradients after which Adam's last step is as long as it can be: more than
/// seven times the learning rate, with the usual settings and `n` = 10,000.
fn longest(n: i32) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn longest_solved(n: i32) -> Vec<f64> {
    // Maximize the sum of b1^k g over the root of the sum of b2^k g^2, where k counts
    // back from the last step: by Cauchy and Schwarz, g = (b1 / b2)^k. Gradients that
    // grow by a tenth at each step, that is: m follows them, v lags behind.
    (0..n).rev().map(|k| (0.9f64 / 0.999).powi(k)).collect()
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(i32) -> Vec<f64>) {
    let path = walk_plain(adam_solved, &answer(10_000));
    assert_eq!(path.len(), 10_000);
    let step = (path[9_998] - path[9_999]).abs() / 0.1;
    assert!(step > 7., "the last step is {step} times the learning rate");
}

#[test]
fn ex5() {
    check5(longest_solved);
    // Silence, then one gradient: the bound that the paper gives, 3.16.
    refused(|| check5(|n| (1..=n).map(|t| f64::from(t / n)).collect()));
    starter(|| check5(longest));
}

// ANCHOR: ex6_starter
/// AdaMax, Algorithm 2 of the same paper: `u` is a maximum that forgets,
/// `u = max(beta2 u, |g|)`, and the step is `lr / (1 - beta1^t) * m / u`.
struct AdaMax;

impl Rule<2> for AdaMax {
    const SLOTS: [&'static str; 2] = ["m", "u"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [m, u]: [&mut Tensor; 2],
        h: Hyper,
    ) {
        todo!()
    }
}
// ANCHOR_END: ex6_starter

// ANCHOR: ex6_solution
struct AdaMaxSolved;

impl Rule<2> for AdaMaxSolved {
    const SLOTS: [&'static str; 2] = ["m", "u"];

    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        [m, u]: [&mut Tensor; 2],
        h: Hyper,
    ) {
        *m = 0.9 * &*m + 0.1 * g;
        let forgotten: Tensor = 0.999 * &*u;
        *u = forgotten.maximum(&g.abs());
        *theta -= h.lr / (1. - 0.9f64.powi(h.t)) * &*m / &*u;
    }
}
// ANCHOR_END: ex6_solution

/// Thetas after each step of `torch.optim.Adamax(lr=0.1, eps=0)` from 1.
fn check6(answer: &impl Rule<2>) {
    let expected = [
        0.9,
        0.852584163110479,
        0.850365706275043,
        0.820502373910984,
        0.829619512252011,
    ];
    let found = walk(answer, &[2., 0., -1.5, 4., -5.9]);
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-12, "{a}, AdaMax goes to {b}");
    }
}

#[test]
fn ex6() {
    check6(&AdaMaxSolved);
    refused(|| check6(&Adam::default()));
    starter(|| check6(&AdaMax));
}
