//! A checkpoint's tokenizer: text to token ids and back.
use super::{
    chat::{self, ChatTemplate, Message},
    engine::{Splitter, engine},
    guarded::guarded,
    rows::RowResult,
    special::{Files, NAMED, text_of},
};
use crate::{Error, Result};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

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
    splitter: Arc<Splitter>,
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
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json`,
    /// `config.json` and the chat template (`chat_template.jinja`, `chat_template.json`, or the key
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
        let mut engine = engine(bytes).map_err(|what| {
            Error::file(&path, format!("not a tokenizer that can be read: {what}"))
        })?;
        // A saved truncation or padding would change rows without a word.
        engine.with_padding(None);
        engine
            .with_truncation(None)
            .map_err(|e| Error::file(&path, e.to_string()))?;

        let files = Files::read(dir)?;
        files.add_tokens(&mut engine)?;
        let bos = files.special("bos", &engine)?;
        let Some((eos_text, eos)) = files.special("eos", &engine)? else {
            return Err(Error::file(
                dir.join("tokenizer_config.json"),
                "no EOS token: expected `eos_token` there, or `eos_token_id` in \
                 generation_config.json or config.json",
            ));
        };

        let mut stop = vec![eos];
        stop.extend(files.ids("eos_token_id").into_iter().map(|(_, id)| id));
        stop.retain(|&id| text_of(&engine, id).is_some());
        stop.sort_unstable();
        stop.dedup();

        let mut special = vec![("eos_token".to_string(), eos_text)];
        for name in NAMED.into_iter().filter(|name| *name != "eos") {
            let token = files.special(name, &engine)?;
            special.extend(token.map(|(text, _)| (format!("{name}_token"), text)));
        }
        let template = files.chat_template(dir, special)?;
        let bos = bos.map(|(_, id)| id);
        let add_bos = files.adds_bos(bos, &engine)?;
        Ok(Self {
            stop_texts: stop.iter().filter_map(|&id| text_of(&engine, id)).collect(),
            path,
            splitter: Arc::new(Splitter::new(engine)),
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
        let ids = self.splitter.ids(text)?;
        let bos = self.bos.filter(|_| add_bos && self.add_bos);
        let ids: Vec<i64> = bos.into_iter().chain(ids).collect();
        self.begins_once(&ids)?;
        Ok(ids)
    }

    /// The ids of `completion` behind `asked`, those of `prompt` with its BOS: what the
    /// whole text has there, if it begins with the prompt's ids, which are all that a
    /// model is asked with. Where a token of the whole would take in both sides, the
    /// text is cut between.
    pub(super) fn continued(
        &self,
        asked: &[i64],
        prompt: &str,
        completion: &str,
    ) -> RowResult<Vec<i64>> {
        let asked = &asked[usize::from(self.add_bos && self.bos.is_some())..];
        let mut whole = self.splitter.ids(&format!("{prompt}{completion}"))?;
        match whole.starts_with(asked) {
            true => Ok(whole.split_off(asked.len())),
            false => Ok(self.splitter.placed_behind(completion)?.0),
        }
    }

    /// What splits text.
    pub(super) fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// Refuses ids that begin with two BOS.
    pub(super) fn begins_once(&self, ids: &[i64]) -> RowResult<()> {
        match (self.bos, ids) {
            (Some(bos), [first, second, ..]) if [bos; 2] == [*first, *second] => {
                let token = text_of(&self.splitter.engine, bos).unwrap_or_default();
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
        let text = self.splitter.decode(ids, true);
        text.map_err(|what| Error::file(&self.path, what))
    }

    /// The text of `ids`, special tokens written out.
    pub fn decode_all(&self, ids: &[i64]) -> Result<String> {
        let text = self.splitter.decode(ids, false);
        text.map_err(|what| Error::file(&self.path, what))
    }

    /// The token of `id` as the vocabulary writes it, or `None` where it has none.
    pub fn token(&self, id: i64) -> Option<String> {
        text_of(&self.splitter.engine, id)
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
        let Some(template) = self.template.clone() else { return Ok(None) };
        let messages = messages.to_vec();
        let text =
            guarded(chat::LIMIT, move || template.render(&messages, true, false));
        let text = text.unwrap_or_else(|failure| Err(chat::reason(failure)));
        text.map(Some).map_err(|what| Error::file(&self.path, what))
    }

    pub(super) fn template(&self) -> Option<&Arc<ChatTemplate>> {
        self.template.as_ref()
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
        let ids = self.splitter.engine.get_vocab(true).into_values();
        ids.max().map_or(0, |id| i64::from(id) + 1)
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
