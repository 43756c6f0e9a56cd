//! `cargo xtask book`: builds the book and checks it; a broken rule is a failure.

use crate::checks::{self, Fault};
use crate::{selftest, sh, tools};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// `cargo xtask book [--serve|--check-only|--self-test]`
pub fn main(args: &[String]) -> Result<()> {
    let flag = match args {
        [] => "",
        [flag] => flag.as_str(),
        _ => bail!("book takes one flag, found `{}`", args.join(" ")),
    };
    let root = sh::root();
    let site = root.join("target/book");
    match flag {
        "" => report(build_and_check(&root, &site)?, &site),
        "--check-only" => {
            let mut faults = checks::sources(&root)?;
            faults.extend(checks::built(&site)?);
            report(faults, &site)
        }
        "--serve" => sh::become_program(mdbook(&root)?.args(["serve", "--open"])),
        "--self-test" => selftest::run(&root),
        other => {
            bail!("book takes --serve, --check-only or --self-test, found `{other}`")
        }
    }
}

/// Prints the faults; any is an error.
fn report(faults: Vec<Fault>, site: &Path) -> Result<()> {
    for Fault { rule, place, what } in &faults {
        println!("{place}: {rule}: {what}");
    }
    if !faults.is_empty() {
        bail!("the book has {} faults", faults.len());
    }
    let pages = sh::files(site, ".html").len();
    println!("the book is in order: {pages} pages, {}/index.html", sh::shown(site));
    Ok(())
}

/// mdBook with both preprocessors within reach. The book's own is this program, so
/// that a build does not wait for cargo.
fn mdbook(root: &Path) -> Result<Command> {
    let program = tools::MDBOOK.ensure()?;
    let katex = tools::KATEX.ensure()?;
    let own = std::env::current_exe().context("no path of this program")?;
    let mut command = Command::new(program);
    command.current_dir(root).env("NO_COLOR", "1");
    command.env("MDBOOK_PREPROCESSOR__KATEX__COMMAND", quoted(&katex));
    let own = format!("{} preprocess", quoted(&own));
    command.env("MDBOOK_PREPROCESSOR__DOWNHILL__COMMAND", own);
    Ok(command)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// Builds the book of `root` into `site`; the faults of its sources, of the build and
/// of the pages.
pub fn build_and_check(root: &Path, site: &Path) -> Result<Vec<Fault>> {
    let mut faults = checks::sources(root)?;
    std::fs::remove_dir_all(site).ok();
    let out = mdbook(root)?.arg("build").arg("--dest-dir").arg(site).output()?;
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    faults.extend(complaints(&log));
    if out.status.success() {
        faults.extend(checks::built(site)?);
    } else {
        let text: Vec<&str> = log.lines().filter(|l| !l.contains("INFO")).collect();
        let what = text.join("\n");
        faults.push(Fault { rule: "build", place: "mdbook".into(), what });
    }
    Ok(faults)
}

/// The warnings and errors of mdBook and KaTeX, which print them and go on. What
/// follows on the next lines belongs to them.
fn complaints(log: &str) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut open = false;
    for line in log.lines() {
        let level = |l: &&str| line.split_whitespace().take(2).any(|w| w == *l);
        if ["WARN", "ERROR"].iter().any(level) {
            open = !line.contains("built against mdbook");
            if open {
                let rule = if line.contains("katex") { "formula" } else { "build" };
                let what = line.trim().to_string();
                faults.push(Fault { rule, place: "mdbook".into(), what });
            }
        } else if ["INFO", "DEBUG"].iter().any(level) {
            open = false;
        } else if open && let Some(fault) = faults.last_mut() {
            fault.what += "\n";
            fault.what += line;
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_faults_with_the_lines_that_follow() {
        let log = " INFO Book building has started\n\
                   2026-01-01T00:00:00Z  WARN render: mdbook_katex: failed\nParseError\n\
                   WARN mdbook_katex: was built against mdbook v0.5.3\n\
                   ERROR Could not read\n INFO done\n";
        let faults = complaints(log);
        assert_eq!(faults.len(), 2);
        assert!(
            faults[0].rule == "formula" && faults[0].what.ends_with("ParseError")
        );
        assert_eq!(faults[1].what, "ERROR Could not read");
    }
}
