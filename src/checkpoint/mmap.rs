//! One safetensors file, mapped into memory.
#![allow(unsafe_code)] // one of the rooms for it: memory mapping
use super::kind_of;
use crate::{Error, Result};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use std::path::{Path, PathBuf};
use tch::Tensor;

pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    pub(super) header: Metadata,
    map: Mmap,
    data_start: usize,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = crate::files::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if len < 8 {
            let what = format!(
                "{len} bytes long, which is no safetensors file (the first 8 bytes \
                 give the header's length); fetch it again"
            );
            return Err(Error::file(path, what));
        }
        // SAFETY: the map is read-only. Should another process truncate the file
        // while we read it, the kernel ends us with SIGBUS; memory stays sound.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        if map.starts_with(b"version https://git-lfs") {
            let what = "a Git LFS pointer, not the weights themselves; run `git lfs \
                        pull` in its folder";
            return Err(Error::file(path, what));
        }
        let (header_len, header) =
            SafeTensors::read_metadata(&map).map_err(|e| {
                use safetensors::SafeTensorError as E;
                let fix = match e {
                    E::MetadataIncompleteBuffer | E::InvalidHeaderLength => {
                        "; it looks truncated, fetch it again"
                    }
                    _ => "; it is damaged or no safetensors file",
                };
                Error::file(path, format!("{e}{fix}"))
            })?;
        for (name, info) in header.tensors() {
            // The format's own check lets sizes pass that come to nothing times a 0.
            let sizes = info.shape.iter().filter(|n| **n > 0);
            let product =
                |all: i64, n: &usize| all.checked_mul(i64::try_from(*n).ok()?);
            if sizes.copied().try_fold(1, |all, n| product(all, &n)).is_none() {
                let what = format!(
                    "shape {:?}, which is too large for any tensor; the file is damaged",
                    info.shape
                );
                return Err(Error::tensor(path, name, what));
            }
        }
        Ok(Self { path: path.into(), header, map, data_start: 8 + header_len })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let none = || Error::tensor(&self.path, name, "not in this file");
        self.header.info(name).ok_or_else(none)
    }

    pub(super) fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.info(name)?.shape.iter().map(|&n| n as i64).collect())
    }

    /// Whether two tensors are the same numbers in the same kind.
    pub(super) fn same(&self, name: &str, other: (&Self, &str)) -> Result<bool> {
        let (a, b) = (self.info(name)?, other.0.info(other.1)?);
        let same = a.dtype == b.dtype
            && a.shape == b.shape
            && self.raw(name)? == other.0.raw(other.1)?;
        self.forget(name)?;
        other.0.forget(other.1)?;
        Ok(same)
    }

    /// All that stands before the data.
    pub(super) fn head(&self) -> &[u8] {
        &self.map[..self.data_start]
    }

    /// The names in the order in which the data lie.
    pub(super) fn in_order(&self) -> Vec<String> {
        let mut all: Vec<_> = self.header.tensors().into_iter().collect();
        all.sort_by_key(|(_, info)| info.data_offsets);
        all.into_iter().map(|(name, _)| name).collect()
    }

    // ANCHOR: raw
    /// One tensor's bytes.
    pub(super) fn raw(&self, name: &str) -> Result<&[u8]> {
        let (begin, end) = self.info(name)?.data_offsets;
        Ok(&self.map[self.data_start + begin..self.data_start + end])
    }
    // ANCHOR_END: raw

    /// Gives the pages of a tensor back, so that resident memory does not grow with
    /// the file.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        let (begin, end) = self.info(name)?.data_offsets;
        // SAFETY: read-only and backed by the file, so the pages come back unchanged
        // if touched again. A refusal costs memory, nothing else.
        let _ = unsafe {
            let advice = UncheckedAdvice::DontNeed;
            let begin_at = self.data_start + begin;
            self.map.unchecked_advise_range(advice, begin_at, end - begin)
        };
        Ok(())
    }

    /// A copy of one tensor, in the file's own kind; see [`MappedFile::forget`].
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            let dtype = info.dtype;
            let what = format!("dtype {dtype:?}, which libtorch cannot hold");
            Error::tensor(&self.path, name, what)
        })?;
        let data = self.raw(name)?;
        let copy = Tensor::f_from_data_size(data, &self.shape(name)?, kind)?;
        self.forget(name)?;
        Ok(copy)
    }

    /// Sums of the words, and of these sums (Fletcher): as fast as memory, and changed
    /// by any one error and by any two words that have changed places.
    pub(super) fn checksum(&self, name: &str) -> Result<u128> {
        let data = self.raw(name)?;
        let (words, rest) = data.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let (mut sum, mut of_sums) = (data.len() as u64, 0u64);
        for word in words.iter().chain([&last]) {
            sum = sum.wrapping_add(u64::from_le_bytes(*word));
            of_sums = of_sums.wrapping_add(sum);
        }
        self.forget(name)?;
        Ok(u128::from(sum) << 64 | u128::from(of_sums))
    }
}

/// While this lives, memory of a megabyte and more that is freed goes back to the
/// system at once. Else the allocator keeps the hole that a freed weight leaves, puts
/// something small into it, and has no room for the next weight: reading a model then
/// takes up to as much again as its files.
pub struct PromptFrees(());

impl PromptFrees {
    /// From now on.
    #[allow(clippy::new_without_default)] // it does something
    pub fn new() -> Self {
        allocator(MMAP_THRESHOLD, 1 << 20);
        Self(())
    }
}

impl Drop for PromptFrees {
    /// To where glibc's own thresholds go after the first large tensor is freed.
    fn drop(&mut self) {
        allocator(MMAP_THRESHOLD, 32 << 20);
        allocator(TRIM_THRESHOLD, 64 << 20);
    }
}

// From malloc.h.
const TRIM_THRESHOLD: i32 = -1;
const MMAP_THRESHOLD: i32 = -3;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn allocator(key: i32, value: i32) {
    unsafe extern "C" {
        fn mallopt(key: i32, value: i32) -> i32;
    }
    // SAFETY: glibc's own, and safe to call at any time from any thread.
    let _ = unsafe { mallopt(key, value) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn allocator(_: i32, _: i32) {}
