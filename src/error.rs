//! The one error type. Each message names the file, line, tensor or flag, says what
//! was found, what was expected, and how to mend it.
use std::path::{Path, PathBuf};

/// What the library returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, in words for the person who has to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing failed in the operating system.
    #[error("{}", plain(&format!("{}: {source}", path.display())))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read, but what it says is wrong.
    #[error("{}", plain(&format!("{}: {what}", path.display())))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, and the fix.
        what: String,
    },
    /// One row of a data file is wrong.
    #[error("{}", plain(&format!("{}:{line}: {what}", path.display())))]
    Row {
        /// The data file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The field, what was found in it, and the fix.
        what: String,
    },
    /// One tensor of a checkpoint or adapter is wrong.
    #[error("{}", plain(&format!("{}: tensor `{tensor}`: {what}", path.display())))]
    Tensor {
        /// The file (or folder, where a tensor is missing from all files).
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What was found, what was expected, and the fix.
        what: String,
    },
    /// A flag, configuration key or argument has a value that cannot work.
    #[error("{}", plain(&format!("{name}: {what}")))]
    Setting {
        /// The flag or key, as the user writes it.
        name: String,
        /// What was found, what was expected, and the fix.
        what: String,
    },
    /// A custom autograd function failed, in its forward or its backward half.
    #[error("autograd: {}", plain(.0))]
    Autograd(String),
    /// The loss or a gradient stopped being a finite number.
    #[error("{}", plain(.0))]
    NonFinite(String),
    /// A device's memory ran out.
    #[error("out of memory: {}", plain(.0))]
    OutOfMemory(String),
    /// libtorch refused an operation. Only the first line of its message is kept.
    #[error("libtorch: {}", plain(&first_line(.0)))]
    Torch(#[from] tch::TchError),
}

fn first_line(e: &tch::TchError) -> String {
    let text = match e {
        tch::TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or("no message").to_string()
}

/// Characters at the beginning of a message and at its end that are always shown: what
/// a file says may be of any length.
const SHOWN: (usize, usize) = (1500, 500);

/// A message that can be shown whatever a file says in it: on one line, without
/// characters that a terminal obeys (see [`visible`]), and where it is long, without
/// its middle.
pub fn plain(text: &str) -> String {
    let piece = |c| match c {
        '\n' => "\\n".to_string(),
        c => written(c),
    };
    let mut rest = text.chars();
    let first = up_to(SHOWN.0, &mut rest.by_ref().map(piece)).concat();
    let mut last = up_to(SHOWN.1, &mut rest.by_ref().rev().map(piece));
    last.reverse();
    let last = last.concat();
    match rest.count() {
        0 => first + &last,
        n => format!("{first} [... {n} characters ...] {last}"),
    }
}

/// The next pieces, of so many characters together or hardly more.
fn up_to(n: usize, pieces: &mut dyn Iterator<Item = String>) -> Vec<String> {
    let mut taken = Vec::new();
    let mut room = n;
    while room > 0
        && let Some(piece) = pieces.next()
    {
        room = room.saturating_sub(piece.chars().count());
        taken.push(piece);
    }
    taken
}

/// A text of somebody else's for a terminal: control characters and those that turn the
/// direction of writing are written out, such as `\u{1b}`. Line ends and tabs stay.
pub fn visible(text: &str) -> String {
    let seen = |c| if matches!(c, '\n' | '\t') { c.into() } else { written(c) };
    text.chars().map(seen).collect()
}

fn written(c: char) -> String {
    let turns = matches!(c,
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    match c.is_control() || turns {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    }
}

impl Error {
    /// An I/O error with the path that it concerns.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }
    /// A wrong file.
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().into(), what: what.into() }
    }
    /// A wrong row.
    pub fn row(
        path: impl AsRef<Path>,
        line: usize,
        what: impl Into<String>,
    ) -> Self {
        Self::Row { path: path.as_ref().into(), line, what: what.into() }
    }
    /// A wrong tensor.
    pub fn tensor(
        path: impl AsRef<Path>,
        tensor: impl Into<String>,
        what: impl Into<String>,
    ) -> Self {
        let (path, tensor) = (path.as_ref().into(), tensor.into());
        Self::Tensor { path, tensor, what: what.into() }
    }
    /// A wrong flag or key.
    pub fn setting(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), what: what.into() }
    }
}
