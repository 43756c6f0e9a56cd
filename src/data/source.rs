//! The rows of a JSON Lines or CSV file, one after the other, without holding them.
use super::{
    fingerprint::Digest,
    record::{Ends, LONGEST},
    rows::{RowResult, object},
    summary::some,
};
use crate::files::{self, BOM};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// How a file's rows are written.
#[derive(Clone, Debug)]
pub(super) struct Format {
    /// Where they end.
    pub(super) ends: Ends,
    /// In CSV, the names of the columns; otherwise a row is a JSON object.
    pub(super) columns: Option<Vec<String>>,
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
        let io = |e| Error::io(path, e);
        let file = files::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let head = file.fill_buf().map_err(io)?;
        if let Some(what) = files::foreign(head) {
            return Err(Error::file(path, what));
        }
        if let Some(what) = files::utf16(head) {
            let what = match head[0] {
                0xfe | 0xff => format!("byte 1 is not UTF-8: the file is {what}"),
                _ => format!("a NUL byte: the file is {what}"),
            };
            return Err(Error::row(path, 1, what));
        }
        let page = |start: &str| {
            let begins = head.trim_ascii_start().get(..start.len());
            begins.is_some_and(|b| b.eq_ignore_ascii_case(start.as_bytes()))
        };
        if ["<!doctype", "<html", "<?xml"].into_iter().any(page) {
            let what = "a web page, not rows; was the page about the file saved \
                        instead of the file?";
            return Err(Error::row(path, 1, what));
        }
        // Some editors begin a file with a byte order mark.
        let at = if head.starts_with(BOM) { BOM.len() as u64 } else { 0 };
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        let ends = Ends::find(&mut file, csv).map_err(io)?;
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let format = Format { ends, columns: None };
        let path = path.into();
        let digest = Digest::new();
        let mut source = Self { path, format, length, at, digest, file, line: 0 };
        if csv {
            source.format.columns = Some(source.header()?);
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
        let names = cells(self.format.ends, &header.bytes).map_err(wrong)?;
        let names: Vec<String> = names.iter().map(|n| n.trim().into()).collect();
        if names.iter().take(1).any(|n| n.starts_with("sep=")) {
            let what = "a hint for Excel, not a header; delete this line, and save \
                        the file with commas between columns";
            return Err(wrong(what.into()));
        }
        if let [all] = &names[..]
            && let Some(sign) = all.chars().find(|c| matches!(c, ';' | '\t' | '|'))
        {
            let what = format!(
                "found one column `{all}`, with {sign:?} in its name; expected commas \
                 between columns: save the file with them"
            );
            return Err(wrong(what));
        }
        match twice(&names) {
            Some(name) => {
                Err(wrong(format!("two columns are called `{name}`; rename one")))
            }
            None => Ok(names),
        }
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
            let read = self.format.ends.read(&mut self.file, bytes);
            let Some(lines) = read.map_err(|e| Error::io(&self.path, e))? else {
                return Err(Error::row(&self.path, line, too_long(bytes)));
            };
            if bytes.is_empty() {
                return Ok(None);
            }
            self.line += lines;
            self.at += bytes.len() as u64;
            if !bytes.trim_ascii().is_empty() {
                self.digest.add(bytes);
                return Ok(Some((line, at)));
            }
        }
    }

    /// The next rows, at most `n`, and fewer of long ones.
    pub(super) fn take(&mut self, n: usize) -> Result<Vec<Record>> {
        let (mut records, from) = (Vec::new(), self.at);
        while records.len() < n
            && self.at - from < TOGETHER
            && let Some(record) = self.next()?
        {
            records.push(record);
        }
        Ok(records)
    }
}

/// Bytes of rows that are held before they are tokenized: hardly more than these.
const TOGETHER: u64 = 8 << 20;

/// What to say of a row that does not end.
pub(super) fn too_long(bytes: &[u8]) -> String {
    let most = LONGEST >> 20;
    let fix = match bytes.contains(&b'"') {
        true => "is a quotation mark open, or a line end missing?",
        false => "is it text?",
    };
    format!("a row of more than {most} MiB; split it ({fix})")
}

/// The first name that is there twice.
pub(super) fn twice(names: &[String]) -> Option<&String> {
    let mut seen = HashSet::new();
    names.iter().find(|name| !seen.insert(*name))
}

/// The fields of a row's bytes. Cells of CSV are strings.
pub(super) fn fields(
    format: &Format,
    bytes: &[u8],
) -> RowResult<Map<String, Value>> {
    let Some(names) = &format.columns else {
        let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(&e))?;
        return object(text.trim());
    };
    let cells = cells(format.ends, bytes)?;
    if cells.len() != names.len() {
        return Err(format!(
            "{} cells, but the header has {} ({}); put a cell that holds a comma or a \
             line end in double quotes",
            cells.len(),
            names.len(),
            some(names)
        ));
    }
    let cells = cells.iter().map(|cell| Value::String(cell.into()));
    Ok(names.iter().cloned().zip(cells).collect())
}

fn cells(ends: Ends, bytes: &[u8]) -> RowResult<csv::StringRecord> {
    let mut reader = csv::ReaderBuilder::new();
    let mut reader = reader.has_headers(false).flexible(true).from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    let read = reader.read_byte_record(&mut record);
    read.map_err(|e| format!("not a row of CSV: {e}"))?;
    let record = csv::StringRecord::from_byte_record(record).map_err(|e| {
        format!(
            "cell {}: not UTF-8; save the file as UTF-8",
            e.utf8_error().field() + 1
        )
    })?;
    match ends.wrong(bytes) {
        Some(what) => Err(what.into()),
        None => Ok(record),
    }
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
        self.0.format.columns.as_deref()
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
