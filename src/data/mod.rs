//! From a file of rows to batches of token ids: tokenizers, chat templates, the mask
//! that says which tokens are learned, batches, and the order of the rows.
//!
//! ```text
//! file of rows -> Dataset (ids and labels per row) -> Plan (seed, epoch) -> Batch [N]
//! ```
mod added;
mod batch;
mod chat;
mod check;
mod dataset;
mod encode;
mod engine;
mod fingerprint;
mod guarded;
mod jinja;
mod labelled;
mod labels;
mod length_cache;
mod plan;
mod python;
mod questions;
mod record;
mod row_encoder;
mod rows;
mod source;
mod special;
mod stream;
mod strftime;
mod summary;
mod table;
mod tokenizer;
mod turns;

pub use batch::{Batch, order};
pub use chat::Message;
pub use check::{BadRow, Lengths, check};
pub use dataset::Dataset;
pub use encode::{Encoder, Features, Scale};
pub use fingerprint::Fingerprint;
pub use guarded::quiet_when_caught;
pub use labelled::{Labelled, LabelledRow};
pub use labels::Labels;
pub use plan::{Grouping, Plan};
pub use questions::Question;
pub use row_encoder::RowEncoder;
pub use source::Records;
pub use summary::Summary;
pub use table::{Column, Table};
pub use tokenizer::{TextStream, Tokenizer};

/// The label of a token that is not learned: a prompt's, or a file's own padding.
pub const IGNORED: i64 = -100;

/// One row as the model sees it. `labels` has the length of `ids` and is not shifted:
/// `labels[t]` is `ids[t]` or [`IGNORED`], and the loss compares it with the
/// prediction made at `t - 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<i64>,
    /// The id to learn at each position, or [`IGNORED`].
    pub labels: Vec<i64>,
    /// The line of the file that it came from, counted from 1.
    pub line: usize,
}

impl Example {
    /// How many tokens are learned. The first token is never predicted, so its label
    /// does not count.
    pub fn supervised(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
    }

    /// What comes before the first learned token: the prompt of a prompt and
    /// completion.
    pub fn prompt(&self) -> &[i64] {
        let learned = self.labels.iter().position(|&label| label != IGNORED);
        &self.ids[..learned.unwrap_or(self.ids.len())]
    }

    /// The learned ids in order: the completion and its final EOS.
    pub fn target(&self) -> Vec<i64> {
        self.labels.iter().copied().filter(|&label| label != IGNORED).collect()
    }
}
