//! Rows with a label each: a text and the class it belongs to, or a number.
use super::{Batch, Tokenizer, table};
use crate::{Error, Result};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};
use tch::Tensor;

/// What the labels of a file are.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// One of these names each; the place of a name is the number of its class.
    Classes(Vec<String>),
    /// A number each.
    Numbers,
}

/// One labelled row as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRow {
    /// Token ids.
    pub ids: Vec<i64>,
    /// The number of the class, or the number to predict.
    pub target: f64,
    /// The line of the file that it came from, counted from 1.
    pub line: usize,
}

/// The labelled rows of a file. `Display` says in one line what they are.
#[derive(Debug)]
pub struct Labelled {
    /// The file.
    pub path: PathBuf,
    /// Its rows in order.
    pub rows: Vec<LabelledRow>,
    /// What their labels are.
    pub labels: Labels,
    /// Lines of the rows that were cut on the right to the length limit.
    pub truncated: Vec<usize>,
}

impl Labelled {
    /// Reads a CSV file (by its name) with the columns `text` and `label`, or a JSON
    /// Lines file of `{"text", "label"}` or `{"input_ids", "label"}`; other columns and
    /// fields are left alone. A text gets the checkpoint's BOS and no EOS, as
    /// transformers' tokenizers give it to a classifier, and loses its end beyond
    /// `max_length` tokens.
    ///
    /// Where `wanted` has no class names yet, they are those of the file: sorted, by
    /// size if all are whole numbers.
    ///
    /// # Errors
    /// A row without text or label, by line and field; a label that is not among those
    /// `wanted`; a file whose rows all have the same label, or none.
    pub fn load(
        path: impl AsRef<Path>,
        tokenizer: Option<&Tokenizer>,
        (max_length, vocab_size): (usize, i64),
        wanted: &Labels,
    ) -> Result<Self> {
        let path = path.as_ref();
        if max_length == 0 {
            return Err(Error::setting("--max-length", "0; at least 1"));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        let raw = match path.extension().is_some_and(|e| e == "csv") {
            true => from_csv(path, bytes)?,
            false => from_json_lines(path, bytes)?,
        };
        if raw.is_empty() {
            return Err(Error::file(path, "no row; expected texts with labels"));
        }
        let labels = match wanted {
            Labels::Classes(names) if names.is_empty() => classes(path, &raw)?,
            known => known.clone(),
        };
        let mut data =
            Self { path: path.into(), rows: vec![], labels, truncated: vec![] };
        for Raw { text, label, line } in raw {
            let wrong = |what: String| Error::row(path, line, what);
            let target = data.labels.target(&label).map_err(wrong)?;
            let mut ids = match text {
                Text::Ids(ids) => ids,
                Text::Plain(text) => {
                    let what = "`text` needs a tokenizer, and the checkpoint has no \
                                tokenizer.json; add one, or write `input_ids`";
                    tokenizer
                        .ok_or_else(|| wrong(what.into()))?
                        .encode(&text, true)?
                }
            };
            if let Some(id) = ids.iter().find(|id| !(0..vocab_size).contains(*id)) {
                return Err(wrong(format!(
                    "its token {id} is outside the model's vocabulary of {vocab_size}"
                )));
            }
            if ids.is_empty() {
                return Err(wrong("`text` has no token; expected some".into()));
            }
            if ids.len() > max_length {
                ids.truncate(max_length);
                data.truncated.push(line);
            }
            data.rows.push(LabelledRow { ids, target, line });
        }
        Ok(data)
    }

    /// How many rows have each class.
    pub fn counts(&self) -> Vec<usize> {
        let Labels::Classes(names) = &self.labels else { return vec![] };
        let of = |i| self.rows.iter().filter(|r| r.target == i as f64).count();
        (0..names.len()).map(of).collect()
    }
}

impl Labels {
    /// Scores that a model gives for them.
    pub fn scores(&self) -> i64 {
        match self {
            Self::Classes(names) => names.len() as i64,
            Self::Numbers => 1,
        }
    }

