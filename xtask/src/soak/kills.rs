//! Fine-tunes killed at random moments and resumed until they end.

use super::child::Call;
use super::judge::Cause;
use super::{More, Place, files, ground};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// Name, model, rows, and flags beside the usual ones.
type Setting = (&'static str, &'static str, &'static str, &'static [&'static str]);

const SETTINGS: [Setting; 10] = [
    ("dense", "model", "pairs.jsonl", &["--save-steps", "5"]),
    ("dense, each step saved", "model", "text.jsonl", &["--save-steps", "1"]),
    ("4-bit folder", "q", "chat.jsonl", &["--save-steps", "2"]),
    ("experts", "moe", "pairs.jsonl", &["--save-steps", "3"]),
    ("packing", "model", "pairs.jsonl", &["--packing", "--save-steps", "3"]),
    ("dora", "model", "pairs.jsonl", &["--use-dora", "--save-steps", "2"]),
    (
        "classes",
        "model",
        "class.jsonl",
        &["--task", "classification", "--save-steps", "3"],
    ),
    (
        "accumulation and windows",
        "model",
        "pairs.jsonl",
        &[
            "--gradient-accumulation-steps",
            "2",
            "--logging-steps",
            "7",
            "--validation-split",
            "0.1",
            "--eval-strategy",
            "steps",
            "--eval-steps",
            "9",
            "--group-by-length",
            "--save-steps",
            "4",
        ],
    ),
    (
        "epochs",
        "model",
        "pairs.jsonl",
        &[
            "--max-steps",
            "-1",
            "--num-train-epochs",
            "2",
            "--per-device-train-batch-size",
            "4",
            "--save-strategy",
            "epoch",
            "--validation-split",
            "0.1",
            "--optim",
            "rmsprop",
        ],
    ),
    (
        "streamed",
        "model",
        "",
        &["--packing", "--max-length", "64", "--save-steps", "5"],
    ),
];

/// The undisturbed run: its bits, and how long it took.
pub struct Known {
    pub want: BTreeMap<String, u64>,
    pub took: Duration,
}

static KNOWN: [OnceLock<Known>; SETTINGS.len()] =
    [const { OnceLock::new() }; SETTINGS.len()];

fn call(place: &Place<'_>, setting: usize, out: &Path) -> Result<Call> {
    let (_, model, rows, flags) = SETTINGS[setting];
    let call = place.ground.finetune(model, rows, out);
    let call = match rows {
        "" => call.path("--train-file", place.ground.big()?),
        _ => call,
    };
    let usual = ["--max-steps", "24", "--save-strategy", "steps"];
    let drop = ["--target-modules", "all-linear", "--lora-dropout", "0.1"];
    Ok(call.args(usual).args(drop).args(flags))
}

/// The settings' names, for the parts that disturb the same runs in other ways.
pub fn name(setting: usize) -> &'static str {
    SETTINGS[setting].0
}

/// Flags of a setting, its undisturbed run, and the call that is to be disturbed.
pub fn prepared(
    place: &Place<'_>,
    setting: usize,
) -> Result<(Call, &'static Known)> {
    let out = place.work.join("out");
    let again = call(place, setting, &out)?.args(["--resume"]);
    if let Some(known) = KNOWN[setting].get() {
        return Ok((again, known));
    }
    let ended = ground::good(call(place, setting, &out)?)?;
    let known = Known { want: files::digest(&out, &place.work), took: ended.took };
    ground::fresh(&place.work)?;
    Ok((again, KNOWN[setting].get_or_init(|| known)))
}

pub fn case(place: &mut Place<'_>) -> Result<More> {
    let mut setting = (place.case as usize - 1) % SETTINGS.len();
    // Streamed rows take long to read; once in a while is enough.
    if SETTINGS[setting].2.is_empty() && !place.case.is_multiple_of(30) {
        setting = place.rng.below(SETTINGS.len() - 1);
    }
    let (call, known) = prepared(place, setting)?;
    let out = place.work.join("out");
    let (when, mut kills) = (name(setting), 0);
    for _ in 0..2 + place.rng.below(3) {
        let mut run = call.start()?;
        let until = known.took.mul_f64(place.rng.share());
        let then = Duration::from_secs_f64(0.03 * place.rng.share());
        let runs = match place.rng.below(3) {
            0 => run.wait(until, || false),
            // While something is written.
            1 => run.wait(until, || !files::partials(&out).is_empty()),
            // As soon as it trains, and some time after.
            _ => {
                let trains = run.wait(Duration::from_secs(60), || out.exists());
                let share = place.rng.share();
                std::thread::sleep(known.took.mul_f64(0.5 * share));
                trains && run.runs()
            }
        };
        if runs {
            std::thread::sleep(then);
            run.kill();
        }
        let ended = run.end(place.clock)?;
        if ended.signal != Some(9) {
            place.judged(&ended, &[0], when, &call);
            break;
        }
        kills += 1;
        place.whole(&out, when, &call);
    }
    place.report.count("kills at a random moment", kills);
    finished(place, known, &call, when)?;
    Ok(More::Yes)
}

/// Lets the run go on to its end, whose bits must be the undisturbed run's.
pub fn finished(
    place: &Place<'_>,
    known: &Known,
    call: &Call,
    when: &str,
) -> Result<()> {
    let out = place.work.join("out");
    let ended = call.run(300)?;
    if !place.judged(&ended, &[0], when, call) {
        return Ok(());
    }
    place.report.count("disturbed runs resumed to the end", 1);
    let got = files::digest(&out, &place.work);
    for what in files::differences(&known.want, &got) {
        place.found(Cause::BitsLost, when, what, call);
    }
    for left in files::partials(&place.work) {
        place.found(Cause::Leftover, when, left, call);
    }
    place.whole(&out, when, call);
    place.untouched(when, call);
    Ok(())
}
