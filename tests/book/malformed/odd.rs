//! Files that are none, or not as they are expected: pipes and devices, compressed and
//! marked texts, what a terminal would obey; and prompts from elsewhere.
use super::*;
use std::io::Write;

fn pipe(bench: &Bench, path: &str) {
    let _ = fs::remove_file(bench.at(path));
    let made = Command::new("mkfifo").arg(bench.at(path)).status();
    assert!(made.expect("mkfifo").success());
}

/// Opening a pipe waits for a writer, who may never come.
#[cfg(unix)]
#[test]
fn pipes_and_devices() {
    let mut wrong = Vec::new();
    for path in [
        "rows.jsonl",
        "model/config.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/chat_template.jinja",
        "model/generation_config.json",
        WEIGHTS,
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "run.toml",
        "held.jsonl",
    ] {
        let bench = Bench::new();
        pipe(&bench, path);
        let command = match path {
            path if path.starts_with("adapter") => {
                bench.generate(&["--adapter=@/adapter"])
            }
            "run.toml" => bench.finetune(&["--config=@/run.toml"]),
            "held.jsonl" => bench.finetune(&["--eval-file=@/held.jsonl"]),
            _ => bench.finetune(&[]),
        };
        wrong.extend(fault(&bench, command, &[path, "a pipe", "save what comes"]));
        if path == "rows.jsonl" {
            let flags = [
                "preview",
                "--model=@/model",
                "--train-file=@/rows.jsonl",
                "--check",
            ];
            wrong.extend(fault(&bench, bench.command(&flags), &[path, "a pipe"]));
        }
    }
    let bench = Bench::new();
    for (path, what) in [("/dev/zero", "a device"), ("@/model", "a directory")] {
        let command = bench.finetune(&[&format!("--train-file={path}")]);
        wrong.extend(fault(&bench, command, &[what, "expected a file"]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The mark of UTF-8 in front of every text that is read, and UTF-16 by its name.
#[test]
fn marks_and_other_encodings() {
    let texts = [
        "model/config.json",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "adapter/adapter_config.json",
        "rows.jsonl",
    ];
    let bench = Bench::new();
    for path in texts {
        bench.put(path, [b"\xef\xbb\xbf", &bench.read(path)[..]].concat());
    }
    bench.put("run.toml", "\u{feff}max-steps = 1\n");
    let flags = ["--config=@/run.toml", "--init-adapter=@/adapter"];
    let output = finish(bench.finetune(&flags)).expect("ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let mut wrong = Vec::new();
    for path in texts.into_iter().take(4) {
        let bench = Bench::new();
        let sound = String::from_utf8(bench.read(path)).unwrap();
        let utf16 = sound.encode_utf16().flat_map(u16::to_le_bytes);
        let utf16 = [0xff, 0xfe].into_iter().chain(utf16).collect::<Vec<u8>>();
        for (bytes, what) in [(utf16, "UTF-16"), (b"\x1f\x8b\x08".to_vec(), "gzip")]
        {
            bench.put(path, bytes);
            let command = bench.finetune(&["--init-adapter=@/adapter"]);
            wrong.extend(fault(&bench, command, &[path, what]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a file says reaches a terminal as text, and not without bound.
#[test]
fn messages_are_shown_not_obeyed() {
    let bench = Bench::new();
    let hostile = "\u{1b}[31mred\u{7}\u{202e}\u{9b}2J";
    for (path, json) in [
        ("model/config.json", json!({"model_type": hostile})),
        ("rows.jsonl", json!({hostile: 1})),
    ] {
        let bench = Bench::new();
        bench.put(path, json.to_string());
        let output = finish(bench.finetune(&[])).expect("ends");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("\\u{1b}[31mred"), "{text}");
        let seen = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
        assert!(text.chars().all(seen), "{text:?}");
    }
    let names: Vec<String> =
        (0..100_000).map(|i| format!("\"field {i}\":1")).collect();
    bench.put("rows.jsonl", format!("{{{}}}", names.join(",")));
    let parts = ["rows.jsonl:1", "`field 0`", "characters ...]", "expected"];
    assert_eq!(fault(&bench, bench.finetune(&[]), &parts), None);
    let tail = downhill::error::plain(&format!("{}the fix", "\u{1b}".repeat(9_000)));
    assert!(tail.len() < 2_200 && tail.ends_with("the fix"), "{tail}");
    assert_eq!(downhill::error::plain("a\tb\nc"), "a\\tb\\nc");
    assert_eq!(downhill::error::visible("a\tb\nc\r"), "a\tb\nc\\r");
}

/// What `generate` writes, or its exit code and message.
fn written(mut command: Command, stdin: &str) -> Result<String, String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().expect("downhill");
    let mut pipe = child.stdin.take().expect("stdin");
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().expect("ends");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn prompts() {
    let bench = Bench::new();
    bench.put("-the", "the hen");
    bench.put("prompt.txt", "the hen\r\n");
    bench.put("empty.txt", "\n");
    bench.put("latin.txt", b"caf\xe9");
    let ask = |flags: &[&str], stdin: &str| {
        let usual =
            ["generate", "--model=@/model", "--device=cpu", "--max-new-tokens=3"];
        written(bench.command(&[&usual[..], flags].concat()), stdin)
    };
    let expected = ask(&["--prompt", "the hen"], "").expect("text");
    for (flags, stdin) in [
        (&["--prompt", "-"][..], "the hen"),
        (&["--prompt", "-"], "the hen\n"),
        (&["--prompt=-"], "the hen\r\n"),
        (&["--prompt-file", "@/prompt.txt"], ""),
    ] {
        assert_eq!(ask(flags, stdin).as_ref(), Ok(&expected), "{flags:?}");
    }
    // A prompt may look like a flag.
    let equals = ask(&["--prompt=--the hen"], "").expect("text");
    assert_eq!(ask(&["--prompt", "--the hen"], ""), Ok(equals));
    assert!(ask(&["--prompt", "-foo"], "").is_ok());
    for (flags, parts) in [
        (&[][..], &["--prompt"][..]),
        (&["--prompt", "a", "--prompt-file", "@/prompt.txt"], &["--prompt-file"]),
        (&["--prompt", "-"], &["--prompt -", "empty"]),
        (&["--prompt-file", "@/empty.txt"], &["empty.txt", "empty"]),
        (&["--prompt-file", "@/nowhere.txt"], &["nowhere.txt"]),
        (&["--prompt-file", "@/latin.txt"], &["latin.txt", "byte 4", "UTF-8"]),
        (&["--prompt", "a", "--seed", "-1"], &["--seed", "-1"]),
        (&["--prompt", "a", "--temperature", "-1"], &["--temperature: -1"]),
    ] {
        let text = ask(flags, "").expect_err("accepted");
        for part in parts {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }
}

/// Beyond the positions that the model knows: said once, where it happens.
#[test]
fn more_than_the_model_knows() {
    let bench = Bench::new();
    let said = |tokens: &str| {
        let usual =
            ["generate", "--model=@/model", "--prompt=the hen", "--device=cpu"];
        let output = finish(bench.command(&[&usual[..], &[tokens]].concat()));
        let output = output.expect("ends");
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.matches("max_position_embeddings").count()
    };
    bench.set("model/config.json", "max_position_embeddings", json!(8));
    assert_eq!((said("--max-new-tokens=1"), said("--max-new-tokens=40")), (0, 1));
}

/// Rows that cannot be asked are found before the weights are read.
#[test]
fn rows_to_ask() {
    let bench = Bench::new();
    bench.put("held.jsonl", "{\"text\": \"the hen\"}\n");
    bench.tensors(WEIGHTS, |all| all[0].1 = all[0].1.full_like(f64::NAN));
    let parts = ["held.jsonl:1: ", "no prompt", "--predict-with-generate"];
    let flags = ["--eval-file=@/held.jsonl", "--predict-with-generate"];
    assert_eq!(fault(&bench, bench.finetune(&flags), &parts), None);
    let usual = ["evaluate", "--model=@/model", "--device=cpu"];
    let command = bench.command(&[&usual[..], &flags].concat());
    assert_eq!(fault(&bench, command, &parts), None);
}

/// Rows to measure on that are learned from too are counted.
#[test]
fn repeated_rows() {
    let bench = Bench::new();
    let two = "{\"prompt\": \"the hen 1\", \"completion\": \"end\"}\n\
               {\"prompt\": \"the hen 99\", \"completion\": \"end\"}\n";
    bench.put("held.jsonl", two);
    let output =
        finish(bench.finetune(&["--eval-file=@/held.jsonl"])).expect("ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 of the rows to measure on are among"), "{text}");
    // Paths in the line to try next are quoted where a shell would split them.
    let out = ["--output-dir=@/an output"];
    bench.put("rows.jsonl", format!("{}{}", bench.text("rows.jsonl"), two));
    let output = finish(bench.finetune(&out)).expect("ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("an output' --prompt"), "{text}");
    assert!(!text.contains("among the rows"), "{text}");
}

impl Bench {
    fn text(&self, path: &str) -> String {
        String::from_utf8(self.read(path)).expect("UTF-8")
    }
}

/// `preview` of rows with labels.
#[test]
fn rows_with_labels_are_shown() {
    let bench = Bench::new();
    let look = |flags: &[&str]| {
        let usual = ["preview", "--model=@/model", "--train-file=@/rows.csv"];
        let output = finish(bench.command(&[&usual[..], flags].concat()));
        let output = output.expect("ends");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).expect("UTF-8"))
    };
    bench.put("rows.csv", "text,label\nthe hen,1.0\nthe end,0.0\n");
    let (code, text) = look(&["--task=classification", "--rows=1"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("line 2: ") && text.contains("label 1\n"), "{text}");
    assert!(text.contains("the hen") && !text.contains("line 3"), "{text}");
    assert!(text.contains("2 classes (0 1, 1 1)"), "{text}");
    let (code, text) = look(&["--task=regression"]);
    assert!(code == Some(0) && text.contains("label 0\n"), "{text}");
    bench.put("rows.csv", "text,label\na,1\nb\n,0\nc,0\nd,\n");
    let (code, text) = look(&["--task=classification", "--check"]);
    assert_eq!(code, Some(1), "{text}");
    for part in [":3: 1 cells", ":4: `text`", ":6: `label`", "3 bad rows", "2 rows"]
    {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    let (code, text) = look(&["--task=classification"]);
    assert!(code == Some(1) && text.contains(":3: 1 cells"), "{text}");
}
