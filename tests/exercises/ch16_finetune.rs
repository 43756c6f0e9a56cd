//! Chapter 16: the fine-tune.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::data::{Batch, Example, IGNORED};
use downhill::models::{Survey, published};
use downhill::train::{Confusion, steps_per_epoch};

// ANCHOR: ex1_starter
/// The loss of a step from its micro-batches: the summed loss of each, and how many
/// tokens were learned in it.
fn mean_of_step(parts: &[(f64, i64)]) -> f64 {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn mean_of_step_solved(parts: &[(f64, i64)]) -> f64 {
    let loss: f64 = parts.iter().map(|p| p.0).sum();
    let tokens: i64 = parts.iter().map(|p| p.1).sum();
    loss / tokens as f64
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&[(f64, i64)]) -> f64) {
    assert_eq!(answer(&[(6., 3)]), 2.);
    // One token of loss 8 does not weigh as much as seven of loss 1.
    assert_eq!(answer(&[(7., 7), (8., 1)]), 15. / 8.);
    assert_eq!(answer(&[(7., 7), (0., 0), (8., 1)]), 15. / 8.);
}

#[test]
fn ex1() {
    check1(mean_of_step_solved);
    let of_means = |parts: &[(f64, i64)]| {
        let means = parts.iter().map(|(loss, n)| loss / *n as f64);
        means.sum::<f64>() / parts.len() as f64
    };
    refused(|| check1(of_means));
    starter(|| check1(mean_of_step));
}

// ANCHOR: ex2_starter
/// Ids and labels of a row of `to` tokens: prompt, completion, EOS, then padding. The
/// padding's id is the EOS's, as in most DeepSeek checkpoints. Prompt and padding are
/// not learned (−100).
fn padded(prompt: &[i64], completion: &[i64], eos: i64, to: usize) -> Vec<[i64; 2]> {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn padded_solved(
    prompt: &[i64],
    completion: &[i64],
    eos: i64,
    to: usize,
) -> Vec<[i64; 2]> {
    let masked = prompt.iter().map(|&id| [id, -100]);
    let learned = completion.iter().chain([&eos]).map(|&id| [id, id]);
    let padding = std::iter::repeat([eos, -100]); // by position, never by id
    masked.chain(learned).chain(padding).take(to).collect()
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&[i64], &[i64], i64, usize) -> Vec<[i64; 2]>) {
    let row = answer(&[1, 5], &[6, 7], 2, 7);
    let expected =
        [[1, -100], [5, -100], [6, 6], [7, 7], [2, 2], [2, -100], [2, -100]];
    assert_eq!(row, expected);
    assert_eq!(answer(&[1], &[4], 2, 3), [[1, -100], [4, 4], [2, 2]]);
    // As the library learns it, which needs no padding.
    let (ids, labels) = row[..5].iter().map(|[id, label]| (*id, *label)).unzip();
    let example = Example { ids, labels, line: 1 };
    assert_eq!(example.target(), [6, 7, 2]);
    assert_eq!(Batch::collate(&[&example]).supervised(), 3);
    assert_eq!(IGNORED, -100);
}

#[test]
fn ex2() {
    check2(padded_solved);
    refused(|| {
        check2(|prompt, completion, eos, to| {
            let mut row = padded_solved(prompt, completion, eos, to);
            // What a collator does that masks the pad token wherever it is.
            row.iter_mut().filter(|r| r[0] == eos).for_each(|r| r[1] = -100);
            row
        })
    });
    starter(|| check2(padded));
}

