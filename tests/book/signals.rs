//! What signals do: end a run with its state saved, or end at once with nothing left;
//! and those that the process was told to ignore do nothing.
use crate::train::{finetune, ok};
use downhill::checkpoint::save_safetensors;
use downhill::models::{Decoder, DecoderConfig};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn send(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// Waits until `there` is true, at most a minute.
fn until(what: &str, mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < Duration::from_secs(120), "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads what the child says until a line begins so; the rest comes from the thread.
fn after_line(child: &mut Child, begin: &str) -> std::thread::JoinHandle<String> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let seen = lines.by_ref().map_while(Result::ok).any(|l| l.starts_with(begin));
    assert!(seen, "ended without `{begin}`");
    std::thread::spawn(move || {
        lines.map_while(Result::ok).map(|l| l + "\n").collect::<String>()
    })
}

const LONG: [&str; 4] = ["--max-steps", "100000", "--save-strategy", "no"];

#[test]
fn each_signal_saves_and_gives_its_exit_code() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let dir = TempDir::new().unwrap();
        let mut run = finetune(dir.path(), &LONG);
        let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
        let rest = after_line(&mut child, "step 2/");
        send(signal, &child);
        let status = child.wait().unwrap();
        let text = rest.join().unwrap();
        assert_eq!(status.code(), Some(code), "{signal}: {text}");
        assert!(text.contains("stopped after step"), "{signal}: {text}");
        let out = dir.path().join("out");
        assert!(downhill::train::latest_checkpoint(&out).is_some(), "{signal}");
    }
}

/// Ended while other threads compute: a destructor under them is a crash.
#[test]
fn the_second_one_ends_at_once_and_cleanly() {
    for n in 0..8 {
        let dir = TempDir::new().unwrap();
        let mut run = finetune(dir.path(), &LONG);
        // A step of some length, so that the second comes within it.
        run.args(["--per-device-train-batch-size", "64"])
            .env("OMP_NUM_THREADS", "2");
        let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
        let rest = after_line(&mut child, "step 2/");
        send("-INT", &child);
        std::thread::sleep(Duration::from_millis(5 * n));
        send("-INT", &child);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{}", rest.join().unwrap());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_ignored_signal_stays_ignored() {
    let dir = TempDir::new().unwrap();
    let run = finetune(dir.path(), &["--max-steps", "30", "--save-strategy", "no"]);
    let mut c = Command::new("bash");
    c.args(["-c", "trap '' INT HUP; exec \"$0\" \"$@\""]);
    c.arg(run.get_program()).args(run.get_args()).env("OMP_NUM_THREADS", "1");
    let mut child = c.stderr(Stdio::piped()).spawn().unwrap();
    let rest = after_line(&mut child, "step 2/");
    send("-INT", &child);
    send("-HUP", &child);
    let status = child.wait().unwrap();
    let text = rest.join().unwrap();
    assert!(status.success() && text.contains("step 30/30"), "{text}");
    assert!(!text.contains("stopping"), "{text}");
}

#[test]
fn before_the_first_step_it_ends_at_once_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let row = "{\"input_ids\":[1,4,16,15,6,10],\"labels\":[1,4,16,15,6,10]}\n";
    let held = dir.path().join("held.jsonl");
    fs::write(&held, row.repeat(40_000)).unwrap();
    let mut run = finetune(dir.path(), &LONG);
    run.arg("--eval-file").arg(&held).stderr(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let out = dir.path().join("out");
    // It has made the folder, and measures.
    until("claimed", || out.join(".downhill-run.json").exists());
    std::thread::sleep(Duration::from_millis(100));
    send("-TERM", &child);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // The same again, whole, finds nothing of it.
    let flags = ["--max-steps", "1", "--save-strategy", "no"];
    let text = ok(finetune(dir.path(), &flags).output().unwrap());
    assert!(!text.contains("earlier run"), "{text}");
}

/// A checkpoint that takes a while to read.
fn large(dir: &Path) {
    let config = DecoderConfig {
        hidden_size: 512,
        intermediate_size: 1024,
        num_hidden_layers: 6,
        head_dim: 128,
        ..crate::common::config()
    };
    let model = Decoder::random(config, 1).expect("a model");
    let mut json = crate::common::config_json();
    for (key, n) in [
        ("hidden_size", 512),
        ("intermediate_size", 1024),
        ("num_hidden_layers", 6),
        ("head_dim", 128),
    ] {
        json[key] = n.into();
    }
    fs::write(dir.join("config.json"), json.to_string()).unwrap();
    let path = dir.join("model.safetensors");
    save_safetensors(&path, &model.named_parameters(), &[]).unwrap();
}

#[test]
fn quantize_ends_at_once_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("model")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    large(&at("model"));
    let (mut ended, mut delay) = (0, 0);
    for out in ["new", "empty", "new", "empty"] {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        c.arg("quantize").arg("--model").arg(at("model")).arg("--output-dir");
        c.arg(at(out)).args(["--device", "cpu"]).env("OMP_NUM_THREADS", "1");
        let mut child = c.stderr(Stdio::null()).spawn().unwrap();
        let parent = if out == "new" { dir.path().to_path_buf() } else { at(out) };
        let begun = || {
            let entries = fs::read_dir(&parent).unwrap().flatten();
            entries.map(|e| e.file_name()).any(|name| {
                let name = name.to_string_lossy().into_owned();
                name.starts_with(".new.partial-")
            })
        };
        until("began", begun);
        std::thread::sleep(Duration::from_millis(delay));
        delay += 10;
        send("-INT", &child);
        let status = child.wait().unwrap();
        if status.code() == Some(130) {
            ended += 1;
            assert!(!at("new").exists());
            assert_eq!(fs::read_dir(at("empty")).unwrap().count(), 0);
        } else {
            assert!(status.success(), "{status}");
            fs::remove_dir_all(at(out)).unwrap();
            if out == "empty" {
                fs::create_dir(at("empty")).unwrap();
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "left over");
    }
    assert!(ended > 0, "none was ended in its midst");
}
