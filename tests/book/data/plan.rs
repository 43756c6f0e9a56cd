//! Rows put together: by length, and packed.
use crate::common::{adapted, lora};
use downhill::data::{Batch, Example, Grouping, IGNORED, Plan};
use downhill::nn::Mode;
use downhill::tch::Tensor;
use downhill::train::batch_loss;

/// Lengths from 1 to `max` that look random, short ones more often.
fn lengths(n: u32, max: u32) -> Vec<u32> {
    let draw = |i: u32| (i.wrapping_mul(2_654_435_761) >> 16) % max;
    (0..n).map(|i| 1 + draw(i) * draw(i + 7) / max).collect()
}

fn packs(plan: &Plan) -> Vec<Vec<u32>> {
    (0..plan.packs()).map(|k| plan.pack(k).to_vec()).collect()
}

#[test]
fn packs_hold_every_row_once_and_no_more_than_fits() {
    let (n, max) = (2000, 128);
    let lengths = lengths(n, max);
    let tokens: u32 = lengths.iter().sum();
    let grouping = Grouping::Packed(max as usize);
    let plan = |seed, shuffle| {
        Plan::new(n as usize, lengths.clone(), grouping.clone(), seed, shuffle)
    };
    let mut packed = plan(42, true);
    let first = packs(&packed);
    for epoch in 0..3 {
        packed.go_to(epoch);
        let packs = packs(&packed);
        assert_eq!(packs.len(), first.len(), "epochs have unequal steps");
        assert_eq!(packs == first, epoch == 0, "the order is that of epoch 0");
        let mut rows = packs.concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..n).collect::<Vec<_>>());
        for pack in &packs {
            let in_pack = pack.iter().map(|&row| lengths[row as usize]);
            assert!(in_pack.clone().sum::<u32>() <= max);
            // Side by side, as attention sees them.
            let grid = in_pack.max().unwrap_or(0) * pack.len() as u32;
            assert!(grid < 5 * max, "{grid}");
        }
    }
    // Sums up to the limit leave little room over.
    let full = f64::from(tokens) / (first.len() as f64 * f64::from(max));
    assert!(full > 0.95, "{full}");
    packed.go_to(0);
    assert_eq!(packs(&packed), first);
    assert_ne!(packs(&plan(43, true)), first);
    // Unshuffled: in the order of each pack's first row.
    let firsts: Vec<_> = packs(&plan(1, false))
        .iter()
        .map(|pack| pack.iter().min().copied())
        .collect();
    assert!(firsts.is_sorted());
}

#[test]
fn rows_with_nothing_to_learn_are_in_no_pack() {
    let plan = Plan::new(4, vec![5, 0, 5, 0], Grouping::Packed(8), 1, true);
    let mut rows = packs(&plan).concat();
    rows.sort_unstable();
    assert_eq!((plan.packs(), rows), (2, vec![0, 2]));
    // One that is exactly full, and one that is left over.
    let plan = Plan::new(3, vec![8, 3, 5], Grouping::Packed(8), 1, false);
    assert_eq!(packs(&plan), [vec![0], vec![2, 1]]);
}

#[test]
fn grouped_rows_are_of_similar_length() {
    let (n, size) = (1030, 8);
    let lengths = lengths(n, 500);
    let new = |grouping| Plan::new(n as usize, lengths.clone(), grouping, 3, true);
    let spread = |plan: &Plan| -> u32 {
        let rows = packs(plan).concat();
        let batches = rows.chunks(size);
        let of = |batch: &[u32]| {
            let all = batch.iter().map(|&row| lengths[row as usize]);
            all.clone().max().unwrap_or(0) - all.min().unwrap_or(0)
        };
        batches.map(of).sum()
    };
    let (mut grouped, alone) = (new(Grouping::ByLength(size)), new(Grouping::Alone));
    assert!(spread(&grouped) * 10 < spread(&alone));
    assert_eq!(grouped.packs(), n as usize);
    let mut rows = packs(&grouped).concat();
    // Not sorted from end to end: the order of micro-batches is drawn.
    let first: Vec<u32> =
        rows.iter().step_by(size).map(|&row| lengths[row as usize]).collect();
    assert!(!first.is_sorted_by(|a, b| a >= b));
    grouped.go_to(1);
    assert_ne!(packs(&grouped).concat(), rows);
    rows.sort_unstable();
    assert_eq!(rows, (0..n).collect::<Vec<_>>());
}

/// Loss and gradients of packed rows are those of the rows one by one: 1e-5, in f32.
#[test]
fn packed_rows_learn_what_single_rows_learn() {
    let lengths = lengths(60, 24);
    let rows: Vec<Example> = (0..)
        .zip(&lengths)
        .map(|(i, &n)| {
            let n = n as i64 + 1;
            let ids: Vec<i64> =
                (0..n).map(|t| (i * 7 + t * t * 5 + 3) % 61).collect();
            let labels =
                (0..n).map(|t| if t < n / 3 { IGNORED } else { ids[t as usize] });
            Example { labels: labels.collect(), ids, line: i as usize + 1 }
        })
        .collect();
    let sizes: Vec<u32> = rows.iter().map(|row| row.ids.len() as u32).collect();
    let plan = Plan::new(rows.len(), sizes, Grouping::Packed(32), 5, true);
    let all = packs(&plan);
    assert!(all.len() < 30, "{} packs of {} rows", all.len(), rows.len());
    let config = lora(&["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"], 0.);
    let learn = |packs: &[Vec<u32>]| -> (f64, Vec<Tensor>) {
        let (model, adapters) = adapted(11, &config);
        let mut sum = 0.;
        for pack in packs {
            let rows: Vec<_> = pack.iter().map(|&row| &rows[row as usize]).collect();
            let batch = Batch::collate(&rows);
            let loss = batch_loss(&model, &batch, Mode::Eval).expect("a loss");
            loss.backward();
            sum += loss.double_value(&[]);
        }
        (sum, adapters.iter().map(|(_, t)| t.grad()).collect())
    };
    let single: Vec<Vec<u32>> =
        all.concat().into_iter().map(|row| vec![row]).collect();
    let ((packed, ours), (alone, theirs)) = (learn(&all), learn(&single));
    assert!((packed - alone).abs() / alone < 1e-5, "{packed} {alone}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(theirs.abs().max().double_value(&[]) > 0.);
        let gap = crate::golden::gap(ours, theirs);
        assert!(gap < 1e-5, "{gap}");
    }
}
