//! What a table may do to a row: line ends, quotation marks and bytes that other
//! parsers lose text over; and files that are no rows at all.
use super::{VOCAB, tokenizer};
use crate::common::refused;
use downhill::Result;
use downhill::data::{Column, Labels, Records, RowEncoder, Table, check};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

fn named(name: &str, bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("written");
    (dir, path)
}

/// The lines and first two cells of a table.
fn cells(bytes: impl AsRef<[u8]>) -> Result<Vec<(usize, String, String)>> {
    let (_dir, path) = named("rows.csv", bytes);
    let cell = |fields: &serde_json::Map<_, _>, name: &str| -> String {
        fields[name].as_str().expect("a cell").into()
    };
    let row = |record: Result<(usize, serde_json::Map<_, _>)>| {
        let (line, fields) = record?;
        Ok((line, cell(&fields, "a"), cell(&fields, "b")))
    };
    Records::open(path)?.map(row).collect()
}

fn row(line: usize, a: &str, b: &str) -> (usize, String, String) {
    (line, a.into(), b.into())
}

/// Python's csv and pandas end a row at any line end outside of quotes. Files that end
/// all lines alike are read as they read them.
#[test]
fn line_ends_are_those_of_the_file() {
    for end in ["\n", "\r\n", "\r", "\r\r\n"] {
        let text = ["a,b", "1,x", "", "\"2\nfor\",\"y\"", "3,z", ""].join(end);
        let found = cells(&text).expect(end);
        let lines: Vec<usize> = found.iter().map(|row| row.0).collect();
        let texts: Vec<_> = found.into_iter().map(|(_, a, b)| (a, b)).collect();
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(texts, [pair("1", "x"), pair("2\nfor", "y"), pair("3", "z")]);
        // A line feed in a cell is a line of its own only where lines end with it.
        let last = if end == "\r" { 5 } else { 6 };
        assert_eq!(lines, [2, 4, last], "{end:?}");
    }
    // Without a line end at the end, or with a carriage return alone.
    for text in ["a,b\n1,x", "a,b\n1,x\r", "a,b\r1,x", "\u{feff}a,b\r1,x\r"] {
        assert_eq!(cells(text).expect(text), [row(2, "1", "x")], "{text:?}");
    }
    // In quotes it belongs to the text.
    let found = cells("a,b\n1,\"x\ry\"\n").unwrap();
    assert_eq!(found, [row(2, "1", "x\ry")]);
    let found = cells("\u{feff}\"a\",\"b\"\n1,x\n").unwrap();
    assert_eq!(found, [row(2, "1", "x")]);
}

/// What would lose a part of a cell is refused by line: nothing goes in silence.
#[test]
fn text_that_a_parser_would_lose_is_refused() {
    let alone = "a carriage return alone";
    for (text, parts) in [
        ("a,b\n1,x\ry\n2,z\n", &["rows.csv:2: ", alone][..]),
        ("a,b\n0,w\n1,x\ry", &["rows.csv:3: ", alone]),
        ("a,b\r\n1,x\ry\r\n", &["rows.csv:2: ", alone]),
        ("a,b\n1\r2,x\n", &["rows.csv:2: ", alone]),
        ("a,b\r1,x\n2,y\r", &["rows.csv:2: a line feed", "alike"]),
        ("a,b\n1,\"x\"y\n", &["rows.csv:2: text goes on behind", "twice"]),
        ("a,b\n\"he said \"no\" to me\",x\n", &["rows.csv:2: text goes on"]),
        ("a,b\n1,\"x\n2,y\n", &["rows.csv:2: ", "never closed"]),
        ("a,b\n\"1,x\n2,\"y\"\n", &["rows.csv:2: "]),
        ("a,b\n1,x\0y\n", &["rows.csv:2: a NUL byte"]),
        ("a,b\n1\n", &["rows.csv:2: 1 cells"]),
        ("a,b\n1,2,3\n", &["rows.csv:2: 3 cells"]),
        ("a,a\n1,2\n", &["rows.csv:1: two columns are called `a`"]),
        ("a;b\n1;2\n", &["rows.csv:1: ", "';'", "commas"]),
        ("a|b\n1|2\n", &["rows.csv:1: ", "'|'", "commas"]),
        ("sep=,\na,b\n1,2\n", &["rows.csv:1: a hint for Excel"]),
    ] {
        refused(cells(text), parts);
        // The other reader of tables, where the fault is not one of headers.
        let (_dir, path) = named("rows.csv", text);
        if !text.starts_with("sep") && !parts[0].contains(":1: found") {
            let table = Table::read(&path, &[]);
            assert!(table.is_err() || text.contains(['|', ';']), "{text:?}");
        }
    }
    // White space behind a quoted cell is kept, as before.
    assert_eq!(cells("a,b\n\"1\" ,x\n").unwrap(), [row(2, "1 ", "x")]);
    assert_eq!(cells("a,b\n5\" wide,x\n").unwrap(), [row(2, "5\" wide", "x")]);
    let (_dir, path) = named("rows.csv", "a,b\r1,x\r\r2,y\r");
    let table = Table::read(&path, &[]).unwrap();
    assert_eq!(table.numbers("a").unwrap(), [1., 2.]);
    let strings = ["x", "y"].map(|s| Some(s.to_string())).to_vec();
    assert_eq!(*table.column("b").unwrap(), Column::Categories(strings));
    let (_dir, path) = named("rows.csv", "a,b\r1,x\r3\r");
    refused(Table::read(&path, &[]), &["rows.csv:3: 1 cells"]);
}

