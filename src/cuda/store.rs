//! Compiled kernels on the disk: `$XDG_CACHE_HOME/downhill/kernels`, or below
//! `~/.cache`. A name holds a hash of all that the code depends on, a file begins with
//! a hash of itself: what is old is never asked for, and what is damaged is made anew.
use crate::checkpoint::atomic;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where the cache lies, if this user has a home.
pub(super) fn folder() -> Option<PathBuf> {
    let named =
        |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    // An XDG folder that is not absolute is to be ignored.
    let cache = named("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let cache = cache.or_else(|| Some(named("HOME")?.join(".cache")))?;
    Some(cache.join("downhill/kernels"))
}

/// The code called `name` that depends on `parts`: from `folder`, or made by `make` and
/// left there for the next process. A folder that cannot be written to is not an error.
///
/// # Errors
/// What `make` returns.
pub fn kept<E>(
    folder: Option<&Path>,
    name: &str,
    parts: &[&str],
    make: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let key = hash(parts.iter().flat_map(|p| [p.as_bytes(), b"\0"]));
    let file = folder.map(|f| f.join(format!("{name}-{key:032x}.cubin")));
    if let Some(code) = file.as_deref().and_then(read) {
        return Ok(code);
    }
    let code = make()?;
    if let Some(file) = &file {
        let sum = hash([&code[..]]).to_le_bytes();
        let parent = file.parent().unwrap_or(Path::new("."));
        let _ = fs::create_dir_all(parent);
        let _ = atomic::bytes(file, &[&sum[..], &code].concat());
    }
    Ok(code)
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (sum, code) = bytes.split_first_chunk::<16>()?;
    (hash([code]).to_le_bytes() == *sum).then(|| code.to_vec())
}

/// FNV-1a, 128 bits.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u128 {
    let prime = (1 << 88) + 0x13b;
    let start = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    parts.into_iter().flatten().fold(start, |hash: u128, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(prime)
    })
}
