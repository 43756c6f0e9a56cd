//! Where runs write: nothing of the user's is moved or overwritten, and what was trained
//! is kept somewhere whatever the disk does.
use crate::common::{adapted, lora, refused, write_checkpoint};
use crate::late::start;
use crate::train::{MODEL, finetune, ok};
use downhill::checkpoint::{fresh, place};
use downhill::train::{Log, StepLog};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// No process can have this number: it is above the kernel's limit.
const DEAD: u32 = 4_194_305;

/// Every file and link below `dir`, with what it holds.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if let Ok(to) = fs::read_link(&path) {
            all.insert(path, to.to_string_lossy().as_bytes().to_vec());
        } else if path.is_dir() {
            all.extend(tree(&path));
            all.insert(path, vec![]);
        } else {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    all
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten().filter(|e| e.path().is_file())
    {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A project's folder: model, rows, an adapter, a configuration.
fn project() -> TempDir {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    copy_dir(Path::new(MODEL), &at("p/model"));
    fs::rename(at("p/model/rows.jsonl"), at("p/rows.jsonl")).unwrap();
    fs::create_dir(at("p/held")).unwrap();
    fs::copy(at("p/rows.jsonl"), at("p/held/eval.jsonl")).unwrap();
    fs::create_dir(at("conf")).unwrap();
    fs::write(at("conf/run.toml"), "max-steps = 1\n").unwrap();
    let config = lora(&["q_proj"], 0.);
    fs::create_dir(at("adapter")).unwrap();
    let named = adapted(3, &config).1;
    downhill::lora::save_adapter(&at("adapter"), &config, "base", &named).unwrap();
    dir
}

/// `downhill finetune` in the project, one step.
fn train(dir: &Path, flags: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.current_dir(dir).env("OMP_NUM_THREADS", "1");
    c.args(["finetune", "--model", "p/model", "--train-file", "p/rows.jsonl"]);
    c.args(["--max-steps", "1", "--device", "cpu"]).args(flags);
    c.output().unwrap()
}

#[cfg(unix)]
#[test]
fn an_output_that_holds_what_is_read_is_refused_by_both_flags() {
    use std::os::unix::fs::symlink;
    let dir = project();
    let at = |name: &str| dir.path().join(name);
    symlink(at("p/model"), at("link")).unwrap();
    symlink(at("soon"), at("dangling")).unwrap();
    symlink(at("p/rows.jsonl"), at("conf/rows.jsonl")).unwrap();
    let before = tree(dir.path());
    let cases: &[(&[&str], [&str; 2])] = &[
        (&["--output-dir=p/model"], ["--output-dir", "--model"]),
        (&["--output-dir=p"], ["--output-dir", "--model"]),
        (&["--output-dir=."], ["--output-dir", "--model"]),
        (&["--output-dir=link"], ["--output-dir", "--model"]),
        (&["--output-dir=p/./held/../model/"], ["--output-dir", "--model"]),
        (&["--output-dir=none/../p"], ["--output-dir", "--model"]),
        (&["--model=link", "--output-dir=p/model"], ["--output-dir", "--model"]),
        (
            &[
                "--model=p/model",
                "--train-file=p/held/eval.jsonl",
                "--output-dir=p/held",
            ],
            ["--output-dir", "--train-file"],
        ),
        // Where a link stands, and where it leads.
        (
            &["--train-file=conf/rows.jsonl", "--output-dir=conf"],
            ["--output-dir", "--train-file"],
        ),
        (
            &["--eval-file=p/held/eval.jsonl", "--output-dir=p/held"],
            ["--output-dir", "--eval-file"],
        ),
        (
            &["--init-adapter=adapter", "--output-dir=adapter"],
            ["--output-dir", "--init-adapter"],
        ),
        (
            &["--config=conf/run.toml", "--output-dir=conf"],
            ["--output-dir", "--config"],
        ),
        (&["--logging-dir=p/model"], ["--logging-dir", "--model"]),
        (&["--quantized-cache=p"], ["--quantized-cache", "--model"]),
    ];
    for (flags, named) in cases {
        let output = train(dir.path(), flags);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {text}");
        for flag in named {
            assert!(text.contains(flag), "{flags:?} names no {flag}: {text}");
        }
        assert!(!text.contains("rows,"), "{flags:?}: something was read: {text}");
        assert!(tree(dir.path()) == before, "{flags:?} changed something");
    }
    // In the model's folder, nothing is overwritten; and a link may lead nowhere yet.
    for out in ["p/model/results", "dangling"] {
        let flag = format!("--output-dir={out}");
        ok(train(dir.path(), &[&flag, "--logging-dir=logs"]));
        assert!(at(out).join("adapter_model.safetensors").is_file(), "{out}");
    }
    assert!(at("soon/trainer_state.json").is_file());
}

#[test]
fn paths_are_compared_as_the_system_sees_them() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    let real = dir.path().canonicalize().unwrap();
    assert_eq!(place::real(&at("a/./b/../c/d")), real.join("a/c/d"));
    assert_eq!(place::real(&at("none/../a")), real.join("a"));
    let (a, b, other) = (at("a"), at("a/b"), at("ab"));
    let apart =
        |out: &Path, input: &Path| place::apart(("-o", out), &[("-i", input)]);
    refused(apart(&a, &a), &["-o", "is -i"]);
    refused(apart(&a, &b), &["holds -i"]);
    refused(apart(&a, &b.join("none")), &["holds"]);
    apart(&b, &a).unwrap();
    apart(&a, &other).unwrap();
    refused(place::free(&b, &[("-i", a.as_path())]), &["lies in -i"]);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut all: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

const TWO: [&str; 6] =
    ["--max-steps", "2", "--save-strategy", "steps", "--save-steps", "1"];

#[cfg(unix)]
#[test]
fn only_what_a_run_wrote_is_set_aside() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    fs::create_dir_all(out.join("checkpoints")).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    fs::write(out.join("config.json"), "mine").unwrap();
    let inode = || fs::metadata(&out).unwrap().ino();
    let before = inode();
    let mut earlier = Vec::new();
    for n in 0..3 {
        let text = ok(finetune(dir.path(), &TWO).output().unwrap());
        assert_eq!(text.contains("held an earlier run"), n > 0, "{text}");
        assert_eq!(inode(), before, "the folder itself was moved");
        assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "mine");
        assert!(out.join("checkpoints").is_dir());
        let hidden = names(&out).into_iter().find(|name| name.starts_with('.'));
        assert_eq!(hidden, None, "left over");
        earlier.push(fs::read(out.join("trainer_state.json")).unwrap());
    }
    for n in [1, 2] {
        let aside = dir.path().join(format!("out.{n}"));
        let state = fs::read(aside.join("trainer_state.json")).unwrap();
        assert!(state == earlier[n - 1], "run {n}");
        let checkpoint = aside.join("checkpoint-2/optimizer.safetensors");
        assert!(checkpoint.is_file() && !aside.join("notes.txt").exists());
    }
}

