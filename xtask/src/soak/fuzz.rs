//! The readers within one process, thousands of damaged inputs a minute:
//! `examples/fuzz_readers/`, which knows the library, started and watched from here.

use super::child::Call;
use super::judge::Cause;
use super::{More, Place};
use crate::sh;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The readers, by the names that the program gives them.
const TARGETS: [&str; 11] = [
    "safetensors",
    "index",
    "quant_state",
    "rows",
    "labelled",
    "table",
    "adapter_config",
    "config",
    "tokenizer",
    "template",
    "resume",
];

/// KiB of memory, and seconds that one input may take.
const MEMORY: u64 = 4 << 20;
const SECONDS: u64 = 20;

fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut build = sh::cargo(["build", "--example", "fuzz_readers"]);
        sh::check(&mut build).map_err(|e| e.to_string())?;
        Ok(sh::root().join("target/debug/examples/fuzz_readers"))
    });
    built.clone().map_err(anyhow::Error::msg)
}

/// A case is a reader; the time that is left is shared among those to come.
pub fn case(place: &mut Place<'_>) -> Result<More> {
    let Some(name) = TARGETS.get(place.case as usize - 1) else {
        return Ok(More::No);
    };
    let program = program()?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let to_come = (TARGETS.len() + 1 - place.case as usize).div_ceil(workers);
    let left = place.until.saturating_duration_since(Instant::now());
    let end = Instant::now() + (left / to_come as u32).max(Duration::from_secs(1));
    let mut first = 1;
    while Instant::now() < end {
        let seconds = end.saturating_duration_since(Instant::now()).as_secs_f64();
        let call = Call::new(&program)
            .args(["--target", name, "--seed", &place.seed.to_string()])
            .args(["--first", &first.to_string(), "--seconds", &seconds.to_string()])
            .path("--ground", &place.ground.dir)
            .path("--work", &place.work)
            .memory(MEMORY);
        match watched(place, name, &call)? {
            Some(case) => first = case + 1,
            None => break,
        }
    }
    Ok(More::Yes)
}

/// Runs until its time is up, or until an input ends it, whose number is returned.
fn watched(place: &Place<'_>, name: &str, call: &Call) -> Result<Option<u64>> {
    let counter = place.work.join("case");
    let at = || -> u64 {
        let text = fs::read_to_string(&counter).unwrap_or_default();
        text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    fs::write(&counter, "0")?;
    let mut run = call.start()?;
    let (mut last, mut since) = (at(), Instant::now());
    let mut hangs = false;
    while run.wait(Duration::ZERO, || true) {
        std::thread::sleep(Duration::from_millis(20));
        if at() != last {
            (last, since) = (at(), Instant::now());
        } else if since.elapsed() > Duration::from_secs(3 * SECONDS) {
            run.kill();
            hangs = true;
            break;
        }
    }
    let ended = run.end(5)?;
    for line in ended.out.lines() {
        if let Some(n) = line.strip_prefix("inputs ") {
            let n = n.parse().context("fuzz_readers counts")?;
            place.report.count("inputs to readers in one process", n);
        } else if let Some(rest) = line.strip_prefix("panic ") {
            let (number, what) = rest.split_once(' ').unwrap_or(("0", rest));
            let when = format!("{name}, input {number}");
            place.found(Cause::Panic, &when, what, call);
        } else if let Some(rest) = line.strip_prefix("slow ") {
            let (number, what) = rest.split_once(' ').unwrap_or(("0", rest));
            let when = format!("{name}, input {number}");
            place.found(Cause::Hang, &when, what, call);
        }
    }
    if ended.code == Some(0) {
        return Ok(None);
    }
    let when = format!("{name}, input {}", at());
    let cause = if hangs { Cause::Hang } else { Cause::Abort };
    let what = format!("{}: {}", ended.how(), ended.last_line());
    place.found(cause, &when, what, call);
    Ok(Some(at()))
}
