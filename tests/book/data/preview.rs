//! The command's side of the data: `preview`, and the flags of `finetune` that say how
//! rows are put together. Runs the real binary.
use crate::common::write_checkpoint;
use crate::train::{finetune, ok};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

fn preview(model: &Path, rows: &str, flags: &[&str]) -> Output {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, rows).unwrap();
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.arg("preview").arg("--model").arg(model).arg("--train-file").arg(path);
    c.args(flags).output().unwrap()
}

fn tiny() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny")
}

#[test]
fn preview_shows_ids_text_and_mask() {
    let row = json!({"prompt": "The hen says: ", "completion": "egg"}).to_string();
    let out = preview(&tiny(), &row, &[]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let tokenizer = downhill::data::Tokenizer::from_dir(tiny()).unwrap();
    let ids = |text, bos| {
        let ids = tokenizer.encode(text, bos).unwrap();
        ids.iter().map(i64::to_string).collect::<Vec<_>>().join(" ")
    };
    let (prompt, answer) = (ids("The hen says: ", true), ids("egg", false));
    let eos = tokenizer.eos_id();
    assert!(text.contains(&format!("ids   {prompt} [[{answer} {eos}]]")), "{text}");
    let begin = "<｜begin▁of▁sentence｜>The hen says: ";
    let end = "[[egg<｜end▁of▁sentence｜>]]";
    assert!(text.contains(&format!("text  {begin}{end}")), "{text}");
    // What is one token, and what only reads so.
    let names = |text: &str, bos| {
        let ids = tokenizer.encode(text, bos).unwrap();
        let names = ids.iter().map(|&id| tokenizer.token(id).unwrap());
        names.collect::<Vec<_>>().join(" ")
    };
    let (prompt, answer) = (names("The hen says: ", true), names("egg", false));
    let tokens = format!("token {prompt} [[{answer} <｜end▁of▁sentence｜>]]");
    assert!(text.contains(&tokens), "{text}");
    assert!(
        text.contains("1 of 1 rows") && text.contains("tokens per row"),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "colour in a pipe: {text}");
    // No tokenizer: ids alone.
    let model = TempDir::new().unwrap();
    write_checkpoint(model.path(), 3);
    let row = r#"{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}"#;
    let out = preview(model.path(), &format!("{row}\n{row}"), &["--rows", "1"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("ids   5 [[6]] 7\n") && !text.contains("text "), "{text}");
    assert_eq!(text.matches("line ").count(), 1, "{text}");
}

#[test]
fn preview_lists_bad_rows() {
    let rows = "{\"text\": \"fine\"}\n{\"text\": 3}\nno\n{\"texts\": \"a\"}\n";
    let check = |rows: &str, flags: &[&str]| {
        let out = preview(&tiny(), rows, &[&["--check"], flags].concat());
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (code, text) = check(rows, &[]);
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "rows.jsonl:2: `text` is 3",
        "rows.jsonl:3: not a JSON object",
        "rows.jsonl:4: found `texts`",
        "1 of 1 rows",
        "3 bad rows",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let (_, text) = check(rows, &["--limit", "1"]);
    assert!(text.contains("2 more bad rows") && !text.contains(":3:"), "{text}");
    let (code, text) = check("{\"text\": \"fine\"}\n", &[]);
    assert!(code == Some(0) && text.contains("0 bad rows"), "{text}");
    let out = preview(&tiny(), rows, &[]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && error.contains("rows.jsonl:2"), "{error}");
}

/// The adapter after a few steps with these flags.
fn trained(flags: &[&str]) -> std::collections::HashMap<String, tch::Tensor> {
    let dir = TempDir::new().unwrap();
    let usual =
        ["--lora-dropout", "0", "--save-strategy", "no", "--warmup-ratio", "0"];
    let text =
        ok(finetune(dir.path(), &[&usual[..], flags].concat()).output().unwrap());
    if flags.contains(&"--packing") {
        assert!(text.contains(" packs, "), "{text}");
    }
    let file = dir.path().join("out/adapter_model.safetensors");
    downhill::checkpoint::read_safetensors(&file).unwrap()
}

fn same(
    a: &std::collections::HashMap<String, tch::Tensor>,
    b: &std::collections::HashMap<String, tch::Tensor>,
) {
    for (name, t) in a {
        let apart = (t - &b[name]).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{name}: {apart}");
    }
}

#[test]
fn packs_in_other_micro_batches_give_the_same_update() {
    let split = |size: &str, steps: &str| {
        trained(&[
            "--packing",
            "--max-length",
            "48",
            "--max-steps",
            "3",
            "--per-device-train-batch-size",
            size,
            "--gradient-accumulation-steps",
            steps,
        ])
    };
    let whole = split("8", "1");
    same(&whole, &split("2", "4"));
    same(&whole, &split("1", "8"));
}

/// All rows in one step: packed, by length, or one by one.
#[test]
fn packed_and_grouped_rows_give_the_same_update() {
    let all = |flags: &[&str], accumulation: &str| {
        let one = ["--max-steps", "1", "--max-length", "64"];
        let size = ["--per-device-train-batch-size", "64"];
        let n = ["--gradient-accumulation-steps", accumulation];
        trained(&[&one[..], &size, &n, flags].concat())
    };
    let alone = all(&[], "8");
    same(&alone, &all(&["--packing"], "8"));
    same(&alone, &all(&["--group-by-length"], "8"));
}

#[test]
fn part_of_the_rows_is_kept_for_measuring() {
    let dir = TempDir::new().unwrap();
    let flags = ["--validation-split", "0.25", "--max-steps", "1"];
    let eval = ["--eval-strategy", "steps", "--eval-steps", "1"];
    let text =
        ok(finetune(dir.path(), &[&flags[..], &eval].concat()).output().unwrap());
    assert!(text.contains("rows are kept for measuring"), "{text}");
    assert!(text.contains("eval loss"), "{text}");
    for (flags, parts) in [
        (&["--validation-split", "1.5"][..], "--validation-split: 1.5"),
        (&["--validation-split", "0.1", "--eval-file", "x"], "one of both"),
        (&["--packing", "--group-by-length"], "--group-by-length"),
    ] {
        let out = finetune(dir.path(), flags).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && text.contains(parts), "{text}");
    }
}

#[test]
fn a_packed_run_resumes_to_the_same_bits() {
    let (whole, broken) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let flags = ["--packing", "--max-length", "48", "--max-steps", "6"];
    let save =
        ["--save-strategy", "steps", "--save-steps", "2", "--lora-dropout", "0.1"];
    let flags = [&flags[..], &save].concat();
    let adapter = |dir: &Path| {
        std::fs::read(dir.join("out/adapter_model.safetensors")).unwrap()
    };
    ok(finetune(whole.path(), &flags).output().unwrap());
    ok(finetune(broken.path(), &flags).output().unwrap());
    std::fs::remove_dir_all(broken.path().join("out/checkpoint-6")).unwrap();
    std::fs::remove_dir_all(broken.path().join("out/checkpoint-4")).unwrap();
    let resume = [&flags[..], &["--resume"]].concat();
    ok(finetune(broken.path(), &resume).output().unwrap());
    assert!(adapter(whole.path()) == adapter(broken.path()), "adapters differ");
    let other = [&flags[1..], &["--resume", "--packing=false"]].concat();
    let out = finetune(broken.path(), &other).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("--packing"), "{text}");
}