    fn target(&self, label: &str) -> std::result::Result<f64, String> {
        match self {
            Self::Classes(names) => match names.iter().position(|n| n == label) {
                Some(i) => Ok(i as f64),
                None => Err(format!(
                    "`label` is {label:?}, which the training rows do not have; \
                     expected {}",
                    some(names)
                )),
            },
            Self::Numbers => match label.parse::<f64>() {
                Ok(x) if (x as f32).is_finite() => Ok(x),
                _ => Err(format!("`label` is {label:?}; expected a finite number")),
            },
        }
    }
}

/// The first few names.
fn some(names: &[String]) -> String {
    let more = if names.len() > 8 { ", ..." } else { "" };
    let names: Vec<_> = names.iter().take(8).map(String::as_str).collect();
    names.join(", ") + more
}

impl fmt::Display for Labelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens: usize = self.rows.iter().map(|r| r.ids.len()).sum();
        write!(f, "{} rows, {tokens} tokens, ", self.rows.len())?;
        match &self.labels {
            Labels::Classes(names) => {
                let counts = self.counts();
                let each = names.iter().zip(counts).map(|(n, k)| format!("{n} {k}"));
                let each: Vec<_> = each.collect();
                write!(f, "{} classes ({})", names.len(), some(&each))?;
            }
            Labels::Numbers => {
                let (mean, deviation) = spread(&self.rows);
                write!(f, "labels {mean:.4} ± {deviation:.4}")?;
                if deviation > 10. || mean.abs() > 10. {
                    write!(f, " (scaled to around 1 they are learned sooner)")?;
                }
            }
        }
        let Some(first) = self.truncated.first() else { return Ok(()) };
        let n = self.truncated.len();
        write!(f, "; {n} cut to the length limit (line {first} first)")
    }
}

fn spread(rows: &[LabelledRow]) -> (f64, f64) {
    let n = rows.len().max(1) as f64;
    let mean = rows.iter().map(|r| r.target).sum::<f64>() / n;
    let square = rows.iter().map(|r| (r.target - mean).powi(2)).sum::<f64>() / n;
    (mean, square.sqrt())
}

impl Batch {
    /// Puts labelled rows end to end. What is learned stands at each row's last token,
    /// which alone has seen all of the row: by position, whatever the token.
    pub fn labelled(rows: &[&LabelledRow], labels: &Labels) -> Self {
        let lengths: Vec<i64> = rows.iter().map(|r| r.ids.len() as i64).collect();
        let ends = lengths.iter().scan(0, |n, length| {
            *n += length;
            Some(*n - 1)
        });
        let targets = || rows.iter().map(|r| r.target);
        Self {
            ids: Tensor::from_slice(
                &rows.iter().flat_map(|r| r.ids.clone()).collect::<Vec<_>>(),
            ),
            learned: Tensor::from_slice(&ends.collect::<Vec<_>>()),
            targets: match labels {
                Labels::Classes(_) => Tensor::from_slice(
                    &targets().map(|t| t as i64).collect::<Vec<_>>(),
                ),
                Labels::Numbers => Tensor::from_slice(
                    &targets().map(|t| t as f32).collect::<Vec<_>>(),
                ),
            },
            lines: rows.iter().map(|r| r.line).collect(),
            lengths,
        }
    }
}

enum Text {
    Plain(String),
    Ids(Vec<i64>),
}

struct Raw {
    text: Text,
    label: String,
    line: usize,
}

/// The distinct labels of a file.
fn classes(path: &Path, rows: &[Raw]) -> Result<Labels> {
    let distinct: BTreeSet<&String> = rows.iter().map(|r| &r.label).collect();
    let mut names: Vec<String> = distinct.into_iter().cloned().collect();
    let numbers: Option<Vec<i64>> = names.iter().map(|n| n.parse().ok()).collect();
    match numbers {
        Some(_) => names.sort_by_key(|n| n.parse::<i64>().unwrap_or(0)),
        None if names.iter().all(|n| n.parse::<f64>().is_ok()) => {
            let what = "the labels are numbers, and not whole ones; use --task \
                        regression, or write the classes as names";
            return Err(Error::file(path, what));
        }
        None => {}
    }
    if let [only] = &names[..] {
        let what = format!(
            "every row has the label {only:?}; a classification needs at least 2"
        );
        return Err(Error::file(path, what));
    }
    Ok(Labels::Classes(names))
}

