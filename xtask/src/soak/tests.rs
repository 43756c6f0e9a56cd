//! A soak that finds nothing must have looked: commands with a planted fault, each a
//! few lines of shell in place of `downhill`, and what is reported of them.

use super::ground::{Ground, fresh};
use super::judge::Cause;
use super::random::Rng;
use super::report::Report;
use super::{More, Place, faults, files, hostile, kills};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A folder of this test's, with a command of these lines and what it reads.
struct Planted {
    ground: Ground,
    report: Report,
    work: PathBuf,
}

impl Planted {
    fn new(name: &str, lines: &str) -> Self {
        let top = crate::sh::root().join("target/soak-tests").join(name);
        fresh(&top).unwrap();
        let (dir, work) = (top.join("ground"), top.join("work"));
        for model in ["model", "q", "moe"] {
            fresh(&dir.join(model)).unwrap();
            fs::write(dir.join(model).join("config.json"), "{\"a\": [1, 2]}")
                .unwrap();
        }
        for file in ["pairs.jsonl", "chat.jsonl"] {
            fs::write(dir.join(file), "{}\n").unwrap();
        }
        fresh(&work).unwrap();
        let bin = top.join("downhill");
        // The third word is the model, `WORK/in/model`.
        let head = "#!/bin/sh\nm=$3; w=${m%/in/model}; mkdir -p \"$w/out\"\n";
        fs::write(&bin, format!("{head}{lines}\n")).unwrap();
        fs::set_permissions(&bin, fs::Permissions::from_mode(0o755)).unwrap();
        let report = Report::new(top.join("found"), 1);
        Self { ground: Ground::given(dir, bin), report, work }
    }

    fn place(&self) -> Place<'_> {
        Place {
            ground: &self.ground,
            report: &self.report,
            part: "hostile",
            case: 1,
            rng: Rng::new(1, "hostile", 1),
            seed: 1,
            work: self.work.clone(),
            until: Instant::now(),
            clock: 3,
        }
    }
}

/// What the part with hostile files finds in a command of these lines.
fn hostile_findings(name: &str, lines: &str) -> Vec<Cause> {
    let planted = Planted::new(name, lines);
    assert!(hostile::case(&mut planted.place()).unwrap() == More::Yes);
    planted.report.causes()
}

#[test]
fn a_readable_error_is_no_finding() {
    let lines = "echo step 1; echo \"error: $m/config.json: no\" >&2; exit 1";
    assert_eq!(hostile_findings("readable", lines), []);
}

#[test]
fn planted_faults_are_found() {
    let said = "echo \"error: $m/config.json: no\" >&2; exit 1";
    for (i, (cause, lines)) in [
        (Cause::Panic, "echo \"thread 'main' panicked at x.rs:1\" >&2; exit 101"),
        (Cause::Abort, "kill -SEGV $$"),
        (Cause::Abort, "exit 134"),
        (Cause::Hang, "exec sleep 30"),
        (Cause::Hang, "while :; do :; done"),
        (Cause::Message, "exit 1"),
        (Cause::Message, "echo 'error: no' >&2; exit 1"),
        (Cause::Message, "head -c 5000 /dev/zero | tr '\\0' x >&2; exit 1"),
        (Cause::Control, "printf 'error: --x: \\033[2J\\n' >&2; exit 1"),
        (Cause::Torn, "printf '{\"a\":' >\"$w/out/config.json\""),
        (Cause::Torn, "mkdir \"$w/out/checkpoint-3\""),
        (Cause::Torn, "printf 12345678 >\"$w/out/model.safetensors\""),
        (Cause::Leftover, "touch \"$w/out/.model.safetensors.partial-1\""),
        (Cause::Touched, "rm \"$m/config.json\""),
        (Cause::Touched, "echo >>\"$m/config.json\""),
        (Cause::Touched, "touch \"$m/new\""),
    ]
    .into_iter()
    .enumerate()
    {
        let lines = format!("{lines}\n{said}");
        let found = hostile_findings(&format!("planted-{i}"), &lines);
        assert_eq!(found, [cause], "{lines}");
    }
}

