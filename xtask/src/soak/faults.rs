//! Every file operation of the commands that write, failed or killed in turn by a shim
//! that is loaded before the C library (`fault.c`).

use super::child::{Call, Ended};
use super::judge::Cause;
use super::random::Rng;
use super::{More, Place, files, ground};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

/// Makes the shim; none on other systems than Linux, or where there is no C compiler.
pub fn compile(dir: &Path) -> Result<Option<PathBuf>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let Some(cc) = crate::sh::which(&["cc", "gcc", "clang"]) else {
        return Ok(None);
    };
    let source = dir.join("fault.c");
    let shim = dir.join("fault.so");
    fs::write(&source, include_str!("fault.c"))?;
    let mut command = crate::sh::command(cc);
    command.args(["-shared", "-fPIC", "-O1", "-o"]).args([&shim, &source]);
    crate::sh::check(command.arg("-ldl"))?;
    Ok(Some(shim))
}

/// How an operation goes wrong: the shim's word, the error, and what is said of it.
struct Mode {
    how: &'static str,
    errno: i32,
    name: &'static str,
    /// The operations that it befalls; all where there are none.
    ops: &'static [&'static str],
    /// Words of which a message has one.
    words: &'static [&'static str],
}

const ROOM: &[&str] = &["create", "write", "mkdir", "copy", "truncate", "reserve"];
const CHANGES: &[&str] =
    &["create", "write", "mkdir", "copy", "rename", "unlink", "rmdir"];
const FULL: &[&str] = &["os error 28", "No space left", "full", "room"];

const MODES: [Mode; 8] = [
    Mode {
        how: "full",
        errno: 28,
        name: "the disk full from then on",
        ops: ROOM,
        words: FULL,
    },
    Mode {
        how: "fail",
        errno: 28,
        name: "the disk full once",
        ops: ROOM,
        words: FULL,
    },
    Mode {
        how: "fail",
        errno: 5,
        name: "an I/O error",
        ops: &[],
        words: &["os error 5", "Input/output error", "I/O error"],
    },
    Mode {
        how: "fail",
        errno: 24,
        name: "too many open files",
        ops: &["open", "create"],
        words: &["os error 24", "Too many open files", "too many open files"],
    },
    Mode { how: "before", errno: 0, name: "killed before it", ops: &[], words: &[] },
    Mode {
        how: "after",
        errno: 0,
        name: "killed after it",
        ops: CHANGES,
        words: &[],
    },
    Mode {
        how: "half",
        errno: 0,
        name: "killed half-way",
        ops: &["write"],
        words: &[],
    },
    Mode {
        how: "full",
        errno: 122,
        name: "the quota used up",
        ops: ROOM,
        words: &["os error 122", "uota", "full", "room"],
    },
];

