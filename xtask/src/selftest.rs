//! `cargo xtask book --self-test`: a check that cannot fail is no check. Each rule is
//! broken once in a copy of the book and must be reported.

use crate::book::build_and_check;
use crate::checks::{self, Fault};
use crate::sh;
use anyhow::{Result, bail};
use std::path::Path;

/// What breaks a rule: text to put after a page, or a file to write.
enum Plant {
    /// Appended to the introduction.
    Text(&'static str),
    /// Appended to another file of the copy, which may be new.
    File(&'static str, &'static str),
}

use Plant::{File, Text};

const PLANTS: &[(&str, Plant)] = &[
    (
        "missing anchor",
        Text("```rust\n{{#include ../src/lib.rs:no_such_region}}\n```"),
    ),
    (
        "unused anchor",
        File("src/planted.rs", "// ANCHOR: planted\n1\n// ANCHOR_END: planted"),
    ),
    ("include", Text("{{#include ../src/no_such_file.rs}}")),
    ("unlisted page", File("chapters/lost.md", "# Lost")),
    ("summary", File("chapters/SUMMARY.md", "- [Gone](gone.md)")),
    ("raw directive", Text("{{#unknown thing}}")),
    ("empty listing", Text("```rust\n```")),
    ("broken link", Text("[nowhere](no_such_page.md)")),
    ("broken fragment", Text("[nowhere](introduction.md#no-such-heading)")),
    ("formula", Text("$\\no_such_command{x}$")),
    ("formula", Text("a raw \\\\frac in the text")),
    ("external asset", Text("<img src=\"https://example.org/x.png\" alt=\"x\">")),
    (
        "external asset",
        File("book/book.css", "a { background: url(https://example.org/x) }"),
    ),
    ("alt text", Text("![](figures/planted.svg)")),
    ("build", Text("{{val no_such_slug.key}}")),
    ("build", Text("{{val planted.no_such_key}}")),
];

/// Copies the book under `target/`, plants each fault in turn, and counts.
pub fn run(root: &Path) -> Result<()> {
    let copy = root.join("target/book-selftest");
    let (mut passed, mut failed) = (0, 0);
    let mut verdict = |good: bool, what: String| {
        println!("{} {what}", if good { "ok    " } else { "FAILED" });
        *(if good { &mut passed } else { &mut failed }) += 1;
    };
    fresh(root, &copy)?;
    let site = copy.join("target/book");
    let clean = build_and_check(&copy, &site)?;
    for Fault { rule, place, what } in &clean {
        println!("{place}: {rule}: {what}");
    }
    verdict(clean.is_empty(), format!("the book itself: {} faults", clean.len()));
    for (rule, plant) in PLANTS {
        fresh(root, &copy)?;
        let (file, text) = match plant {
            Text(text) => ("chapters/introduction.md", text),
            File(file, text) => (*file, text),
        };
        let path = copy.join(file);
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        sh::write(&path, &format!("{before}\n\n{text}\n"))?;
        let faults = build_and_check(&copy, &site)?;
        let of_rule = |all: &[Fault]| all.iter().filter(|f| f.rule == *rule).count();
        let reported = of_rule(&faults) > of_rule(&clean);
        let last = faults.iter().rfind(|f| f.rule == *rule && reported);
        let what = last.map_or("NOT REPORTED".into(), |f| f.what.replace('\n', " "));
        let what: String = what.chars().take(120).collect();
        verdict(reported, format!("{rule}: {what}"));
    }
    for rule in checks::RULES {
        if !PLANTS.iter().any(|(planted, _)| planted == rule) {
            verdict(false, format!("{rule}: no fault is planted for this rule"));
        }
    }
    std::fs::remove_dir_all(&copy).ok();
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("the book's checks let a fault through");
    }
    Ok(())
}

/// A clean copy of what the book is made of, with a figure and numbers to refer to.
fn fresh(root: &Path, copy: &Path) -> Result<()> {
    std::fs::remove_dir_all(copy).ok();
    for part in ["book", "chapters", "src", "lab", "tests", "benches"] {
        sh::copy_tree(&root.join(part), &copy.join(part))?;
    }
    for file in sh::files(&root.join("examples"), ".rs") {
        sh::write(&copy.join(file.strip_prefix(root)?), &sh::read(&file)?)?;
    }
    sh::write(&copy.join("book.toml"), &sh::read(&root.join("book.toml"))?)?;
    sh::write(&copy.join("chapters/figures/planted.json"), "{\"key\": 1}")?;
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    sh::write(&copy.join("chapters/figures/planted.svg"), svg)
}
