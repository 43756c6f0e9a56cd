//! Surroundings that a command may find itself in: closed streams, odd names, links,
//! no home, few open files, a folder that cannot be written, and the user's own things
//! where the output should go. A list, not a draw.

use super::child::{Call, Ended};
use super::files;
use super::ground::{self, SHORT};
use super::judge::Cause;
use super::{More, Place};
use anyhow::Result;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A name, and what is done.
type Case = (&'static str, fn(&Place<'_>, &str) -> Result<()>);

/// Other numbers of threads give other bits.
const THREADS: &str = "export OMP_NUM_THREADS=1";

const CASES: &[Case] = &[
    ("a folder that cannot be made", |p, w| {
        refused(p, w, &short(p, Path::new("/proc/soak/out")))
    }),
    ("a read-only disk", |p, w| {
        let Some(shim) = &p.ground.shim else { return Ok(()) };
        let call = short(p, &p.work.join("out")).env("LD_PRELOAD", shim);
        let call = call.env("SOAK_UNDER", &p.work).env("SOAK_AT", "1");
        refused(p, w, &call.env("SOAK_HOW", "full").env("SOAK_ERRNO", "30"))
    }),
    ("stdout closed", |p, w| same(p, w, |c| c.after(">&-"))),
    ("stderr closed", |p, w| same(p, w, |c| c.after("2>&-"))),
    ("all streams closed", |p, w| same(p, w, |c| c.after("<&- >&- 2>&-"))),
    ("stderr full", |p, w| same(p, w, |c| c.after("2>/dev/full"))),
    ("stdout full", |p, w| same(p, w, |c| c.after(">/dev/full"))),
    ("no HOME", |p, w| same(p, w, |c| c.before("unset HOME"))),
    ("nothing in the environment", |p, w| {
        let all = "for v in $(env | sed 's/=.*//'); do unset $v; done";
        bits(p, w, &short(p, &p.work.join("out")).before(all).before(THREADS))
    }),
    ("HOME that is a file", |p, w| same(p, w, |c| c.env("HOME", "/dev/null"))),
    ("a Turkish locale", |p, w| same(p, w, |c| c.env("LC_ALL", "tr_TR.UTF-8"))),
    ("a locale that does not exist", |p, w| {
        same(p, w, |c| c.env("LC_ALL", "x\u{1b}"))
    }),
    ("no folder for temporary files", |p, w| {
        same(p, w, |c| c.env("TMPDIR", "/nowhere"))
    }),
    ("a terminal of no width", |p, w| {
        same(p, w, |c| c.env("TERM", "dumb").env("COLUMNS", "0"))
    }),
    ("RUST_BACKTRACE set", |p, w| same(p, w, |c| c.env("RUST_BACKTRACE", "full"))),
    ("12 open files", |p, w| limited(p, w, "ulimit -n 12")),
    ("16 open files", |p, w| limited(p, w, "ulimit -n 16")),
    ("24 open files", |p, w| limited(p, w, "ulimit -n 24")),
    ("400 MB of memory", |p, w| limited(p, w, "ulimit -v 400000")),
    ("600 MB of memory", |p, w| limited(p, w, "ulimit -v 600000")),
    ("700 MB of memory", |p, w| limited(p, w, "ulimit -v 700000")),
    ("800 MB of memory", |p, w| limited(p, w, "ulimit -v 800000")),
    ("a small stack", |p, w| limited(p, w, "ulimit -s 256")),
    ("spaces and quotes in names", |p, w| {
        named(p, w, OsStr::new("a b 'c' \"d\" $e"))
    }),
    ("names that are not ASCII", |p, w| named(p, w, OsStr::new("größe 模型 🧪"))),
    ("names like flags and globs", |p, w| named(p, w, OsStr::new("[a]*?{b}%s"))),
    ("names that are not UTF-8", |p, w| {
        let call = in_folder(p, OsStr::from_bytes(b"caf\xe9"))?;
        ends(p, w, &call).map(drop)
    }),
    ("the output folder by a link", by_link),
    ("the output folder as .", |p, w| {
        fs::create_dir(p.work.join("out"))?;
        let here = format!("cd {}", p.work.join("out").display());
        let call = short(p, Path::new(".")).before(here);
        bits(p, w, &call)
    }),
    ("the output folder with / and ..", |p, w| {
        fs::create_dir(p.work.join("x"))?;
        bits(p, w, &short(p, &p.work.join("x/../out//")))
    }),
    ("a model of links", |p, w| {
        let model = p.work.join("linked");
        fs::create_dir(&model)?;
        for (file, _) in files::all(&p.ground.at("model")) {
            symlink(&file, model.join(file.file_name().unwrap_or_default()))?;
        }
        let call = short(p, &p.work.join("out")).path("--model", model);
        bits(p, w, &call)
    }),
    ("a folder that was removed", |p, w| {
        let gone = p.work.join("gone");
        let before = format!("mkdir {0}; cd {0}; rmdir {0}", gone.display());
        refused(p, w, &short(p, Path::new("out")).before(before))
    }),
    ("the output twice into one folder", |p, w| {
        let call = short(p, &p.work.join("out"));
        ends(p, w, &call)?;
        let notes = p.work.join("out/notes.txt");
        fs::write(&notes, "the user's")?;
        bits(p, w, &call)?;
        let kept = fs::read(&notes).is_ok_and(|text| text == b"the user's");
        let gone = (!kept).then(|| format!("{} is gone", notes.display()));
        touched(p, w, &call, gone.into_iter().collect());
        Ok(())
    }),
    ("the output where model and rows are", |p, w| over(p, w, "finetune", "")),
    ("the output where the model is", |p, w| over(p, w, "finetune", "model")),
    ("the output where the adapter is", |p, w| over(p, w, "finetune", "ad")),
    ("the output within the model", |p, w| over(p, w, "finetune", "model/out")),
    ("the output where the rows are a file", |p, w| {
        over(p, w, "finetune", "rows.jsonl")
    }),
    ("quantize into the model", |p, w| over(p, w, "quantize", "model")),
    ("quantize around the model", |p, w| over(p, w, "quantize", "")),
    ("merge into the model", |p, w| over(p, w, "merge", "model")),
    ("merge into the adapter", |p, w| over(p, w, "merge", "ad")),
    ("merge around both", |p, w| over(p, w, "merge", "")),
    ("the logs where the model is", logs_over),
    ("an output file over the rows", |p, w| {
        let (call, project) = project(p, "evaluate")?;
        let rows = project.join("rows.jsonl");
        spared(p, w, &call.path("--eval-file", &rows).path("--output-file", &rows))
    }),
];

