//! Rows, tokenizers, chat templates, masks, batches and order. `golden/data.json` has
//! small tokenizers and what Transformers makes of them; `golden/data.py` wrote it.
mod cells;
mod errors;
mod hostile;
mod large;
mod plan;
mod prefix;
mod preview;
mod questions;
mod special;
mod stream;
mod templates;
mod tokenizers;
mod turns;

use downhill::data::{Batch, Dataset, Example, IGNORED, Message, Tokenizer, order};
use downhill::tch::{Device, Kind, Tensor};
use serde_json::{Value, json};
use std::{collections::HashSet, fs, path::PathBuf, sync::LazyLock};
use tempfile::TempDir;

static GOLDEN: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../golden/data.json")).expect("golden file")
});

fn golden() -> &'static [Value] {
    GOLDEN["checkpoints"].as_array().expect("checkpoints")
}

/// The checkpoint that most tests use: byte-level BPE, BOS by `add_bos_token`, a chat
/// template with DeepSeek's token names.
fn main_checkpoint() -> &'static Value {
    &golden()[0]
}

fn folder(golden: &Value) -> TempDir {
    let dir = tempfile::tempdir().expect("folder");
    for (name, text) in golden["files"].as_object().expect("files") {
        fs::write(dir.path().join(name), text.as_str().expect("text"))
            .expect("write");
    }
    dir
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(folder(main_checkpoint()).path()).expect("tokenizer")
}

fn ids(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .expect("ids")
        .iter()
        .map(|id| id.as_i64().expect("id"))
        .collect()
}

fn messages(value: &Value) -> Vec<Message> {
    let text = |m: &Value, field: &str| m[field].as_str().expect("text").to_string();
    let turns = value.as_array().expect("messages").iter();
    turns.map(|m| Message::new(text(m, "role"), text(m, "content"))).collect()
}

/// A file with the given bytes, and the folder that keeps it.
fn file(bytes: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("rows.jsonl");
    fs::write(&path, bytes).expect("write");
    (dir, path)
}

const VOCAB: i64 = 300;

fn load(bytes: impl AsRef<[u8]>, max_length: usize) -> downhill::Result<Dataset> {
    let (_dir, path) = file(bytes);
    Dataset::load(path, Some(&tokenizer()), max_length, VOCAB)
}

