//! Tokens that only the files beside `tokenizer.json` name: each is one id, as in
//! Transformers.
use super::{
    guarded::brief,
    special::{Files, NAMED},
};
use crate::{Error, Result};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};
use tokenizers::{AddedToken, Tokenizer as Engine};

impl Files {
    /// Tells the engine of the tokens that only these files name, in Transformers'
    /// order, since what is new to the vocabulary gets the next id: those of
    /// `added_tokens_decoder` (or else of `added_tokens.json`) by their ids there, the
    /// special tokens with a name, and those of `extra_special_tokens` or
    /// `additional_special_tokens`.
    ///
    /// # Errors
    /// A value is no token, or the BOS, EOS, padding or unknown token is in no
    /// vocabulary.
    pub(super) fn add_tokens(&self, engine: &mut Engine) -> Result<()> {
        let extra = self.extra()?;
        let listed = self.listed(&extra)?;
        let known = |engine: &Engine| -> Vec<AddedToken> {
            engine.get_added_tokens_decoder().into_values().collect()
        };
        let already: HashSet<String> =
            known(engine).into_iter().map(|token| token.content).collect();
        let decided = !self.tokenizer_config.1["added_tokens_decoder"].is_null();
        // What tokenizer.json has counts for more than added_tokens.json.
        let new = |token: &AddedToken| decided || !already.contains(&token.content);
        self.add(engine, listed.into_values().filter(new))?;

        let mut special = Vec::new();
        for name in NAMED {
            if let Some((path, Some((token, _)))) = self.named(name)? {
                special.push(added(path, &format!("{name}_token"), token, true)?);
            }
        }
        for name in ["bos", "eos", "pad", "unk"] {
            let token = self.special(name, engine)?;
            let token = token.map(|(text, _)| AddedToken::from(text, true));
            let named = |token: &AddedToken| {
                special.iter().any(|t: &AddedToken| t.content == token.content)
            };
            // Named by its id alone.
            let token = token.filter(|token| !named(token));
            special.extend(token);
        }
        special.extend(extra);
        let known = known(engine);
        let special = special.into_iter().map(|token| {
            // The engine's own word on the spaces around it counts.
            let same = known.iter().find(|known| known.content == token.content);
            same.map_or(token, |same| AddedToken { special: true, ..same.clone() })
        });
        self.add(engine, special)
    }

    fn add(
        &self,
        engine: &mut Engine,
        tokens: impl Iterator<Item = AddedToken>,
    ) -> Result<()> {
        let added = engine.add_tokens(tokens.collect::<Vec<_>>());
        added.map(|_| ()).map_err(|e| {
            Error::file(&self.tokenizer_config.0, brief(&e.to_string()))
        })
    }

    /// The tokens of `added_tokens_decoder`, or else of `added_tokens.json`, by id.
    fn listed(&self, extra: &[AddedToken]) -> Result<BTreeMap<u64, AddedToken>> {
        let mut listed = BTreeMap::new();
        let (path, config) = &self.tokenizer_config;
        let key = "added_tokens_decoder";
        if !config[key].is_null() {
            let Value::Object(tokens) = &config[key] else {
                return Err(strange(
                    path,
                    key,
                    &config[key],
                    "an object by token id",
                ));
            };
            for (id, token) in tokens {
                let Ok(id) = id.parse() else {
                    let what = format!("`{key}` has {:?} for a token id", brief(id));
                    return Err(Error::file(path, what));
                };
                listed.insert(id, added(path, key, token, false)?);
            }
            return Ok(listed);
        }
        let mut special: HashSet<&str> =
            extra.iter().map(|token| token.content.as_str()).collect();
        for name in NAMED {
            let named = self.named(name)?.and_then(|(_, token)| token);
            special.extend(named.map(|(_, text)| text));
        }
        let (path, tokens) = &self.added_tokens;
        for (text, id) in tokens.as_object().into_iter().flatten() {
            let Some(id) = id.as_u64() else {
                return Err(strange(path, text, id, "a token id"));
            };
            let special = special.contains(text.as_str());
            listed.insert(id, AddedToken::from(text, special));
        }
        Ok(listed)
    }

    /// The special tokens without a name, or with one of the model's own.
    fn extra(&self) -> Result<Vec<AddedToken>> {
        let mut tokens = Vec::new();
        for (path, value) in self.sources() {
            for key in ["extra_special_tokens", "additional_special_tokens"] {
                let list = match &value[key] {
                    Value::Null => continue,
                    Value::Array(list) => list.iter().collect::<Vec<_>>(),
                    Value::Object(named) => named.values().collect(),
                    other => {
                        return Err(strange(path, key, other, "a list of tokens"));
                    }
                };
                for token in list {
                    tokens.push(added(path, key, token, true)?);
                }
            }
        }
        let (path, config) = &self.tokenizer_config;
        for (key, token) in config.as_object().into_iter().flatten() {
            let Some(name) = key.strip_suffix("_token") else { continue };
            let is_token = token.is_string() || token["content"].is_string();
            if is_token && !NAMED.contains(&name) {
                tokens.push(added(path, key, token, true)?);
            }
        }
        Ok(tokens)
    }
}

/// A token from its text, or from an object that also tells about spaces.
fn added(
    path: &Path,
    key: &str,
    token: &Value,
    special: bool,
) -> Result<AddedToken> {
    let text = token.as_str().or_else(|| token["content"].as_str());
    let Some(text) = text else {
        let wanted = "a string or an object with `content`";
        return Err(strange(path, key, token, wanted));
    };
    let flag = |name: &str| token[name].as_bool();
    let special = special || flag("special") == Some(true);
    let plain = AddedToken::from(text, special);
    Ok(AddedToken {
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        single_word: flag("single_word").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(plain.normalized),
        ..plain
    })
}

fn strange(path: &Path, key: &str, found: &Value, wanted: &str) -> Error {
    let (key, found) = (brief(key), brief(&found.to_string()));
    Error::file(path, format!("`{key}` holds {found}; expected {wanted}"))
}
