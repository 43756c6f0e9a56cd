//! The rows of a run, whatever they teach.
use super::Task;
use crate::Result;
use crate::data::{Batch, Dataset, Fingerprint, Labelled, Labels, RowEncoder};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

/// Rows to learn from or to measure on.
#[derive(Debug)]
pub enum Rows {
    /// The tokens themselves are learned.
    Text(Box<Dataset>),
    /// A label each is learned.
    Labelled(Labelled),
}

impl Rows {
    /// Reads the rows of a task. `labels`: the classes, if they are known already.
    pub fn load(
        path: &Path,
        task: Task,
        encoder: &RowEncoder,
        labels: Option<&Labels>,
    ) -> Result<Self> {
        let labels = match (task, labels) {
            (Task::CausalLm, _) => {
                let data = Dataset::read(path, encoder.clone())?;
                return Ok(Self::Text(Box::new(data)));
            }
            (_, Some(labels)) => labels.clone(),
            (Task::Classification, None) => Labels::Classes(vec![]),
            (Task::Regression, None) => Labels::Numbers,
        };
        let limits = (encoder.max_length, encoder.vocab_size);
        let tokenizer = encoder.tokenizer.as_ref();
        Ok(Self::Labelled(Labelled::load(path, tokenizer, limits, &labels)?))
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(data) => data.len(),
            Self::Labelled(data) => data.rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These rows end to end; None if no token of them is learned.
    ///
    /// # Errors
    /// A streamed row that is wrong.
    pub fn batch(&self, rows: &[usize]) -> Result<Option<Batch>> {
        match self {
            Self::Text(data) => {
                let rows = rows.iter().filter_map(|&i| data.row(i).transpose());
                let rows = rows.collect::<Result<Vec<_>>>()?;
                let rows: Vec<_> = rows.iter().map(|row| &**row).collect();
                Ok((!rows.is_empty()).then(|| Batch::collate(&rows)))
            }
            Self::Labelled(data) => {
                let rows: Vec<_> = rows.iter().map(|&i| &data.rows[i]).collect();
                let some = !rows.is_empty();
                Ok(some.then(|| Batch::labelled(&rows, &data.labels)))
            }
        }
    }

    /// Tokens of each row; those of streamed rows are kept in `cache`.
    ///
    /// # Errors
    /// As [`Dataset::lengths_cached`].
    pub fn lengths(&self, cache: &Path) -> Result<Vec<u32>> {
        match self {
            Self::Text(data) => data.lengths_cached(cache),
            Self::Labelled(data) => {
                Ok(data.rows.iter().map(|r| r.ids.len() as u32).collect())
            }
        }
    }

    /// Takes `share` of the rows away for validation: the rest, and those.
    ///
    /// # Errors
    /// A share that leaves either without a row.
    pub fn split(self, share: f64, seed: u64) -> Result<(Self, Self)> {
        match self {
            Self::Text(data) => {
                let (rest, held) = data.split(share, seed)?;
                Ok((Self::Text(Box::new(rest)), Self::Text(Box::new(held))))
            }
            Self::Labelled(data) => {
                let (rest, held) = data.split(share, seed)?;
                Ok((Self::Labelled(rest), Self::Labelled(held)))
            }
        }
    }

    /// How many of the rows to measure on stand among these too; of streamed rows it is
    /// not known.
    pub fn repeated(&self, measured: Option<&Self>) -> usize {
        match (self, measured) {
            (Self::Text(a), Some(Self::Text(b))) => b.repeats(a),
            (Self::Labelled(a), Some(Self::Labelled(b))) => {
                let known: HashSet<&[i64]> =
                    a.rows.iter().map(|row| &row.ids[..]).collect();
                b.rows.iter().filter(|row| known.contains(&row.ids[..])).count()
            }
            _ => 0,
        }
    }

    /// What tells all rows of their file from those of another.
    ///
    /// # Errors
    /// As [`Fingerprint::of`]: a file of labelled rows is read again for it.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        match self {
            Self::Text(data) => Ok(data.fingerprint().clone()),
            // A pipe gives its rows once.
            Self::Labelled(data) if !data.path.is_file() => {
                Ok(Fingerprint::default())
            }
            Self::Labelled(data) => Fingerprint::of(&data.path, u64::MAX),
        }
    }

    /// What their labels are, if they have any.
    pub fn labels(&self) -> Option<&Labels> {
        match self {
            Self::Text(_) => None,
            Self::Labelled(data) => Some(&data.labels),
        }
    }

    /// The rows of text, if they are that.
    pub fn text(&self) -> Option<&Dataset> {
        match self {
            Self::Text(data) => Some(data.as_ref()),
            Self::Labelled(_) => None,
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(data) => data.summary.fmt(f),
            Self::Labelled(data) => data.fmt(f),
        }
    }
}
