//! Chapter 15: LoRA.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::nn::dropout::normal;
use downhill::nn::{Adapter, Linear, Mode};
use downhill_lab::codes::relative_error;
use tch::{Kind, Tensor};

fn draw(rows: i64, columns: i64, seed: u64) -> Tensor {
    let n = (rows * columns) as usize;
    Tensor::from_slice(&normal(n, seed, 14)).view([rows, columns])
}

fn near(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && relative_error(b, a) < 1e-5
}

// ANCHOR: ex1_starter
/// The merged weight. `alpha` and the kind of scale are in `adapter_config.json`; the
/// rank is best taken from A, since patterns may have changed it.
fn merge(w: &Tensor, a: &Tensor, b: &Tensor, alpha: f64, rslora: bool) -> Tensor {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn merge_solved(
    w: &Tensor,
    a: &Tensor,
    b: &Tensor,
    alpha: f64,
    rslora: bool,
) -> Tensor {
    let r = a.size()[0] as f64;
    let scale = alpha / if rslora { r.sqrt() } else { r };
    w + b.matmul(a) * scale
}
// ANCHOR_END: ex1_solution

type Merge = fn(&Tensor, &Tensor, &Tensor, f64, bool) -> Tensor;

fn check1(answer: Merge) {
    let (w, x) = (draw(6, 10, 1), draw(3, 10, 2));
    for (r, alpha, rslora) in [(4, 8., false), (4, 8., true), (2, 3., false)] {
        let (a, b) = (draw(r, 10, 3), draw(6, r, 4));
        let scale = alpha / (r as f64).powf(if rslora { 0.5 } else { 1. });
        let lora = Adapter::new(a.copy(), b.copy(), scale);
        let linear = Linear { lora: Some(lora), ..Linear::dense(w.copy(), None) };
        let expected = linear.forward(&x, Mode::Eval).unwrap();
        let merged = x.matmul(&answer(&w, &a, &b, alpha, rslora).tr());
        assert!(near(&merged, &expected), "r = {r}, α = {alpha}, rsLoRA {rslora}");
    }
}

#[test]
fn ex1() {
    check1(merge_solved);
    refused(|| check1(|w, a, b, alpha, _| w + b.matmul(a) * alpha));
    refused(|| {
        check1(|w, a, b, alpha, _| w + b.matmul(a) * (alpha / a.size()[0] as f64))
    });
    starter(|| check1(merge));
}

// ANCHOR: ex2_starter
/// The largest rank at which the adapter of an [out, in] matrix has fewer numbers than
/// the matrix.
fn worth_it(out: i64, input: i64) -> i64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn worth_it_solved(out: i64, input: i64) -> i64 {
    (out * input - 1) / (out + input) // r (out + in) < out · in
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(i64, i64) -> i64) {
    for (out, input) in [(4096, 4096), (11008, 4096), (512, 192), (64, 192), (6, 3)]
    {
        let r = answer(out, input);
        assert!(
            r * (out + input) < out * input,
            "[{out}, {input}]: {r} is too much"
        );
        assert!((r + 1) * (out + input) >= out * input, "[{out}, {input}]: {r} + 1");
    }
}

#[test]
fn ex2() {
    check2(worth_it_solved);
    refused(|| check2(|out, input| out.min(input) - 1)); // full rank, not few numbers
    refused(|| check2(|out, input| out * input / (out + input)));
    starter(|| check2(worth_it));
}

// ANCHOR: ex3_starter
/// Backward of `y = W x + s B A x`, a token a row: from `u = dL/dy` [N, out] and
/// `x` [N, in] the gradients of A, of B, and the update's part of that of x. No matrix
/// of the size of W may appear.
fn backward(u: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, s: f64) -> [Tensor; 3] {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn backward_solved(
    u: &Tensor,
    x: &Tensor,
    a: &Tensor,
    b: &Tensor,
    s: f64,
) -> [Tensor; 3] {
    let t = u.matmul(b) * s; // [N, r], the gradient of A x
    let h = x.matmul(&a.tr()) * s; // [N, r]
    [t.tr().matmul(x), u.tr().matmul(&h), t.matmul(a)]
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&Tensor, &Tensor, &Tensor, &Tensor, f64) -> [Tensor; 3]) {
    let leaf = |t: Tensor| t.set_requires_grad(true);
    let (a, b, x) =
        (leaf(draw(3, 10, 1)), leaf(draw(6, 3, 2)), leaf(draw(5, 10, 3)));
    let u = draw(5, 6, 4);
    let y = x.matmul(&a.tr()).matmul(&b.tr()) * 1.5;
    (y * &u).sum(Kind::Float).backward();
    let [da, db, dx] = answer(&u, &x.detach(), &a.detach(), &b.detach(), 1.5);
    assert!(near(&da, &a.grad()), "dL/dA");
    assert!(near(&db, &b.grad()), "dL/dB");
    assert!(near(&dx, &x.grad()), "dL/dx");
}

#[test]
fn ex3() {
    check3(backward_solved);
    refused(|| {
        check3(|u, x, a, b, s| {
            let [da, db, dx] = backward_solved(u, x, a, b, s);
            [da, db / s, dx]
        })
    });
    starter(|| check3(backward));
}

// ANCHOR: ex4_starter
/// DoRA's lengths `‖W + s B A‖`, one for each row of W [out, in], without a second
/// matrix of the size of W: `squares` are `‖W‖²` by row, kept from the start.
fn lengths(w: &Tensor, squares: &Tensor, a: &Tensor, b: &Tensor, s: f64) -> Tensor {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn lengths_solved(
    w: &Tensor,
    squares: &Tensor,
    a: &Tensor,
    b: &Tensor,
    s: f64,
) -> Tensor {
    let by_row = |t: Tensor| t.sum_dim_intlist(1, false, Kind::Float);
    let cross = by_row(w.matmul(&a.tr()) * b); // [out, r] · [out, r]
    let own = by_row(b.matmul(&a.matmul(&a.tr())) * b);
    (squares + cross * (2. * s) + own * (s * s)).sqrt()
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(&Tensor, &Tensor, &Tensor, &Tensor, f64) -> Tensor) {
    let (w, a, b, s) = (draw(6, 10, 1), draw(3, 10, 2), draw(6, 3, 3), 0.7);
    let by_row = |t: Tensor| t.square().sum_dim_intlist(1, false, Kind::Float);
    let expected = by_row(&w + b.matmul(&a) * s).sqrt();
    let found = answer(&w, &by_row(w.copy()), &a, &b, s);
    assert!(near(&found, &expected), "{found} instead of {expected}");
}

#[test]
fn ex4() {
    check4(lengths_solved);
    refused(|| {
        check4(|_, squares, a, b, s| {
            // As if W and B A stood at right angles.
            let own = (b.matmul(a) * s).square().sum_dim_intlist(1, false, None);
            (squares + own).sqrt()
        })
    });
    starter(|| check4(lengths));
}

// ANCHOR: ex5_starter
/// PiSSA trained `(W − s B₀ A₀) + s B A`. The same as plain LoRA for W: A and B of twice
/// the rank, at the same scale s.
fn as_lora([a0, b0]: [&Tensor; 2], [a, b]: [&Tensor; 2]) -> [Tensor; 2] {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn as_lora_solved([a0, b0]: [&Tensor; 2], [a, b]: [&Tensor; 2]) -> [Tensor; 2] {
    // [B, −B₀] [A; A₀] = B A − B₀ A₀
    [Tensor::cat(&[a, a0], 0), Tensor::cat(&[b.shallow_clone(), -b0], 1)]
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn([&Tensor; 2], [&Tensor; 2]) -> [Tensor; 2]) {
    let [a0, a] = [1, 2].map(|seed| draw(3, 10, seed));
    let [b0, b] = [3, 4].map(|seed| draw(6, 3, seed));
    let [whole_a, whole_b] = answer([&a0, &b0], [&a, &b]);
    assert_eq!(whole_a.size(), [6, 10], "A of twice the rank");
    assert_eq!(whole_b.size(), [6, 6], "B of twice the rank");
    let expected = b.matmul(&a) - b0.matmul(&a0);
    assert!(near(&whole_b.matmul(&whole_a), &expected));
}

#[test]
fn ex5() {
    check5(as_lora_solved);
    refused(|| {
        check5(|[a0, b0], [a, b]| {
            // Both signs turned: they cancel.
            [
                Tensor::cat(&[a.shallow_clone(), -a0], 0),
                Tensor::cat(&[b.shallow_clone(), -b0], 1),
            ]
        })
    });
    starter(|| check5(as_lora));
}
