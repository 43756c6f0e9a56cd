//! DeepSeek's chat templates: the text as jinja2 writes it, and the text to learn
//! from, which keeps reasoning.
use super::messages;
use crate::common;
use crate::golden::{json, path};
use downhill::data::{Dataset, IGNORED, Message, Tokenizer};
use serde_json::{Value, json};
use std::fs;

/// R1's tokenizer with another template.
fn with_template(template: &str) -> Tokenizer {
    let dir = tempfile::tempdir().expect("a folder");
    let from = path("ch12_r1");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), dir.path().join(file)).expect(file);
    }
    fs::write(dir.path().join("chat_template.jinja"), template).expect("a template");
    Tokenizer::from_dir(dir.path()).expect("a tokenizer")
}

/// The template of a checkpoint in the golden file.
fn template(name: &str) -> String {
    let golden = json("ch12_tokenizers.json");
    let all = golden["checkpoints"].as_array().expect("checkpoints").iter();
    let mut named = all.filter(|c| c["name"] == name);
    let template = named.next().expect(name)["template"].as_str();
    template.expect("a template").to_string()
}

/// A conversation's whole text, and what of it is learned, in pieces.
fn learned(template: &str, turns: &[(&str, &str)]) -> (String, Vec<String>) {
    let tokenizer = with_template(template);
    let turns = turns.iter();
    let turns = turns.map(|(r, c)| json!({"role": r, "content": c}));
    let row = json!({"messages": turns.collect::<Vec<_>>()}).to_string();
    let (_dir, file) = super::file(row);
    let data = Dataset::load(file, Some(&tokenizer), 999, 200_000).expect("a row");
    let row = &data.examples[0];
    let mut pieces = vec![];
    let mut from = 0;
    for part in row.labels.chunk_by(|a, b| (*a == IGNORED) == (*b == IGNORED)) {
        let ids = &row.ids[from..from + part.len()];
        if part[0] != IGNORED {
            assert_eq!(part, ids);
            pieces.push(tokenizer.decode_all(ids).expect("text"));
        }
        from += part.len();
    }
    (tokenizer.decode_all(&row.ids).expect("text"), pieces)
}

#[test]
fn rendered_chats_equal_jinja2() {
    let golden = json("ch12_tokenizers.json");
    let mut compared = 0;
    for checkpoint in golden["checkpoints"].as_array().expect("checkpoints") {
        let Some(template) = checkpoint["template"].as_str() else { continue };
        let tokenizer = with_template(template);
        for chat in checkpoint["chats"].as_array().expect("chats") {
            let given = messages(&chat["messages"]);
            let asked = tokenizer.chat_prompt(&given).expect("text");
            assert_eq!(asked.as_deref(), chat["texts"][1].as_str(), "{chat}");
            compared += 1;
        }
    }
    assert!(compared >= 100, "{compared} chats");
}

/// Where no reasoning is involved, the text to learn from is the template's own.
#[test]
fn learned_chats_equal_jinja2() {
    let golden = json("ch12_tokenizers.json");
    let mut compared = 0;
    for checkpoint in golden["checkpoints"].as_array().expect("checkpoints") {
        let (Some(template), Some(name)) =
            (checkpoint["template"].as_str(), checkpoint["name"].as_str())
        else {
            continue;
        };
        // R1's and its first distillations' put a thought before every answer.
        let thinks = template.contains("<｜Assistant｜><think>\\n");
        let tokenizer = with_template(template);
        for chat in checkpoint["chats"].as_array().expect("chats") {
            let turns = messages(&chat["messages"]);
            let answers: Vec<&Message> =
                turns.iter().filter(|m| m.role == "assistant").collect();
            let reasons = answers.iter().any(|m| m.content.contains("think>"));
            if thinks || reasons || answers.is_empty() {
                continue;
            }
            let row = json!({"messages": chat["messages"]}).to_string();
            let (_dir, file) = super::file(row);
            match Dataset::load(file, Some(&tokenizer), 999, 200_000) {
                Ok(data) => {
                    let ids = &data.examples[0].ids;
                    let text = tokenizer.decode_all(ids).expect("text");
                    let expected = chat["texts"][0].as_str().expect("text");
                    assert!(
                        text == expected
                            || text == format!("{expected}<｜end▁of▁sentence｜>"),
                        "{name}: {text:?}, not {expected:?}"
                    );
                    compared += 1;
                }
                // Templates without tools drop their turns, some all but the last
                // system's; vl2's ends every text with a question.
                Err(e) => {
                    let count =
                        |role| turns.iter().filter(|m| m.role == role).count();
                    let dropped = count("tool") > 0 || count("system") > 1;
                    assert!(dropped || name.ends_with("vl2-small"), "{name}: {e}");
                }
            }
        }
    }
    assert!(compared >= 40, "{compared} chats");
}

const ASK: &str = "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const THOUGHT: &str = "<think>\neasy\n</think>\n\n2";

