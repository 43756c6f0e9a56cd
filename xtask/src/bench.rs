//! `cargo xtask bench peers`: the same fine-tune with PEFT + bitsandbytes and with
//! downhill, in turn, on this machine.

use crate::{setup, sh, tools};
use anyhow::{Result, bail};
use std::path::PathBuf;

const SCRIPT: &str = "benches/peers.py";
const PEERS: &[&str] = &[
    "torch==2.11.0",
    "transformers==4.57.1",
    "peft==0.21.2",
    "bitsandbytes==0.50.2",
];

/// `cargo xtask bench peers [ARGS]`; the arguments go to the script.
pub fn main(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("peers") => peers(&args[1..]),
        _ => bail!("bench takes `peers`, found `{}`", args.join(" ")),
    }
}

fn peers(args: &[String]) -> Result<()> {
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
    sh::check(&mut sh::cargo(["build", "--bin", "downhill"]))?;
    println!("Measure on an idle machine: another busy process slows both sides.");
    sh::become_program(sh::command(python).arg(SCRIPT).args(args))
}
