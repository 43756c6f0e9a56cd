//! One row of a data file: which of the four kinds of row it is, and its fields.
use super::{IGNORED, Message};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::{collections::BTreeSet, fmt};

/// A value, or what is wrong with the row; file and line are added further up.
pub(super) type RowResult<T> = Result<T, String>;

/// A row as it is written, checked but not yet tokenized.
#[derive(Clone, Debug)]
pub(super) enum Row {
    /// A prompt, and the completion that is learned.
    Completion { prompt: String, completion: String },
    /// A conversation, of which the assistant's turns are learned.
    Messages(Vec<Message>),
    /// Text, all of which is learned.
    Text(String),
    /// Token ids and their labels.
    Ids { ids: Vec<i64>, labels: Vec<i64> },
}

/// What each kind of row must have, and what it may have besides.
const KINDS: [(&[&str], &[&str]); 4] = [
    (&["prompt", "completion"], &[]),
    (&["messages"], &[]),
    (&["text"], &[]),
    (&["input_ids", "labels"], &["attention_mask"]),
];
const EXPECTED: &str = "{`prompt`, `completion`}, {`messages`}, {`text`} or \
                        {`input_ids`, `labels`}";
/// What a line may look like, whatever the task.
const LIKE: &str = r#"{"text": "..."}"#;
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

impl Row {
    /// The names of its fields.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Completion { .. } => "{`prompt`, `completion`}",
            Self::Messages(_) => "{`messages`}",
            Self::Text(_) => "{`text`}",
            Self::Ids { .. } => "{`input_ids`, `labels`}",
        }
    }

    /// Checks a row's fields. Token ids must be below `vocab_size`. The error names the
    /// field.
    pub(super) fn new(
        fields: &Map<String, Value>,
        vocab_size: i64,
    ) -> RowResult<Self> {
        // A row is of the kind with which it shares a field.
        let kind = KINDS.iter().find(|(required, _)| {
            required.iter().any(|field| fields.contains_key(*field))
        });
        let Some((required, optional)) = kind else {
            return Err(format!("found {}; expected {EXPECTED}", names(fields)));
        };
        if let Some(field) =
            required.iter().find(|field| !fields.contains_key(**field))
        {
            let found = names(fields);
            return Err(format!("field `{field}` is missing; found {found}"));
        }
        let known = |field: &&String| {
            required.contains(&field.as_str()) || optional.contains(&field.as_str())
        };
        if let Some(field) = fields.keys().find(|field| !known(field)) {
            let field = match field.as_str() {
                "" => "a column without a name".to_string(),
                field => format!("field `{field}`"),
            };
            return Err(format!(
                "{field} does not belong in a row with `{}`; expected {EXPECTED}, \
                 and nothing else",
                required[0]
            ));
        }
        match required[0] {
            "prompt" => Ok(Self::Completion {
                prompt: text(&fields["prompt"], "prompt")?,
                completion: filled(&fields["completion"], "completion")?,
            }),
            "messages" => messages(&fields["messages"]).map(Self::Messages),
            "text" => filled(&fields["text"], "text").map(Self::Text),
            _ => tokenized(fields, vocab_size),
        }
    }
}

/// The fields of a line of JSON.
pub(super) fn object(line: &str) -> RowResult<Map<String, Value>> {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => match twice(line) {
            Some(field) => Err(format!(
                "field `{field}` is there twice; expected it once: take one of both out"
            )),
            None => Ok(fields),
        },
        Ok(other) => Err(format!(
            "found {}; expected one JSON object per line, such as {LIKE}",
            shown(&other)
        )),
        Err(e) => {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            let (column, what) = match (half_character(line), line) {
                (Some((column, what)), _) => (column, what),
                (None, line) if line.starts_with('[') && e.is_eof() => (
                    1,
                    format!(
                        "{what}: a list over several lines; take its brackets and commas out"
                    ),
                ),
                _ => (e.column(), what.to_string()),
            };
            Err(format!(
                "not a JSON object (column {column}: {what}); expected one whole object \
                 per line, such as {LIKE}"
            ))
        }
    }
}

