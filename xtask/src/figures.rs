//! `cargo xtask figures`: runs the chapters' experiments, which write the figures and
//! the numbers that the pages show; `--check` runs them again and compares.

use crate::{bundle, notebooks, setup, sh};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Relative difference that is allowed where a file states no other.
const TOLERANCE: f64 = 1e-3;

/// `cargo xtask figures [--check] [SLUG]`
pub fn main(args: &[String]) -> Result<()> {
    let check = args.iter().any(|a| a == "--check");
    let named: Vec<String> =
        args.iter().filter(|a| *a != "--check").cloned().collect();
    if let Some(flag) = named.iter().find(|a| a.starts_with('-')) {
        bail!("figures takes --check and names of chapters, found `{flag}`");
    }
    setup::ensure()?;
    let slugs = if named.is_empty() { notebooks::chapters()? } else { named };
    let committed = sh::root().join("chapters/figures");
    let mut faults = Vec::new();
    for slug in &slugs {
        if check {
            let scratch = sh::root().join("target/figures-check");
            produce(slug, &scratch)?;
            faults.extend(compare(slug, &committed, &scratch)?);
        } else {
            produce(slug, &committed)?;
        }
    }
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} values differ from what is committed", faults.len());
    }
    let what = if check { "are as committed" } else { "are written" };
    println!("figures and numbers of {} chapters {what}", slugs.len());
    Ok(())
}

/// Runs `lab/experiments/<slug>.rs --out FOLDER` and adds the measured cost to its numbers.
fn produce(slug: &str, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    sh::check(&mut sh::cargo(bundle::experiment(slug)))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = sh::root().join(target.unwrap_or("target".into()));
    let program = target.join("debug").join(slug);
    println!("running {slug}");
    let began = Instant::now();
    let mut command = sh::command(&program);
    let mut child = command
        .arg("--out")
        .arg(folder)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut peak_mb = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak_mb = peak_rss_mb(child.id()).unwrap_or(peak_mb);
        std::thread::sleep(Duration::from_millis(10));
    };
    let seconds = began.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{slug} ended with {status}");
    }
    let path = folder.join(format!("{slug}.json"));
    let card = json!({
        "seconds": (seconds * 10.0).round() / 10.0,
        "peak_rss_mb": f64::round(peak_mb),
        "hardware": hardware(),
        "versions": versions()?,
    });
    let text = with_card(&sh::read(&path)?, &card)
        .with_context(|| format!("{slug} wrote {}", sh::shown(&path)))?;
    sh::write(&path, &text)
}

/// Adds `card` as the last key, leaving the program's own text as it is.
fn with_card(text: &str, card: &Value) -> Result<String> {
    let Value::Object(all) = serde_json::from_str(text).context("not JSON")? else {
        bail!("not a JSON object");
    };
    if all.contains_key("card") {
        return Ok(text.to_string());
    }
    let open = text.trim_end().strip_suffix('}').context("not a JSON object")?;
    let comma = if all.is_empty() { "" } else { "," };
    let card = serde_json::to_string_pretty(card)?.replace('\n', "\n  ");
    Ok(format!("{}{comma}\n  \"card\": {card}\n}}\n", open.trim_end()))
}