fn rows(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[test]
fn ids_equal_transformers() {
    for checkpoint in golden() {
        let name = &checkpoint["name"];
        let tokenizer =
            Tokenizer::from_dir(folder(checkpoint).path()).expect("load");
        let special = &checkpoint["special"];
        assert_eq!(tokenizer.bos_id(), special[0].as_i64(), "{name}");
        assert_eq!(Some(tokenizer.eos_id()), special[1].as_i64(), "{name}");
        for case in checkpoint["texts"].as_array().expect("texts") {
            let text = case["text"].as_str().expect("text");
            let expected = ids(&case["ids"]);
            let found = tokenizer.encode(text, true);
            // The one difference, on purpose: never two BOS.
            if expected.len() > 1 && expected[0] == expected[1] {
                crate::common::refused(found, &["twice"]);
            } else {
                assert_eq!(found.unwrap(), expected, "{name} {text}");
            }
            let bare = tokenizer.encode(text, false).unwrap();
            assert_eq!(bare, ids(&case["bare"]), "{name} {text}");
            let decoded = tokenizer.decode(&ids(&case["ids"])).unwrap();
            assert_eq!(
                Some(decoded.as_str()),
                case["decoded"].as_str(),
                "{name} {text}"
            );
        }
    }
}

#[test]
fn chats_equal_transformers() {
    let mut compared = 0;
    for checkpoint in golden() {
        let dir = folder(checkpoint);
        let tokenizer = Tokenizer::from_dir(dir.path()).expect("load");
        for case in checkpoint["chats"].as_array().expect("chats") {
            let messages = messages(&case["messages"]);
            if case["generation"] == json!(false) {
                // Seen whole only through a row; those have an assistant's turn.
                let (_dir, path) =
                    file(json!({"messages": case["messages"]}).to_string());
                let Ok(data) = Dataset::load(path, Some(&tokenizer), 999, VOCAB)
                else {
                    continue;
                };
                assert_eq!(data.examples[0].ids, ids(&case["ids"]), "{case}");
            } else if let Some(text) = case["text"].as_str() {
                let prompt = tokenizer.chat_prompt(&messages).unwrap().unwrap();
                assert_eq!(prompt, text, "{}", checkpoint["name"]);
                let found = tokenizer.encode(&prompt, false).unwrap();
                assert_eq!(found, ids(&case["ids"]), "{}", checkpoint["name"]);
                // A templated text gets no second BOS.
                let again = tokenizer.encode(&prompt, true);
                let adds = tokenizer.encode("x", true).unwrap()
                    != tokenizer.encode("x", false).unwrap();
                let has = found.first() == tokenizer.bos_id().as_ref();
                assert_eq!(again.is_err(), adds && has);
            } else {
                let refusal =
                    tokenizer.chat_prompt(&messages).unwrap_err().to_string();
                assert!(
                    refusal.contains(case["ids"][0].as_str().unwrap()),
                    "{refusal}"
                );
            }
            compared += 1;
        }
    }
    assert!(compared >= 20, "{compared} chats");
}

#[test]
fn assistant_turns_are_learned_as_transformers_marks_them() {
    for case in main_checkpoint()["learned"].as_array().expect("learned") {
        let data =
            load(json!({"messages": case["messages"]}).to_string(), 999).unwrap();
        let example = &data.examples[0];
        let mask = example.labels.iter().map(|&l| i64::from(l != IGNORED));
        assert_eq!(example.ids, ids(&case["ids"]));
        assert_eq!(mask.collect::<Vec<_>>(), ids(&case["mask"]));
        assert_eq!(example.target().last(), Some(&tokenizer().eos_id()));
    }
}

#[test]
fn a_chat_whose_template_lacks_the_eos_gets_one() {
    let dir = folder(main_checkpoint());
    let template = "{% for m in messages %}{{ m.role[0] ~ ':' ~ m.content ~ '\\n' }}\
                    {% endfor %}{% if add_generation_prompt %}a:{% endif %}";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let row = json!({"messages": [turn("user", "the"), turn("assistant", "hen")]});
    let (_dir, path) = file(row.to_string());
    let data = Dataset::load(&path, Some(&tokenizer), 99, VOCAB).unwrap();
    let mut target = tokenizer.encode("hen\n", false).unwrap();
    target.push(tokenizer.eos_id());
    assert_eq!(data.examples[0].target(), target);
}

#[test]
fn streamed_text_is_the_decoded_text_in_whole_characters() {
    for checkpoint in golden() {
        let tokenizer =
            Tokenizer::from_dir(folder(checkpoint).path()).expect("load");
        for case in checkpoint["texts"].as_array().expect("texts") {
            let ids = ids(&case["ids"]);
            let mut stream = tokenizer.stream();
            let pieces: Vec<String> =
                ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{pieces:?}");
            let text = pieces.concat() + &stream.finish().unwrap();
            assert_eq!(
                text,
                tokenizer.decode(&ids).unwrap(),
                "{}",
                checkpoint["name"]
            );
        }
    }
    // Two of the three bytes of a character: nothing until the end, then U+FFFD.
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("a日", false).unwrap();
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[0]).unwrap(), "a");
    assert_eq!(stream.push(ids[1]).unwrap() + &stream.push(ids[2]).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn masks_go_by_position() {
    let tokenizer = tokenizer();
    let (bos, eos) = (tokenizer.bos_id().unwrap(), tokenizer.eos_id());
    let eos_text = "<｜end▁of▁sentence｜>";
    // The prompt holds an EOS and the words of the completion: neither is learned.
    let prompt = format!("then{eos_text}the hen");
    let row = json!({"prompt": prompt, "completion": "the hen"});
    let example = load(row.to_string(), 99).unwrap().examples.remove(0);
    let before = tokenizer.encode(&prompt, true).unwrap();
    let mut after = tokenizer.encode("the hen", false).unwrap();
    after.push(eos);
    assert_eq!(before[0], bos);
    assert_eq!(example.prompt(), before);
    assert_eq!(example.target(), after);
    assert_eq!(example.ids, [before.clone(), after.clone()].concat());
    assert_eq!(example.labels, [vec![IGNORED; before.len()], after].concat());

    // A final EOS is not doubled, and a text is learned whole.
    let texts =
        [json!({"text": "the hen"}), json!({"text": format!("the hen{eos_text}")})];
    let data = load(rows(&texts), 99).unwrap();
    assert_eq!(data.examples[0].ids, data.examples[1].ids);
    assert_eq!(data.examples[0].labels, data.examples[0].ids);
    assert_eq!(data.examples[0].ids.last(), Some(&eos));

    // An empty prompt leaves the BOS, or nothing, in front.
    let row = json!({"prompt": "", "completion": "the hen"}).to_string();
    let example = load(row, 99).unwrap().examples.remove(0);
    assert_eq!(example.prompt(), [bos]);
}

#[test]
fn token_ids_need_no_tokenizer() {
    let row = json!({"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 8, -100],
                     "attention_mask": [1, 1, 1, 0]});
    let (_dir, path) = file(row.to_string());
    let data = Dataset::load(&path, None, 99, 9).unwrap();
    let expected = Example { ids: vec![5, 6, 7], labels: vec![-100, 6, 8], line: 1 };
    assert_eq!(data.examples, [expected]);
    assert_eq!((data.summary.tokens, data.summary.supervised), (3, 2));
}

#[test]
fn odd_files_that_are_fine() {
    let text = "\u{feff}{\"text\": \"the\"}\r\n\r\n   \n{\"text\": \"hen\"}\r\n\n{\"text\":\"a\"}";
    let data = load(text, 99).unwrap();
    let lines: Vec<usize> = data.examples.iter().map(|e| e.line).collect();
    assert_eq!((lines, data.summary.rows), (vec![1, 4, 6], 3));
}

#[test]
fn long_rows_are_cut_and_rows_without_a_label_skipped() {
    let row = |prompt: usize, completion: usize| json!({"prompt": "x".repeat(prompt), "completion": "y".repeat(completion)});
    // With the BOS: 1 + 3 + 3 + 1 = 8; the second loses its EOS, the third all labels.
    let data = load(rows(&[row(3, 3), row(3, 4), row(7, 1), row(1, 1)]), 8).unwrap();
    assert_eq!((data.summary.rows, data.examples.len()), (4, 3));
    assert_eq!(
        (&data.summary.truncated[..], &data.summary.skipped[..]),
        (&[2, 3][..], &[3][..])
    );
    assert_eq!(data.examples[1].ids.len(), 8);
    assert_ne!(data.examples[1].ids.last(), Some(&tokenizer().eos_id()));
    let summary = data.summary.to_string();
    assert_eq!(
        summary,
        "3 of 4 rows, 20 tokens, 10 learned; 2 cut to the length limit (line 2, 3); \
         1 skipped: no token to learn (line 3)"
    );

    // The first label is never predicted, so alone it does not count.
    let ids = |labels: [i64; 2]| json!({"input_ids": [4, 5], "labels": labels});
    let data =
        load(rows(&[ids([-100, -100]), ids([4, -100]), ids([-100, 5])]), 9).unwrap();
    assert_eq!((data.summary.skipped.len(), data.examples[0].line), (2, 3));
}

#[test]
fn many_rows_keep_their_order_and_the_first_error_is_told() {
    let row =
        |i: usize| json!({"input_ids": [i % 200, i / 200], "labels": [-100, 1]});
    let mut all: Vec<Value> = (0..5000).map(row).collect();
    let data = load(rows(&all), 9).unwrap();
    for (i, example) in data.examples.iter().enumerate() {
        assert_eq!((example.line, example.ids[0]), (i + 1, i as i64 % 200));
        assert_eq!(example.ids[1], i as i64 / 200);
    }
    all[4320] = json!({"input_ids": [1, 2], "labels": [1]});
    all[4321] = json!({"input_ids": [1, 2]});
    let message = load(rows(&all), 9).unwrap_err().to_string();
    assert!(message.contains("rows.jsonl:4321: `labels`"), "{message}");
}

#[test]
fn a_batch_holds_rows_end_to_end() {
    // The pad token is the EOS, and the EOS that ends a row is still learned.
    let eos = 2;
    let example = |ids: &[i64], line| Example {
        ids: ids.to_vec(),
        labels: [&[IGNORED], &ids[1..]].concat(),
        line,
    };
    let (long, mut short) =
        (example(&[1, 5, 6, 7, eos], 3), example(&[1, eos, eos], 8));
    short.labels[1] = IGNORED;
    let batch = Batch::collate(&[&long, &short]).to(Device::Cpu);
    assert_eq!(batch.ids, Tensor::from_slice(&[1i64, 5, 6, 7, 2, 1, 2, 2]));
    assert_eq!(batch.lengths, [5, 3]);
    // Where the successor is learned; never from one row into the next.
    assert_eq!(batch.learned, Tensor::from_slice(&[0i64, 1, 2, 3, 6]));
    assert_eq!(batch.targets, Tensor::from_slice(&[5i64, 6, 7, 2, 2]));
    assert_eq!(batch.ids.kind(), Kind::Int64);
    assert_eq!((batch.tokens(), batch.supervised()), (8, 5));
    assert_eq!(batch.lines, [3, 8]);
    let empty = Batch::collate(&[]);
    assert_eq!((empty.ids.size(), empty.tokens()), (vec![0], 0));
}

#[test]
fn order_depends_on_seed_and_epoch_only() {
    assert_eq!(order(4, 7, 3, false), [0, 1, 2, 3]);
    assert_eq!(order(0, 7, 0, true), Vec::<usize>::new());
    assert_eq!(order(100, 7, 3, true), order(100, 7, 3, true));
    let mut seen = HashSet::new();
    for seed in 0..20 {
        for epoch in 0..20 {
            let rows = order(100, seed, epoch, true);
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..100).collect::<Vec<_>>());
            assert!(
                seen.insert(rows),
                "seed {seed}, epoch {epoch} repeats an order"
            );
        }
    }
    // Every row is as likely at every place: 6000 orders of 4, 1500 expected per cell,
    // standard deviation 34; 170 is five of them.
    let mut counts = [[0_i64; 4]; 4];
    for epoch in 0..6000 {
        for (place, row) in order(4, 42, epoch, true).into_iter().enumerate() {
            counts[place][row] += 1;
        }
    }
    assert!(counts.iter().flatten().all(|&n| (n - 1500).abs() < 170), "{counts:?}");
    // Fixed for ever: runs that were saved go on by it.
    assert_eq!(order(8, 42, 0, true), [3, 5, 6, 4, 7, 1, 0, 2]);
}
