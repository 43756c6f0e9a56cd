//! What became of a file's rows.
use super::{Example, row_encoder::Encoded};
use std::fmt;

/// What became of a file's rows. `Display` says it in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows that were read, blank lines not counted.
    pub rows: usize,
    /// Lines of the rows that were cut on the right to the length limit.
    pub truncated: Vec<usize>,
    /// Lines of the rows that were left out: no token to learn, or none within the
    /// length limit.
    pub skipped: Vec<usize>,
    /// Tokens in the rows that are left.
    pub tokens: usize,
    /// Those of them that are learned.
    pub supervised: usize,
    /// Rows in the file, where they are streamed; the rest then speaks of the first
    /// ones.
    pub streamed: usize,
}

impl Summary {
    pub(super) fn add(&mut self, row: &Encoded) {
        self.rows += 1;
        if row.cut {
            self.truncated.push(row.example.line);
        }
        self.count(&row.example);
    }

    /// Of rows that are held, none of them skipped.
    pub(super) fn of(examples: &[Example]) -> Self {
        let mut summary = Self { rows: examples.len(), ..Self::default() };
        examples.iter().for_each(|example| summary.count(example));
        summary
    }

    /// What to say where no row has a token to learn.
    pub(super) fn nothing(&self, max_length: usize) -> String {
        let fix = match self.truncated.len() {
            _ if self.streamed > 0 && !self.truncated.is_empty() => format!(
                "they are cut to --max-length {max_length}; raise it, or check the \
                 labels"
            ),
            0 => "a label that is learned is needed behind the first token; in \
                  `messages`, an assistant's turn"
                .into(),
            n => format!(
                "{n} were cut to --max-length {max_length}; raise it, or check the \
                 labels"
            ),
        };
        let rows = self.rows.max(self.streamed);
        format!("no row has a token to learn, of {rows}: {fix}")
    }

    fn count(&mut self, example: &Example) {
        match example.supervised() {
            0 => self.skipped.push(example.line),
            learned => {
                self.tokens += example.ids.len();
                self.supervised += learned;
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.streamed > 0 {
            let n = self.streamed;
            write!(f, "{n} rows, tokenized as they are taken; at the beginning, ")?;
        }
        let used = self.rows - self.skipped.len();
        let (tokens, learned) = (self.tokens, self.supervised);
        write!(
            f,
            "{used} of {} rows, {tokens} tokens, {learned} learned",
            self.rows
        )?;
        for (what, lines) in [
            ("cut to the length limit", &self.truncated),
            ("skipped: no token to learn", &self.skipped),
        ] {
            if !lines.is_empty() {
                write!(f, "; {} {what} (line {})", lines.len(), first_of(lines))?;
            }
        }
        Ok(())
    }
}

/// The first few names.
pub(super) fn some(names: &[String]) -> String {
    let more = if names.len() > 8 { ", ..." } else { "" };
    let names: Vec<_> = names.iter().take(8).map(String::as_str).collect();
    names.join(", ") + more
}

/// The first five of some lines.
pub(super) fn first_of(lines: &[usize]) -> String {
    let first = lines.iter().take(5).map(usize::to_string).collect::<Vec<_>>();
    let more = if lines.len() > 5 { ", ..." } else { "" };
    first.join(", ") + more
}
