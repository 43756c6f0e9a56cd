//! Classification and regression: beside PEFT, exact on resume, judged as scikit-learn
//! judges; what `evaluate` and the report say. Through the real command, on the small
//! checkpoint in `golden/train_taught`.
use crate::common::{refused, wave};
use crate::golden::{floats, gap, json, tensors};
use clap::Parser;
use downhill::checkpoint::read_safetensors;
use downhill::data::{Labelled, Labels};
use downhill::train::{Confusion, Settings, mae, r2, saved_labels};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const MODEL: &str = "tests/golden/train_taught";
const TASKS: [&str; 2] = ["classification", "regression"];

fn downhill(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.args(args).stdin(Stdio::null()).env("OMP_NUM_THREADS", "1");
    c
}

fn ok(output: Output) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    (out, err)
}

/// `finetune --task` into `dir/out` on the golden rows, with these flags.
fn finetune(task: &str, dir: &Path, flags: &[&str]) -> Command {
    let rows = format!("tests/golden/tasks_{task}/rows.jsonl");
    let mut c = downhill(&["finetune", "--model", MODEL, "--task", task]);
    c.args(["--train-file", &rows, "--device", "cpu"]);
    c.arg("--output-dir").arg(dir.join("out"));
    c.arg("--logging-dir").arg(dir.join("logs"));
    c.args(flags);
    c
}