// ANCHOR: ex3_starter
/// Optimizer steps of a run over so many rows. The last step of an epoch may have fewer
/// micro-batches, and the last micro-batch fewer rows.
fn steps(rows: usize, batch: usize, accumulation: usize, epochs: usize) -> usize {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn steps_solved(
    rows: usize,
    batch: usize,
    accumulation: usize,
    epochs: usize,
) -> usize {
    epochs * rows.div_ceil(batch).div_ceil(accumulation)
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(usize, usize, usize, usize) -> usize) {
    assert_eq!(answer(16, 4, 4, 3), 3);
    assert_eq!(answer(17, 4, 4, 3), 6);
    for rows in 1..70 {
        let ours = steps_per_epoch(rows, 4, 4) as usize;
        assert_eq!(answer(rows, 4, 4, 2), 2 * ours, "{rows} rows");
    }
}

#[test]
fn ex3() {
    check3(steps_solved);
    // A schedule of this length is worn out before the run ends.
    refused(|| check3(|rows, batch, acc, epochs| epochs * rows / (batch * acc)));
    // And one of this length has hardly begun to fall.
    refused(|| check3(|rows, batch, _, epochs| epochs * rows.div_ceil(batch)));
    starter(|| check3(steps));
}

// ANCHOR: ex4_starter
/// Bytes that adapters of rank `r` beside linears [out, in] take in training: themselves,
/// their gradients and both means of Adam, all in f32.
fn trained_bytes(r: u64, linears: &[[u64; 2]]) -> u64 {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn trained_bytes_solved(r: u64, linears: &[[u64; 2]]) -> u64 {
    let numbers: u64 = linears.iter().map(|[out, input]| r * (out + input)).sum();
    4 * 4 * numbers
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(u64, &[[u64; 2]]) -> u64) {
    assert_eq!(answer(2, &[[3, 5]]), 2 * 8 * 16);
    let (name, config) = published().unwrap().remove(3);
    assert_eq!(name, "deepseek-llm-7b");
    let survey = Survey::of(name, config).unwrap();
    let linears = survey.linears.iter().map(|(_, s)| s.map(|n| n as u64));
    let linears: Vec<[u64; 2]> = linears.collect();
    let all = survey.adapter_parameters(16, &["all-linear"]);
    assert_eq!(answer(16, &linears), 16 * all);
}

#[test]
fn ex4() {
    check4(trained_bytes_solved);
    refused(|| {
        check4(|r, l| 16 * l.iter().map(|[out, input]| r * out * input).sum::<u64>())
    });
    refused(|| check4(|r, l| trained_bytes_solved(r, l) / 4));
    starter(|| check4(trained_bytes));
}

// ANCHOR: ex5_starter
/// Checkpointing keeps the input of every k-th of `layers` blocks, and in backward what
/// is inside of k blocks at a time. A block's inside is `inside` times as large as its
/// input. Which k takes the least memory?
fn best_distance(layers: u64, inside: u64) -> u64 {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn best_distance_solved(layers: u64, inside: u64) -> u64 {
    let peak = |k: &u64| layers.div_ceil(*k) + k * inside;
    (1..=layers).min_by_key(peak).unwrap_or(1)
}
// ANCHOR_END: ex5_solution

fn check5(answer: fn(u64, u64) -> u64) {
    // The textbook's square root, where a block keeps no more than its input.
    assert_eq!(answer(64, 1), 8);
    // A decoder's block keeps some thirty times as much: every block's input it is.
    assert_eq!(answer(30, 30), 1);
    assert_eq!(answer(1, 1), 1);
}

#[test]
fn ex5() {
    check5(best_distance_solved);
    refused(|| check5(|layers, _| layers.isqrt()));
    refused(|| check5(|_, _| 1));
    starter(|| check5(best_distance));
}

// ANCHOR: ex6_starter
/// The mean over classes of F1 = 2 TP / (2 TP + FP + FN), from rows counted by their
/// true class (first index) and the predicted one. Classes that are not there, neither
/// truly nor predicted, do not count.
fn macro_f1(counts: &[Vec<u64>]) -> f64 {
    todo!()
}
// ANCHOR_END: ex6_starter

// ANCHOR: ex6_solution
fn macro_f1_solved(counts: &[Vec<u64>]) -> f64 {
    let mut scores = vec![];
    for class in 0..counts.len() {
        let right = counts[class][class];
        let true_ones: u64 = counts[class].iter().sum();
        let predicted: u64 = counts.iter().map(|row| row[class]).sum();
        if true_ones + predicted > 0 {
            scores.push(2. * right as f64 / (true_ones + predicted) as f64);
        }
    }
    scores.iter().sum::<f64>() / scores.len() as f64
}
// ANCHOR_END: ex6_solution

fn check6(answer: fn(&[Vec<u64>]) -> f64) {
    for table in [
        vec![vec![8, 2], vec![1, 9]],
        vec![vec![90, 0], vec![10, 0]], // 90 % right, and half blind
        vec![vec![3, 1, 0], vec![0, 4, 0], vec![0, 0, 0]],
    ] {
        let expected = Confusion(table.clone()).macro_f1();
        assert!((answer(&table) - expected).abs() < 1e-12, "{table:?}");
    }
}

#[test]
fn ex6() {
    check6(macro_f1_solved);
    refused(|| check6(|counts| Confusion(counts.to_vec()).accuracy()));
    starter(|| check6(macro_f1));
}
