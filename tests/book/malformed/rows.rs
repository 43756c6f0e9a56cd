//! Rows. (`data` tries many more, without the command.)
use super::*;

const ROWS: &str = "rows.jsonl";

#[test]
fn rows() {
    let file = |text: &'static str| move |b: &Bench| b.put(ROWS, text);
    refuses(&[
        ("absent", &|b| b.remove(ROWS), &["rows.jsonl"]),
        (
            "a folder",
            &|b| {
                b.remove(ROWS);
                fs::create_dir(b.at(ROWS)).unwrap();
            },
            &["rows.jsonl"],
        ),
        ("empty", &file(""), &["rows.jsonl", "empty"]),
        ("blank", &file("\n\n  \n"), &["rows.jsonl"]),
        (
            "the third line",
            &file("{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \n"),
            &["rows.jsonl:3"],
        ),
        ("not text", &|b| b.put(ROWS, [0xff, 0xfe, b'\n']), &["rows.jsonl:1"]),
        ("zeros", &|b| b.put(ROWS, [0; 4096]), &["rows.jsonl:1"]),
        ("CSV", &file("prompt,completion\nthe,hen\n"), &["rows.jsonl:1"]),
        ("one array", &file("[\n{\"text\": \"a\"}\n]\n"), &["rows.jsonl:1"]),
        ("no field", &file("{}"), &["rows.jsonl:1", "`prompt`"]),
        ("another field", &file(r#"{"instruction": "a"}"#), &["`instruction`"]),
        (
            "half a row",
            &file(r#"{"prompt": "a"}"#),
            &["rows.jsonl:1", "`completion`"],
        ),
        ("a number", &file(r#"{"text": 3}"#), &["rows.jsonl:1", "`text`"]),
        (
            "a field twice",
            &file(r#"{"text": "a", "text": "b"}"#),
            &["rows.jsonl:1", "`text` is there twice"],
        ),
        (
            "no turn of the assistant's",
            &file(r#"{"messages": [{"role": "user", "content": "a"}]}"#),
            &["rows.jsonl: no row has a token to learn, of 1", "assistant's turn"],
        ),
        (
            "an id too large",
            &file(r#"{"input_ids": [1, 300], "labels": [1, 300]}"#),
            &["rows.jsonl:1", "300"],
        ),
        (
            "an id below 0",
            &file(r#"{"input_ids": [1, -1], "labels": [1, 2]}"#),
            &["rows.jsonl:1", "-1"],
        ),
        (
            "a label that is no id",
            &file(r#"{"input_ids": [1, 2], "labels": [1, -7]}"#),
            &["rows.jsonl:1", "-7"],
        ),
        (
            "ids and labels",
            &file(r#"{"input_ids": [1, 2, 3], "labels": [1, 2]}"#),
            &["rows.jsonl:1", "labels"],
        ),
        (
            "nothing to learn",
            &file(r#"{"input_ids": [1, 2], "labels": [-100, -100]}"#),
            &["rows.jsonl", "no row has a token to learn"],
        ),
        (
            "two kinds",
            &file("{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n"),
            &["rows.jsonl:2"],
        ),
        (
            "a turn without role",
            &file(r#"{"messages": [{"content": "a"}]}"#),
            &["rows.jsonl:1", "role"],
        ),
        ("no turns", &file(r#"{"messages": []}"#), &["rows.jsonl:1", "messages"]),
        ("deep", &|b| b.put(ROWS, "[".repeat(200_000)), &["rows.jsonl:1"]),
    ]);
}

#[test]
fn held_out_rows() {
    let bench = Bench::new();
    bench.put("held.jsonl", "{\"text\": 3}\n");
    let command = bench.finetune(&["--eval-file=@/held.jsonl"]);
    let wrong = fault(&bench, command, &["held.jsonl:1", "`text`"]);
    assert_eq!(wrong, None);
    let command = bench.finetune(&["--eval-file=@/nowhere.jsonl"]);
    assert_eq!(fault(&bench, command, &["nowhere.jsonl"]), None);
    // Held-out prompts cannot be answered without any.
    let command = bench.finetune(&["--predict-with-generate"]);
    assert_eq!(
        fault(&bench, command, &["--predict-with-generate", "--eval-file"]),
        None
    );
}

/// CSV, by training and by looking.
#[test]
fn csv_rows() {
    let cases: [(&str, &[u8], &[&str]); 16] = [
        ("empty", b"", &["rows.csv: empty", "header"]),
        ("blank", b"\n\r\n \n", &["rows.csv: empty"]),
        ("no row", b"prompt,completion\n", &["rows.csv: empty"]),
        ("two columns of a name", b"text,text\na,b\n", &["rows.csv:1", "`text`"]),
        ("no header", b"the,hen\nthe,end\n", &["rows.csv:2", "`the`, `hen`"]),
        ("a cell too few", b"prompt,completion\nthe\n", &["rows.csv:2: 1 cells"]),
        ("a cell too many", b"text\nthe,hen\n", &["rows.csv:2: 2 cells", "quotes"]),
        ("tabs", b"prompt\tcompletion\nthe\then\n", &["rows.csv:1", "commas"]),
        (
            "an index",
            b",prompt,completion\n0,the,hen\n",
            &["rows.csv:2: a column without a name"],
        ),
        ("half a row", b"prompt\nthe\n", &["rows.csv:2", "`completion`"]),
        ("an empty cell", b"text\n\"\"\n", &["rows.csv:2: `text` is empty"]),
        ("an open quote", b"text\n\"the\nhen\n", &["rows.csv:2", "never closed"]),
        ("not text", b"text\na\n\xff\xfe\n", &["rows.csv:3", "UTF-8"]),
        ("a header that is not text", b"te\xffxt\na\n", &["rows.csv:1", "UTF-8"]),
        ("labels", b"text,label\nthe,1\n", &["rows.csv:2", "`label`"]),
        ("semicolons", b"prompt;completion\nthe;hen\n", &["prompt;completion"]),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, expected) in cases {
        let bench = Bench::new();
        bench.put("rows.csv", bytes);
        let train = bench.finetune(&["--train-file=@/rows.csv"]);
        let look = bench.command(&[
            "preview",
            "--model=@/model",
            "--train-file=@/rows.csv",
        ]);
        for command in [train, look] {
            if let Some(what) = fault(&bench, command, expected) {
                wrong.push(format!("{name}: {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Chat templates that cannot be trained on.
#[test]
fn chats() {
    let row = json!({"messages": [{"role": "user", "content": "the"},
                                  {"role": "assistant", "content": "hen"}]});
    let cases: [(&str, &str, &[&str]); 9] = [
        ("no template", "", &["rows.jsonl:1", "`messages[0]`", "drops"]),
        ("unclosed", "{% for m in messages %}", &["chat_template.jinja", "compile"]),
        ("an unknown tag", "{% frobnicate %}", &["chat_template.jinja", "compile"]),
        ("an unknown filter", "{{ messages | frobnicate }}", &["frobnicate"]),
        ("an undefined name", "{{ nothing.there }}", &["rows.jsonl:1", "refuses"]),
        ("a refusal", "{{ raise_exception('no') }}", &["rows.jsonl:1", "no"]),
        (
            "users only",
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            &["rows.jsonl:1", "`messages[1]` (assistant)", "drops"],
        ),
        (
            "another question",
            "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}\
             {% if add_generation_prompt %}bot:{% endif %}",
            &["rows.jsonl:1", "`messages[1]`", "another prompt"],
        ),
        (
            "for ever",
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}\
             {% endfor %}{% endfor %}",
            &["rows.jsonl:1", "refuses"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, template, expected) in cases {
        let bench = Bench::new();
        bench.put(ROWS, row.to_string());
        bench.put("model/chat_template.jinja", template);
        if let Some(what) = fault(&bench, bench.finetune(&[]), expected) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
