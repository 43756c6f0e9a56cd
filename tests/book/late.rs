//! The loop as it runs on a GPU, on the CPU: the numbers of a step read a step late
//! change nothing but when they are read. What is not finite, and memory that runs out,
//! lose nothing that was saved.
use crate::common;
use crate::train::MODEL;
use clap::Parser;
use downhill::Result;
use downhill::optim::{Optimizer, Param, clip_grad_norm, clip_grad_norm_late};
use downhill::train::{Base, Outcome, Run, Settings, fit, latest_checkpoint};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// A run on the small checkpoint, its files in `dir`.
pub fn start(dir: &Path, device: &str, flags: &[&str]) -> Result<Run> {
    let rows = format!("{MODEL}/rows.jsonl");
    let (out, logs) = (dir.join("out"), dir.join("logs"));
    let usual = [
        "downhill",
        "--model",
        MODEL,
        "--train-file",
        &rows,
        "--device",
        device,
        "--output-dir",
        out.to_str().unwrap(),
        "--logging-dir",
        logs.to_str().unwrap(),
    ];
    let flags = Flags::try_parse_from([&usual[..], flags].concat()).unwrap();
    let base = Base::load(&flags.settings, &mut |_| ())?;
    Run::start(base, flags.settings, &mut |_| ())
}

/// The log without what depends on the clock.
pub fn history(run: &Run) -> Vec<Value> {
    let mut history = run.log.history.clone();
    for entry in &mut history {
        entry.as_object_mut().unwrap().remove("tokens_per_second");
    }
    history
}

fn adapters(run: &Run) -> Vec<Tensor> {
    run.optimizer.params().iter().map(|p| p.tensor.detach().copy()).collect()
}

static GO: AtomicBool = AtomicBool::new(false);

#[test]
fn numbers_read_a_step_late_are_the_same_numbers() {
    let rows = format!("{MODEL}/rows.jsonl");
    let flags = [
        "--max-steps",
        "17",
        "--logging-steps",
        "3",
        "--save-strategy",
        "steps",
        "--save-steps",
        "4",
        "--eval-strategy",
        "steps",
        "--eval-steps",
        "5",
        "--eval-file",
        &rows,
        "--max-grad-norm",
        "0.2",
        "--learning-rate",
        "1e-2",
    ];
    let all = |late: bool| {
        let dir = TempDir::new().unwrap();
        let mut run = start(dir.path(), "cpu", &flags).unwrap();
        assert!(!run.late, "on a CPU nobody need be late");
        run.late = late;
        assert_eq!(fit(&mut run, &GO).unwrap(), Outcome::Finished);
        // What was summed since the last entry is in each checkpoint as well.
        let saved = [4, 8, 12, 16].map(|step| {
            let at = format!("out/checkpoint-{step}/trainer_state.json");
            let text = std::fs::read(dir.path().join(at)).unwrap();
            let state: Value = serde_json::from_slice(&text).unwrap();
            state["pending"].clone()
        });
        (history(&run), adapters(&run), saved)
    };
    let (at_once, late) = (all(false), all(true));
    assert_eq!(at_once.0, late.0);
    assert_eq!(at_once.0.len(), 6 + 3);
    assert_eq!(at_once.2, late.2);
    // Some steps were clipped, and some not.
    let norms = at_once.0.iter().filter_map(|e| e["grad_norm"].as_f64());
    let (over, under): (Vec<f64>, Vec<f64>) = norms.partition(|n| *n > 0.2);
    assert!(!over.is_empty() && !under.is_empty(), "{over:?} {under:?}");
    for (a, b) in at_once.1.iter().zip(&late.1) {
        assert!(a.equal(b), "other adapters");
    }
}

#[test]
fn an_interrupted_late_run_has_logged_all_it_saved() {
    let dir = TempDir::new().unwrap();
    let mut run = start(dir.path(), "cpu", &["--max-steps", "9"]).unwrap();
    run.late = true;
    let outcome = fit(&mut run, &AtomicBool::new(true)).unwrap();
    let Outcome::Stopped(1, saved) = outcome else { panic!("{outcome:?}") };
    assert_eq!(history(&run).len(), 1);
    assert!(saved.join("trainer_state.json").is_file());
}

