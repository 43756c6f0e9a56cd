//! `cargo xtask processors [MODEL ...]`: the command and the numeric tests on other
//! processors than this one.
//!
//! qemu-user runs the built programs as five x86-64 models would, from one without AVX
//! to one with AVX2; libtorch's own switch `ATEN_CPU_CAPABILITY` takes its kernels down
//! natively. What a processor lacks must be asked for and served by another path: a
//! failure here is a crash or a wrong number on somebody's machine.

use crate::{bundle, setup, sh};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Models of qemu: SSE4.2 alone; AVX; AVX2 of Intel; AVX2 of AMD; all that it knows.
const MODELS: [&str; 5] = ["Nehalem", "SandyBridge", "Haswell", "EPYC", "max"];

/// Values of `ATEN_CPU_CAPABILITY`, on this processor.
const CAPABILITIES: [&str; 2] = ["default", "avx2"];

/// The tests that compute, by the beginnings of their names, as far as an emulator ends
/// them in some minutes.
const NUMERIC: &[&str] = &["product::", "quant::", "autograd::", "nn::"];

/// More of them, of thousands of small operations, for a processor that is there.
const SLOW: &[&str] = &[
    "optim::",
    "models::",
    "parity_optim::",
    "ch05_adam::",
    "ch14_nf4::",
    "tiny::",
];

/// Losses of two steps may differ by this much from those on this processor, relative:
/// libraries add in another order there.
const TOLERANCE: f64 = 1e-4;

