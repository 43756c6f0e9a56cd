//! Rows for the experiments on data.
use super::text::read;
use downhill::data::{Dataset, Example, IGNORED, Tokenizer};
use downhill::models::Decoder;
use downhill::{Error, Result};
use std::path::PathBuf;

/// The checkpoint that ships, unquantized in f32.
///
/// # Errors
/// It is not to be found from here; what is wrong with it.
pub fn tiny() -> Result<Decoder> {
    super::shipped::checkpoint(false)
}

/// A file of this process's own, among the temporary ones.
///
/// # Errors
/// What the operating system says.
pub fn scratch(name: &str, text: &str) -> Result<PathBuf> {
    let name = format!("downhill-{}-{name}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
    Ok(path)
}

/// A row's text, what is learned of it in double brackets.
///
/// # Errors
/// What the tokenizer refuses.
pub fn marked(row: &Example, tokenizer: &Tokenizer) -> Result<String> {
    let (mut text, mut from) = (String::new(), 0);
    for part in row.labels.chunk_by(|a, b| (*a == IGNORED) == (*b == IGNORED)) {
        let words = tokenizer.decode_all(&row.ids[from..from + part.len()])?;
        text += &match part[0] {
            IGNORED => words,
            _ => format!("[[{words}]]"),
        };
        from += part.len();
    }
    Ok(text)
}

// ANCHOR: bad
/// Rows with faults, as files have them.
pub const BAD: &str = r#"{"prompt": "1+1?", "completion": " 2"}
{"prompt": "2+2?", "completion": ""}
{"prompt": "3+3?", "answer": " 6"}
{"prompt": "4+4?", "completion": " 8"
{"prompt": "<｜begin▁of▁sentence｜>5+5?", "completion": " 10"}
"#;
// ANCHOR_END: bad

// ANCHOR: by_id
/// The mask that many programs make: not learned is whatever equals the pad token.
pub fn mask_by_id(rows: &mut Dataset, pad: i64) {
    for row in &mut rows.examples {
        for label in row.labels.iter_mut().filter(|label| **label == pad) {
            *label = IGNORED;
        }
    }
}
// ANCHOR_END: by_id

/// Passages of thirty words from the ends of three books, which were kept from the
/// checkpoint that ships: 90 of them.
///
/// # Errors
/// A book is not to be found from here.
pub fn passages(tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let mut all = vec![];
    for book in ["pride_and_prejudice", "persuasion", "alice_in_wonderland"] {
        let text = read(book)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        for some in words[words.len() - 900..].chunks(30) {
            let ids = tokenizer.encode(&some.join(" "), true)?;
            all.push(Example { labels: ids.clone(), ids, line: all.len() + 1 });
        }
    }
    Ok(all)
}
