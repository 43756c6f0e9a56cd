//! The Jupyter side: evcxr, a kernelspec, a prebuilt folder for its kernels, and our
//! own runner, because the usual one passes a failed assertion.

use crate::{notebooks, setup, sh, tools};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const NAME: &str = "downhill";
pub const DISPLAY_NAME: &str = "Rust (downhill)";

const CLIENT: &[&str] = &["jupyter-client==8.10.0"];
const LAB: &[&str] = &["jupyterlab==4.4.10"];

/// `cargo xtask notebooks --setup`: everything that a notebook needs, once.
pub fn setup() -> Result<()> {
    setup::ensure()?;
    let evcxr = tools::EVCXR.ensure()?;
    let python = tools::venv("jupyter", CLIENT)?;
    let sources = rust_sources()?;
    let spec = jupyter_path().join("kernels").join(NAME).join("kernel.json");
    let wrapper = sh::root().join("book/kernel.sh");
    let text = json!({
        "argv": ["sh", wrapper, "{connection_file}"],
        "display_name": DISPLAY_NAME,
        "language": "rust",
        "interrupt_mode": "message",
        "env": { "EVCXR_JUPYTER": evcxr, "RUST_SRC_PATH": sources },
    });
    sh::write(&spec, &serde_json::to_string_pretty(&text)?)?;
    template(&python)?;
    println!("the kernel `{DISPLAY_NAME}` is ready: cargo xtask notebooks --open");
    Ok(())
}

/// `cargo xtask notebooks --run`: executes each from top to bottom.
pub fn run(notebooks: &[PathBuf]) -> Result<()> {
    let spec = jupyter_path().join("kernels").join(NAME).join("kernel.json");
    if !spec.is_file() {
        bail!("there is no kernel yet: run `cargo xtask notebooks --setup`");
    }
    let python = tools::venv("jupyter", CLIENT)?;
    sh::check(runner(&python).args(notebooks))
}

/// `cargo xtask notebooks --open`: JupyterLab on the notebooks, with the kernel.
pub fn open() -> Result<()> {
    setup()?;
    let python = tools::venv("lab", LAB)?;
    let folder = sh::root().join("chapters/notebooks");
    sh::become_program(
        with_kernel(&mut sh::command(python)).args(["-m", "jupyterlab"]).arg(folder),
    )
}

fn jupyter_path() -> PathBuf {
    sh::root().join(".tools/share/jupyter")
}

fn with_kernel(command: &mut Command) -> &mut Command {
    command.env("JUPYTER_PATH", jupyter_path())
}

fn runner(python: &Path) -> Command {
    let mut command = sh::command(python);
    command.arg("book/run_notebooks.py").args(["--kernel", NAME]);
    with_kernel(&mut command);
    command
}

/// The sources of the standard library: without them evcxr cannot name the type of
/// `let x = vec![1]`. Debian's package, or rustup's component.
fn rust_sources() -> Result<PathBuf> {
    if let Some(found) = find_rust_sources() {
        return Ok(found);
    }
    println!("adding rust-src with rustup (evcxr needs it to name types)");
    let added =
        sh::check(sh::command("rustup").args(["component", "add", "rust-src"]));
    find_rust_sources().with_context(|| {
        let why = added.err().map(|e| format!(" ({e:#})")).unwrap_or_default();
        format!(
            "the sources of Rust's standard library are missing{why}. Install them: \
             rustup component add rust-src, or Debian: apt install rust-web-src"
        )
    })
}

fn find_rust_sources() -> Option<PathBuf> {
    let mut rustc = sh::command("rustc");
    let sysroot = sh::output(rustc.args(["--print", "sysroot"])).unwrap_or_default();
    let rustup = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    let debian = std::fs::read_dir("/usr/src").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = debian
        .filter(|e| e.file_name().to_string_lossy().starts_with("rustc-"))
        .map(|e| e.path().join("library"))
        .collect();
    debian.sort();
    debian.reverse();
    [rustup].into_iter().chain(debian).find(|p| p.join("std/src/lib.rs").is_file())
}

