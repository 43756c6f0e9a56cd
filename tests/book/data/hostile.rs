//! Tokenizer files that would run for ever, take all memory, or contradict themselves.
use super::main_checkpoint;
use crate::common;
use downhill::data::{Dataset, Tokenizer};
use serde_json::{Value, json};
use std::fs;

/// The main checkpoint with its tokenizer.json changed.
fn changed(change: impl Fn(&mut Value)) -> downhill::Result<Tokenizer> {
    let dir = super::folder(main_checkpoint());
    let path = dir.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).expect("tokenizer.json");
    let mut file = serde_json::from_str(&text).expect("JSON");
    change(&mut file);
    fs::write(&path, file.to_string()).expect("tokenizer.json");
    Tokenizer::from_dir(dir.path())
}

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
        "invert": false,
    })
}

#[test]
fn an_expression_that_runs_away_names_file_and_row() {
    let tokenizer = changed(|file| file["pre_tokenizer"] = split("(a+)+$"))
        .expect("a tokenizer");
    let bad = json!({"text": "a".repeat(40) + "!"}).to_string();
    let (_dir, file) =
        super::file(json!({"text": "fine"}).to_string() + "\n" + &bad);
    let refused = Dataset::load(file, Some(&tokenizer), 99, 999);
    let words =
        ["rows.jsonl:2: `text` cannot be encoded", "tokenizer.json", "retry-limit"];
    common::refused(refused, &words);
    common::refused(
        tokenizer.encode(&("a".repeat(40) + "!"), true),
        &["cannot be encoded"],
    );
    assert!(tokenizer.encode("fine", true).is_ok());
}

#[test]
fn a_normalizer_that_grows_is_refused() {
    let double =
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let grown = |n: usize| {
        changed(|file| {
            let all = vec![double.clone(); n];
            file["normalizer"] = json!({"type": "Sequence", "normalizers": all});
        })
    };
    common::refused(grown(40), &["tokenizer.json", "times as long"]);
    assert_eq!(grown(3).expect("8 times").encode("a", false).expect("ids").len(), 8);
}

/// None of these may panic, abort or take gigabytes: each is an error, or works.
#[test]
fn damaged_tokenizers_are_errors() {
    let file = |change: &dyn Fn(&mut Value)| changed(change);
    let tokens = |id: Value| {
        move |file: &mut Value| {
            let list = file["added_tokens"].as_array_mut().expect("a list");
            let mut token = list[0].clone();
            token["id"] = id.clone();
            token["content"] = json!("<far>");
            list.push(token);
        }
    };
    let of = |model: Value| move |file: &mut Value| file["model"] = model.clone();
    let refused: [(&str, Box<dyn Fn(&mut Value)>); 8] = [
        ("id 2^40", Box::new(tokens(json!(1_u64 << 40)))),
        ("id -1", Box::new(tokens(json!(-1)))),
        ("vocab", Box::new(|file| file["model"]["vocab"]["a"] = json!("x"))),
        (
            "vocab id",
            Box::new(|file| file["model"]["vocab"]["a"] = json!(1_u64 << 33)),
        ),
        ("merge", Box::new(|file| file["model"]["merges"] = json!([["q", "zz"]]))),
        (
            "merge of three",
            Box::new(|file| file["model"]["merges"] = json!(["a b c"])),
        ),
        ("regex", Box::new(|file| file["pre_tokenizer"] = split("(a"))),
        ("kind", Box::new(of(json!({"type": "None", "vocab": {}})))),
    ];
    for (name, change) in refused {
        let message = common::refused(file(&*change), &["tokenizer.json"]);
        assert!(message.len() < 1000, "{name}: {message}");
    }
    let taken: [(&str, Box<dyn Fn(&mut Value)>); 6] = [
        ("id 10^9", Box::new(tokens(json!(1_000_000_000)))),
        (
            "id 2^32-1",
            Box::new(|file| file["model"]["vocab"]["zz"] = json!(u32::MAX)),
        ),
        ("unk", Box::new(|file| file["model"]["unk_token"] = json!("<nowhere>"))),
        (
            "unknown type",
            Box::new(of(json!({
                "type": "WordLevel", "vocab": {"a": 0, "<｜end▁of▁sentence｜>": 1},
                "unk_token": "<nowhere>",
            }))),
        ),
        (
            "unigram",
            Box::new(of(json!({
                "type": "Unigram", "unk_id": null, "byte_fallback": false,
                "vocab": [["a", -1.0], ["<｜end▁of▁sentence｜>", 0.0]],
            }))),
        ),
        (
            "strip",
            Box::new(|file| {
                let strip = json!({"type": "Strip", "content": "a", "start": 1u64 << 40, "stop": 9});
                file["decoder"] = strip;
            }),
        ),
    ];
    for (name, change) in taken {
        // A tokenizer, or a reason; and then ids, or a reason.
        match file(&*change) {
            Err(e) => assert!(e.to_string().contains("token"), "{name}: {e}"),
            Ok(tokenizer) => {
                if let Err(e) = tokenizer.encode("a zz 日", false) {
                    assert!(e.to_string().contains("encode"), "{name}: {e}");
                }
                if let Err(e) = tokenizer.decode(&[0, 1, 5]) {
                    assert!(e.to_string().contains("decode"), "{name}: {e}");
                }
            }
        }
    }
}
