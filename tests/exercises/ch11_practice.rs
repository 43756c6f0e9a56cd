//! Chapter 11: practice.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::nn::dropout::uniform;

// ANCHOR: ex1_starter
/// Scales numbers to mean 0 and standard deviation 1 *of the first `learn` of them*,
/// and the others by the same.
fn standard(x: &[f64], learn: usize) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn standard_solved(x: &[f64], learn: usize) -> Vec<f64> {
    let n = learn as f64;
    let mean = x[..learn].iter().sum::<f64>() / n;
    let variance = x[..learn].iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    x.iter().map(|x| (x - mean) / variance.sqrt()).collect()
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&[f64], usize) -> Vec<f64>) {
    let found = answer(&[1., 3., 5., 1000.], 3);
    let s = (8f64 / 3.).sqrt();
    for (found, x) in found.iter().zip([1., 3., 5., 1000.]) {
        assert!((found - (x - 3.) / s).abs() < 1e-9, "{found}");
    }
}

#[test]
fn ex1() {
    check1(standard_solved);
    refused(|| check1(|x, _| standard_solved(x, x.len()))); // has looked ahead
    starter(|| check1(standard));
}

// ANCHOR: ex2_starter
/// A learning rate drawn so that each power of ten between `low` and `high` is equally
/// likely; `u` is uniform in [0, 1).
fn draw_rate(low: f64, high: f64, u: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn draw_rate_solved(low: f64, high: f64, u: f64) -> f64 {
    low * (high / low).powf(u)
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(f64, f64, f64) -> f64) {
    let draws = uniform(3000, 0.5, 1, 0);
    let mut count = [0; 3];
    for u in draws {
        let rate = answer(1e-4, 1e-1, f64::from(u) + 0.5);
        assert!((1e-4..=1e-1 + 1e-12).contains(&rate), "{rate}");
        count[((rate.log10() + 4.) as usize).min(2)] += 1;
    }
    assert!(count.iter().all(|n| (850..1150).contains(n)), "by decade: {count:?}");
}

#[test]
fn ex2() {
    check2(draw_rate_solved);
    refused(|| check2(|low, high, u| low + (high - low) * u));
    starter(|| check2(draw_rate));
}

// ANCHOR: ex3_starter
/// The chance that the best of n settings drawn at random is among the best tenth of
/// all settings.
fn chance(n: u32) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn chance_solved(n: u32) -> f64 {
    // One less the chance that all n miss it.
    1. - 0.9f64.powi(n as i32)
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(u32) -> f64) {
    for n in [1, 9, 44] {
        let draws = uniform(n as usize * 4000, 0.5, 2, 0);
        let hit = |c: &&[f32]| c.iter().any(|u| *u < -0.4);
        let share = draws.chunks(n as usize).filter(hit).count() as f64 / 4000.;
        let found = answer(n);
        assert!((found - share).abs() < 0.03, "{n}: {found}, not {share}");
    }
}

#[test]
fn ex3() {
    check3(chance_solved);
    refused(|| check3(|n| (0.1 * f64::from(n)).min(1.)));
    starter(|| check3(chance));
}

// ANCHOR: ex4_starter
/// The mean loss over a batch, from the means over its parts and their sizes: what
/// gradient accumulation must weigh by.
fn mean_of_parts(parts: &[(f64, usize)]) -> f64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn mean_of_parts_solved(parts: &[(f64, usize)]) -> f64 {
    let rows: usize = parts.iter().map(|(_, n)| n).sum();
    parts.iter().map(|(mean, n)| mean * *n as f64).sum::<f64>() / rows as f64
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(&[(f64, usize)]) -> f64) {
    let losses = [4., 1., 2., 5., 8.];
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let parts = [(mean(&losses[..4]), 4), (mean(&losses[4..]), 1)];
    assert!((answer(&parts) - 4.).abs() < 1e-12, "{}", answer(&parts));
    assert!((answer(&[(1.5, 2), (4., 2)]) - 2.75).abs() < 1e-12);
}

#[test]
fn ex4() {
    check4(mean_of_parts_solved);
    refused(|| {
        check4(|parts| {
            let sum: f64 = parts.iter().map(|(mean, _)| mean).sum();
            sum / parts.len() as f64 // each part alike, the short one too
        })
    });
    starter(|| check4(mean_of_parts));
}

// ANCHOR: ex5_starter
/// At which epoch (counted from 0) does training stop, and which epoch's weights are
/// kept, if it stops after `patience` epochs without a new lowest validation loss?
fn early_stop(losses: &[f64], patience: usize) -> (usize, usize) {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn early_stop_solved(losses: &[f64], patience: usize) -> (usize, usize) {
    let (mut best, mut at) = (f64::INFINITY, 0);
    for (epoch, loss) in losses.iter().enumerate() {
        if *loss < best {
            (best, at) = (*loss, epoch);
        }
        if epoch >= at + patience {
            return (epoch, at);
        }
    }
    (losses.len() - 1, at)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(&[f64], usize) -> (usize, usize)) {
    assert_eq!(answer(&[3., 2., 1., 2., 1.5, 0.5], 2), (4, 2));
    assert_eq!(answer(&[3., 2., 1., 2., 1.5, 0.5], 3), (5, 5));
    assert_eq!(answer(&[1., 1., 1., 1.], 2), (2, 0));
}

#[test]
fn ex5() {
    check5(early_stop_solved);
    refused(|| {
        check5(|losses, patience| {
            // Stops at the first rise, however small.
            let rise = losses.windows(2).position(|w| w[1] > w[0]).unwrap_or(0);
            (rise + patience, rise)
        })
    });
    starter(|| check5(early_stop));
}
