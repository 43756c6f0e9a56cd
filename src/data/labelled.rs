//! Rows with a label each: a text and the class it belongs to, or a number.
use super::{
    Batch, Records, Tokenizer,
    dataset::held_out,
    rows::{RowResult, filled, integers, names, shown},
};
use crate::{Error, Result};
use serde_json::{Map, Value};
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
        let raw = read(path)?;
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

    /// Takes `share` of the rows away, at least one, drawn by `seed`, for validation:
    /// the rows to learn from, and those. Both keep the order of the file, and all of
    /// its classes, though one may have lost its last row.
    ///
    /// # Errors
    /// A share that leaves either without a row.
    pub fn split(self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let away = held_out(self.rows.len(), share, seed)?;
        let mut away = away.into_iter();
        let (held, rest): (Vec<_>, Vec<_>) =
            self.rows.into_iter().partition(|_| away.next().unwrap_or_default());
        let part = |rows: Vec<LabelledRow>| {
            let cut = self.truncated.iter().copied();
            let cut =
                cut.filter(|at| rows.binary_search_by_key(at, |r| r.line).is_ok());
            let (path, labels) = (self.path.clone(), self.labels.clone());
            Self { path, labels, truncated: cut.collect(), rows }
        };
        Ok((part(rest), part(held)))
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

/// The rows as they are written.
fn read(path: &Path) -> Result<Vec<Raw>> {
    let records = Records::open(path)?;
    let columns = records.columns().map(<[String]>::to_vec);
    for name in ["text", "label"] {
        if let Some(found) = &columns
            && !found.iter().any(|column| column == name)
        {
            let found = found.join(", ");
            let what = format!("no column `{name}`; the header has {found}");
            return Err(Error::row(path, 1, what));
        }
    }
    let row = |record: Result<(usize, Map<String, Value>)>| {
        let (line, fields) = record?;
        let wrong = |what| Error::row(path, line, what);
        let text = words(&fields).map_err(wrong)?;
        let label = label(&fields, columns.is_some()).map_err(wrong)?;
        Ok(Raw { text, label, line })
    };
    records.map(row).collect()
}

fn words(fields: &Map<String, Value>) -> RowResult<Text> {
    match (fields.get("text"), fields.get("input_ids")) {
        (Some(text), _) => filled(text, "text").map(Text::Plain),
        (None, Some(ids)) => integers(ids, "input_ids").map(Text::Ids),
        (None, None) => Err(format!("`text` is missing; found {}", names(fields))),
    }
}

/// A name or a number. In a table, where nothing else can say so, `nan` is none.
fn label(fields: &Map<String, Value>, table: bool) -> RowResult<String> {
    let label = match fields.get("label") {
        Some(Value::String(name)) => name.trim().to_string(),
        Some(Value::Number(n)) => n.to_string(),
        Some(other) => {
            let found = shown(other);
            return Err(format!("`label` is {found}; expected a name or a number"));
        }
        None => return Err("`label` is missing".into()),
    };
    match label.is_empty() || table && label.eq_ignore_ascii_case("nan") {
        true => Err(format!("`label` is {label:?}; expected a name or a number")),
        false => Ok(label),
    }
}
