//! A checkpoint's tokenizer: text to token ids and back.
use super::{
    chat::{ChatTemplate, Message},
    rows::RowResult,
    special::{Files, text_of},
};
use crate::{Error, Result};
use serde::de::IgnoredAny;
use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokenizers::{AddedToken, Tokenizer as Engine};

/// A tokenizer as it lies in a checkpoint's folder.
///
/// The engine is Hugging Face's own, and its file `tokenizer.json` says how text is
/// split. That file says nothing reliable about the BOS token that DeepSeek's models
/// expect in front of a text, so the rule is read elsewhere: `add_bos_token` in
/// `tokenizer_config.json` decides; where it is absent, the tokenizer classes of Llama
/// put it, and for all others `tokenizer.json`'s post-processor decides. The EOS is
/// put by [`Dataset`](super::Dataset), always, whatever `add_eos_token` says. A clone
/// shares the tables.
#[derive(Clone)]
pub struct Tokenizer {
    path: PathBuf,
    engine: Arc<Engine>,
    /// The [`here`] that `engine` was made in, and the one of the last that was not.
    home: usize,
    away: Arc<Mutex<Option<(usize, Arc<Engine>)>>>,
    bos: Option<i64>,
    eos: i64,
    stop: Vec<i64>,
    add_bos: bool,
    template: Option<Arc<ChatTemplate>>,
    stop_texts: Vec<String>,
}

