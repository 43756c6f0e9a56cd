//! What stands beside `tokenizer.json`: special tokens, the rule for the BOS, and the
//! chat template.
use super::chat::ChatTemplate;
use crate::{Error, Result};
use serde_json::Value;
use std::{
    io,
    path::{Path, PathBuf},
};
use tokenizers::Tokenizer as Engine;

/// The JSON files beside `tokenizer.json`; `Null` where one does not exist.
pub(super) struct Files {
    tokenizer_config: (PathBuf, Value),
    special_tokens_map: (PathBuf, Value),
    generation_config: (PathBuf, Value),
    config: (PathBuf, Value),
}

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self {
            tokenizer_config: json(dir.join("tokenizer_config.json"))?,
            special_tokens_map: json(dir.join("special_tokens_map.json"))?,
            generation_config: json(dir.join("generation_config.json"))?,
            config: json(dir.join("config.json"))?,
        })
    }

    /// The special token `name` (`bos`, `eos`, ...): its text and id.
    pub(super) fn special(
        &self,
        name: &str,
        engine: &Engine,
    ) -> Result<Option<(String, i64)>> {
        let key = format!("{name}_token");
        for (path, value) in [&self.tokenizer_config, &self.special_tokens_map] {
            let token = &value[&key];
            // Either the text itself, or an object that also tells about spaces.
            let Some(text) = token.as_str().or_else(|| token["content"].as_str())
            else {
                if token.is_null() {
                    continue;
                }
                let what = format!(
                    "`{key}` is {token}; expected a string or an object with `content`"
                );
                return Err(Error::file(path, what));
            };
            let Some(id) = engine.token_to_id(text) else {
                let what =
                    format!("`{key}` is {text:?}, which tokenizer.json has not");
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
                let what =
                    format!("`add_bos_token` is {other}; expected true or false");
                Err(Error::file(path, what))
            }
        }
    }
    // ANCHOR_END: bos

    pub(super) fn chat_template(
        &self,
        dir: &Path,
        special: &[(String, String)],
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
