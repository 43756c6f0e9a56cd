//! Chat templates as Transformers renders them. `golden/ch12_templates.py` wrote the
//! texts.
use super::messages;
use crate::common;
use crate::golden::{json, path};
use downhill::data::{Dataset, Tokenizer};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// R1's cut-down tokenizer under another template, and other special tokens.
fn write(dir: &Path, file: &str, template: &str) {
    fs::copy(path("ch12_r1").join("tokenizer.json"), dir.join("tokenizer.json"))
        .expect("tokenizer.json");
    let added = ["<s>", "</s>", "<pad>"].map(|content| json!({"content": content}));
    let mut config = json!({
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "added_tokens_decoder": {"0": added[0], "1": added[1], "2": added[2]},
    });
    match file {
        "tokenizer_config.json" => config["chat_template"] = json!(template),
        "named" => {
            config["chat_template"] = json!([
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": template},
            ]);
        }
        file => fs::write(dir.join(file), template).expect(file),
    }
    fs::write(dir.join("tokenizer_config.json"), config.to_string())
        .expect("config");
}

fn with(file: &str, template: &str) -> Tokenizer {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), file, template);
    Tokenizer::from_dir(dir.path()).expect("a tokenizer")
}

#[test]
fn templates_render_as_in_transformers() {
    let golden = json("ch12_templates.json");
    let chats = golden["chats"].as_array().expect("chats");
    let (mut same, mut refused) = (0, 0);
    for case in golden["cases"].as_array().expect("cases") {
        let template = case["template"].as_str().expect("a template");
        let tokenizer = with("chat_template.jinja", template);
        let small = case["name"] == "small";
        for (chat, text) in
            chats.iter().zip(case["texts"].as_array().expect("texts"))
        {
            let found = tokenizer.chat_prompt(&messages(chat));
            match text.as_str() {
                Some(text) => {
                    let found = found.expect(template).expect("a template");
                    assert_eq!(found, text, "{template}");
                    same += 1;
                }
                None if small => {}
                None => {
                    assert!(found.is_err(), "{}: {chat}", case["name"]);
                    refused += 1;
                }
            }
        }
    }
    assert!(same >= 110 && refused >= 8, "{same} {refused}");
}

#[test]
fn line_ends_are_jinjas_wherever_the_template_stands() {
    let template = "{{ bos_token }}{% for m in messages %}\n{{ m.content }}\n\n\
                    {% endfor %}\n{% if add_generation_prompt %}\nA:\n{% endif %}\n";
    let turns = messages(&json!([{"role": "user", "content": "a\r\nb"}]));
    for file in ["chat_template.jinja", "tokenizer_config.json", "named"] {
        for end in ["\n", "\r\n", "\r"] {
            let tokenizer = with(file, &template.replace('\n', end));
            let text = tokenizer.chat_prompt(&turns).expect("text");
            // The row's own line ends are the row's.
            assert_eq!(text.as_deref(), Some("<s>a\r\nb\n\nA:\n"), "{file} {end:?}");
        }
    }
}

#[test]
fn dates_are_written_and_unknown_codes_refused() {
    let text = |template: &str| {
        with("chat_template.jinja", template).chat_prompt(&[]).map(Option::unwrap)
    };
    let date = text("{{ strftime_now('%A|%-d|%b|%p|%%') }}").expect("a date");
    let parts: Vec<&str> = date.split('|').collect();
    assert!(parts[0].ends_with("day") && parts[2].len() == 3, "{date}");
    assert!(parts[1].parse::<u8>().is_ok_and(|d| d < 32), "{date}");
    assert!(["AM", "PM"].contains(&parts[3]) && parts[4] == "%", "{date}");
    common::refused(text("{{ strftime_now('%Q') }}"), &["strftime_now", "%Q"]);
}

/// Templates that would never end, or take all memory or all of the stack.
#[test]
fn hostile_templates_are_refused_in_a_line() {
    let ns = "{% set ns = namespace(a=[1]) %}";
    let mut cases: Vec<(String, &str)> = [
        ("{% set ns.a = ns %}{{ ns }}", "a namespace is put into a namespace"),
        ("{% set l = {'k': [ns]} %}{% set ns.a = l %}{{ ns ~ '' }}", "a namespace"),
        (
            "{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}",
            "nests too deep",
        ),
        (
            "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}",
            "too many parts",
        ),
        (
            "{% set ns.a = 'aaaaaaaa' %}{% for i in range(60) %}\
             {% set ns.a = ns.a ~ ns.a %}{% endfor %}",
            "ran out of fuel",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ '{:>300000000}'.format(5) }}", "pads too far"),
        ("{{ 'a'.ljust(3000000000) }}", "fuel"),
        ("{{ raise_exception('\u{1b}[31mx' * 9999) }}", "\\u{1b}[31mx"),
    ]
    .map(|(template, why)| (format!("{ns}{template}"), why))
    .to_vec();
    cases.push((format!("{{{{ {}1 }}}}", "1+".repeat(60_000)), "a tag of it has"));
    cases.push(("{% if 0 %}".to_string() + &"{% elif 0 %}".repeat(60_000), "elif"));
    cases.push((format!("{{{{ {}1 }}}}", "(".repeat(5000)), "recursion"));
    cases.push(("x".repeat(2 << 20), "2097152 bytes"));
    for (template, why) in cases {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), "chat_template.jinja", &template);
        let refused =
            Tokenizer::from_dir(dir.path()).and_then(|t| t.chat_prompt(&[]));
        let message = common::refused(refused, &[why]);
        assert!(message.len() < 1000 && !message.contains(['\n', '\u{1b}']));
    }
}

/// Training's texts, too, are rendered under guard.
#[test]
fn a_row_names_the_template_that_refuses_it() {
    let template = "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}";
    let tokenizer = with("chat_template.jinja", template);
    let turn = |role: &str| json!({"role": role, "content": "a"});
    let row: Value = json!({"messages": [turn("user"), turn("assistant")]});
    let (_dir, file) = super::file(row.to_string());
    let refused = Dataset::load(file, Some(&tokenizer), 99, 200_000);
    common::refused(refused, &["rows.jsonl:1: ", "chat template", "namespace"]);
}