/// The kernel's high-water mark of a process that still runs.
fn peak_rss_mb(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

fn hardware() -> String {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name"));
    let model = model.and_then(|l| Some(l.split_once(':')?.1.trim()));
    format!("{cores} cores of {}", model.unwrap_or("an unnamed processor"))
}

fn versions() -> Result<Map<String, Value>> {
    let rustc =
        sh::output(sh::command("rustc").arg("--version")).unwrap_or_default();
    let rustc = rustc.split_whitespace().nth(1).unwrap_or("unknown").to_string();
    let manifest: toml::Table = sh::read(&sh::root().join("Cargo.toml"))?.parse()?;
    let tch = manifest["dependencies"]["tch"].as_str().unwrap_or("unknown");
    let mut all = Map::new();
    all.insert("Rust".into(), rustc.into());
    all.insert("tch".into(), tch.trim_start_matches('=').into());
    all.insert("libtorch".into(), "2.11.0".into());
    Ok(all)
}

/// What differs between the committed numbers and those just made. The committed file
/// may state `"tolerance": {"key": relative difference or null}`; null: not compared.
fn compare(slug: &str, committed: &Path, made: &Path) -> Result<Vec<String>> {
    let json = |folder: &Path| -> Result<Value> {
        let text = sh::read(&folder.join(format!("{slug}.json")))?;
        serde_json::from_str(&text).with_context(|| format!("{slug}.json"))
    };
    let old = json(committed)?;
    let mut faults = Vec::new();
    let none = Map::new();
    let stated = old.get("tolerance").and_then(Value::as_object).unwrap_or(&none);
    walk(slug, "", &old, &json(made)?, stated, &mut faults);
    for figure in sh::files(made, ".svg") {
        let name = figure.file_name().unwrap_or_default();
        let ours = name.to_string_lossy().starts_with(slug);
        if ours && !committed.join(name).is_file() {
            faults.push(format!("{slug}: {} is not committed", name.display()));
        }
    }
    Ok(faults)
}

fn walk(
    slug: &str,
    path: &str,
    old: &Value,
    new: &Value,
    stated: &Map<String, Value>,
    faults: &mut Vec<String>,
) {
    let Some(tolerance) = tolerance(path, stated) else { return };
    let below = |key: &str| match path {
        "" => key.to_string(),
        _ => format!("{path}.{key}"),
    };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let apart = |key: &&String| {
                path.is_empty() && ["card", "tolerance"].contains(&key.as_str())
            };
            for (key, value) in old.iter().filter(|(k, _)| !apart(k)) {
                match new.get(key) {
                    Some(other) => {
                        walk(slug, &below(key), value, other, stated, faults);
                    }
                    None => faults.push(format!("{slug}.{}: is gone", below(key))),
                }
            }
            for key in new.keys().filter(|k| !apart(k) && !old.contains_key(*k)) {
                faults.push(format!("{slug}.{}: is new", below(key)));
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (a, b)) in old.iter().zip(new).enumerate() {
                walk(slug, &below(&i.to_string()), a, b, stated, faults);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(0.0), b.as_f64().unwrap_or(0.0));
            if (a - b).abs() > tolerance * a.abs().max(b.abs()) {
                faults.push(format!(
                    "{slug}.{path}: {b}, committed {a}, tolerance {tolerance}"
                ));
            }
        }
        (a, b) if a == b => {}
        (a, b) => faults.push(format!("{slug}.{path}: {b}, committed {a}")),
    }
}

/// The longest stated key that the path lies under decides; `None`: not compared.
fn tolerance(path: &str, stated: &Map<String, Value>) -> Option<f64> {
    let under = |key: &str| {
        path == key
            || path.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))
    };
    let longest =
        stated.iter().filter(|(k, _)| under(k)).max_by_key(|(k, _)| k.len());
    match longest {
        Some((_, value)) => value.as_f64(),
        None => {
            Some(stated.get("default").and_then(Value::as_f64).unwrap_or(TOLERANCE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(old: Value, new: Value) -> Vec<String> {
        let mut faults = Vec::new();
        let none = Map::new();
        let stated =
            old.get("tolerance").and_then(Value::as_object).unwrap_or(&none);
        walk("s", "", &old, &new, stated, &mut faults);
        faults
    }

    #[test]
    fn values_within_their_tolerance_are_the_same() {
        let old = json!({"a": {"x": 1.0, "y": 1.0, "t": 3.0}, "card": {"seconds": 1},
            "tolerance": {"a": 0.1, "a.y": 0.001, "a.t": null}});
        let new = json!({"a": {"x": 1.05, "y": 1.0005, "t": 9.0}, "card": {}});
        assert!(differences(old.clone(), new).is_empty());
        let new = json!({"a": {"x": 1.2, "y": 1.002, "t": 9.0}, "tolerance": {}});
        assert_eq!(differences(old, new).len(), 2);
    }

    #[test]
    fn gone_new_and_changed_keys_are_told() {
        let old = json!({"a": 1, "b": "x", "c": [1, 2], "d": 0.0});
        let new = json!({"b": "y", "c": [1], "d": 0.0, "e": 1});
        let all = differences(old, new).join("\n");
        assert_eq!(all.lines().count(), 4, "{all}");
    }

    #[test]
    fn the_card_is_added_and_the_rest_kept_as_written() {
        let text =
            with_card("{\n  \"a\": 1.50\n}\n", &json!({"seconds": 2})).unwrap();
        assert!(text.starts_with("{\n  \"a\": 1.50,\n  \"card\": {"), "{text}");
        assert!(serde_json::from_str::<Value>(&text).is_ok());
        assert_eq!(with_card(&text, &json!({})).unwrap(), text);
    }
}
