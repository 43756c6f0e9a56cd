//! The library's readers under damaged inputs, thousands a minute in one process; what
//! `cargo xtask soak --only fuzz` starts and watches. Damage knows what the file is
//! (`xtask/src/soak/mutate.rs`), and an input that brings a new message is damaged
//! further.
//!
//! A line per finding on stdout: `panic` or `slow`, the input's number, and what was
//! seen; the input is kept in `WORK/found-NUMBER`. An input that ends the
//! process is in `WORK/input`. To read one again: `--target T --again FOLDER`.
use anyhow::{Context, Result};
use clap::Parser;
use downhill::tch;
use random::Rng;
use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[path = "../../xtask/src/soak/json.rs"]
mod json;
#[path = "../../xtask/src/soak/mutate.rs"]
#[allow(dead_code)] // formats that only the command reads
mod mutate;
#[path = "../../xtask/src/soak/random.rs"]
#[allow(dead_code)]
mod random;
mod readers;
#[path = "../../xtask/src/soak/tensors.rs"]
#[allow(dead_code)] // the soak asks of files whether they are whole
mod tensors;

#[derive(Parser)]
struct Args {
    /// The reader
    #[arg(long)]
    target: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first input
    #[arg(long, default_value_t = 1)]
    first: u64,
    #[arg(long, default_value_t = 60.)]
    seconds: f64,
    /// What the soak made: checkpoints, rows, adapters
    #[arg(long, default_value = "target/soak/ground")]
    ground: PathBuf,
    #[arg(long, default_value = "target/soak/fuzz")]
    work: PathBuf,
    /// Read the files of this folder once, as they are
    #[arg(long)]
    again: Option<PathBuf>,
}

/// Inputs that are damaged further, at most.
const GROWN: usize = 200;
/// An input that takes longer is slow.
const SLOW: Duration = Duration::from_secs(20);

static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> Result<()> {
    let args = Args::parse();
    tch::set_num_threads(1);
    std::panic::set_hook(Box::new(|info| {
        let mut last = PANIC.lock().unwrap_or_else(|e| e.into_inner());
        *last = info.to_string().replace('\n', " ");
    }));
    let input = args.work.join("input");
    fs::remove_dir_all(&input).ok();
    fs::create_dir_all(&input)?;
    let (mut files, read) = readers::target(&args.target, &args.ground, &input)?;
    if let Some(folder) = &args.again {
        println!("{:?}", read(folder));
        return Ok(());
    }
    for file in &files {
        fs::write(input.join(file.name), &file.good)?;
    }
    read(&input).context("the undamaged files")?;
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let (mut case, mut seen) = (args.first, HashSet::new());
    while Instant::now() < end {
        let mut rng = Rng::new(args.seed, &args.target, case);
        let at = rng.below(files.len());
        let file = &mut files[at];
        let from = match file.grown.is_empty() || rng.once_in(2) {
            true => &file.good,
            false => rng.of(&file.grown),
        };
        let (bytes, done) = mutate::mutate(from, file.format, &mut rng);
        let path = input.join(file.name);
        fs::write(&path, &bytes)?;
        let shown: String = done.chars().take(100).collect();
        fs::write(args.work.join("case"), format!("{case} {shown:?}"))?;
        let began = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let finding = judged(ended, began.elapsed(), &mut |message| {
            // Numbers differ from input to input; the rest is a new way to fail.
            let plain = |c: &char| c.is_alphabetic() || *c == ' ';
            let shape: String = message.chars().filter(plain).take(80).collect();
            if seen.len() < 10_000 && seen.insert(shape) && bytes.len() < 1 << 20 {
                file.grown.push(bytes.clone());
                if file.grown.len() > GROWN {
                    file.grown.remove(rng.below(GROWN));
                }
            }
        });
        if let Some((kind, what)) = finding {
            println!("{kind} {case} {}: {what:.400} ({done:.100})", file.name);
            let kept = args.work.join(format!("found-{case}"));
            fs::create_dir_all(&kept)?;
            fs::copy(&path, kept.join(file.name))?;
        }
        fs::write(&path, &file.good)?;
        case += 1;
    }
    println!("inputs {}", case - args.first);
    Ok(())
}

/// What is wrong with how reading ended; `message` gets that of an error.
fn judged(
    ended: std::thread::Result<downhill::Result<()>>,
    took: Duration,
    message: &mut dyn FnMut(&str),
) -> Option<(&'static str, String)> {
    let text = match ended {
        Err(_) => {
            let what = PANIC.lock().unwrap_or_else(|e| e.into_inner()).clone();
            return Some(("panic", what));
        }
        Ok(Err(e)) => e.to_string(),
        Ok(Ok(())) => "read".into(),
    };
    message(&text);
    let slow = format!("{:.0} s: {text:.100}", took.as_secs_f64());
    (took > SLOW).then_some(("slow", slow))
}
