//! The rules of the layout, by reading the sources: imports point down only, files
//! stay short, `unsafe` keeps to its rooms, a chapter has all its parts. Each rule is
//! run over the repository, and over a small tree with a fault in it, where it must
//! speak up.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const LIMIT: usize = 400;
/// Lines of a reader's program, which one types along with.
const PROGRAM: usize = 130;

/// Who may import whom. Everyone may use `error` and `files`; `main` and `cli` may use everything.
/// Four edges are not in the plan of the floors, and say why.
const EDGES: &[(&str, &[&str])] = &[
    (
        "train",
        &[
            "models",
            "lora",
            "optim",
            "schedule",
            "data",
            "checkpoint",
            "nn",
            "plot",
            "device",
            "generate",
            "hub", // what an adapter says of its base
        ],
    ),
    ("generate", &["models", "nn", "data", "lora", "device"]),
    ("models", &["nn", "quant", "checkpoint", "autograd"]),
    ("lora", &["nn", "checkpoint", "quant"]), // a merge reports what 4 bits change
    ("nn", &["quant", "autograd", "cuda"]),
    ("quant", &["autograd", "cuda"]), // its threads are libtorch's
    ("optim", &["autograd", "cuda"]), // tch cannot clear a gradient
    ("cuda", &["autograd", "checkpoint"]), // to find libraries; to write files whole
    ("plot", &["checkpoint"]),        // only to write files whole
    ("device", &["autograd"]),
    ("autograd", &[]),
    ("checkpoint", &[]),
    ("data", &["autograd"]), // batches go to the GPU without waiting
    ("hub", &[]),
    ("schedule", &[]),
    ("error", &[]),
    ("files", &[]),
];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 8] = [
    "src/cuda/driver.rs",
    "src/cuda/nvrtc.rs",
    "src/device/driver.rs",
    "src/quant/product.rs",
    "src/autograd/",
    "src/checkpoint/mmap.rs",
    "src/quant/kernels.rs",
    "src/quant/simd.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this extension below `dir`, as paths from `root`, sorted.
fn files(root: &Path, dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.strip_prefix(root).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn read(root: &Path, path: &Path) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

/// The code without comments and doc comments (strings stay: none names a module).
fn code(text: &str) -> String {
    let lines = text.lines().map(|l| l.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// The top module of a file below `src`.
fn module(path: &Path) -> String {
    let part = path.components().nth(1).unwrap().as_os_str();
    Path::new(part).file_stem().unwrap().to_string_lossy().into_owned()
}

/// First names after `prefix`: one, or those of a `{…}` list, one level deep.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |s: &str| -> String {
        s.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    for (at, _) in code.match_indices(prefix) {
        // `my_crate::` is not `crate::`.
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' if depth > 0 => {}
                ',' | '}' => {
                    names.insert(word(&list[start..i]));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    names
}

fn wrong_imports(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in files(root, "src", "rs") {
        let from = module(&path);
        if ["main", "cli", "lib"].contains(&from.as_str()) {
            continue;
        }
        let Some((_, allowed)) = EDGES.iter().find(|(m, _)| *m == from) else {
            wrong.push(format!("{}: `{from}` is on no floor", path.display()));
            continue;
        };
        let text = code(&read(root, &path));
        // From the top file of a module `super` is the crate, below it one more.
        let depth = path.components().count();
        let top = depth == 2 || (depth == 3 && path.ends_with("mod.rs"));
        let up = if top { "super::" } else { "super::super::" };
        let mut names = names_after(&text, "crate::");
        names.extend(names_after(&text, "downhill::"));
        names.extend(names_after(&text, up));
        for to in names {
            let known = EDGES.iter().any(|(m, _)| *m == to);
            if known
                && to != from
                && to != "error"
                && to != "files"
                && !allowed.contains(&to.as_str())
            {
                wrong.push(format!("{}: {from} imports {to}", path.display()));
            }
        }
    }
    wrong
}

fn long_files(root: &Path) -> Vec<String> {
    let dirs = ["src", "lab", "examples", "tests", "xtask"];
    let all = dirs.iter().flat_map(|d| files(root, d, "rs"));
    let lines = all.map(|p| (read(root, &p).lines().count(), p));
    lines
        .filter(|(n, p)| *n > LIMIT && !p.starts_with("tests"))
        .map(|(n, p)| format!("{}: {n} lines, at most {LIMIT}", p.display()))
        .collect()
}

/// Readers' programs that are too long, or that lean on what is not for the reader.
fn unreadable_programs(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for slug in slugs(root) {
        let path = PathBuf::from(format!("examples/{slug}.rs"));
        let text = read(root, &path);
        // Marks for page and notebook are not typed along.
        let mark = |l: &&str| {
            let marks = ["// ANCHOR", "// CELL:", "// NOTEBOOK:"];
            marks.iter().any(|mark| l.trim().starts_with(mark))
        };
        let lines = text.lines().filter(|l| !mark(l)).count();
        if lines > PROGRAM {
            wrong.push(format!(
                "{}: {lines} lines, at most {PROGRAM}",
                path.display()
            ));
        }
        // What makes and checks the pages' numbers stays in lab/experiments.
        for word in ["Report", "clap", "macro_rules!", "assert!"] {
            if code(&text).contains(word) {
                wrong.push(format!("{}: `{word}`", path.display()));
            }
        }
        let figure = format!("target/figures/{slug}.svg");
        if !text.is_empty() && !text.contains(&figure) {
            wrong.push(format!("{}: writes no {figure}", path.display()));
        }
    }
    wrong
}

fn stray_unsafe(root: &Path) -> Vec<String> {
    let words = |text: &str| {
        code(text)
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .any(|w| w == "unsafe" || w == "unsafe_code")
    };
    files(root, "src", "rs")
        .into_iter()
        .filter(|p| !UNSAFE.iter().any(|room| p.to_string_lossy().starts_with(room)))
        .filter(|p| words(&read(root, p)))
        .map(|p| format!("{}: unsafe outside its rooms", p.display()))
        .collect()
}

/// Slugs of the pages: `chapters/chNN_name.md`.
fn slugs(root: &Path) -> Vec<String> {
    let pages = files(root, "chapters", "md");
    let stem = |p: &PathBuf| p.file_stem().unwrap().to_string_lossy().into_owned();
    let is_slug = |s: &String| {
        s.starts_with("ch")
            && s[2..].chars().take_while(char::is_ascii_digit).count() == 2
    };
    pages.iter().map(stem).filter(is_slug).collect()
}

fn incomplete_chapters(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let summary = read(root, Path::new("chapters/SUMMARY.md"));
    let modules = read(root, Path::new("tests/book/main.rs"));
    for slug in slugs(root) {
        for part in [
            format!("examples/{slug}.rs"),
            format!("lab/experiments/{slug}.rs"),
            format!("tests/book/{slug}.rs"),
            format!("chapters/figures/{slug}.svg"),
            format!("chapters/figures/{slug}.json"),
            format!("chapters/notebooks/{slug}.ipynb"),
        ] {
            if !root.join(&part).is_file() {
                wrong.push(format!("{slug}: no {part}"));
            }
        }
        if !summary.contains(&format!("({slug}.md)")) {
            wrong.push(format!("{slug}: not in SUMMARY.md"));
        }
        if !modules.lines().any(|l| l.trim() == format!("mod {slug};")) {
            wrong.push(format!("{slug}: tests/book/main.rs lacks its module"));
        }
    }
    wrong
}

/// Every `{{#include file:anchor}}` of a page leads to text.
fn broken_includes(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for page in files(root, "chapters", "md") {
        let text = read(root, &page);
        for part in text.split("{{#").skip(1) {
            let Some(("include" | "rustdoc_include", rest)) = part.split_once(' ')
            else {
                continue;
            };
            let target = rest.split("}}").next().unwrap_or("").trim();
            let (file, anchor) = target.split_once(':').unwrap_or((target, ""));
            let path = page.parent().unwrap().join(file);
            let Ok(source) = fs::read_to_string(root.join(&path)) else {
                wrong.push(format!("{}: no file {file}", page.display()));
                continue;
            };
            let has = |mark: &str| {
                source
                    .lines()
                    .any(|l| l.trim().ends_with(&format!("{mark}: {anchor}")))
            };
            // Line numbers move; only anchors hold.
            let lines = anchor.starts_with(|c: char| c.is_ascii_digit());
            if !anchor.is_empty() && (lines || !has("ANCHOR") || !has("ANCHOR_END"))
            {
                wrong.push(format!("{}: {file} has no {anchor}", page.display()));
            }
        }
    }
    wrong
}

/// A rule: what it is about, and what it finds wrong.
type Rule = (&'static str, fn(&Path) -> Vec<String>);
const RULES: [Rule; 6] = [
    ("imports", wrong_imports),
    ("length", long_files),
    ("unsafe", stray_unsafe),
    ("chapters", incomplete_chapters),
    ("programs", unreadable_programs),
    ("includes", broken_includes),
];

#[test]
fn the_repository_keeps_the_rules() {
    let mut wrong = Vec::new();
    for (name, rule) in RULES {
        wrong.extend(rule(root()).into_iter().map(|w| format!("{name}: {w}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // Not because nothing was read.
    assert!(files(root(), "src", "rs").len() > 30);
    assert!(slugs(root()).contains(&"ch05_adam".to_string()), "no chapter found");
}

/// A tree that keeps all rules.
fn small_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| put(dir.path(), path, text);
    put("src/lib.rs", "pub mod nn;");
    put("src/nn/mod.rs", "use crate::{Result, autograd};\n// use crate::models;\n");
    put("src/nn/rope.rs", "use super::Linear;\nuse crate::quant::Nf4Tensor;\n");
    put("src/optim/adam.rs", "// ANCHOR: rule\nfn f() {}\n// ANCHOR_END: rule\n");
    put("chapters/SUMMARY.md", "- [Adam](ch05_adam.md)\n");
    put("chapters/ch05_adam.md", "{{#include ../src/optim/adam.rs:rule}}\n");
    put("chapters/figures/ch05_adam.svg", "");
    put("chapters/figures/ch05_adam.json", "");
    put("chapters/notebooks/ch05_adam.ipynb", "");
    put("examples/ch05_adam.rs", "// target/figures/ch05_adam.svg\n");
    put("lab/experiments/ch05_adam.rs", "");
    put("tests/book/ch05_adam.rs", "");
    put("tests/book/main.rs", "mod ch05_adam;\n");
    dir
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn each_rule_finds_its_fault() {
    let whole = small_tree();
    for (name, rule) in RULES {
        assert_eq!(rule(whole.path()), Vec::<String>::new(), "{name}");
    }
    let long = "\n".repeat(LIMIT + 1);
    let faults: &[(&str, &str, &str, &str)] = &[
        ("imports", "src/nn/mod.rs", "use crate::optim::Param;", "nn imports optim"),
        (
            "imports",
            "src/nn/a.rs",
            "use crate::{Error, nn::{A, B}, models::load};",
            "nn imports models",
        ),
        (
            "imports",
            "src/checkpoint/a.rs",
            "fn f() { crate::quant::double() }",
            "checkpoint imports quant",
        ),
        (
            "imports",
            "src/models/a.rs",
            "use super::super::train::fit;",
            "models imports train",
        ),
        ("imports", "src/models/mod.rs", "use super::lora;", "models imports lora"),
        (
            "imports",
            "src/lora.rs",
            "use super::{Error, models};",
            "lora imports models",
        ),
        ("imports", "src/data/a.rs", "use crate::plot as p;", "data imports plot"),
        ("imports", "src/magic.rs", "", "`magic` is on no floor"),
        ("length", "src/nn/long.rs", &long, "401 lines"),
        ("length", "lab/src/long.rs", &long, "401 lines"),
        ("length", "examples/long.rs", &long, "401 lines"),
        ("unsafe", "src/nn/a.rs", "fn f() { unsafe { g() } }", "src/nn/a.rs"),
        ("unsafe", "src/data/a.rs", "#![allow(unsafe_code)]", "src/data/a.rs"),
        ("chapters", "chapters/SUMMARY.md", "", "not in SUMMARY"),
        ("chapters", "tests/book/main.rs", "// mod ch05_adam;", "lacks its module"),
        (
            "chapters",
            "chapters/ch07_schedules.md",
            "",
            "no examples/ch07_schedules.rs",
        ),
        ("programs", "examples/ch05_adam.rs", &long, "401 lines, at most 130"),
        ("programs", "examples/ch05_adam.rs", "use downhill_lab::Report;", "Report"),
        ("programs", "examples/ch05_adam.rs", "fn main() {}", "writes no target"),
        ("includes", "chapters/a.md", "{{#include ../src/none.rs}}", "no file"),
        (
            "includes",
            "chapters/a.md",
            "{{#include ../src/optim/adam.rs:box}}",
            "no box",
        ),
        (
            "includes",
            "chapters/a.md",
            "{{#include ../src/optim/adam.rs:1:2}}",
            "no 1:2",
        ),
        ("includes", "src/optim/adam.rs", "// ANCHOR: rule\n", "no rule"),
    ];
    for (name, path, text, expected) in faults {
        let dir = small_tree();
        put(dir.path(), path, text);
        let (_, rule) = RULES.iter().find(|(n, _)| n == name).unwrap();
        let found = rule(dir.path()).join("\n");
        assert!(found.contains(expected), "{name}, {path}: found only `{found}`");
    }
    for part in [
        "examples/ch05_adam.rs",
        "lab/experiments/ch05_adam.rs",
        "tests/book/ch05_adam.rs",
        "chapters/figures/ch05_adam.svg",
        "chapters/figures/ch05_adam.json",
        "chapters/notebooks/ch05_adam.ipynb",
    ] {
        let dir = small_tree();
        fs::remove_file(dir.path().join(part)).unwrap();
        let found = incomplete_chapters(dir.path());
        assert_eq!(found, [format!("ch05_adam: no {part}")]);
    }
}