#[test]
fn other_bits_after_a_resume_are_found() {
    let write = |bits: &str| format!("printf {bits} >\"$w/out/adapter_model.bin\"");
    let planted = Planted::new("bits", &write("a"));
    let place = planted.place();
    let call = planted.ground.call("finetune");
    let call = call.path("--model", planted.work.join("in/model"));
    let out = planted.work.join("out");
    // The adapter, and a state of which only the log counts.
    let result = |adapter: &str, loss: &str, speed: &str| {
        let state = format!(
            "{{\"log_history\": [{{\"loss\": {loss}, \"tokens_per_second\": {speed}}}]}}"
        );
        fresh(&out).unwrap();
        fs::write(out.join("optimizer.safetensors"), adapter).unwrap();
        fs::write(out.join("trainer_state.json"), state).unwrap();
        files::digest(&out, &planted.work)
    };
    let want = result("a", "1.5", "7");
    assert_eq!(files::differences(&want, &result("a", "1.5", "9")), [""; 0]);
    let lost = files::differences(&want, &result("a", "1.6", "7"));
    assert_eq!(lost, ["trainer_state.json differs"]);
    let lost = files::differences(&want, &result("b", "1.5", "7"));
    assert_eq!(lost, ["optimizer.safetensors differs"]);
    fresh(&out).unwrap();
    let known = kills::Known { want, took: Duration::ZERO };
    kills::finished(&place, &known, &call, "planted").unwrap();
    assert_eq!(planted.report.causes(), [Cause::BitsLost]);
}

/// Runs lines of shell with the shim: how they ended, and the operations.
fn shimmed(name: &str, lines: &str, env: &[(&str, &str)]) -> Option<(i32, String)> {
    let planted = Planted::new(name, lines);
    let shim = faults::compile(&planted.ground.dir).unwrap()?;
    let log = planted.work.join("log");
    let mut call = planted.ground.call("x").path("--model", "in/model");
    let under = planted.work.join("out");
    fresh(&under).unwrap();
    call = call.before(format!("cd {}", planted.work.display()));
    call = call.env("LD_PRELOAD", shim).env("SOAK_UNDER", &under);
    call = call.env("SOAK_LOG", &log);
    for (key, value) in env {
        call = call.env(key, value);
    }
    let ended = call.run(10).unwrap();
    let how = ended.code.unwrap_or(-ended.signal.unwrap_or(0));
    let text = fs::read_to_string(log).unwrap_or_default();
    let ops = text.lines().filter_map(|l| l.split(' ').nth(1));
    let bytes = fs::read(under.join("a")).map_or(99, |b| b.len());
    Some((how, format!("{} {bytes}", ops.collect::<Vec<_>>().join(" "))))
}

#[test]
fn the_shim_counts_fails_and_kills() {
    let lines = "set -e\nprintf 1234 >out/a\nprintf 12 >>out/a\nprintf 1 >beside";
    let all = "create write create write";
    let with = |name: &str, env: &[(&str, &str)]| shimmed(name, lines, env);
    let Some(plain) = with("shim-plain", &[]) else { return };
    assert_eq!(plain, (0, format!("{all} 6")));
    let at =
        |name, n, how| with(name, &[("SOAK_AT", n), ("SOAK_HOW", how)]).unwrap();
    assert_eq!(at("shim-fail", "1", "fail").1, "create 99");
    assert_ne!(at("shim-full", "2", "full").0, 0);
    assert_eq!(at("shim-before", "2", "before"), (-9, "create write 0".into()));
    assert_eq!(at("shim-after", "2", "after"), (-9, "create write 4".into()));
    assert_eq!(at("shim-half", "2", "half"), (-9, "create write 2".into()));
}

#[test]
fn a_snapshot_sees_every_kind_of_change() {
    let top = crate::sh::root().join("target/soak-tests/snapshot");
    let make = || -> files::Snapshot {
        fresh(&top).unwrap();
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/a"), "1").unwrap();
        files::Snapshot::of(&[&top])
    };
    let changes = |was: &files::Snapshot| {
        was.changes(&files::Snapshot::of(&[&top]), true).len()
    };
    type Change = fn(&Path);
    let kinds: [(&str, Change); 4] = [
        ("nothing", |_| ()),
        ("removed", |a| fs::remove_file(a).unwrap()),
        ("rewritten", |a| {
            let other = a.with_file_name("b");
            fs::write(&other, "1").unwrap();
            fs::rename(other, a).unwrap();
        }),
        ("new", |a| fs::write(a.with_file_name("b"), "").unwrap()),
    ];
    for (name, change) in kinds {
        let was = make();
        change(&top.join("d/a"));
        assert_eq!(changes(&was), usize::from(name != "nothing"), "{name}");
    }
}
