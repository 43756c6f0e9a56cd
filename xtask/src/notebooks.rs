//! `cargo xtask notebooks`: a notebook per chapter, made from its program (the code)
//! and its page (the words), so that neither is written twice.

use crate::{cells, kernel, preprocess, sh};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::PathBuf;

/// `cargo xtask notebooks [--check|--setup|--open|--run [SLUG]]`
pub fn main(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => generate(),
        ["--check"] => check(),
        ["--setup"] => kernel::setup(),
        ["--open"] => kernel::open(),
        ["--run"] => kernel::run(&existing("")?),
        ["--run", slug] => kernel::run(&existing(slug)?),
        _ => bail!(
            "notebooks takes --check, --setup, --open or --run [SLUG], found `{}`",
            args.join(" ")
        ),
    }
}

fn folder() -> PathBuf {
    sh::root().join("chapters/notebooks")
}

fn generate() -> Result<()> {
    for slug in chapters()? {
        let path = folder().join(format!("{slug}.ipynb"));
        sh::write(&path, &notebook(&slug)?)?;
        println!("wrote {}", sh::shown(&path));
    }
    Ok(())
}

fn check() -> Result<()> {
    let mut stale = Vec::new();
    let chapters = chapters()?;
    for slug in &chapters {
        let path = folder().join(format!("{slug}.ipynb"));
        if std::fs::read_to_string(&path).unwrap_or_default() != notebook(slug)? {
            stale.push(sh::shown(&path));
        }
    }
    for path in sh::files(&folder(), ".ipynb") {
        let slug = path.file_stem().unwrap_or_default().to_string_lossy();
        if !chapters.iter().any(|c| *c == slug) {
            stale.push(format!("{} (of no chapter)", sh::shown(&path)));
        }
    }
    if !stale.is_empty() {
        bail!("run `cargo xtask notebooks` and commit; stale: {}", stale.join(", "));
    }
    println!("{} notebooks are up to date", chapters.len());
    Ok(())
}

/// The chapters that have both a page and an experiment. Having none is an error: a check
/// of nothing would pass.
pub fn chapters() -> Result<Vec<String>> {
    let pages = sh::files(&sh::root().join("chapters"), ".md");
    let slugs =
        pages.iter().filter_map(|p| Some(p.file_stem()?.to_str()?.to_string()));
    let experiments = sh::root().join("lab/experiments");
    let program = |s: &String| experiments.join(format!("{s}.rs")).is_file();
    let all: Vec<_> =
        slugs.filter(|s| s.starts_with("ch")).filter(program).collect();
    if all.is_empty() {
        bail!(
            "no chapter has both chapters/<slug>.md and lab/experiments/<slug>.rs"
        );
    }
    Ok(all)
}

fn existing(slug: &str) -> Result<Vec<PathBuf>> {
    let all = sh::files(&folder(), &format!("{slug}.ipynb"));
    if all.is_empty() {
        bail!("there is no notebook {slug} in {}", sh::shown(&folder()));
    }
    Ok(all)
}

/// The reader's program where it says how to cut it, else the experiment.
fn program(slug: &str) -> Result<String> {
    let reader = format!("examples/{slug}.rs");
    let path = sh::root().join(&reader);
    let cut = path.is_file() && sh::read(&path)?.contains("// CELL: ");
    Ok(if cut { reader } else { format!("lab/experiments/{slug}.rs") })
}

