//! Rows with labels, as JSON Lines and CSV.
use super::*;

const ROWS: &str = "rows.jsonl";
const SOUND: &str = "{\"text\": \"the hen\", \"label\": \"a\"}\n\
                     {\"text\": \"the end\", \"label\": \"b\"}\n";

#[track_caller]
fn refuses_task(task: &str, cases: &[(&str, String, &[&str])]) {
    let mut wrong = Vec::new();
    for (name, text, expected) in cases {
        let bench = Bench::new();
        let csv = text.starts_with("text") || text.starts_with("#csv");
        let file = if csv { "rows.csv" } else { ROWS };
        bench.put(file, text.trim_start_matches("#csv"));
        let flags = [format!("--task={task}"), format!("--train-file=@/{file}")];
        let flags = flags.each_ref().map(String::as_str);
        if let Some(what) = fault(&bench, bench.finetune(&flags), expected) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn classes() {
    let after = |row: &str| format!("{SOUND}{row}\n");
    let one = SOUND.replace("\"b\"", "\"a\"");
    refuses_task(
        "classification",
        &[
            ("no label", after(r#"{"text": "a"}"#), &["rows.jsonl:3", "`label`"]),
            ("no text", after(r#"{"label": "a"}"#), &["rows.jsonl:3", "`text`"]),
            ("null", after(r#"{"text": "a", "label": null}"#), &[":3", "`label`"]),
            ("NaN", after(r#"{"text": "a", "label": NaN}"#), &["rows.jsonl:3"]),
            ("empty", after(r#"{"text": "a", "label": " "}"#), &[":3", "`label`"]),
            ("a list", after(r#"{"text": "a", "label": ["a"]}"#), &[":3", "a list"]),
            ("true", after(r#"{"text": "a", "label": true}"#), &[":3", "`label`"]),
            ("no words", after(r#"{"text": "", "label": "a"}"#), &[":3", "`text`"]),
            ("number", after(r#"{"text": 3, "label": "a"}"#), &[":3", "`text`"]),
            ("not JSON", after("{\"text\": "), &["rows.jsonl:3"]),
            ("one class", one, &["rows.jsonl", "every row", "\"a\""]),
            (
                "prices",
                "{\"text\": \"a\", \"label\": 0.5}\n{\"text\": \"b\", \"label\": 1.5}"
                    .into(),
                &["rows.jsonl", "regression"],
            ),
            ("empty file", "\n".into(), &["rows.jsonl", "no row"]),
            (
                "an id too large",
                after(r#"{"input_ids": [1, 300], "label": "a"}"#),
                &["rows.jsonl:3", "300"],
            ),
            (
                "an id that is none",
                after(r#"{"input_ids": [1, "x"], "label": "a"}"#),
                &["rows.jsonl:3", "input_ids"],
            ),
            ("a file of numbers", "3\n".into(), &["rows.jsonl:1", "object"]),
        ],
    );
}

#[test]
fn tables() {
    refuses_task(
        "classification",
        &[
            ("header alone", "text,label\n".into(), &["rows.csv", "no row"]),
            ("no label", "text,class\na,b\n".into(), &["rows.csv:1", "`label`"]),
            ("no text", "#csvlabel,x\na,b\n".into(), &["rows.csv:1", "`text`"]),
            (
                "twice",
                "text,label,label\na,b,c\n".into(),
                &["rows.csv:1", "two columns"],
            ),
            (
                "a cell too many",
                "text,label\na,b\na,b,c\n".into(),
                &["rows.csv:3", "3 cells"],
            ),
            (
                "label missing",
                "text,label\na,b\n\nc,\n".into(),
                &["rows.csv:4", "`label`"],
            ),
            (
                "label NaN",
                "text,label\na,b\nc,NaN\n".into(),
                &["rows.csv:3", "`label`"],
            ),
            (
                "text missing",
                "text,label\na,b\n,b\n".into(),
                &["rows.csv:3", "`text`"],
            ),
            (
                "lines in quotes count",
                "text,label\n\"a\nb\",x\n\"c\",\n".into(),
                &["rows.csv:4", "`label`"],
            ),
        ],
    );
}

#[test]
fn numbers() {
    let row = |label: &str| format!("text,label\na,1.5\nb,{label}\n");
    refuses_task(
        "regression",
        &[
            ("a word", row("dear"), &["rows.csv:3", "\"dear\"", "finite"]),
            ("NaN", row("nan"), &["rows.csv:3", "`label`"]),
            ("infinite", row("inf"), &["rows.csv:3", "finite"]),
            ("too large for f32", row("1e39"), &["rows.csv:3", "finite"]),
            ("missing", row(""), &["rows.csv:3", "`label`"]),
        ],
    );
}

#[test]
fn a_label_of_the_eval_file_that_is_not_learned() {
    let bench = Bench::new();
    bench.put(ROWS, SOUND);
    bench.put("held.csv", "label,text\na,the hen\nc,the end\n");
    let flags = ["--task=classification", "--eval-file=@/held.csv"];
    let expected = ["held.csv:3", "\"c\"", "training", "a, b"];
    assert_eq!(fault(&bench, bench.finetune(&flags), &expected), None);
    // And with a label that is: it goes through, the columns in any order.
    bench.put("held.csv", "label,text,id\na,the hen,1\nb,\"the, end\",2\n");
    let output = finish(bench.finetune(&flags)).expect("ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("2 classes (a 1, b 1)"), "{text}");
    // The adapter knows its labels and its task.
    for (flags, expected) in [
        (
            &["--task=regression", "--init-adapter=@/out"][..],
            &["--task", "regression"][..],
        ),
        (&["--init-adapter=@/out"], &["--task", "causal-lm"]),
    ] {
        let other = ["--output-dir=@/other", "--logging-dir=@/other-logs"];
        let numbers = "{\"text\": \"a\", \"label\": 1}\n";
        bench.put("rows2.jsonl", numbers);
        let mut flags = [&other[..], flags].concat();
        if flags.iter().any(|f| f.contains("regression")) {
            flags.push("--train-file=@/rows2.jsonl");
        } else {
            bench.put("text.jsonl", "{\"text\": \"a b\"}\n");
            flags.push("--train-file=@/text.jsonl");
        }
        let output = finish(bench.finetune(&flags)).expect("ends");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in expected {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }
}
