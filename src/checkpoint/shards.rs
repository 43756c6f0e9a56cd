//! A checkpoint folder: one safetensors file, or several by an index.
use super::kind_of;
use super::mmap::MappedFile;
use crate::files::{INDEX as LONGEST, read_small};
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use tch::{Kind, Tensor};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint folder, by name.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<MappedFile>,
    /// Tensor name to the number of its file.
    place: BTreeMap<String, usize>,
}

/// The command that makes a folder `OUT` with safetensors of a pickle checkpoint.
/// (`auto`: transformers would make f32 of 16 bits. The tokenizer's files are copied,
/// since versions 5 of transformers write some of DeepSeek's wrongly.)
fn from_pickle(dir: &str) -> String {
    format!(
        "python -c \"from transformers import AutoModelForCausalLM as M; \
         M.from_pretrained('{dir}', torch_dtype='auto').save_pretrained('OUT')\" && \
         cp '{dir}'/tokenizer* OUT"
    )
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json`
    /// names. Only headers are read.
    ///
    /// # Errors
    /// No checkpoint in `dir`; only a pickle (`.bin`) one; an index that is no JSON,
    /// names a file that is absent or outside the folder, or disagrees with a shard;
    /// a damaged or truncated file.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            let what = "no such folder; give a folder with config.json and \
                        model.safetensors";
            return Err(Error::file(dir, what));
        }
        if dir.join(SINGLE).exists() {
            let file = MappedFile::open(&dir.join(SINGLE))?;
            let names = file.header.tensors().into_keys();
            let place = names.map(|name| (name, 0)).collect();
            return Ok(Self { dir: dir.into(), files: vec![file], place });
        }
        if dir.join(INDEX).exists() {
            return Self::open_sharded(dir);
        }
        for name in [SINGLE, INDEX] {
            if dir.join(name).is_symlink() {
                let what = "a link to nothing; fetch the file that it names again";
                return Err(Error::file(dir.join(name), what));
            }
        }
        let pickled = std::fs::read_dir(dir)
            .map_err(|e| Error::io(dir, e))?
            .flatten()
            .find(|f| f.path().extension().is_some_and(|e| e == "bin"));
        Err(Error::file(
            dir,
            match pickled {
                Some(f) => format!(
                    "only a pickle checkpoint ({}), and to read one executes the code \
                     in it. If you trust it, convert it with Python: {}",
                    f.file_name().to_string_lossy(),
                    from_pickle(&dir.display().to_string())
                ),
                None => format!("neither {SINGLE} nor {INDEX} in this folder"),
            },
        ))
    }

    fn open_sharded(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        let text = read_small(&path, LONGEST)?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| {
            let what = format!(
                "not a checkpoint index: {e}; expected an object \
                                with `weight_map`: tensor name to file name"
            );
            Error::file(&path, what)
        })?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let names: Vec<&String> = names.into_iter().collect();
        let mut files = Vec::with_capacity(names.len());
        for &name in &names {
            let mut parts = Path::new(name).components();
            let plain = matches!(parts.next(), Some(Component::Normal(_)))
                && parts.next().is_none();
            if !plain {
                let what = format!(
                    "weight_map names `{name}`; a shard must lie in the folder \
                     itself, so only a plain file name is accepted"
                );
                return Err(Error::file(&path, what));
            }
            let shard = dir.join(name);
            if !shard.is_file() {
                let what = format!(
                    "names the shard `{name}`, which is absent from \
                                    the folder; fetch it"
                );
                return Err(Error::file(&path, what));
            }
            files.push(MappedFile::open(&shard)?);
        }
        let mut place = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            let i = names.binary_search(&file).unwrap_or(0);
            if files[i].header.info(tensor).is_none() {
                let what = format!("{INDEX} places it in `{file}`, which lacks it");
                return Err(Error::tensor(&path, tensor, what));
            }
            place.insert(tensor.clone(), i);
        }
        for file in &files {
            let mut names = file.header.tensors().into_keys();
            if let Some(tensor) = names.find(|t| !place.contains_key(t)) {
                let what = format!("in the file, but not in {INDEX}");
                return Err(Error::tensor(&file.path, tensor, what));
            }
        }
        Ok(Self { dir: dir.into(), files, place })
    }

    pub(super) fn mapped(&self) -> &[MappedFile] {
        &self.files
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// The file that holds a tensor; the folder if none does.
    pub fn file_of(&self, name: &str) -> &Path {
        self.place.get(name).map_or(&self.dir, |&i| &self.files[i].path)
    }

    pub(super) fn file(&self, name: &str) -> Result<&MappedFile> {
        let i = self.place.get(name).ok_or_else(|| {
            Error::tensor(&self.dir, name, "missing from the checkpoint")
        })?;
        Ok(&self.files[*i])
    }

    /// Shape of one tensor, from the header.
    pub fn shape(&self, name: &str) -> Result<Vec<i64>> {
        self.file(name)?.shape(name)
    }

    /// Kind of one tensor, from the header; none if there is no such tensor, or if
    /// libtorch has no such kind.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        let info = self.file(name).ok()?.header.info(name)?;
        kind_of(info.dtype)
    }

    /// Whether two tensors hold the same numbers, in whatever kinds.
    ///
    /// # Errors
    /// Either is missing or cannot be read.
    pub fn same(&self, one: &str, other: &str) -> Result<bool> {
        if self.file(one)?.same(one, (self.file(other)?, other))? {
            return Ok(true);
        }
        if self.shape(one)? != self.shape(other)?
            || self.kind(one) == self.kind(other)
        {
            return Ok(false);
        }
        let [a, b] = [self.tensor(one)?, self.tensor(other)?];
        Ok(a.f_to_kind(Kind::Float)?.f_equal(&b.f_to_kind(Kind::Float)?)?)
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// A number that any damage to the tensor's bytes changes, all but surely.
    pub fn checksum(&self, name: &str) -> Result<u128> {
        self.file(name)?.checksum(name)
    }

    /// Bytes of all tensors, from the headers.
    pub fn bytes(&self) -> u64 {
        let tensors = self.files.iter().map(|f| f.header.data_len() as u64);
        tensors.sum()
    }

    /// One tensor in host memory, in the kind that the file has.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.file(name)?.tensor(name)
    }
}
