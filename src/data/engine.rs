//! The engine that splits text, and the care that its file takes: regular expressions
//! may run for ever, and the engine panics where a file contradicts itself.
use super::{
    guarded::{Failure, brief, guarded},
    rows::RowResult,
};
use serde_json::Value;
use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer as Engine,
};

/// What lies in a tokenizer.json, for all clones of a tokenizer.
pub(super) struct Splitter {
    pub(super) engine: Arc<Engine>,
    /// The [`here`] that `engine` was made in, and the one of the last that was not.
    home: usize,
    away: Mutex<Option<(usize, Arc<Engine>)>>,
    /// How many texts were given up.
    late: AtomicU32,
    /// A text gets something put in front: a space, or `▁` for one.
    prefixes: bool,
}

/// Ids, and which bytes of the text each stands for.
pub(super) type Placed = (Vec<i64>, Vec<Range<usize>>);

impl Splitter {
    pub(super) fn new(engine: Engine) -> Self {
        let engine = Arc::new(engine);
        let copy = engine.clone();
        let prefixes = guarded(Duration::from_secs(10), move || prefixes(&copy));
        Self {
            engine,
            home: here(),
            away: Mutex::default(),
            late: AtomicU32::new(0),
            prefixes: prefixes == Ok(true),
        }
    }

    /// The ids of `text`, without a BOS.
    pub(super) fn ids(&self, text: &str) -> RowResult<Vec<i64>> {
        self.run(text, |engine, text| {
            let encoding = engine.encode_fast(text, false)?;
            Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
        })
    }

    /// The ids of `text`, without a BOS, and where each stands.
    pub(super) fn placed(&self, text: &str) -> RowResult<Placed> {
        self.run(text, |engine, text| {
            let encoding = engine.encode(text, false)?;
            let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
            let places = encoding.get_offsets().iter().map(|&(from, to)| from..to);
            Ok((ids, places.collect()))
        })
    }

    /// As [`Splitter::placed`], of a text that continues another: nothing is put in
    /// front. Found behind a character that no token takes together with the text.
    pub(super) fn placed_behind(&self, text: &str) -> RowResult<Placed> {
        if self.prefixes && !text.is_empty() {
            for before in ["\n", ".", "a", "0", "\u{1}"] {
                let (mut ids, mut places) =
                    self.placed(&format!("{before}{text}"))?;
                let edge = before.len();
                let Some(first) = places.iter().position(|at| at.start >= edge)
                else {
                    continue;
                };
                let (own, rest) = (&places[..first], &places[first..]);
                if first == 0
                    || own.iter().any(|at| at.end > edge)
                    || rest.iter().any(|at| at.start < edge)
                    || ids[..first] != self.ids(before)?
                {
                    continue;
                }
                ids.drain(..first);
                places.drain(..first);
                let back = |at: Range<usize>| at.start - edge..at.end - edge;
                return Ok((ids, places.into_iter().map(back).collect()));
            }
        }
        self.placed(text)
    }

