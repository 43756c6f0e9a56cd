//! The 4-bit form of a checkpoint kept on disk, so that the next start reads a third
//! to a half of the bytes and quantizes nothing.
//!
//! A kept form is what [`super::quantize`] writes, without tokenizer, and a
//! `cache.json` that says of which files and settings it was made, and a checksum of
//! every tensor. Where anything differs it is made again; it is never an error.
use super::config::read_config;
use super::decoder::Decoder;
use super::load::{FromDisk, LoadOptions, load};
use super::quantization::{Bitsandbytes, config_json};
use super::weights::fnv1a;
use crate::checkpoint::{Checkpoint, Writer, atomic, fresh};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const FILE: &str = "cache.json";
const VERSION: u32 = 2;
/// Bytes of one file of a kept form.
const SHARD: u64 = 5_000_000_000;

/// As [`load`], by way of a form kept in the folder `cache`, if one is given: read if
/// it is there and fits, made if not. `say` is told which.
///
/// # Errors
/// As [`load`].
pub fn load_cached(
    dir: &Path,
    cache: Option<&Path>,
    options: &LoadOptions,
    say: &mut dyn FnMut(&str),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Decoder> {
    let Some(cache) = cache else { return load(dir, options, progress) };
    let config = read_config(dir)?;
    let quantized = Bitsandbytes::of(&config_json(dir)?).is_ok_and(|q| q.is_some());
    if !options.quantize || quantized {
        return load(dir, options, progress); // nothing to spare
    }
    let source = Checkpoint::open(dir)?;
    let made_of = made_of(dir, &source, options)?;
    let place = place(cache, dir, &made_of);
    let at = place.display().to_string();
    match kept(&place, &made_of) {
        Ok(Some(checkpoint)) => {
            say(&format!("{at}: the 4-bit form of an earlier start"));
            return FromDisk::new(&checkpoint, options, dir, progress)?
                .decoder(config);
        }
        Ok(None) => {}
        Err(why) => say(&format!("{at}: made again: {why}")),
    }
    let mut model = None;
    let written = fs::create_dir_all(cache).map_err(|e| Error::io(cache, e));
    let written = written.and_then(|()| {
        atomic::sweep(cache);
        atomic::dir(&place, |partial| {
            let _held = fresh::lock(partial)?;
            let mut disk = FromDisk::new(&source, options, dir, progress)?;
            disk.copy = Some(Writer::new(partial, SHARD, source.names()));
            model = Some(disk.decoder(config));
            if let Some(e) = disk.failed.take() {
                return Err(e);
            }
            if let (Some(Ok(_)), Some(copy)) = (&model, disk.copy.take()) {
                copy.finish()?;
                return describe(partial, &made_of);
            }
            Err(Error::file(partial, "nothing was read"))
        })
    });
    let model = match model {
        Some(model) => model?,
        None => load(dir, options, progress)?,
    };
    match written {
        Ok(()) => say(&format!("{at}: the 4-bit form is kept for the next start")),
        Err(e) => say(&format!("the 4-bit form is not kept: {e}")),
    }
    Ok(model)
}

/// Everything that the kept form depends on.
fn made_of(dir: &Path, source: &Checkpoint, options: &LoadOptions) -> Result<Value> {
    let mut files = Map::new();
    let config = dir.join("config.json");
    for path in source.files().chain([config.as_path()]) {
        let about = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let modified = about.modified().map_err(|e| Error::io(path, e))?;
        let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let about = json!({
            "bytes": about.len(),
            "modified": format!("{}.{:09}", modified.as_secs(), modified.subsec_nanos()),
        });
        files.insert(name.into_owned(), about);
    }
    let folder = dir.canonicalize().map_err(|e| Error::io(dir, e))?;
    Ok(json!({
        "version": VERSION,
        "folder": folder.to_string_lossy(),
        "settings": {
            "blocksize": options.blocksize,
            "double_quant": options.double_quant,
            "kind": format!("{:?}", options.kind),
            // The mean of the scales is the device's, to the last bit.
            "on": if options.device.is_cuda() { "cuda" } else { "cpu" },
        },
        "files": files,
    }))
}

/// One folder per checkpoint folder and settings.
fn place(cache: &Path, dir: &Path, made_of: &Value) -> PathBuf {
    let key = format!("{}{}", made_of["folder"], made_of["settings"]);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    cache.join(format!("{name}-{:08x}", fnv1a(&key)))
}

/// The form kept at `place`: `None` if there is none, or why it cannot be used.
fn kept(
    place: &Path,
    made_of: &Value,
) -> std::result::Result<Option<Checkpoint>, String> {
    if !place.exists() {
        return Ok(None);
    }
    let text = fs::read(place.join(FILE)).map_err(|e| format!("{FILE}: {e}"))?;
    let about: Value =
        serde_json::from_slice(&text).map_err(|e| format!("{FILE}: {e}"))?;
    for key in ["version", "folder", "settings", "files"] {
        if about[key] != made_of[key] {
            return Err(format!("the checkpoint's {key} have changed"));
        }
    }
    let checkpoint = Checkpoint::open(place).map_err(|e| e.to_string())?;
    let expected = about["checksums"].as_object();
    let expected = expected.ok_or(format!("{FILE}: no checksums"))?;
    if !checkpoint.names().eq(sorted(expected)) {
        return Err("other tensors than were written".into());
    }
    for (name, sum) in expected {
        let found = checkpoint.checksum(name).map_err(|e| e.to_string())?;
        if *sum != hex(found) {
            return Err(format!("tensor `{name}` is damaged"));
        }
    }
    Ok(Some(checkpoint))
}

fn sorted(map: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let mut names: Vec<&str> = map.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.into_iter()
}

fn hex(sum: u128) -> String {
    format!("{sum:032x}")
}

/// Writes `cache.json` beside what has been written, which is read again for it.
fn describe(partial: &Path, made_of: &Value) -> Result<()> {
    let checkpoint = Checkpoint::open(partial)?;
    let sums = checkpoint
        .names()
        .map(|name| Ok((name.to_string(), hex(checkpoint.checksum(name)?).into())));
    let mut about = made_of.clone();
    about["checksums"] = Value::Object(sums.collect::<Result<Map<_, _>>>()?);
    atomic::bytes(&partial.join(FILE), about.to_string().as_bytes())
}
