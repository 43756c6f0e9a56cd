//! Chapter 13: a checkpoint.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::checkpoint::{read_safetensors, save_safetensors};
use downhill::nn::{RmsNorm, dropout::normal};
use tch::Tensor;

// ANCHOR: ex1_starter
/// The numbers of an f32 tensor of a safetensors file, whose `data_offsets` in the
/// header are `[begin, end]`. The first 8 bytes are the header's length, little end
/// first; offsets count from the end of the header.
fn numbers(file: &[u8], begin: usize, end: usize) -> Vec<f32> {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn numbers_solved(file: &[u8], begin: usize, end: usize) -> Vec<f32> {
    let (length, rest) = file.split_first_chunk::<8>().expect("8 bytes");
    let data = &rest[u64::from_le_bytes(*length) as usize..];
    let (words, _) = data[begin..end].as_chunks::<4>();
    words.iter().map(|w| f32::from_le_bytes(*w)).collect()
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&[u8], usize, usize) -> Vec<f32>) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("t.safetensors");
    let [a, b] = [[1f32, -2.5, 3e-8], [4., 0.1, -0.]];
    let named =
        [("a", a), ("b", b)].map(|(n, t)| (n.into(), Tensor::from_slice(&t)));
    save_safetensors(&path, &named, &[]).expect("written");
    let file = std::fs::read(&path).expect("read");
    assert_eq!(read_safetensors(&path).expect("read").len(), 2);
    assert_eq!(answer(&file, 0, 12), a);
    assert_eq!(answer(&file, 12, 24), b);
    assert_eq!(answer(&file, 4, 8), [a[1]]);
}

#[test]
fn ex1() {
    check1(numbers_solved);
    refused(|| {
        check1(|file, begin, end| {
            let (words, _) = file[8 + begin..8 + end].as_chunks::<4>();
            words.iter().map(|w| f32::from_le_bytes(*w)).collect()
        })
    });
    starter(|| check1(numbers));
}

// ANCHOR: ex2_starter
/// `x / √(mean(x²) + ε) · w`.
fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn rms_norm_solved(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let r = 1. / (mean + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| x * r * w).collect()
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&[f64], &[f64], f64) -> Vec<f64>) {
    let draw = |seed| normal(48, seed, 0).into_iter().map(f64::from).collect();
    let (x, w): (Vec<f64>, Vec<f64>) = (draw(1), draw(2));
    for eps in [1e-6, 0.5] {
        let norm = RmsNorm { weight: Tensor::from_slice(&w), eps };
        let y = norm.forward(&Tensor::from_slice(&x).view([1, -1])).expect("normed");
        let y = Vec::<f64>::try_from(y.view([-1])).expect("numbers");
        let found = answer(&x, &w, eps);
        let off = found.iter().zip(&y).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0., f64::max) < 1e-9);
    }
    assert_eq!(answer(&[0.; 4], &[1.; 4], 1e-6), [0.; 4], "no numbers");
}

#[test]
fn ex2() {
    check2(rms_norm_solved);
    refused(|| {
        check2(|x, w, eps| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter().zip(w).map(|(x, w)| x / (mean.sqrt() + eps) * w).collect()
        })
    });
    starter(|| check2(rms_norm));
}

// ANCHOR: ex3_starter
/// Turns each pair of neighbours `(x[2i], x[2i + 1])` by `place · θ^(−2i/K)`, where K
/// is the length of `x`: the layout of the paper, and of DeepSeek-V2's files.
fn turn(x: &[f64], place: f64, theta: f64) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn turn_solved(x: &[f64], place: f64, theta: f64) -> Vec<f64> {
    let (pairs, _) = x.as_chunks::<2>();
    let turned = pairs.iter().enumerate().flat_map(|(i, [a, b])| {
        let angle = place * theta.powf(-2. * i as f64 / x.len() as f64);
        let (sin, cos) = angle.sin_cos();
        [a * cos - b * sin, b * cos + a * sin]
    });
    turned.collect()
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&[f64], f64, f64) -> Vec<f64>) {
    let half = std::f64::consts::FRAC_PI_2;
    let near = |a: &[f64], b: &[f64]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9), "{a:?} {b:?}");
        assert_eq!(a.len(), b.len());
    };
    near(&answer(&[1., 2.], half, 10_000.), &[-2., 1.]);
    near(&answer(&[1., 2., 3., 4.], 100. * half, 10_000.), &[1., 2., -4., 3.]);
    let x: Vec<f64> = normal(16, 4, 0).into_iter().map(f64::from).collect();
    let y: Vec<f64> = normal(16, 5, 0).into_iter().map(f64::from).collect();
    let product = |m, n| -> f64 {
        answer(&x, m, 1e4).iter().zip(answer(&y, n, 1e4)).map(|(a, b)| a * b).sum()
    };
    assert!((product(7., 3.) - product(57., 53.)).abs() < 1e-9);
}