fn state(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("out/trainer_state.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn adapter(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("out/adapter_model.safetensors")).unwrap()
}

/// The run that the golden script made with PEFT.
fn golden_run(task: &str, run: &Value, dir: &Path) -> Value {
    let rows = format!("tests/golden/tasks_{task}/rows.jsonl");
    let start = format!("tests/golden/tasks_{task}/adapter");
    let s = &run["settings"];
    let flags = [
        ("learning-rate", s["learning_rate"].to_string()),
        ("weight-decay", s["weight_decay"].to_string()),
        ("warmup-ratio", s["warmup_ratio"].to_string()),
        ("max-grad-norm", s["max_grad_norm"].to_string()),
        ("per-device-train-batch-size", s["batch"].to_string()),
        ("gradient-accumulation-steps", s["accumulation"].to_string()),
        ("max-steps", s["steps"].to_string()),
        ("load-in-4bit", run["load_in_4bit"].to_string()),
        ("init-adapter", start),
        ("eval-file", rows),
        ("shuffle", "false".into()),
        ("lora-dropout", "0".into()),
        ("save-strategy", "no".into()),
        ("eval-strategy", "epoch".into()),
    ];
    let flags = flags.map(|(name, value)| format!("--{name}={value}"));
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    if task == "classification" {
        // PEFT's folder does not say which score is which class.
        flags.push("--labels=many,none,one");
    }
    ok(finetune(task, dir, &flags).output().unwrap());
    state(dir)
}

#[test]
fn ten_steps_and_the_metrics_after_them_are_pefts() {
    for task in TASKS {
        let golden = json(&format!("tasks_{task}/expected.json"));
        for run in golden["runs"].as_array().unwrap() {
            let dir = TempDir::new().unwrap();
            let state = golden_run(task, run, dir.path());
            let history = state["log_history"].as_array().unwrap();
            let found = history.iter().filter(|e| e["loss"].is_f64());
            let found: Vec<_> = found.collect();
            let expected = run["log"].as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            let close = |what: &str, a: &Value, b: &Value, bound: f64| {
                let (a, b) = (a.as_f64().expect(what), b.as_f64().expect(what));
                let far = (a - b).abs();
                assert!(far <= bound * b.abs(), "{task} {what}: {a} for {b}");
            };
            for (a, b) in found.iter().zip(expected) {
                close("loss", &a["loss"], &b["loss"], 2e-5);
                close("norm", &a["grad_norm"], &b["grad_norm"], 2e-4);
                close("rate", &a["learning_rate"], &b["learning_rate"], 1e-12);
            }
            let (after, wanted) = (&state["eval_after"], &run["after"]);
            for (key, value) in wanted.as_object().unwrap() {
                match value {
                    Value::Array(_) => {
                        assert_eq!(&after[key], value, "{task} {key}")
                    }
                    _ => close(key, &after[key], value, 1e-4),
                }
            }
            assert!(state["eval_before"]["eval_loss"].is_f64());
            if run["load_in_4bit"] == true {
                continue;
            }
            let file = dir.path().join("out/adapter_model.safetensors");
            let ours = read_safetensors(&file).unwrap();
            let last = tensors(&format!("tasks_{task}/expected.safetensors"));
            assert_eq!(ours.len(), last.len());
            for (name, t) in last {
                let far = gap(&ours[&name], &t);
                assert!(far < 2e-3, "{task}: {name} is {far:.1e} from PEFT's");
            }
        }
    }
}

/// PEFT's own files say nothing of labels; ours do, in a `config.json` beside them.
#[test]
fn the_output_says_what_the_scores_mean() {
    let dir = TempDir::new().unwrap();
    let flags = ["--max-steps", "1", "--load-in-4bit", "false"];
    ok(finetune("classification", dir.path(), &flags).output().unwrap());
    let out = dir.path().join("out");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap()
    };
    let config = read("adapter_config.json");
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], serde_json::json!(["score"]));
    let config = read("config.json");
    assert_eq!(config["id2label"]["1"], "none");
    assert_eq!(config["label2id"]["one"], 2);
    assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
    let labels = saved_labels(&out).unwrap().unwrap();
    assert_eq!(labels.scores(), 3);
    let saved = read_safetensors(&out.join("adapter_model.safetensors")).unwrap();
    assert_eq!(saved["base_model.model.score.weight"].size(), [3, 64]);
    // It writes no text.
    let adapter = out.to_str().unwrap();
    let mut c = downhill(&["generate", "--model", MODEL, "--adapter", adapter]);
    let output = c.args(["--prompt", "a"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted");
    assert!(text.contains("tokenizer") || text.contains("evaluate"), "{text}");
}

#[test]
fn resumed_ends_with_the_same_bits() {
    for task in TASKS {
        let (whole, broken) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let rows = format!("tests/golden/tasks_{task}/rows.jsonl");
        let flags = [
            "--max-steps=6",
            "--save-strategy=steps",
            "--save-steps=2",
            "--lora-dropout=0.2",
            "--eval-file",
            &rows,
        ];
        for dir in [&whole, &broken] {
            ok(finetune(task, dir.path(), &flags).output().unwrap());
        }
        let kept = state(whole.path());
        for later in ["checkpoint-4", "checkpoint-6"] {
            std::fs::remove_dir_all(broken.path().join("out").join(later)).unwrap();
        }
        let again = [&flags[..], &["--resume"]].concat();
        let (_, said) = ok(finetune(task, broken.path(), &again).output().unwrap());
        assert!(said.contains("checkpoint-2"), "{said}");
        assert!(adapter(whole.path()) == adapter(broken.path()), "{task} differs");
        let found = state(broken.path());
        for key in ["eval_before", "eval_after"] {
            assert_eq!(kept[key], found[key], "{task}");
        }
    }
}

#[test]
fn other_micro_batches_give_the_same_update() {
    for task in TASKS {
        let split = |batch: &str, accumulation: &str| {
            let dir = TempDir::new().unwrap();
            let flags = [
                "--max-steps=3",
                "--warmup-ratio=0",
                "--lora-dropout=0",
                "--save-strategy=no",
                "--per-device-train-batch-size",
                batch,
                "--gradient-accumulation-steps",
                accumulation,
            ];
            ok(finetune(task, dir.path(), &flags).output().unwrap());
            let file = dir.path().join("out/adapter_model.safetensors");
            read_safetensors(&file).unwrap()
        };
        let whole = split("8", "1");
        for (batch, accumulation) in [("2", "4"), ("1", "8")] {
            for (name, t) in split(batch, accumulation) {
                let apart = (&whole[&name] - t).abs().max().double_value(&[]);
                let at = format!("{task}: {name} at {batch}x{accumulation}");
                assert!(apart < 1e-6, "{at}: {apart}");
            }
        }
    }
}

#[test]
fn part_of_the_rows_is_kept_for_measuring() {
    for task in TASKS {
        let path = format!("tests/golden/tasks_{task}/rows.jsonl");
        let wanted = match task {
            "regression" => Labels::Numbers,
            _ => Labels::Classes(vec![]),
        };
        let load = || Labelled::load(&path, None, (12, 64), &wanted).unwrap();
        let (all, (rest, held)) = (load(), load().split(0.2, 42).unwrap());
        assert_eq!((rest.rows.len(), held.rows.len()), (72, 18));
        assert!(all.labels == rest.labels && all.labels == held.labels);
        // Each row is in one of the two, in the file's order, cut or not.
        let lines = |data: &Labelled| data.rows.iter().map(|r| r.line).collect();
        let mut cut = [&rest.truncated[..], &held.truncated].concat();
        cut.sort_unstable();
        assert!(!cut.is_empty() && cut == all.truncated);
        let parts: [Vec<usize>; 2] = [lines(&rest), lines(&held)];
        assert!(parts.iter().all(|part| part.is_sorted()));
        let mut both = parts.concat();
        both.sort_unstable();
        assert_eq!(both, lines(&all));

        // A run with the flag is the run with the two parts as files.
        let dir = TempDir::new().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let text: Vec<&str> = text.lines().collect();
        let [rest, held] = parts.map(|lines| {
            let path = dir.path().join(format!("{}.jsonl", lines.len()));
            let rows: Vec<_> = lines.iter().map(|line| text[line - 1]).collect();
            std::fs::write(&path, rows.join("\n")).unwrap();
            path.to_str().unwrap().to_string()
        });
        let run = |flags: &[&str]| {
            let dir = TempDir::new().unwrap();
            let all = [&["--max-steps=3", "--save-strategy=no"], flags].concat();
            let mut c = downhill(&["finetune", "--model", MODEL, "--task", task]);
            c.args(["--device", "cpu"]).args(all);
            c.arg("--output-dir").arg(dir.path().join("out"));
            c.arg("--logging-dir").arg(dir.path().join("logs"));
            ok(c.output().unwrap());
            (adapter(dir.path()), state(dir.path())["eval_after"].clone())
        };
        let by_flag = run(&["--train-file", &path, "--validation-split=0.2"]);
        let by_file = run(&["--train-file", &rest, "--eval-file", &held]);
        assert!(by_flag.0 == by_file.0, "{task}: other weights");
        assert_eq!(by_flag.1, by_file.1, "{task}");
        refused(load().split(0.999, 1), &["--validation-split", "90 rows"]);
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_and_names_the_layer() {
    let dir = TempDir::new().unwrap();
    let flags = [
        "--learning-rate=1e300",
        "--warmup-ratio=0",
        "--max-steps=9",
        "--max-grad-norm=0",
        "--optim=sgd",
    ];
    let output = finetune("regression", dir.path(), &flags).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["step 2", "not finite", "layer at fault", "lines ["] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert!(dir.path().join("out/checkpoint-1/config.json").is_file());
}

#[test]
fn evaluate_finds_what_the_run_found() {
    // Quantized in another way than by default, it must be so in both.
    let other = ["--bnb-4bit-blocksize=32", "--bnb-4bit-use-double-quant=false"];
    for (task, quantized) in TASKS.into_iter().zip([&other[..0], &other]) {
        let dir = TempDir::new().unwrap();
        let rows = format!("tests/golden/tasks_{task}/rows.jsonl");
        let flags = ["--max-steps=2", "--eval-file", &rows];
        let mut c = finetune(task, dir.path(), &flags);
        ok(c.args(quantized).output().unwrap());
        let out = dir.path().join("out");
        let found = dir.path().join("found.json");
        let mut c = downhill(&["evaluate", "--model", MODEL, "--task", task]);
        c.args(["--eval-file", &rows, "--device", "cpu"]).arg("--adapter").arg(&out);
        c.args(["--per-device-eval-batch-size", "4", "--output-file"]).arg(&found);
        c.args(quantized);
        let (said, _) = ok(c.output().unwrap());
        assert!(said.starts_with("loss "), "{said}");
        let found: Value =
            serde_json::from_slice(&std::fs::read(found).unwrap()).unwrap();
        assert_eq!(found["rows"], 90);
        let after = &state(dir.path())["eval_after"];
        for (key, value) in after.as_object().unwrap() {
            assert_eq!(&found[key], value, "{task} {key}");
        }
    }
}

#[test]
fn evaluate_gives_a_language_models_loss_and_perplexity() {
    let dir = TempDir::new().unwrap();
    let rows = format!("{MODEL}/rows.jsonl");
    let found = dir.path().join("found.json");
    let mut c = downhill(&["evaluate", "--model", MODEL, "--eval-file", &rows]);
    ok(c.args(["--device", "cpu", "--output-file"]).arg(&found).output().unwrap());
    let found: Value =
        serde_json::from_slice(&std::fs::read(found).unwrap()).unwrap();
    let number = |key: &str| found[key].as_f64().unwrap();
    assert_eq!(number("eval_loss").exp(), number("eval_perplexity"));
    assert!(number("eval_loss") > 0.);

    for (flags, parts) in [
        (&["--task=classification"][..], &["--adapter"][..]),
        (
            &[
                "--task=classification",
                "--adapter",
                "tests/golden/train_taught/adapter",
            ],
            &["no score head", "causal-lm"],
        ),
        (
            &["--task=regression", "--predict-with-generate"],
            &["--predict-with-generate"],
        ),
        (&["--per-device-eval-batch-size=0"], &["--per-device-eval-batch-size"]),
        (
            &["--adapter", "tests/golden/tasks_regression/adapter"],
            &["modules_to_save", "score"],
        ),
    ] {
        let mut c = downhill(&["evaluate", "--model", MODEL, "--eval-file", &rows]);
        let output = c.args(["--device", "cpu"]).args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }
}

#[test]
fn metrics_by_hand() {
    // Rows by class: 3 of a (2 found), 1 of b (found as a), none of c, one taken for d.
    let pairs = [(0, 0), (0, 0), (0, 3), (1, 0)];
    let table = Confusion::count(5, pairs.into_iter());
    assert_eq!(table.accuracy(), 0.5);
    // a: 2·2 / (3 + 3), b and d: 0; c and e do not count.
    assert!((table.macro_f1() - (4. / 6.) / 3.).abs() < 1e-15);
    assert_eq!(table.0[0], [2, 0, 0, 1, 0]);
    let pairs = [(1., 2.), (3., 3.), (5., 2.)];
    assert!((mae(&pairs) - 4. / 3.).abs() < 1e-15);
    assert!((r2(&pairs).unwrap() - (1. - 10. / 8.)).abs() < 1e-15);
    assert_eq!(r2(&[(2., 1.), (2., 3.)]), None);
}

/// One page, everything in it, nothing fetched.
#[test]
fn the_report_stands_alone() {
    let dir = TempDir::new().unwrap();
    let rows = "tests/golden/tasks_classification/rows.jsonl";
    let flags = ["--max-steps=3", "--eval-file", rows];
    let (said, _) =
        ok(finetune("classification", dir.path(), &flags).output().unwrap());
    assert!(said.contains("macro f1"), "{said}");
    let read = |name: &str| {
        std::fs::read_to_string(dir.path().join("out").join(name)).unwrap()
    };
    let page = read("report.html");
    for part in [
        "<!doctype html>",
        "color-scheme: light dark",
        "3 of 3 steps",
        "--per-device-train-batch-size",
        "macro f1",
        "3 classes",
        "before",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(page.contains(part), "no `{part}`");
    }
    let outside = ["src=", "href=", "url(", "@import", "<script", "<link"];
    for mark in outside {
        assert!(!page.contains(mark), "`{mark}` may fetch something");
    }
    let addresses = page.matches("http").count();
    let names = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(addresses, names);
    for name in ["loss", "grad_norm", "learning_rate", "memory", "confusion"] {
        let svg = read(&format!("{name}.svg"));
        assert!(page.contains(&svg), "{name}");
    }
    assert!(read("memory.svg").contains("linear layers, NF4"));
    // What a path or a row says is text, not markup.
    assert_eq!(downhill::plot::escaped("<b>&\"'"), "&lt;b&gt;&amp;&quot;&#39;");
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

fn settings(flags: &[&str]) -> Settings {
    let usual = ["downhill", "--model", "m", "--train-file", "t"];
    Flags::try_parse_from([&usual[..], flags].concat()).unwrap().settings
}

#[test]
fn schedules_by_name_are_transformers() {
    let golden = json("ch16_flags.json");
    for run in golden["runs"].as_array().unwrap() {
        let (name, ratio) = (run["name"].as_str().unwrap(), &run["warmup_ratio"]);
        let extra = run["kwargs"].to_string();
        let ratio = ratio.to_string();
        let mut flags = vec!["--lr-scheduler-type", name, "--warmup-ratio", &ratio];
        if extra != "{}" {
            flags.extend(["--lr-scheduler-kwargs", &extra]);
        }
        let expected = floats(&run["rates"]);
        let schedule = settings(&flags).schedule(expected.len() as i64).unwrap();
        for (t, e) in expected.iter().enumerate() {
            let found = schedule.lr(t as i64);
            assert!(
                (found - e).abs() < 1e-15,
                "{name} {extra} at {t}: {found}, {e}"
            );
        }
    }
}

/// The rules themselves are compared with PyTorch's in their chapters.
#[test]
fn optimizers_by_name_are_the_rules_with_pytorchs_defaults() {
    use downhill::optim::{Adagrad, AdamW, Driver, Optimizer, Param, RmsProp, Sgd};
    let params = || {
        let t = wave(&[3, 4], tch::Kind::Float).set_requires_grad(true);
        Param::with_decay(vec![("w".into(), t)], |_, _| 0.1)
    };
    let walk = |mut optimizer: Box<dyn Optimizer>| {
        for _ in 0..5 {
            optimizer.zero_grad();
            let w = &optimizer.params()[0].tensor;
            (w * w * w).sum(tch::Kind::Float).backward();
            optimizer.step(0.01);
        }
        optimizer.params()[0].tensor.detach()
    };
    let cases: [(&str, Box<dyn Optimizer>); 5] = [
        ("adagrad", Box::new(Driver::new(Adagrad::default(), params()))),
        ("rmsprop", Box::new(Driver::new(RmsProp::default(), params()))),
        ("sgd", Box::new(Driver::new(Sgd::default(), params()))),
        ("adamw", Box::new(Driver::new(AdamW::default(), params()))),
        ("adamw_torch", Box::new(Driver::new(AdamW::default(), params()))),
    ];
    for (name, expected) in cases {
        let found = settings(&["--optim", name]).optimizer(params());
        assert!(walk(found) == walk(expected), "{name}");
    }
}
