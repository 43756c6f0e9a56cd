//! What was done and what was found, with all it takes to find it again.

use super::child::Call;
use super::judge::Cause;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Of findings that read alike, the files of so many are kept.
const KEPT: usize = 2;

/// Where and how something was found.
pub struct Finding<'a> {
    pub part: &'static str,
    pub case: u64,
    pub cause: Cause,
    /// In which setting, on which file, by which damage.
    pub when: String,
    pub what: String,
    pub call: Option<&'a Call>,
    /// The files of the case.
    pub work: &'a Path,
}

#[derive(Default)]
struct Inner {
    counts: BTreeMap<&'static str, u64>,
    /// By part, cause and text without its numbers: how many, and the first.
    groups: BTreeMap<(&'static str, Cause, String), (u64, String)>,
    kept: usize,
}

pub struct Report {
    found: PathBuf,
    seed: u64,
    inner: Mutex<Inner>,
}

impl Report {
    pub fn new(found: PathBuf, seed: u64) -> Self {
        Self { found, seed, inner: Mutex::default() }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn count(&self, what: &'static str, n: u64) {
        *self.inner().counts.entry(what).or_default() += n;
    }

    /// Takes a finding down, prints it, and keeps its files if it is the first few of
    /// its kind.
    pub fn found(&self, finding: Finding<'_>) {
        let Finding { part, case, cause, when, what, call, work } = finding;
        let mut inner = self.inner();
        let key = (part, cause, shape(&what));
        let again = format!(
            "cargo xtask soak --seed {} --only {part} --case {case}",
            self.seed
        );
        let group = inner.groups.entry(key).or_insert((0, again.clone()));
        group.0 += 1;
        if group.0 > KEPT as u64 {
            return;
        }
        inner.kept += 1;
        let folder = self.found.join(format!("{:03}-{part}-{case}", inner.kept));
        drop(inner);
        let text = format!("{}: {when}: {what}", cause.name());
        println!(
            "FOUND {text}\n      again: {again}\n      files: {}",
            folder.display()
        );
        let mut script = format!("# {}\n# {again}\n", text.replace('\n', "\n# "));
        if let Some(call) = call {
            let (from, to) = (work.to_string_lossy(), folder.to_string_lossy());
            script += &call.line().replace(&*from, &to);
        }
        super::files_copy(work, &folder);
        fs::create_dir_all(&folder).ok();
        fs::write(folder.join("again.sh"), script + "\n").ok();
    }

    pub fn findings(&self) -> u64 {
        self.inner().groups.values().map(|(n, _)| n).sum()
    }

    /// The causes of what was found, each once.
    #[cfg(test)]
    pub fn causes(&self) -> Vec<Cause> {
        let mut all: Vec<Cause> = self.inner().groups.keys().map(|k| k.1).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The counts and the findings by kind.
    pub fn text(&self) -> String {
        let inner = self.inner();
        let mut text = String::new();
        if !inner.groups.is_empty() {
            text += "\nfindings by kind:\n";
        }
        for ((part, cause, what), (n, again)) in &inner.groups {
            text += &format!(
                "{n:5} × {part}: {}: {what}\n        {again}\n",
                cause.name()
            );
        }
        text += "\ndone:\n";
        for (what, n) in &inner.counts {
            text += &format!("{n:8} {what}\n");
        }
        text += "found:\n";
        for (cause, name) in Cause::ALL {
            let of = |(key, (n, _)): (&(_, Cause, _), &(u64, _))| {
                if key.1 == cause { *n } else { 0 }
            };
            let n: u64 = inner.groups.iter().map(of).sum();
            text += &format!("{n:8} {name}\n");
        }
        text
    }
}

/// A text without what differs from case to case: numbers, paths, quotations.
fn shape(what: &str) -> String {
    let mut out = String::new();
    for word in what.split_whitespace() {
        let path = word.matches('/').count() > 1;
        let word = if path { "PATH".into() } else { without_numbers(word) };
        out += &word;
        out.push(' ');
    }
    out.chars().take(160).collect()
}

fn without_numbers(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        match c.is_ascii_digit() {
            true if out.ends_with('#') => {}
            true => out.push('#'),
            false => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_that_differ_in_numbers_and_paths_are_one_kind() {
        let a = shape("/a/b/c.json: line 17: no\nsuch 3.5");
        assert_eq!(a, shape("/x/y/z.json: line 4: no such 12.75"));
        assert_ne!(a, shape("/x/y/z.json: line 4: some such 12.75"));
    }
}
