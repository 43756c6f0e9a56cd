//! What a model is asked of a row, and the answer that is expected.
use super::{
    Dataset, Example, IGNORED, Message, RowEncoder,
    chat::{self, ChatTemplate},
    guarded::guarded,
    rows::{Row, RowResult},
    turns::training_text,
};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// A prompt, and what is to follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What the model is shown.
    pub prompt: Vec<i64>,
    /// What it is to write, with the tokens that end it.
    pub expected: Vec<i64>,
}

impl Dataset {
    /// What is asked of row `i`: the completion, or each turn of the assistant by
    /// itself, after the conversation before it as the chat template writes it for
    /// that purpose. None where nothing is learned of the row.
    ///
    /// # Errors
    /// A row without a prompt; what reading a streamed one returns.
    pub fn questions(&self, i: usize) -> Result<Vec<Question>> {
        let Some((example, asked, encoder)) = self.asked(i)? else {
            return Ok(vec![]);
        };
        let found = match asked {
            Some(Row::Messages(messages)) => turns(encoder, &messages),
            Some(row) => {
                // However much is learned of it, the prompt is what is asked.
                let masked =
                    RowEncoder { completion_only_loss: true, ..encoder.clone() };
                masked.tokenize(row).and_then(|(ids, labels)| {
                    runs(&Example { ids, labels, line: example.line })
                })
            }
            None => runs(&example),
        };
        found.map_err(|what| Error::row(&self.path, example.line, what))
    }
}

/// Each run of learned tokens, after all that stands before it.
fn runs(example: &Example) -> RowResult<Vec<Question>> {
    let mut questions = Vec::new();
    let mut from = 0;
    for run in example.labels.chunk_by(|a, b| (*a == IGNORED) == (*b == IGNORED)) {
        let to = from + run.len();
        // The first token of all is never predicted.
        if run[0] != IGNORED && to > 1 {
            let (prompt, expected) = (&example.ids[..from], run);
            questions.push(question(prompt.into(), expected.into())?);
        }
        from = to;
    }
    Ok(questions)
}

fn question(prompt: Vec<i64>, expected: Vec<i64>) -> RowResult<Question> {
    if prompt.is_empty() {
        return Err("there is no prompt to ask (a row of {`text`}, or an empty \
                    `prompt`); --predict-with-generate needs rows of {`prompt`, \
                    `completion`} or {`messages`}: mend the row, or leave the flag \
                    out"
        .into());
    }
    Ok(Question { prompt, expected })
}

/// The assistant's turns that a row of the length limit would still begin.
fn turns(encoder: &RowEncoder, messages: &[Message]) -> RowResult<Vec<Question>> {
    let Some(tokenizer) = &encoder.tokenizer else { return Ok(vec![]) };
    let Some(template) = tokenizer.template() else { return Ok(vec![]) };
    let mut questions = Vec::new();
    for (asked, turn) in asked_and_written(template, messages)? {
        let prompt = tokenizer.ids(&asked, false)?;
        if prompt.len() >= encoder.max_length {
            break;
        }
        questions.push(question(prompt, tokenizer.ids(&turn, false)?)?);
    }
    Ok(questions)
}

/// Of each turn of the assistant the text that asks for it, and the turn as it is
/// learned.
fn asked_and_written(
    template: &Arc<ChatTemplate>,
    messages: &[Message],
) -> RowResult<Vec<(String, String)>> {
    let (text, spans) = training_text(template, messages)?;
    let (template, messages) = (template.clone(), messages.to_vec());
    let made = guarded(chat::LIMIT, move || {
        let by_assistant = |(_, m): &(usize, &Message)| m.role == "assistant";
        let turns = messages.iter().enumerate().filter(by_assistant);
        let ask = |((i, turn), span): ((usize, &Message), Range<usize>)| {
            let thinking = turn.content.contains("</think>");
            let asked = template.render(&messages[..i], true, thinking)?;
            Ok((asked, text[span].to_string()))
        };
        turns.zip(spans).map(ask).collect()
    });
    made.unwrap_or_else(|failure| Err(chat::reason(failure)))
}
