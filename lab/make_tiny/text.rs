//! What the tiny model reads: books, and an invented register that teaches copying.
use super::dates::{FORMS, in_figures, in_words};
use super::rng::Rng;
use anyhow::{Context, Result};
use std::path::Path;

/// The books in `folder`, a paragraph a string, its lines joined.
pub fn books(folder: &Path) -> Result<Vec<Vec<String>>> {
    ["pride_and_prejudice", "persuasion", "alice_in_wonderland"]
        .iter()
        .map(|book| {
            let path = folder.join(book).with_extension("txt");
            let text = std::fs::read_to_string(&path)
                .with_context(|| path.display().to_string())?;
            let join = |p: &str| p.split_whitespace().collect::<Vec<_>>().join(" ");
            Ok(text.split("\n\n").map(join).collect())
        })
        .collect()
}

/// An entry of an invented parish register, and what is made of it: a fair copy or a
/// line of the index. Both hold the same facts in a fixed order, which nothing but
/// looking back predicts. The entry spells its date out; the copy has figures and the
/// month's name, the index figures alone; neither has the order of ISO 8601.
pub fn register_entry(rng: &mut Rng) -> (String, String) {
    let first = rng.word(
        "John Thomas William James George Henry Edward Robert Charles Mary Anne Jane \
         Elizabeth Catherine Frances Charlotte Harriet Lucy Sarah Sophia",
    );
    let last = rng.word(
        "Carter Mason Palmer Harris Bennett Shaw Wood Turner Cooper Lucas Grey Martin \
         Webb Fletcher Allen Brooke Marsh Hill Watson Reed",
    );
    let place = rng.word(
        "Bath London Derby Oxford York Kent Dover Bristol Lincoln Norfolk Exeter \
         Durham Surrey Essex Leeds",
    );
    let date = [1100 + rng.below(900), 1 + rng.below(12), 1 + rng.below(31)];
    let told = in_words(rng.below(FORMS), date);
    let entry = match rng.below(6) {
        0 => format!("{first} {last} of {place}, {told}."),
        1 => format!("On {told}: {first} {last} of {place}."),
        2 => format!("{first} {last} was married at {place} on {told}."),
        3 => format!("{place}. {first} {last} was baptised ({told})."),
        4 => format!("At {place}, {told}, before me, {first} {last}."),
        _ => format!("{told}, {first} {last}, {place}."),
    };
    if rng.below(2) == 0 {
        let copy = format!(" {}; {first} {last}; {place}.", in_figures(date));
        (entry + "\nFair copy:", copy)
    } else {
        let [year, month, day] = date;
        let line = format!(" {last}, {first}, {place}, {day}/{month}/{year}.");
        (entry + "\nIndex:", line)
    }
}
