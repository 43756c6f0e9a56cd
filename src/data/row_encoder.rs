//! A row's fields as token ids and labels.
use super::{
    Example, IGNORED, Tokenizer,
    rows::{Row, RowResult},
    source::{Format, fields},
    turns,
};
use std::fmt;

/// How rows become token ids and labels.
#[derive(Clone)]
pub struct RowEncoder {
    /// `None` is enough for rows of token ids.
    pub tokenizer: Option<Tokenizer>,
    /// Longer rows lose their end.
    pub max_length: usize,
    /// The model's; all ids are below.
    pub vocab_size: i64,
    /// Learn of `{prompt, completion}` the completion alone.
    pub completion_only_loss: bool,
    /// Learn of `{messages}` the assistant's turns alone.
    pub assistant_only_loss: bool,
}

/// A row, encoded.
pub(super) struct Encoded {
    /// The names of its fields.
    pub(super) kind: &'static str,
    pub(super) example: Example,
    /// The row itself, where the labels do not say what a model is asked.
    pub(super) asked: Option<Row>,
    /// It was longer than the limit.
    pub(super) cut: bool,
}

impl RowEncoder {
    /// Learns completions and the assistant's turns.
    pub fn new(
        tokenizer: Option<&Tokenizer>,
        max_length: usize,
        vocab_size: i64,
    ) -> Self {
        Self {
            tokenizer: tokenizer.cloned(),
            max_length,
            vocab_size,
            completion_only_loss: true,
            assistant_only_loss: true,
        }
    }

    /// A row from its bytes. The error names the field.
    pub(super) fn encode(
        &self,
        format: &Format,
        line: usize,
        bytes: &[u8],
    ) -> RowResult<Encoded> {
        let row = Row::new(&fields(format, bytes)?, self.vocab_size)?;
        let kind = row.kind();
        let asked = match &row {
            Row::Messages(_) => Some(row.clone()),
            Row::Completion { .. } if !self.completion_only_loss => {
                Some(row.clone())
            }
            _ => None,
        };
        let (mut ids, mut labels) = match row {
            Row::Ids { ids, labels } => (ids, labels),
            row => self.tokenize(row)?,
        };
        if let Some(tokenizer) = &self.tokenizer {
            let begins = tokenizer.begins_once(&ids);
            begins.map_err(|what| format!("{kind} {what}"))?;
        }
        if let Some(id) = ids.iter().find(|&&id| id >= self.vocab_size) {
            return Err(format!(
                "its token {id} is outside the model's vocabulary of {}: this \
                 tokenizer belongs to another model",
                self.vocab_size
            ));
        }
        let cut = ids.len() > self.max_length;
        ids.truncate(self.max_length);
        labels.truncate(self.max_length);
        if cut {
            // The room of what was cut would stay taken.
            ids.shrink_to_fit();
            labels.shrink_to_fit();
        }
        Ok(Encoded { kind, example: Example { ids, labels, line }, asked, cut })
    }

    /// Ids, and a label per id: the id itself where it is learned.
    pub(super) fn tokenize(&self, row: Row) -> RowResult<(Vec<i64>, Vec<i64>)> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(format!(
                "{} needs a tokenizer, and the checkpoint has no tokenizer.json; add \
                 one, or write {{`input_ids`, `labels`}}",
                row.kind()
            ));
        };
        let eos = tokenizer.eos_id();
        let encode = |field: &str, text: &str, bos| {
            tokenizer.ids(text, bos).map_err(|what| format!("`{field}` {what}"))
        };
        match row {
            // ANCHOR: completion
            Row::Completion { prompt, completion } => {
                let asked = encode("prompt", &prompt, true)?;
                let answer = tokenizer
                    .continued(&asked, &prompt, &completion)
                    .map_err(|what| format!("`completion` {what}"))?;
                let answer = with_eos(answer, eos);
                let mut labels = match self.completion_only_loss {
                    true => vec![IGNORED; asked.len()],
                    false => asked.clone(),
                };
                labels.extend(&answer);
                Ok(([asked, answer].concat(), labels))
            }
            // ANCHOR_END: completion
            Row::Text(text) => {
                let ids = with_eos(encode("text", &text, true)?, eos);
                Ok((ids.clone(), ids))
            }
            Row::Messages(messages) => {
                let Some(template) = tokenizer.template() else {
                    return Err("`messages` needs a chat template, and the checkpoint \
                                has none; add chat_template.jinja, or write {`prompt`, \
                                `completion`}"
                        .into());
                };
                let (text, spans) = turns::training_text(template, &messages)?;
                let (mut ids, learned) =
                    turns::tokenize(tokenizer.splitter(), &text, &spans)?;
                let label = |(&id, learned)| match learned {
                    true => id,
                    false => IGNORED,
                };
                let mut labels = match self.assistant_only_loss {
                    true => ids.iter().zip(learned).map(label).collect(),
                    false => ids.clone(),
                };
                let answered =
                    messages.last().is_some_and(|m| m.role == "assistant");
                if answered && !tokenizer.ends_with_stop(&text) {
                    ids.push(eos);
                    labels.push(eos);
                }
                Ok((ids, labels))
            }
            Row::Ids { ids, labels } => Ok((ids, labels)),
        }
    }
}

fn with_eos(mut ids: Vec<i64>, eos: i64) -> Vec<i64> {
    if ids.last() != Some(&eos) {
        ids.push(eos);
    }
    ids
}

impl fmt::Debug for RowEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowEncoder").field("max_length", &self.max_length).finish()
    }
}