/// A command, and whether `--resume` is how it is given again.
struct Setting {
    name: &'static str,
    call: fn(&Place<'_>, &Path) -> Call,
    resumed: bool,
}

const STEPS: [&str; 6] =
    ["--max-steps", "3", "--save-strategy", "steps", "--save-steps", "1"];

const SETTINGS: [Setting; 6] = [
    Setting {
        name: "finetune",
        call: |place, out| {
            place.ground.finetune("model", "pairs.jsonl", out).args(STEPS)
        },
        resumed: true,
    },
    Setting {
        name: "finetune, classes",
        call: |place, out| {
            let call =
                place.ground.finetune("model", "class.jsonl", out).args(STEPS);
            call.args(["--task", "classification", "--validation-split", "0.1"])
        },
        resumed: true,
    },
    Setting {
        name: "finetune with a cache",
        call: |place, out| {
            let call = place.ground.finetune("model", "pairs.jsonl", out);
            let call = call.path("--quantized-cache", out.with_file_name("cache"));
            call.args(["--max-steps", "1", "--save-strategy", "no"])
        },
        resumed: true,
    },
    Setting {
        name: "quantize",
        call: |place, out| {
            let call = place.ground.call("quantize");
            let call = call.path("--model", place.ground.at("model"));
            call.path("--output-dir", out).args(["--max-shard-size", "300KB"])
        },
        resumed: false,
    },
    Setting {
        name: "merge",
        call: |place, out| {
            let call = place.ground.call("merge");
            let call = call.path("--model", place.ground.at("model"));
            let call = call.path("--adapter", place.ground.at("made/ad"));
            let call = call.path("--probe-file", place.ground.at("pairs.jsonl"));
            call.path("--output-dir", out).args(["--into", "original"])
        },
        resumed: false,
    },
    Setting {
        name: "merge, 4 bits",
        call: |place, out| {
            let call = place.ground.call("merge");
            let call = call.path("--model", place.ground.at("q"));
            let call = call.path("--adapter", place.ground.at("made/adq"));
            call.path("--output-dir", out).args(["--into", "dequantized"])
        },
        resumed: false,
    },
];

/// What the undisturbed command does: its operations and its bits.
struct Known {
    ops: Vec<(String, String)>,
    want: BTreeMap<String, u64>,
}

/// A case: a setting, the number of an operation, a mode.
type Plan = Vec<(usize, usize, usize)>;

static KNOWN: [OnceLock<Known>; SETTINGS.len()] =
    [const { OnceLock::new() }; SETTINGS.len()];
static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

/// The call with the shim before it.
fn shimmed(place: &Place<'_>, call: Call) -> Result<Call> {
    let Some(shim) = &place.ground.shim else { return Ok(call) };
    let under = [&place.work, &place.ground.dir].map(|p| p.display().to_string());
    Ok(call.env("SOAK_UNDER", under.join(":")).env("LD_PRELOAD", shim))
}

/// The undisturbed run of a setting, in this case's own folder.
fn known(place: &Place<'_>, setting: &Setting) -> Result<Known> {
    let out = place.work.join("out");
    let log = place.work.with_extension("ops");
    fs::remove_file(&log).ok();
    let call = shimmed(place, (setting.call)(place, &out))?.env("SOAK_LOG", &log);
    let ended = ground::good(call)?;
    let text = fs::read_to_string(&log)?;
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ').skip(1).map(String::from);
        words.next().zip(words.next())
    };
    let ops: Vec<_> = text.lines().filter_map(line).collect();
    ensure!(ops.len() > 10, "the shim counts nothing:\n{}{text}", ended.err);
    let want = files::digest(&place.work, &place.work);
    ground::fresh(&place.work)?;
    Ok(Known { ops, want })
}

/// All that can go wrong, in an order drawn from the seed.
fn plan(place: &Place<'_>) -> Result<Plan> {
    let mut all = Plan::new();
    for (s, setting) in SETTINGS.iter().enumerate() {
        let made = known(place, setting)?;
        for (n, (op, _)) in made.ops.iter().enumerate() {
            let befalls =
                |m: &Mode| m.ops.is_empty() || m.ops.contains(&op.as_str());
            let modes = (0..MODES.len()).filter(|m| befalls(&MODES[*m]));
            all.extend(modes.map(|m| (s, n, m)));
        }
        KNOWN[s].get_or_init(|| made);
    }
    let mut rng = Rng::new(place.seed, "faults", 0);
    for i in (1..all.len()).rev() {
        all.swap(i, rng.below(i + 1));
    }
    println!("faults: {} in all", all.len());
    Ok(all)
}

pub fn case(place: &mut Place<'_>) -> Result<More> {
    if place.ground.shim.is_none() {
        println!("faults: skipped, they need Linux and a C compiler");
        return Ok(More::No);
    }
    let one = {
        let mut all = PLAN.lock().unwrap_or_else(|e| e.into_inner());
        let all = match &mut *all {
            Some(all) => all,
            none => none.insert(plan(place)?),
        };
        all.get(place.case as usize - 1).copied()
    };
    let Some((s, n, m)) = one else { return Ok(More::No) };
    let (setting, mode) = (&SETTINGS[s], &MODES[m]);
    let Some(known) = KNOWN[s].get() else { return Ok(More::No) };
    disturb(place, setting, known, (n, mode))?;
    Ok(More::Yes)
}