#[cfg(unix)]
#[test]
fn links_and_the_working_folder_are_outputs_like_others() {
    let dir = project();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("w/here")).unwrap();
    fs::create_dir(at("w/big")).unwrap();
    std::os::unix::fs::symlink("big", at("w/link")).unwrap();
    let run = |cwd: &str, out: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        c.current_dir(at(cwd)).env("OMP_NUM_THREADS", "1");
        c.args(["finetune", "--max-steps=1", "--device=cpu"]);
        c.arg("--model").arg(at("p/model"));
        c.arg("--train-file").arg(at("p/rows.jsonl"));
        c.arg("--logging-dir").arg(at("logs")).args(["--output-dir", out]);
        ok(c.output().unwrap())
    };
    for (cwd, out, folder) in [("w", "link", "w/big"), ("w/here", ".", "w/here")] {
        run(cwd, out);
        let first = fs::read(at(folder).join("trainer_state.json")).unwrap();
        run(cwd, out);
        let aside = at(&format!("{folder}.1"));
        let kept = fs::read(aside.join("trainer_state.json")).unwrap();
        assert!(kept == first, "{out}");
        assert!(at(folder).join("adapter_model.safetensors").is_file(), "{out}");
    }
    assert_eq!(fs::read_link(at("w/link")).unwrap(), Path::new("big"));
}

