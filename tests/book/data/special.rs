//! Special tokens that only the files beside tokenizer.json name: the ids are those of
//! Transformers 5.17 on the same files.
use crate::common;
use downhill::data::Tokenizer;
use serde_json::{Value, json};
use std::{fs, path::Path};

const TEXT: &str = "a <|im_start|> user x<|im_end|> b<tool>";
/// With both tokens, with the second alone, with neither.
const BOTH: [i64; 13] =
    [64, 220, 2046, 722, 264, 220, 87, 2047, 270, 27, 83, 1689, 29];
const NONE: [i64; 26] = [
    64, 220, 27, 91, 321, 62, 313, 523, 91, 29, 722, 264, 220, 87, 27, 91, 321, 62,
    417, 91, 29, 270, 27, 83, 1689, 29,
];

fn second() -> Vec<i64> {
    [&NONE[..14], &[2047], &NONE[21..]].concat()
}

fn token(text: &str, more: Value) -> Value {
    let mut token = json!({
        "content": text, "lstrip": false, "rstrip": false, "normalized": false,
        "single_word": false,
    });
    for (key, value) in more.as_object().expect("an object") {
        token[key] = value.clone();
    }
    token
}

/// The tiny checkpoint's tokenizer, with the chat tokens in the vocabulary alone (or
/// nowhere), `config` over its own, and other files beside it.
fn with(
    config: Value,
    files: &[(&str, Value)],
    known: bool,
) -> downhill::Result<Tokenizer> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny");
    let read = |name: &str| -> Value {
        let text = fs::read_to_string(from.join(name)).expect(name);
        serde_json::from_str(&text).expect(name)
    };
    let mut file = read("tokenizer.json");
    let mut own = read("tokenizer_config.json");
    let own = own.as_object_mut().expect("an object");
    own.remove("added_tokens_decoder");
    let added = file["added_tokens"].as_array_mut().expect("a list");
    added.retain(|token| token["id"].as_u64().is_some_and(|id| id < 2046));
    for token in added.clone() {
        let text = token["content"].as_str().expect("text");
        file["model"]["vocab"][text] = token["id"].clone();
    }
    if known {
        file["model"]["vocab"]["<|im_start|>"] = json!(2046);
        file["model"]["vocab"]["<|im_end|>"] = json!(2047);
    }
    for (key, value) in config.as_object().expect("an object") {
        own.insert(key.clone(), value.clone());
    }
    let dir = tempfile::tempdir().expect("a folder");
    let own = Value::Object(own.clone());
    for (name, value) in [("tokenizer.json", &file), ("tokenizer_config.json", &own)]
    {
        fs::write(dir.path().join(name), value.to_string()).expect(name);
    }
    for (name, value) in files {
        fs::write(dir.path().join(name), value.to_string()).expect(name);
    }
    Tokenizer::from_dir(dir.path())
}

