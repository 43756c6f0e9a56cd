//! CSV, files that are read as their rows are taken, and the rows kept for validation.
use super::{VOCAB, rows, tokenizer};
use crate::common;
use downhill::Result;
use downhill::data::{Dataset, Example, Records, RowEncoder, Tokenizer, check};
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

fn named(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    (dir, path)
}

fn encoder(max_length: usize) -> RowEncoder {
    RowEncoder::new(Some(&tokenizer()), max_length, VOCAB)
}

fn csv(bytes: impl AsRef<[u8]>) -> Result<Dataset> {
    let (_dir, path) = named("rows.CSV", bytes);
    Dataset::read(path, encoder(99))
}

fn all(data: &Dataset) -> Vec<Option<Example>> {
    let row = |i| data.row(i).expect("a row").map(|row| row.into_owned());
    (0..data.len()).map(row).collect()
}

#[test]
fn csv_rows_are_those_of_json_lines() {
    let table = "\u{feff}prompt, completion\r\n\
                 the,hen\n\
                 \n\
                 \"a, \"\"b\"\"\nc\",\" x \"\r\n\
                 5\" wide,\"\"\"q\"\"\"\n\
                 né,日本";
    let row = |p: &str, c: &str| json!({"prompt": p, "completion": c});
    let same = [
        row("the", "hen"),
        row("a, \"b\"\nc", " x "),
        row("5\" wide", "\"q\""),
        row("né", "日本"),
    ];
    let (table, lines) =
        (csv(table).unwrap(), super::load(rows(&same), 99).unwrap());
    let ids = |data: &Dataset| -> Vec<(Vec<i64>, Vec<i64>)> {
        data.examples.iter().map(|e| (e.ids.clone(), e.labels.clone())).collect()
    };
    assert_eq!(ids(&table), ids(&lines));
    // The line on which each begins.
    let lines: Vec<usize> = table.examples.iter().map(|e| e.line).collect();
    assert_eq!(lines, [2, 4, 6, 7]);

    let (_dir, path) = named("labels.csv", "text,label\nfine,yes\n\"a,b\",no\n");
    let rows: Vec<_> = Records::open(path).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows[1].0, 3);
    assert_eq!(rows[1].1["text"], "a,b");
    assert_eq!(rows[1].1["label"], "no");
}

#[test]
fn broken_csv() {
    let refuses = |table: &str, parts: &[&str]| common::refused(csv(table), parts);
    refuses("", &["rows.CSV: empty", "header"]);
    refuses("text\n", &["rows.CSV: empty"]);
    refuses("text,text\na,b\n", &["rows.CSV:1: two columns are called `text`"]);
    refuses("prompt,completion\na\n", &["rows.CSV:2: 1 cells", "header has 2"]);
    refuses("text\na, b\n", &["rows.CSV:2: 2 cells", "double quotes"]);
    refuses("text\na\n\"b\nc\n", &["rows.CSV:3: a quoted cell", "never closed"]);
    refuses("question,answer\na,b\n", &["rows.CSV:2: found `question`, `answer`"]);
    refuses("prompt,completion\na,\n", &["rows.CSV:2: `completion` is empty"]);
    refuses("text,label\na,b\n", &["rows.CSV:2: ", "`label` does not belong"]);
    refuses("input_ids,labels\n1,1\n", &["rows.CSV:2: `input_ids` is the string"]);
    refuses("messages\nhi\n", &["rows.CSV:2: `messages` is the string"]);
    let bytes = [&b"text\nfine\n"[..], b"caf\xe9\n"].concat();
    common::refused(csv(bytes), &["rows.CSV:3: cell 1: not UTF-8"]);
}

