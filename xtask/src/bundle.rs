//! `cargo xtask gpu-bundle`: a folder that checks and measures downhill on a machine
//! with a GPU, Python's PyTorch 2.11, and neither Rust nor this checkout nor a network.

use crate::{setup, sh};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What may be carried to such a machine, in bytes: 64 MiB, with this checkout beside it.
const LIMIT: u64 = 38_000_000;
/// What the tests and the measurement read, at the places where they look for it.
const READ: [&str; 4] =
    ["tests/golden", "examples/data/tiny", "benches/gpu.py", "benches/shapes"];

/// bitsandbytes' libraries that are of use there.
const OURS: [&str; 2] = ["libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so"];

/// `cargo xtask gpu-bundle [FOLDER] [--wheels DIR]`; a new folder, `target/gpu-bundle`
/// if none is named. The packages in `--wheels` go with it, for the peers.
pub fn main(args: &[String]) -> Result<()> {
    let (mut folder, mut wheels) = (None, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--wheels" => {
                let dir = rest.next().context("--wheels takes a folder")?;
                wheels = Some(PathBuf::from(dir));
            }
            flag if flag.starts_with('-') => {
                bail!("gpu-bundle takes a folder and --wheels DIR, found `{flag}`")
            }
            path => folder = Some(PathBuf::from(path)),
        }
    }
    setup::ensure()?;
    let folder = folder.unwrap_or_else(|| sh::root().join("target/gpu-bundle"));
    make(&folder, wheels.as_deref())?;
    let size = sh::files(&folder, "")
        .iter()
        .map(|f| fs::metadata(f).map_or(0, |m| m.len()))
        .sum::<u64>();
    let mb = size as f64 / 1e6;
    if size > LIMIT {
        bail!(
            "{} has {mb:.1} MB, more than the {} that may be carried; leave wheels out",
            sh::shown(&folder),
            LIMIT / 1_000_000
        );
    }
    println!("{}: {mb:.1} MB. There: bash run.sh", sh::shown(&folder));
    Ok(())
}

/// Fills a new folder, which takes the place of an earlier bundle.
fn make(folder: &Path, wheels: Option<&Path>) -> Result<()> {
    let ours = folder.join("run.sh").is_file();
    if folder.exists() {
        let empty = fs::read_dir(folder)?.next().is_none();
        if !ours && !empty {
            bail!("{} is no bundle of an earlier time", folder.display());
        }
        fs::remove_dir_all(folder)?;
    }
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    let programs = [
        (build(&["build", "--bin", "downhill"])?, "downhill"),
        (build(&experiment("bench_gpu"))?, "bench_gpu"),
        (build(&["test", "--test", "book", "--no-run"])?, "book"),
    ];
    for (from, name) in programs {
        let to = bin.join(name);
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {}", from.display()))?;
        // What is stripped is a third; without the tool it is only larger.
        if let Some(strip) = sh::which(&["strip"]) {
            sh::check(sh::command(strip).arg(&to))?;
        }
    }
    let mut parts = vec!["bin"];
    if let Some(wheels) = wheels {
        unpack(wheels, &folder.join("site"))?;
        parts.push("site");
    }
    // Packed they are a third; `run.sh` unpacks them.
    let mut tar = sh::command("tar");
    tar.arg("-czf").arg(folder.join("bin.tar.gz")).arg("-C").arg(folder);
    sh::check(tar.args(&parts))?;
    for part in parts {
        fs::remove_dir_all(folder.join(part))?;
    }
    for path in READ {
        let (from, to) = (sh::root().join(path), folder.join(path));
        if from.is_dir() {
            sh::copy_tree(&from, &to)?;
        } else {
            sh::write(&to, &sh::read(&from)?)?;
        }
    }
    // Tests look for their files where they were compiled.
    sh::write(&folder.join("root.txt"), &format!("{}\n", sh::root().display()))?;
    sh::write(&folder.join("run.sh"), include_str!("bundle.sh"))
}

/// Unpacks all wheels of a folder, for the machine there: of bitsandbytes, which has a
/// library for each CUDA and more, only that for libtorch's own.
fn unpack(wheels: &Path, site: &Path) -> Result<()> {
    for wheel in sh::files(wheels, "whl") {
        let mut python = sh::command(setup::python()?);
        python.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(site);
        sh::check(&mut python)?;
    }
    for file in sh::files(site, "so") {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("libbitsandbytes_") && !OURS.iter().any(|o| name == *o) {
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

/// What builds a program of `lab/`.
pub fn experiment(name: &str) -> [&str; 5] {
    ["build", "-p", "downhill-lab", "--bin", name]
}

/// Builds with cargo; the program that it names.
pub fn build(args: &[&str]) -> Result<PathBuf> {
    let mut cargo = sh::cargo(args);
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = output(&mut cargo)?;
    let text = String::from_utf8_lossy(&output);
    let found = text.lines().filter_map(executable).next_back();
    found.with_context(|| format!("cargo {} named no program", args.join(" ")))
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let out = command.output().context("cannot start cargo")?;
    match out.status.success() {
        true => Ok(out.stdout),
        false => bail!("cargo ended with {}", out.status),
    }
}

/// The program that a line of cargo's messages speaks of, if it does.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    message["executable"].as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_what_it_built() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/deps/book-1"}"#;
        assert_eq!(executable(line), Some(PathBuf::from("/t/deps/book-1")));
        for other in
            [r#"{"reason":"build-finished"}"#, r#"{"executable":null}"#, "warning"]
        {
            assert_eq!(executable(other), None);
        }
    }

    #[test]
    fn a_strangers_folder_is_left_alone() {
        let dir =
            std::env::temp_dir().join(format!("bundle-{}", std::process::id()));
        sh::write(&dir.join("letter.txt"), "dear").unwrap();
        let error = make(&dir, None).unwrap_err().to_string();
        assert!(error.contains("no bundle"), "{error}");
        assert!(dir.join("letter.txt").is_file());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_bundle_reads_is_there() {
        for path in READ {
            assert!(sh::root().join(path).exists(), "{path}");
        }
    }
}
