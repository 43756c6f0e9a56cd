//! The user's files, opened so that nothing waits for ever, and nothing that is no text
//! is taken for text. What is wrong is told as the operating system tells it, so that a
//! caller adds the path.
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::path::Path;

/// The mark with which some editors begin a text in UTF-8.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// Bytes in a text that is read whole, at most: a tokenizer has some ten million.
const LONGEST: u64 = 512 << 20;

/// A file for reading. A folder, a pipe or a device is refused before it is opened:
/// opening a pipe waits for a writer, and some devices never end.
///
/// # Errors
/// So it is, or what the operating system says.
pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    match odd(fs::metadata(path)?.file_type()) {
        Some(what) => Err(io::Error::new(io::ErrorKind::InvalidInput, what)),
        None => File::open(path),
    }
}

/// The bytes of a file.
///
/// # Errors
/// As [`open`].
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of a text (JSON, TOML, a template), without the mark of UTF-8.
///
/// # Errors
/// As [`open`]; what is compressed or in UTF-16, by name; more than 512 MiB.
pub fn text(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("more than 512 MiB; is it the right file?"));
    }
    if let Some(what) = foreign(&bytes).or_else(|| utf16(&bytes)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    Ok(bytes)
}

/// As [`text`], checked to be UTF-8.
///
/// # Errors
/// As [`text`]; the first byte that is not UTF-8.
pub fn string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(text(path)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to() + 1;
        let what = format!("byte {at} is not UTF-8; save the file as UTF-8");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// The file as it is called where it is no file at all.
fn odd(kind: FileType) -> Option<&'static str> {
    if kind.is_dir() {
        return Some("a directory; expected a file");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a pipe; save what comes from it to a file first");
        }
        if kind.is_socket() {
            return Some("a socket; expected a file");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device; expected a file");
        }
    }
    None
}

/// A format that is no text, by the first bytes of a file, with the way out.
pub fn foreign(head: &[u8]) -> Option<String> {
    const KNOWN: [(&[u8], &str, &str); 10] = [
        (b"\x1f\x8b", "gzip", "unpack it first (gunzip -k)"),
        (b"\x28\xb5\x2f\xfd", "zstd", "unpack it first (unzstd)"),
        (b"\xfd7zXZ\0", "xz", "unpack it first (unxz -k)"),
        (b"BZh", "bzip2", "unpack it first (bunzip2 -k)"),
        (b"\x04\x22\x4d\x18", "lz4", "unpack it first (unlz4)"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it first (7z x)"),
        (
            b"PK\x03\x04",
            "zip (as are .xlsx and .npz)",
            "unpack it first (unzip), or save the table as CSV",
        ),
        (
            b"PAR1",
            "Parquet",
            "write its rows as JSON Lines first (in Python: pandas.read_parquet(file)\
             .to_json(\"rows.jsonl\", orient=\"records\", lines=True))",
        ),
        (
            b"ARROW1",
            "Arrow",
            "write its rows as JSON Lines first (in Python: \
             datasets.Dataset.from_file(file).to_json(\"rows.jsonl\"))",
        ),
        (
            b"version https://git-lfs",
            "a Git LFS pointer",
            "the file itself is fetched by `git lfs pull` in its folder",
        ),
    ];
    let (_, name, fix) = KNOWN.iter().find(|(magic, ..)| head.starts_with(magic))?;
    Some(match name.strip_prefix("a ") {
        Some(_) => format!("{name}, not the file: {fix}"),
        None => format!("in the format {name}, not text: {fix}"),
    })
}

/// Whether the first bytes of a file are those of a text in UTF-16 (or 32), and the way
/// out.
pub fn utf16(head: &[u8]) -> Option<String> {
    let marked = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    // Without a mark: every second byte of Latin text is zero.
    let plain =
        matches!(head, [0, a, 0, b, ..] | [a, 0, b, 0, ..] if *a != 0 && *b != 0);
    (marked || plain).then(|| "in UTF-16, not UTF-8; save the file as UTF-8".into())
}
