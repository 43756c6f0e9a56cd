//! What must hold of the book. mdBook itself accepts all of these faults and exits
//! with 0: a missing anchor is an empty listing, a missing file a raw directive.

use crate::html::{Piece, Tag, pieces};
use crate::{sh, sources};
use anyhow::Result;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A broken rule: which, where, and what was found.
#[derive(Debug)]
pub struct Fault {
    pub rule: &'static str,
    pub place: String,
    pub what: String,
}

/// Every rule, for the self-test, which plants one fault for each.
pub const RULES: &[&str] = &[
    "missing anchor",
    "unused anchor",
    "include",
    "unlisted page",
    "summary",
    "raw directive",
    "empty listing",
    "broken link",
    "broken fragment",
    "formula",
    "external asset",
    "alt text",
    "build",
];

/// Faults in `chapters/` and in the code that it takes from.
pub fn sources(root: &Path) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let chapters = root.join("chapters");
    let listed = summary(&chapters, &mut faults)?;
    let mut used = HashSet::new();
    for page in sh::files(&chapters, ".md") {
        let place = relative(&page, root);
        if page.ends_with("SUMMARY.md") {
            continue;
        }
        if !listed.contains(&page) {
            let what = "is not in SUMMARY.md, so that nobody finds it".to_string();
            faults.push(Fault { rule: "unlisted page", place: place.clone(), what });
        }
        for include in sources::includes(&sh::read(&page)?) {
            if let Some((rule, what)) = sources::fault(&page, &include) {
                let place = format!("{place}:{}", include.line);
                faults.push(Fault { rule, place, what });
            }
            if let Some(part) = &include.part {
                used.insert((sources::target(&page, &include), part.clone()));
            }
        }
    }
    for folder in ["src", "lab", "examples", "tests", "benches"] {
        for file in sh::files(&root.join(folder), ".rs") {
            for anchor in sources::anchors(&sh::read(&file)?) {
                if !used.contains(&(file.clone(), anchor.name.clone())) {
                    faults.push(Fault {
                        rule: "unused anchor",
                        place: format!("{}:{}", relative(&file, root), anchor.line),
                        what: format!("no page shows the region {}", anchor.name),
                    });
                }
            }
        }
    }
    Ok(faults)
}

/// The pages that SUMMARY.md lists. Drafts and missing files are faults: a page is
/// listed when it is whole.
fn summary(chapters: &Path, faults: &mut Vec<Fault>) -> Result<HashSet<PathBuf>> {
    let text = sh::read(&chapters.join("SUMMARY.md"))?;
    let mut listed = HashSet::new();
    for (number, line) in text.lines().enumerate() {
        let Some((_, tail)) = line.split_once("](") else { continue };
        let Some((target, _)) = tail.split_once(')') else { continue };
        if target.is_empty() {
            continue; // a chapter to come: it has a number and leads nowhere
        }
        let page = chapters.join(target.trim_start_matches("./"));
        if !page.is_file() {
            faults.push(Fault {
                rule: "summary",
                place: format!("chapters/SUMMARY.md:{}", number + 1),
                what: format!("lists `{target}`, which does not exist"),
            });
        }
        listed.insert(page);
    }
    Ok(listed)
}

/// Faults in the built pages.
pub fn built(site: &Path) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let files = sh::files(site, ".html");
    let mut texts = HashMap::new();
    for file in &files {
        texts.insert(file.clone(), sh::read(file)?);
    }
    let mut ids = HashMap::new();
    for (file, text) in &texts {
        let all = pieces(text).into_iter().filter_map(|p| match p {
            Piece::Open(tag) => tag.get("id").or(tag.get("name")),
            _ => None,
        });
        ids.insert(file.clone(), all.map(decoded).collect::<HashSet<_>>());
    }
    for file in &files {
        let page = Page { site, file, place: relative(file, site) };
        page.check(&texts[file], &ids, &mut faults);
    }
    for css in sh::files(site, ".css") {
        let text = sh::read(&css)?;
        let outside = ["@import", "url(http", "url(\"http", "url('http", "url(//"];
        for word in outside.into_iter().filter(|w| text.contains(w)) {
            faults.push(Fault {
                rule: "external asset",
                place: relative(&css, site),
                what: format!("has `{word}`"),
            });
        }
    }
    Ok(faults)
}

struct Page<'a> {
    site: &'a Path,
    file: &'a Path,
    place: String,
}

type Ids = HashMap<PathBuf, HashSet<String>>;

