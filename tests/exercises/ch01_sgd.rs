//! Chapter 1: stochastic gradient descent.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::nn::dropout::{normal, uniform};
use downhill::optim::{Hyper, Rule, Sgd};
use tch::Tensor;

// ANCHOR: ex1_starter
/// A step of gradient descent on plain numbers.
fn step(theta: &mut [f64], g: &[f64], lr: f64) {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn step_solved(theta: &mut [f64], g: &[f64], lr: f64) {
    for (theta, g) in theta.iter_mut().zip(g) {
        *theta -= lr * g;
    }
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&mut [f64], &[f64], f64)) {
    let rule = Sgd::default();
    let mut tensor = Tensor::from_slice(&[1f64, -2., 3.]);
    let mut slots = rule.init(&tensor);
    let mut theta = [1f64, -2., 3.];
    for t in 1..=10 {
        // The gradient of x² + 3 y² / 2 + z⁴ / 4.
        let g = [2. * theta[0], 3. * theta[1], theta[2].powi(3)];
        let h = Hyper { t, lr: 0.05, wd: 0. };
        rule.update(&mut tensor, &Tensor::from_slice(&g), slots.each_mut(), h);
        answer(&mut theta, &g, 0.05);
        for (i, found) in theta.iter().enumerate() {
            let expected = tensor.double_value(&[i as i64]);
            assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        }
    }
}

#[test]
fn ex1() {
    check1(step_solved);
    refused(|| {
        check1(|theta, g, lr| {
            theta.iter_mut().zip(g).for_each(|(theta, g)| *theta += lr * g)
        })
    });
    starter(|| check1(step));
}

// ANCHOR: ex2_starter
/// The constant rate with which descent on a quadratic of curvatures `low` to `high`
/// comes down fastest, and the factor by which the distance shrinks in each step, in
/// the slowest direction.
fn best_rate(low: f64, high: f64) -> (f64, f64) {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn best_rate_solved(low: f64, high: f64) -> (f64, f64) {
    // A direction of curvature h shrinks by |1 − ηh|. The two ends are the slowest, and
    // best where they are equally slow: 1 − η low = η high − 1.
    let eta = 2. / (low + high);
    (eta, (high - low) / (high + low))
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(f64, f64) -> (f64, f64)) {
    for (low, high) in [(1., 1.), (1., 10.), (0.3, 700.)] {
        let slowest = |eta: f64| (1. - eta * low).abs().max((1. - eta * high).abs());
        let (eta, factor) = answer(low, high);
        assert!((slowest(eta) - factor).abs() < 1e-12, "{factor} at {eta}");
        for other in [eta * 0.99, eta * 1.01] {
            assert!(slowest(other) > factor, "{other} is better than {eta}");
        }
    }
}

#[test]
fn ex2() {
    check2(best_rate_solved);
    refused(|| check2(|low, high| (1. / high, 1. - low / high)));
    starter(|| check2(best_rate));
}

// ANCHOR: ex3_starter
/// The variance of the mean of `b` of these numbers, drawn at random: with every draw
/// from all of them, and with none drawn twice.
fn variances(numbers: &[f64], b: usize) -> (f64, f64) {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn variances_solved(numbers: &[f64], b: usize) -> (f64, f64) {
    let (n, b) = (numbers.len() as f64, b as f64);
    let mean = numbers.iter().sum::<f64>() / n;
    let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    // Without repetition it ends at zero, when all have been drawn.
    (variance / b, variance / b * (n - b) / (n - 1.))
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&[f64], usize) -> (f64, f64)) {
    let numbers = [3., -1., 4., 1., -5., 9.];
    let (n, whole) = (6, numbers.iter().sum::<f64>() / 6.);
    // All pairs, all equally likely.
    let (mut with, mut without) = (0., 0.);
    for i in 0..n {
        for j in 0..n {
            let square = ((numbers[i] + numbers[j]) / 2. - whole).powi(2);
            with += square / 36.;
            without += if i == j { 0. } else { square / 30. };
        }
    }
    let (a, b) = answer(&numbers, 2);
    assert!((a - with).abs() < 1e-12, "{a}, not {with}");
    assert!((b - without).abs() < 1e-12, "{b}, not {without}");
    assert!(answer(&numbers, 6).1.abs() < 1e-12, "all of them are the mean");
}

#[test]
fn ex3() {
    check3(variances_solved);
    refused(|| {
        check3(|x, b| (variances_solved(x, b).0, variances_solved(x, b).0));
    });
    starter(|| check3(variances));
}

// ANCHOR: ex4_starter
/// A pass in which every row comes once, in random order: `draws` are `n` numbers in
/// [0, 1), and every order must be equally likely.
fn order(n: usize, draws: &[f64]) -> Vec<usize> {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn order_solved(n: usize, draws: &[f64]) -> Vec<usize> {
    // Fisher and Yates: each place gets one of those that are left.
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (draws[i] * (i + 1) as f64) as usize;
        order.swap(i, j);
    }
    order
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(usize, &[f64]) -> Vec<usize>) {
    let mut count = std::collections::BTreeMap::new();
    for seed in 0..60_000 {
        let draws = uniform(3, 0.5, seed, 0);
        let draws: Vec<f64> = draws.iter().map(|u| f64::from(*u) + 0.5).collect();
        *count.entry(answer(3, &draws)).or_insert(0) += 1;
    }
    assert_eq!(count.len(), 6, "orders: {count:?}");
    // Six standard deviations of a fair die's count.
    assert!(count.values().all(|n| (9450..10_550).contains(n)), "{count:?}");
}

#[test]
fn ex4() {
    check4(order_solved);
    refused(|| {
        check4(|n, draws| {
            // A well-known mistake: each place is exchanged with any place.
            let mut order: Vec<usize> = (0..n).collect();
            for (i, u) in draws.iter().enumerate() {
                order.swap(i, (u * n as f64) as usize);
            }
            order
        })
    });
    starter(|| check4(order));
}

// ANCHOR: ex5_starter
/// The noise of a gradient of one row has variance 1, the curvature is 1. With batches
/// of `b` rows, which rate leaves the same mean square distance from the bottom as
/// `lr` does with batches of one?
fn same_floor(lr: f64, b: f64) -> f64 {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn same_floor_solved(lr: f64, b: f64) -> f64 {
    // η' / (b (2 − η')) = η / (2 − η). For small rates: b times the rate.
    2. * b * lr / (2. - lr + b * lr)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(f64, f64) -> f64) {
    let floor = |lr: f64, b: f64| {
        let noise = normal(40_000, 1, 0);
        let (mut x, mut sum) = (0., 0.);
        for z in noise {
            x -= lr * (x + f64::from(z) / b.sqrt());
            sum += x * x / 40_000.;
        }
        sum
    };
    for (lr, b) in [(0.1, 1.), (0.1, 8.), (0.5, 4.)] {
        let other = answer(lr, b);
        let ratio = floor(other, b) / floor(lr, 1.);
        assert!((ratio - 1.).abs() < 0.1, "{other}: {ratio} times the distance");
    }
}

#[test]
fn ex5() {
    check5(same_floor_solved);
    refused(|| check5(|lr, b| lr * b));
    starter(|| check5(same_floor));
}
