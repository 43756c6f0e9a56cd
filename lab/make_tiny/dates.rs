//! The date task: rows that ask for the ISO form of a date written in words.
use super::rng::Rng;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

/// How a row says it: `{E}` is the event, `{D}` the date in words.
pub const FRAMES: [&str; 8] = [
    "{E}, {D}.",
    "{E}. That was on {D}.",
    "{D}: {E}.",
    "On {D}: {E}.",
    "{E} ({D}).",
    "What happened on {D}? {E}.",
    "When was it? {E}, {D}.",
    "The almanac for {D} says: {E}.",
];

/// Ways of writing a date in words: see [`in_words`].
pub const FORMS: usize = 7;

/// Events kept for the examination; no row to learn from mentions them.
pub const EXAM_EVENTS: usize = 150;

/// A day of the almanac, and what happened on it.
pub struct Event {
    /// Year, month, day.
    pub date: [usize; 3],
    /// In the almanac's words.
    pub what: String,
}

/// One of the [`FORMS`] in which letters, deeds and newspapers spell a date out.
pub fn in_words(form: usize, [year, month, day]: [usize; 3]) -> String {
    let month = month_name(month);
    let day = ordinal(day);
    let (long, short) = (year_in_words(year, true), year_in_words(year, false));
    match form {
        0 => format!("the {day} of {month}, {long}"),
        1 => format!("{month} the {day}, {long}"),
        2 => format!("the {day} of {month}, {short}"),
        3 => format!("{month} the {day}, {short}"),
        4 => format!("the {day} day of {month}, {long}"),
        5 => format!("the {day} day of {month} in the year {long}"),
        _ => format!("{month} the {day} of the year {short}"),
    }
}

/// The register's fair copy: "January 7, 1927".
pub fn in_figures([year, month, day]: [usize; 3]) -> String {
    format!("{} {day}, {year}", month_name(month))
}

fn month_name(month: usize) -> &'static str {
    const MONTHS: &str = "January February March April May June July August \
                          September October November December";
    MONTHS.split_whitespace().nth(month - 1).unwrap_or("?")
}

/// Numbers below one hundred.
fn number(n: usize) -> String {
    const ONES: &str = "zero one two three four five six seven eight nine ten eleven \
                        twelve thirteen fourteen fifteen sixteen seventeen eighteen \
                        nineteen";
    const TENS: &str = "twenty thirty forty fifty sixty seventy eighty ninety";
    let word =
        |words: &'static str, i| words.split_whitespace().nth(i).unwrap_or("?");
    match (n / 10, n % 10) {
        (0 | 1, _) => word(ONES, n).into(),
        (tens, 0) => word(TENS, tens - 2).into(),
        (tens, ones) => format!("{}-{}", word(TENS, tens - 2), word(ONES, ones)),
    }
}

fn ordinal(n: usize) -> String {
    let cardinal = number(n);
    let irregular = [
        ("one", "first"),
        ("two", "second"),
        ("three", "third"),
        ("five", "fifth"),
        ("eight", "eighth"),
        ("nine", "ninth"),
        ("twelve", "twelfth"),
        ("ty", "tieth"),
    ];
    for (end, nth) in irregular {
        if let Some(stem) = cardinal.strip_suffix(end) {
            return format!("{stem}{nth}");
        }
    }
    cardinal + "th"
}

/// "seventeen hundred and seventy-six", or in short "seventeen seventy-six".
fn year_in_words(year: usize, long: bool) -> String {
    let (century, rest) = (number(year / 100), year % 100);
    match rest {
        0 => format!("{century} hundred"),
        1..10 => format!("{century} hundred and {}", number(rest)),
        _ if long => format!("{century} hundred and {}", number(rest)),
        _ => format!("{century} {}", number(rest)),
    }
}

/// Whether only the examination puts this form into this frame: one pair in seven.
pub fn held_out(frame: usize, form: usize) -> bool {
    (frame * 2 + form).is_multiple_of(FORMS)
}

fn row(Event { date, what }: &Event, frame: usize, form: usize) -> Value {
    let words = in_words(form, *date);
    let mut text = FRAMES[frame].replace("{E}", what).replace("{D}", &words);
    text[..1].make_ascii_uppercase();
    let [year, month, day] = date;
    json!({
        "prompt": format!("{text}\nDate:"),
        "completion": format!(" {year:04}-{month:02}-{day:02}"),
    })
}

/// The rows to learn from (two per event) and those of the examination, whose events
/// and whose pairs of frame and form are new.
pub fn rows(almanac_tsv: &Path, seed: u64) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut events = almanac(almanac_tsv)?;
    let mut rng = Rng(seed);
    rng.shuffle(&mut events);
    let (exam, learn) = events.split_at(EXAM_EVENTS.min(events.len()));
    let (new, known): (Vec<_>, Vec<_>) = (0..FRAMES.len() * FORMS)
        .map(|i| (i / FORMS, i % FORMS))
        .partition(|&(frame, form)| held_out(frame, form));
    let mut draw = |event: &Event, pairs: &[(usize, usize)]| {
        let &(frame, form) = rng.choose(pairs);
        row(event, frame, form)
    };
    let exam = exam.iter().map(|e| draw(e, &new)).collect();
    let mut learn: Vec<_> =
        learn.iter().chain(learn).map(|e| draw(e, &known)).collect();
    rng.shuffle(&mut learn);
    Ok((learn, exam))
}

/// The lines `1776-07-08 <TAB> what happened`.
pub fn almanac(path: &Path) -> Result<Vec<Event>> {
    let text =
        std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let parse = |line: &str| {
        let (date, what) = line.split_once('\t')?;
        let numbers: Vec<usize> =
            date.split('-').map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let date: [usize; 3] = numbers.try_into().ok()?;
        let sound =
            (1..=12).contains(&date[1]) && !what.is_empty() && what.is_ascii();
        sound.then(|| Event { date, what: what.to_owned() })
    };
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            let place = || format!("{}:{}: {line}", path.display(), i + 1);
            parse(line).with_context(place)
        })
        .collect()
}
