//! `cargo xtask bench`: the same work by a well-known tool and by downhill, in turn, on
//! this machine. `peers` is a fine-tune, beside PEFT + bitsandbytes; `optim` is an
//! optimizer's step, beside torch.optim; `latent` is latent attention with and without
//! its shortcut; `gpu` is all that needs a GPU.

use crate::{bundle, setup, sh, tools};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

const PEERS: &[&str] = &[
    "torch==2.11.0",
    "transformers==4.57.1",
    "peft==0.21.2",
    "bitsandbytes==0.50.2",
];

/// `cargo xtask bench peers|optim|latent|gpu [ARGS]`; the arguments go to the script.
pub fn main(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("peers") => {
            run("benches/peers.py", &["build", "--bin", "downhill"], &args[1..])
        }
        Some("optim") => {
            run("benches/optim.py", &bundle::experiment("bench_optim"), &args[1..])
        }
        Some("latent") => latent(&args[1..]),
        Some("gpu") => gpu(&args[1..]),
        _ => {
            bail!(
                "bench takes `peers`, `optim`, `latent` or `gpu`, found `{}`",
                args.join(" ")
            )
        }
    }
}

/// Without a device it says so and ends, unless `--dry-run` or `--bounds` is given.
/// The peers are those of `DOWNHILL_PEERS_PYTHON`, if it is set, else of `python3`.
fn gpu(args: &[String]) -> Result<()> {
    let python = std::env::var_os("DOWNHILL_PEERS_PYTHON").map(PathBuf::from);
    let python = python.or(sh::which(&["python3"])).context("no python3")?;
    let mut script = sh::command(python);
    script.arg("benches/gpu.py");
    if !args.iter().any(|a| a == "--bounds") {
        setup::ensure()?;
        let flag = |name: &str, build: &[&str]| -> Result<[PathBuf; 2]> {
            Ok([PathBuf::from(name), bundle::build(build)?])
        };
        script.args(flag("--downhill", &["build", "--bin", "downhill"])?);
        script.args(flag("--bench", &bundle::experiment("bench_gpu"))?);
        script.args(flag("--tests", &["test", "--test", "book", "--no-run"])?);
    }
    sh::become_program(script.args(args))
}

/// No peers: the script needs a Python and nothing else.
fn latent(args: &[String]) -> Result<()> {
    setup::ensure()?;
    sh::check(&mut sh::cargo(bundle::experiment("bench_latent")))?;
    println!("Measure on an idle machine.");
    let python = sh::which(&["python3"]).context("no python3")?;
    sh::become_program(sh::command(python).arg("benches/latent.py").args(args))
}

fn run(script: &str, build: &[&str], args: &[String]) -> Result<()> {
    setup::ensure()?;
    let python = match std::env::var_os("DOWNHILL_PEERS_PYTHON") {
        Some(python) => PathBuf::from(python),
        None => {
            println!(
                "the peers: {} (about 2.9 GB to fetch, once)",
                PEERS.join(", ")
            );
            tools::venv("peers", PEERS)?
        }
    };
    sh::check(&mut sh::cargo(build.iter().copied()))?;
    println!("Measure on an idle machine: another busy process slows both sides.");
    sh::become_program(sh::command(python).arg(script).args(args))
}
