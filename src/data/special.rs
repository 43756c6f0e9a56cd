//! What stands beside `tokenizer.json`: special tokens, the rule for the BOS, and the
//! chat template.
use super::{chat::ChatTemplate, guarded::brief};
use crate::{Error, Result};
use serde_json::Value;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokenizers::Tokenizer as Engine;

/// The JSON files beside `tokenizer.json`; `Null` where one does not exist.
pub(super) struct Files {
    pub(super) tokenizer_config: (PathBuf, Value),
    pub(super) special_tokens_map: (PathBuf, Value),
    pub(super) added_tokens: (PathBuf, Value),
    generation_config: (PathBuf, Value),
    config: (PathBuf, Value),
}

/// The special tokens that a template is given by name, and that have an id each.
pub(super) const NAMED: [&str; 7] =
    ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            tokenizer_config: json(dir.join("tokenizer_config.json"))?,
            special_tokens_map: json(dir.join("special_tokens_map.json"))?,
            added_tokens: json(dir.join("added_tokens.json"))?,
            generation_config: json(dir.join("generation_config.json"))?,
            config: json(dir.join("config.json"))?,
        })
    }

    /// Where special tokens are named, the file that decides first. As in
    /// Transformers, `special_tokens_map.json` counts only where
    /// `tokenizer_config.json` has no `added_tokens_decoder`, and there it decides.
    pub(super) fn sources(&self) -> Vec<&(PathBuf, Value)> {
        let (config, map) = (&self.tokenizer_config, &self.special_tokens_map);
        match config.1["added_tokens_decoder"].is_null() {
            true => vec![map, config],
            false => vec![config],
        }
    }

    /// What is said of the special token `name` (`bos`, `eos`, ...): a string or an
    /// object with `content`, and the text of it. `Some(None)` is a null.
    pub(super) fn named(
        &self,
        name: &str,
    ) -> Result<Option<(&Path, Option<(&Value, &str)>)>> {
        let key = format!("{name}_token");
        let mut sources = self.sources();
        if name == "eos" {
            // Every text has an end, so that a null, or no word, is no answer.
            sources.push(&self.special_tokens_map);
            sources.retain(|(_, value)| !value[&key].is_null());
        }
        for (path, value) in sources {
            match value.get(&key) {
                None => {}
                Some(Value::Null) => return Ok(Some((path, None))),
                Some(token) => {
                    let text = token.as_str().or_else(|| token["content"].as_str());
                    let Some(text) = text else {
                        let what = format!(
                            "`{key}` is {}; expected a string or an object with \
                             `content`",
                            brief(&token.to_string())
                        );
                        return Err(Error::file(path, what));
                    };
                    return Ok(Some((path, Some((token, text)))));
                }
            }
        }
        Ok(None)
    }

    /// The special token `name`: its text and id.
    pub(super) fn special(
        &self,
        name: &str,
        engine: &Engine,
    ) -> Result<Option<(String, i64)>> {
        let key = format!("{name}_token");
        if let Some((path, token)) = self.named(name)? {
            let Some((_, text)) = token else { return Ok(None) };
            let Some(id) = engine.token_to_id(text) else {
                let what = format!(
                    "`{key}` is {:?}, which tokenizer.json has not",
                    brief(text)
                );
                return Err(Error::file(path, what));
            };
            return Ok(Some((text.to_string(), i64::from(id))));
        }
        // A tokenizer_config.json without a BOS means it; without an EOS it cannot.
        if name != "eos" && !self.tokenizer_config.1.is_null() {
            return Ok(None);
        }
        let key = format!("{name}_token_id");
        let Some((path, id)) = self.ids(&key).into_iter().next() else {
            return Ok(None);
        };
        let Some(text) = text_of(engine, id) else {
            let what = format!("`{key}` is {id}, which tokenizer.json has not");
            return Err(Error::file(path, what));
        };
        Ok(Some((text, id)))
    }

    /// The ids under `key`, a number or a list of them, in the model's own files.
    pub(super) fn ids(&self, key: &str) -> Vec<(&Path, i64)> {
        let mut ids = Vec::new();
        for (path, value) in [&self.generation_config, &self.config] {
            let values = value[key]
                .as_array()
                .map_or(std::slice::from_ref(&value[key]), |v| v);
            ids.extend(
                values.iter().filter_map(Value::as_i64).map(|id| (&**path, id)),
            );
        }
        ids
    }

    // ANCHOR: bos
    /// Whether a text gets a BOS; see [`Tokenizer`](super::Tokenizer).
    pub(super) fn adds_bos(
        &self,
        bos: Option<i64>,
        engine: &Engine,
    ) -> Result<bool> {
        let (path, config) = &self.tokenizer_config;
        let class = config["tokenizer_class"].as_str().unwrap_or_default();
        match (&config["add_bos_token"], bos) {
            (Value::Bool(true), None) => {
                let what = "`add_bos_token` is true, but there is no `bos_token`";
                Err(Error::file(path, what))
            }
            (Value::Bool(add), _) => Ok(*add),
            (Value::Null, None) => Ok(false),
            (Value::Null, Some(bos)) => Ok(class.contains("Llama")
                || engine.encode_fast("a", true).is_ok_and(|e| {
                    e.get_ids().first() == u32::try_from(bos).ok().as_ref()
                })),
            (other, _) => {
                let what = format!(
                    "`add_bos_token` is {}; expected true or false",
                    brief(&other.to_string())
                );
                Err(Error::file(path, what))
            }
        }
    }
    // ANCHOR_END: bos

    pub(super) fn chat_template(
        &self,
        dir: &Path,
        special: Vec<(String, String)>,
    ) -> Result<Option<ChatTemplate>> {
        let path = dir.join("chat_template.jinja");
        if path.exists() {
            let source =
                crate::files::string(&path).map_err(|e| Error::io(&path, e))?;
            return ChatTemplate::new(&source, &path, special).map(Some);
        }
        let alone = json(dir.join("chat_template.json"))?;
        for (path, value) in [&alone, &self.tokenizer_config] {
            // One template, or a list of named ones.
            let source = match &value["chat_template"] {
                Value::Null => continue,
                Value::Array(named) => {
                    let default = named.iter().find(|t| t["name"] == "default");
                    default.and_then(|t| t["template"].as_str())
                }
                other => other.as_str(),
            };
            let Some(source) = source else {
                let what = "`chat_template` is neither a string nor a list of \
                            {`name`, `template`} with one named \"default\"";
                return Err(Error::file(path, what));
            };
            return ChatTemplate::new(source, path, special).map(Some);
        }
        Ok(None)
    }
}

/// A JSON object from a file, `Null` where there is no such file.
fn json(path: PathBuf) -> Result<(PathBuf, Value)> {
    let bytes = match crate::files::text(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok((path, Value::Null));
        }
        Err(e) => return Err(Error::io(path, e)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok((path, value)),
        Ok(_) => Err(Error::file(path, "not a JSON object")),
        Err(e) => Err(Error::file(path, format!("not valid JSON: {e}"))),
    }
}

/// The text of a token, if the vocabulary has its id.
pub(super) fn text_of(engine: &Engine, id: i64) -> Option<String> {
    engine.id_to_token(u32::try_from(id).ok()?)
}
