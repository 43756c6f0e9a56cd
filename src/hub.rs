//! Checkpoints by their names on the hub, such as `deepseek-ai/deepseek-coder-1.3b-base`:
//! from the cache that Python's huggingface_hub shares with us, or downloaded into it.
//!
//! Source of the layout: huggingface_hub, "Understand caching".
use crate::{Error, Result};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Where to look, and whether to ask the network.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The folder that holds `models--owner--name` folders.
    pub cache: PathBuf,
    /// Ask no network.
    pub offline: bool,
    /// Another hub than the usual one.
    pub endpoint: Option<String>,
    /// For checkpoints that ask for a login.
    pub token: Option<String>,
}

impl Hub {
    /// As huggingface_hub reads the environment: `HF_HUB_CACHE`, or `hub` in `HF_HOME`,
    /// or in `huggingface` in `XDG_CACHE_HOME` or `~/.cache`; `HF_HUB_OFFLINE`,
    /// `HF_ENDPOINT`, `HF_TOKEN`.
    pub fn from_env() -> Self {
        let var = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let home = || path("HOME").unwrap_or_default();
        let caches =
            || path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
        let hf_home =
            || path("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let on = |name| {
            let value = var(name).unwrap_or_default().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        Self {
            cache: cache.unwrap_or_else(|| hf_home().join("hub")),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            endpoint: var("HF_ENDPOINT"),
            token: var("HF_TOKEN"),
        }
    }

    /// The folder that `model` names: itself if it is one; or a hub name, `owner/name`
    /// or `owner/name@revision`, in the cache if all of it is there. Only what is not
    /// is downloaded: a copy in the cache is used without asking for a newer one.
    ///
    /// # Errors
    /// Neither a folder nor a name; not in the cache, and offline or not to be had: all
    /// say how to go on with a folder.
    pub fn resolve(
        &self,
        model: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<PathBuf> {
        if model.is_dir() {
            return Ok(model.into());
        }
        let text = model.to_string_lossy();
        let Some(id) = Id::parse(&text) else {
            let what = "no such folder, and no name on the hub (owner/name) either";
            return Err(wrong(format!("`{text}`: {what}")));
        };
        let lacks = match self.cached(&id) {
            Ok(dir) => return Ok(dir),
            Err(lacks) => lacks,
        };
        let by_hand = format!(
            "on a machine with a network, `hf download {} --local-dir DIR` (the command \
             of Python's huggingface_hub) makes a folder DIR; then give --model DIR",
            id.name
        );
        let cache = self.cache.display();
        if self.offline {
            return Err(wrong(format!(
                "`{text}` is not in {cache} ({lacks}), and HF_HUB_OFFLINE forbids the \
                 download; {by_hand}"
            )));
        }
        say(&format!("{text}: not in {cache} ({lacks}); downloading"));
        self.download(&id, &by_hand).map_err(|what| {
            wrong(format!("`{text}` could not be downloaded: {what}"))
        })?;
        self.cached(&id).map_err(|lacks| {
            wrong(format!("`{text}` was downloaded to {cache}, but {lacks}"))
        })
    }

    /// The snapshot of a complete checkpoint, or what is missing from it.
    fn cached(&self, id: &Id) -> std::result::Result<PathBuf, String> {
        let repo = self.cache.join(id.folder());
        if !repo.is_dir() {
            return Err(format!("no {}", id.folder()));
        }
        let reference = repo.join("refs").join(&id.revision);
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_string(),
            Err(_) => id.revision.clone(),
        };
        let dir = repo.join("snapshots").join(&commit);
        if commit.is_empty() || commit.contains(['/', '\\', '.']) || !dir.is_dir() {
            return Err(format!("no snapshot of revision `{}`", id.revision));
        }
        let lacks = |name: &str| Err(format!("{} has no {name}", dir.display()));
        if !dir.join("config.json").is_file() {
            return lacks("config.json");
        }
        let index = dir.join("model.safetensors.index.json");
        if dir.join("model.safetensors").is_file() {
            return Ok(dir);
        }
        let Ok(text) = crate::files::text(&index) else {
            return lacks("model.safetensors");
        };
        let index: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| format!("its index: {e}"))?;
        let shards = index["weight_map"].as_object().into_iter().flatten();
        let mut shards = shards.filter_map(|(_, file)| file.as_str());
        match shards.find(|file| !dir.join(file).is_file()) {
            Some(shard) => lacks(shard),
            None => Ok(dir),
        }
    }

