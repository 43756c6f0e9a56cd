//! Where a row of a file ends: with its line, or in CSV with the first line end that
//! stands outside of quotes.
use std::io::{self, BufRead, Read};

/// How the rows of a file are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// Cells may be quoted, and hold commas and line ends then.
    pub(super) csv: bool,
    /// The byte that ends a line: a line feed, or in files of old Macs a carriage
    /// return alone.
    byte: u8,
}

/// Bytes in a row at most: a file that is no text may have no line end, and to tokenize
/// a text takes some 150 times its bytes of memory.
pub(super) const LONGEST: u64 = 8 << 20;

/// Where in a cell a byte stands.
#[derive(Clone, Copy, PartialEq)]
enum Cell {
    Start,
    Plain,
    Quoted,
    /// Behind a quotation mark that closes the cell, unless another one follows.
    Closed,
    /// Behind white space after that.
    Over,
}

impl Cell {
    /// Behind one more byte; an error where text follows a quoted cell.
    fn then(self, byte: u8) -> Result<Self, Self> {
        Ok(match (self, byte) {
            (Self::Quoted, b'"') => Self::Closed,
            (Self::Quoted, _) => Self::Quoted,
            (Self::Start | Self::Closed, b'"') => Self::Quoted,
            (_, b',') => Self::Start,
            (Self::Start | Self::Plain, _) => Self::Plain,
            (Self::Closed | Self::Over, b' ' | b'\t' | b'\r' | b'\n') => Self::Over,
            (Self::Closed | Self::Over, _) => return Err(Self::Plain),
        })
    }

    fn go_on(self, byte: u8) -> Self {
        self.then(byte).unwrap_or_else(|plain| plain)
    }
}

impl Ends {
    /// By the first line end of a file that is at its beginning.
    pub(super) fn find(reader: &mut impl BufRead, csv: bool) -> io::Result<Self> {
        let ends = |byte| Ok(Self { csv, byte });
        let (mut cell, mut returned, mut seen) = (Cell::Start, false, 0);
        loop {
            let bytes = reader.fill_buf()?;
            if bytes.is_empty() || seen > LONGEST {
                return ends(if returned { b'\r' } else { b'\n' });
            }
            for &byte in bytes {
                match byte {
                    _ if csv && cell == Cell::Quoted => {}
                    b'\n' => return ends(b'\n'),
                    b'\r' => returned = true,
                    _ if returned => return ends(b'\r'),
                    _ => {}
                }
                cell = cell.go_on(byte);
            }
            let n = bytes.len();
            seen += n as u64;
            reader.consume(n);
        }
    }

    /// Whether lines end with a carriage return alone.
    pub(super) fn of_old_macs(self) -> bool {
        self.byte == b'\r'
    }

    /// Reads up to the end of a row, and returns how many lines it has; nothing is read
    /// at the end of the file. None: the row is longer than [`LONGEST`].
    pub(super) fn read(
        self,
        reader: &mut impl BufRead,
        into: &mut Vec<u8>,
    ) -> io::Result<Option<usize>> {
        let (mut lines, mut cell) = (0, Cell::Start);
        loop {
            let from = into.len();
            let room = LONGEST.saturating_sub(from as u64);
            if room == 0 {
                return Ok(None);
            }
            if Read::take(&mut *reader, room).read_until(self.byte, into)? == 0 {
                return Ok(Some(lines));
            }
            if into.last() != Some(&self.byte) {
                continue; // the end of the file, or no room
            }
            lines += 1;
            if !self.csv {
                return Ok(Some(lines));
            }
            cell = into[from..].iter().fold(cell, |cell, byte| cell.go_on(*byte));
            if cell != Cell::Quoted {
                return Ok(Some(lines));
            }
        }
    }

    /// Why the bytes of a row of CSV cannot be split into cells without losing a part
    /// of them. The usual parsers end a row at a carriage return, drop the marks
    /// around text that goes on behind them, and swallow the rest of the file where a
    /// mark is not closed.
    pub(super) fn wrong(self, row: &[u8]) -> Option<&'static str> {
        let (mut cell, mut returned) = (Cell::Start, false);
        for &byte in row {
            let quoted = cell == Cell::Quoted;
            cell = match cell.then(byte) {
                Ok(cell) => cell,
                Err(_) => {
                    return Some(
                        "text goes on behind a closing quotation mark; write a mark \
                         that belongs to the text twice",
                    );
                }
            };
            match byte {
                0 => {
                    return Some(
                        "a NUL byte, which no text has; write the file anew, as UTF-8",
                    );
                }
                _ if quoted => {}
                b'\n' if self.byte == b'\r' => {
                    return Some(
                        "a line feed, but the lines before end with a carriage return \
                         alone; end all lines alike, and put a cell that holds a line \
                         end in double quotes",
                    );
                }
                b'\r' => returned = true,
                b'\n' => returned = false,
                _ if returned => {
                    return Some(
                        "a carriage return alone in a cell without quotes, where it \
                         may end the row or belong to the text; put the cell in double \
                         quotes, or end all lines alike",
                    );
                }
                _ => {}
            }
        }
        (cell == Cell::Quoted).then_some(
            "a quoted cell of this row is never closed; close it, or write a quotation \
             mark that belongs to the text twice",
        )
    }
}
