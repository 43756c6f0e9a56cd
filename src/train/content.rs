//! What a run is made of: its rows, the base model's weights, the tokenizer.
//!
//! They are told apart by what they hold, not by where they lie, so that a project can
//! be moved, and another file under the same name is noticed.
use super::resume::ways;
use super::{Rows, Settings};
use crate::checkpoint::Checkpoint;
use crate::data::{Fingerprint, Labels};
use crate::files::BOM;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Kind;
use twox_hash::XxHash3_128;

/// Fingerprints of all that a run reads, as `trainer_state.json` keeps them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Content {
    /// Rows to learn from, those kept for measuring among them.
    train_rows: Option<Fingerprint>,
    /// Rows of an eval file.
    eval_rows: Option<Fingerprint>,
    /// Names of the classes, in the order of their numbers.
    labels: Option<Vec<String>>,
    /// As of [`Checkpoint::fingerprint`].
    weights: Option<String>,
    /// By name: the other files of the base model that change what is learned.
    files: BTreeMap<String, String>,
    /// The adapter that the run began from.
    init_adapter: Option<String>,
    /// The kind that `--compute-dtype` came to.
    computing: Option<String>,
}

/// Files of a checkpoint folder, besides weights, that change what is learned.
const FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

impl Content {
    /// What a run with these settings is made of.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn of(
        settings: &Settings,
        (train, eval): (&Rows, Option<&Rows>),
        kind: Kind,
    ) -> Result<Self> {
        let model = &settings.model;
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = model.join(name);
            if path.exists()
                && let Some(hash) = file(&path)?
            {
                files.insert(name.to_string(), hash);
            }
        }
        let labels = match train.labels() {
            Some(Labels::Classes(names)) => Some(names.clone()),
            _ => None,
        };
        let from = settings.init_adapter.as_deref();
        Ok(Self {
            train_rows: Some(train.fingerprint()?),
            // Of a split they are among the rows to learn from.
            eval_rows: match &settings.eval_file {
                Some(_) => eval.map(Rows::fingerprint).transpose()?,
                None => None,
            },
            labels,
            weights: Some(Checkpoint::open(model)?.fingerprint()?),
            files,
            // Read no more once a run goes on from a checkpoint, so it may be gone.
            init_adapter: from.and_then(|dir| adapter(dir).ok()),
            computing: Some(named(kind).into()),
        })
    }

    /// Whether anything is known: not so of runs that an earlier version saved.
    pub(super) fn is_known(&self) -> bool {
        self.train_rows.is_some()
    }

    /// Refuses, by flag, what is not what the run saved in `dir` was begun with.
    pub(super) fn same(
        &self,
        begun: &Self,
        settings: &Settings,
        (dir, recorded): (&Path, &Value),
    ) -> Result<()> {
        if let (Some(now), Some(then)) = (&self.train_rows, &begun.train_rows)
            && now != then
        {
            return Err(other_rows(settings, (now, then), dir));
        }
        let of_run = format!("the run in {} was begun", dir.display());
        let refuse = |flag: &str, what: String| {
            Err(Error::setting(flag, format!("{what}; {}", ways(dir))))
        };
        if let (Some(now), Some(then)) = (&self.labels, &begun.labels)
            && now != then
        {
            let what =
                format!("its classes are {now:?}, and {of_run} with {then:?}");
            return refuse("--train-file", what);
        }
        let model = settings.model.display();
        if let (Some(now), Some(then)) = (&self.weights, &begun.weights)
            && now != then
        {
            let what =
                format!("the weights in {model} are not those that {of_run} with");
            return refuse("--model", what);
        }
        if begun.is_known()
            && let Some(name) =
                FILES.iter().find(|f| self.files.get(**f) != begun.files.get(**f))
        {
            let what = match self.files.get(*name) {
                Some(_) => {
                    format!("{name} in {model} is not the one that {of_run} with")
                }
                None => format!("{model} has no {name}, with which {of_run}"),
            };
            return refuse("--model", what);
        }
        match (&self.computing, &begun.computing) {
            (Some(now), Some(then)) if now != then => {
                let what = format!(
                    "it comes to {now} here, and {of_run} in {then}: say --compute-dtype \
                     {then}"
                );
                return Err(Error::setting("--compute-dtype", what));
            }
            // Nothing better is known.
            (_, None) => {
                let now = serde_json::to_value(settings.compute_dtype);
                let (now, then) =
                    (now.unwrap_or_default(), &recorded["compute_dtype"]);
                if !then.is_null() && now != *then {
                    let what = format!("{now}, and {of_run} with {then}");
                    return refuse("--compute-dtype", what);
                }
            }
            _ => {}
        }
        self.same_start(begun, settings, (dir, recorded))
    }

    /// Refuses an initial adapter that the run did not begin from: it would be ignored.
    fn same_start(
        &self,
        begun: &Self,
        settings: &Settings,
        (dir, recorded): (&Path, &Value),
    ) -> Result<()> {
        let Some(start) = &settings.init_adapter else { return Ok(()) };
        let Some(before) = recorded.get("init_adapter") else { return Ok(()) };
        let same = match (&self.init_adapter, &begun.init_adapter) {
            (Some(now), Some(then)) => now == then,
            _ => before.as_str().map(Path::new) == Some(start),
        };
        if same {
            return Ok(());
        }
        let (start, dir) = (start.display(), dir.display());
        let what = format!(
            "{start} is not what the run in {dir} began from ({before}), and a run that \
             goes on reads no initial adapter; leave one of --resume and --init-adapter \
             out"
        );
        Err(Error::setting("--init-adapter", what))
    }

    /// Whether the rows of the eval file are others than `begun` had.
    pub(super) fn measures_others(&self, begun: &Self) -> bool {
        begun.is_known() && self.eval_rows != begun.eval_rows
    }

    /// An error about rows, unless these are not even the rows that the run began with:
    /// then that.
    pub(super) fn instead(
        &self,
        settings: &Settings,
        dir: &Path,
        e: Error,
    ) -> Error {
        let now = Fingerprint::of(&settings.train_file, u64::MAX).ok();
        match (now, &self.train_rows) {
            (Some(now), Some(then)) if now != *then => {
                other_rows(settings, (&now, then), dir)
            }
            _ => e,
        }
    }
}

