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
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read, but what it says is wrong.
    #[error("{}: {what}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was found, what was expected, and the fix.
        what: String,
    },
    /// One row of a data file is wrong.
    #[error("{}:{line}: {what}", path.display())]
    Row {
        /// The data file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The field, what was found in it, and the fix.
        what: String,
    },
    /// One tensor of a checkpoint or adapter is wrong.
    #[error("{}: tensor `{tensor}`: {what}", path.display())]
    Tensor {
        /// The file (or folder, where a tensor is missing from all files).
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What was found, what was expected, and the fix.
        what: String,
    },
    /// A flag, configuration key or argument has a value that cannot work.
    #[error("{name}: {what}")]
    Setting {
        /// The flag or key, as the user writes it.
        name: String,
        /// What was found, what was expected, and the fix.
        what: String,
    },
    /// A custom autograd function failed, in its forward or its backward half.
    #[error("autograd: {0}")]
    Autograd(String),
    /// The loss or a gradient stopped being a finite number.
    #[error("{0}")]
    NonFinite(String),
    /// A device's memory ran out.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// libtorch refused an operation. Only the first line of its message is kept.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] tch::TchError),
}

fn first_line(e: &tch::TchError) -> String {
    let text = match e {
        tch::TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or("no message").to_string()
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