/// How a program is started: by itself or through an emulator.
struct Machine {
    name: String,
    emulator: Option<(PathBuf, &'static str)>,
    capability: Option<&'static str>,
}

impl Machine {
    fn command(&self, program: &Path) -> Command {
        let mut command = match &self.emulator {
            Some((qemu, model)) => {
                let mut command = sh::command(qemu);
                command.args(["-cpu", model]).arg(program);
                command
            }
            None => sh::command(program),
        };
        if let Some(capability) = self.capability {
            command.env("ATEN_CPU_CAPABILITY", capability);
        }
        command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        command
    }
}

/// Runs all of them, or the named ones; two at a time.
pub fn main(args: &[String]) -> Result<()> {
    setup::ensure()?;
    let named = |name: &str| args.is_empty() || args.iter().any(|a| a == name);
    let known = MODELS.iter().chain(&CAPABILITIES);
    if let Some(odd) = args.iter().find(|a| !known.clone().any(|k| k == a)) {
        bail!("no processor `{odd}`; there are {MODELS:?} and {CAPABILITIES:?}");
    }
    let mut machines = Vec::new();
    for model in MODELS.into_iter().filter(|m| named(m)) {
        let qemu = sh::which(&["qemu-x86_64", "qemu-x86_64-static"])
            .context("no qemu-x86_64; Debian, Ubuntu: apt install qemu-user")?;
        machines.push(Machine {
            name: format!("{model} (emulated)"),
            emulator: Some((qemu, model)),
            capability: None,
        });
    }
    for capability in CAPABILITIES.into_iter().filter(|c| named(c)) {
        machines.push(Machine {
            name: format!("ATEN_CPU_CAPABILITY={capability}"),
            emulator: None,
            capability: Some(capability),
        });
    }
    let downhill = bundle::build(&["build", "--workspace", "--bin", "downhill"])?;
    let tests =
        bundle::build(&["test", "--workspace", "--test", "book", "--no-run"])?;
    let folder = sh::root().join("target/processors");
    std::fs::remove_dir_all(&folder).ok();
    let here = Machine { name: "here".into(), emulator: None, capability: None };
    let expected = losses(&here, &downhill, &folder.join("here"))?;

    let waiting = Mutex::new(machines.into_iter().enumerate());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no panic").next();
                    let Some((i, machine)) = next else { return };
                    let folder = folder.join(i.to_string());
                    match one(&machine, [&downhill, &tests], &folder, &expected) {
                        Ok(count) => println!("{}: {count}", machine.name),
                        Err(e) => {
                            println!("{}: FAILED: {e:#}", machine.name);
                            failed.lock().expect("no panic").push(machine.name);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// The command, then the tests; what passed.
fn one(
    machine: &Machine,
    [downhill, tests]: [&Path; 2],
    folder: &Path,
    expected: &[f64],
) -> Result<String> {
    let found = losses(machine, downhill, folder)?;
    let far = |(a, b): (&f64, &f64)| (a / b - 1.).abs();
    let most = found.iter().zip(expected).map(far).fold(0., f64::max);
    ensure!(
        found.len() == expected.len() && most < TOLERANCE,
        "losses {found:?}, here {expected:?}"
    );
    let mut command = machine.command(tests);
    command.args(["--test-threads", "1"]).args(NUMERIC);
    if machine.emulator.is_none() {
        command.args(SLOW);
    }
    let out = command.output().context("cannot start the tests")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find(|l| l.starts_with("test result:"));
    if !out.status.success() || line.is_none() {
        let log = folder.join("tests.log");
        std::fs::write(&log, &out.stdout)?;
        let of_tests = text.lines().filter(|l| l.ends_with("FAILED"));
        let names = of_tests.collect::<Vec<_>>().join("; ");
        bail!("{}: {names}; all of it: {}", out.status, sh::shown(&log));
    }
    let line = line.unwrap_or_default().trim_start_matches("test result: ");
    Ok(format!("losses within {most:.1e}; {line}"))
}

/// Two steps of a fine-tune on the small checkpoint, then the other commands on their
/// adapter; the losses that were logged.
fn losses(machine: &Machine, downhill: &Path, folder: &Path) -> Result<Vec<f64>> {
    std::fs::create_dir_all(folder)?;
    let data = sh::root().join("examples/data");
    let (model, rows) = (data.join("tiny"), folder.join("rows.jsonl"));
    let all = sh::read(&data.join("dates_train.jsonl"))?;
    let few: String = all.lines().take(8).flat_map(|l| [l, "\n"]).collect();
    sh::write(&rows, &few)?;
    let run = |command: &str, flags: &[(&str, &Path)], more: &[&str]| -> Result<_> {
        let mut called = machine.command(downhill);
        called.arg(command).arg("--model").arg(&model);
        for (flag, path) in flags {
            called.arg(flag).arg(path);
        }
        let out = called.args(more).output().context("cannot start")?;
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stderr);
            let last = text.lines().last().unwrap_or_default().to_string();
            bail!("downhill {command}: {}: {last}", out.status);
        }
        Ok(out.stdout)
    };
    let (adapter, logs) = (folder.join("adapter"), folder.join("logs"));
    let merged = folder.join("merged");
    let sizes = "--max-steps 2 --max-length 64 --per-device-train-batch-size 2 \
                 --gradient-accumulation-steps 1 --target-modules all-linear \
                 --warmup-ratio 0 --learning-rate 1e-3";
    let files: &[(&str, &Path)] = &[
        ("--train-file", &rows),
        ("--eval-file", &rows),
        ("--output-dir", &adapter),
        ("--logging-dir", &logs),
    ];
    run("finetune", files, &sizes.split_whitespace().collect::<Vec<_>>())?;
    let from: (&str, &Path) = ("--adapter", &adapter);
    let asked = ["--prompt", "What happened", "--max-new-tokens", "4"];
    ensure!(!run("generate", &[from], &asked)?.is_empty(), "no text");
    run("evaluate", &[from, ("--eval-file", &rows)], &[])?;
    let into = [from, ("--output-dir", merged.as_path())];
    run("merge", &into, &["--into", "original"])?;

    let state = sh::read(&adapter.join("trainer_state.json"))?;
    let state: Value = serde_json::from_str(&state)?;
    let history = state["log_history"].as_array().context("no log_history")?;
    let value = |e: &Value| e["loss"].as_f64().or(e["eval_loss"].as_f64());
    Ok(history.iter().filter_map(value).collect())
}
