//! The book's preprocessor: `{{val slug.key}}` and `{{card slug}}` become what the
//! program `slug` wrote to `chapters/figures/slug.json`. A key that is not there is an
//! error, so that no page shows a number that no program has produced.

use crate::sh;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// mdBook's protocol: `supports RENDERER` answers by exit status; otherwise
/// `[context, book]` comes on stdin and the book goes to stdout.
pub fn main(args: &[String]) -> Result<()> {
    if let [supports, renderer] = args
        && supports == "supports"
    {
        std::process::exit(i32::from(renderer != "html"));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let Ok([context, mut book]) = serde_json::from_str::<[Value; 2]>(&text) else {
        bail!("mdBook calls this command; its input is not on stdin");
    };
    let root = PathBuf::from(context["root"].as_str().context("no root")?);
    let src = context["config"]["book"]["src"].as_str().unwrap_or("src");
    let mut numbers = Numbers::new(&root.join(src).join("figures"));
    let items = book["items"].as_array_mut().context("the book has no items")?;
    chapters(items, &mut numbers)?;
    serde_json::to_writer(std::io::stdout(), &book)?;
    Ok(())
}

fn chapters(items: &mut [Value], numbers: &mut Numbers) -> Result<()> {
    for item in items {
        let Some(chapter) = item.get_mut("Chapter") else { continue };
        let page = chapter["path"].as_str().unwrap_or("a draft").to_string();
        let content = chapter["content"].as_str().unwrap_or_default();
        chapter["content"] = expand(content, &page, numbers)?.into();
        if let Some(inner) = chapter["sub_items"].as_array_mut() {
            chapters(inner, numbers)?;
        }
    }
    Ok(())
}

/// The JSON files of `figures/`, read when first asked for.
pub struct Numbers {
    folder: PathBuf,
    read: HashMap<String, Value>,
}

impl Numbers {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), read: HashMap::new() }
    }

    fn of(&mut self, slug: &str) -> Result<&Value> {
        if !self.read.contains_key(slug) {
            let path = self.folder.join(format!("{slug}.json"));
            let text = std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "there is no figures/{slug}.json; `cargo xtask figures {slug}` \
                     writes it"
                )
            })?;
            let value = serde_json::from_str(&text)
                .with_context(|| format!("figures/{slug}.json is not JSON"))?;
            self.read.insert(slug.to_string(), value);
        }
        Ok(&self.read[slug])
    }

    fn value(&mut self, path: &str) -> Result<&Value> {
        let (slug, keys) = path
            .split_once('.')
            .with_context(|| format!("`{path}` is not of the form slug.key"))?;
        let mut at = self.of(slug)?;
        for key in keys.split('.') {
            let next = match at {
                Value::Array(all) => {
                    key.parse::<usize>().ok().and_then(|i| all.get(i))
                }
                _ => at.get(key),
            };
            at = next.ok_or_else(|| {
                let keys = at.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>());
                let there = keys.unwrap_or_default().join(", ");
                anyhow!(
                    "unknown key `{key}` of `{path}`; figures/{slug}.json has: {there}"
                )
            })?;
        }
        Ok(at)
    }
}

/// Replaces every `{{val ..}}` and `{{card ..}}` of a page.
pub fn expand(text: &str, page: &str, numbers: &mut Numbers) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let (before, tail) = rest.split_at(start);
        out += before;
        let directive = tail.find("}}").map(|end| &tail[2..end]).unwrap_or_default();
        let (name, argument) = directive.trim().split_once(' ').unwrap_or_default();
        let replaced = match name {
            "val" => value(argument.trim(), numbers),
            "card" => card(argument.trim(), text, numbers),
            _ => {
                out += "{{";
                rest = &tail[2..];
                continue;
            }
        };
        let context = || format!("{page}: {{{{{directive}}}}}");
        out += &replaced.with_context(context)?;
        rest = &tail[directive.len() + 4..];
    }
    Ok(out + rest)
}

/// `slug.key` or `slug.key:format`.
fn value(argument: &str, numbers: &mut Numbers) -> Result<String> {
    let (path, format) = argument.split_once(':').unwrap_or((argument, ""));
    let mut value = numbers.value(path)?;
    if let Value::Object(object) = value {
        if let (Some(Value::String(text)), "") = (object.get("text"), format) {
            return Ok(text.clone());
        }
        value = object.get("value").with_context(|| {
            let keys: Vec<&String> = object.keys().collect();
            format!("`{path}` is an object; name one of its keys: {keys:?}")
        })?;
    }
    match (value, format) {
        (Value::String(text), "") => Ok(text.clone()),
        (Value::Number(number), "") => Ok(number.to_string()),
        (Value::Bool(answer), "") => Ok(answer.to_string()),
        (Value::Number(number), _) => {
            let x = number.as_f64().context("not a finite number")?;
            formatted(x, format)
        }
        _ => bail!("`{path}` is {value}, not a number or a text"),
    }
}

/// `.2` digits, `.2e` scientific, `.1%` of the whole, `,` whole with thousands apart.
fn formatted(x: f64, format: &str) -> Result<String> {
    if format == "," {
        return Ok(thousands(x));
    }
    let digits = format.strip_prefix('.').unwrap_or_default();
    let kind = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits: Result<usize, _> = digits[..digits.len() - kind.len()].parse();
    match (digits, kind) {
        (Ok(n), "") => Ok(format!("{x:.n$}")),
        (Ok(n), "e") => Ok(format!("{x:.n$e}")),
        (Ok(n), "%") => Ok(format!("{:.n$} %", x * 100.0)),
        _ => bail!("unknown format `:{format}`; there are :.2  :.2e  :.1%  :,"),
    }
}

