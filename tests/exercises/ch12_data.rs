//! Chapter 12: data.
#![allow(unused_variables)] // of the starters

use super::{refused, starter};
use downhill::data::IGNORED;

// ANCHOR: ex1_starter
/// The labels of a prompt followed by a completion: the completion is learned, and so is
/// the `eos` behind it, which may be the pad token, and may stand in the prompt as well.
fn labels(prompt: &[i64], completion: &[i64], eos: i64) -> Vec<i64> {
    todo!()
}
// ANCHOR_END: ex1_starter

// ANCHOR: ex1_solution
fn labels_solved(prompt: &[i64], completion: &[i64], eos: i64) -> Vec<i64> {
    let mut labels = vec![IGNORED; prompt.len()];
    labels.extend(completion);
    if completion.last() != Some(&eos) {
        labels.push(eos);
    }
    labels
}
// ANCHOR_END: ex1_solution

fn check1(answer: fn(&[i64], &[i64], i64) -> Vec<i64>) {
    assert_eq!(answer(&[5, 6], &[7, 8], 1), [IGNORED, IGNORED, 7, 8, 1]);
    assert_eq!(answer(&[], &[7], 1), [7, 1]);
    assert_eq!(answer(&[5], &[7, 1], 1), [IGNORED, 7, 1], "a second EOS");
    // Turns of a conversation end with an EOS each: in the prompt too.
    assert_eq!(answer(&[5, 1, 6], &[1, 7], 1), [IGNORED, IGNORED, IGNORED, 1, 7, 1]);
}

#[test]
fn ex1() {
    check1(labels_solved);
    refused(|| {
        check1(|prompt, completion, eos| {
            let all = [prompt, completion, &[eos]].concat();
            let by_id = all.iter().map(|id| if *id == eos { IGNORED } else { *id });
            by_id
                .enumerate()
                .map(|(i, id)| if i < prompt.len() { IGNORED } else { id })
                .collect()
        })
    });
    refused(|| {
        check1(|p, c, eos| [vec![IGNORED; p.len()], c.to_vec(), vec![eos]].concat())
    });
    starter(|| check1(labels));
}

// ANCHOR: ex2_starter
/// Where each line of a file begins, in bytes: the index by which a row is found again.
/// The last line may lack its line end; blank lines have no place in it.
fn index(file: &[u8]) -> Vec<usize> {
    todo!()
}
// ANCHOR_END: ex2_starter

// ANCHOR: ex2_solution
fn index_solved(file: &[u8]) -> Vec<usize> {
    let mut starts = vec![];
    let mut at = 0;
    for line in file.split_inclusive(|b| *b == b'\n') {
        if !line.trim_ascii().is_empty() {
            starts.push(at);
        }
        at += line.len();
    }
    starts
}
// ANCHOR_END: ex2_solution

fn check2(answer: fn(&[u8]) -> Vec<usize>) {
    assert!(answer(b"").is_empty());
    assert_eq!(answer(b"{}\n{}\n"), [0, 3]);
    assert_eq!(answer(b"\n{}\r\n \r\n{}"), [1, 8]);
    // Bytes, not characters.
    let text = "{\"text\": \"é\"}\n{\"text\": \"b\"}\n".as_bytes();
    let [_, second] = answer(text)[..] else { panic!("not two rows") };
    assert_eq!(&text[second..], b"{\"text\": \"b\"}\n");
}

#[test]
fn ex2() {
    check2(index_solved);
    refused(|| {
        check2(|file| {
            let lines = file.split(|b| *b == b'\n');
            lines
                .scan(0, |at, l| Some(std::mem::replace(at, *at + l.len() + 1)))
                .collect()
        })
    });
    starter(|| check2(index));
}

// ANCHOR: ex3_starter
/// Which tokens may look at which, for rows of these lengths packed end to end:
/// `allowed[i][j]` says whether token i sees token j.
fn allowed(lengths: &[usize]) -> Vec<Vec<bool>> {
    todo!()
}
// ANCHOR_END: ex3_starter

// ANCHOR: ex3_solution
fn allowed_solved(lengths: &[usize]) -> Vec<Vec<bool>> {
    // The number of the row that each token belongs to.
    let rows = lengths.iter().enumerate();
    let row: Vec<usize> =
        rows.flat_map(|(i, n)| std::iter::repeat_n(i, *n)).collect();
    let sees = |i: usize, j: usize| j <= i && row[i] == row[j];
    (0..row.len()).map(|i| (0..row.len()).map(|j| sees(i, j)).collect()).collect()
}
// ANCHOR_END: ex3_solution

fn check3(answer: fn(&[usize]) -> Vec<Vec<bool>>) {
    let shown = |lengths: &[usize]| -> Vec<String> {
        let line =
            |l: &Vec<bool>| l.iter().map(|b| if *b { '#' } else { '.' }).collect();
        answer(lengths).iter().map(line).collect()
    };
    assert_eq!(shown(&[1]), ["#"]);
    assert_eq!(shown(&[2, 1]), ["#..", "##.", "..#"]);
    assert_eq!(shown(&[1, 3]), ["#...", ".#..", ".##.", ".###"]);
    // As many pairs as the rows have alone.
    let pairs: usize = answer(&[3, 5, 2]).iter().flatten().filter(|b| **b).count();
    assert_eq!(pairs, 6 + 15 + 3);
}

