//! `cargo xtask bench`: the same work by a well-known tool and by downhill, in turn, on
//! this machine. `peers` is a fine-tune, beside PEFT + bitsandbytes; `optim` is an
//! optimizer's step, beside torch.optim.

use crate::{setup, sh, tools};
use anyhow::{Result, bail};
use std::path::PathBuf;

const PEERS: &[&str] = &[
    "torch==2.11.0",
    "transformers==4.57.1",
    "peft==0.21.2",
    "bitsandbytes==0.50.2",
];

/// `cargo xtask bench peers|optim [ARGS]`; the arguments go to the script.
pub fn main(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("peers") => run("benches/peers.py", ["--bin", "downhill"], &args[1..]),
        Some("optim") => {
            run("benches/optim.py", ["--example", "bench_optim"], &args[1..])
        }
        _ => bail!("bench takes `peers` or `optim`, found `{}`", args.join(" ")),
    }
}

fn run(script: &str, ours: [&str; 2], args: &[String]) -> Result<()> {
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
    sh::check(&mut sh::cargo(["build", ours[0], ours[1]]))?;
    println!("Measure on an idle machine: another busy process slows both sides.");
    sh::become_program(sh::command(python).arg(script).args(args))
}