/// One row of the file is of a token whose embedding is not a number.
#[test]
fn what_is_not_finite_is_never_saved() {
    let save = ["--save-strategy", "steps", "--save-steps", "1"];
    for late in [false, true] {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("rows.jsonl");
        let rows = (0..9).map(|i| {
            let odd = if i == 5 { 63 } else { 5 + i };
            let ids = format!("[1,{},{odd},2]", 3 + i);
            format!("{{\"input_ids\":{ids},\"labels\":{ids}}}\n")
        });
        std::fs::write(&file, rows.collect::<String>()).unwrap();
        let flags = [
            "--train-file",
            file.to_str().unwrap(),
            "--shuffle",
            "false",
            "--per-device-train-batch-size",
            "1",
            "--gradient-accumulation-steps",
            "1",
            "--max-steps",
            "9",
        ];
        let mut run = start(dir.path(), "cpu", &[&flags[..], &save].concat());
        let run = run.as_mut().unwrap();
        run.late = late;
        let named = run.model.named_parameters();
        let embed = named.iter().find(|(n, _)| n.contains("embed_tokens")).unwrap();
        let _ = tch::no_grad(|| embed.1.get(63).fill_(f64::NAN));
        let parts = ["step 6: the loss is not finite", "embed_tokens", "lines [6]"];
        let text = common::refused(fit(run, &GO), &parts);
        let kept = latest_checkpoint(&dir.path().join("out")).unwrap();
        // At once: the state before that step. Late: without what that step gave.
        let (step, said) = match late {
            false => (5, "the state after step 5 is in"),
            true => (6, "the state after that step without its gradient is in"),
        };
        assert!(text.contains(said), "{text}");
        assert!(kept.ends_with(format!("checkpoint-{step}")), "{}", kept.display());
        // Beside them lies what belongs to a run that has not ended.
        let entries = std::fs::read_dir(dir.path().join("out")).unwrap().flatten();
        let folders: Vec<_> = entries.filter(|e| e.path().is_dir()).collect();
        assert_eq!(folders.len(), step);
        for folder in folders {
            for file in ["adapter_model.safetensors", "optimizer.safetensors"] {
                let path = folder.path().join(file);
                let all = downhill::checkpoint::read_safetensors(&path).unwrap();
                for (name, t) in all {
                    let finite = bool::try_from(t.isfinite().all()).unwrap();
                    assert!(finite, "{}: {name}", path.display());
                }
            }
        }
        let logged: Vec<_> =
            history(run).iter().map(|e| e["step"].clone()).collect();
        assert_eq!(logged, [1, 2, 3, 4, 5]);
    }
}

#[test]
fn clipping_on_the_device_is_clipping() {
    let params = |scale: f64| {
        let named = (0..3).map(|i| {
            let t = common::wave(&[4, 3 + i], Kind::Float).set_requires_grad(true);
            ((&t * &t) * scale).sum(Kind::Float).backward();
            (format!("{i}"), t)
        });
        Param::with_decay(named, |_, _| 0.)
    };
    let grads = |params: &[Param]| -> Vec<Tensor> {
        params.iter().map(|p| p.tensor.grad().copy()).collect()
    };
    let one = Tensor::from(1f32);
    for (scale, max) in [(1., 1.), (1e-3, 1.), (1., f64::INFINITY), (1e3, 0.1)] {
        let (here, there) = (params(scale), params(scale));
        let norm = clip_grad_norm(&here, max);
        let late = clip_grad_norm_late(&there, max, &one);
        assert_eq!(norm.to_bits(), late.double_value(&[]).to_bits());
        for (a, b) in grads(&here).iter().zip(&grads(&there)) {
            assert!(a.equal(b), "scale {scale}, max {max}");
        }
    }
    // A norm or a loss that is not finite: nothing is left to step along.
    for (scale, loss) in [(f64::NAN, 1.), (f64::INFINITY, 1.), (1., f64::NAN)] {
        let spoilt = params(scale);
        let norm = clip_grad_norm_late(&spoilt, 1., &Tensor::from(loss));
        assert_eq!(norm.double_value(&[]).is_finite(), scale.is_finite());
        for g in grads(&spoilt) {
            assert_eq!(g.abs().max().double_value(&[]), 0.);
        }
    }
    assert_eq!(clip_grad_norm_late(&[], 1., &one).double_value(&[]), 0.);
}

/// An optimizer that asks for more memory than there is, at the start of a step or in
/// the middle of its own work: libtorch's real error, by way of a panic of tch.
struct Greedy {
    inner: Box<dyn Optimizer>,
    steps: usize,
    starts: usize,
    fails_at: (usize, usize),
}

fn too_much() {
    let _ = Tensor::zeros([1 << 50], (Kind::Float, Device::Cpu));
}

impl Optimizer for Greedy {
    fn step(&mut self, lr: f64) {
        self.steps += 1;
        self.inner.step(lr);
        if self.steps == self.fails_at.1 {
            too_much();
        }
    }
    fn zero_grad(&mut self) {
        self.starts += 1;
        if self.starts == self.fails_at.0 {
            too_much();
        }
        self.inner.zero_grad();
    }
    fn params(&self) -> &[Param] {
        self.inner.params()
    }
    fn state(&self) -> Vec<(String, Tensor)> {
        self.inner.state()
    }
    fn load_state(&mut self, saved: &HashMap<String, Tensor>) -> Result<()> {
        self.inner.load_state(saved)
    }
}