#[test]
fn ex3() {
    check3(allowed_solved);
    refused(|| {
        check3(|lengths| {
            let n: usize = lengths.iter().sum();
            (0..n).map(|i| (0..n).map(|j| j <= i).collect()).collect()
        })
    });
    starter(|| check3(allowed));
}

// ANCHOR: ex4_starter
/// Packs rows of these lengths into strips of `tokens`: the longest first, each into the
/// strip where it leaves the least room. Returns the rows of each strip.
fn best_fit(lengths: &[usize], tokens: usize) -> Vec<Vec<usize>> {
    todo!()
}
// ANCHOR_END: ex4_starter

// ANCHOR: ex4_solution
fn best_fit_solved(lengths: &[usize], tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    let mut strips: Vec<(usize, Vec<usize>)> = vec![]; // the room left, and the rows
    for row in order {
        let n = lengths[row];
        let fitting = strips.iter_mut().filter(|(room, _)| *room >= n);
        match fitting.min_by_key(|(room, _)| *room) {
            Some((room, rows)) => {
                *room -= n;
                rows.push(row);
            }
            None => strips.push((tokens.saturating_sub(n), vec![row])),
        }
    }
    strips.into_iter().map(|(_, rows)| rows).collect()
}
// ANCHOR_END: ex4_solution

fn check4(answer: fn(&[usize], usize) -> Vec<Vec<usize>>) {
    assert!(answer(&[], 10).is_empty());
    assert_eq!(answer(&[4, 6, 5, 5], 10).len(), 2);
    // In the file's order, each into the last strip or a new one, there would be five.
    let lengths = [3, 3, 3, 7, 7, 7, 5, 5];
    let strips = answer(&lengths, 10);
    assert_eq!(strips.len(), 4);
    let mut rows = strips.concat();
    rows.sort_unstable();
    assert_eq!(rows, (0..8).collect::<Vec<_>>(), "each row once");
    let fits = |s: &Vec<usize>| s.iter().map(|r| lengths[*r]).sum::<usize>() <= 10;
    assert!(strips.iter().all(fits));
    assert_eq!(answer(&[12, 3], 10).len(), 2, "longer than a strip");
}

#[test]
fn ex4() {
    check4(best_fit_solved);
    refused(|| {
        check4(|lengths, tokens| {
            // In the file's order, into the last strip or a new one.
            let mut strips: Vec<Vec<usize>> = vec![];
            let mut room = 0;
            for (row, n) in lengths.iter().enumerate() {
                if *n > room {
                    strips.push(vec![]);
                    room = tokens.max(*n);
                }
                room -= n;
                strips.last_mut().unwrap().push(row);
            }
            strips
        })
    });
    starter(|| check4(best_fit));
}

// ANCHOR: ex5_starter
/// One step of byte-level BPE: of neighbours that `merges` knows, the pair that stands
/// first in it becomes one, wherever it occurs, from left to right. `None` if there is
/// no such pair.
fn merge(parts: &[String], merges: &[(&str, &str)]) -> Option<Vec<String>> {
    todo!()
}
// ANCHOR_END: ex5_starter

// ANCHOR: ex5_solution
fn merge_solved(parts: &[String], merges: &[(&str, &str)]) -> Option<Vec<String>> {
    let there =
        |(a, b): &&(&str, &str)| parts.windows(2).any(|w| w[0] == *a && w[1] == *b);
    let (a, b) = merges.iter().find(there)?;
    let (mut merged, mut i) = (vec![], 0);
    while i < parts.len() {
        let pair = parts[i] == *a && parts.get(i + 1).is_some_and(|next| next == b);
        merged.push(if pair { format!("{a}{b}") } else { parts[i].clone() });
        i += if pair { 2 } else { 1 };
    }
    Some(merged)
}
// ANCHOR_END: ex5_solution

type Merge = fn(&[String], &[(&str, &str)]) -> Option<Vec<String>>;

fn check5(answer: Merge) {
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("l", "o")];
    let all = |word: &str| {
        let mut parts: Vec<String> = word.chars().map(String::from).collect();
        while let Some(next) = answer(&parts, &merges) {
            assert!(next.len() < parts.len(), "nothing was merged");
            parts = next;
        }
        parts
    };
    assert_eq!(all("hello"), ["hello"]);
    assert_eq!(all("lllo"), ["ll", "lo"], "from the left");
    assert_eq!(all("hehe"), ["he", "he"]);
    assert_eq!(all("xyz"), ["x", "y", "z"]);
    // The first of the list, not the first of the word.
    let parts = ["l", "o", "h", "e"].map(String::from);
    assert_eq!(answer(&parts, &merges).unwrap(), ["l", "o", "he"]);
}

#[test]
fn ex5() {
    check5(merge_solved);
    refused(|| {
        check5(|parts, merges| {
            // The first pair of the word that is in the list.
            let known = |w: &[String]| merges.contains(&(&*w[0], &*w[1]));
            let i = parts.windows(2).position(known)?;
            let pair = parts[i].clone() + &parts[i + 1];
            Some([&parts[..i], &[pair], &parts[i + 2..]].concat())
        })
    });
    starter(|| check5(merge));
}
