//! Rows. (`data` tries many more, without the command.)
use super::*;

const ROWS: &str = "rows.jsonl";

#[test]
fn rows() {
    let file = |text: &'static str| move |b: &Bench| b.put(ROWS, text);
    refuses(&[
        ("absent", &|b| b.remove(ROWS), &["rows.jsonl"]),
        (
            "a folder",
            &|b| {
                b.remove(ROWS);
                fs::create_dir(b.at(ROWS)).unwrap();
            },
            &["rows.jsonl"],
        ),
        ("empty", &file(""), &["rows.jsonl", "empty"]),
        ("blank", &file("\n\n  \n"), &["rows.jsonl"]),
        (
            "the third line",
            &file("{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \n"),
            &["rows.jsonl:3"],
        ),
        ("not text", &|b| b.put(ROWS, [0xff, 0xfe, b'\n']), &["rows.jsonl:1"]),
        ("zeros", &|b| b.put(ROWS, [0; 4096]), &["rows.jsonl:1"]),
        ("CSV", &file("prompt,completion\nthe,hen\n"), &["rows.jsonl:1"]),
        ("one array", &file("[\n{\"text\": \"a\"}\n]\n"), &["rows.jsonl:1"]),
        ("no field", &file("{}"), &["rows.jsonl:1", "`prompt`"]),
        ("another field", &file(r#"{"instruction": "a"}"#), &["`instruction`"]),
        (
            "half a row",
            &file(r#"{"prompt": "a"}"#),
            &["rows.jsonl:1", "`completion`"],
        ),
        ("a number", &file(r#"{"text": 3}"#), &["rows.jsonl:1", "`text`"]),
        (
            "an id too large",
            &file(r#"{"input_ids": [1, 300], "labels": [1, 300]}"#),
            &["rows.jsonl:1", "300"],
        ),
        (
            "an id below 0",
            &file(r#"{"input_ids": [1, -1], "labels": [1, 2]}"#),
            &["rows.jsonl:1", "-1"],
        ),
        (
            "a label that is no id",
            &file(r#"{"input_ids": [1, 2], "labels": [1, -7]}"#),
            &["rows.jsonl:1", "-7"],
        ),
        (
            "ids and labels",
            &file(r#"{"input_ids": [1, 2, 3], "labels": [1, 2]}"#),
            &["rows.jsonl:1", "labels"],
        ),
        (
            "nothing to learn",
            &file(r#"{"input_ids": [1, 2], "labels": [-100, -100]}"#),
            &["rows.jsonl", "no row has a token to learn"],
        ),
        (
            "two kinds",
            &file("{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n"),
            &["rows.jsonl:2"],
        ),
        (
            "a turn without role",
            &file(r#"{"messages": [{"content": "a"}]}"#),
            &["rows.jsonl:1", "role"],
        ),
        ("no turns", &file(r#"{"messages": []}"#), &["rows.jsonl:1", "messages"]),
        ("deep", &|b| b.put(ROWS, "[".repeat(200_000)), &["rows.jsonl:1"]),
    ]);
}

#[test]
fn held_out_rows() {
    let bench = Bench::new();
    bench.put("held.jsonl", "{\"text\": 3}\n");
    let command = bench.finetune(&["--eval-file=@/held.jsonl"]);
    let wrong = fault(&bench, command, &["held.jsonl:1", "`text`"]);
    assert_eq!(wrong, None);
    let command = bench.finetune(&["--eval-file=@/nowhere.jsonl"]);
    assert_eq!(fault(&bench, command, &["nowhere.jsonl"]), None);
    // Held-out prompts cannot be answered without any.
    let command = bench.finetune(&["--predict-with-generate"]);
    assert_eq!(
        fault(&bench, command, &["--predict-with-generate", "--eval-file"]),
        None
    );
}
