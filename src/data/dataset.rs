//! A file of rows, one JSON object per line, as token ids and labels.
use super::{
    Example, IGNORED, Tokenizer,
    rows::{Row, RowResult},
};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    thread,
};

/// The rows of a file, ready to be batched.
#[derive(Debug)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Its rows in order, without the skipped ones.
    pub examples: Vec<Example>,
    /// What was read, cut and skipped.
    pub summary: Summary,
}

/// What became of a file's rows. `Display` says it in one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows in the file, blank lines not counted.
    pub rows: usize,
    /// Lines of the rows that were cut on the right to the length limit.
    pub truncated: Vec<usize>,
    /// Lines of the rows that were left out: no token to learn, or none within the
    /// length limit.
    pub skipped: Vec<usize>,
    /// Tokens in the rows that are left.
    pub tokens: usize,
    /// Those of them that are learned.
    pub supervised: usize,
}

/// Rows tokenized at a time: enough to share among threads, little to hold.
const CHUNK: usize = 1024;

impl Dataset {
    /// Reads and tokenizes a JSON Lines file. All its rows are of one kind:
    ///
    /// | row | learned |
    /// |---|---|
    /// | `{"prompt", "completion"}` | the completion and a final EOS |
    /// | `{"messages": [{"role", "content"}]}` | each assistant turn, with its EOS |
    /// | `{"text"}` | everything, and a final EOS |
    /// | `{"input_ids", "labels"}` | where the label is not -100 |
    ///
    /// Prompt and completion are tokenized apart, as they are when the model is asked:
    /// the mask is exact, and no token spans both. A conversation is written by the
    /// checkpoint's chat template and tokenized whole. A row of more than `max_length`
    /// tokens loses its end; one that then has no token to learn is skipped. The lines
    /// of both are in the [`Summary`].
    ///
    /// `tokenizer` may be `None` for a file of token ids. Ids must be below the model's
    /// `vocab_size`. The first bad row is an error with its line and field; so are a
    /// file without rows, and one of which every row was skipped.
    pub fn load(
        path: impl AsRef<Path>,
        tokenizer: Option<&Tokenizer>,
        max_length: usize,
        vocab_size: i64,
    ) -> Result<Self> {
        let path = path.as_ref();
        if max_length < 2 {
            let what =
                format!("{max_length} leaves nothing to predict; use 2 or more");
            return Err(Error::setting("--max-length", what));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut lines =
            Lines { path, file: BufReader::new(file), line: 0, bytes: 0 };
        let bar = progress_bar(length, path);
        let make = |line: usize, text: &str| -> RowResult<(&'static str, Example)> {
            let row = Row::parse(text, vocab_size)?;
            let kind = row.kind();
            let example = tokenize(row, line, tokenizer)?;
            in_vocabulary(&example, vocab_size)?;
            Ok((kind, example))
        };

        let mut data = Self {
            path: path.into(),
            examples: Vec::new(),
            summary: Summary::default(),
        };
        let mut first_kind = None;
        loop {
            let chunk = lines.take(CHUNK)?;
            if chunk.is_empty() {
                break;
            }
            for ((line, _), made) in chunk.iter().zip(on_all_cores(&chunk, &make)) {
                let (kind, example) =
                    made.map_err(|what| Error::row(path, *line, what))?;
                let (first_line, first) = *first_kind.get_or_insert((*line, kind));
                if kind != first {
                    return Err(Error::row(
                        path,
                        *line,
                        format!(
                            "found a row of {kind}, but line {first_line} has {first}; \
                             expected one kind in a file: put the others in another"
                        ),
                    ));
                }
                data.add(example, max_length);
            }
            bar.set_position(lines.bytes);
        }
        bar.finish_and_clear();
        if data.summary.rows == 0 {
            let what = "empty; expected one JSON object per line";
            return Err(Error::file(path, what));
        }
        if data.examples.is_empty() {
            let what = format!(
                "no row has a token to learn: of {}, {} were cut to --max-length \
                 {max_length}; raise it, or check the labels",
                data.summary.rows,
                data.summary.truncated.len()
            );
            return Err(Error::file(path, what));
        }
        Ok(data)
    }

    fn add(&mut self, mut example: Example, max_length: usize) {
        self.summary.rows += 1;
        if example.ids.len() > max_length {
            example.ids.truncate(max_length);
            example.labels.truncate(max_length);
            self.summary.truncated.push(example.line);
        }
        let supervised = example.supervised();
        if supervised == 0 {
            self.summary.skipped.push(example.line);
            return;
        }
        self.summary.tokens += example.ids.len();
        self.summary.supervised += supervised;
        self.examples.push(example);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.rows - self.skipped.len();
        let (tokens, learned) = (self.tokens, self.supervised);
        write!(
            f,
            "{used} of {} rows, {tokens} tokens, {learned} learned",
            self.rows
        )?;
        for (what, lines) in [
            ("cut to the length limit", &self.truncated),
            ("skipped: no token to learn", &self.skipped),
        ] {
            if lines.is_empty() {
                continue;
            }
            let first =
                lines.iter().take(5).map(usize::to_string).collect::<Vec<_>>();
            let more = if lines.len() > 5 { ", ..." } else { "" };
            write!(f, "; {} {what} (line {}{more})", lines.len(), first.join(", "))?;
        }
        Ok(())
    }
}

/// Ids and labels of one row. The error names the field.
fn tokenize(
    row: Row,
    line: usize,
    tokenizer: Option<&Tokenizer>,
) -> RowResult<Example> {
    let kind = row.kind();
    if let Row::Ids { ids, labels } = row {
        return Ok(Example { ids, labels, line });
    }
    let Some(tokenizer) = tokenizer else {
        return Err(format!(
            "{kind} needs a tokenizer, and the checkpoint has no tokenizer.json; add \
             one, or write {{`input_ids`, `labels`}}"
        ));
    };
    let eos = tokenizer.eos_id();
    let encode =
        |text: &str, bos| tokenizer.encode(text, bos).map_err(|e| e.to_string());
    let (ids, labels) = match row {
        Row::Completion { prompt, completion } => {
            let mut ids = encode(&prompt, true)?;
            let mut labels = vec![IGNORED; ids.len()];
            let completion = with_eos(encode(&completion, false)?, eos);
            ids.extend(&completion);
            labels.extend(completion);
            (ids, labels)
        }
        Row::Text(text) => {
            let ids = with_eos(encode(&text, true)?, eos);
            (ids.clone(), ids)
        }
        Row::Messages(messages) => {
            let Some(template) = tokenizer.template() else {
                return Err(
                    "`messages` needs a chat template, and the checkpoint has \
                            none; add chat_template.jinja, or write {`prompt`, \
                            `completion`}"
                        .into(),
                );
            };
            let (text, spans) = template.spans(&messages)?;
            let (mut ids, offsets) =
                tokenizer.encode_with_offsets(&text).map_err(|e| e.to_string())?;
            let learned = |at: &std::ops::Range<usize>| {
                spans.iter().any(|span| at.start < span.end && at.end > span.start)
            };
            let label = |(&id, at)| if learned(at) { id } else { IGNORED };
            let mut labels = ids.iter().zip(&offsets).map(label).collect::<Vec<_>>();
            let answered = messages.last().is_some_and(|m| m.role == "assistant");
            if answered && !tokenizer.ends_with_stop(&text) {
                ids.push(eos);
                labels.push(eos);
            }
            (ids, labels)
        }
        Row::Ids { ids, labels } => (ids, labels),
    };
    Ok(Example { ids, labels, line })
}

fn with_eos(mut ids: Vec<i64>, eos: i64) -> Vec<i64> {
    if ids.last() != Some(&eos) {
        ids.push(eos);
    }
    ids
}

fn in_vocabulary(example: &Example, vocab_size: i64) -> RowResult<()> {
    match example.ids.iter().find(|&&id| id >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(format!(
            "its token {id} is outside the model's vocabulary of {vocab_size}: this \
             tokenizer belongs to another model"
        )),
    }
}

/// Calls `make` for each line, some lines on each core; results in the order of lines.
fn on_all_cores<T: Send>(
    lines: &[(usize, String)],
    make: &(impl Fn(usize, &str) -> T + Sync),
) -> Vec<T> {
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let share = lines.len().div_ceil(cores).max(32);
    let work = |part: &[(usize, String)]| -> Vec<T> {
        part.iter().map(|(line, text)| make(*line, text)).collect()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = lines
            .chunks(share)
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        let results = workers.into_iter().flat_map(|worker| match worker.join() {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect()
    })
}

/// The lines of a file with their numbers, blank ones left out.
struct Lines<'a> {
    path: &'a Path,
    file: BufReader<File>,
    line: usize,
    bytes: u64,
}

impl Lines<'_> {
    /// The next lines, at most `n`.
    fn take(&mut self, n: usize) -> Result<Vec<(usize, String)>> {
        let mut lines = Vec::new();
        while lines.len() < n {
            let mut bytes = Vec::new();
            let read = self.file.read_until(b'\n', &mut bytes);
            let read = read.map_err(|e| Error::io(self.path, e))?;
            if read == 0 {
                break;
            }
            self.line += 1;
            self.bytes += read as u64;
            let text = String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to() + 1;
                let what = format!("byte {at} is not UTF-8; save the file as UTF-8");
                Error::row(self.path, self.line, what)
            })?;
            // Some editors begin a file with a byte order mark.
            let text = if self.line == 1 {
                text.trim_start_matches('\u{feff}')
            } else {
                &text
            };
            if !text.trim().is_empty() {
                lines.push((self.line, text.trim().to_string()));
            }
        }
        Ok(lines)
    }
}

/// A bar over the file's bytes; indicatif hides it where stderr is not a terminal.
fn progress_bar(length: u64, path: &Path) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("tokenizing {msg} {wide_bar} {eta:>4}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(path.display().to_string());
    bar
}
