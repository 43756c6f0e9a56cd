//! Chapter 12: what the page compares. (Tokenizers, templates, errors and files larger
//! than memory: `data`.)
use downhill::data::{Batch, Dataset, Example, IGNORED, RowEncoder, Tokenizer};
use downhill_lab::batches::{
    Choice, batches, compare, padding, picture, run_together,
};
use downhill_lab::rows::{BAD, marked, mask_by_id, passages, scratch, tiny};
use downhill_lab::{Recorded, Shipped};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir("examples/data/tiny").unwrap()
}

fn dates() -> Dataset {
    let file = "examples/data/dates_train.jsonl";
    Dataset::read(file, RowEncoder::new(Some(&tokenizer()), 512, 2048)).unwrap()
}

#[test]
fn packed_is_padded_behind_walls_only() {
    let (model, rows) = (tiny().unwrap(), dates());
    let passages = passages(&tokenizer()).unwrap();
    assert_eq!(passages.len(), 90);
    for some in [&rows.examples, &passages] {
        let found = compare(&model, some, (6, 128), 2044, 3).unwrap();
        let [padded, packed, mixed] = found.loss;
        assert!((packed - padded).abs() < 1e-5 * padded, "{found:?}");
        assert!(found.gradient[0] < 1e-4, "{found:?}");
        // The mean loss may hide it; the gradient does not.
        assert!((mixed - padded).abs() > 1e-4 * padded, "{found:?}");
        assert!(found.gradient[1] > 0.05, "{found:?}");
        // What stands behind a row is never seen, whatever it is.
        let other = compare(&model, some, (6, 128), 7, 3).unwrap();
        assert!((other.loss[0] - padded).abs() < 1e-5 * padded);
        // A pack of one row has no walls to lose.
        let alone = compare(&model, some, (6, 1), 2044, 3).unwrap();
        assert!((alone.loss[2] - alone.loss[1]).abs() < 1e-5 * padded);
    }
}

#[test]
fn rows_run_together_keep_their_tokens() {
    let rows = dates();
    let some: Vec<&Example> = rows.examples[..5].iter().collect();
    let batch = Batch::collate(&some);
    let together = run_together(&batch, &[2, 3]);
    assert_eq!(together.lengths.len(), 2);
    assert_eq!(together.lengths[0], batch.lengths[0] + batch.lengths[1]);
    assert_eq!(together.tokens(), batch.tokens());
    assert!(
        together.ids.equal(&batch.ids) && together.targets.equal(&batch.targets)
    );
}

#[test]
fn every_row_is_in_one_batch() {
    let lengths: Vec<u32> = (0..203).map(|i| 5 + i * 37 % 90).collect();
    for choice in [Choice::Random, Choice::Grouped, Choice::Packed] {
        let plan = batches(&lengths, 8, choice, 1);
        let mut rows = plan.concat().concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..203).collect::<Vec<_>>(), "{choice:?}");
    }
    let share = |choice| padding(&lengths, &batches(&lengths, 8, choice, 1), 0);
    let (random, grouped) = (share(Choice::Random), share(Choice::Grouped));
    assert!(random > 0.3 && grouped < 0.1, "{random} {grouped}");
    let svg = picture(&lengths, 1);
    let found = svg.svg().matches("is padding").count();
    assert_eq!(found, 3);
}

#[test]
fn a_mask_by_id_loses_the_end() {
    let (mut rows, eos) = (dates(), tokenizer().eos_id());
    let before = rows.examples[0].clone();
    assert_eq!(before.labels.last(), Some(&eos));
    mask_by_id(&mut rows, eos);
    let after = &rows.examples[0];
    assert_eq!(after.labels.last(), Some(&IGNORED));
    assert_eq!(after.supervised() + 1, before.supervised());
    let shown = marked(&before, &tokenizer()).unwrap();
    assert!(shown.contains("Date:[[ ") && shown.ends_with("]]"), "{shown}");
}

#[test]
fn the_shipped_model_wants_its_bos() {
    let shipped = Shipped::load().unwrap();
    let mean = |start: &[i64], n: usize| {
        let losses = shipped.losses_after(start).unwrap();
        assert_eq!(losses.len(), 127);
        losses[..n].iter().sum::<f64>() / n as f64
    };
    assert!(mean(&[2043], 4) < mean(&[], 4));
    // With the BOS it is what `judge` finds, less the first token of each page.
    let [all, _] = shipped.judge().unwrap();
    assert!((mean(&[2043], 127) - all).abs() < 0.05);
}

#[test]
fn recorded_counts_leave_the_bos_out() {
    let recorded = Recorded::load().unwrap();
    assert_eq!(recorded.strings.len(), 200);
    assert!(recorded.counts.len() >= 12);
    for (name, counts) in &recorded.counts {
        let of = |text: &str| {
            counts[recorded.strings.iter().position(|s| s == text).unwrap()]
        };
        assert_eq!((of(""), of("0"), of("7")), (0, 1, 1), "{name}");
        let [english, chinese] = [0, 3].map(|k: usize| {
            recorded.characters(Recorded::KINDS[k].1.clone(), counts)
        });
        assert!(english > 1.5 && chinese > 0.5, "{name}: {english} {chinese}");
    }
}

#[test]
fn the_bad_rows_of_the_page_are_four() {
    let path = scratch("test-bad.jsonl", BAD).unwrap();
    let encoder = RowEncoder::new(Some(&tokenizer()), 512, 2048);
    let mut lines = vec![];
    let found =
        downhill::data::check(&path, &encoder, &mut |row| lines.push(row.line));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(found.unwrap().0, 4);
    assert_eq!(lines, [2, 3, 4, 5]);
}
