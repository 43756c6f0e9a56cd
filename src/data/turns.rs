//! A conversation as it is learned: the chat template's text, with the reasoning that
//! some templates drop, and where in it the assistant speaks.
use super::{
    chat::{self, ChatTemplate, Message},
    engine::Splitter,
    guarded::guarded,
    rows::RowResult,
};
use std::{ops::Range, sync::Arc};

/// The tags around reasoning, and what stands for them while a template runs: two
/// code points that are no characters, so that no text has them and no template
/// knows them.
const OPEN: (&str, &str) = ("<think>", "\u{fdd0}");
const CLOSE: (&str, &str) = ("</think>", "\u{fdd1}");

fn protect(message: &Message) -> Message {
    let mut kept = message.clone();
    if kept.role == "assistant" {
        kept.content =
            kept.content.replace(OPEN.0, OPEN.1).replace(CLOSE.0, CLOSE.1);
    }
    kept
}

fn restore(text: &str) -> String {
    text.replace(OPEN.1, OPEN.0).replace(CLOSE.1, CLOSE.0)
}

/// [`ChatTemplate::training_text`] of somebody else's template: it has an end, or the
/// row has an error.
pub(super) fn training_text(
    template: &Arc<ChatTemplate>,
    messages: &[Message],
) -> RowResult<(String, Vec<Range<usize>>)> {
    let (template, messages) = (template.clone(), messages.to_vec());
    let made = guarded(chat::LIMIT, move || template.training_text(&messages));
    made.unwrap_or_else(|failure| Err(chat::reason(failure)))
}

impl ChatTemplate {
    /// The whole conversation as text, and where in it (in bytes) each assistant turn
    /// stands: from what the model is shown when it is asked for that turn, to the end
    /// of the turn.
    ///
    /// It is the text that the template writes, but for reasoning. The templates of R1
    /// delete what an answer has before `</think>`, because a user's history should
    /// not hold it; trained on their text, the model would unlearn to reason. So the
    /// tags are hidden from the template. Where it asks for a turn with an open
    /// `<think>`, the turn begins with one, that of an answer without reasoning with an
    /// empty one: else training would teach the answer to another prompt.
    fn training_text(
        &self,
        messages: &[Message],
    ) -> RowResult<(String, Vec<Range<usize>>)> {
        let kept: Vec<Message> = messages.iter().map(protect).collect();
        let whole = self.render(&kept, false, false)?;
        let (mut text, mut spans, mut done) = (String::new(), Vec::new(), 0);
        for (i, message) in kept.iter().enumerate() {
            let at = format!("`messages[{i}]` ({})", message.role);
            if !whole.contains(message.content.trim()) {
                return Err(format!(
                    "{at}: the chat template drops or changes part of `content`; write \
                     this row as `prompt` and `completion`, which no template touches"
                ));
            }
            if message.role != "assistant" {
                continue;
            }
            let thinking = message.content.contains(CLOSE.1);
            let asked = self.render(&kept[..i], true, thinking)?;
            let answered = self.render(&kept[..=i], false, false)?;
            if !whole.starts_with(&answered) {
                return Err(format!(
                    "{at}: the chat template writes this turn differently once a later \
                     one is there; keep only the last assistant turn of each row"
                ));
            }
            let turn = match answered.strip_prefix(&asked) {
                Some(words) => Some((asked.len(), "", words.to_string())),
                None => with_reasoning(&asked, &answered, &message.content),
            };
            let before =
                turn.as_ref().and_then(|(start, ..)| whole.get(done..*start));
            let (Some((_, opening, words)), Some(before)) = (&turn, before) else {
                return Err(format!(
                    "{at}: the chat template asks for this turn with text that it does \
                     not write in front of the turn itself, so that training on it \
                     would teach another prompt; write this row as `prompt` and \
                     `completion`, which no template touches"
                ));
            };
            text += &restore(before);
            text += opening;
            let start = text.len();
            text += &restore(words);
            spans.push(start..text.len());
            done = answered.len();
        }
        text += &restore(&whole[done..]);
        Ok((text, spans))
    }
}

/// For a template that asks with an open `<think>` but writes turns without: where in
/// `answered` the turn begins, the opening that the model is shown, and what it is to
/// write after that.
fn with_reasoning<'a>(
    asked: &'a str,
    answered: &str,
    content: &str,
) -> Option<(usize, &'a str, String)> {
    let (before, _) = asked.rsplit_once(OPEN.0)?;
    let opening = &asked[before.len()..];
    if opening.trim_end() != OPEN.0 {
        return None;
    }
    let turn = answered.strip_prefix(before)?;
    // V3.1 writes the end of a thought in front of every turn.
    let turn = turn.strip_prefix(CLOSE.0).unwrap_or(turn);
    if !turn.trim_start().starts_with(content.trim()) {
        return None;
    }
    let words = match turn.trim_start().strip_prefix(OPEN.1) {
        Some(rest) if opening.ends_with('\n') => {
            rest.strip_prefix('\n').unwrap_or(rest).to_string()
        }
        Some(rest) => rest.to_string(),
        None if turn.contains(CLOSE.1) => turn.to_string(),
        None => format!("\n{}\n\n{turn}", CLOSE.0),
    };
    Some((before.len(), opening, words))
}

// ANCHOR: spans
/// The ids of a conversation's text, and of each whether the assistant writes it.
///
/// Tokenized whole; but where a token would begin before a turn and end in it, and the
/// ids before it are not those that the model is asked with, the text is cut there.
pub(super) fn tokenize(
    splitter: &Splitter,
    text: &str,
    spans: &[Range<usize>],
) -> RowResult<(Vec<i64>, Vec<bool>)> {
    let (mut ids, mut places) = splitter.placed(text)?;
    // How many ids stand before each turn, where their places do not say it.
    let mut before = vec![0; spans.len()];
    let (mut cuts, mut cut) = (Vec::new(), false);
    for (span, before) in spans.iter().zip(&mut before) {
        let start = span.start;
        if places.iter().any(|at| at.start < start && start < at.end) {
            let asked = splitter.ids(&text[..start])?;
            *before = asked.len();
            cut |= !ids.starts_with(&asked);
            cuts.push(start);
        }
    }
    if cut {
        before.fill(0);
        (ids, places) = splitter.placed(&text[..cuts[0]])?;
        cuts.push(text.len());
        for cut in cuts.windows(2) {
            let (piece, at) = splitter.placed_behind(&text[cut[0]..cut[1]])?;
            ids.extend(piece);
            places.extend(at.iter().map(|at| at.start + cut[0]..at.end + cut[0]));
        }
    }
    let learned = |(i, at): (usize, &Range<usize>)| {
        spans.iter().zip(&before).any(|(span, &before)| {
            at.start < span.end && at.end > span.start && i >= before
        })
    };
    Ok((ids, places.iter().enumerate().map(learned).collect()))
}
// ANCHOR_END: spans
