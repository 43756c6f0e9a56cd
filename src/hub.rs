//! Checkpoints by their names on the hub, such as `deepseek-ai/deepseek-coder-1.3b-base`:
//! from the cache that Python's huggingface_hub shares with us, or downloaded into it.
//!
//! Source of the layout: huggingface_hub, "Understand caching".
use crate::{Error, Result};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
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
    /// or in `huggingface` in `XDG_CACHE_HOME` or `~/.cache`, where `~` and `$NAME` mean
    /// what they mean to a shell; `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`.
    pub fn from_env() -> Self {
        Self::from(&|name| env::var(name).ok())
    }

    /// As [`Hub::from_env`], with other variables than the process has.
    pub fn from(var: &dyn Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|text| !text.is_empty());
        let expand = |text: String| PathBuf::from(expanded(&text, &var));
        let caches = || var("XDG_CACHE_HOME").unwrap_or_else(|| "~/.cache".into());
        let hf_home = var("HF_HOME");
        let hf_home =
            || hf_home.unwrap_or_else(|| format!("{}/huggingface", caches()));
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let on = |name| {
            let value = var(name).unwrap_or_default().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let written = || {
            let path = var("HF_TOKEN_PATH").map(expand)?;
            fs::read_to_string(path).ok()
        };
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(written).map(|token| token.trim().to_string());
        let endpoint = var("HF_ENDPOINT");
        Self {
            cache: match cache {
                Some(cache) => expand(cache),
                None => expand(hf_home()).join("hub"),
            },
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            endpoint: endpoint.map(|url| url.trim_end_matches('/').to_string()),
            token: token.filter(|token| !token.is_empty()),
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
        if let Some(dir) = local(model)? {
            return Ok(dir);
        }
        let text = model.to_string_lossy();
        let Some(id) = Id::parse(&text) else {
            let what = "no such folder, and no name on the hub (owner/name) either";
            return Err(wrong(format!("`{text}`: {what}")));
        };
        if self.cache.to_string_lossy().starts_with('~') {
            let what = "in HF_HOME, HF_HUB_CACHE or XDG_CACHE_HOME: `~` with the name \
                        of nobody here, or without HOME; write the path out";
            return Err(Error::file(&self.cache, what));
        }
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
        let Some(text) = small(&index) else {
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

/// The bytes of a file that is no pipe and not without end.
fn small(path: &Path) -> Option<Vec<u8>> {
    crate::files::read_small(path, crate::files::INDEX).ok()
}

/// The folder that `model` is or means, if there is such a path.
///
/// # Errors
/// A file; an adapter's folder: say what to give.
fn local(model: &Path) -> Result<Option<PathBuf>> {
    if model.is_file() {
        let up = model.parent().filter(|up| !up.as_os_str().is_empty());
        let up = up.unwrap_or(Path::new("."));
        let name = model.file_name().unwrap_or_default().to_string_lossy();
        if name == "config.json" || name.starts_with("model.safetensors") {
            return Ok(Some(up.into()));
        }
        let what = format!("`{}` is a file; give a folder", model.display());
        return Err(wrong(what));
    }
    let adapter = model.join("adapter_config.json");
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    if adapter.is_file() && !weights.iter().any(|name| model.join(name).exists()) {
        let text = small(&adapter).unwrap_or_default();
        let config: serde_json::Value =
            serde_json::from_slice(&text).unwrap_or_default();
        let base = config["base_model_name_or_path"].as_str();
        let base = base.filter(|b| !b.is_empty()).unwrap_or("its base model");
        return Err(wrong(format!(
            "`{0}` is an adapter; give it as --adapter {0} (finetune: --init-adapter), \
             and its base as --model: {base}",
            model.display()
        )));
    }
    Ok(model.is_dir().then(|| model.into()))
}

/// `text` with `~`, `~user`, `$NAME` and `${NAME}` replaced, as Python's `expanduser`
/// and then `expandvars` do: what is not known stays.
fn expanded(text: &str, var: &dyn Fn(&str) -> Option<String>) -> String {
    let (user, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
    let home = match user.strip_prefix('~') {
        None => None,
        Some("") => var("HOME").or_else(|| home_of(None)),
        Some(name) => home_of(Some(name)),
    };
    let text = match home {
        Some(home) => format!("{}{rest}", home.trim_end_matches('/')),
        None => text.to_string(),
    };
    let (mut out, mut rest) = (String::new(), text.as_str());
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let (name, length) = match after.strip_prefix('{') {
            Some(inner) => match inner.find('}') {
                Some(end) => (&inner[..end], end + 2),
                None => ("", 0),
            },
            None => {
                let end = after.find(word).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match var(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => {
                out.push('$');
                out.push_str(&after[..length]);
            }
        }
        rest = &after[length..];
    }
    out + rest
}

/// The home folder of a user whom `/etc/passwd` lists, by name or by number.
fn home_of(name: Option<&str>) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let own = fs::metadata("/proc/self").ok().map(|about| about.uid().to_string());
    let mut lines = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.find(|line| match name {
        Some(name) => line.first() == Some(&name),
        None => line.get(2).copied() == own.as_deref(),
    })?;
    line.get(5).map(|home| home.to_string())
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
        // `refs/pr/1`, or a branch with slashes.
        let whole = plain(owner) && plain(model) && revision.split('/').all(plain);
        whole.then(|| Self { name: name.into(), revision: revision.into() })
    }

    fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }
}