    fn run<T: Send + 'static>(
        &self,
        text: &str,
        work: fn(&Engine, &str) -> tokenizers::Result<T>,
    ) -> RowResult<T> {
        let engine = self.here()?;
        let text = text.to_string();
        // Long rows take long; but a second text that runs away is not waited for as
        // long as the first.
        let patience = 10. / f64::from(1_u32 << self.late.load(Relaxed).min(7));
        let limit = Duration::from_secs_f64(patience + text.len() as f64 / 1e5);
        match guarded(limit, move || work(&engine, &text)) {
            Ok(made) => {
                made.map_err(|e| format!("cannot encode: {}", brief(&e.to_string())))
            }
            Err(Failure::Late) => {
                self.late.fetch_add(1, Relaxed);
                Err(format!(
                    "cannot be encoded within {limit:.1?}: an expression of \
                     tokenizer.json runs away on it"
                ))
            }
            Err(Failure::Panic(what)) => Err(format!(
                "cannot be encoded: tokenizer.json's own rules give up on it ({what})"
            )),
        }
    }

    /// The text of `ids`, special tokens left out or not.
    pub(super) fn decode(
        &self,
        ids: &[i64],
        skip_special: bool,
    ) -> RowResult<String> {
        let ids: Vec<u32> =
            ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        let engine = self.engine.clone();
        let limit = Duration::from_secs_f64(10. + ids.len() as f64 / 1e4);
        match guarded(limit, move || engine.decode(&ids, skip_special)) {
            Ok(made) => {
                made.map_err(|e| format!("cannot decode: {}", brief(&e.to_string())))
            }
            Err(failure) => Err(format!("cannot decode: its decoder: {failure:?}")),
        }
    }

    /// The engine, for what splits text: oniguruma compares addresses of its tables,
    /// and refuses an expression that another copy of it has compiled.
    fn here(&self) -> RowResult<Arc<Engine>> {
        if self.home == here() {
            return Ok(self.engine.clone());
        }
        let mut away = self.away.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((at, made)) = &*away
            && *at == here()
        {
            return Ok(made.clone());
        }
        let json = self.engine.to_string(false).map_err(|e| e.to_string())?;
        let made = Arc::new(engine(json.into_bytes())?);
        *away = Some((here(), made.clone()));
        Ok(made)
    }
}

/// Where this copy of the library lies: in a notebook each cell has its own.
fn here() -> usize {
    static HERE: u8 = 0;
    &raw const HERE as usize
}

/// Whether something is put in front of a text: the engine is asked, since several
/// parts of it can do that, each by several names.
fn prefixes(engine: &Engine) -> bool {
    let mut text = NormalizedString::from("a");
    if let Some(normalizer) = engine.get_normalizer()
        && normalizer.normalize(&mut text).is_err()
    {
        return false;
    }
    let mut split = PreTokenizedString::from(text);
    if let Some(pre) = engine.get_pre_tokenizer()
        && pre.pre_tokenize(&mut split).is_err()
    {
        return false;
    }
    let pieces = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
    pieces.iter().map(|(text, ..)| text.chars().count()).sum::<usize>() > 1
}

/// The engine of a tokenizer.json. It panics on some broken files: on many that are no
/// JSON, which is therefore asked first, and on merges that contradict the vocabulary.
pub(super) fn engine(json: Vec<u8>) -> Result<Engine, String> {
    let value: Value = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
    let growth = growth(&value["normalizer"]);
    if growth > 1e3 {
        return Err(format!(
            "its normalizer makes a text up to {growth:.0} times as long; expected at \
             most 1000 times"
        ));
    }
    drop(value);
    let limit = Duration::from_secs(15);
    match guarded(limit, move || Engine::from_bytes(json)) {
        Ok(engine) => engine.map_err(|e| brief(&e.to_string())),
        Err(Failure::Panic(_)) => {
            Err("it contradicts itself; fetch or save it again".into())
        }
        Err(Failure::Late) => Err(format!("it is not read within {limit:?}")),
    }
}

/// How many times as long a normalizer makes a text, at most.
fn growth(normalizer: &Value) -> f64 {
    let length = |v: &Value| v.as_str().map_or(0, str::len) as f64;
    match normalizer["type"].as_str() {
        Some("Sequence") => {
            let parts = normalizer["normalizers"].as_array();
            parts.into_iter().flatten().map(growth).product()
        }
        Some("Replace") => {
            let to = length(&normalizer["content"]);
            match &normalizer["pattern"] {
                pattern if pattern["String"].is_string() => {
                    (to / length(&pattern["String"]).max(1.)).max(1.)
                }
                // Every character may match, and so may what is between.
                _ => 1. + to,
            }
        }
        Some("Prepend") => 1. + length(&normalizer["prepend"]),
        _ => 1.,
    }
}
