//! Rows with a label each: a text and the class it belongs to, or a number.
use super::{
    BadRow, Batch, Labels, Records, Tokenizer,
    dataset::held_out,
    labels::OnBad,
    rows::{RowResult, filled, integers, names, shown},
    summary::some,
};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};
use tch::Tensor;

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

impl LabelledRow {
    /// A row with its label, and whether it was cut.
    fn new(
        labels: (&Labels, &HashMap<String, usize>),
        raw: Raw,
        tokenizer: Option<&Tokenizer>,
        (max_length, vocab_size): (usize, i64),
    ) -> RowResult<(Self, bool)> {
        let target = labels.0.target(&raw.label, labels.1)?;
        let mut ids = match raw.text {
            Text::Ids(ids) => ids,
            Text::Plain(text) => {
                let what = "`text` needs a tokenizer, and the checkpoint has no \
                            tokenizer.json; add one, or write `input_ids`";
                let ids = tokenizer.ok_or(what)?.ids(&text, true);
                ids.map_err(|what| format!("`text` {what}"))?
            }
        };
        if let Some(id) = ids.iter().find(|id| !(0..vocab_size).contains(*id)) {
            return Err(format!(
                "its token {id} is outside the model's vocabulary of {vocab_size}"
            ));
        }
        if ids.is_empty() {
            return Err("`text` has no token; expected some".into());
        }
        let cut = ids.len() > max_length;
        ids.truncate(max_length);
        Ok((Self { ids, target, line: raw.line }, cut))
    }
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
        let refuse = &mut |line, what| Err(Error::row(path, line, what));
        let limits = (max_length, vocab_size);
        let found = Self::gather(path, tokenizer, limits, wanted, refuse)?;
        found.ok_or_else(|| Error::file(path, "no row; expected texts with labels"))
    }

    /// As [`Labelled::load`]; but the bad rows are given to `on_bad`, and left out.
    /// Returns the others, or none where there is none.
    ///
    /// # Errors
    /// A file that cannot be read; one whose rows all have the same label.
    pub fn check(
        path: impl AsRef<Path>,
        tokenizer: Option<&Tokenizer>,
        limits: (usize, i64),
        wanted: &Labels,
        on_bad: &mut dyn FnMut(BadRow),
    ) -> Result<Option<Self>> {
        let on_bad = &mut |line, what| {
            on_bad(BadRow { line, what });
            Ok(())
        };
        Self::gather(path.as_ref(), tokenizer, limits, wanted, on_bad)
    }

    fn gather(
        path: &Path,
        tokenizer: Option<&Tokenizer>,
        limits: (usize, i64),
        wanted: &Labels,
        on_bad: OnBad,
    ) -> Result<Option<Self>> {
        if limits.0 == 0 {
            return Err(Error::setting("--max-length", "0; at least 1"));
        }
        let raw = read(path, on_bad)?;
        if raw.is_empty() {
            return Ok(None);
        }
        let labels = match wanted {
            Labels::Classes(names) if names.is_empty() => {
                let labels = raw.iter().map(|r| (r.line, r.label.as_str(), r.truth));
                Labels::classes(path, labels.collect(), on_bad)?
            }
            known => known.clone(),
        };
        let (rows, truncated) = (vec![], vec![]);
        let mut data = Self { path: path.into(), rows, labels, truncated };
        let numbers = data.labels.numbers();
        for raw in raw {
            let line = raw.line;
            match LabelledRow::new((&data.labels, &numbers), raw, tokenizer, limits)
            {
                Ok((row, cut)) => {
                    data.truncated.extend(cut.then_some(line));
                    data.rows.push(row);
                }
                Err(what) => on_bad(line, what)?,
            }
        }
        Ok(Some(data))
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
        let mut counts = vec![0; names.len()];
        self.rows.iter().for_each(|row| counts[row.target as usize] += 1);
        counts
    }
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
    /// The label was written as a truth value of JSON.
    truth: bool,
    line: usize,
}

/// The rows as they are written.
fn read(path: &Path, on_bad: OnBad) -> Result<Vec<Raw>> {
    let records = Records::open(path)?;
    let columns = records.columns().map(<[String]>::to_vec);
    for name in ["text", "label"] {
        if let Some(found) = &columns
            && !found.iter().any(|column| column == name)
        {
            let found = some(found);
            let what = format!("no column `{name}`; the header has {found}");
            return Err(Error::row(path, 1, what));
        }
    }
    let table = columns.is_some();
    let mut rows = Vec::new();
    for record in records {
        let (line, fields) = match record {
            Ok(record) => record,
            Err(Error::Row { line, what, .. }) => {
                on_bad(line, what)?;
                continue;
            }
            Err(e) => return Err(e),
        };
        let row = words(&fields).and_then(|text| {
            let truth = matches!(fields.get("label"), Some(Value::Bool(_)));
            Ok(Raw { text, label: label(&fields, table)?, truth, line })
        });
        match row {
            Ok(row) => rows.push(row),
            Err(what) => on_bad(line, what)?,
        }
    }
    Ok(rows)
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
        Some(Value::Bool(truth)) => truth.to_string(),
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
