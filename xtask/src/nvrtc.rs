//! `cargo xtask setup --nvrtc`: the compiler of the CUDA kernels, beside libtorch. It
//! comes with libtorch's CUDA half; without a card it serves the tests alone.

use crate::{setup, sh};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The compiler last: where it is, its part is too. The wheel's other files are for
/// other uses.
const FILES: [&str; 2] = ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"];
const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.*";
const PLACE: &str = "nvidia/cu13/lib";

pub fn install() -> Result<()> {
    let folder = sh::root().join(".libtorch");
    // A linked PyTorch for CUDA has it at home.
    let home = folder.join("torch").canonicalize().ok();
    let beside = home.as_deref().and_then(Path::parent);
    let there = |p: &Path| p.join(PLACE).join(FILES[1]).is_file();
    if there(&folder) || beside.is_some_and(there) {
        println!("NVRTC is ready");
        return Ok(());
    }
    println!("fetching NVRTC with pip: 90 MB, 114 MB unpacked");
    let partial = folder.join(format!("nvrtc.partial-{}", std::process::id()));
    let done = fetch(&partial, &folder.join(PLACE));
    fs::remove_dir_all(&partial).ok();
    done
}

fn fetch(partial: &Path, place: &Path) -> Result<()> {
    let mut pip = sh::command(setup::python()?);
    pip.args(["-m", "pip", "install", "--no-deps", "--no-compile", "--target"]);
    pip.arg(partial).args(["--disable-pip-version-check", WHEEL]);
    sh::check(pip.env("PIP_ROOT_USER_ACTION", "ignore")).context(
        "pip could not install NVRTC (its own message is above); only tests of CUDA \
         kernels need it",
    )?;
    fs::create_dir_all(place)?;
    for file in FILES {
        fs::rename(partial.join(PLACE).join(file), place.join(file))
            .with_context(|| format!("no {file} in {WHEEL}"))?;
    }
    Ok(())
}