pub fn case(place: &mut Place<'_>) -> Result<More> {
    let Some((name, run)) = CASES.get(place.case as usize - 1) else {
        return Ok(More::No);
    };
    place.report.count("odd surroundings", 1);
    run(place, name)?;
    Ok(More::Yes)
}

/// Two steps into `out`.
fn short(place: &Place<'_>, out: &Path) -> Call {
    let ground = place.ground;
    let call = ground.call("finetune").path("--model", ground.at("model"));
    let call = call.path("--train-file", ground.at("pairs.jsonl")).args(SHORT);
    let call = call.path("--logging-dir", place.work.join("logs"));
    call.path("--output-dir", out).args(["--max-steps", "2"])
}

/// Runs; what no run may do is taken down, and what is touched or torn.
fn ends(place: &Place<'_>, when: &str, call: &Call) -> Result<Ended> {
    let ended = call.run(place.clock)?;
    place.judged(&ended, &[0, 1], when, call);
    place.whole(&place.work, when, call);
    place.untouched(when, call);
    Ok(ended)
}

/// It must end with an error.
fn refused(place: &Place<'_>, when: &str, call: &Call) -> Result<()> {
    let ended = ends(place, when, call)?;
    if ended.code == Some(0) {
        place.found(Cause::Unsaid, when, "exit 0", call);
    }
    if ended.err.lines().any(|line| line.starts_with("step ")) {
        place.found(Cause::Unsaid, when, "refused only after a step", call);
    }
    Ok(())
}

/// It must end well, with the bits of a run in usual surroundings.
fn bits(place: &Place<'_>, when: &str, call: &Call) -> Result<()> {
    let ended = ends(place, when, call)?;
    if ended.code != Some(0) {
        let what = format!("{}: {}", ended.how(), ended.last_line());
        place.found(Cause::Refused, when, what, call);
        return Ok(());
    }
    let adapter = |out: &str| -> Result<Vec<u8>> {
        Ok(fs::read(place.work.join(out).join("adapter_model.safetensors"))?)
    };
    static USUAL: OnceLock<Vec<u8>> = OnceLock::new();
    let usual = match USUAL.get() {
        Some(bytes) => bytes,
        None => {
            ground::good(short(place, &place.work.join("usual")))?;
            let bytes = adapter("usual")?;
            USUAL.get_or_init(|| bytes)
        }
    };
    if adapter("out").ok().as_ref() != Some(usual) {
        place.found(Cause::BitsLost, when, "another adapter", call);
    }
    Ok(())
}

fn same(place: &Place<'_>, when: &str, change: fn(Call) -> Call) -> Result<()> {
    bits(place, when, &change(short(place, &place.work.join("out"))))
}

