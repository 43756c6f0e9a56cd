//! Signals at random moments: one ends as by convention with all saved, two end at
//! once, and one that the caller ignores is ignored.

use super::child::{Call, Ended};
use super::judge::Cause;
use super::{More, Place, kills};
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

const SIGNALS: [(&str, i32); 3] = [("INT", 2), ("TERM", 15), ("HUP", 1)];

/// Seconds in which a run must end after a signal.
const ENDS: u64 = 20;

pub fn case(place: &mut Place<'_>) -> Result<More> {
    let (signal, number) = *place.rng.of(&SIGNALS);
    match place.case % 4 {
        0 => others(place, signal, number)?,
        1 => ignored(place, signal)?,
        2 => finetune(place, (signal, number), false)?,
        _ => finetune(place, (signal, number), true)?,
    }
    Ok(More::Yes)
}

/// A fine-tune that gets one signal, or two.
fn finetune(
    place: &mut Place<'_>,
    (signal, number): (&str, i32),
    twice: bool,
) -> Result<()> {
    let setting = place.rng.below(4);
    let (call, known) = kills::prepared(place, setting)?;
    let how = if twice { "twice " } else { "" };
    let when = format!("{}, {how}SIG{signal}", kills::name(setting));
    let mut run = call.start()?;
    let share = place.rng.share();
    if run.wait(known.took.mul_f64(share), || false) {
        run.signal(signal);
        place.report.count("signals", 1);
        if twice {
            let pause = 0.05 * place.rng.share();
            std::thread::sleep(Duration::from_secs_f64(pause));
            run.signal(signal);
            place.report.count("signals", 1);
        }
    }
    let mut ended = run.end(ENDS)?;
    let trained = ended.err.lines().any(|line| line.starts_with("step "));
    if ended.signal == Some(number) && trained {
        let what = format!("ended by SIG{signal} itself, nothing saved");
        place.found(Cause::Abort, &when, what, &call);
    }
    forgive(&mut ended, number);
    let good = place.judged(&ended, &[0, 128 + number], &when, &call);
    let out = place.work.join("out");
    place.whole(&out, &when, &call);
    // What is said to be saved is there.
    let said = ended.err.lines().any(|line| line.contains("saved in"));
    if good && said && !saved(&out) {
        let what = format!("said to be saved: {}", ended.last_line());
        place.found(Cause::BitsLost, &when, what, &call);
    }
    kills::finished(place, known, &call, &when)
}

fn saved(out: &Path) -> bool {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let mut names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.any(|name| name.starts_with("checkpoint-"))
}

/// An end by the signal itself is in order, but not by another.
fn forgive(ended: &mut Ended, number: i32) {
    if ended.signal == Some(number) {
        (ended.signal, ended.code) = (None, Some(128 + number));
    }
}

/// A caller such as `nohup` ignores a signal, and so does the run.
fn ignored(place: &mut Place<'_>, signal: &str) -> Result<()> {
    let (call, known) = kills::prepared(place, 0)?;
    let call = call.before(format!("trap '' {signal}"));
    let when = format!("SIG{signal} ignored by the caller");
    let mut run = call.start()?;
    for _ in 0..3 {
        let share = 0.4 * place.rng.share();
        std::thread::sleep(known.took.mul_f64(share));
        if run.runs() {
            run.signal(signal);
            place.report.count("signals", 1);
        }
    }
    let ended = run.end(120)?;
    place.judged(&ended, &[0], &when, &call);
    kills::finished(place, known, &call, &when)
}

/// The other commands: no final name with half a file, the inputs as they were.
fn others(place: &mut Place<'_>, signal: &str, number: i32) -> Result<()> {
    let (ground, out) = (place.ground, place.work.join("out"));
    let model = |name: &str, model: &str| {
        ground.call(name).path("--model", ground.at(model))
    };
    let adapter = |call: Call, name: &str| call.path("--adapter", ground.at(name));
    let rows = ground.at("pairs.jsonl");
    let (name, call) = match place.rng.below(6) {
        0 => ("quantize", model("quantize", "model").path("--output-dir", &out)),
        1 => {
            let call = adapter(model("merge", "q"), "made/adq");
            let call = call.args(["--into", "dequantized"]);
            ("merge", call.path("--output-dir", &out))
        }
        2 => ("evaluate", model("evaluate", "model").path("--eval-file", rows)),
        3 => ("preview", model("preview", "model").path("--train-file", rows)),
        4 => ("doctor", model("doctor", "model")),
        _ => {
            let call = model("generate", "model");
            let call = call.args(["--prompt", "The", "--max-new-tokens", "300"]);
            ("generate", call)
        }
    };
    let when = format!("{name}, SIG{signal}");
    let mut run = call.start()?;
    let until = Duration::from_secs_f64(1.2 * place.rng.share());
    if run.wait(until, || false) {
        run.signal(signal);
        place.report.count("signals", 1);
    }
    let mut ended = run.end(ENDS)?;
    forgive(&mut ended, number);
    place.judged(&ended, &[0, 128 + number], &when, &call);
    place.whole(&place.work, &when, &call);
    place.untouched(&when, &call);
    Ok(())
}
