//! `evaluate`, `generate` and `merge` hold a model and read rows as the adapter's run
//! did, unless flags say otherwise.
use downhill::train::{ComputeDtype, Task, Trained};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const TINY: &str = "examples/data/tiny";

fn downhill(command: &str) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.args([command, "--model", TINY, "--device", "cpu"])
        .env("OMP_NUM_THREADS", "1");
    c
}

fn ok(output: Output) -> (String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// The first rows of a file that ships.
fn rows(dir: &Path, name: &str, n: usize) -> String {
    let text = fs::read_to_string(format!("examples/data/{name}")).unwrap();
    let lines: Vec<&str> = text.lines().take(n).collect();
    let path = dir.join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn an_adapter_is_measured_as_its_run_measured_it() {
    let dir = TempDir::new().unwrap();
    let train = rows(dir.path(), "dates_train.jsonl", 16);
    let held = rows(dir.path(), "dates_eval.jsonl", 16);
    let out = dir.path().join("out");
    let mut c = downhill("finetune");
    c.args(["--train-file", &train, "--eval-file", &held]);
    c.arg("--output-dir").arg(&out).arg("--logging-dir").arg(dir.path().join("l"));
    let odd = [
        "--load-in-4bit=false",
        "--completion-only-loss=false",
        "--max-length=24",
        "--max-steps=2",
        "--learning-rate=5e-3",
        "--target-modules=all-linear",
    ];
    ok(c.args(odd).output().unwrap());
    let state = fs::read(out.join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    let in_run = state["eval_after"]["eval_loss"].as_f64().unwrap();

    let evaluate = |flags: &[&str]| {
        let numbers = dir.path().join("numbers.json");
        let mut c = downhill("evaluate");
        c.args(["--eval-file", &held, "--adapter"]).arg(&out);
        c.arg("--output-file").arg(&numbers).args(flags);
        let (_, said) = ok(c.output().unwrap());
        let numbers: Value =
            serde_json::from_slice(&fs::read(numbers).unwrap()).unwrap();
        (numbers["eval_loss"].as_f64().unwrap(), said)
    };
    let (loss, said) = evaluate(&[]);
    assert!((loss - in_run).abs() < 1e-5, "{loss}, and in the run {in_run}");
    for part in [
        "read from",
        "trainer_state.json: task causal-lm, load_in_4bit false",
        "compute_dtype auto",
        "max_length 24",
        "completion_only_loss false",
        "assistant_only_loss true",
    ] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    // A flag wins, and is then not said to be read.
    for (flag, name) in [
        ("--load-in-4bit=true", "load_in_4bit"),
        ("--max-length=1024", "max_length"),
        ("--completion-only-loss=true", "completion_only_loss"),
    ] {
        let (other, said) = evaluate(&[flag]);
        assert!((other - in_run).abs() > 1e-4, "{flag} changes nothing");
        assert!(!said.contains(&format!("{name} ")), "{said}");
    }
    let mut c = downhill("generate");
    c.args(["--prompt=1 May", "--max-new-tokens=1", "--adapter"]).arg(&out);
    let (_, said) = ok(c.output().unwrap());
    assert!(said.contains("load_in_4bit false, compute_dtype auto"), "{said}");
    // Without an adapter there is nothing to read.
    let (_, said) = ok(downhill("generate")
        .args(["--prompt=1 May", "--max-new-tokens=1"])
        .output()
        .unwrap());
    assert!(!said.contains("read from"), "{said}");
}

#[test]
fn what_other_programs_left_says_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("trainer_state.json");
    let trained = || Trained::of(dir.path());
    assert_eq!(trained().unwrap(), Trained::default());
    fs::write(&path, "{\"log_history\": [{\"loss\": NaN}]}").unwrap();
    assert_eq!(trained().unwrap(), Trained::default());
    fs::write(&path, "{\"log_history\": []}").unwrap();
    assert_eq!(trained().unwrap().load_in_4bit, None);
    fs::write(
        &path,
        "{\"settings\": {\"task\": \"Regression\", \"compute_dtype\": \"Bf16\", \
         \"load_in_4bit\": true, \"bnb_4bit_blocksize\": 128, \"max_length\": 7}}",
    )
    .unwrap();
    let found = trained().unwrap();
    assert_eq!(found.task, Some(Task::Regression));
    assert_eq!(found.compute_dtype, Some(ComputeDtype::Bf16));
    assert_eq!(
        (found.load_in_4bit, found.bnb_4bit_blocksize),
        (Some(true), Some(128))
    );
    assert_eq!((found.max_length, found.completion_only_loss), (Some(7), None));
    fs::write(&path, "{\"settings\": {\"max_length\": \"long\"}}").unwrap();
    crate::common::refused(trained(), &["trainer_state.json", "max_length", "long"]);
    fs::write(&path, "{\"settings\": {\"max_length\": 7").unwrap();
    crate::common::refused(trained(), &["trainer_state.json", "damaged"]);
}