#[test]
fn chat_tokens_are_one_id_wherever_they_are_named() {
    let [start, end] = ["<|im_start|>", "<|im_end|>"];
    let plain = || json!({});
    let (a, b) = (token(start, plain()), token(end, plain()));
    let map = "special_tokens_map.json";
    let (s, e) = (
        token(start, json!({"special": true})),
        token(end, json!({"special": true})),
    );
    let cases: Vec<(Value, Vec<(&str, Value)>, bool, Vec<i64>)> = vec![
        (json!({}), vec![], true, NONE.to_vec()),
        (
            json!({"additional_special_tokens": [start, end]}),
            vec![],
            true,
            BOTH.to_vec(),
        ),
        (json!({"additional_special_tokens": [a, b]}), vec![], true, BOTH.to_vec()),
        (json!({"extra_special_tokens": [start, end]}), vec![], true, BOTH.to_vec()),
        (
            json!({"extra_special_tokens": {"a_token": start, "b_token": end}}),
            vec![],
            true,
            BOTH.to_vec(),
        ),
        (json!({"a_token": start, "b_token": end}), vec![], true, BOTH.to_vec()),
        (json!({"sep_token": end, "cls_token": start}), vec![], true, BOTH.to_vec()),
        (json!({"unk_token": end}), vec![], true, second()),
        (
            json!({"added_tokens_decoder": {"2046": s, "2047": e}}),
            vec![],
            true,
            BOTH.to_vec(),
        ),
        // The vocabulary's id counts, not the one named here.
        (
            json!({"added_tokens_decoder": {"100": s, "2047": e}}),
            vec![],
            true,
            BOTH.to_vec(),
        ),
        (
            json!({"added_tokens_decoder": {
                "2046": token(start, json!({"special": true, "lstrip": true, "rstrip": true})),
                "2047": token(end, json!({"special": false})),
            }}),
            vec![],
            true,
            [&[64, 2046, 465], &BOTH[4..]].concat(),
        ),
        (
            json!({}),
            vec![(
                map,
                json!({"extra_special_tokens": [start, token(end, plain())]}),
            )],
            true,
            BOTH.to_vec(),
        ),
        // With an added_tokens_decoder the map says nothing more.
        (
            json!({"added_tokens_decoder": {"2047": e}}),
            vec![(map, json!({"additional_special_tokens": [start]}))],
            true,
            second(),
        ),
        (
            json!({}),
            vec![("added_tokens.json", json!({start: 2046, end: 2047}))],
            false,
            BOTH.to_vec(),
        ),
        (
            json!({}),
            vec![("added_tokens.json", json!({"<tool>": 3000}))],
            true,
            [&NONE[..22], &[2048]].concat(),
        ),
    ];
    for (config, files, known, ids) in cases {
        let tokenizer = with(config.clone(), &files, known).expect("a tokenizer");
        let found = tokenizer.encode(TEXT, false).expect("ids");
        assert_eq!(found, ids, "{config} {files:?}");
    }
}

#[test]
fn an_eos_or_bos_may_stand_in_the_map_alone() {
    let map = |value: Value| vec![("special_tokens_map.json", value)];
    let end = token("<|im_end|>", json!({}));
    let of = |config: Value, value: Value| {
        let tokenizer = with(config, &map(value), true).expect("a tokenizer");
        (tokenizer.bos_id(), tokenizer.eos_id())
    };
    assert_eq!(of(json!({}), json!({})), (Some(2043), 2044));
    assert_eq!(of(json!({}), json!({"eos_token": end})), (Some(2043), 2047));
    let bos = json!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"});
    assert_eq!(of(json!({}), bos.clone()), (Some(2046), 2047));
    // tokenizer_config.json with its added_tokens_decoder decides.
    let decided = json!({"added_tokens_decoder": {"2047": end}});
    assert_eq!(of(decided.clone(), bos.clone()), (Some(2043), 2044));
    // But a text has an end, wherever that is named.
    let mut open = decided;
    open["eos_token"] = Value::Null;
    assert_eq!(of(open, bos), (Some(2043), 2047));
    let null = json!({"bos_token": null});
    let never = json!({"add_bos_token": false});
    assert_eq!(of(never, null), (None, 2044));
    let flags = with(
        json!({"eos_token": token("<|im_end|>", json!({"lstrip": true}))}),
        &[],
        true,
    )
    .expect("a tokenizer");
    let ids = flags.encode("a <|im_end|>", false).expect("ids");
    assert_eq!(ids, [64, 2047], "the token takes the space before it");
}

#[test]
fn what_is_no_token_is_refused_by_file_and_key() {
    let refused = |config: Value, files: &[(&str, Value)], words: &[&str]| {
        common::refused(with(config, files, true), words);
    };
    let config = "tokenizer_config.json";
    refused(
        json!({"added_tokens_decoder": [1]}),
        &[],
        &[config, "added_tokens_decoder"],
    );
    refused(json!({"added_tokens_decoder": {"x": "a"}}), &[], &[config, "\"x\""]);
    refused(json!({"added_tokens_decoder": {"1": 5}}), &[], &[config, "`content`"]);
    refused(
        json!({"extra_special_tokens": 5}),
        &[],
        &[config, "extra_special_tokens"],
    );
    refused(json!({"extra_special_tokens": [[]]}), &[], &[config, "`content`"]);
    let files = [("added_tokens.json", json!({"<a>": "b"}))];
    refused(json!({}), &files, &["added_tokens.json", "<a>", "a token id"]);
}
