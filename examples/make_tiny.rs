//! Makes everything under `examples/data/` that is not a source text: the tokenizer
//! and weights of the tiny checkpoint, and the rows of the date task.
//!
//! `cargo run --example make_tiny` writes all of it again (about 15 minutes on two
//! cores); `-- --steps 0` writes all but the weights in a few seconds.
use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

#[derive(Parser)]
struct Args {
    /// Where the source texts are.
    #[arg(long, default_value = "examples/data")]
    data: PathBuf,
    /// Where to write the checkpoint folder `tiny` and the two row files.
    #[arg(long, default_value = "examples/data")]
    out: PathBuf,
    /// Optimizer steps of the pretraining; 0 leaves the weights as they are.
    #[arg(long, default_value_t = 1500)]
    steps: i64,
    /// Seed of the weights, of the order of the text, and of the rows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let tiny = args.out.join("tiny");
    std::fs::create_dir_all(&tiny)?;
    let (learn, exam) = rows(&args.data, args.seed)?;
    write_jsonl(&args.out.join("dates_train.jsonl"), &learn)?;
    write_jsonl(&args.out.join("dates_eval.jsonl"), &exam)?;
    println!("{} rows to learn from, {} to be examined on", learn.len(), exam.len());
    let books = paragraphs(&args.data)?;
    let tokenizer = tokenizer(&books, &learn, args.seed)?;
    write_tokenizer(&tokenizer, &tiny)?;
    println!("tokenizer of {} pieces", tokenizer.get_vocab_size(true));
    Ok(())
}

// ---------------------------------------------------------------- the date task

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// How a row says it: `{E}` is the event, `{D}` the date in words.
const FRAMES: [&str; 8] = [
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
const FORMS: usize = 9;

/// Events kept for the examination; no row to learn from mentions them.
const EXAM_EVENTS: usize = 150;

/// A day of the almanac, and what happened on it.
pub struct Event {
    year: u32,
    month: u32,
    day: u32,
    what: String,
}

/// One of the [`FORMS`] in which people write a date.
fn in_words(form: usize, year: u32, month: u32, day: u32) -> String {
    let full = MONTHS[month as usize - 1];
    let short = &full[..3];
    let dot = if full == short { "" } else { "." };
    let nth = match day {
        1 | 21 | 31 => "st",
        2 | 22 => "nd",
        3 | 23 => "rd",
        _ => "th",
    };
    match form {
        0 => format!("{full} {day}, {year}"),
        1 => format!("{day} {full} {year}"),
        2 => format!("the {day}{nth} of {full}, {year}"),
        3 => format!("{full} {day}{nth}, {year}"),
        4 => format!("{short}{dot} {day}, {year}"),
        5 => format!("{day} {short} {year}"),
        6 => format!("the {day}{nth} of {full} {year}"),
        7 => format!("{year}, {full} {day}"),
        _ => format!("{short} {day}{nth}, {year}"),
    }
}

/// A frame with a form that only the examination uses: one pair in six.
pub fn held_out(frame: usize, form: usize) -> bool {
    (frame * 5 + form).is_multiple_of(6)
}

fn row(event: &Event, frame: usize, form: usize) -> Value {
    let Event { year, month, day, what } = event;
    let date = in_words(form, *year, *month, *day);
    let mut text = FRAMES[frame].replace("{E}", what).replace("{D}", &date);
    text[..1].make_ascii_uppercase();
    json!({
        "prompt": format!("{text}\nDate:"),
        "completion": format!(" {year:04}-{month:02}-{day:02}"),
    })
}

/// The rows to learn from (two per event) and those of the examination, whose events
/// and whose pairs of frame and form are new.
pub fn rows(data: &Path, seed: u64) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut events = almanac(&data.join("almanac.tsv"))?;
    let mut rng = Rng(seed);
    rng.shuffle(&mut events);
    let (exam, learn) = events.split_at(EXAM_EVENTS);
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
fn almanac(path: &Path) -> Result<Vec<Event>> {
    let text =
        std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let parse = |line: &str| {
        let (date, what) = line.split_once('\t')?;
        let mut numbers = date.splitn(3, '-').map(|n| n.parse().ok());
        let mut number = || numbers.next().flatten();
        let (year, month, day) = (number()?, number()?, number()?);
        let known = (1..=12).contains(&month) && what.is_ascii();
        known.then(|| Event { year, month, day, what: what.to_owned() })
    };
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            parse(line).with_context(|| format!("{}:{}: {line}", path.display(), i + 1))
        })
        .collect()
}

fn write_jsonl(path: &Path, rows: &[Value]) -> Result<()> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(path, lines).with_context(|| path.display().to_string())
}

// ------------------------------------------------------------- the text to learn

/// The books, a paragraph a string, its lines joined.
fn paragraphs(data: &Path) -> Result<Vec<Vec<String>>> {
    ["pride_and_prejudice", "persuasion", "alice_in_wonderland"]
        .iter()
        .map(|book| {
            let path = data.join("corpus").join(book).with_extension("txt");
            let text = std::fs::read_to_string(&path)
                .with_context(|| path.display().to_string())?;
            let join = |p: &str| p.split_whitespace().collect::<Vec<_>>().join(" ");
            Ok(text.split("\n\n").map(join).collect())
        })
        .collect()
}