#[test]
fn ex3() {
    check3(turn_solved);
    // By halves, as transformers' Llama.
    refused(|| {
        check3(|x, place, theta| {
            let half = x.len() / 2;
            let angle = |i: usize| {
                place * theta.powf(-2. * (i % half) as f64 / x.len() as f64)
            };
            let across =
                |i: usize| if i < half { -x[i + half] } else { x[i - half] };
            let all = 0..x.len();
            all.map(|i| x[i] * angle(i).cos() + across(i) * angle(i).sin()).collect()
        })
    });
    starter(|| check3(turn));
}

// ANCHOR: ex4_starter
/// The `k` experts of a token and their weights, the likeliest first, from the router's
/// products: by softmax over all of them, times `scale`. Of two that are alike the one
/// with the lower number comes first.
fn route(products: &[f64], k: usize, scale: f64) -> Vec<(usize, f64)> {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn route_solved(products: &[f64], k: usize, scale: f64) -> Vec<(usize, f64)> {
    let top = products.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = products.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    let mut all: Vec<_> = e.iter().map(|x| scale * x / sum).enumerate().collect();
    all.sort_by(|(_, a), (_, b)| b.total_cmp(a)); // stable
    all.truncate(k);
    all
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(&[f64], usize, f64) -> Vec<(usize, f64)>) {
    let ln = |p: [f64; 4]| p.map(f64::ln);
    let near = |found: Vec<(usize, f64)>, expected: &[(usize, f64)]| {
        assert_eq!(found.len(), expected.len());
        for ((i, w), (j, v)) in found.iter().zip(expected) {
            assert!(i == j && (w - v).abs() < 1e-9, "{found:?}");
        }
    };
    near(answer(&ln([0.1, 0.4, 0.2, 0.3]), 2, 1.), &[(1, 0.4), (3, 0.3)]);
    near(answer(&ln([0.1, 0.4, 0.2, 0.3]), 3, 16.), &[(1, 6.4), (3, 4.8), (2, 3.2)]);
    near(answer(&[900., 900.], 1, 1.), &[(0, 0.5)]);
}

#[test]
fn ex4() {
    check4(route_solved);
    // Softmax over the chosen alone, as in Mixtral.
    refused(|| {
        check4(|products, k, scale| {
            let mut all = route_solved(products, k, scale);
            let sum: f64 = all.iter().map(|(_, w)| w).sum();
            all.iter_mut().for_each(|(_, w)| *w *= scale / sum);
            all
        })
    });
    starter(|| check4(route));
}

// ANCHOR: ex5_starter
/// How many of the likeliest tokens it takes to reach `top_p`, at least one. The
/// probabilities are sorted, the highest first.
fn nucleus(p: &[f64], top_p: f64) -> usize {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn nucleus_solved(p: &[f64], top_p: f64) -> usize {
    let mut mass = 0.;
    let before = p.iter().take_while(|p| {
        let open = mass < top_p;
        mass += **p;
        open
    });
    before.count().max(1)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(&[f64], f64) -> usize) {
    let p = [0.5, 0.25, 0.125, 0.125];
    assert_eq!(
        [0.1, 0.5, 0.6, 0.75, 0.8, 1.].map(|t| answer(&p, t)),
        [1, 1, 2, 2, 3, 4]
    );
}

#[test]
fn ex5() {
    check5(nucleus_solved);
    // Those that together stay below it: leaves out the token that reaches it.
    refused(|| {
        check5(|p, top_p| {
            let mut mass = 0.;
            let within = p.iter().take_while(|p| {
                mass += **p;
                mass <= top_p
            });
            within.count().max(1)
        })
    });
    starter(|| check5(nucleus));
}

// ANCHOR: ex6_starter
/// Bytes that a token leaves in the cache of latent attention, in 16 bits; and the
/// least number of key-value heads of width `head` for which grouped attention over as
/// many layers would leave as much or more.
fn latent_cache(layers: u64, latent: u64, turned: u64, head: u64) -> (u64, u64) {
    todo!()
}
// ANCHOR_END: ex6_starter

// ANCHOR: ex6_solution
fn latent_cache_solved(
    layers: u64,
    latent: u64,
    turned: u64,
    head: u64,
) -> (u64, u64) {
    let each = latent + turned;
    (2 * layers * each, each.div_ceil(2 * head)) // a key and a value per head
}
// ANCHOR_END: ex6_solution

fn check6(answer: fn(u64, u64, u64, u64) -> (u64, u64)) {
    assert_eq!(answer(27, 512, 64, 128), (31_104, 3));
    assert_eq!(answer(61, 512, 64, 128), (70_272, 3));
    assert_eq!(answer(4, 64, 16, 20), (640, 2));
}

#[test]
fn ex6() {
    check6(latent_cache_solved);
    refused(|| {
        check6(|layers, latent, turned, head| {
            let each = latent + turned;
            (4 * layers * each, each.div_ceil(head))
        })
    });
    starter(|| check6(latent_cache));
}