#[test]
fn streamed_rows_are_those_held() {
    let mut lines = vec![];
    for i in 0..3000 {
        let text = "the hen ".repeat(i % 7 + 1);
        lines.push(json!({"prompt": format!("{i}"), "completion": text}));
    }
    let mut text = format!("\u{feff}\n{}", rows(&lines));
    text.truncate(text.len() - 1); // no line end at the end
    let text = text
        .replace("\"1500\"", "\"1500\" ")
        .replace("}\n{\"prompt\":\"77\"", "}\r\n  \n\n{\"prompt\":\"77\"");
    let (_dir, path) = named("rows.jsonl", text);
    let held = Dataset::read(&path, encoder(40)).unwrap();
    let streamed = Dataset::stream(&path, encoder(40)).unwrap();
    assert!(streamed.examples.is_empty() && streamed.len() == 3000);
    assert_eq!(all(&streamed), all(&held));
    assert_eq!(streamed.lengths().unwrap(), held.lengths().unwrap());
    assert!(streamed.summary.to_string().starts_with("3000 rows, tokenized as"));

    // The same rows are kept for validation, from wherever they come.
    let parts = |data: Dataset| data.split(0.1, 7).unwrap();
    let ((a, b), (c, d)) = (parts(held), parts(streamed));
    assert_eq!((a.len(), b.len()), (2700, 300));
    assert_eq!((all(&a), all(&b)), (all(&c), all(&d)));
    assert_eq!((a.summary.rows, d.summary.streamed), (2700, 300));
}

#[test]
fn streamed_csv() {
    let mut text = String::from("text\n");
    for i in 0..100 {
        text += &format!("\"line {i}\nand, \"\"more\"\"\"\r\nplain {i}\n");
    }
    let (_dir, path) = named("rows.csv", text);
    let held = Dataset::read(&path, encoder(99)).unwrap();
    let streamed = Dataset::stream(&path, encoder(99)).unwrap();
    assert_eq!(all(&streamed), all(&held));
    assert_eq!((held.len(), held.examples[199].line), (200, 301));
}

#[test]
fn late_rows_that_are_bad_or_empty() {
    let good = json!({"input_ids": [4, 5], "labels": [-100, 5]});
    let mut lines = vec![good; 2000];
    lines[1500] = json!({"input_ids": [4, 5], "labels": [4, -100]});
    lines[1700] = json!({"input_ids": [4, 999], "labels": [4, 5]});
    lines[1800] = json!({"text": "a"});
    let (_dir, path) = named("rows.jsonl", rows(&lines));
    let data = Dataset::stream(&path, encoder(9)).unwrap();
    assert_eq!((data.len(), data.summary.rows), (2000, 1024));
    assert_eq!(data.row(1500).unwrap(), None);
    assert_eq!(data.row(1500).unwrap(), None);
    assert_eq!(data.skipped_late(), [1501]);
    common::refused(data.row(1700), &["rows.jsonl:1701: `input_ids[1]` is 999"]);
    common::refused(data.row(1800), &["rows.jsonl:1801: found a row of {`text`}"]);
    common::refused(data.lengths(), &["rows.jsonl:1701"]);
    // The first error of those that are read at once is told now.
    lines[3] = json!({"input_ids": [4], "labels": []});
    let (_dir, path) = named("rows.jsonl", rows(&lines));
    common::refused(Dataset::stream(&path, encoder(9)), &["rows.jsonl:4: `labels`"]);
}

/// A streamed file of which nothing is learned is refused as one that is held is; one
/// whose first learned row stands far behind is not.
#[test]
fn streamed_rows_without_a_token_to_learn() {
    let row = |n: usize| json!({"prompt": "the ".repeat(n), "completion": "hen"});
    let mut lines = vec![row(20); 2500];
    let (_dir, path) = named("rows.jsonl", rows(&lines));
    let held = Dataset::read(&path, encoder(8)).unwrap_err().to_string();
    assert!(held.contains("no row has a token to learn, of 2500"), "{held}");
    let parts = ["no row has a token to learn, of 2500", "--max-length 8"];
    common::refused(Dataset::stream(&path, encoder(8)), &parts);
    lines[2300] = row(1);
    let (_dir, path) = named("rows.jsonl", rows(&lines));
    let data = Dataset::stream(&path, encoder(8)).unwrap();
    assert_eq!(data.lengths().unwrap().iter().filter(|n| **n > 0).count(), 1);
    // Either part of a split would have none.
    common::refused(data.split(0.1, 3), &["--validation-split", "no row has"]);
}

