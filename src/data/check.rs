//! A file looked at from end to end: all its bad rows, and how long the others are.
use super::{
    RowEncoder, Summary,
    dataset::{encode_all, open},
};
use crate::{Error, Result};
use std::{fmt, path::Path};

/// A row that cannot be learned from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The line, counted from 1.
    pub line: usize,
    /// The field, what was found in it, and the fix.
    pub what: String,
}

/// The lengths of rows, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths(Vec<u32>);

impl Lengths {
    /// Of these rows, in any order.
    pub fn new(mut lengths: Vec<u32>) -> Self {
        lengths.sort_unstable();
        Self(lengths)
    }

    /// The length that this share of the rows does not exceed (nearest rank).
    pub fn quantile(&self, share: f64) -> u32 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or(0)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [min, half, most, nearly, max] =
            [0., 0.5, 0.9, 0.99, 1.].map(|share| self.quantile(share));
        write!(
            f,
            "tokens per row: {min} to {max}; half have at most {half}, 90 % {most}, \
             99 % {nearly}"
        )
    }
}

/// Reads all rows of a file, and gives the bad ones to `on_bad` as they are found.
/// Returns how many are bad, and of the others their summary and lengths.
///
/// # Errors
/// A file that cannot be read, or in which nothing is to be learned; never a bad row.
pub fn check(
    path: impl AsRef<Path>,
    encoder: &RowEncoder,
    on_bad: &mut dyn FnMut(BadRow),
) -> Result<(usize, Summary, Lengths)> {
    let mut source = open(path.as_ref(), encoder)?;
    let (mut bad, mut summary, mut lengths) = (0, Summary::default(), vec![]);
    encode_all(&mut source, encoder, usize::MAX, &mut |line, row| {
        match row {
            Ok(row) => {
                summary.add(&row);
                lengths.push(row.example.ids.len() as u32);
            }
            Err(what) => {
                bad += 1;
                on_bad(BadRow { line, what });
            }
        }
        Ok(())
    })?;
    if bad == 0 && summary.rows > 0 && summary.skipped.len() == summary.rows {
        let what = summary.nothing(encoder.max_length);
        return Err(Error::file(path.as_ref(), what));
    }
    Ok((bad, summary, Lengths::new(lengths)))
}
