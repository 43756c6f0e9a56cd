//! What a page takes from the code: `{{#include file:anchor}}` and the regions
//! between `ANCHOR: name` and `ANCHOR_END: name`.

use std::path::{Path, PathBuf};

/// An include directive of a page.
#[derive(Debug, PartialEq)]
pub struct Include {
    pub line: usize,
    /// The file, relative to the page's folder.
    pub path: String,
    /// What follows the colon: an anchor, or a range of lines.
    pub part: Option<String>,
}

/// Every include of a page, in order. `\{{#include` is not one.
pub fn includes(page: &str) -> Vec<Include> {
    let mut found = Vec::new();
    for (number, line) in page.lines().enumerate() {
        let mut rest = line;
        while let Some(at) = rest.find("{{#") {
            let escaped = rest[..at].ends_with('\\');
            rest = &rest[at + 3..];
            let Some(end) = rest.find("}}") else { break };
            let mut words = rest[..end].split_whitespace();
            let kind = words.next().unwrap_or_default();
            if let (true, false, Some(target)) = (
                kind == "include" || kind == "rustdoc_include",
                escaped,
                words.next(),
            ) {
                let (path, part) = match target.split_once(':') {
                    Some((path, part)) => (path, Some(part.to_string())),
                    None => (target, None),
                };
                found.push(Include {
                    line: number + 1,
                    path: path.to_string(),
                    part,
                });
            }
        }
    }
    found
}

/// A region of a source file.
#[derive(Debug, PartialEq)]
pub struct Anchor {
    pub name: String,
    pub line: usize,
    /// Its text, without the marks of anchors inside it; `None` if it never ends.
    pub text: Option<String>,
}

/// The name in a comment `// ANCHOR: name`; in a string literal it is no mark.
fn mark<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let (head, tail) = line.split_once(word)?;
    let comment = ["//", "#", "/*", "<!--", "--"].contains(&head.trim());
    comment.then(|| tail.split_whitespace().next())?
}

/// Every anchor of a file. As mdBook has it, a name may open several regions.
pub fn anchors(text: &str) -> Vec<Anchor> {
    let mut found: Vec<Anchor> = Vec::new();
    let mut open: Vec<(String, usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(name) = mark(line, "ANCHOR_END:") {
            if let Some(at) = open.iter().position(|(n, ..)| n == name) {
                let (name, line, text) = open.remove(at);
                found.push(Anchor { name, line, text: Some(text) });
            }
        } else if let Some(name) = mark(line, "ANCHOR:") {
            open.push((name.to_string(), number + 1, String::new()));
        } else {
            for (_, _, text) in &mut open {
                *text += line;
                *text += "\n";
            }
        }
    }
    found.extend(open.into_iter().map(|(name, line, _)| Anchor {
        name,
        line,
        text: None,
    }));
    found.sort_by_key(|a| a.line);
    found
}

/// The file that an include names.
pub fn target(page: &Path, include: &Include) -> PathBuf {
    let mut out = PathBuf::new();
    for part in
        page.parent().unwrap_or(Path::new("")).join(&include.path).components()
    {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// Why an include shows nothing or the wrong thing; `None` if it is in order.
pub fn fault(page: &Path, include: &Include) -> Option<(&'static str, String)> {
    let name = &include.path;
    let Ok(text) = std::fs::read_to_string(target(page, include)) else {
        return Some(("include", format!("there is no file {name}")));
    };
    let Some(part) = &include.part else {
        return text
            .trim()
            .is_empty()
            .then(|| ("include", format!("{name} is empty")));
    };
    if part.starts_with(|c: char| c.is_ascii_digit() || c == ':') {
        let what =
            format!("{name}:{part} counts lines, which shift; name an anchor");
        return Some(("include", what));
    }
    let all = anchors(&text);
    let Some(anchor) = all.iter().find(|a| a.name == *part) else {
        return Some(("missing anchor", format!("{name} has no ANCHOR: {part}")));
    };
    match &anchor.text {
        None => Some(("missing anchor", format!("{name}: no ANCHOR_END: {part}"))),
        Some(text) if text.trim().is_empty() => {
            Some(("include", format!("{name}: the region {part} is empty")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_found_with_their_line_and_part() {
        let page = "x\n{{#include ../src/a.rs:rule}} {{#rustdoc_include b.rs}}\n\
                    \\{{#include no}} {{val a.b}}";
        let found = includes(page);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].line, found[0].part.as_deref()), (2, Some("rule")));
        assert_eq!((found[1].path.as_str(), &found[1].part), ("b.rs", &None));
        let file = target(Path::new("/r/chapters/p.md"), &found[0]);
        assert_eq!(file, Path::new("/r/src/a.rs"));
    }

    #[test]
    fn anchors_nest_and_may_be_unclosed() {
        let text = "// ANCHOR: a\n1\n// ANCHOR: b\n2\n// ANCHOR_END: a\n3";
        let all = anchors(text);
        assert_eq!(all[0].text.as_deref(), Some("1\n2\n"));
        assert_eq!((all[1].name.as_str(), &all[1].text), ("b", &None));
        assert!(anchors("let text = \"// ANCHOR: a\\n\";").is_empty());
    }
}
