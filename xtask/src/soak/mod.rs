//! `cargo xtask soak`: the built command under everything that can befall it. Kills and
//! signals at any moment, a disk that fails at any file operation, hostile files, odd
//! surroundings; what comes out must be the undisturbed bits, or one readable line.

mod around;
mod child;
mod faults;
mod files;
mod fuzz;
mod ground;
mod hostile;
mod json;
mod judge;
mod kills;
mod mutate;
mod random;
mod report;
mod signals;
mod tensors;
#[cfg(test)]
mod tests;

use crate::{setup, sh};
use anyhow::{Context, Result, bail};
use child::{Call, Ended};
use ground::Ground;
use judge::Cause;
use random::Rng;
use report::{Finding, Report};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A part: its name, its share of the time, and its cases by number.
struct Part {
    name: &'static str,
    share: f64,
    case: fn(&mut Place<'_>) -> Result<More>,
}

/// Whether there are cases of higher numbers.
#[derive(PartialEq)]
enum More {
    Yes,
    No,
}

/// Those with an end come first, so that what they do not need goes to the others.
const PARTS: [Part; 6] = [
    Part { name: "around", share: 1., case: around::case },
    Part { name: "signals", share: 1., case: signals::case },
    Part { name: "fuzz", share: 1., case: fuzz::case },
    Part { name: "faults", share: 2., case: faults::case },
    Part { name: "kills", share: 1.5, case: kills::case },
    Part { name: "hostile", share: 2.5, case: hostile::case },
];

/// What a case works with.
struct Place<'a> {
    ground: &'a Ground,
    report: &'a Report,
    part: &'static str,
    case: u64,
    rng: Rng,
    seed: u64,
    /// A folder of its own, empty at the start.
    work: PathBuf,
    /// When the part's time is up; a case that has begun ends all the same.
    until: Instant,
    /// Seconds of the clock that a run may take which should end soon.
    clock: u64,
}

/// Twenty would do on an idle machine.
const CLOCK: u64 = 60;

impl Place<'_> {
    fn found(&self, cause: Cause, when: &str, what: impl Into<String>, call: &Call) {
        self.report.found(Finding {
            part: self.part,
            case: self.case,
            cause,
            when: when.into(),
            what: what.into(),
            call: Some(call),
            work: &self.work,
        });
    }

    /// Takes down what is wrong with the end of a run; whether nothing was.
    fn judged(&self, ended: &Ended, codes: &[i32], when: &str, call: &Call) -> bool {
        let faults = judge::faults(ended, codes);
        for (cause, what) in &faults {
            self.found(*cause, when, what, call);
        }
        faults.is_empty()
    }

    /// Takes down files under `out` that are not whole.
    fn whole(&self, out: &Path, when: &str, call: &Call) {
        for what in files::torn(out, None) {
            self.found(Cause::Torn, when, what, call);
        }
    }

    /// Takes down what was changed of the ground.
    fn untouched(&self, when: &str, call: &Call) {
        for what in self.ground.touched() {
            self.found(Cause::Touched, when, what, call);
        }
    }
}

/// Copies what a finding is made of; what cannot be copied (a pipe) is left out.
fn files_copy(from: &Path, to: &Path) {
    for (path, about) in files::all(from) {
        let Ok(inside) = path.strip_prefix(from) else { continue };
        let to = to.join(inside);
        if about.is_file() && about.len() < 16 << 20 {
            if let Some(dir) = to.parent() {
                std::fs::create_dir_all(dir).ok();
            }
            std::fs::copy(&path, to).ok();
        } else if about.is_symlink()
            && let Ok(target) = std::fs::read_link(&path)
        {
            if let Some(dir) = to.parent() {
                std::fs::create_dir_all(dir).ok();
            }
            std::os::unix::fs::symlink(target, to).ok();
        }
    }
}

struct Wanted {
    minutes: f64,
    seed: u64,
    only: Option<String>,
    case: Option<u64>,
    jobs: usize,
    bin: Option<PathBuf>,
}