#[test]
fn what_somebody_else_wrote_under_our_names_is_refused() {
    type Put = fn(&Path);
    let cases: [(&str, Put); 4] = [
        ("report.html", |out| fs::write(out.join("report.html"), "mine").unwrap()),
        ("adapter_config.json", |out| {
            fs::write(out.join("adapter_config.json"), "{}").unwrap();
        }),
        // Of another trainer, as transformers leaves it.
        ("checkpoint-100", |out| {
            copy_dir(Path::new(MODEL), &out.join("checkpoint-100"));
            let state = "{\"global_step\": 100, \"log_history\": []}";
            fs::write(out.join("checkpoint-100/trainer_state.json"), state).unwrap();
        }),
        ("trainer_state.json", |out| {
            fs::write(out.join("trainer_state.json"), "{\"log_history\": []}")
                .unwrap();
        }),
    ];
    for (name, put) in cases {
        let dir = TempDir::new().unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        put(&out);
        let before = tree(dir.path());
        let output = finetune(dir.path(), &TWO).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(text.contains("--output-dir") && text.contains(name), "{text}");
        assert!(tree(dir.path()) == before, "{name}: something changed");
    }
    // A note in a checkpoint of ours goes nowhere, nor the checkpoint.
    let dir = TempDir::new().unwrap();
    ok(finetune(dir.path(), &TWO).output().unwrap());
    fs::write(dir.path().join("out/checkpoint-2/note.txt"), "mine").unwrap();
    let before = tree(dir.path());
    let output = finetune(dir.path(), &TWO).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("checkpoint-2"), "{text}");
    assert!(tree(dir.path()) == before, "something changed");
}

#[test]
fn a_file_that_evaluate_did_not_write_is_not_overwritten() {
    let dir = TempDir::new().unwrap();
    let run = |file: &Path| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        let rows = format!("{MODEL}/rows.jsonl");
        c.args(["evaluate", "--model", MODEL, "--eval-file", &rows]);
        c.env("OMP_NUM_THREADS", "1").args(["--device", "cpu"]);
        c.arg("--output-file").arg(file).output().unwrap()
    };
    let notes = dir.path().join("notes.json");
    fs::write(&notes, "{\"mine\": 1}").unwrap();
    let output = run(&notes);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--output-file") && text.contains("notes.json"), "{text}");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "{\"mine\": 1}");
    let numbers = dir.path().join("numbers.json");
    for _ in 0..2 {
        ok(run(&numbers));
    }
    assert!(fs::read_to_string(numbers).unwrap().contains("eval_loss"));
}

