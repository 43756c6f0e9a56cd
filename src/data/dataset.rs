//! A file of rows as token ids and labels: held in memory, or read as they are taken.
use super::{
    Example, Fingerprint, RowEncoder, Tokenizer, order,
    row_encoder::Encoded,
    rows::{Row, RowResult},
    source::{Format, Record, Source},
    stream::Stream,
    summary::Summary,
};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// The rows of a file, ready to be batched.
#[derive(Debug)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Its rows in order, without the skipped ones; none if they are streamed.
    pub examples: Vec<Example>,
    /// What was read, cut and skipped.
    pub summary: Summary,
    encoder: RowEncoder,
    /// By line: the rows whose labels do not say what a model is asked.
    asked: Arc<BTreeMap<usize, Row>>,
    fingerprint: Fingerprint,
    stream: Option<Stream>,
}

/// A row, itself where its labels do not say what is asked, and how it was encoded.
pub(super) type Asked<'a> = (Cow<'a, Example>, Option<Row>, &'a RowEncoder);

/// Rows tokenized at a time: enough to share among threads, little to hold.
const CHUNK: usize = 1024;

/// Files of more bytes are streamed: tokenized, this much takes some 300 MB of memory
/// and some seconds.
const STREAM_ABOVE: u64 = 64 << 20;

