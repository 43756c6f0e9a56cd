//! The rows of a JSON Lines or CSV file, one after the other, without holding them.
use super::fingerprint::Digest;
use super::rows::{RowResult, object};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

/// How a file's rows are written.
#[derive(Clone, Debug)]
pub(super) enum Format {
    /// One JSON object per line.
    Jsonl,
    /// A header and comma-separated cells; these are the names of the columns.
    Csv(Vec<String>),
}

/// A file that is read from its beginning to its end.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    /// Bytes in the file.
    pub(super) length: u64,
    /// Bytes read so far.
    pub(super) at: u64,
    /// Of the rows read so far.
    pub(super) digest: Digest,
    file: BufReader<File>,
    line: usize,
}

/// A row's bytes, and the line that it begins on.
pub(super) struct Record {
    pub(super) line: usize,
    pub(super) bytes: Vec<u8>,
}

impl Source {
    /// Opens `path`; a name that ends in `.csv` is CSV, any other JSON Lines.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut source = Self {
            path: path.into(),
            format: Format::Jsonl,
            length,
            at: 0,
            digest: Digest::new(),
            file: BufReader::with_capacity(1 << 20, file),
            line: 0,
        };
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
            source.format = Format::Csv(vec![]);
            source.format = Format::Csv(source.header()?);
            source.digest.rows = 0;
        }
        Ok(source)
    }

    fn header(&mut self) -> Result<Vec<String>> {
        let Some(header) = self.next()? else {
            let what =
                "empty; expected a header, such as prompt,completion, then rows";
            return Err(Error::file(&self.path, what));
        };
        let wrong = |what| Error::row(&self.path, header.line, what);
        let names = cells(&header.bytes).map_err(wrong)?;
        let names: Vec<String> = names.iter().map(|n| n.trim().into()).collect();
        if let [all] = &names[..]
            && let Some(sign) = all.chars().find(|c| matches!(c, ';' | '\t'))
        {
            let what = format!(
                "found one column `{all}`, with {sign:?} in its name; expected commas \
                 between columns: save the file with them"
            );
            return Err(wrong(what));
        }
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                let what = format!("two columns are called `{name}`; rename one");
                return Err(wrong(what));
            }
        }
        Ok(names)
    }

    /// The next row; blank lines are passed over.
    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        let mut bytes = Vec::new();
        let place = self.next_into(&mut bytes)?;
        Ok(place.map(|(line, _)| Record { line, bytes }))
    }

    /// The next row's bytes into `bytes`; its line and place.
    pub(super) fn next_into(
        &mut self,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<(usize, u64)>> {
        loop {
            bytes.clear();
            let (line, at) = (self.line + 1, self.at);
            let csv = matches!(self.format, Format::Csv(_));
            let read = read_record(&mut self.file, csv, bytes);
            let (lines, closed) = read.map_err(|e| Error::io(&self.path, e))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if !closed {
                let what =
                    "a quoted cell of this row is never closed; add the quote";
                return Err(Error::row(&self.path, line, what));
            }
            self.line += lines;
            self.at += bytes.len() as u64;
            // Some editors begin a file with a byte order mark.
            if at == 0 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            if !bytes.trim_ascii().is_empty() {
                self.digest.add(bytes);
                return Ok(Some((line, at)));
            }
        }
    }

    /// The next rows, at most `n`.
    pub(super) fn take(&mut self, n: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while records.len() < n
            && let Some(record) = self.next()?
        {
            records.push(record);
        }
        Ok(records)
    }
}

/// Bytes in a row at most: a file that is no text may have no line end.
const LONGEST: u64 = 256 << 20;

/// Reads up to the end of a row: a line's, or in CSV the first outside of quotes.
/// Returns how many lines it has, and whether its quotes are closed.
pub(super) fn read_record(
    reader: &mut impl BufRead,
    csv: bool,
    into: &mut Vec<u8>,
) -> io::Result<(usize, bool)> {
    let (mut lines, mut quoted, mut start_of_cell) = (0, false, true);
    loop {
        let from = into.len();
        let room = LONGEST.saturating_sub(from as u64);
        if reader.by_ref().take(room).read_until(b'\n', into)? == 0 {
            return match room {
                0 => {
                    Err(io::Error::other("a row of more than 256 MiB; is it text?"))
                }
                _ => Ok((lines, !quoted)),
            };
        }
        if into.len() as u64 == LONGEST {
            continue;
        }
        lines += 1;
        if !csv {
            return Ok((lines, true));
        }
        let mut after_quote = false; // a second quote then stands for itself
        for &b in &into[from..] {
            if b == b'"' && (quoted || start_of_cell || after_quote) {
                after_quote = quoted;
                quoted = !quoted;
            } else {
                after_quote = false;
            }
            start_of_cell = !quoted && b == b',';
        }
        if !quoted {
            return Ok((lines, true));
        }
    }
}

/// The fields of a row's bytes. Cells of CSV are strings.
pub(super) fn fields(
    format: &Format,
    bytes: &[u8],
) -> RowResult<Map<String, Value>> {
    let Format::Csv(names) = format else {
        let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(&e))?;
        return object(text.trim());
    };
    let cells = cells(bytes)?;
    if cells.len() != names.len() {
        return Err(format!(
            "{} cells, but the header has {} ({}); put a cell that holds a comma or a \
             line end in double quotes",
            cells.len(),
            names.len(),
            names.join(", ")
        ));
    }
    let cells = cells.iter().map(|cell| Value::String(cell.into()));
    Ok(names.iter().cloned().zip(cells).collect())
}

fn cells(bytes: &[u8]) -> RowResult<csv::StringRecord> {
    let mut reader = csv::ReaderBuilder::new();
    let mut reader = reader.has_headers(false).flexible(true).from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    let read = reader.read_byte_record(&mut record);
    read.map_err(|e| format!("not a row of CSV: {e}"))?;
    csv::StringRecord::from_byte_record(record).map_err(|e| {
        format!(
            "cell {}: not UTF-8; save the file as UTF-8",
            e.utf8_error().field() + 1
        )
    })
}

fn not_utf8(e: &std::str::Utf8Error) -> String {
    format!("byte {} is not UTF-8; save the file as UTF-8", e.valid_up_to() + 1)
}

/// The rows of a JSON Lines or CSV file as they are written: the line, and the fields.
pub struct Records(Source);

impl Records {
    /// Opens a file; a name that ends in `.csv` is CSV with a header, any other JSON
    /// Lines.
    ///
    /// # Errors
    /// What the operating system says; a CSV file without a header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Source::open(path.as_ref()).map(Self)
    }

    /// The names of a CSV file's columns.
    pub fn columns(&self) -> Option<&[String]> {
        match &self.0.format {
            Format::Csv(names) => Some(names),
            Format::Jsonl => None,
        }
    }
}

impl Iterator for Records {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.0.next().transpose()?;
        Some(record.and_then(|r| {
            let fields = fields(&self.0.format, &r.bytes);
            let fields =
                fields.map_err(|what| Error::row(&self.0.path, r.line, what))?;
            Ok((r.line, fields))
        }))
    }
}