fn from_json_lines(path: &Path, bytes: &[u8]) -> Result<Vec<Raw>> {
    let mut rows = vec![];
    for (i, bytes) in bytes.split(|b| *b == b'\n').enumerate() {
        let wrong = |what: String| Error::row(path, i + 1, what);
        let text = std::str::from_utf8(bytes);
        let text =
            text.map_err(|_| wrong("not UTF-8; save the file as UTF-8".into()))?;
        if text.trim().is_empty() {
            continue;
        }
        let expected = "expected one {`text`, `label`} per line";
        let row: Value = serde_json::from_str(text).map_err(|e| {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            wrong(format!("not JSON (column {}: {what}); {expected}", e.column()))
        })?;
        let Some(row) = row.as_object() else {
            return Err(wrong(format!("not a JSON object; {expected}")));
        };
        let ids = |list: &[Value]| -> Option<Vec<i64>> {
            list.iter().map(Value::as_i64).collect()
        };
        let text = match (row.get("text"), row.get("input_ids")) {
            (Some(Value::String(s)), _) if s.is_empty() => {
                return Err(wrong("`text` is empty".into()));
            }
            (Some(Value::String(s)), _) => Text::Plain(s.clone()),
            (Some(other), _) => {
                return Err(wrong(format!(
                    "`text` is {}; expected a string",
                    kind(other)
                )));
            }
            (None, Some(Value::Array(list))) => {
                Text::Ids(ids(list).ok_or_else(|| {
                    wrong("`input_ids`: only whole numbers".into())
                })?)
            }
            (None, _) => {
                let found: Vec<_> = row.keys().map(|k| format!("`{k}`")).collect();
                let found = found.join(", ");
                return Err(wrong(format!("`text` is missing; found {found}")));
            }
        };
        let label = match row.get("label") {
            Some(Value::String(s)) if !s.trim().is_empty() => s.trim().to_string(),
            Some(Value::Number(n)) => n.to_string(),
            None => return Err(wrong("`label` is missing".into())),
            Some(other) => {
                let found = kind(other);
                return Err(wrong(format!(
                    "`label` is {found}; expected a name or a number"
                )));
            }
        };
        rows.push(Raw { text, label, line: i + 1 });
    }
    Ok(rows)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "an empty string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn from_csv(path: &Path, bytes: &[u8]) -> Result<Vec<Raw>> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true) // rows of unequal length are told by us
        .trim(csv::Trim::Headers)
        .from_reader(bytes);
    let malformed = |e: csv::Error| match e.position() {
        Some(at) => Error::row(path, table::line(bytes, at), e.to_string()),
        None => Error::file(path, e.to_string()),
    };
    let header = reader.headers().map_err(malformed)?.clone();
    let column = |name: &str| {
        let found: Vec<_> = header.iter().collect();
        let mut at = (0..found.len()).filter(|i| found[*i] == name);
        match (at.next(), at.next()) {
            (Some(i), None) => Ok(i),
            (None, _) => {
                let found = found.join(", ");
                let what = format!("no column `{name}`; the header has {found}");
                Err(Error::row(path, 1, what))
            }
            (Some(_), Some(_)) => {
                Err(Error::row(path, 1, format!("two columns are called `{name}`")))
            }
        }
    };
    let (text_at, label_at) = (column("text")?, column("label")?);
    let mut rows = vec![];
    for record in reader.records() {
        let record = record.map_err(malformed)?;
        let line = record.position().map_or(0, |at| table::line(bytes, at));
        if record.len() != header.len() {
            let (found, wanted) = (record.len(), header.len());
            let what = format!("{found} cells, but the header has {wanted}");
            return Err(Error::row(path, line, what));
        }
        let (text, label) = (&record[text_at], record[label_at].trim());
        for (name, cell) in [("text", text), ("label", label)] {
            if cell.is_empty()
                || (name == "label" && cell.eq_ignore_ascii_case("nan"))
            {
                let found = if cell.is_empty() { "empty" } else { cell };
                return Err(Error::row(path, line, format!("`{name}` is {found}")));
            }
        }
        let text = Text::Plain(text.into());
        rows.push(Raw { text, label: label.into(), line });
    }
    Ok(rows)
}