impl Tokenizer {
    /// As [`Tokenizer::from_dir`], where there is a `tokenizer.json` at all: rows may
    /// come as ids.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        let there = dir.join("tokenizer.json").exists();
        there.then(|| Self::from_dir(dir)).transpose()
    }

    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json` and the chat
    /// template (`chat_template.jinja`, `chat_template.json`, or the key
    /// `chat_template` of `tokenizer_config.json`).
    ///
    /// Fails where `tokenizer.json` is missing, a file is broken, a special token is
    /// not in the vocabulary, or no EOS token is named anywhere.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let bytes = crate::files::text(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::file(
                &path,
                "not there; expected a checkpoint folder with a tokenizer.json \
                 (Transformers writes one: AutoTokenizer.from_pretrained(folder)\
                 .save_pretrained(folder))",
            ),
            _ => Error::io(&path, e),
        })?;
        let mut engine = engine(&bytes).map_err(|what| {
            Error::file(&path, format!("not a tokenizer that can be read: {what}"))
        })?;
        // A saved truncation or padding would change rows without a word.
        engine.with_padding(None);
        engine
            .with_truncation(None)
            .map_err(|e| Error::file(&path, e.to_string()))?;

        let files = Files::read(dir)?;
        let bos = files.special("bos", &engine)?;
        let Some((eos_text, eos)) = files.special("eos", &engine)? else {
            return Err(Error::file(
                dir.join("tokenizer_config.json"),
                "no EOS token: expected `eos_token` there, or `eos_token_id` in \
                 generation_config.json or config.json",
            ));
        };
        let pad = files.special("pad", &engine)?;
        let unk = files.special("unk", &engine)?;

        // Named in a side file is special enough: never split, left out by `decode`.
        let named = [
            bos.as_ref().map(|t| &t.0),
            Some(&eos_text),
            pad.as_ref().map(|t| &t.0),
        ];
        let named =
            named.into_iter().flatten().map(|t| AddedToken::from(t.clone(), true));
        let added = engine.add_special_tokens(named.collect::<Vec<_>>());
        added.map_err(|e| Error::file(&path, e.to_string()))?;

        let mut stop = vec![eos];
        stop.extend(files.ids("eos_token_id").into_iter().map(|(_, id)| id));
        stop.retain(|&id| text_of(&engine, id).is_some());
        stop.sort_unstable();
        stop.dedup();

        let special =
            [("bos_token", &bos), ("pad_token", &pad), ("unk_token", &unk)]
                .into_iter()
                .filter_map(|(name, token)| Some((name, token.as_ref()?.0.clone())))
                .chain([("eos_token", eos_text)])
                .map(|(name, text)| (name.to_string(), text))
                .collect::<Vec<_>>();
        let template = files.chat_template(dir, &special)?;
        let bos = bos.map(|(_, id)| id);
        let add_bos = files.adds_bos(bos, &engine)?;
        Ok(Self {
            stop_texts: stop.iter().filter_map(|&id| text_of(&engine, id)).collect(),
            path,
            engine: Arc::new(engine),
            home: here(),
            away: Arc::default(),
            bos,
            eos,
            stop,
            add_bos,
            template: template.map(Arc::new),
        })
    }

    /// The ids of `text`, with the BOS in front if `add_bos` and the checkpoint's rule
    /// both ask for it.
    ///
    /// # Errors
    /// The text begins with the BOS already, as a rendered chat does: a second one is
    /// a beginning that the model never saw. Encode such a text without.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<i64>> {
        self.ids(text, add_bos).map_err(|what| Error::file(&self.path, what))
    }

    pub(super) fn ids(&self, text: &str, add_bos: bool) -> RowResult<Vec<i64>> {
        let encoding = self.splitter()?.encode_fast(text, false);
        let encoding = encoding.map_err(|e| format!("cannot encode: {e}"))?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id));
        let bos = self.bos.filter(|_| add_bos && self.add_bos);
        let ids: Vec<i64> = bos.into_iter().chain(ids).collect();
        self.begins_once(&ids)?;
        Ok(ids)
    }

    /// The engine, for what splits text: oniguruma compares addresses of its tables,
    /// and refuses an expression that another copy of it has compiled.
    fn splitter(&self) -> RowResult<Arc<Engine>> {
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
        let made = Arc::new(engine(json.as_bytes())?);
        *away = Some((here(), made.clone()));
        Ok(made)
    }

    /// The ids of `text` without a BOS, and which bytes of it each stands for.
    pub(super) fn ids_with_offsets(
        &self,
        text: &str,
    ) -> RowResult<(Vec<i64>, Vec<Range<usize>>)> {
        let encoding = self.splitter()?.encode(text, false);
        let encoding = encoding.map_err(|e| format!("cannot encode: {e}"))?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        let offsets = encoding.get_offsets().iter().map(|&(from, to)| from..to);
        Ok((ids, offsets.collect()))
    }

    /// Refuses ids that begin with two BOS.
    pub(super) fn begins_once(&self, ids: &[i64]) -> RowResult<()> {
        match (self.bos, ids) {
            (Some(bos), [first, second, ..]) if [bos; 2] == [*first, *second] => {
                let token = text_of(&self.engine, bos).unwrap_or_default();
                Err(format!(
                    "begins with {token} twice, a beginning that no model has seen; \
                     take it out of the text (where a checkpoint wants one, it is put \
                     in front; a chat that a template has written is better given as \
                     `messages`)"
                ))
            }
            _ => Ok(()),
        }
    }

    /// The text of `ids`. Special tokens leave nothing, and neither do ids that are
    /// not in the vocabulary.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids = ids.iter().filter_map(|&id| u32::try_from(id).ok());
        let text = self.engine.decode(&ids.collect::<Vec<_>>(), true);
        text.map_err(|e| self.failed("decode", &*e))
    }

    /// The text of `ids`, special tokens written out.
    pub fn decode_all(&self, ids: &[i64]) -> Result<String> {
        let ids = ids.iter().filter_map(|&id| u32::try_from(id).ok());
        let text = self.engine.decode(&ids.collect::<Vec<_>>(), false);
        text.map_err(|e| self.failed("decode", &*e))
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            ids: Vec::new(),
            shown: String::new(),
            kept: 0,
        }
    }

    /// The conversation as the text that asks for the next assistant turn, or `None`
    /// where the checkpoint has no chat template. Encode it without a BOS: the
    /// template writes its own.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Option<String>> {
        let Some(template) = &self.template else { return Ok(None) };
        let text = template.render(messages, true, false);
        text.map(Some).map_err(|what| Error::file(&self.path, what))
    }

    pub(super) fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_deref()
    }

    /// Whether `text` ends with an EOS token, or one and then white space.
    pub(super) fn ends_with_stop(&self, text: &str) -> bool {
        let end = text.trim_end();
        self.stop_texts
            .iter()
            .any(|stop| end.ends_with(stop) || text.ends_with(stop))
    }

    /// Where its files lie.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// The token that begins a text, if the vocabulary has one.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos
    }

    /// The token that ends a text: the last one that is learned in every row.
    pub fn eos_id(&self) -> i64 {
        self.eos
    }

    /// The tokens at which generation ends: the EOS, and those of
    /// `generation_config.json`.
    pub fn stop_ids(&self) -> &[i64] {
        &self.stop
    }

    /// The largest token id plus one. A model's `vocab_size` may be larger (rounded
    /// up), never smaller.
    pub fn vocab_size(&self) -> i64 {
        let ids = self.engine.get_vocab(true).into_values();
        ids.max().map_or(0, |id| i64::from(id) + 1)
    }

    fn failed(&self, verb: &str, e: &dyn std::error::Error) -> Error {
        Error::file(&self.path, format!("cannot {verb}: {e}"))
    }
}

/// Where this copy of the library lies: in a notebook each cell has its own.
fn here() -> usize {
    static HERE: u8 = 0;
    &raw const HERE as usize
}

/// The engine of a tokenizer.json. It panics on some broken files: on many that are no
/// JSON, which is therefore asked first, and on merges that contradict the vocabulary.
fn engine(json: &[u8]) -> std::result::Result<Engine, String> {
    serde_json::from_slice::<IgnoredAny>(json).map_err(|e| e.to_string())?;
    match std::panic::catch_unwind(|| Engine::from_bytes(json)) {
        Ok(engine) => engine.map_err(|e| e.to_string()),
        Err(_) => Err("it contradicts itself; fetch or save it again".into()),
    }
}

/// Text from token ids that come one at a time. A character may be split over
/// several tokens, and a token's text may depend on the one before it (a leading
/// space, say), so each call gives what is certain by then: always whole characters.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last piece that was given out, then the ids that are still open.
    ids: Vec<i64>,
    /// The text of that last piece.
    shown: String,
    /// How many of `ids` belong to it.
    kept: usize,
}

impl TextStream<'_> {
    /// Takes one more id and gives the text that it completes, which may be empty.
    pub fn push(&mut self, id: i64) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = self.after_shown(&text);
        if !new.is_empty() {
            self.ids.drain(..self.kept);
            self.kept = self.ids.len();
            self.shown = self.tokenizer.decode(&self.ids)?;
        }
        Ok(new)
    }

    /// What is still open at the end: an incomplete character, as U+FFFD.
    pub fn finish(self) -> Result<String> {
        Ok(self.after_shown(&self.tokenizer.decode(&self.ids)?))
    }

    fn after_shown(&self, text: &str) -> String {
        text.strip_prefix(self.shown.as_str()).unwrap_or_default().to_string()
    }
}