/// Runs `script` where it may mount, with `$1` the command and `$2` a folder; none
/// where this machine lets nobody do that.
#[cfg(target_os = "linux")]
fn mounted(script: &str, dir: &Path, flags: &[&str]) -> Option<Output> {
    let space = ["-r", "-m", "bash", "-c"];
    let probe = "mount -t tmpfs t \"$1\"";
    let mut c = Command::new("unshare");
    let c = c.args(space).args([probe, "-"]).arg(dir).output();
    if !c.is_ok_and(|o| o.status.success()) {
        crate::common::skipped("mount", "nothing can be mounted here");
        return None;
    }
    let run = finetune(dir, flags);
    let mut c = Command::new("unshare");
    c.args(space).args([script, "-"]).arg(dir);
    c.arg(run.get_program()).args(run.get_args()).env("OMP_NUM_THREADS", "1");
    Some(c.output().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_without_room_is_found_before_the_first_step() {
    let mount = |options: &str| {
        format!(
            "set -e; d=$1; shift; mkdir $d/out $d/logs; \
             mount -t tmpfs -o {options} t $d/${{AT:-out}}; \"$@\""
        )
    };
    let read_only =
        mount("size=1m").replace("; \"$@\"", "; mount -o remount,ro $d/out; \"$@\"");
    for (script, expected) in [
        (read_only, ["--output-dir", "Read-only"]),
        (mount("size=48k"), ["--output-dir", "no room"]),
        (
            mount("size=4k").replace("${AT:-out}", "logs; echo x >$d/logs/x"),
            ["--logging-dir", "No space"],
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let Some(output) = mounted(&script, dir.path(), &["--max-steps", "2"])
        else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in expected {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        assert!(!text.contains("step 1/"), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_logging_folder_is_said_once_and_ends_no_run() {
    let script = "set -e; d=$1; shift; mkdir $d/logs; \
                  mount -t tmpfs -o size=4k t $d/logs; \"$@\"";
    let dir = TempDir::new().unwrap();
    let flags = ["--max-steps", "60", "--save-strategy", "no"];
    let Some(output) = mounted(script, dir.path(), &flags) else { return };
    let text = ok(output);
    assert_eq!(
        text.matches("nothing is written for TensorBoard").count(),
        1,
        "{text}"
    );
    assert!(text.contains("step 60/60"), "{text}");
    assert!(dir.path().join("out/adapter_model.safetensors").is_file());
}

#[test]
fn a_log_that_cannot_be_written_is_a_log_all_the_same() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut log = Log::new(vec![], Some(&file.join("logs")), 0, 2);
    let entry = StepLog {
        step: 1,
        epoch: 1.,
        loss: 1.,
        grad_norm: 1.,
        learning_rate: 1.,
        tokens_per_second: 1.,
    };
    log.step(&entry, 2);
    log.step(&StepLog { step: 2, ..entry }, 2);
    assert_eq!(log.history.len(), 2);
}

#[test]
fn what_was_trained_is_kept_where_the_folder_is_gone() {
    let dir = TempDir::new().unwrap();
    let flags = ["--max-steps", "2", "--save-strategy", "no"];
    let mut run = start(dir.path(), "cpu", &flags).expect("a run");
    let go = std::sync::atomic::AtomicBool::new(false);
    downhill::train::fit(&mut run, &go).expect("steps");
    let out = dir.path().join("out");
    fs::remove_dir_all(&out).unwrap();
    fs::write(&out, "a file, where the disk was").unwrap();
    let text = refused(run.finish(), &["adapter_model.safetensors", " instead"]);
    let kept = text.rsplit_once("are in ").unwrap().1;
    let kept = PathBuf::from(kept.strip_suffix(" instead").unwrap());
    let found = names(&kept);
    let saved = downhill::checkpoint::read_safetensors(
        &kept.join("adapter_model.safetensors"),
    )
    .unwrap();
    fs::remove_dir_all(&kept).unwrap();
    let files =
        ["adapter_config.json", "adapter_model.safetensors", "trainer_state.json"];
    assert_eq!(found, files);
    for p in run.optimizer.params() {
        let name = p.name.replace("model.layers", "base_model.model.model.layers");
        assert!(saved[&name] == p.tensor, "{name}");
    }
    drop(run);
    assert_eq!(fs::read_to_string(out).unwrap(), "a file, where the disk was");
}

#[test]
fn a_new_folder_sweeps_what_the_dead_left_of_it_alone() {
    let dir = TempDir::new().unwrap();
    let at = |name: String| dir.path().join(name);
    let dead = [
        at(format!(".m.partial-{DEAD}")),
        at(format!(".m.unpacked.partial-{DEAD}")),
    ];
    let kept = [
        at(format!(".n.partial-{DEAD}")),
        at(format!(".m.partial-{}", std::process::id())),
        at(".m.partial-x".into()),
        at(format!("m.partial-{DEAD}")),
    ];
    for path in dead.iter().chain(&kept) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
    }
    fs::remove_dir_all(&kept[1]).unwrap();
    // Of a process that lives, on a machine of which we know nothing.
    let locked = at(format!(".m.partial-{}", DEAD + 1));
    fs::create_dir(&locked).unwrap();
    let held = fresh::lock(&locked).unwrap();
    assert!(held.is_some(), "this disk has no locks");
    let put = |text: &'static str| {
        fresh::folder(&at("m".into()), |partial| {
            fs::write(partial.join("config.json"), text).unwrap();
            Ok(())
        })
    };
    put("new").unwrap();
    assert!(dead.iter().all(|p| !p.exists()));
    assert!(locked.exists() && kept[0].exists() && kept[2].exists());
    assert!(kept[3].exists());
    assert_eq!(fs::read_to_string(at("m/config.json".into())).unwrap(), "new");
}

#[cfg(unix)]
#[test]
fn an_empty_folder_and_a_link_to_one_are_filled_in_place() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let inode = fs::metadata(&real).unwrap().ino();
    let failed = fresh::folder(&link, |partial| {
        fs::write(partial.join("a"), "half").unwrap();
        Err(downhill::Error::file(partial.join("a"), "no room"))
    });
    refused(failed, &["link/a: no room"]);
    assert_eq!(names(&real), Vec::<String>::new());
    // Killed after one file of two had been moved.
    let half = real.join(format!(".new.partial-{DEAD}"));
    fs::create_dir(&half).unwrap();
    fs::write(half.join(".moving.json"), "[\"a\", \"b\", \"../real\"]").unwrap();
    fs::write(half.join("b"), "b").unwrap();
    fs::write(real.join("a"), "a").unwrap();
    place::free(&link, &[]).unwrap();
    fresh::folder(&link, |partial| {
        fs::create_dir(partial.join("sub")).unwrap();
        fs::write(partial.join("config.json"), "{}").unwrap();
        Ok(())
    })
    .unwrap();
    assert_eq!(names(&real), ["config.json", "sub"]);
    assert_eq!(fs::metadata(&real).unwrap().ino(), inode);
    assert!(fs::read_link(&link).is_ok());
    refused(place::free(&link, &[]), &["not empty"]);
}

#[test]
fn a_copy_that_fails_names_the_file_at_fault() {
    let dir = TempDir::new().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("none/to"));
    refused(fresh::copy(&from, &to), &["/from: No such"]);
    fs::write(&from, "x").unwrap();
    refused(fresh::copy(&from, &to), &["none/to: No such"]);
    let to = dir.path().join("to");
    fresh::copy(&from, &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), b"x");
    #[cfg(target_os = "linux")]
    refused(fresh::copy(&from, Path::new("/dev/full")), &["/dev/full: No space"]);
}

#[test]
fn merge_and_quantize_keep_off_what_they_read() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("p/model")).unwrap();
    fs::create_dir(at("adapter")).unwrap();
    write_checkpoint(&at("p/model"), 3);
    let config = lora(&["q_proj"], 0.);
    let named = adapted(3, &config).1;
    downhill::lora::save_adapter(&at("adapter"), &config, "base", &named).unwrap();
    fs::create_dir(at("rows")).unwrap();
    let row = "{\"input_ids\": [1, 2, 3], \"labels\": [1, 2, 3]}\n";
    fs::write(at("rows/probe.jsonl"), row).unwrap();
    let before = tree(dir.path());
    let run = |args: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        c.current_dir(dir.path()).env("OMP_NUM_THREADS", "1").args(args);
        c.output().unwrap()
    };
    let merge: &[&str] =
        &["merge", "--model=p/model", "--adapter=adapter", "--into=original"];
    let quantize: &[&str] = &["quantize", "--model=p/model"];
    for (command, out, flag) in [
        (quantize, "p/model", "--model"),
        (quantize, "p", "--model"),
        (quantize, "p/model/q", "--model"),
        (quantize, "adapter", "not empty"),
        (merge, ".", "--model"),
        (merge, "none/../adapter", "--adapter"),
        (merge, "rows", "--probe-file"),
    ] {
        let out = format!("--output-dir={out}");
        let mut args = command.to_vec();
        args.push(&out);
        if flag == "--probe-file" {
            args.push("--probe-file=rows/probe.jsonl");
        }
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("--output-dir") && text.contains(flag), "{text}");
        assert!(tree(dir.path()) == before, "{args:?} changed something");
    }
    // A probe that cannot be made leaves no merged folder that seems to be whole.
    fs::write(at("rows/probe.jsonl"), "no row\n").unwrap();
    let bad = ["--output-dir=new/m", "--probe-file=rows/probe.jsonl"];
    let output = run(&[merge, &bad].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("probe.jsonl:1"), "{text}");
    assert!(!at("new").exists());
    fs::write(at("rows/probe.jsonl"), row).unwrap();
    fs::create_dir(at("empty")).unwrap();
    for out in ["new/m", "empty"] {
        let out = format!("--output-dir={out}");
        let flags = [out.as_str(), "--probe-file=rows/probe.jsonl"];
        ok(run(&[merge, &flags].concat()));
    }
    let expected = ["config.json", "merge_report.json", "model.safetensors"];
    assert_eq!(names(&at("new/m")), expected);
    assert_eq!(names(&at("empty")), expected);
    assert_eq!(names(&at("new")), ["m"]);
    let report = fs::read_to_string(at("new/m/merge_report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["divergence"].as_f64().is_some_and(|d| d < 1e-6), "{report}");
}