/// The notebook's text: the same program and page give the same bytes.
fn notebook(slug: &str) -> Result<String> {
    let page_name = format!("chapters/{slug}.md");
    let page = sh::read(&sh::root().join(&page_name))?;
    let program = program(slug)?;
    let code = cells::cut(&sh::read(&sh::root().join(&program))?)
        .context(program.clone())?;
    let title = page.lines().find_map(|l| l.strip_prefix("# ")).unwrap_or(slug);
    let lead = prose(&page, title, &page_name)?.unwrap_or_default();
    let note = format!(
        "*Made from `{program}` and `{page_name}` by `cargo xtask notebooks`. Its \
         kernel comes with `cargo xtask notebooks --setup`.*"
    );
    let mut cells = vec![
        markdown(&format!("# {title}\n\n{lead}\n\n{note}")),
        code_cell(&dependencies()?),
    ];
    for cell in code {
        if let Some(title) = &cell.title {
            let text = prose(&page, title, &page_name)?.unwrap_or_default();
            cells.push(markdown(format!("## {title}\n\n{text}").trim()));
        }
        cells.push(code_cell(&cell.code));
    }
    for (number, cell) in cells.iter_mut().enumerate() {
        cell["id"] = format!("{slug}-{number:02}").into();
    }
    let all = json!({
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": kernel::DISPLAY_NAME,
                "language": "rust",
                "name": kernel::NAME,
            },
            "language_info": { "file_extension": ".rs", "name": "rust" },
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

/// The same lines in every notebook: evcxr then builds once for all of them.
pub fn dependencies() -> Result<String> {
    let manifest: toml::Table = sh::read(&sh::root().join("Cargo.toml"))?.parse()?;
    let mut lines = String::from(
        ":dep downhill = { path = \"../..\" }\n\
         :dep downhill-lab = { path = \"../../lab\" }",
    );
    for name in ["anyhow", "tch"] {
        let version = manifest["dependencies"][name].as_str();
        let version =
            version.with_context(|| format!("Cargo.toml pins no {name}"))?;
        lines += &format!("\n:dep {name} = \"{version}\"");
    }
    Ok(lines)
}

fn source(text: &str) -> Value {
    text.split_inclusive('\n').collect::<Vec<_>>().into()
}

fn markdown(text: &str) -> Value {
    json!({ "cell_type": "markdown", "id": "", "metadata": {}, "source": source(text) })
}

fn code_cell(text: &str) -> Value {
    json!({
        "cell_type": "code", "execution_count": null, "id": "", "metadata": {},
        "outputs": [], "source": source(text),
    })
}

/// What the page says under a heading, up to the next one: its paragraphs, without
/// listings, pictures and directives, with the numbers filled in.
fn prose(page: &str, title: &str, name: &str) -> Result<Option<String>> {
    let heading = |line: &str| {
        let text = line.trim_start_matches('#');
        let is = line.starts_with('#') && text.starts_with(' ');
        is.then(|| text.split(" {#").next().unwrap_or_default().trim().to_string())
    };
    let mut fence = false;
    let mut inside = false;
    let mut kept: Vec<&str> = Vec::new();
    for line in page.lines() {
        let start = line.trim_start();
        if start.starts_with("```") {
            fence = !fence;
        } else if !fence && let Some(found) = heading(line) {
            if inside {
                break;
            }
            inside = found.eq_ignore_ascii_case(title);
        } else if inside && !fence {
            let drop = ["{{#", "{{card", "{{ card", "<", "!["];
            let blank = line.is_empty() && kept.last().is_none_or(|l| l.is_empty());
            if !blank && !drop.iter().any(|d| start.starts_with(d)) {
                kept.push(line);
            }
        }
    }
    if !inside {
        return Ok(None);
    }
    let text = preprocess::expand_page(kept.join("\n").trim(), name)?;
    Ok(Some(relinked(&text)))
}

/// Links of a page as seen from `notebooks/`.
fn relinked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        out += &rest[..at + 2];
        rest = &rest[at + 2..];
        let far = rest.contains("://") && rest.find("://") < rest.find(')');
        if !far && !rest.starts_with('#') && !rest.starts_with('/') {
            out += "../";
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_the_paragraphs_of_one_section() {
        let page = "# T\nlead\n## The valley {#v}\nLong and $x$ [steep](ch06.md).\n\n\
                    ```rust\n# not a heading\n```\n![a](figures/a.svg)\n\nEnd.\n## B\nno";
        let text = prose(page, "the valley", "p").unwrap().unwrap();
        assert_eq!(text, "Long and $x$ [steep](../ch06.md).\n\nEnd.");
        assert_eq!(prose(page, "T", "p").unwrap().unwrap(), "lead");
        assert_eq!(prose(page, "none", "p").unwrap(), None);
    }

    #[test]
    fn only_relative_links_move() {
        let text = "[a](b.md) [c](https://d.org/e) [f](#g)";
        assert_eq!(relinked(text), "[a](../b.md) [c](https://d.org/e) [f](#g)");
    }
}
