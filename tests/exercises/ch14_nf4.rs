//! Chapter 14: NF4.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::autograd;
use downhill::nn::dropout::normal;
use downhill::quant::Nf4Tensor;
use downhill::quant::nf4::{CODE, THRESHOLDS};
use downhill_lab::codes::relative_error;
use tch::{Kind, Tensor};

// ANCHOR: ex1_starter
/// The code of a weight `w` in a block whose largest magnitude is `absmax`: how many of
/// `THRESHOLDS` lie below it. A weight on a border takes the lower code, and a block of
/// zeros code 0.
fn code_of(w: f32, absmax: f32) -> u8 {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn code_of_solved(w: f32, absmax: f32) -> u8 {
    let x = w * (1. / absmax); // 0 * infinity is NaN, and NaN > t is false
    THRESHOLDS.iter().filter(|t| x > **t).count() as u8
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(f32, f32) -> u8) {
    assert_eq!(answer(0.02, 0.02), 15);
    assert_eq!(answer(-3., 3.), 0);
    assert_eq!(answer(0., 1.), 7);
    assert_eq!(answer(0., 0.), 0, "a block of zeros");
    for (i, border) in THRESHOLDS.into_iter().enumerate() {
        assert_eq!(answer(border, 1.), i as u8, "on a border");
        assert_eq!(answer(border.next_up(), 1.), i as u8 + 1, "above it");
    }
    // The product with the reciprocal and the quotient differ in the last bit here.
    let divided =
        |w: f32, max: f32| THRESHOLDS.iter().filter(|t| w / max > **t).count() as u8;
    let differ =
        |(w, max): &(f32, f32)| code_of_solved(*w, *max) != divided(*w, *max);
    let many = (1..200_000).map(|i| (i as f32 / 3e5, 1. + (i % 97) as f32 / 98.));
    let near = many.flat_map(|(_, max)| THRESHOLDS.map(|t| (t * max, max)));
    let (w, max) = near.into_iter().find(differ).expect("some pair differs");
    assert_eq!(answer(w, max), code_of_solved(w, max), "not by the reciprocal");
}

#[test]
fn ex1() {
    check1(code_of_solved);
    refused(|| {
        check1(|w, max| THRESHOLDS.iter().filter(|t| w / max > **t).count() as u8)
    });
    refused(|| {
        check1(|w, m| {
            THRESHOLDS.iter().filter(|t| w * (1. / m) >= **t).count() as u8
        })
    });
    starter(|| check1(code_of));
}

// ANCHOR: ex2_starter
/// Codes two to a byte, the first in the high half; an odd one out shares its byte with
/// a zero.
fn pack(codes: &[u8]) -> Vec<u8> {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn pack_solved(codes: &[u8]) -> Vec<u8> {
    let byte = |two: &[u8]| two[0] << 4 | two.get(1).unwrap_or(&0);
    codes.chunks(2).map(byte).collect()
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&[u8]) -> Vec<u8>) {
    assert!(answer(&[]).is_empty());
    assert_eq!(answer(&[1, 2, 15, 0]), vec![0x12u8, 0xF0]);
    assert_eq!(answer(&[7, 8, 9]), vec![0x78u8, 0x90]);
    // As the library packs.
    let w = Tensor::from_slice(&normal(64, 1, 0)).view([1, 64]);
    let q = Nf4Tensor::quantize(&w, 64, false).unwrap();
    let max = q.absmax().double_value(&[0]) as f32;
    let weights = Vec::<f32>::try_from(w.view([-1])).unwrap();
    let codes: Vec<u8> = weights.iter().map(|w| code_of_solved(*w, max)).collect();
    let packed = Vec::<u8>::try_from(q.packed().view([-1])).unwrap();
    assert_eq!(answer(&codes), packed);
}

#[test]
fn ex2() {
    check2(pack_solved);
    refused(|| {
        check2(|codes| {
            codes.chunks(2).map(|c| c[0] | c.get(1).unwrap_or(&0) << 4).collect()
        })
    });
    starter(|| check2(pack));
}

// ANCHOR: ex3_starter
/// Bits per weight in blocks of `size`, the scales in f32; or, with `nested`, in 8 bits,
/// one f32 for so many of them.
fn bits_per_weight(size: f64, nested: Option<f64>) -> f64 {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn bits_per_weight_solved(size: f64, nested: Option<f64>) -> f64 {
    let scale = nested.map_or(32., |n| 8. + 32. / n);
    4. + scale / size
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(f64, Option<f64>) -> f64) {
    assert_eq!(answer(64., None), 4.5);
    assert_eq!(answer(4096., None), 4. + 1. / 128.);
    assert_eq!(answer(64., Some(256.)), 4.126953125);
    // What a large matrix takes, less the map and the offset that it has once.
    let w = Tensor::ones([1024, 2048], (Kind::Float, tch::Device::Cpu));
    for size in [64, 256] {
        let q = Nf4Tensor::quantize(&w, size, true).unwrap();
        let bits = (q.bytes() - 257 * 4) as f64 * 8. / w.numel() as f64;
        assert_eq!(answer(size as f64, Some(256.)), bits);
    }
}

#[test]
fn ex3() {
    check3(bits_per_weight_solved);
    refused(|| {
        check3(|size, nested| {
            4. + nested.map_or(32. / size, |n| 8. / size + 32. / n)
        })
    });
    starter(|| check3(bits_per_weight));
}

// ANCHOR: ex4_starter
/// The scale of a block from its stored code: `level` of the map, the scale `nested` of
/// its 256, and the `offset` of all. To the bit what the CUDA kernels compute.
fn scale(level: f32, nested: f32, offset: f32) -> f32 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn scale_solved(level: f32, nested: f32, offset: f32) -> f32 {
    // Rounded after the product and after the sum. Rust does as it is told; a C compiler
    // makes one operation with one rounding of it, unless it is told not to.
    level * nested + offset
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(f32, f32, f32) -> f32) {
    let w = Tensor::from_slice(&normal(64 * 2000, 3, 0)).view([100, -1]);
    let q = Nf4Tensor::quantize(&w, 64, true).unwrap();
    let downhill::quant::Absmax::Double { codes, nested_absmax, code, offset } =
        q.stored_absmax()
    else {
        panic!("not double")
    };
    let floats = |t: &Tensor| Vec::<f32>::try_from(t).unwrap();
    let (nested, map) = (floats(nested_absmax), floats(code));
    let codes = Vec::<u8>::try_from(codes).unwrap();
    for (i, expected) in floats(&q.absmax()).into_iter().enumerate() {
        let found = answer(map[usize::from(codes[i])], nested[i / 256], *offset);
        assert_eq!(found.to_bits(), expected.to_bits(), "scale {i}");
    }
}

#[test]
fn ex4() {
    check4(scale_solved);
    refused(|| check4(|level, nested, offset| level.mul_add(nested, offset)));
    starter(|| check4(scale));
}

// ANCHOR: ex5_starter
/// `y = x Wᵀ`, W in four bits and frozen, x of shape [N, in]; records a backward that
/// dequantizes again. `q` may be captured: it is small.
fn frozen(x: &Tensor, q: &Nf4Tensor) -> downhill::Result<Tensor> {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn frozen_solved(x: &Tensor, q: &Nf4Tensor) -> downhill::Result<Tensor> {
    let kept = q.shallow_clone();
    let forward = || Ok(vec![x.matmul(&q.dequantize(Kind::Float).tr())]);
    let mut y = autograd::custom(&[x], forward, move |dy| {
        let dx = |dy: &Tensor| dy.matmul(&kept.dequantize(Kind::Float));
        Ok(vec![dy[0].as_ref().map(dx)])
    })?;
    Ok(y.remove(0))
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(&Tensor, &Nf4Tensor) -> downhill::Result<Tensor>) {
    let draw = |seed| Tensor::from_slice(&normal(64 * 64, seed, 0)).view([64, 64]);
    let q = Nf4Tensor::quantize(&draw(4), 64, true).unwrap();
    let w = q.dequantize(Kind::Float);
    let (x, dy) = (draw(5).set_requires_grad(true), draw(6));
    let y = answer(&x, &q).unwrap();
    assert!(relative_error(&x.detach().matmul(&w.tr()), &y.detach()) < 1e-5);
    assert!(y.requires_grad(), "no gradient flows");
    (y * &dy).sum(Kind::Float).backward();
    assert!(relative_error(&dy.matmul(&w), &x.grad()) < 1e-5, "not dy W");
}

#[test]
fn ex5() {
    check5(frozen_solved);
    refused(|| {
        check5(|x, q| Ok(x.detach().matmul(&q.dequantize(Kind::Float).tr())))
    });
    refused(|| {
        check5(|x, q| {
            let w = q.dequantize(Kind::Float);
            let forward = || Ok(vec![x.matmul(&w.tr())]);
            let w = w.shallow_clone();
            let backward = move |dy: &[Option<Tensor>]| {
                Ok(vec![dy[0].as_ref().map(|dy| dy.matmul(&w.tr()))])
            };
            Ok(autograd::custom(&[x], forward, backward)?.remove(0))
        })
    });
    starter(|| check5(frozen));
}

// ANCHOR: ex6_starter
/// Another four bits: the 16 levels even between the least and the greatest weight of
/// the block, so that none is wasted where most weights have one sign. Returns the
/// weights as they come back.
fn uneven(block: &[f64]) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex6_starter

// ANCHOR: ex6_solution
fn uneven_solved(block: &[f64]) -> Vec<f64> {
    let low = block.iter().fold(f64::INFINITY, |a, b| a.min(*b));
    let high = block.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let step = (high - low) / 15.;
    if step == 0. {
        return block.to_vec();
    }
    block.iter().map(|w| low + step * ((w - low) / step).round()).collect()
}
// ANCHOR_END: ex6_solution

fn check6(answer: fn(&[f64]) -> Vec<f64>) {
    let block: Vec<f64> =
        (0..64).map(|i| 1. + f64::from(i * 29 % 64) / 64.).collect();
    let back = answer(&block);
    let most = |back: &[f64]| {
        block.iter().zip(back).map(|(a, b)| (a - b).abs()).fold(0., f64::max)
    };
    let step = 63. / 64. / 15.;
    assert!(most(&back) <= step / 2. + 1e-12, "{}", most(&back));
    let mut levels = back.clone();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    assert_eq!(levels.len(), 16);
    assert_eq!(answer(&[0.5; 3]), vec![0.5; 3], "a block of equals");
    // NF4, half of whose levels are of the other sign, is far worse here.
    let top = 1. + 63. / 64.;
    let nf4 = block.iter().map(|w| {
        let code = code_of_solved(*w as f32, top as f32);
        f64::from(CODE[usize::from(code)]) * top
    });
    assert!(most(&nf4.collect::<Vec<_>>()) > 3. * most(&back));
}

#[test]
fn ex6() {
    check6(uneven_solved);
    refused(|| {
        check6(|block| {
            let top = block.iter().fold(0f64, |a, b| a.max(b.abs()));
            block.iter().map(|w| (w / top * 7.).round() / 7. * top).collect()
        })
    });
    starter(|| check6(uneven));
}
