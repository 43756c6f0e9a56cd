//! Chapter 10: weight decay.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::optim::{Adam, AdamW, Hyper, Rule, Sgd};
use tch::Tensor;

/// A weight of 1 after `n` steps along `g(x)`.
fn after<const N: usize>(
    rule: impl Rule<N>,
    lr: f64,
    wd: f64,
    n: i32,
    g: impl Fn(f64) -> f64,
) -> f64 {
    let mut x = Tensor::from_slice(&[1f64]);
    let mut slots = rule.init(&x);
    for t in 1..=n {
        let g = Tensor::from_slice(&[g(x.double_value(&[0]))]);
        rule.update(&mut x, &g, slots.each_mut(), Hyper { t, lr, wd });
    }
    x.double_value(&[0])
}

// ANCHOR: ex1_starter
/// After how many steps has AdamW, at a constant rate, halved a weight that gets no
/// gradient?
fn half_life(lr: f64, wd: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn half_life_solved(lr: f64, wd: f64) -> f64 {
    // (1 − ηλ)ⁿ = ½; nearly 0.69 / (ηλ).
    0.5f64.ln() / (1. - lr * wd).ln()
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(f64, f64) -> f64) {
    for (lr, wd) in [(0.01, 0.1), (0.001, 3.), (0.1, 2.)] {
        let n = answer(lr, wd).round() as i32;
        let left = after(AdamW::default(), lr, wd, n, |_| 0.);
        assert!((left - 0.5).abs() < 0.06, "after {n} steps {left} are left");
    }
}

#[test]
fn ex1() {
    check1(half_life_solved);
    refused(|| check1(|_, wd| 0.69 / wd)); // the rate takes part in it
    starter(|| check1(half_life));
}

// ANCHOR: ex2_starter
/// A paper decays by `theta *= 1 - decay` in each step of plain SGD, whatever the rate.
/// Which `weight_decay` of PyTorch's SGD does the same?
fn as_l2(decay: f64, lr: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn as_l2_solved(decay: f64, lr: f64) -> f64 {
    // θ − η (g + λθ) = (1 − ηλ) θ − η g.
    decay / lr
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(f64, f64) -> f64) {
    for (decay, lr) in [(0.01, 0.1), (0.003, 0.5)] {
        let found = after(Sgd::default(), lr, answer(decay, lr), 40, |x| x - 3.);
        let mut x = 1f64;
        for _ in 0..40 {
            x = (1. - decay) * x - lr * (x - 3.);
        }
        assert!((found - x).abs() < 1e-12, "{found}, not {x}");
    }
}

#[test]
fn ex2() {
    check2(as_l2_solved);
    refused(|| check2(|decay, _| decay));
    starter(|| check2(as_l2));
}

// ANCHOR: ex3_starter
/// How far Adam with L2 (no decoupling) moves a weight of 1 that gets no gradient, in
/// n steps that do not yet reach zero.
fn moved(lr: f64, wd: f64, n: i32) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn moved_solved(lr: f64, wd: f64, n: i32) -> f64 {
    // The decay is the whole gradient, and Adam divides it by its own size. λ cancels.
    lr * f64::from(n)
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(f64, f64, i32) -> f64) {
    for (lr, wd, n) in [(1e-3, 0.1, 20), (1e-3, 1e-4, 20), (1e-2, 10., 10)] {
        let found = 1. - after(Adam::default(), lr, wd, n, |_| 0.);
        let answer = answer(lr, wd, n);
        assert!((answer / found - 1.).abs() < 0.05, "{answer}, not {found}");
    }
}

#[test]
fn ex3() {
    check3(moved_solved);
    refused(|| check3(|lr, wd, n| 1. - (1. - lr * wd).powi(n)));
    starter(|| check3(moved));
}

// ANCHOR: ex4_starter
/// Whether a parameter of a Llama decays in the usual recipe: matrices, but no norms,
/// no biases, no embeddings. (The head is a matrix.)
fn decays(name: &str) -> bool {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn decays_solved(name: &str) -> bool {
    let spared = ["norm", "embed", "bias"];
    !spared.iter().any(|part| name.contains(part))
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(&str) -> bool) {
    let all = [
        ("model.embed_tokens.weight", false),
        ("model.layers.0.input_layernorm.weight", false),
        ("model.layers.0.self_attn.q_proj.weight", true),
        ("model.layers.0.self_attn.q_proj.bias", false),
        ("model.layers.0.post_attention_layernorm.weight", false),
        ("model.layers.0.mlp.down_proj.weight", true),
        ("model.norm.weight", false),
        ("lm_head.weight", true),
    ];
    for (name, expected) in all {
        assert_eq!(answer(name), expected, "{name}");
    }
}

#[test]
fn ex4() {
    check4(decays_solved);
    refused(|| check4(|name| name.ends_with(".weight")));
    starter(|| check4(decays));
}

// ANCHOR: ex5_starter
/// Where descent on ½ (x − 1)² ends if decay is in the gradient.
fn rest(wd: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn rest_solved(wd: f64) -> f64 {
    // x − 1 + λx = 0. This is the minimum of ½ (x − 1)² + ½ λ x², for any method that
    // gets the sum as its gradient.
    1. / (1. + wd)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(f64) -> f64) {
    for wd in [0., 0.1, 2.] {
        let sgd = after(Sgd::default(), 0.1, wd, 800, |x| x - 1.);
        let adam = after(Adam::default(), 0.001, wd, 6000, |x| x - 1.);
        let found = answer(wd);
        assert!((found - sgd).abs() < 1e-9, "{found}, not {sgd}");
        assert!((found - adam).abs() < 1e-3, "{found}, not {adam}");
    }
}

#[test]
fn ex5() {
    check5(rest_solved);
    refused(|| check5(|wd| 1. - wd));
    starter(|| check5(rest));
}