/// Every bad row is listed, not the first alone.
#[test]
fn bad_cells_are_listed() {
    let text = "prompt,completion\nq,a\rb\nq,a\nq,\"a\"b\nq,a\n";
    let (_dir, path) = named("rows.csv", text);
    let mut lines = vec![];
    let encoder = RowEncoder::new(Some(&tokenizer()), 99, VOCAB);
    let found = check(&path, &encoder, &mut |row| lines.push(row.line)).unwrap();
    assert_eq!((found.0, found.1.rows, lines), (2, 2, vec![2, 4]));
}

fn json(bytes: impl AsRef<[u8]>) -> Result<Vec<serde_json::Value>> {
    let (_dir, path) = named("rows.jsonl", bytes);
    let row = |record: Result<(usize, serde_json::Map<_, _>)>| Ok(record?.1.into());
    Records::open(path)?.map(row).collect()
}

#[test]
fn lines_of_json() {
    use serde_json::json as value;
    let two = [value!({"text": "a"}), value!({"text": "b"})];
    for text in [
        "{\"text\":\"a\"}\r{\"text\":\"b\"}\r",
        "\u{feff}{\"text\":\"a\"}\r\n{\"text\":\"b\"}",
    ] {
        assert_eq!(json(text).expect(text), two);
    }
    // Both halves of a character, and a backslash that escapes nothing but itself.
    let text = r#"{"text": "\ud83d\ude00 \\ud83d \"\\"}"#;
    assert_eq!(json(text).unwrap(), [value!({"text": "😀 \\ud83d \"\\"})]);
    for (text, column) in [
        (r#"{"text": "half an emoji \ud83d here"}"#, 25),
        (r#"{"text": "\uDE00"}"#, 11),
        (r#"{"text": "\ud83d\ud83d\ude00"}"#, 11),
        (r#"{"text": "\ud83d\n"}"#, 11),
        (r#"{"text": "é\ud83d"}"#, 13),
    ] {
        let column = format!("(column {column}: ");
        let parts =
            ["rows.jsonl:1: ", &column, "half of a character", "take it out"];
        refused(json(text), &parts);
    }
    refused(json("[\n{\"text\": \"a\"}\n]"), &["rows.jsonl:1", "brackets"]);
}

#[test]
fn files_that_are_no_rows() {
    let utf16 = |text: &str| -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    let line = "{\"text\": \"a\"}\n";
    for (bytes, parts) in [
        (b"\x1f\x8b\x08\0".to_vec(), &["gzip", "gunzip"][..]),
        (b"\x28\xb5\x2f\xfd\0".to_vec(), &["zstd", "unzstd"]),
        (b"\xfd7zXZ\0\0".to_vec(), &["xz", "unxz"]),
        (b"BZh91AY".to_vec(), &["bzip2"]),
        (b"PK\x03\x04\0\0".to_vec(), &["zip", "xlsx", "CSV"]),
        (b"PAR1\x15\x04".to_vec(), &["Parquet", "to_json"]),
        (b"ARROW1\0\0".to_vec(), &["Arrow", "to_json"]),
        (b"version https://git-lfs.github.com".to_vec(), &["git lfs pull"]),
        ([b"\xff\xfe".to_vec(), utf16(line)].concat(), &["UTF-16", "as UTF-8"]),
        (utf16(line), &["UTF-16", "as UTF-8"]),
        (b"<!DOCTYPE html><html>".to_vec(), &["a web page"]),
    ] {
        for name in ["rows.jsonl", "rows.csv", "rows.jsonl.gz"] {
            let (_dir, path) = named(name, &bytes);
            refused(
                Records::open(&path).map(|_| ()),
                &[&[name][..], parts].concat(),
            );
        }
    }
    // A row without an end takes neither memory nor time.
    let long = format!("{{\"text\": \"{}\"}}", "a".repeat(9 << 20));
    refused(json(long), &["rows.jsonl:1: a row of more than 8 MiB", "split it"]);
    let open = format!("a,b\n1,x\n2,\"{}", "y,\n".repeat(3 << 20));
    refused(
        cells(open),
        &["rows.csv:3: a row of more than 8 MiB", "quotation mark"],
    );
}

#[test]
fn labels_that_are_one_class() {
    use downhill::data::Labelled;
    let tokenizer = tokenizer();
    let load = |name: &str, text: &str, wanted: &Labels| {
        let (_dir, path) = named(name, text);
        Labelled::load(path, Some(&tokenizer), (99, VOCAB), wanted)
    };
    let new = Labels::Classes(vec![]);
    let targets = |data: &Labelled| -> Vec<f64> {
        data.rows.iter().map(|row| row.target).collect()
    };
    let classes = |names: &[&str]| {
        Labels::Classes(names.iter().map(|n| n.to_string()).collect())
    };
    // pandas writes 1.0 for 1 where a label of the column was missing.
    let ints = load("a.csv", "text,label\na,1\nb,0\nc,1\n", &new).unwrap();
    assert_eq!(
        (&ints.labels, targets(&ints)),
        (&classes(&["0", "1"]), vec![1., 0., 1.])
    );
    for (name, text) in [
        ("a.csv", "text,label\na,1.0\nb,0.0\nc,1\n"),
        ("a.csv", "text,label\na,1.00\nb,-0.0\nc,1.\n"),
        (
            "a.jsonl",
            "{\"text\":\"a\",\"label\":1.0}\n{\"text\":\"b\",\"label\":\"0\"}\n\
             {\"text\":\"c\",\"label\":1}\n",
        ),
    ] {
        for wanted in [&new, &ints.labels] {
            let data = load(name, text, wanted).expect(text);
            assert_eq!(data.labels, ints.labels, "{text}");
            assert_eq!(targets(&data), [1., 0., 1.], "{text}");
        }
    }
    // Order is by size, and a name that looks like a number keeps its zeros.
    let data = load("a.csv", "text,label\na,10.0\nb,9.0\n", &new).unwrap();
    assert_eq!(data.labels, classes(&["9", "10"]));
    let data = load("a.csv", "text,label\na,01\nb,x1.0\n", &new).unwrap();
    assert_eq!(data.labels, classes(&["01", "x1.0"]));
    refused(
        load("a.csv", "text,label\na,1\nb,2\n", &ints.labels),
        &["a.csv:3", "\"2\"", "0, 1"],
    );
    refused(load("a.csv", "text,label\na,0.5\nb,1.0\n", &new), &["regression"]);
    // Truth values, of JSON or as Python writes them.
    let json = "{\"text\":\"a\",\"label\":true}\n{\"text\":\"b\",\"label\":false}\n";
    let truths = load("a.jsonl", json, &new).unwrap();
    assert_eq!(truths.labels, classes(&["false", "true"]));
    let python = "text,label\na,True\nb,False\n";
    for wanted in [&new, &truths.labels] {
        assert_eq!(targets(&load("a.csv", python, wanted).unwrap()), [1., 0.]);
    }
    let mixed = "{\"text\":\"a\",\"label\":true}\n{\"text\":\"b\",\"label\":0}\n";
    refused(load("a.jsonl", mixed, &new), &["a.jsonl:1: `label` is true", "have 0"]);
    // Names that an older adapter has are met as they stand.
    let known = classes(&["True", "1.0", "true"]);
    let data = load("a.csv", "text,label\na,true\nb,1\nc,True\n", &known).unwrap();
    assert_eq!(targets(&data), [2., 1., 0.]);
}