    /// Everything that reading the checkpoint takes, with a progress bar for each file.
    /// A file that was cut off goes on where it stopped.
    fn download(&self, id: &Id, by_hand: &str) -> std::result::Result<(), String> {
        let mut builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_progress(true)
            .with_retries(3);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Some(token) = &self.token {
            builder = builder.with_token(Some(token.clone()));
        }
        let failed = |e: ApiError| format!("{}. {by_hand}", reason(&e));
        let api = builder.build().map_err(failed)?;
        let (name, revision) = (id.name.clone(), id.revision.clone());
        let repo: ApiRepo =
            api.repo(Repo::with_revision(name, RepoType::Model, revision));
        let files = repo.info().map_err(failed)?.siblings;
        let files: Vec<String> = files.into_iter().map(|f| f.rfilename).collect();
        if !files.iter().any(|f| wanted(f) && f.ends_with(".safetensors")) {
            let pickled = files.iter().any(|f| f.ends_with(".bin"));
            return Err(match pickled {
                true => format!(
                    "it has pickle files (.bin) only, and to read one executes the \
                     code in it. If you trust it, convert it with Python: python -c \
                     \"from transformers import AutoModelForCausalLM as M; \
                     M.from_pretrained('{}', torch_dtype='auto')\
                     .save_pretrained('DIR')\"; then put its tokenizer files there",
                    id.name
                ),
                false => "it has no safetensors files".into(),
            });
        }
        for file in files.iter().filter(|f| wanted(f)) {
            repo.get(file).map_err(|e| format!("{file}: {}", failed(e)))?;
        }
        Ok(())
    }
}

/// How others should call the checkpoint in `dir`: by its name on the hub if it lies in
/// a cache, else by the folder.
pub fn name_of(dir: &Path) -> String {
    let repo = dir.parent().filter(|up| up.ends_with("snapshots"));
    let repo = repo.and_then(Path::parent).and_then(Path::file_name);
    let repo = repo.map(|name| name.to_string_lossy().into_owned());
    let name = repo.as_deref().and_then(|name| name.strip_prefix("models--"));
    match name {
        Some(name) => name.replacen("--", "/", 1),
        None => dir.display().to_string(),
    }
}

/// Files at the top of a checkpoint that we read.
fn wanted(file: &str) -> bool {
    let weights = file.starts_with("model") && file.ends_with(".safetensors");
    let small = [".json", ".jinja", ".model", ".txt"];
    !file.contains('/') && (weights || small.iter().any(|end| file.ends_with(end)))
}

fn wrong(what: String) -> Error {
    Error::setting("--model", what)
}

/// An error of the network on one line.
fn reason(e: &ApiError) -> String {
    let text: String = e.to_string().chars().take(500).collect();
    let login = text.contains("401") || text.contains("403");
    let fix = match login {
        true => " (no such checkpoint, or one for which HF_TOKEN must hold a login)",
        false => "",
    };
    format!("{}{fix}", text.lines().next().unwrap_or("no reason given"))
}

/// `owner/name@revision`.
struct Id {
    name: String,
    revision: String,
}

impl Id {
    fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, model) = name.split_once('/')?;
        let plain = |part: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty()
                && part.chars().all(fits)
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
        };
        let whole = plain(owner) && plain(model) && plain(revision);
        whole.then(|| Self { name: name.into(), revision: revision.into() })
    }

    fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }
}
