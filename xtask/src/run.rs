//! `run`, `finetune` and `test`: the set-up, then cargo.

use crate::{setup, sh, tools};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::Stdio;

/// `cargo xtask run [SLUG [ARGS]]`; `5`, `ch05` and `ch05_adam` name the same program.
pub fn run(args: &[String]) -> Result<()> {
    let programs = programs();
    let Some(name) = args.first() else {
        println!("the programs: {}", programs.join(", "));
        return Ok(());
    };
    let program = find(&programs, name)?;
    setup::ensure()?;
    let rest = args[1..].iter().map(String::as_str);
    let cargo = ["run", "--example", program, "--"].into_iter().chain(rest);
    sh::become_program(&mut sh::cargo(cargo))
}

/// The programs under `examples/`, by name: `NAME.rs` or `NAME/main.rs`.
fn programs() -> Vec<String> {
    let folder = sh::root().join("examples");
    let name = |path: &Path| {
        let path = path.strip_prefix(&folder).ok()?.with_extension("");
        let path = path.to_str()?;
        let name = path.strip_suffix("/main").unwrap_or(path);
        (!name.contains('/')).then(|| name.to_string())
    };
    sh::files(&folder, ".rs").iter().filter_map(|p| name(p)).collect()
}

fn find<'a>(programs: &'a [String], name: &str) -> Result<&'a str> {
    if let Some(exact) = programs.iter().find(|p| *p == name) {
        return Ok(exact);
    }
    let short = match name.parse::<u32>() {
        Ok(number) => format!("ch{number:02}_"),
        Err(_) => format!("{name}_"),
    };
    let found: Vec<&String> =
        programs.iter().filter(|p| p.starts_with(&short)).collect();
    match found[..] {
        [one] => Ok(one),
        _ => bail!(
            "no program `{name}` in examples/; there are {}",
            programs.join(", ")
        ),
    }
}

/// `cargo xtask finetune [FLAGS]`: the shipped settings; flags given here win.
pub fn finetune(args: &[String]) -> Result<()> {
    setup::ensure()?;
    let mut all = vec!["run", "--bin", "downhill", "--", "finetune"];
    if !args.iter().any(|a| a == "--config" || a.starts_with("--config=")) {
        all.extend(["--config", "examples/data/finetune.toml"]);
    }
    all.extend(args.iter().map(String::as_str));
    sh::become_program(&mut sh::cargo(all))
}

/// Tests that lack something append a line to a file, so that they are counted and not
/// silently green: the file, and what is said of them.
const SKIPPED: [(&str, &str); 4] = [
    ("target/cuda-skipped.txt", "CUDA tests skipped: no CUDA device"),
    (
        "target/nvrtc-skipped.txt",
        "tests skipped: no NVRTC to compile CUDA kernels; `cargo xtask setup --nvrtc` \
         fetches it",
    ),
    ("target/tokenizers-skipped.txt", "tests skipped: no real tokenizers"),
    (
        "target/processor-skipped.txt",
        "tests in part or whole skipped: the processor",
    ),
];

/// `cargo xtask test [ARGS]`: every test of the workspace, doctests included.
pub fn test(args: &[String]) -> Result<()> {
    setup::ensure()?;
    if let Err(e) = tools::tokenizers() {
        println!(
            "the real tokenizers cannot be fetched, so their tests will be skipped: {e:#}"
        );
    }
    for (list, _) in SKIPPED {
        std::fs::remove_file(sh::root().join(list)).ok();
    }
    let mut cargo = sh::cargo(["test", "--workspace", "--no-fail-fast"]);
    cargo.args(args).stdout(Stdio::piped());
    if std::io::stdout().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line?;
        println!("{line}");
        counts.add(&line);
    }
    let status = child.wait()?;
    for (list, what) in SKIPPED {
        let list = sh::root().join(list);
        let n = sh::read(&list).map(|t| t.lines().count()).unwrap_or(0);
        if n > 0 {
            println!("{n} {what}");
        }
    }
    let Counts { passed, failed, ignored } = counts;
    println!(
        "all tests together: {passed} passed, {failed} failed, {ignored} ignored"
    );
    if !status.success() {
        bail!("cargo test ended with {status}");
    }
    if passed == 0 && args.is_empty() {
        bail!("no test ran");
    }
    Ok(())
}

#[derive(Default, Debug, PartialEq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Counts {
    /// Adds a `test result: ok. 3 passed; 0 failed; 1 ignored; ...` line.
    fn add(&mut self, line: &str) {
        let Some((_, line)) = line.split_once("test result:") else { return };
        let words: Vec<&str> = line.split([' ', ';', '.']).collect();
        for pair in words.windows(2) {
            let Ok(n) = pair[0].parse::<usize>() else { continue };
            match pair[1] {
                "passed" => self.passed += n,
                "failed" => self.failed += n,
                "ignored" => self.ignored += n,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured");
        counts.add("test result: FAILED. 12 passed; 2 failed; 0 ignored");
        counts.add("running 9 tests");
        assert_eq!(counts, Counts { passed: 15, failed: 2, ignored: 1 });
    }

    #[test]
    fn programs_go_by_number_chapter_or_slug() {
        let all = ["ch05_adam".to_string(), "ch16_finetune".to_string()];
        for name in ["5", "05", "ch05", "ch05_adam"] {
            assert_eq!(find(&all, name).unwrap(), "ch05_adam");
        }
        let error = find(&all, "ch99").unwrap_err().to_string();
        assert!(error.contains("ch99") && error.contains("ch16_finetune"));
    }
}