impl Dataset {
    /// Reads and tokenizes a file of JSON Lines, or of CSV with a header. All its rows
    /// are of one kind:
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
    /// checkpoint's chat template, with the reasoning that templates of R1's kind drop,
    /// and tokenized whole. A row of more than `max_length` tokens loses its end; one
    /// that then has no token to learn is skipped. The lines of both are in the
    /// [`Summary`].
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
        Self::read(path, RowEncoder::new(tokenizer, max_length, vocab_size))
    }

    /// As [`Dataset::load`]. A file of more than 64 MiB is streamed.
    pub fn read(path: impl AsRef<Path>, encoder: RowEncoder) -> Result<Self> {
        let mut source = open(path.as_ref(), &encoder)?;
        if source.length > STREAM_ABOVE {
            return Self::streamed(source, encoder);
        }
        let path = source.path.clone();
        let (mut examples, mut asked) = (vec![], BTreeMap::new());
        let mut summary = Summary::default();
        encode_all(&mut source, &encoder, usize::MAX, &mut |line, encoded| {
            let encoded = encoded.map_err(|what| Error::row(&path, line, what))?;
            summary.add(&encoded);
            if encoded.example.supervised() > 0 {
                examples.push(encoded.example);
                asked.extend(encoded.asked.map(|row| (line, row)));
            }
            Ok(())
        })?;
        let (asked, fingerprint) = (Arc::new(asked), source.digest.fingerprint());
        let stream = None;
        Self { path, examples, summary, encoder, asked, fingerprint, stream }
            .not_empty()
    }

    /// As [`Dataset::load`], whatever the file's size: only where each row begins is
    /// kept, and a row is read and tokenized when it is taken. So a file may be larger
    /// than memory. The first 1024 rows are looked at now; what is wrong with a later
    /// one is found when it is met.
    pub fn stream(path: impl AsRef<Path>, encoder: RowEncoder) -> Result<Self> {
        Self::streamed(open(path.as_ref(), &encoder)?, encoder)
    }

    fn streamed(mut source: Source, encoder: RowEncoder) -> Result<Self> {
        let path = source.path.clone();
        let mut summary = Summary::default();
        encode_all(&mut source, &encoder, CHUNK, &mut |line, encoded| {
            let encoded = encoded.map_err(|what| Error::row(&path, line, what))?;
            summary.add(&encoded);
            Ok(())
        })?;
        let stream = Stream::index(&path, encoder.clone())?;
        summary.streamed = stream.len();
        let (examples, asked) = (vec![], Arc::default());
        let fingerprint = stream.fingerprint.clone();
        let stream = Some(stream);
        Self { path, examples, summary, encoder, asked, fingerprint, stream }
            .not_empty()
    }

    fn not_empty(self) -> Result<Self> {
        if self.summary.rows == 0 {
            let what = "empty; expected one JSON object per line, or in a .csv file a \
                        header and rows";
            return Err(Error::file(self.path, what));
        }
        // Of a streamed file as many rows are looked at as it takes to find one.
        let learned = self.summary.skipped.len() < self.summary.rows;
        let later = || self.stream.as_ref().map_or(Ok(false), Stream::teaches);
        if !learned && !later()? {
            let what = self.summary.nothing(self.encoder.max_length);
            return Err(Error::file(self.path, what));
        }
        Ok(self)
    }

    /// Rows that can be taken.
    pub fn len(&self) -> usize {
        self.stream.as_ref().map_or(self.examples.len(), Stream::len)
    }

    /// What tells all rows of the file, taken or not, from those of another.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Whether there is none: never so after reading.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether rows are read as they are taken.
    pub fn is_streamed(&self) -> bool {
        self.stream.is_some()
    }

    /// The row `i`, counted from 0 in the file's order; `None` where a streamed row
    /// turns out to have no token to learn.
    ///
    /// # Errors
    /// A streamed row that is wrong, by line and field.
    pub fn row(&self, i: usize) -> Result<Option<Cow<'_, Example>>> {
        match &self.stream {
            None => Ok(self.examples.get(i).map(Cow::Borrowed)),
            Some(stream) => Ok(stream.row(i)?.map(Cow::Owned)),
        }
    }

    /// Row `i`, and what [`Dataset::questions`] needs besides.
    pub(super) fn asked(&self, i: usize) -> Result<Option<Asked<'_>>> {
        Ok(match &self.stream {
            None => self.examples.get(i).map(|example| {
                let row = self.asked.get(&example.line).cloned();
                (Cow::Borrowed(example), row, &self.encoder)
            }),
            Some(stream) => stream
                .encoded(i)?
                .map(|e| (Cow::Owned(e.example), e.asked, &self.encoder)),
        })
    }

    /// How many of its rows stand in `other` as well; of streamed rows it is not known.
    pub fn repeats(&self, other: &Self) -> usize {
        let known: HashSet<(&[i64], &[i64])> =
            other.examples.iter().map(|e| (&e.ids[..], &e.labels[..])).collect();
        let there = |e: &&Example| known.contains(&(&e.ids[..], &e.labels[..]));
        self.examples.iter().filter(there).count()
    }

    pub(super) fn encoder(&self) -> &RowEncoder {
        &self.encoder
    }

    /// The lines on which the rows begin.
    pub(super) fn lines(&self) -> Cow<'_, [u32]> {
        match &self.stream {
            Some(stream) => stream.lines().into(),
            None => self.examples.iter().map(|e| e.line as u32).collect(),
        }
    }

    /// Tokens of each row, 0 where none of them is learned. A streamed file is read and
    /// tokenized for it from end to end, once.
    ///
    /// # Errors
    /// As [`Dataset::row`].
    pub fn lengths(&self) -> Result<Vec<u32>> {
        match &self.stream {
            None => Ok(self.examples.iter().map(|e| e.ids.len() as u32).collect()),
            Some(stream) => stream.lengths(),
        }
    }

    /// Lines of the rows that were taken, and had no token to learn.
    pub fn skipped_late(&self) -> Vec<usize> {
        self.stream.as_ref().map_or(vec![], Stream::skipped)
    }

    /// Takes `share` of the rows away, at least one, drawn by `seed`, for validation:
    /// the rows to learn from, and those. Both keep the order of the file.
    ///
    /// # Errors
    /// A share that leaves either without a row.
    pub fn split(mut self, share: f64, seed: u64) -> Result<(Self, Self)> {
        let away = held_out(self.len(), share, seed)?;
        let path = self.path.clone();
        let stream = self.stream.as_mut().map(|s| s.take(&away));
        let mut away = away.into_iter();
        let all = std::mem::take(&mut self.examples);
        let (examples, kept) =
            all.into_iter().partition(|_| away.next().unwrap_or_default());
        self.examples = kept;
        let of = |data: &Self| match &data.stream {
            None => Summary::of(&data.examples),
            Some(s) => Summary { streamed: s.len(), ..data.summary.clone() },
        };
        let (encoder, asked) = (self.encoder.clone(), self.asked.clone());
        let (summary, fingerprint) =
            (self.summary.clone(), self.fingerprint.clone());
        let mut validation =
            Self { path, examples, summary, encoder, asked, fingerprint, stream };
        for part in [&mut validation, &mut self] {
            part.summary = of(part);
            if let Some(stream) = &part.stream
                && !stream.teaches()?
            {
                let what = format!(
                    "{share} leaves rows without a token to learn to one part; {}",
                    part.summary.nothing(part.encoder.max_length)
                );
                return Err(Error::setting("--validation-split", what));
            }
        }
        Ok((self, validation))
    }
}