#[test]
fn memory_that_runs_out_loses_nothing() {
    downhill::device::quiet_when_out_of_memory();
    let steps =
        ["--max-steps", "6", "--save-strategy", "steps", "--save-steps", "2"];
    let whole = {
        let dir = TempDir::new().unwrap();
        let mut run = start(dir.path(), "cpu", &steps).unwrap();
        fit(&mut run, &GO).unwrap();
        adapters(&run)
    };
    for late in [false, true] {
        // In the forward pass of step 4: the state after step 3 is whole.
        let dir = TempDir::new().unwrap();
        let mut run = start(dir.path(), "cpu", &steps).unwrap();
        run.late = late;
        run.optimizer = greedy(run.optimizer, (4, 0));
        common::refused(
            fit(&mut run, &GO),
            &[
                "out of memory: step 4",
                "you tried to allocate",
                "--per-device-train-batch-size (4;",
                "--gradient-accumulation-steps",
                "--max-length (1024)",
                "--gradient-checkpointing true",
                "the state after step 3 is in",
                "checkpoint-3",
            ],
        );
        drop(run); // and with it the claim on its folder
        let flags = [&steps[..], &["--resume"]].concat();
        let mut again = start(dir.path(), "cpu", &flags).unwrap();
        fit(&mut again, &GO).unwrap();
        for (a, b) in whole.iter().zip(&adapters(&again)) {
            assert!(a.equal(b), "resumed differently");
        }
        // Within the optimizer's step: what it left is in no checkpoint.
        let dir = TempDir::new().unwrap();
        let mut run = start(dir.path(), "cpu", &steps).unwrap();
        run.late = late;
        run.optimizer = greedy(run.optimizer, (0, 4));
        let parts = ["step 4", "checkpoint-2 is as it was saved"];
        common::refused(fit(&mut run, &GO), &parts);
        let kept = latest_checkpoint(&dir.path().join("out")).unwrap();
        assert!(kept.ends_with("checkpoint-2"), "{}", kept.display());
    }
}

fn greedy(
    inner: Box<dyn Optimizer>,
    fails_at: (usize, usize),
) -> Box<dyn Optimizer> {
    Box::new(Greedy { inner, steps: 0, starts: 0, fails_at })
}

/// Between the start of a step and the end of the optimizer's work nothing may wait for
/// the device: the functions that do it, by their text.
#[test]
fn nothing_within_a_step_waits() {
    const WAITS: [&str; 10] = [
        "double_value",
        "int64_value",
        "try_from(",
        ".to_device(",
        "copy_data",
        "nonzero(",
        "masked_select(",
        ".item(",
        "bincount(",
        "unique(",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let waits = |text: &str| -> Vec<&str> {
        WAITS.into_iter().filter(|w| text.contains(w)).collect()
    };
    let body = |file: &str, name: &str| -> String {
        let text = read(file);
        let at = text.find(&format!("fn {name}(")).expect(name);
        let line = text[..at].rfind('\n').map_or(0, |i| i + 1);
        let method = text[line..].starts_with("    ");
        let end = if method { "\n    }\n" } else { "\n}\n" };
        let end = text[at..].find(end).expect(name);
        text[at..at + end].to_string()
    };
    for (file, name) in [
        ("src/train/fit.rs", "gradients"),
        ("src/train/loss.rs", "loss_of"),
        ("src/train/loss.rs", "batch_loss"),
        ("src/optim/clip.rs", "clip_grad_norm_late"),
        ("src/models/decoder.rs", "stack"),
        ("src/models/decoder.rs", "loss"),
        ("src/data/batch.rs", "to"),
    ] {
        assert_eq!(waits(&body(file, name)), [""; 0], "{file}: {name}");
    }
    // What waits in host memory for backward may still be on its way there: to pin it
    // again would read it.
    let kept = body("src/autograd/mod.rs", "checkpoint_kept");
    assert!(kept.contains("to_device_(home") && !kept.contains("upload("));
    assert!(!kept.contains("pinned("));
    let late = read("src/train/late.rs");
    let (late, _) = late.split_once("fn wait(").unwrap();
    assert_eq!(waits(late), [""; 0]);
    let coming = read("src/device/coming.rs");
    let (sends, reads) = coming.split_once("fn wait(").unwrap();
    assert_eq!(waits(sends), [""; 0]);
    assert!(!waits(reads).is_empty(), "the check can fail");
    // Experts too: in turn they must know on the host how many tokens each gets, and
    // so must masks made on the CPU; side by side, on a card, nothing else is left.
    for (file, slow) in [("moe", "in_turn"), ("stack", "factors")] {
        let file = format!("src/nn/{file}.rs");
        let slow = body(&file, slow);
        assert!(!waits(&slow).is_empty(), "{file}: the check can fail");
        let rest = read(&file).replace(&slow, "");
        assert_eq!(waits(&rest), [""; 0], "{file}");
    }
    for (file, name) in [
        ("src/quant/mod.rs", "dequantize_all"),
        ("src/cuda/nf4.rs", "nf4_dequantize_all"),
        ("src/cuda/dropout.rs", "dropout_rows"),
    ] {
        assert_eq!(waits(&body(file, name)), [""; 0], "{file}: {name}");
    }
    // Every other layer.
    for file in ["adapter", "attention", "cross_entropy", "dropout", "linear", "mla"]
        .into_iter()
        .chain(["grouped", "mlp", "norm", "rope", "rows", "cache", "together"])
    {
        let file = format!("src/nn/{file}.rs");
        assert_eq!(waits(&read(&file)), [""; 0], "{file}");
    }
}