#[test]
fn reasoning_is_kept_and_learned() {
    for name in ["deepseek-r1", "deepseek-r1-distill-qwen-7b"] {
        let template = template(name);
        let ask = format!("{ASK}<think>\n");
        // Written by the model in full, or as its programming interface gives it,
        // without the opening.
        for answer in [THOUGHT, "easy\n</think>\n\n2", "<think>easy\n</think>\n\n2"]
        {
            let (text, pieces) =
                learned(&template, &[("user", "1+1?"), ("assistant", answer)]);
            assert_eq!(text, format!("{ASK}{THOUGHT}{EOS}"), "{name} {answer:?}");
            assert_eq!(pieces, [format!("easy\n</think>\n\n2{EOS}")], "{name}");
            assert!(text.starts_with(&ask));
        }
        // No reasoning: an empty thought, so that the answer is taught to the prompt
        // that the model will be asked with.
        let (text, pieces) =
            learned(&template, &[("user", "1+1?"), ("assistant", "2")]);
        assert_eq!(text, format!("{ask}\n</think>\n\n2{EOS}"));
        assert_eq!(pieces, [format!("\n</think>\n\n2{EOS}")]);
    }
    // Qwen3's distillation writes the opening itself.
    let (text, pieces) = learned(
        &template("deepseek-r1-0528-qwen3-8b"),
        &[("user", "1+1?"), ("assistant", THOUGHT)],
    );
    assert_eq!(text, format!("{ASK}{THOUGHT}{EOS}"));
    assert_eq!(pieces, [format!("{THOUGHT}{EOS}")]);
}

#[test]
fn v31_thinks_where_the_answer_does() {
    let template = template("deepseek-v3.1");
    let one = [("user", "1+1?"), ("assistant", "<think>easy</think>2")];
    let (text, pieces) = learned(&template, &one);
    assert_eq!(text, format!("{ASK}<think>easy</think>2{EOS}"));
    assert_eq!(pieces, [format!("easy</think>2{EOS}")]);
    let (text, pieces) = learned(&template, &[("user", "1+1?"), ("assistant", "2")]);
    assert_eq!(text, format!("{ASK}</think>2{EOS}"));
    assert_eq!(pieces, [format!("2{EOS}")]);
    let both = [&one[..], &[("user", "2+2?"), ("assistant", "4")]].concat();
    let (text, pieces) = learned(&template, &both);
    let then = format!("<｜User｜>2+2?<｜Assistant｜></think>4{EOS}");
    assert_eq!(text, format!("{ASK}<think>easy</think>2{EOS}{then}"));
    assert_eq!(pieces, [format!("easy</think>2{EOS}"), format!("4{EOS}")]);
}

#[test]
fn every_turn_keeps_its_reasoning() {
    let turns = [
        ("user", "1+1?"),
        ("assistant", THOUGHT),
        ("user", "2+2?"),
        ("assistant", "<think>\ntwo and two\n</think>\n\n4"),
    ];
    let (text, pieces) = learned(&template("deepseek-r1"), &turns);
    let then = "<｜User｜>2+2?<｜Assistant｜><think>\ntwo and two\n</think>\n\n4";
    assert_eq!(text, format!("{ASK}{THOUGHT}{EOS}{then}{EOS}"));
    let second = format!("two and two\n</think>\n\n4{EOS}");
    assert_eq!(pieces, [format!("easy\n</think>\n\n2{EOS}"), second]);
    // The user's words are left alone, tags or not.
    let quoted = [("user", "what does </think> do?"), ("assistant", THOUGHT)];
    let (text, _) = learned(&template("deepseek-r1"), &quoted);
    assert!(text.contains("<｜User｜>what does </think> do?<｜Assistant｜><think>"));
}

/// The first ids of a row are those that the model is asked with: no token reaches
/// from the prompt into the answer.
#[test]
fn the_prompt_of_a_row_is_the_prompt_of_generation() {
    for name in
        ["deepseek-r1", "deepseek-v3.1", "deepseek-v2", "deepseek-coder-33b-base"]
    {
        let tokenizer = with_template(&template(name));
        let turns = [Message::new("user", "1+1?"), Message::new("assistant", "2")];
        let row = json!({"messages": [{"role": "user", "content": "1+1?"},
                                      {"role": "assistant", "content": "2"}]});
        let (_dir, file) = super::file(row.to_string());
        let data = Dataset::load(file, Some(&tokenizer), 999, 200_000).expect(name);
        let asked = tokenizer.chat_prompt(&turns[..1]).expect("text").expect("text");
        let asked = tokenizer.encode(&asked, false).expect("ids");
        assert_eq!(data.examples[0].prompt(), asked, "{name}");
    }
}

#[test]
fn whole_conversations_and_prompts_are_learned_on_request() {
    let tokenizer = Tokenizer::from_dir(path("ch12_r1")).expect("R1");
    let rows: [Value; 2] = [
        json!({"messages": [{"role": "user", "content": "1+1?"},
                            {"role": "assistant", "content": "2"}]}),
        json!({"prompt": "1+1?", "completion": "2"}),
    ];
    for row in rows {
        let (_dir, file) = super::file(row.to_string());
        let mut encoder =
            downhill::data::RowEncoder::new(Some(&tokenizer), 99, 200_000);
        let masked = Dataset::read(&file, encoder.clone()).expect("rows");
        assert!(masked.examples[0].labels.contains(&IGNORED));
        encoder.assistant_only_loss = false;
        encoder.completion_only_loss = false;
        let whole = Dataset::read(&file, encoder).expect("rows");
        assert_eq!(whole.examples[0].labels, whole.examples[0].ids);
        assert_eq!(whole.examples[0].ids, masked.examples[0].ids);
    }
}

#[test]
fn a_template_that_asks_otherwise_is_refused() {
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] \
                    {{ m.content }}{% endfor %}{% if add_generation_prompt %}\
                    <think>{% endif %}";
    let row = json!({"messages": [{"role": "user", "content": "1+1?"},
                                  {"role": "assistant", "content": "2"}]});
    let (_dir, file) = super::file(row.to_string());
    let tokenizer = with_template(template);
    let refused = Dataset::load(file, Some(&tokenizer), 999, 200_000);
    common::refused(refused, &["`messages[1]` (assistant)", "another prompt"]);
}
