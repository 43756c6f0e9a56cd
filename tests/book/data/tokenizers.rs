//! Ids of the tokenizers of every DeepSeek line. `golden/ch12_tokenizers.py` says where
//! they come from; ids are compared exactly.
use crate::common;
use crate::golden::{json, path, tensors};
use downhill::data::Tokenizer;
use downhill::tch::Tensor;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const BOS: &str = "<｜begin▁of▁sentence｜>";

/// The checkpoint's 200 strings and their ids.
fn compare(
    folder: &Path,
    checkpoint: &Value,
    strings: &[Value],
    golden: &HashMap<String, Vec<i64>>,
) {
    let name = checkpoint["name"].as_str().expect("a name");
    let tokenizer = Tokenizer::from_dir(folder).expect(name);
    let special = &checkpoint["special"];
    assert_eq!(tokenizer.bos_id(), special[0].as_i64(), "{name}");
    assert_eq!(Some(tokenizer.eos_id()), special[1].as_i64(), "{name}");
    let list = |part: &str| golden[&format!("{name}.{part}")].as_slice();
    let (all, mut from) = (list("ids"), 0);
    for (i, (string, &n)) in strings.iter().zip(list("lengths")).enumerate() {
        let text = string.as_str().expect("a string");
        let expected = &all[from..from + n as usize];
        from += n as usize;
        let found = tokenizer.encode(text, true);
        let bos = tokenizer.bos_id().expect("a BOS");
        if expected.starts_with(&[bos, bos]) {
            // The one difference, on purpose: never two.
            let why = common::refused(found, &["twice", BOS]);
            assert!(why.contains("take it out"), "{why}");
        } else {
            assert_eq!(found.expect(name), expected, "{name}: {text:?}");
        }
        let decoded = checkpoint["decoded"][i.to_string()].as_str().unwrap_or(text);
        let found = tokenizer.decode(expected).expect(name);
        assert_eq!(found, decoded, "{name}: {text:?}");
    }
    assert_eq!(from, all.len(), "{name}");
}

/// The golden ids and lengths.
fn lists() -> HashMap<String, Vec<i64>> {
    let list = |(name, t): (String, Tensor)| {
        let t = t.to_kind(tch::Kind::Int64);
        (name, Vec::try_from(t).expect("a list"))
    };
    tensors("ch12_tokenizers.safetensors").into_iter().map(list).collect()
}

/// Where `cargo xtask test` puts the real files; `DOWNHILL_TOKENIZERS` names another
/// place.
fn real_tokenizers() -> Option<PathBuf> {
    let near = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/tokenizers");
    let folder = std::env::var_os("DOWNHILL_TOKENIZERS").map_or(near, PathBuf::from);
    if folder.join("deepseek-r1/tokenizer.json").is_file() {
        return Some(folder);
    }
    common::skipped("tokenizers", "no real tokenizers in .tools/tokenizers");
    None
}

#[test]
fn ids_of_every_line_equal_transformers() {
    let Some(folder) = real_tokenizers() else { return };
    let (golden, ids) = (json("ch12_tokenizers.json"), lists());
    let strings = golden["strings"].as_array().expect("strings");
    let checkpoints = golden["checkpoints"].as_array().expect("checkpoints");
    assert!(strings.len() == 200 && checkpoints.len() >= 12);
    std::thread::scope(|scope| {
        for half in checkpoints.chunks(checkpoints.len().div_ceil(2)) {
            let (folder, strings, ids) = (&folder, &strings, &ids);
            scope.spawn(move || {
                for checkpoint in half {
                    let name = checkpoint["name"].as_str().expect("a name");
                    compare(&folder.join(name), checkpoint, strings, ids);
                }
            });
        }
    });
}

/// The tokenizers that are cut down to these strings and lie here.
#[test]
fn ids_of_two_lines_equal_transformers() {
    let (golden, ids) = (json("ch12_tokenizers.json"), lists());
    let strings = golden["strings"].as_array().expect("strings");
    let mut compared = 0;
    for checkpoint in golden["checkpoints"].as_array().expect("checkpoints") {
        let folder = match checkpoint["name"].as_str() {
            Some("deepseek-r1") => "ch12_r1",
            Some("deepseek-r1-0528-qwen3-8b") => "ch12_qwen3",
            _ => continue,
        };
        compare(&path(folder), checkpoint, strings, &ids);
        compared += 1;
    }
    assert_eq!(compared, 2);
}

#[test]
fn a_bos_of_ones_own_is_not_doubled() {
    // R1's configuration asks for a BOS, that of the Qwen3 distillation does not.
    let [r1, qwen] = ["ch12_r1", "ch12_qwen3"]
        .map(|name| Tokenizer::from_dir(path(name)).expect(name));
    let text = format!("{BOS}hello");
    let once = r1.encode(&text, false).expect("ids");
    assert_eq!(once.first(), r1.bos_id().as_ref());
    assert_eq!(once, r1.encode("hello", true).expect("ids"));
    common::refused(r1.encode(&text, true), &["twice"]);
    let once = qwen.encode(&text, true).expect("ids");
    assert_eq!(once.first(), qwen.bos_id().as_ref());
    common::refused(qwen.encode(&(BOS.to_string() + &text), true), &["twice"]);

    let row = |field: &str, rest: &str| format!("{{\"{field}\": \"{text}\"{rest}}}");
    let load = |row: &str, tokenizer: &Tokenizer| {
        let (_dir, file) = super::file(row);
        downhill::data::Dataset::load(file, Some(tokenizer), 99, 200_000)
    };
    let completion = r#", "completion": "hi""#;
    for (field, rest) in [("text", ""), ("prompt", completion)] {
        let bad = row(field, rest);
        let name = format!("`{field}` begins with {BOS} twice");
        common::refused(load(&bad, &r1), &["rows.jsonl:1: ", &name]);
        let ids = &load(&bad, &qwen).expect("a row").examples[0].ids;
        assert_eq!(ids[..2], once[..2], "one BOS is none too many");
    }
    let turns = format!(
        r#"{{"messages": [{{"role": "user", "content": "{text}"}},
            {{"role": "assistant", "content": "hi"}}]}}"#
    );
    let turns = turns.replace('\n', "").replace("<｜User｜>", "");
    // R1's template puts <｜User｜> between.
    assert!(load(&turns, &r1).is_ok());
    let system = turns.replace("\"user\"", "\"system\"");
    common::refused(load(&system, &r1), &["{`messages`} begins with", "twice"]);
    let given = r#"{"input_ids": [0, 0, 5], "labels": [-100, -100, 5]}"#;
    common::refused(load(given, &r1), &["`input_ids`", "twice"]);
}

#[test]
fn special_tokens_are_written_out_on_request() {
    let tokenizer = Tokenizer::from_dir(path("ch12_r1")).expect("R1");
    let found = tokenizer.encode("hello", true).expect("ids");
    assert_eq!(tokenizer.decode(&found).expect("text"), "hello");
    let all = tokenizer.decode_all(&found).expect("text");
    assert_eq!(all, format!("{BOS}hello"));
}
