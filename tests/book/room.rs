//! The settings that trade memory for time change nothing else; and what is said where
//! memory does not suffice.
use crate::late::start;
use crate::train::{MODEL, finetune};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use tch::Tensor;
use tempfile::TempDir;

const STEPS: [&str; 8] = [
    "--max-steps",
    "4",
    "--save-strategy",
    "no",
    "--target-modules",
    "all-linear",
    "--learning-rate",
    "1e-2",
];

fn trained(flags: &[&str]) -> Vec<Tensor> {
    let dir = TempDir::new().unwrap();
    let mut run =
        start(dir.path(), "cpu", &[&STEPS[..], flags].concat()).expect("a run");
    downhill::train::fit(&mut run, &AtomicBool::new(false)).expect("steps");
    run.optimizer.params().iter().map(|p| p.tensor.detach().copy()).collect()
}

fn apart(a: &[Tensor], b: &[Tensor]) -> f64 {
    assert_eq!(a.len(), b.len());
    let gap = |(a, b): (&Tensor, &Tensor)| (a - b).abs().max().double_value(&[]);
    a.iter().zip(b).map(gap).fold(0., f64::max)
}

#[test]
fn checkpoints_here_or_in_host_memory_give_the_same_bits() {
    let plain = trained(&["--gradient-checkpointing", "false"]);
    for how in ["true", "offload", "auto"] {
        let again = trained(&["--gradient-checkpointing", how]);
        assert_eq!(apart(&plain, &again), 0., "{how}");
    }
    assert!(apart(&plain, &trained(&["--seed", "1"])) > 1e-3, "nothing moved");
}

#[test]
fn weights_dequantized_once_are_the_same_weights() {
    // In bf16 both multiply whole matrices; in f32 on a CPU the 4-bit ones come by
    // panels, whose sums round otherwise.
    for (kind, tolerance) in [("bf16", 0.), ("f32", 1e-4)] {
        let flags = ["--compute-dtype", kind];
        let usual = trained(&flags);
        let held = trained(&[&flags[..], &["--cache-dequant"]].concat());
        let gap = apart(&usual, &held);
        assert!(gap <= tolerance, "{kind}: {gap}");
    }
    let dir = TempDir::new().unwrap();
    let bytes = |flags: &[&str]| {
        let flags = [&STEPS[..], flags].concat();
        start(dir.path(), "cpu", &flags).expect("a run").model.bytes()
    };
    assert!(bytes(&["--cache-dequant"]) > 2 * bytes(&[]), "it holds no more");
}

/// More rows in a batch than the address space that the process may use has room for.
#[cfg(target_os = "linux")]
#[test]
fn a_batch_that_has_no_room_says_what_to_lower() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("many.jsonl");
    let row = "{\"input_ids\":[1,4,16,15,6,10,4,5,18,2],\
               \"labels\":[1,4,16,15,6,10,4,5,18,2]}\n";
    std::fs::write(&file, row.repeat(40_000)).unwrap();
    let mut run = Command::new("bash");
    let line = "ulimit -v 2000000; exec \"$0\" \"$@\"";
    let whole = finetune(dir.path(), &["--per-device-train-batch-size", "40000"]);
    run.args(["-c", line]).arg(whole.get_program()).args(whole.get_args());
    run.arg(format!("--train-file={}", file.display()));
    run.args(["--eval-strategy", "no", "--model", MODEL]);
    let output = run.env("OMP_NUM_THREADS", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "error: out of memory: step 1: ",
        "you tried to allocate",
        "Lower --per-device-train-batch-size (40000;",
        "--gradient-checkpointing true",
        "nothing was learned yet",
    ] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}
