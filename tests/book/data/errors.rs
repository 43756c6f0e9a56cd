//! Broken rows, files and tokenizers: each message names the file, the line and the
//! field.
use super::*;

/// Loads one bad line behind a good row of the same kind, and checks that the message
/// has the file, the line, and all of `expected`.
fn refuses(good: &str, bad: &str, expected: &[&str]) {
    let message = match load(format!("{good}\n{bad}\n"), 99) {
        Err(e) => e.to_string(),
        Ok(data) => panic!("{bad} was taken: {:?}", data.examples),
    };
    assert!(message.contains("rows.jsonl:2: "), "{bad}: {message}");
    for part in expected {
        assert!(message.contains(part), "{bad}: {part:?} is not in: {message}");
    }
}

const PROMPT: &str = r#"{"prompt": "the", "completion": "hen"}"#;
const TEXT: &str = r#"{"text": "hen"}"#;
const IDS: &str = r#"{"input_ids": [1, 2], "labels": [-100, 2]}"#;
const CHAT: &str = concat!(
    r#"{"messages": [{"role": "user", "content": "the"}, "#,
    r#"{"role": "assistant", "content": "hen"}, {"role": "user", "content": "a"}, "#,
    r#"{"role": "assistant", "content": "the end"}]}"#
);

#[test]
fn lines_that_are_no_object() {
    let one = "one whole object";
    refuses(TEXT, "{", &["column 1", one]);
    refuses(TEXT, r#"{"text": "hen""#, &["column 14", "EOF", one]);
    refuses(TEXT, r#"{"text": "hen",}"#, &["trailing comma", one]);
    refuses(TEXT, r#"{'text': 'hen'}"#, &["key must be a string", one]);
    refuses(
        TEXT,
        r#"{"text": "hen"} {"text": "hen"}"#,
        &["trailing characters", one],
    );
    refuses(TEXT, r#"{"text": NaN}"#, &["column 10", one]);
    refuses(TEXT, r#"{"text": "\ud800"}"#, &["column", one]);
    refuses(TEXT, "text,label", &["column 2", one]);
    refuses(TEXT, &"[".repeat(100_000), &["recursion limit", one]);
    refuses(TEXT, "[1, 2]", &["a list of 2", "one JSON object per line"]);
    refuses(TEXT, "\"hen\"", &["the string \"hen\"", "one JSON object per line"]);
    refuses(TEXT, "null", &["null", "one JSON object per line"]);
}

#[test]
fn rows_of_no_kind_or_of_two() {
    refuses(TEXT, "{}", &["no field", "`prompt`, `completion`"]);
    refuses(
        TEXT,
        r#"{"instruction": "a", "output": "b"}"#,
        &["`instruction`, `output`"],
    );
    refuses(PROMPT, r#"{"prompt": "the"}"#, &["`completion` is missing"]);
    refuses(PROMPT, r#"{"completion": "hen"}"#, &["`prompt` is missing"]);
    refuses(IDS, r#"{"labels": [1]}"#, &["`input_ids` is missing"]);
    refuses(IDS, r#"{"input_ids": [1]}"#, &["`labels` is missing"]);
    let extra = r#"{"prompt": "a", "completion": "b", "text": "c"}"#;
    refuses(PROMPT, extra, &["`text` does not belong"]);
    refuses(TEXT, r#"{"text": "a", "label": 1}"#, &["`label` does not belong"]);
    refuses(TEXT, PROMPT, &["`prompt`", "line 1 has {`text`}", "one kind"]);
}

#[test]
fn fields_of_the_wrong_type() {
    refuses(TEXT, r#"{"text": 3}"#, &["`text` is 3", "string"]);
    refuses(TEXT, r#"{"text": ["a"]}"#, &["`text` is a list of 1", "string"]);
    refuses(TEXT, r#"{"text": ""}"#, &["`text` is empty"]);
    refuses(PROMPT, r#"{"prompt": null, "completion": "b"}"#, &["`prompt` is null"]);
    refuses(
        PROMPT,
        r#"{"prompt": "a", "completion": ""}"#,
        &["`completion` is empty"],
    );
    refuses(
        PROMPT,
        r#"{"prompt": "a", "completion": {}}"#,
        &["`completion` is an object"],
    );
}

#[test]
fn conversations() {
    let chat = |turns: &str| format!(r#"{{"messages": {turns}}}"#);
    let refuses =
        |turns: &str, expected: &[&str]| refuses(CHAT, &chat(turns), expected);
    refuses("{}", &["`messages` is an object", "list"]);
    refuses("[]", &["`messages` is an empty list"]);
    refuses(r#"["hello"]"#, &["`messages[0]` is the string \"hello\""]);
    refuses(r#"[{"role": "user"}]"#, &["`messages[0].content` is missing"]);
    refuses(r#"[{"content": "a"}]"#, &["`messages[0].role` is missing"]);
    refuses(
        r#"[{"role": "human", "content": "a"}]"#,
        &["`messages[0].role` is \"human\"", "assistant"],
    );
    refuses(
        r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]"#,
        &["`messages[1].content` is null"],
    );
    refuses(
        r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]"#,
        &["`messages[1].content` is empty"],
    );
    refuses(
        r#"[{"role": "user", "content": "a", "name": "b"}]"#,
        &["`messages[0].name`", "only `role` and `content`"],
    );
    // This template drops the turns of a tool: they would be learned around without a
    // word.
    refuses(
        r#"[{"role": "tool", "content": "a"}]"#,
        &["`messages[0]` (tool)", "drops"],
    );
}

#[test]
fn templates_that_cannot_be_masked() {
    let refusal = |template: &str| {
        let dir = folder(main_checkpoint());
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let (_dir, path) = file(CHAT);
        Dataset::load(path, Some(&tokenizer), 99, VOCAB).unwrap_err().to_string()
    };
    let turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    // What is shown before the answer is not what stands before it in the row.
    let thinking =
        format!("{turns}{{% if add_generation_prompt %}}<think>{{% endif %}}");
    let message = refusal(&thinking);
    assert!(
        message.contains("rows.jsonl:1: `messages[1]` (assistant)"),
        "{message}"
    );
    assert!(message.contains("does not write in front"), "{message}");
    let later = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\
                 {% if loop.last and m.role == 'assistant' %}.{% endif %}{% endfor %}";
    let message = refusal(later);
    assert!(
        message.contains("rows.jsonl:1: `messages[1]` (assistant)"),
        "{message}"
    );
    assert!(message.contains("once a later one"), "{message}");
    let message = refusal("{{ raise_exception('no chats here') }}");
    assert!(message.contains("rows.jsonl:1: ") && message.contains("no chats here"));
    let message = refusal("{{ messages.nothing.there }}");
    assert!(
        message.contains("rows.jsonl:1: the chat template refuses"),
        "{message}"
    );
}

#[test]
fn token_ids() {
    let ids = |ids: &str, labels: &str| {
        format!(r#"{{"input_ids": {ids}, "labels": {labels}}}"#)
    };
    let refuses =
        |i: &str, l: &str, expected: &[&str]| refuses(IDS, &ids(i, l), expected);
    refuses("[1, 2]", "[1]", &["`labels` has 1", "`input_ids` 2"]);
    refuses("[1]", "[1, 2]", &["`labels` has 2", "`input_ids` 1"]);
    refuses("[]", "[]", &["`input_ids` is an empty list"]);
    refuses("[1, 300]", "[1, 2]", &["`input_ids[1]` is 300", "0 to 299"]);
    refuses("[-1, 2]", "[1, 2]", &["`input_ids[0]` is -1", "0 to 299"]);
    refuses("[1, 2]", "[-100, -1]", &["`labels[1]` is -1", "-100"]);
    refuses("[1, 2]", "[-100, 300]", &["`labels[1]` is 300", "-100"]);
    refuses("[1, 2.5]", "[1, 2]", &["`input_ids[1]` is 2.5", "integer"]);
    refuses("[1, true]", "[1, 2]", &["`input_ids[1]` is true", "integer"]);
    refuses("[1, \"2\"]", "[1, 2]", &["`input_ids[1]` is the string", "integer"]);
    refuses("[1, 2]", "[1, null]", &["`labels[1]` is null", "integer"]);
    refuses("[[1, 2]]", "[1, 2]", &["`input_ids[0]` is a list", "integer"]);
    refuses("[1, 99999999999999999999]", "[1, 2]", &["`input_ids[1]`", "integer"]);
    refuses("\"1 2\"", "[1, 2]", &["`input_ids` is the string", "list"]);
}

#[test]
fn attention_masks() {
    let refuses = |mask: &str, expected: &[&str]| {
        let row = format!(
            r#"{{"input_ids": [1, 2], "labels": [1, 2], "attention_mask": {mask}}}"#
        );
        refuses(IDS, &row, expected);
    };
    refuses("[1]", &["`attention_mask` has 1"]);
    refuses("[0, 1]", &["`attention_mask[0]` is 0", "padding on the right"]);
    refuses("[1, 2]", &["`attention_mask[1]` is 2"]);
    refuses("[0, 0]", &["`attention_mask` is all zeros"]);
}

#[test]
fn whole_files() {
    let refuses = |bytes: &[u8], max_length: usize, expected: &[&str]| {
        let message = load(bytes, max_length).unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    };
    refuses(b"", 99, &["rows.jsonl: empty"]);
    refuses(b"\n  \r\n", 99, &["rows.jsonl: empty"]);
    refuses(b"\xff\xfe{\0", 99, &["rows.jsonl:1: byte 1 is not UTF-8"]);
    refuses(
        b"{\"text\":\"a\"}\n{\"text\":\"\xe9\"}",
        99,
        &["rows.jsonl:2: byte 10"],
    );
    refuses(TEXT.as_bytes(), 1, &["--max-length: 1"]);
    let long = json!({"prompt": "x".repeat(9), "completion": "y"}).to_string();
    refuses(
        long.as_bytes(),
        8,
        &["rows.jsonl: no row", "1 were cut", "--max-length 8"],
    );
    let masked = json!({"input_ids": [1, 2], "labels": [1, -100]}).to_string();
    refuses(masked.as_bytes(), 8, &["rows.jsonl: no row", "of 1: a label that is"]);

    let missing =
        Dataset::load("no/such.jsonl", None, 9, 9).unwrap_err().to_string();
    assert!(missing.contains("no/such.jsonl: No such file"), "{missing}");
    let dir = tempfile::tempdir().unwrap();
    let folder = Dataset::load(dir.path(), None, 9, 9).unwrap_err().to_string();
    assert!(folder.contains("directory"), "{folder}");

    let (_dir, path) = file(TEXT);
    let message = Dataset::load(&path, None, 9, 9).unwrap_err().to_string();
    assert!(
        message.contains("rows.jsonl:1: {`text`} needs a tokenizer"),
        "{message}"
    );
    let message = Dataset::load(&path, Some(&tokenizer()), 9, 50).unwrap_err();
    assert!(message.to_string().contains("vocabulary of 50"), "{message}");
    let plain = Tokenizer::from_dir(super::folder(&golden()[3]).path()).unwrap();
    assert_eq!(plain.chat_prompt(&[Message::new("user", "a")]).unwrap(), None);
    let (_dir, path) = file(CHAT);
    let message =
        Dataset::load(&path, Some(&plain), 99, VOCAB).unwrap_err().to_string();
    assert!(message.contains("rows.jsonl:1: `messages` needs a chat template"));
}

/// The main checkpoint with one file written over, or removed.
fn with(name: &str, text: Option<&str>) -> downhill::Result<Tokenizer> {
    let dir = folder(main_checkpoint());
    match text {
        Some(text) => fs::write(dir.path().join(name), text).unwrap(),
        None => fs::remove_file(dir.path().join(name)).unwrap(),
    }
    Tokenizer::from_dir(dir.path())
}

#[test]
fn broken_tokenizers() {
    let refuses = |name: &str, text: Option<&str>, expected: &[&str]| {
        let Err(e) = with(name, text) else { panic!("{name} {text:?} was taken") };
        let message = e.to_string();
        assert!(message.contains(name), "{message}");
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    };
    refuses("tokenizer.json", None, &["not there", "save_pretrained"]);
    refuses("tokenizer.json", Some(""), &["not a tokenizer"]);
    refuses("tokenizer.json", Some("{}"), &["not a tokenizer"]);
    refuses("tokenizer.json", Some("[1]"), &["not a tokenizer"]);
    let whole = main_checkpoint()["files"]["tokenizer.json"].as_str().unwrap();
    refuses("tokenizer.json", Some(&whole[..whole.len() / 2]), &["not a tokenizer"]);
    // The engine itself panics on these two.
    let cut = whole.find("\"decoder\"").unwrap() + 20;
    refuses(
        "tokenizer.json",
        Some(&whole[..cut]),
        &["not a tokenizer", "EOF", "column"],
    );
    let torn =
        whole.replace("\"Ġthe\":259,", "").replace("\"Ġhen\":261", "\"z\":261");
    refuses("tokenizer.json", Some(&torn), &["contradicts itself"]);
    refuses("config.json", Some("{\"vocab_size\": "), &["not valid JSON"]);
    refuses("generation_config.json", Some("[]"), &["not a JSON object"]);

    let refuses = |text: &str, expected: &[&str]| {
        refuses("tokenizer_config.json", Some(text), expected);
    };
    let eos = "\"eos_token\": \"<｜end▁of▁sentence｜>\"";
    refuses("{", &["not valid JSON"]);
    refuses("{}", &["no EOS token", "generation_config.json"]);
    refuses(r#"{"eos_token": "<none>"}"#, &["`eos_token` is \"<none>\"", "has not"]);
    refuses(r#"{"eos_token": 3}"#, &["`eos_token` is 3", "`content`"]);
    refuses(
        &format!("{{{eos}, \"bos_token\": \"<b>\"}}"),
        &["`bos_token` is \"<b>\""],
    );
    refuses(&format!("{{{eos}, \"add_bos_token\": true}}"), &["no `bos_token`"]);
    refuses(&format!("{{{eos}, \"add_bos_token\": 1}}"), &["`add_bos_token` is 1"]);
    refuses(
        &format!("{{{eos}, \"chat_template\": \"{{% if %}}\"}}"),
        &["`chat_template` does not compile"],
    );
    refuses(
        &format!("{{{eos}, \"chat_template\": [1]}}"),
        &["`chat_template`", "default"],
    );
}

#[test]
fn the_eos_may_stand_in_the_models_files() {
    let dir = folder(main_checkpoint());
    fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"bos_token_id": 262}"#).unwrap();
    let generation = r#"{"eos_token_id": [263, 266, 9999]}"#;
    fs::write(dir.path().join("generation_config.json"), generation).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.eos_id(), 263);
    assert_eq!(tokenizer.bos_id(), Some(262));
    assert_eq!(tokenizer.stop_ids(), [263, 266], "9999 is no token");
    assert_eq!(tokenizer.vocab_size(), 267);
    // Nothing asks for the BOS here: tokenizer.json's post-processor does not put it.
    assert_eq!(tokenizer.encode("the", true).unwrap(), [257]);

    let generation = r#"{"eos_token_id": 9999}"#;
    fs::write(dir.path().join("generation_config.json"), generation).unwrap();
    let message =
        Tokenizer::from_dir(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("generation_config.json: `eos_token_id` is 9999"));
}