/// Says that the rows have changed, and how.
fn other_rows(
    settings: &Settings,
    (now, then): (&Fingerprint, &Fingerprint),
    dir: &Path,
) -> Error {
    let file = &settings.train_file;
    let (n, before) = (now.rows, then.rows);
    let begun = format!("the run in {} was begun with", dir.display());
    let longer =
        n > before && Fingerprint::of(file, before).is_ok_and(|f| f == *then);
    let what = match longer {
        true => format!(
            "{} rows were added to the {before} that {begun}; the order of all rows and \
             the number of steps depend on them",
            n - before
        ),
        false if n == before => format!("not the {before} rows that {begun}"),
        false => format!("{n} rows, and not the {before} that {begun}"),
    };
    let what = format!("{}: {what}; {}", file.display(), ways(dir));
    Error::setting("--train-file", what)
}

/// As `--compute-dtype` names it.
fn named(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", XxHash3_128::oneshot(bytes))
}

/// An adapter's tensors and config.
fn adapter(dir: &Path) -> Result<String> {
    let read = |name: &str| {
        let path = dir.join(name);
        crate::files::read(&path).map_err(|e| Error::io(&path, e))
    };
    let both = [read("adapter_config.json")?, read("adapter_model.safetensors")?];
    Ok(hash(&both.concat()))
}

/// A file's bytes; of JSON files that say how a model is used as well, the keys that
/// matter, in whatever order. None where there is none of these.
fn file(path: &Path) -> Result<Option<String>> {
    let mut bytes = crate::files::read(path).map_err(|e| Error::io(path, e))?;
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    let matters: fn(&str) -> bool = match path.file_name().and_then(|n| n.to_str()) {
        Some("config.json") => |key| {
            !matches!(key, "transformers_version" | "_name_or_path" | "use_cache")
        },
        Some("generation_config.json") => |key| key.ends_with("_token_id"),
        _ => return Ok(Some(hash(&bytes))),
    };
    let json: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::file(path, format!("not a JSON object: {e}")))?;
    let mut kept: Vec<_> = json.iter().filter(|(key, _)| matters(key)).collect();
    kept.sort_by_key(|(key, _)| *key);
    let lines = kept.iter().map(|(key, value)| format!("{key}: {value}\n"));
    let all: String = lines.collect();
    Ok((!all.is_empty()).then(|| hash(all.as_bytes())))
}
