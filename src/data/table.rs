//! A CSV file as typed columns.
use super::{
    record::Ends,
    source::{too_long, twice},
    summary::some,
};
use crate::{Error, Result, files};
use std::path::{Path, PathBuf};

/// The columns of a CSV file with a header.
#[derive(Clone, Debug)]
pub struct Table {
    path: PathBuf,
    names: Vec<String>,
    columns: Vec<Column>,
    rows: usize,
}

/// One column; an empty cell, `NA`, `N/A`, `#N/A`, `NaN`, `null`, `None` or `?`, in
/// capitals or not, is missing.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// NaN where missing.
    Numbers(Vec<f64>),
    /// None where missing.
    Categories(Vec<Option<String>>),
}

impl Table {
    /// Reads `path`. A column is one of numbers if the first cell in it that is not
    /// missing is a number, and if it is not named in `categories`.
    ///
    /// # Errors
    /// What the operating system says; no row or no header; a column without a name, or
    /// two of one; a row with another number of cells; a quotation mark that is never
    /// closed; a cell that is no finite number in a column of numbers; a name in
    /// `categories` that no column has. Each names line and column.
    pub fn read(path: impl AsRef<Path>, categories: &[&str]) -> Result<Self> {
        let path = path.as_ref();
        let bytes = whole(path)?;
        // Rows of unequal length are told by us.
        let mut reader = csv::ReaderBuilder::new()
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(bytes.as_slice());
        let malformed = |e: csv::Error| match e.position() {
            Some(at) => Error::row(path, line(&bytes, at), e.to_string()),
            None => Error::file(path, e.to_string()),
        };
        let header = reader.headers().map_err(malformed)?;
        let names: Vec<String> = header.iter().map(String::from).collect();
        if names.is_empty() {
            return Err(Error::file(path, "empty; a header and rows are needed"));
        }
        if let Some(i) = names.iter().position(String::is_empty) {
            let what = format!("column {} has no name; give it one", i + 1);
            return Err(Error::row(path, 1, what + ", or delete the column"));
        }
        if let Some(name) = twice(&names) {
            let what = format!("two columns are called `{name}`; rename one");
            return Err(Error::row(path, 1, what));
        }
        if let Some(name) =
            categories.iter().find(|c| !names.iter().any(|n| n == *c))
        {
            return Err(Error::file(path, no_column(name, &names)));
        }
        let mut cells: Vec<Vec<(Option<String>, usize)>> = vec![vec![]; names.len()];
        for record in reader.records() {
            let record = record.map_err(malformed)?;
            let line = record.position().map_or(0, |at| line(&bytes, at));
            if record.len() != names.len() {
                let (found, wanted) = (record.len(), names.len());
                let what = format!("{found} cells, but the header has {wanted}");
                return Err(Error::row(path, line, what));
            }
            for (column, cell) in cells.iter_mut().zip(&record) {
                column.push((present(cell), line));
            }
        }
        let rows = cells[0].len();
        if rows == 0 {
            return Err(Error::file(path, "a header and no rows"));
        }
        let typed = |(name, cells): (&String, Vec<(Option<String>, usize)>)| {
            let first = cells.iter().find_map(|(cell, _)| cell.as_deref());
            let number = first.is_none_or(|c| c.parse::<f64>().is_ok());
            if !number || categories.contains(&name.as_str()) {
                let cells = cells.into_iter().map(|(cell, _)| cell);
                return Ok(Column::Categories(cells.collect()));
            }
            let number = |(cell, line): (Option<String>, usize)| {
                let Some(cell) = cell else { return Ok(f64::NAN) };
                match cell.parse() {
                    Ok(x) if f64::is_finite(x) => Ok(x),
                    _ => {
                        let what = format!(
                            "column `{name}` is one of numbers, and `{cell}` is no \
                             finite one; correct it, leave it empty, or read the \
                             column as categories"
                        );
                        Err(Error::row(path, line, what))
                    }
                }
            };
            let numbers = cells.into_iter().map(number);
            Ok(Column::Numbers(numbers.collect::<Result<_>>()?))
        };
        let columns = names.iter().zip(cells).map(typed).collect::<Result<_>>()?;
        Ok(Self { path: path.into(), names, columns, rows })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the columns, in their order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of rows, the header not counted.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The column of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn column(&self, name: &str) -> Result<&Column> {
        let at = self.names.iter().position(|n| n == name);
        let at =
            at.ok_or_else(|| Error::file(&self.path, no_column(name, &self.names)))?;
        Ok(&self.columns[at])
    }

    /// The column of this name, which must be of numbers with none missing: what a
    /// regression learns.
    ///
    /// # Errors
    /// It is not.
    pub fn numbers(&self, name: &str) -> Result<&[f64]> {
        match self.column(name)? {
            Column::Numbers(x) if !x.iter().any(|x| x.is_nan()) => Ok(x),
            Column::Numbers(_) => Err(self.target(name, "a number is missing")),
            Column::Categories(_) => {
                Err(self.target(name, "categories, not numbers"))
            }
        }
    }

    /// The distinct values of the column, sorted, and for each row which it is: what a
    /// classification learns.
    ///
    /// # Errors
    /// A value is missing, or the column is of numbers.
    pub fn classes(&self, name: &str) -> Result<(Vec<String>, Vec<i64>)> {
        let Column::Categories(cells) = self.column(name)? else {
            let what = "numbers; name it among the categories when reading";
            return Err(self.target(name, what));
        };
        let cells: Option<Vec<&String>> = cells.iter().map(Option::as_ref).collect();
        let cells = cells.ok_or_else(|| self.target(name, "a class is missing"))?;
        let mut levels: Vec<String> = cells.iter().map(|c| c.to_string()).collect();
        levels.sort_unstable();
        levels.dedup();
        let code = |c: &&String| levels.binary_search(c).unwrap_or_default() as i64;
        let codes = cells.iter().map(code).collect();
        Ok((levels, codes))
    }

    fn target(&self, name: &str, what: &str) -> Error {
        Error::file(&self.path, format!("column `{name}`: {what}"))
    }
}

/// The bytes of a file whose rows can all be split into cells, its lines ended by line
/// feeds.
fn whole(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = files::read(path).map_err(|e| Error::io(path, e))?;
    let odd = files::foreign(&bytes).or_else(|| files::utf16(&bytes));
    if let Some(what) = odd {
        return Err(Error::file(path, what));
    }
    if bytes.starts_with(files::BOM) {
        bytes.drain(..files::BOM.len());
    }
    let ends = Ends::find(&mut bytes.as_slice(), true);
    let ends = ends.map_err(|e| Error::io(path, e))?;
    let (mut rest, mut row, mut line) = (bytes.as_slice(), Vec::new(), 1);
    loop {
        row.clear();
        let read = ends.read(&mut rest, &mut row).map_err(|e| Error::io(path, e))?;
        if let Some(what) = ends.wrong(&row) {
            return Err(Error::row(path, line, what));
        }
        match read {
            _ if row.is_empty() => break,
            Some(lines) => line += lines,
            None => return Err(Error::row(path, line, too_long(&row))),
        }
    }
    if ends.of_old_macs() {
        bytes.iter_mut().filter(|b| **b == b'\r').for_each(|b| *b = b'\n');
    }
    Ok(bytes)
}

/// The line of a record that begins at `at`, or after the empty lines there.
fn line(bytes: &[u8], at: &csv::Position) -> usize {
    let rest = bytes.get(at.byte() as usize..).unwrap_or_default();
    let empty = rest.iter().take_while(|b| [b'\n', b'\r'].contains(b));
    at.line() as usize + empty.filter(|b| **b == b'\n').count()
}

fn no_column(name: &str, names: &[String]) -> String {
    format!("no column `{name}`; there are {}", some(names))
}

fn present(cell: &str) -> Option<String> {
    let known = ["", "na", "n/a", "#n/a", "nan", "null", "none", "?"];
    let missing = known.contains(&cell.to_ascii_lowercase().as_str());
    (!missing).then(|| cell.to_string())
}
