//! Flags and the TOML file of them.
use super::*;

/// Each flag that cannot be, and what the message must hold.
#[test]
fn finetune_flags() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--learning-rat=1"], &["--learning-rat"]),
        (&["--learning-rate=fast"], &["--learning-rate", "fast"]),
        (&["--learning-rate=-1"], &["--learning-rate", "-1"]),
        (&["--learning-rate=nan"], &["--learning-rate", "NaN"]),
        (&["--learning-rate=inf"], &["--learning-rate", "inf"]),
        (&["--weight-decay=-0.1"], &["--weight-decay"]),
        (&["--max-grad-norm=nan"], &["--max-grad-norm"]),
        (&["--num-train-epochs=-1"], &["--num-train-epochs"]),
        (&["--num-train-epochs=0", "--max-steps=-1"], &["--num-train-epochs"]),
        (&["--max-steps=0"], &["--max-steps", "0"]),
        (&["--max-steps=1.5"], &["--max-steps", "1.5"]),
        (&["--per-device-train-batch-size=0"], &["--per-device-train-batch-size"]),
        (&["--per-device-train-batch-size=-4"], &["--per-device-train-batch-size"]),
        (
            &["--per-device-train-batch-size=99999999999999999999"],
            &["--per-device-train-batch-size"],
        ),
        (&["--gradient-accumulation-steps=0"], &["--gradient-accumulation-steps"]),
        (&["--logging-steps=0"], &["--logging-steps"]),
        (&["--save-steps=0"], &["--save-steps"]),
        (&["--save-strategy=sometimes"], &["--save-strategy", "sometimes", "epoch"]),
        (
            &["--lr-scheduler-type=bogus"],
            &["--lr-scheduler-type", "bogus", "cosine"],
        ),
        (&["--optim=lion"], &["--optim", "lion", "adamw"]),
        (&["--warmup-ratio=1.5"], &["--warmup-ratio"]),
        (&["--lora-r=0"], &["--lora-r", "0"]),
        (&["--lora-r=-8"], &["--lora-r"]),
        (&["--lora-r=65536"], &["lora-r: 65536; from 1 to 65535"]),
        (
            &["--gradient-accumulation-steps=1000000000000"],
            &["--gradient-accumulation-steps: 1000000000000; from 1 to 1000000"],
        ),
        (
            &["--output-dir=@/rows.jsonl"],
            &["--output-dir", "rows.jsonl is a file; name a folder"],
        ),
        (&["--logging-dir=@/rows.jsonl/logs"], &["--logging-dir", "is a file"]),
        (&["--predict-with-generate"], &["--predict-with-generate", "--eval-file"]),
        (&["--max-length=1000000000000"], &["--max-length", "1000000000000"]),
        (&["--lora-alpha=0"], &["--lora-alpha"]),
        (&["--lora-dropout=1"], &["--lora-dropout"]),
        (&["--target-modules=c_attn"], &["target-modules", "c_attn", "q_proj"]),
        (&["--target-modules="], &["target-modules"]),
        (&["--load-in-4bit=perhaps"], &["--load-in-4bit", "perhaps"]),
        (&["--bnb-4bit-quant-type=fp4"], &["--bnb-4bit-quant-type", "fp4", "nf4"]),
        (&["--bnb-4bit-blocksize=100"], &["--bnb-4bit-blocksize", "100", "4096"]),
        (&["--bnb-4bit-blocksize=0"], &["--bnb-4bit-blocksize", "32"]),
        (&["--compute-dtype=f64"], &["--compute-dtype", "f64"]),
        (&["--max-length=1"], &["--max-length", "1"]),
        (&["--max-length=0"], &["--max-length", "0"]),
        (&["--task=classification"], &["rows.jsonl:1", "`text`", "missing"]),
        (&["--task=regression"], &["rows.jsonl:1", "`text`", "missing"]),
        (
            &["--task=classification", "--predict-with-generate"],
            &["--predict-with-generate", "causal-lm"],
        ),
        (&["--lr-scheduler-kwargs=3"], &["--lr-scheduler-kwargs", "JSON"]),
        (
            &["--lr-scheduler-kwargs={\"num_cycles\": 3}"],
            &["--lr-scheduler-kwargs", "num_cycles", "Cosine"],
        ),
        (
            &[
                "--lr-scheduler-type=polynomial",
                "--lr-scheduler-kwargs={\"lr_end\": 1}",
            ],
            &["--lr-scheduler-kwargs", "lr_end"],
        ),
        (
            &[
                "--lr-scheduler-type=cosine_with_restarts",
                "--lr-scheduler-kwargs={\"num_cycles\": 0.5}",
            ],
            &["--lr-scheduler-kwargs", "num_cycles", "whole"],
        ),
        (&["--packing=perhaps"], &["--packing", "perhaps"]),
        (&["--packing", "--group-by-length"], &["--group-by-length", "one of both"]),
        (&["--validation-split=2"], &["--validation-split", "2", "0.1"]),
        (&["--validation-split=-0.1"], &["--validation-split"]),
        (&["--validation-split=nan"], &["--validation-split", "NaN"]),
        (&["--completion-only-loss=some"], &["--completion-only-loss", "some"]),
        (&["--seed=-1"], &["--seed"]),
        (&["--device=tpu"], &["--device", "tpu", "cuda:N"]),
        (&["--device=cuda:99"], &["--device", "cuda:99"]),
        (
            &["--model=deepseek-ai/none"],
            &["--model", "deepseek-ai/none", "HF_HUB_OFFLINE", "--model DIR"],
        ),
        (&["--model=@/nowhere"], &["--model", "nowhere", "no such folder"]),
        (&["--init-adapter=@/nowhere"], &["nowhere"]),
        (&["--resume=@/nowhere"], &["--resume", "nowhere"]),
        (&["--output-dir=@/rows.jsonl"], &["rows.jsonl"]),
        (&["--output-dir=@/rows.jsonl/out"], &["rows.jsonl/out"]),
        (&["--logging-dir=@/rows.jsonl/logs"], &["rows.jsonl/logs"]),
        (&["rows.jsonl"], &["rows.jsonl"]),
    ];
    let mut wrong = Vec::new();
    for (flags, expected) in cases {
        let bench = Bench::new();
        if let Some(what) = fault(&bench, bench.finetune(flags), expected) {
            wrong.push(format!("{flags:?}: {what}"));
        }
    }
    let bench = Bench::new();
    let bare: &[(&[&str], &[&str])] = &[
        (&[], &["Usage"]),
        (&["fine-tune"], &["fine-tune"]),
        (&["finetune"], &["--model", "--train-file"]),
        (&["generate", "--model=@/model"], &["--prompt"]),
        (&["preview"], &["--model", "--train-file"]),
        (&["preview", "--model=@/no", "--train-file=@/rows.jsonl"], &["/no"]),
        (&["preview", "--model=@/model", "--train-file=@/no.jsonl"], &["no.jsonl"]),
        (
            &["preview", "--model=@/model", "--train-file=@/no.csv", "--check"],
            &["no.csv"],
        ),
        (
            &["preview", "--model=@/model", "--train-file=@/rows.jsonl", "--rows=x"],
            &["--rows"],
        ),
    ];
    for (args, expected) in bare {
        if let Some(what) = fault(&bench, bench.command(args), expected) {
            wrong.push(format!("{args:?}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn generate_flags() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--temperature=-1"], &["temperature", "-1"]),
        (&["--temperature=nan"], &["temperature"]),
        (&["--top-p=0"], &["top-p", "0"]),
        (&["--top-p=1.5"], &["top-p", "1.5"]),
        (&["--max-new-tokens=-3"], &["--max-new-tokens"]),
        (&["--model=@/nowhere"], &["nowhere"]),
        (&["--adapter=@/nowhere"], &["nowhere"]),
        (&["--device=gpu"], &["--device", "gpu"]),
    ];
    let bench = Bench::new();
    let mut wrong = Vec::new();
    for (flags, expected) in cases {
        if let Some(what) = fault(&bench, bench.generate(flags), expected) {
            wrong.push(format!("{flags:?}: {what}"));
        }
    }
    bench.remove("model/tokenizer.json");
    if let Some(what) = fault(&bench, bench.generate(&[]), &["tokenizer.json"]) {
        wrong.push(what);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn toml_files() {
    let cases: &[(&str, &[&str])] = &[
        ("learning-rate = ", &["run.toml", "line 1"]),
        ("learning_rate = 1e-4", &["run.toml", "learning_rate"]),
        ("learning-rate = \"fast\"", &["--learning-rate", "fast"]),
        ("learning-rate = -1.0", &["--learning-rate", "-1"]),
        ("max-steps = 1\nmax-steps = 2", &["run.toml", "max-steps"]),
        ("[train]\nlearning-rate = 1e-4", &["run.toml", "train"]),
        ("config = \"other.toml\"", &["run.toml", "config"]),
        ("learning-rate = { peak = 1e-4 }", &["run.toml", "learning-rate"]),
        ("optim = \"lion\"", &["--optim", "lion"]),
        ("seed = 1979-05-27", &["run.toml", "seed"]),
        ("target-modules = [[\"q_proj\"]]", &["run.toml", "target-modules"]),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let bench = Bench::new();
        bench.put("run.toml", text);
        let command = bench.finetune(&["--config=@/run.toml"]);
        if let Some(what) = fault(&bench, command, expected) {
            wrong.push(format!("{text}: {what}"));
        }
    }
    let bench = Bench::new();
    for (flag, expected) in [
        ("--config=@/none.toml", "none.toml: No such"),
        ("--config=@/model", "directory"),
    ] {
        if let Some(what) = fault(&bench, bench.finetune(&[flag]), &[expected]) {
            wrong.push(format!("{flag}: {what}"));
        }
    }
    bench.put("run.toml", [0xff, 0xfe, 0x00]);
    let command = bench.finetune(&["--config=@/run.toml"]);
    if let Some(what) = fault(&bench, command, &["run.toml"]) {
        wrong.push(what);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What an earlier run left is not touched by one that cannot begin.
#[test]
fn earlier_results_stay() {
    let bench = Bench::new();
    let output = finish(bench.finetune(&[])).expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let snapshot = || {
        let mut all: Vec<_> = below(&bench.at("out"))
            .into_iter()
            .map(|p| (fs::read(&p).unwrap(), p))
            .collect();
        all.sort();
        all
    };
    let before = snapshot();
    assert!(before.len() > 4);
    for flags in [
        "--target-modules=c_attn",
        "--lora-r=0",
        "--init-adapter=@/nowhere",
        "--train-file=@/nowhere",
        "--resume=@/nowhere",
    ] {
        let output = finish(bench.finetune(&[flags])).expect("ends");
        assert_eq!(output.status.code(), Some(1), "{flags}");
        assert!(snapshot() == before, "{flags}: the earlier run has changed");
        assert!(!bench.at("out.1").exists(), "{flags}: moved aside for nothing");
    }
}

/// Nobody reading what is printed, or a full disk below it, ends no run.
#[test]
#[cfg(target_os = "linux")]
fn unread_output() {
    let full = || fs::File::create("/dev/full").expect("/dev/full");
    let bench = Bench::new();
    let mut run = bench.finetune(&[]);
    run.stderr(full());
    assert!(run.status().expect("ends").success());
    assert!(bench.at("out/adapter_model.safetensors").exists());
    let mut doctor = bench.command(&["doctor"]);
    let output =
        doctor.stdout(full()).stderr(Stdio::piped()).output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: stdout: "), "{said}");
    // A pipe whose reader is gone.
    let mut merge = bench.command(&[
        "merge",
        "--model=@/model",
        "--adapter=@/adapter",
        "--output-dir=@/merged",
        "--into=original",
    ]);
    let mut merge = merge.stdout(Stdio::piped()).spawn().expect("starts");
    drop(merge.stdout.take());
    assert!(merge.wait().expect("ends").success());
    assert!(bench.at("merged/merge_report.json").exists());
}

/// Two runs in one folder would leave the checkpoints of one and the adapter of the
/// other.
#[test]
#[cfg(target_os = "linux")]
fn one_run_per_folder() {
    let bench = Bench::new();
    fs::create_dir(bench.at("out")).unwrap();
    let other = fs::File::open(bench.at("out")).unwrap();
    other.lock().unwrap();
    let output = finish(bench.finetune(&[])).expect("ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: --output-dir: "), "{said}");
    assert!(said.contains("another run is writing there"), "{said}");
    assert!(below(&bench.at("out")).is_empty());
    drop(other);
    let output = finish(bench.finetune(&[])).expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
