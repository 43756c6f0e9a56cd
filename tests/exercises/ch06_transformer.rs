//! Chapter 6: the Transformer.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::models::DecoderConfig;
use tch::{Device::Cpu, Kind, Tensor};

// ANCHOR: ex1_starter
/// The result for one query: the mean of `values`, weighted by the softmax of the
/// query's products with `keys`, each divided by the root of their size.
fn attend(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn attend_solved(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let root = (query.len() as f64).sqrt();
    let score = |key: &Vec<f64>| {
        query.iter().zip(key).map(|(q, k)| q * k / root).sum::<f64>()
    };
    let grown: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
    let sum: f64 = grown.iter().sum();
    let mut result = vec![0.; values[0].len()];
    for (weight, value) in grown.iter().zip(values) {
        for (r, v) in result.iter_mut().zip(value) {
            *r += weight / sum * v;
        }
    }
    result
}
// ANCHOR_END: ex1_solution

type Attend = fn(&[f64], &[Vec<f64>], &[Vec<f64>]) -> Vec<f64>;

fn rows(n: i64, width: i64, phase: f64) -> (Tensor, Vec<Vec<f64>>) {
    let t = (Tensor::arange(n * width, (Kind::Double, Cpu)) * 0.9 + phase).sin();
    let t = t.view([n, width]);
    let rows = (0..n).map(|i| Vec::try_from(t.get(i)).expect("a row")).collect();
    (t, rows)
}

fn check1(answer: Attend) {
    let (q, query) = rows(1, 6, 0.);
    let (k, keys) = rows(5, 6, 1.);
    let (v, values) = rows(5, 3, 2.);
    let scores = q.matmul(&k.tr()) / 6f64.sqrt();
    let expected = scores.softmax(-1, None).matmul(&v);
    let found = answer(&query[0], &keys, &values);
    assert_eq!(found.len(), 3);
    for (i, found) in found.iter().enumerate() {
        let expected = expected.double_value(&[0, i as i64]);
        assert!((found - expected).abs() < 1e-12, "{found}, should be {expected}");
    }
}

#[test]
fn ex1() {
    check1(attend_solved);
    refused(|| {
        check1(|query, keys, values| {
            let longer: Vec<f64> = query.iter().map(|q| q * 6f64.sqrt()).collect();
            attend_solved(&longer, keys, values) // without the root
        });
    });
    starter(|| check1(attend));
}

// ANCHOR: ex2_starter
/// The cross-entropy of scores `z` if `y` came: `-ln softmax(z)[y]`. Scores may be in
/// the thousands.
fn cross_entropy(z: &[f64], y: usize) -> f64 {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn cross_entropy_solved(z: &[f64], y: usize) -> f64 {
    // A softmax does not change if all scores move together, so let the largest be 0.
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| (z - most).exp()).sum();
    most + sum.ln() - z[y]
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&[f64], usize) -> f64) {
    for (z, y) in [
        (vec![0., 0., 0., 0.], 2),
        (vec![1., -2., 0.5], 0),
        (vec![3000., 2999., -3000.], 1),
        (vec![-4000., -4001.], 0),
    ] {
        let t = Tensor::from_slice(&z).log_softmax(-1, None);
        let (found, expected) = (answer(&z, y), -t.double_value(&[y as i64]));
        assert!((found - expected).abs() < 1e-9, "{found}, should be {expected}");
    }
}

#[test]
fn ex2() {
    check2(cross_entropy_solved);
    refused(|| {
        check2(|z, y| z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[y]);
    });
    starter(|| check2(cross_entropy));
}