fn disturb(
    place: &Place<'_>,
    setting: &Setting,
    known: &Known,
    (n, mode): (usize, &Mode),
) -> Result<()> {
    let out = place.work.join("out");
    let (op, path) = &known.ops[n];
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
    let when = format!("{}, {op} {name} (#{}), {}", setting.name, n + 1, mode.name);
    let plain = (setting.call)(place, &out);
    let call = shimmed(place, plain.clone())?
        .env("SOAK_AT", (n + 1).to_string())
        .env("SOAK_HOW", mode.how)
        .env("SOAK_ERRNO", mode.errno.to_string());
    let ended = call.run(120)?;
    let killed = matches!(mode.how, "before" | "after" | "half");
    match killed {
        true => place.report.count("kills at a file operation", 1),
        false => place.report.count("failed file operations", 1),
    }
    if killed && ended.signal == Some(9) && !ended.hung {
        // As it should be.
    } else if place.judged(&ended, &[0, 1], &when, &call) && !killed {
        failed(place, known, &ended, (&when, path, mode), &call);
    }
    place.whole(&place.work, &when, &call);
    if !killed {
        leftover(place, &when, &call);
    }
    // What is done is done: to do it over is refused, and rightly.
    let got = files::digest(&place.work, &place.work);
    let done = files::differences(&known.want, &got).is_empty();
    if done && !setting.resumed {
        place.untouched(&when, &call);
        return Ok(());
    }
    let again = if setting.resumed { plain.args(["--resume"]) } else { plain };
    let ended = again.run(120)?;
    let again = call.then(&again);
    if ended.code != Some(0) {
        let what = format!("again: {}: {}", ended.how(), ended.last_line());
        place.found(Cause::Refused, &when, what, &again);
    } else {
        let got = files::digest(&place.work, &place.work);
        for what in files::differences(&known.want, &got) {
            place.found(Cause::BitsLost, &when, what, &again);
        }
        leftover(place, &format!("{when}, then again"), &again);
    }
    place.untouched(&when, &call);
    Ok(())
}

/// Takes down unfinished files, however many, as one finding.
fn leftover(place: &Place<'_>, when: &str, call: &Call) {
    let left = files::partials(&place.work);
    if let Some(first) = left.first() {
        place.found(Cause::Leftover, when, format!("{first} is left"), call);
    }
}

/// What a run says of an operation that failed.
fn failed(
    place: &Place<'_>,
    known: &Known,
    ended: &Ended,
    (when, path, mode): (&str, &str, &Mode),
    call: &Call,
) {
    let work = place.work.to_string_lossy();
    if ended.code == Some(0) {
        // Only what can be made again may be missing, and the run says so.
        let got = files::digest(&place.work, &place.work);
        let lost = files::differences(&known.want, &got);
        let vital = |f: &&String| f.contains(".safetensors") || f.contains(".json");
        let (vital, other): (Vec<&String>, Vec<_>) = lost.iter().partition(vital);
        if !vital.is_empty() {
            let what = format!("exit 0, but {}", vital[0]);
            place.found(Cause::Unsaid, when, what, call);
        } else if !other.is_empty() && !ended.err.contains(&*work) {
            let what = format!("nothing said, but {}", other[0]);
            place.found(Cause::Unsaid, when, what, call);
        }
        return;
    }
    let message = ended.message();
    // Paths of the plan are those of another worker's folder.
    let inside =
        path.split_once("/out").map(|(_, rest)| format!("{work}/out{rest}"));
    let ours = path.contains("/soak/work/");
    let root = format!("{work}/");
    let named = match ours {
        true => message.contains(&root),
        false => message.contains(&*place.ground.dir.to_string_lossy()),
    };
    if !named {
        let file = inside.unwrap_or_else(|| path.to_string());
        let what = format!("{file} is not named: {}", ended.last_line());
        place.found(Cause::Message, when, what, call);
    } else if !mode.words.iter().any(|w| message.contains(w)) {
        let what = format!("the reason is not told: {}", ended.last_line());
        place.found(Cause::Message, when, what, call);
    }
}