fn wanted(args: &[String]) -> Result<Wanted> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all =
        Wanted { minutes: 2., seed: 1, only: None, case: None, jobs, bin: None };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let value = args.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--minutes" => all.minutes = value.parse().context("--minutes")?,
            "--seed" => all.seed = value.parse().context("--seed")?,
            "--only" => all.only = Some(value.clone()),
            "--case" => all.case = Some(value.parse().context("--case")?),
            "--jobs" => all.jobs = value.parse().context("--jobs")?,
            "--bin" => all.bin = Some(std::path::absolute(value)?),
            _ => bail!("there is no flag {flag}"),
        }
    }
    if let Some(only) = &all.only
        && !PARTS.iter().any(|p| p.name == only)
    {
        let names = PARTS.map(|p| p.name).join(", ");
        bail!("--only {only}: the parts are {names}");
    }
    if all.case.is_some() && all.only.is_none() {
        bail!("--case needs --only, since each part counts its own");
    }
    Ok(all)
}

/// `cargo xtask soak [--minutes N] [--seed S] [--only PART [--case K]]`.
pub fn main(args: &[String]) -> Result<()> {
    let wanted = wanted(args)?;
    let bin = match &wanted.bin {
        Some(bin) => bin.clone(),
        None => {
            setup::ensure()?;
            sh::check(&mut sh::cargo(["build", "--bin", "downhill"]))?;
            sh::root().join("target/debug/downhill")
        }
    };
    let folder = sh::root().join("target/soak");
    let found = folder.join("found");
    std::fs::remove_dir_all(&found).ok();
    let began = Instant::now();
    let ground = Ground::make(folder.join("ground"), bin)?;
    let report = Report::new(found, wanted.seed);
    let parts: Vec<&Part> = PARTS
        .iter()
        .filter(|p| wanted.only.as_ref().is_none_or(|only| p.name == only))
        .collect();
    let end = began + Duration::from_secs_f64(60. * wanted.minutes);
    for (i, part) in parts.iter().enumerate() {
        let share: f64 = parts[i..].iter().map(|p| p.share).sum();
        let left = end.saturating_duration_since(Instant::now());
        let until = Instant::now() + left.mul_f64(part.share / share);
        let start = Instant::now();
        let cases = run(part, &wanted, &folder, &ground, &report, until)?;
        let took = start.elapsed().as_secs_f64();
        println!("{}: {cases} cases in {took:.0} s", part.name);
    }
    std::fs::remove_dir_all(folder.join("work")).ok();
    println!("{}", report.text());
    match report.findings() {
        0 => Ok(()),
        n => bail!("{n} findings; their files are in target/soak/found"),
    }
}

/// Runs a part's cases until its time is up; how many there were.
fn run(
    part: &Part,
    wanted: &Wanted,
    folder: &Path,
    ground: &Ground,
    report: &Report,
    until: Instant,
) -> Result<u64> {
    let (next, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let worker = |worker: usize| -> Result<()> {
        let work = folder.join(format!("work/{}-{worker}", part.name));
        loop {
            let case = next.fetch_add(1, Ordering::Relaxed);
            let late = Instant::now() >= until && case > 1;
            if done.load(Ordering::Relaxed) || late {
                next.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
            let case = wanted.case.unwrap_or(case);
            if wanted.case.is_some() {
                done.store(true, Ordering::Relaxed);
            }
            ground::fresh(&work)?;
            let mut place = Place {
                ground,
                report,
                part: part.name,
                case,
                rng: Rng::new(wanted.seed, part.name, case),
                seed: wanted.seed,
                work: work.clone(),
                until,
                clock: CLOCK,
            };
            let more = (part.case)(&mut place)
                .with_context(|| format!("{} case {case}", part.name))?;
            if more == More::No {
                done.store(true, Ordering::Relaxed);
            }
        }
    };
    let jobs = if wanted.case.is_some() { 1 } else { wanted.jobs.max(1) };
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..jobs).map(|w| scope.spawn(move || worker(w))).collect();
        for one in all {
            one.join().unwrap_or_else(|_| bail!("a worker panicked"))?;
        }
        Ok(next.load(Ordering::Relaxed) - 1)
    })
}
