//! Chapter 9: dropout.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::nn::Mode;
use downhill::nn::dropout::dropout;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// The mean of `f` over many masks of `x`, drawn by the library.
fn mean(x: &[f64], p: f64, f: impl Fn(&[f64]) -> f64) -> f64 {
    let x = Tensor::from_slice(x);
    let draws = 20_000;
    let one = |step| {
        let y = dropout(&x, p, Mode::Train { seed: 1, step }, 0);
        f(&Vec::<f64>::try_from(y).expect("numbers"))
    };
    (0..draws).map(one).sum::<f64>() / draws as f64
}

// ANCHOR: ex1_starter
/// Dropout of plain numbers in training: `draws` are uniform in [0, 1), and an element
/// falls where its draw is below p.
fn drop(x: &[f64], p: f64, draws: &[f64]) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn drop_solved(x: &[f64], p: f64, draws: &[f64]) -> Vec<f64> {
    let kept = |(x, u): (&f64, &f64)| if *u < p { 0. } else { x / (1. - p) };
    x.iter().zip(draws).map(kept).collect()
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&[f64], f64, &[f64]) -> Vec<f64>) {
    assert_eq!(answer(&[3., -2.], 0.5, &[0.49, 0.5]), [0., -4.]);
    assert_eq!(answer(&[3., -2.], 0., &[0., 0.9]), [3., -2.]);
    // Evenly spread draws: the mean stays.
    let draws: Vec<f64> = (0..1000).map(|i| f64::from(i) / 1000.).collect();
    let y = answer(&[1.; 1000], 0.25, &draws);
    assert!((y.iter().sum::<f64>() / 1000. - 1.).abs() < 1e-12);
}

#[test]
fn ex1() {
    check1(drop_solved);
    refused(|| {
        check1(|x, p, draws| {
            let keep = |(x, u): (&f64, &f64)| if *u < p { 0. } else { *x };
            x.iter().zip(draws).map(keep).collect()
        })
    });
    starter(|| check1(drop));
}

// ANCHOR: ex2_starter
/// The variance that dropout gives to the dot product `w · dropout(x)`.
fn variance(w: &[f64], x: &[f64], p: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn variance_solved(w: &[f64], x: &[f64], p: f64) -> f64 {
    // Of one factor: E f² − 1 = 1/(1 − p) − 1 = p/(1 − p).
    let square = |(w, x): (&f64, &f64)| (w * x).powi(2);
    p / (1. - p) * w.iter().zip(x).map(square).sum::<f64>()
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&[f64], &[f64], f64) -> f64) {
    let (w, x) = ([0.5, -1., 2.], [1., 3., 0.4]);
    let dot = |y: &[f64]| w.iter().zip(y).map(|(w, y)| w * y).sum::<f64>();
    for p in [0.1, 0.5] {
        let middle = dot(&x);
        let found = mean(&x, p, |y| (dot(y) - middle).powi(2));
        let expected = answer(&w, &x, p);
        assert!((found / expected - 1.).abs() < 0.05, "{found}, not {expected}");
    }
}

#[test]
fn ex2() {
    check2(variance_solved);
    refused(|| {
        check2(|w, x, p| {
            let square = |(w, x): (&f64, &f64)| (w * x).powi(2);
            p * (1. - p) * w.iter().zip(x).map(square).sum::<f64>()
        })
    });
    starter(|| check2(variance));
}

// ANCHOR: ex3_starter
/// A linear model with dropout on its inputs, squared error against y: the mean loss
/// over all masks, without drawing any.
fn mean_loss(w: &[f64], x: &[f64], y: f64, p: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn mean_loss_solved(w: &[f64], x: &[f64], y: f64, p: f64) -> f64 {
    // The loss without dropout, plus the variance of the output: a weight decay in
    // which each weight counts by the size of its input.
    let dot: f64 = w.iter().zip(x).map(|(w, x)| w * x).sum();
    let decay: f64 = w.iter().zip(x).map(|(w, x)| (w * x).powi(2)).sum();
    (dot - y).powi(2) + p / (1. - p) * decay
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&[f64], &[f64], f64, f64) -> f64) {
    let (w, x, y) = ([0.5, -1., 2.], [1., 3., 0.4], 1.);
    for p in [0.2, 0.6] {
        let loss = |x: &[f64]| {
            let dot: f64 = w.iter().zip(x).map(|(w, x)| w * x).sum();
            (dot - y).powi(2)
        };
        let (found, expected) = (mean(&x, p, loss), answer(&w, &x, y, p));
        assert!((found / expected - 1.).abs() < 0.05, "{found}, not {expected}");
    }
}

#[test]
fn ex3() {
    check3(mean_loss_solved);
    refused(|| {
        check3(|w, x, y, _| {
            let dot: f64 = w.iter().zip(x).map(|(w, x)| w * x).sum();
            (dot - y).powi(2)
        })
    });
    starter(|| check3(mean_loss));
}

// ANCHOR: ex4_starter
/// Numbers the dropouts of a decoder: `which` is 0 for attention, 1 and 2 for what the
/// two parts of a layer add to the stream, and 3, once for all, for the embedding.
/// No two may have the same number.
fn place(layer: u32, which: u32) -> u32 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn place_solved(layer: u32, which: u32) -> u32 {
    4 * layer + which
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(u32, u32) -> u32) {
    let all = (0..100).flat_map(|l| [0, 1, 2].map(|w| answer(l, w)));
    let all: Vec<u32> = all.chain([answer(0, 3)]).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

#[test]
fn ex4() {
    check4(place_solved);
    refused(|| check4(|layer, which| layer + which));
    starter(|| check4(place));
}

// ANCHOR: ex5_starter
/// Bytes that libtorch's dropouts keep until backward, one byte per element, for a
/// batch of B rows of T tokens in a decoder of L layers, H heads and width D, with
/// dropout at all the places of this chapter. (Our kernel for GPUs keeps none: it draws
/// them again.)
fn mask_bytes(b: u64, t: u64, l: u64, h: u64, d: u64) -> u64 {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn mask_bytes_solved(b: u64, t: u64, l: u64, h: u64, d: u64) -> u64 {
    // Embedding, two residual ones per layer, and attention's, square in T.
    b * t * d + l * (2 * b * t * d + b * h * t * t)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(u64, u64, u64, u64, u64) -> u64) {
    assert_eq!(answer(1, 1, 1, 1, 1), 4);
    // DeepSeek-7B's shape, 4 rows of 2048 tokens: 18 GB.
    assert_eq!(answer(4, 2048, 30, 32, 4096), 18_152_947_712);
}

#[test]
fn ex5() {
    check5(mask_bytes_solved);
    refused(|| check5(|b, t, l, _, d| b * t * d + l * 2 * b * t * d));
    starter(|| check5(mask_bytes));
}

#[test]
fn the_mean_is_one() {
    let ones = Tensor::ones([4], F64);
    let x = Vec::<f64>::try_from(ones).expect("numbers");
    let found = mean(&x, 0.3, |y| y.iter().sum::<f64>() / 4.);
    assert!((found - 1.).abs() < 0.02, "{found}");
}