fn thousands(x: f64) -> String {
    let digits = format!("{:.0}", x.abs());
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if x < 0.0 { format!("-{out}") } else { out }
}

/// The cost card at the head of a page: what reading and running it takes.
fn card(slug: &str, page: &str, numbers: &mut Numbers) -> Result<String> {
    let json = numbers.of(slug)?;
    let card = json.get("card").and_then(Value::as_object).with_context(|| {
        format!("figures/{slug}.json has no `card`; `cargo xtask figures` writes it")
    })?;
    let need = |key: &str| {
        card.get(key)
            .with_context(|| format!("figures/{slug}.json: card has no `{key}`"))
    };
    let number = |key: &str| {
        need(key)?.as_f64().with_context(|| format!("card.{key} is not a number"))
    };
    let seconds = number("seconds")?;
    let run = if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    };
    let mut rows = vec![
        ("Reading", format!("{} min", words(page).div_ceil(200).max(1))),
        ("Its experiment runs", run),
        ("Peak memory", format!("{:.0} MB", number("peak_rss_mb")?)),
        ("Measured on", text(need("hardware")?)),
        ("With", text(need("versions")?)),
    ];
    if let Some(note) = card.get("note") {
        rows.push(("Note", text(note)));
    }
    let mut html = String::from("<div class=\"cost-card\">\n<dl>\n");
    for (name, value) in rows {
        html += &format!("<div><dt>{name}</dt><dd>{}</dd></div>\n", escaped(&value));
    }
    html += &format!("</dl>\n<p>The program: <code>cargo xtask run {slug}</code>");
    let notebook =
        numbers.folder.with_file_name("notebooks").join(format!("{slug}.ipynb"));
    if notebook.is_file() {
        html += &format!(
            ". In Jupyter: <a href=\"notebooks/{slug}.ipynb\" download>{slug}.ipynb</a>"
        );
    }
    Ok(html + ".</p>\n</div>\n")
}

/// A value as a line of text: an object is `name version, name version`.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(all) => {
            let pairs = all.iter().map(|(k, v)| format!("{k} {}", text(v)));
            pairs.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Words of prose: listings, directives and formulas on their own lines do not count.
fn words(page: &str) -> usize {
    let mut count = 0;
    let mut fence = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fence = !fence;
        } else if !fence && !line.trim_start().starts_with(['<', '$', '{']) {
            count += line.split_whitespace().filter(|w| w.len() > 1).count();
        }
    }
    count
}

/// For the notebooks: the same numbers, in text that is not a page of mdBook.
pub fn expand_page(text: &str, page: &str) -> Result<String> {
    let mut numbers = Numbers::new(&sh::root().join("chapters/figures"));
    expand(text, page, &mut numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        let json = r#"{"adam": {"loss": 0.012345, "seeds": [1, 2]}, "n": 1234567,
            "eps": {"value": 1e-8, "text": "10⁻⁸"}, "name": "a < b",
            "card": {"seconds": 12.34, "peak_rss_mb": 210.4, "hardware": "2 cores",
                     "versions": {"tch": "0.24.0"}}}"#;
        let read =
            HashMap::from([("ch05".into(), serde_json::from_str(json).unwrap())]);
        Numbers { folder: "none".into(), read }
    }

    fn ok(text: &str) -> String {
        expand(text, "page.md", &mut numbers()).unwrap()
    }

    #[test]
    fn values_are_looked_up_and_formatted() {
        assert_eq!(ok("a {{val ch05.adam.loss}}."), "a 0.012345.");
        assert_eq!(ok("{{val ch05.adam.loss:.3}}"), "0.012");
        assert_eq!(ok("{{ val ch05.adam.loss:.1e }}"), "1.2e-2");
        assert_eq!(ok("{{val ch05.adam.loss:.0%}}"), "1 %");
        assert_eq!(ok("{{val ch05.adam.seeds.1}}"), "2");
        assert_eq!(ok("{{val ch05.n:,}}"), "1,234,567");
        assert_eq!(ok("{{val ch05.eps}} {{val ch05.eps:.0e}}"), "10⁻⁸ 1e-8");
        assert_eq!(ok("{{#include x}} {{"), "{{#include x}} {{");
    }

    #[test]
    fn an_unknown_key_names_page_key_and_what_there_is() {
        for (text, word) in [
            ("{{val ch05.adam.lost}}", "loss"),
            ("{{val ch06.x}}", "figures/ch06.json"),
            ("{{val ch05.adam}}", "object"),
            ("{{val ch05.n:bad}}", "unknown format"),
            ("{{card ch06}}", "cargo xtask figures"),
        ] {
            let error = expand(text, "page.md", &mut numbers()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("page.md") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_card_counts_words_of_prose() {
        let page = format!("{{{{card ch05}}}}\n\n{}", "word ".repeat(450));
        let html = ok(&page);
        assert!(html.contains("<dd>3 min</dd>") && html.contains("<dd>12 s</dd>"));
        assert!(html.contains("tch 0.24.0") && html.contains("210 MB"), "{html}");
    }
}