impl Page<'_> {
    fn check(&self, html: &str, ids: &Ids, faults: &mut Vec<Fault>) {
        // 404 is served under any address and print repeats every page: their links
        // cannot be judged from where they lie.
        let linked = !["404.html", "print.html"].contains(&self.place.as_str());
        let mut fault = |rule, what: String| {
            faults.push(Fault { rule, place: self.place.clone(), what });
        };
        let (mut code, mut quiet) = (0usize, 0usize);
        let mut listing: Option<String> = None;
        let mut pre = false;
        for piece in pieces(html) {
            match piece {
                Piece::Open(tag) => {
                    match tag.name {
                        "pre" => pre = true,
                        "code" => {
                            code += 1;
                            listing = pre.then(String::new);
                        }
                        // MathML carries the formula's source, rightly.
                        "annotation" | "title" => quiet += 1,
                        "img"
                            if tag
                                .get("alt")
                                .is_none_or(|a| a.trim().is_empty()) =>
                        {
                            let src = tag.get("src").unwrap_or_default();
                            fault("alt text", format!("the image {src} has none"));
                        }
                        _ => {}
                    }
                    if let Some(what) = external(&tag) {
                        fault("external asset", what);
                    }
                    if linked && let Some((rule, what)) = self.link(&tag, ids) {
                        fault(rule, what);
                    }
                }
                Piece::Close("pre") => pre = false,
                Piece::Close("code") => {
                    code = code.saturating_sub(1);
                    if listing.take().is_some_and(|text| text.trim().is_empty()) {
                        fault("empty listing", "a listing shows nothing".into());
                    }
                }
                Piece::Close("annotation" | "title") => {
                    quiet = quiet.saturating_sub(1)
                }
                Piece::Close(_) => {}
                Piece::Text(text) => {
                    if let Some(listing) = &mut listing {
                        *listing += text;
                    }
                    if let Some(raw) = directive(text, code > 0) {
                        fault(
                            "raw directive",
                            format!("`{raw}` is left in the text"),
                        );
                    }
                    if code == 0
                        && quiet == 0
                        && let Some(raw) = formula(text)
                    {
                        fault("formula", format!("`{raw}` is not typeset"));
                    }
                }
            }
        }
    }

    /// A link or an image that leads nowhere.
    fn link(&self, tag: &Tag, ids: &Ids) -> Option<(&'static str, String)> {
        let target = tag.get("href").or(tag.get("src"))?;
        if outside(target)
            || ["mailto:", "data:", "javascript:"]
                .iter()
                .any(|s| target.starts_with(s))
        {
            return None;
        }
        let target = decoded(target);
        let (path, fragment) = target.split_once('#').unwrap_or((&target, ""));
        let path = path.split('?').next().unwrap_or_default();
        let mut file = match path {
            "" => self.file.to_path_buf(),
            path => normal(&self.file.parent()?.join(path)),
        };
        if file.is_dir() {
            file = file.join("index.html");
        }
        if !file.is_file() || !file.starts_with(self.site) {
            return Some(("broken link", format!("`{target}` leads nowhere")));
        }
        let there = fragment.is_empty()
            || ids.get(&file).is_none_or(|ids| ids.contains(fragment));
        (!there).then(|| {
            let name = relative(&file, self.site);
            ("broken fragment", format!("{name} has no `#{fragment}`"))
        })
    }
}

fn outside(target: &str) -> bool {
    ["http:", "https:", "//", "ws:", "wss:"].iter().any(|s| target.starts_with(s))
}

/// What the browser would fetch from elsewhere. A link to follow is no fetch.
fn external(tag: &Tag) -> Option<String> {
    if tag.name == "a" {
        return None;
    }
    let fetched = ["src", "href", "srcset", "data", "poster"];
    let found = fetched.iter().filter_map(|a| tag.get(a)).find(|t| outside(t))?;
    Some(format!("<{}> fetches {found}", tag.name))
}

/// A directive that no preprocessor has replaced. In code, `{{` alone is Rust's own.
fn directive(text: &str, code: bool) -> Option<String> {
    let raw = ["{{#", "{{val", "{{ val", "{{card", "{{ card"];
    let at = match code {
        true => raw.iter().find_map(|r| text.find(r)),
        false => text.find("{{"),
    }?;
    Some(text[at..].chars().take(30).collect())
}

/// A formula that KaTeX has not typeset: `$$`, a pair of `$`, or a command like \frac.
fn formula(text: &str) -> Option<String> {
    let command = text.char_indices().find(|(i, c)| {
        let letters = text[i + c.len_utf8()..].chars().take(2);
        *c == '\\' && letters.filter(char::is_ascii_alphabetic).count() == 2
    });
    let pair = || {
        let at = text.find('$')?;
        let after = &text[at + 1..];
        let closed = after.contains('$') && !after.starts_with(char::is_whitespace);
        closed.then_some(at)
    };
    let at = command.map(|(i, _)| i).or_else(pair)?;
    Some(text[at..].chars().take(30).collect())
}

/// `a/../b` as `b`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// `%41` and `&amp;` decoded.
fn decoded(text: &str) -> String {
    let text =
        text.replace("&amp;", "&").replace("&#39;", "'").replace("&quot;", "\"");
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if bytes[i] == b'%' => {
                out.push(byte);
                i += 3;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_left_raw_are_seen_and_money_is_not() {
        for raw in ["see $$x$$", "where $x_t$ is", r"\frac{a}{b}", r"a \hat x"] {
            assert!(formula(raw).is_some(), "{raw}");
        }
        for fine in ["5 $ and 6 $", "$ 5", r"C:\ a", "plain"] {
            assert!(formula(fine).is_none(), "{fine}");
        }
    }

    #[test]
    fn braces_in_code_are_rust_and_directives_are_not() {
        assert!(directive("format!(\"{{}}\")", true).is_none());
        assert!(directive("{{#include x}}", true).is_some());
        assert!(directive("{{x}}", false).is_some());
    }
}
