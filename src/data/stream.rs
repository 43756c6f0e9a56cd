//! A file larger than memory: where each row begins, and the rows as they are taken.
use super::{
    Example, Fingerprint, RowEncoder,
    dataset::{of_one_kind, on_all_cores, progress_bar},
    row_encoder::Encoded,
    rows::RowResult,
    source::{Format, Record, Source},
};
use crate::{Error, Result, files};
use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

// ANCHOR: stream
/// Rows by number. Twelve bytes are kept of each.
pub(super) struct Stream {
    path: PathBuf,
    format: Format,
    encoder: RowEncoder,
    file: Arc<Mutex<File>>,
    /// Where in the file each row begins, and on which line.
    starts: Vec<u64>,
    lines: Vec<u32>,
    /// The first row's line and kind, which the others must have.
    first: Option<(usize, &'static str)>,
    /// Of the whole file.
    pub(super) fingerprint: Fingerprint,
    /// Lines of the rows taken so far that had no token to learn.
    skipped: Mutex<BTreeSet<usize>>,
}
// ANCHOR_END: stream

/// Rows read at a time for their lengths.
const CHUNK: usize = 1024;

impl Stream {
    /// Reads the file once, for the places where rows begin.
    pub(super) fn index(path: &Path, encoder: RowEncoder) -> Result<Self> {
        let mut source = Source::open(path)?;
        let bar = progress_bar(source.length, path);
        let (mut starts, mut lines, mut bytes) = (vec![], vec![], vec![]);
        let mut first = None;
        while let Some((line, at)) = source.next_into(&mut bytes)? {
            starts.push(at);
            lines.push(u32::try_from(line).map_err(|_| {
                Error::file(path, "more than 4 billion lines; split the file")
            })?);
            if first.is_none() {
                let row = encoder.encode(&source.format, line, &bytes);
                let row = row.map_err(|what| Error::row(path, line, what))?;
                first = Some((line, row.kind));
            }
            if lines.len() % 65_536 == 0 {
                bar.set_position(at);
            }
        }
        bar.finish_and_clear();
        let file = files::open(path).map_err(|e| Error::io(path, e))?;
        Ok(Self {
            path: path.into(),
            fingerprint: source.digest.fingerprint(),
            format: source.format,
            encoder,
            file: Arc::new(Mutex::new(file)),
            starts,
            lines,
            first,
            skipped: Mutex::default(),
        })
    }

    pub(super) fn lines(&self) -> &[u32] {
        &self.lines
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Row `i`, or `None` where it has no token to learn.
    pub(super) fn row(&self, i: usize) -> Result<Option<Example>> {
        Ok(self.encoded(i)?.map(|row| row.example))
    }

    /// As [`Stream::row`], with what is asked of it.
    pub(super) fn encoded(&self, i: usize) -> Result<Option<Encoded>> {
        let record = self.record(i)?;
        let row = self.encoder.encode(&self.format, record.line, &record.bytes);
        self.checked(record.line, row)
    }

    /// Whether any row has a token to learn: rows are read until one has.
    pub(super) fn teaches(&self) -> Result<bool> {
        // Mostly it is the first; else all cores look.
        if self.row(0)?.is_some() {
            return Ok(true);
        }
        let bar = progress_bar(self.len() as u64, &self.path);
        for from in (0..self.len()).step_by(CHUNK) {
            let rows = self.chunk(from)?;
            if rows.iter().any(Option::is_some) {
                return Ok(true);
            }
            bar.set_position(from as u64);
        }
        bar.finish_and_clear();
        Ok(false)
    }

    /// The rows from `from` on, as many as are read at a time.
    fn chunk(&self, from: usize) -> Result<Vec<Option<Example>>> {
        let to = self.len().min(from + CHUNK);
        let records = (from..to).map(|i| self.record(i));
        let records = records.collect::<Result<Vec<_>>>()?;
        let rows = on_all_cores(&records, &self.format, &self.encoder);
        let checked = |(record, row): (&Record, _)| {
            let row = self.checked(record.line, row)?;
            Ok(row.map(|row| row.example))
        };
        records.iter().zip(rows).map(checked).collect()
    }

    /// Tokens of every row; 0 where none is learned.
    pub(super) fn lengths(&self) -> Result<Vec<u32>> {
        let bar = progress_bar(self.len() as u64, &self.path);
        let mut lengths = Vec::with_capacity(self.len());
        while lengths.len() < self.len() {
            let rows = self.chunk(lengths.len())?;
            let tokens =
                |e: &Option<Example>| e.as_ref().map_or(0, |e| e.ids.len() as u32);
            lengths.extend(rows.iter().map(tokens));
            bar.set_position(lengths.len() as u64);
        }
        bar.finish_and_clear();
        Ok(lengths)
    }

    fn checked(
        &self,
        line: usize,
        row: RowResult<Encoded>,
    ) -> Result<Option<Encoded>> {
        let row = of_one_kind(row, line, &mut self.first.clone());
        let row = row.map_err(|what| Error::row(&self.path, line, what))?;
        if row.example.supervised() > 0 {
            return Ok(Some(row));
        }
        let mut skipped =
            self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.insert(line);
        Ok(None)
    }

    // ANCHOR: record
    fn record(&self, i: usize) -> Result<Record> {
        let (at, line) = (self.starts[i], self.lines[i] as usize);
        let mut bytes = Vec::new();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| {
            let mut reader = BufReader::new(&mut *file);
            self.format.ends.read(&mut reader, &mut bytes)
        });
        read.map_err(|e| Error::io(&self.path, e))?;
        Ok(Record { line, bytes })
    }
    // ANCHOR_END: record

    pub(super) fn skipped(&self) -> Vec<usize> {
        let skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.iter().copied().collect()
    }

    /// Takes the rows marked `away` out, as a stream of their own.
    pub(super) fn take(&mut self, away: &[bool]) -> Self {
        let (mut starts, mut lines) = (Vec::new(), Vec::new());
        for (i, _) in away.iter().enumerate().filter(|(_, away)| **away) {
            starts.push(self.starts[i]);
            lines.push(self.lines[i]);
        }
        let mut kept = away.iter().map(|away| !away);
        self.starts.retain(|_| kept.next().unwrap_or(true));
        let mut kept = away.iter().map(|away| !away);
        self.lines.retain(|_| kept.next().unwrap_or(true));
        Self {
            path: self.path.clone(),
            format: self.format.clone(),
            encoder: self.encoder.clone(),
            file: self.file.clone(),
            starts,
            lines,
            first: self.first,
            fingerprint: self.fingerprint.clone(),
            skipped: Mutex::default(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("rows", &self.len()).finish()
    }
}
