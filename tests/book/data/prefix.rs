//! Prompts with completions, and chats, with tokenizers that put something in front of a
//! text or change it. `golden/ch12_prefix.py` wrote the ids.
use crate::golden::json;
use downhill::data::{Dataset, Example, IGNORED, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

fn folder(case: &Value, template: Option<&Value>) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = case["config"].clone();
    if let Some(template) = template {
        config["chat_template"] = template.clone();
    }
    let write = |name: &str, value: &Value| {
        fs::write(dir.path().join(name), value.to_string()).expect(name);
    };
    write("tokenizer.json", &case["file"]);
    write("tokenizer_config.json", &config);
    dir
}

fn load(row: Value, tokenizer: &Tokenizer) -> Example {
    let (_dir, file) = super::file(row.to_string());
    let data = Dataset::load(file, Some(tokenizer), 999, 100_000);
    data.expect("a row").examples[0].clone()
}

/// The learned part, from the first learned token to the last.
fn mask(row: &Example) -> Vec<bool> {
    row.labels.iter().map(|&label| label != IGNORED).collect()
}

#[test]
fn completions_are_tokenized_as_the_whole_text() {
    let (mut same, mut cut) = (0, 0);
    for case in json("ch12_prefix.json").as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let tokenizer = Tokenizer::from_dir(folder(case, None).path()).expect(name);
        let eos = tokenizer.eos_id();
        for pair in case["pairs"].as_array().expect("pairs") {
            let row =
                json!({"prompt": pair["prompt"], "completion": pair["completion"]});
            let row = load(row, &tokenizer);
            let asked = super::ids(&pair["asked"]);
            let mut whole = super::ids(&pair["whole"]);
            let n = asked.len();
            assert_eq!(
                row.ids[..n],
                asked,
                "{name} {pair}: what the model is shown"
            );
            assert!(row.labels[..n].iter().all(|&label| label == IGNORED));
            assert_eq!(row.labels[n..], row.ids[n..], "{name} {pair}");
            if whole.starts_with(&asked) {
                if whole.last() != Some(&eos) {
                    whole.push(eos);
                }
                assert_eq!(row.ids, whole, "{name} {pair}");
                same += 1;
            } else {
                // A token of the whole would reach over the edge. The text is the same.
                assert_eq!(row.ids.last(), Some(&eos));
                let text = tokenizer.decode(&row.ids[..row.ids.len() - 1]);
                let text = text.expect("text").replace(' ', "");
                let expected = pair["text"].as_str().expect("text").replace(' ', "");
                // Wordpieces that begin a word are written apart from it.
                assert_eq!(text.replace("##", ""), expected, "{name} {pair}");
                cut += 1;
            }
        }
    }
    assert!(same >= 65 && cut >= 20, "{same} {cut}");
}

/// Behind a prompt nothing is put in front of what continues it, not even where the
/// text has to be cut.
#[test]
fn a_cut_completion_gets_no_space_of_its_own() {
    for case in json("ch12_prefix.json").as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        if name == "wordpiece" {
            continue;
        }
        let tokenizer = Tokenizer::from_dir(folder(case, None).path()).expect(name);
        let row = load(json!({"prompt": "the he", "completion": "n"}), &tokenizer);
        let text = tokenizer.decode(&row.ids).expect("text");
        assert_eq!(text.trim_start(), "the hen", "{name}: {:?}", row.ids);
    }
}

#[test]
fn chats_are_tokenized_whole_and_learned_from_where_they_are_asked() {
    let (mut same, mut cut) = (0, 0);
    for case in json("ch12_prefix.json").as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        for chat in case["chats"].as_array().expect("chats") {
            let dir = folder(case, Some(&chat["template"]));
            let tokenizer = Tokenizer::from_dir(dir.path()).expect(name);
            let row = load(json!({"messages": chat["messages"]}), &tokenizer);
            let asked = super::ids(&chat["asked"]);
            let Some(spans) = chat["spans"].as_array() else {
                assert_eq!(row.ids[..asked.len()], asked, "{name} {chat}");
                assert!(row.labels[..asked.len()].iter().all(|&l| l == IGNORED));
                cut += 1;
                continue;
            };
            let mut ids = super::ids(&chat["ids"]);
            if ids.last() != Some(&tokenizer.eos_id()) {
                ids.push(tokenizer.eos_id());
            }
            let mut learned = vec![false; ids.len()];
            for span in spans {
                let span = super::ids(span);
                learned[span[0] as usize..span[1] as usize].fill(true);
            }
            if let Some(last) = learned.last_mut() {
                *last = true;
            }
            assert_eq!(row.ids, ids, "{name} {chat}");
            assert_eq!(mask(&row), learned, "{name} {chat}");
            same += 1;
        }
    }
    assert!(same >= 22 && cut >= 8, "{same} {cut}");
}
