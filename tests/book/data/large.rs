//! A file of 5 GB: made, trained on for a step, removed. Takes a minute and the disk:
//! `cargo test --test book five_gigabytes -- --ignored --nocapture`.
use crate::train::MODEL;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BYTES: u64 = 5_000_000_000;

/// One step on these rows: the seconds it took, and the peak of resident memory.
fn first_step(rows: &Path, out: &Path) -> (f64, u64) {
    let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
    c.args(["finetune", "--model", MODEL, "--max-steps", "1", "--device", "cpu"]);
    c.arg("--train-file").arg(rows).arg("--output-dir").arg(out.join("out"));
    c.arg("--logging-dir").arg(out.join("logs")).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = c.spawn().expect("downhill");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().expect("a child").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("output");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("step 1/1"), "{text}");
    println!("{text}");
    (began.elapsed().as_secs_f64(), peak)
}

#[test]
#[ignore = "writes 5 GB"]
#[cfg(target_os = "linux")]
fn five_gigabytes_train_their_first_step_in_seconds() {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let dir = tempfile::tempdir_in(target).expect("a folder");
    let (small, large) =
        (dir.path().join("small.jsonl"), dir.path().join("large.jsonl"));
    let row = |i: u64| {
        let ids: Vec<u64> = (0..150).map(|t| 3 + (i + t * t) % 15).collect();
        format!("{{\"input_ids\": {ids:?}, \"labels\": {ids:?}}}\n")
    };
    let write = |path: &Path, bytes: u64| {
        let file = std::fs::File::create(path).expect("a file");
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let block: String = (0..1000).map(row).collect();
        let mut written = 0;
        while written < bytes {
            file.write_all(block.as_bytes()).expect("written");
            written += block.len() as u64;
        }
        file.flush().expect("written");
        written
    };
    write(&small, 1);
    let bytes = write(&large, BYTES);
    let (_, without) = first_step(&small, dir.path());
    // Out of the page cache, where the system can: then the disk is measured too.
    let of = format!("of={}", large.display());
    let forget = ["if=/dev/null", &of, "oflag=nocache", "conv=notrunc,fdatasync"];
    let forgot = Command::new("dd").args(forget).status().is_ok_and(|s| s.success());
    let (cold, _) = first_step(&large, dir.path());
    println!("from the disk ({forgot}): {cold:.1} s");
    let (seconds, with) = first_step(&large, dir.path());
    let data = with.saturating_sub(without);
    println!(
        "{bytes} bytes: first step after {seconds:.1} s; {} MB for the data beside {} MB",
        data / 1_000_000,
        without / 1_000_000
    );
    assert!(seconds < 20., "{seconds} s");
    assert!(data < 1_000_000_000, "{data} bytes");
}