/// It may work or not, readably.
fn limited(place: &Place<'_>, when: &str, limit: &str) -> Result<()> {
    let call = short(place, &place.work.join("out")).before(limit);
    // Before `main` the loader speaks, and libtorch's own start, which takes some 600 MB
    // of addresses: that is not ours to word. Nor is Rust's line where even an error has
    // no room to be made. Once anything of ours was said, it is.
    let ended = call.run(place.clock)?;
    let loading = [
        "error while loading shared libraries",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "memory allocation of",
    ];
    let first = ended.err.trim_start();
    if !loading.iter().any(|words| first.contains(words) && !ours(first)) {
        place.judged(&ended, &[0, 1], when, &call);
    }
    place.whole(&place.work, when, &call);
    Ok(())
}

/// Whether a run had begun: it says what it read.
fn ours(err: &str) -> bool {
    err.lines().any(|line| line.starts_with("step ") || line.contains("learned"))
}

/// Model, rows and output in a folder of this name.
fn in_folder(place: &Place<'_>, name: &OsStr) -> Result<Call> {
    let folder = place.work.join(name);
    crate::sh::copy_tree(&place.ground.at("model"), &folder.join("model"))?;
    fs::copy(place.ground.at("pairs.jsonl"), folder.join("rows.jsonl"))?;
    let call = short(place, &folder.join("out"));
    let call = call.path("--logging-dir", folder.join("logs"));
    let call = call.path("--train-file", folder.join("rows.jsonl"));
    Ok(call.path("--model", folder.join("model")))
}

fn named(place: &Place<'_>, when: &str, name: &OsStr) -> Result<()> {
    let call = in_folder(place, name)?;
    symlink(place.work.join(name).join("out"), place.work.join("out"))?;
    bits(place, when, &call)
}

fn by_link(place: &Place<'_>, when: &str) -> Result<()> {
    fs::create_dir(place.work.join("real"))?;
    symlink(place.work.join("real"), place.work.join("out"))?;
    let call = short(place, &place.work.join("out"));
    bits(place, when, &call)?;
    // And again, over what is there.
    bits(place, when, &call)?;
    if !place.work.join("out").is_symlink() {
        place.found(Cause::Touched, when, "the link is none any more", &call);
    }
    Ok(())
}

/// A project of a user's: a model, rows, an adapter in one folder.
fn project(place: &Place<'_>, command: &str) -> Result<(Call, PathBuf)> {
    let folder = place.work.join("project");
    crate::sh::copy_tree(&place.ground.at("model"), &folder.join("model"))?;
    crate::sh::copy_tree(&place.ground.at("made/ad"), &folder.join("ad"))?;
    fs::copy(place.ground.at("pairs.jsonl"), folder.join("rows.jsonl"))?;
    let call = place.ground.call(command).path("--model", folder.join("model"));
    let call = match command {
        "finetune" => {
            let call = call.path("--train-file", folder.join("rows.jsonl"));
            let call = call.path("--init-adapter", folder.join("ad"));
            let call = call.path("--logging-dir", place.work.join("logs"));
            call.args(SHORT).args(["--max-steps", "1"])
        }
        "merge" => {
            call.path("--adapter", folder.join("ad")).args(["--into", "original"])
        }
        _ => call,
    };
    Ok((call, folder))
}

/// The output goes where the user's things are, twice: nothing of them may change.
fn over(place: &Place<'_>, when: &str, command: &str, out: &str) -> Result<()> {
    let (call, folder) = project(place, command)?;
    let call = call.path("--output-dir", folder.join(out));
    spared(place, when, &call)?;
    spared(place, when, &call)
}

fn spared(place: &Place<'_>, when: &str, call: &Call) -> Result<()> {
    let folder = place.work.join("project");
    let mine = ["model", "ad", "rows.jsonl"].map(|f| folder.join(f));
    let hashes = || {
        let files = mine.iter().flat_map(|top| match top.is_file() {
            true => vec![top.clone()],
            false => crate::sh::files(top, ""),
        });
        files.map(|f| (f.clone(), fs::read(&f).ok())).collect::<Vec<_>>()
    };
    let before = hashes();
    ends(place, when, call)?;
    let lost = before.iter().filter(|(file, was)| fs::read(file).ok() != *was);
    let lost = lost.map(|(f, _)| format!("{} is gone or changed", f.display()));
    touched(place, when, call, lost.collect());
    Ok(())
}

fn touched(place: &Place<'_>, when: &str, call: &Call, changes: Vec<String>) {
    if let Some(what) = changes.first() {
        let n = changes.len();
        place.found(Cause::Touched, when, format!("{n} files: {what}"), call);
    }
}

fn logs_over(place: &Place<'_>, when: &str) -> Result<()> {
    let (call, folder) = project(place, "finetune")?;
    let call = call.path("--output-dir", place.work.join("out"));
    spared(place, when, &call.path("--logging-dir", folder.join("model")))
}