/// Which of `n` rows are kept for validation: `share` of them, at least one.
pub(super) fn held_out(n: usize, share: f64, seed: u64) -> Result<Vec<bool>> {
    let held = (n as f64 * share).round().max(1.) as usize;
    if !(share > 0. && share < 1.) || held >= n {
        let what = format!(
            "{share} of {n} rows leaves none to learn from or none to measure on; a \
             share such as 0.1, and more rows"
        );
        return Err(Error::setting("--validation-split", what));
    }
    let mut away = vec![false; n];
    // An epoch that no run reaches: the draw is none of the shuffles.
    for i in order(n, seed, u64::MAX, true).into_iter().take(held) {
        away[i] = true;
    }
    Ok(away)
}

pub(super) fn open(path: &Path, encoder: &RowEncoder) -> Result<Source> {
    if encoder.max_length < 2 {
        let what = format!(
            "{} leaves nothing to predict; use 2 or more",
            encoder.max_length
        );
        return Err(Error::setting("--max-length", what));
    }
    Source::open(path)
}

/// Encodes at most `n` rows, some on each core, and gives them to `on` in their order.
/// A row of another kind than the first is an error like any other.
pub(super) fn encode_all(
    source: &mut Source,
    encoder: &RowEncoder,
    n: usize,
    on: &mut dyn FnMut(usize, RowResult<Encoded>) -> Result<()>,
) -> Result<()> {
    let bar = progress_bar(source.length, &source.path);
    let (mut first, mut done) = (None, 0);
    while done < n {
        let records = source.take(CHUNK.min(n - done))?;
        if records.is_empty() {
            break;
        }
        done += records.len();
        for (record, encoded) in
            records.iter().zip(on_all_cores(&records, &source.format, encoder))
        {
            on(record.line, of_one_kind(encoded, record.line, &mut first))?;
        }
        bar.set_position(source.at);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Refuses a row of another kind than the first, whose line and kind are in `first`.
pub(super) fn of_one_kind(
    encoded: RowResult<Encoded>,
    line: usize,
    first: &mut Option<(usize, &'static str)>,
) -> RowResult<Encoded> {
    let encoded = encoded?;
    let (first_line, kind) = *first.get_or_insert((line, encoded.kind));
    if encoded.kind != kind {
        return Err(format!(
            "found a row of {}, but line {first_line} has {kind}; expected one kind in \
             a file: put the others in another",
            encoded.kind
        ));
    }
    Ok(encoded)
}

/// Rows in the order of records.
pub(super) fn on_all_cores(
    records: &[Record],
    format: &Format,
    encoder: &RowEncoder,
) -> Vec<RowResult<Encoded>> {
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let share = records.len().div_ceil(cores).max(32);
    let work = |part: &[Record]| -> Vec<RowResult<Encoded>> {
        part.iter().map(|r| encoder.encode(format, r.line, &r.bytes)).collect()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = records
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

/// A bar over the file's bytes; indicatif hides it where stderr is not a terminal.
pub(super) fn progress_bar(length: u64, path: &Path) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("tokenizing {msg} {wide_bar} {eta:>4}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(path.display().to_string());
    bar
}