/// An entry of an invented parish register, and the clerk's copy of it in other
/// words: nothing but copying predicts the second line, so the model learns to copy.
/// The dates are in words; a date in digits alone is never shown.
fn register_entry(rng: &mut Rng) -> String {
    let first = rng.choose(&[
        "John", "Thomas", "William", "James", "George", "Henry", "Edward", "Robert",
        "Charles", "Mary", "Anne", "Jane", "Elizabeth", "Catherine", "Frances",
        "Charlotte", "Harriet", "Lucy", "Sarah", "Sophia",
    ]);
    let last = rng.choose(&[
        "Carter", "Mason", "Palmer", "Harris", "Bennett", "Shaw", "Wood", "Turner",
        "Cooper", "Lucas", "Grey", "Martin", "Webb", "Fletcher", "Allen", "Brooke",
        "Marsh", "Hill", "Watson", "Reed",
    ]);
    let place = rng.choose(&[
        "Bath", "London", "Derby", "Oxford", "York", "Kent", "Dover", "Bristol",
        "Lincoln", "Norfolk", "Exeter", "Durham", "Surrey", "Essex", "Leeds",
    ]);
    let mut number = |low: u32, high: u32| low + rng.below((high - low + 1) as u64) as u32;
    let date = in_words(
        number(0, FORMS as u32 - 1) as usize,
        number(1000, 2029),
        number(1, 12),
        number(1, 28),
    );
    let no = number(10, 9999);
    let copy = match number(0, 2) {
        0 => format!("Copy of No. {no}: {first} {last}, {place}, {date}."),
        1 => format!("Again, {date}: {first} {last} of {place}, No. {no}."),
        _ => format!("{first} {last} was entered on {date} as No. {no}, {place}."),
    };
    format!("No. {no}. {first} {last} of {place}, {date}.\n{copy}")
}

// ----------------------------------------------------------------- the tokenizer

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const PAD: &str = "<｜▁pad▁｜>";
const TURNS: [&str; 2] = ["<｜User｜>", "<｜Assistant｜>"];
const VOCABULARY: usize = 2048;

/// Byte-level BPE with deepseek-coder's rules for what a piece may span: a word or a
/// run of punctuation with the space before it, never two digits.
fn tokenizer(books: &[Vec<String>], rows: &[Value], seed: u64) -> Result<Tokenizer> {
    let split = |regex: &str| {
        let pattern = SplitPattern::Regex(regex.into());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(Into::into)
    };
    let bytes = ByteLevel::new(false, true, false);
    let rules = (|| {
        Ok(vec![
            split(r"[\r\n]")?,
            split(r"\s?\p{L}+")?,
            split(r"\s?\p{P}+")?,
            split("[一-龥ࠀ-一가-퟿]+")?,
            Digits::new(true).into(),
            bytes.into(),
        ])
    })()
    .map_err(anyhow_tokenizers)?;
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(rules)))
        .with_decoder(Some(bytes))
        .with_post_processor(Some(ByteLevel::new(true, false, true)));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(VOCABULARY - 3 - TURNS.len())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    let mut rng = Rng(seed);
    let register = (0..300).map(|_| register_entry(&mut rng));
    let prompts = rows.iter().filter_map(|row| row["prompt"].as_str());
    let text: Vec<String> = books
        .iter()
        .flatten()
        .cloned()
        .chain(register)
        .chain(prompts.map(Into::into))
        .collect();
    tokenizer.train(&mut trainer, text.into_iter()).map_err(anyhow_tokenizers)?;
    let named = |special| move |name: &str| AddedToken::from(name, special);
    tokenizer
        .add_special_tokens([BOS, EOS, PAD].map(named(true)))
        .map_err(anyhow_tokenizers)?;
    tokenizer.add_tokens(TURNS.map(named(false))).map_err(anyhow_tokenizers)?;
    let pieces = tokenizer.get_vocab_size(true);
    ensure!(pieces == VOCABULARY, "{pieces} pieces instead of {VOCABULARY}");
    Ok(tokenizer)
}

fn anyhow_tokenizers(error: tokenizers::Error) -> anyhow::Error {
    anyhow::anyhow!("tokenizers: {error}")
}

fn write_tokenizer(tokenizer: &Tokenizer, tiny: &Path) -> Result<()> {
    tokenizer.save(tiny.join("tokenizer.json"), false).map_err(anyhow_tokenizers)?;
    let [user, assistant] = TURNS;
    let turns = format!(
        "{{{{ bos_token }}}}{{% for message in messages %}}\
         {{% if message['role'] == 'user' %}}{{{{ '{user}' + message['content'] }}}}\
         {{% elif message['role'] == 'assistant' %}}\
         {{{{ '{assistant}' + message['content'] + eos_token }}}}\
         {{% else %}}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}\
         {{% if add_generation_prompt %}}{{{{ '{assistant}' }}}}{{% endif %}}"
    );
    write_json(
        &tiny.join("tokenizer_config.json"),
        &json!({
            "add_bos_token": true,
            "add_eos_token": false,
            "bos_token": BOS,
            "chat_template": turns,
            "clean_up_tokenization_spaces": false,
            "eos_token": EOS,
            "legacy": true,
            "model_max_length": 512,
            "pad_token": PAD,
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": null,
        }),
    )
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

// ------------------------------------------------------------------- the numbers

/// SplitMix64: the same draws on every machine.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in 0..n.
    fn below(&mut self, n: u64) -> u64 {
        ((self.next() as u128 * n as u128) >> 64) as u64
    }
    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}