#[test]
fn all_bad_rows_are_listed() {
    let text = "{\"text\": \"a\"}\nnonsense\n{\"text\": \"\"}\n{\"text\": \"b c\"}\n\
                {\"prompt\": \"a\", \"completion\": \"b\"}\n";
    let (_dir, path) = named("rows.jsonl", text);
    let mut found = vec![];
    let (bad, summary, lengths) =
        check(&path, &encoder(9), &mut |row| found.push(row)).unwrap();
    let lines: Vec<usize> = found.iter().map(|row| row.line).collect();
    assert_eq!((bad, lines, summary.rows), (3, vec![2, 3, 5], 2));
    assert!(found[2].what.contains("one kind"), "{:?}", found[2]);
    assert_eq!((lengths.quantile(0.), lengths.quantile(1.)), (3, 5));
}

#[test]
fn a_split_that_leaves_nothing() {
    let data = || super::load("{\"text\": \"a\"}\n{\"text\": \"b\"}", 9).unwrap();
    for share in [0., 1., -0.1, 0.9, f64::NAN] {
        common::refused(data().split(share, 1), &["--validation-split"]);
    }
    let (train, held) = data().split(0.01, 1).unwrap();
    assert_eq!((train.len(), held.len()), (1, 1));
}

#[test]
fn lengths_are_kept_until_the_file_changes() {
    let row = |n: usize| json!({"text": "the ".repeat(n)});
    let (dir, path) = named("rows.jsonl", rows(&[row(1), row(5)]));
    let cache = dir.path().join("lengths.bin");
    let lengths = || Dataset::stream(&path, encoder(99))?.lengths_cached(&cache);
    let first = lengths().unwrap();
    assert_eq!(Dataset::read(&path, encoder(99)).unwrap().lengths().unwrap(), first);
    // The second time it is not written again, so it is read.
    let sound = std::fs::read(&cache).unwrap();
    let written = || std::fs::metadata(&cache).unwrap().modified().unwrap();
    let then = written();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(lengths().unwrap(), first);
    assert_eq!(written(), then);
    // A bit that flipped anywhere, or a cut, and it is made anew.
    for at in 0..sound.len() {
        let mut flipped = sound.clone();
        flipped[at] ^= 1;
        for broken in [&flipped, &sound[..at]] {
            std::fs::write(&cache, broken).unwrap();
            assert_eq!(lengths().unwrap(), first, "byte {at}");
            assert_eq!(std::fs::read(&cache).unwrap(), sound);
        }
    }
    // So it is where anything that it depends on is another.
    let with = |change: &dyn Fn(&mut RowEncoder)| {
        let mut other = encoder(99);
        change(&mut other);
        std::fs::write(&cache, &sound).unwrap();
        let data = Dataset::stream(&path, other).unwrap();
        let found = data.lengths_cached(&cache).unwrap();
        assert_eq!(found, data.lengths().unwrap());
        assert_ne!(std::fs::read(&cache).unwrap(), sound);
    };
    with(&|e| e.max_length = 4);
    with(&|e| e.completion_only_loss = false);
    with(&|e| e.assistant_only_loss = false);
    let model = super::folder(super::main_checkpoint());
    let of_model = || Tokenizer::from_dir(model.path()).ok();
    with(&|e| e.tokenizer = of_model());
    let known = std::fs::read(&cache).unwrap();
    std::fs::write(model.path().join("chat_template.jinja"), "{{ 1 }}").unwrap();
    with(&|e| e.tokenizer = of_model());
    assert_ne!(std::fs::read(&cache).unwrap(), known, "another template");
    // The other part of a split has as many rows.
    let halves = Dataset::stream(&path, encoder(99)).unwrap().split(0.5, 1).unwrap();
    for half in [halves.0, halves.1] {
        let found = half.lengths_cached(&cache).unwrap();
        assert_eq!(found, half.lengths().unwrap());
    }
    std::fs::write(&path, rows(&[row(2), row(3)])).unwrap();
    let changed = lengths().unwrap();
    assert_ne!(changed, first);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let nowhere = dir.path().join("no/lengths.bin");
    let data = Dataset::stream(&path, encoder(99)).unwrap();
    common::refused(data.lengths_cached(&nowhere), &["no/lengths.bin"]);
}