// ANCHOR: ex3_starter
/// The mask [T, T] of a sliding window: true where place t (row) must not look at place
/// u (column), because u is later, or `w` or more places back. (Mistral's models have
/// such layers: a place then costs w scores and not T.)
fn window(t: i64, w: i64) -> Tensor {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn window_solved(t: i64, w: i64) -> Tensor {
    let all = Tensor::ones([t, t], (Kind::Bool, Cpu));
    all.triu(1).logical_or(&all.tril(-w))
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(i64, i64) -> Tensor) {
    for (t, w) in [(6, 3), (5, 1), (4, 9)] {
        let mask = answer(t, w);
        assert_eq!(mask.size(), [t, t]);
        for row in 0..t {
            for column in 0..t {
                let hidden = column > row || row - column >= w;
                let found = mask.int64_value(&[row, column]) != 0;
                assert_eq!(
                    found, hidden,
                    "T {t}, w {w}: row {row}, column {column}"
                );
            }
        }
    }
}

#[test]
fn ex3() {
    check3(window_solved);
    refused(|| check3(|t, w| window_solved(t, w + 1)));
    starter(|| check3(window));
}

// ANCHOR: ex4_starter
/// How many numbers a decoder of this description has. Only the sizes matter:
/// `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`,
/// `num_attention_heads`, `num_key_value_heads`, `head_dim`, `tie_word_embeddings`.
fn parameters(c: &DecoderConfig) -> i64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn parameters_solved(c: &DecoderConfig) -> i64 {
    let (d, k) = (c.hidden_size, c.head_dim);
    let queries = 2 * d * k * c.num_attention_heads; // q, and o that comes back
    let keys = 2 * d * k * c.num_key_value_heads; // k and v
    let layer = queries + keys + 3 * d * c.intermediate_size + 2 * d;
    let tables = if c.tie_word_embeddings { 1 } else { 2 };
    tables * c.vocab_size * d + c.num_hidden_layers * layer + d
}
// ANCHOR_END: ex4_solution

/// The shape of deepseek-llm-7b-base, by its config.json.
fn deepseek_7b() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 102_400,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 30,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        head_dim: 128,
        ..DecoderConfig::default()
    }
}

fn check4(answer: fn(&DecoderConfig) -> i64) {
    let big = deepseek_7b();
    let grouped = DecoderConfig { num_key_value_heads: 8, ..big.clone() };
    let tied = DecoderConfig { tie_word_embeddings: true, ..grouped.clone() };
    assert_eq!(answer(&big), 6_910_365_696);
    for c in [big, grouped, tied] {
        let expected = c.parameters().expect("a count");
        assert_eq!(i128::from(answer(&c)), expected);
    }
}

#[test]
fn ex4() {
    check4(parameters_solved);
    refused(|| check4(|c| parameters_solved(c) - c.hidden_size)); // the last norm
    starter(|| check4(parameters));
}

// ANCHOR: ex5_starter
/// The gradient of the loss with respect to `x`, if `y = x / √(mean(x²) + 1e-6)` and
/// `dy` is the gradient with respect to `y`. (Gains of 1.)
fn norm_backward(x: &[f64], dy: &[f64]) -> Vec<f64> {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn norm_backward_solved(x: &[f64], dy: &[f64]) -> Vec<f64> {
    let d = x.len() as f64;
    let r = 1. / (x.iter().map(|x| x * x).sum::<f64>() / d + 1e-6).sqrt();
    // y_i = r x_i, and r itself depends on every x_j: dr/dx_j = -r³ x_j / d.
    let along: f64 = x.iter().zip(dy).map(|(x, dy)| x * dy).sum();
    x.iter().zip(dy).map(|(x, dy)| r * dy - r.powi(3) / d * along * x).collect()
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(&[f64], &[f64]) -> Vec<f64>) {
    let (_, all) = rows(2, 7, 0.3);
    let x = Tensor::from_slice(&all[0]).set_requires_grad(true);
    let root = (x.square().mean(None) + 1e-6).sqrt();
    (&x / root).dot(&Tensor::from_slice(&all[1])).backward();
    let found = answer(&all[0], &all[1]);
    for (i, found) in found.iter().enumerate() {
        let expected = x.grad().double_value(&[i as i64]);
        assert!((found - expected).abs() < 1e-12, "{found}, should be {expected}");
    }
}

#[test]
fn ex5() {
    check5(norm_backward_solved);
    refused(|| {
        check5(|x, dy| {
            let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            dy.iter().map(|dy| dy / (square + 1e-6).sqrt()).collect() // r as if constant
        });
    });
    starter(|| check5(norm_backward));
}