/// Where a line of JSON escapes half of a character: one beyond U+FFFF is written as
/// two escapes, and some programs cut a text between them.
fn half_character(line: &str) -> Option<(usize, String)> {
    let escape = |at: usize| {
        let code = line.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(code, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = line[at..].find('\\') {
        at += found;
        let second = |at| matches!(escape(at), Some(0xdc00..=0xdfff));
        at += match escape(at) {
            Some(0xd800..=0xdbff) if second(at + 6) => 12,
            Some(0xd800..=0xdfff) => {
                let code = &line[at..at + 6];
                return Some((
                    at + 1,
                    format!(
                        "`{code}` is half of a character, without its other half; \
                         write both, or take it out"
                    ),
                ));
            }
            _ => 1 + line[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
    }
    None
}

/// The first field that an object of JSON has twice; `Value` keeps the last.
fn twice(object: &str) -> Option<String> {
    struct Names(Option<String>);
    impl<'de> Deserialize<'de> for Names {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_map(Names(None))
        }
    }
    impl<'de> Visitor<'de> for Names {
        type Value = Self;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
            let (mut seen, mut found) = (BTreeSet::new(), None);
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if !seen.insert(name.clone()) {
                    found.get_or_insert(name);
                }
            }
            Ok(Self(found))
        }
    }
    serde_json::from_str::<Names>(object).ok()?.0
}

fn messages(value: &Value) -> RowResult<Vec<Message>> {
    let turns = list(value, "messages")?;
    let message = |(i, turn): (usize, &Value)| {
        let Some(fields) = turn.as_object() else {
            let found = shown(turn);
            return Err(format!(
                "`messages[{i}]` is {found}; expected {{`role`, `content`}}"
            ));
        };
        for field in ["role", "content"] {
            if !fields.contains_key(field) {
                return Err(format!("`messages[{i}].{field}` is missing"));
            }
        }
        if let Some(field) = fields.keys().find(|f| *f != "role" && *f != "content")
        {
            return Err(format!(
                "`messages[{i}].{field}`: only `role` and `content` are known"
            ));
        }
        let role = text(&fields["role"], &format!("messages[{i}].role"))?;
        if !ROLES.contains(&role.as_str()) {
            return Err(format!(
                "`messages[{i}].role` is {role:?}; expected one of {}",
                ROLES.join(", ")
            ));
        }
        let name = format!("messages[{i}].content");
        let content = match role.as_str() {
            "assistant" => filled(&fields["content"], &name)?,
            _ => text(&fields["content"], &name)?,
        };
        Ok(Message { role, content })
    };
    turns.iter().enumerate().map(message).collect()
}

fn tokenized(fields: &Map<String, Value>, vocab_size: i64) -> RowResult<Row> {
    let in_vocabulary = |id: i64| (0..vocab_size).contains(&id);
    let mut ids = integers(&fields["input_ids"], "input_ids")?;
    let mut labels = integers(&fields["labels"], "labels")?;
    if let Some(i) = ids.iter().position(|&id| !in_vocabulary(id)) {
        return Err(format!(
            "`input_ids[{i}]` is {}; expected a token id from 0 to {}",
            ids[i],
            vocab_size - 1
        ));
    }
    let wrong = |&label: &i64| label != IGNORED && !in_vocabulary(label);
    if let Some(i) = labels.iter().position(wrong) {
        return Err(format!(
            "`labels[{i}]` is {}; expected a token id from 0 to {}, or {IGNORED} for a \
             token that is not learned",
            labels[i],
            vocab_size - 1
        ));
    }
    same_length("labels", labels.len(), ids.len())?;
    if let Some(mask) = fields.get("attention_mask") {
        let mask = integers(mask, "attention_mask")?;
        same_length("attention_mask", mask.len(), ids.len())?;
        // Batches hold rows end to end: padding of the file's goes.
        let length = mask.iter().rposition(|&m| m != 0).map_or(0, |last| last + 1);
        if let Some(i) = mask[..length].iter().position(|&m| m != 1) {
            return Err(format!(
                "`attention_mask[{i}]` is {}; expected ones, then zeros for padding on \
                 the right, if any",
                mask[i]
            ));
        }
        ids.truncate(length);
        labels.truncate(length);
    }
    if ids.is_empty() {
        return Err(
            "`attention_mask` is all zeros; expected at least one token".into()
        );
    }
    Ok(Row::Ids { ids, labels })
}

fn same_length(field: &str, found: usize, expected: usize) -> RowResult<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "`{field}` has {found} entries and `input_ids` {expected}; expected as many"
    ))
}

fn list<'a>(value: &'a Value, field: &str) -> RowResult<&'a Vec<Value>> {
    match value.as_array() {
        Some(list) if list.is_empty() => Err(format!("`{field}` is an empty list")),
        Some(list) => Ok(list),
        None => Err(format!("`{field}` is {}; expected a list", shown(value))),
    }
}

pub(super) fn integers(value: &Value, field: &str) -> RowResult<Vec<i64>> {
    let integer = |(i, value): (usize, &Value)| {
        let found =
            || format!("`{field}[{i}]` is {}; expected an integer", shown(value));
        value.as_i64().ok_or_else(found)
    };
    list(value, field)?.iter().enumerate().map(integer).collect()
}

fn text(value: &Value, field: &str) -> RowResult<String> {
    let found = || format!("`{field}` is {}; expected a string", shown(value));
    value.as_str().map(str::to_string).ok_or_else(found)
}

/// A text that is learned, and therefore may not be empty.
pub(super) fn filled(value: &Value, field: &str) -> RowResult<String> {
    let text = text(value, field)?;
    if text.is_empty() {
        return Err(format!("`{field}` is empty; expected the text to learn"));
    }
    Ok(text)
}

pub(super) fn names(fields: &Map<String, Value>) -> String {
    match fields.len() {
        0 => "no field".to_string(),
        _ => fields.keys().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", "),
    }
}

/// A value for a message, in a few characters.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_string(),
        Value::String(text) => {
            let start: String = text.chars().take(20).collect();
            format!(
                "the string {start:?}{}",
                if start == *text { "" } else { "..." }
            )
        }
        other => other.to_string(),
    }
}