/// What the kernel's folder is built from: the compiler, and a hash of all that it
/// makes the library and the laboratory of. The command (`main.rs`, `cli`) is no part.
fn built_from(root: &Path, rustc: &str) -> Result<String> {
    let (src, mut hasher) = (root.join("src"), DefaultHasher::new());
    let command = [src.join("main.rs"), src.join("cli")];
    let mut files = sh::files(&src, "");
    files.retain(|f| !command.iter().any(|c| f.starts_with(c)));
    files.extend(sh::files(&root.join("lab/src"), ""));
    let packages =
        ["Cargo.toml", "Cargo.lock", "build.rs", "lab/Cargo.toml", "lab/build.rs"];
    files.extend(packages.map(|f| root.join(f)));
    for file in files {
        let text = std::fs::read(&file)
            .with_context(|| format!("cannot read {}", sh::shown(&file)))?;
        (file.strip_prefix(root)?, text).hash(&mut hasher);
    }
    Ok(format!("{}\n{:016x}\n", rustc.trim(), hasher.finish()))
}

/// A folder in which evcxr has built everything once. Each kernel starts from a copy
/// of it: two kernels in one folder disturb each other, and an empty one compiles tch.
fn template(python: &Path) -> Result<()> {
    let target = sh::root().join("target");
    let template = target.join("evcxr-template");
    let stamp = template.join("downhill-stamp");
    let rustc =
        sh::output(sh::command("rustc").arg("--version")).unwrap_or_default();
    let wanted = built_from(&sh::root(), &rustc)?;
    if std::fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        return Ok(());
    }
    println!("building the kernel's folder: 4 to 6 minutes on 2 cores, once");
    let build = target.join("evcxr-build");
    // What an interrupted or failed build has compiled is kept, and else what the
    // last one has: with another library tch need not be compiled again.
    if !build.is_dir() && template.is_dir() {
        std::fs::remove_file(&stamp).ok();
        std::fs::rename(&template, &build)?;
    }
    std::fs::remove_dir_all(&template).ok();
    std::fs::create_dir_all(&build)?;
    std::fs::create_dir_all(sh::root().join("chapters/notebooks"))?;
    let cells = [
        notebooks::dependencies()?,
        "use tch::{Device, Kind, Tensor};\n\
         let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));\nx.size()"
            .into(),
        // The first compile error checks all dependencies, which takes half a minute.
        "let wrong: u8 = \"text\";".into(),
    ];
    let warm_up = json!({ "cells": cells.map(|c| json!({
        "cell_type": "code", "source": c,
    })) });
    let file = build.join("warm-up.ipynb");
    sh::write(&file, &warm_up.to_string())?;
    sh::check(
        runner(python)
            .args(["--warm-up", "--cwd", "chapters/notebooks"])
            .arg(&file)
            .env("EVCXR_TMPDIR", &build),
    )
    .context("the kernel does not start or cannot build downhill")?;
    for part in ["debug", "x86_64-unknown-linux-gnu/debug"] {
        // Of use only to the kernel that has just ended.
        std::fs::remove_dir_all(build.join("target").join(part).join("incremental"))
            .ok();
    }
    std::fs::rename(&build, &template)?;
    sh::write(&stamp, &wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_that_of_the_library() {
        let root =
            std::env::temp_dir().join(format!("stamp-{}", std::process::id()));
        let put =
            |file: &str, text: &str| sh::write(&root.join(file), text).unwrap();
        let stamp = || built_from(&root, "rustc 1\n").unwrap();
        let all = [
            "Cargo.toml",
            "Cargo.lock",
            "build.rs",
            "src/lib.rs",
            "src/a/k.cu",
            "lab/Cargo.toml",
            "lab/build.rs",
            "lab/src/lib.rs",
        ];
        for file in all.into_iter().chain(["src/main.rs", "src/cli/mod.rs"]) {
            put(file, "1");
        }
        let first = stamp();
        assert_eq!(stamp(), first);
        for file in all {
            put(file, "2");
            assert_ne!(stamp(), first, "{file}");
            put(file, "1");
            assert_eq!(stamp(), first, "{file}");
        }
        // Another compiler; another name; a file more.
        assert_ne!(built_from(&root, "rustc 2\n").unwrap(), first);
        std::fs::rename(root.join("src/a"), root.join("src/b")).unwrap();
        assert_ne!(stamp(), first);
        std::fs::rename(root.join("src/b"), root.join("src/a")).unwrap();
        put("src/new.rs", "");
        assert_ne!(stamp(), first);
        std::fs::remove_file(root.join("src/new.rs")).unwrap();
        // The command and the tests are not in it.
        for file in ["src/main.rs", "src/cli/mod.rs", "tests/a.rs", "README.md"] {
            put(file, "2");
            assert_eq!(stamp(), first, "{file}");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
