//! The rows of a run, whatever they teach.
use super::Task;
use crate::Result;
use crate::data::{Batch, Dataset, Labelled, Labels, Tokenizer};
use std::fmt;
use std::path::Path;

/// Rows to learn from or to measure on.
#[derive(Debug)]
pub enum Rows {
    /// The tokens themselves are learned.
    Text(Dataset),
    /// A label each is learned.
    Labelled(Labelled),
}

impl Rows {
    /// Reads the rows of a task. `labels`: the classes, if they are known already.
    pub fn load(
        path: &Path,
        task: Task,
        tokenizer: Option<&Tokenizer>,
        (max_length, vocab_size): (usize, i64),
        labels: Option<&Labels>,
    ) -> Result<Self> {
        let limits = (max_length, vocab_size);
        let labels = match (task, labels) {
            (Task::CausalLm, _) => {
                let data = Dataset::load(path, tokenizer, max_length, vocab_size)?;
                return Ok(Self::Text(data));
            }
            (_, Some(labels)) => labels.clone(),
            (Task::Classification, None) => Labels::Classes(vec![]),
            (Task::Regression, None) => Labels::Numbers,
        };
        Ok(Self::Labelled(Labelled::load(path, tokenizer, limits, &labels)?))
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(data) => data.examples.len(),
            Self::Labelled(data) => data.rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These rows end to end.
    pub fn batch(&self, rows: &[usize]) -> Result<Batch> {
        Ok(match self {
            Self::Text(data) => {
                let rows = rows.iter().map(|&i| &data.examples[i]);
                Batch::collate(&rows.collect::<Vec<_>>())
            }
            Self::Labelled(data) => {
                let rows = rows.iter().map(|&i| &data.rows[i]);
                Batch::labelled(&rows.collect::<Vec<_>>(), &data.labels)
            }
        })
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
            Self::Text(data) => Some(data),
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
