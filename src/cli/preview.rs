//! `downhill preview`: what a model would see of a file's rows, and which are bad.
use anyhow::{Result, anyhow, bail};
use clap::{ArgAction, Args};
use downhill::data::{
    BadRow, Dataset, Example, IGNORED, Labelled, Labels, Lengths, RowEncoder,
    Tokenizer, check,
};
use downhill::error::{plain, visible};
use downhill::train::Task;
use downhill::{Error, models};
use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub(super) struct Preview {
    /// Checkpoint folder (config.json, and tokenizer.json unless rows are token ids), or
    /// its name on the hub
    #[arg(long)]
    model: PathBuf,
    /// Rows to look at: JSON Lines, or CSV with a header
    #[arg(long)]
    train_file: PathBuf,
    /// What the rows hold
    #[arg(long, value_enum, default_value_t = Task::CausalLm)]
    task: Task,
    /// Rows to show
    #[arg(long, default_value_t = 3)]
    rows: usize,
    /// Read the whole file and list all of its bad rows
    #[arg(long)]
    check: bool,
    /// With --check: bad rows to list
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Tokens per row; longer rows are cut
    #[arg(long, default_value_t = 1024)]
    max_length: usize,
    /// Learn of {prompt, completion} the completion alone
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    completion_only_loss: bool,
    /// Learn of {messages} the assistant's turns alone
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    assistant_only_loss: bool,
}

impl Preview {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        self.model = super::resolve(&self.model)?;
        let config = models::read_config(&self.model)?;
        let tokenizer = Tokenizer::find(&self.model)?;
        let encoder = RowEncoder {
            completion_only_loss: self.completion_only_loss,
            assistant_only_loss: self.assistant_only_loss,
            ..RowEncoder::new(tokenizer.as_ref(), self.max_length, config.vocab_size)
        };
        let labels = match self.task {
            Task::CausalLm if self.check => return self.list_bad(&encoder),
            Task::CausalLm => return self.show(encoder),
            Task::Classification => Labels::Classes(vec![]),
            Task::Regression => Labels::Numbers,
        };
        match self.check {
            true => self.list_bad_labels(&encoder, &labels),
            false => self.show_labelled(&encoder, &labels),
        }
    }

    /// Prints a bad row, unless enough are.
    fn list(&self, row: &BadRow, shown: &mut usize) {
        if *shown < self.limit {
            *shown += 1;
            let path = self.train_file.display();
            let line = format!("{path}:{}: {}", row.line, row.what);
            let _ = writeln!(stdout(), "{}", plain(&line));
        }
    }

    /// What there is to say when all bad rows are listed.
    fn sum_up(
        &self,
        bad: usize,
        shown: usize,
        others: Option<String>,
    ) -> Result<ExitCode> {
        let path = self.train_file.display();
        if bad > shown {
            let more = bad - shown;
            say(&format!("and {more} more bad rows; --limit shows more"))?;
        }
        match others {
            Some(others) => say(&format!("{path}: {others}"))?,
            None if bad == 0 => bail!("{path}: no rows"),
            None => {}
        }
        say(&format!("{bad} bad rows"))?;
        Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// As [`Preview::list_bad`], for rows with labels.
    fn list_bad_labels(
        &self,
        encoder: &RowEncoder,
        labels: &Labels,
    ) -> Result<ExitCode> {
        let (mut bad, mut shown) = (0, 0);
        let limits = (encoder.max_length, encoder.vocab_size);
        let tokenizer = encoder.tokenizer.as_ref();
        let on_bad = &mut |row| {
            bad += 1;
            self.list(&row, &mut shown);
        };
        let path = &self.train_file;
        let data = Labelled::check(path, tokenizer, limits, labels, on_bad)?;
        let others = data.map(|data| format!("{data}\n{}", lengths(&data)));
        self.sum_up(bad, shown, others)
    }

    /// The first rows with their labels.
    fn show_labelled(
        &self,
        encoder: &RowEncoder,
        labels: &Labels,
    ) -> Result<ExitCode> {
        let limits = (encoder.max_length, encoder.vocab_size);
        let tokenizer = encoder.tokenizer.as_ref();
        let data = Labelled::load(&self.train_file, tokenizer, limits, labels);
        let data = data.map_err(with_hint)?;
        for row in data.rows.iter().take(self.rows) {
            let label = match &data.labels {
                Labels::Classes(names) => {
                    names.get(row.target as usize).cloned().unwrap_or_default()
                }
                Labels::Numbers => row.target.to_string(),
            };
            let (line, n) = (row.line, row.ids.len());
            say(&format!("line {line}: {n} tokens, label {}", visible(&label)))?;
            let ids: Vec<String> = row.ids.iter().map(i64::to_string).collect();
            say(&format!("ids   {}", ids.join(" ")))?;
            if let Some(tokenizer) = tokenizer {
                let text = tokenizer.decode_all(&row.ids)?;
                say(&format!("text  {}\n", visible(&text)))?;
            }
        }
        let path = self.train_file.display();
        say(&format!("{path}: {data}\n{}", lengths(&data)))?;
        Ok(ExitCode::SUCCESS)
    }

    /// All bad rows, one a line; fails if there is one.
    fn list_bad(&self, encoder: &RowEncoder) -> Result<ExitCode> {
        let mut shown = 0;
        let on_bad = &mut |row| self.list(&row, &mut shown);
        let (bad, summary, lengths) = check(&self.train_file, encoder, on_bad)?;
        let some = summary.rows > 0;
        let others = some.then(|| format!("{summary}\n{lengths}"));
        self.sum_up(bad, shown, others)
    }

    /// The first rows, token by token.
    fn show(&self, encoder: RowEncoder) -> Result<ExitCode> {
        let tokenizer = encoder.tokenizer.clone();
        let data = Dataset::read(&self.train_file, encoder).map_err(with_hint)?;
        let colour =
            stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut shown = 0;
        for i in 0..data.len() {
            if shown == self.rows {
                break;
            }
            let Some(row) = data.row(i)? else { continue };
            shown += 1;
            say(&described(&row, tokenizer.as_ref(), colour)?)?;
        }
        say(&format!("{}: {}", self.train_file.display(), data.summary))?;
        let held = data.examples.iter().map(|e| e.ids.len() as u32).collect();
        if !data.examples.is_empty() {
            say(&Lengths::new(held).to_string())?;
        }
        if !colour {
            say("[[ ]] marks what is learned")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn with_hint(e: Error) -> anyhow::Error {
    match e {
        Error::Row { .. } => anyhow!("{e}\n(--check lists every bad row)"),
        e => e.into(),
    }
}

fn lengths(data: &Labelled) -> Lengths {
    Lengths::new(data.rows.iter().map(|row| row.ids.len() as u32).collect())
}

/// A line on stdout; a closed pipe is the reader's way of saying enough.
fn say(text: &str) -> Result<()> {
    match writeln!(stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
            std::process::exit(0)
        }
        other => Ok(other?),
    }
}

/// A row's ids and text, the learned part green or in double brackets.
fn described(
    row: &Example,
    tokenizer: Option<&Tokenizer>,
    colour: bool,
) -> Result<String> {
    let mark = |learned: bool, text: String| match (learned, colour) {
        (true, true) => format!("\x1b[1;32m{text}\x1b[0m"),
        (true, false) => format!("[[{text}]]"),
        (false, true) => format!("\x1b[2m{text}\x1b[0m"),
        (false, false) => text,
    };
    let mut out = format!(
        "line {}: {} tokens, {} learned\n",
        row.line,
        row.ids.len(),
        row.supervised()
    );
    // Runs of tokens that are all learned, or none.
    let masked: Vec<bool> = row.labels.iter().map(|&l| l != IGNORED).collect();
    let mut runs = Vec::new();
    let mut from = 0;
    for part in masked.chunk_by(|a, b| a == b) {
        runs.push((part[0], &row.ids[from..from + part.len()]));
        from += part.len();
    }
    let ids = runs.iter().map(|(learned, ids)| {
        let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>();
        mark(*learned, ids.join(" "))
    });
    out += &format!("ids   {}\n", ids.collect::<Vec<_>>().join(" "));
    if let Some(tokenizer) = tokenizer {
        // A run's text depends on what stands before it.
        let (mut before, mut end, mut text) = (String::new(), 0, String::new());
        let mut tokens = Vec::new();
        for (learned, ids) in &runs {
            end += ids.len();
            let whole = tokenizer.decode_all(&row.ids[..end])?;
            let same = whole.chars().zip(before.chars()).take_while(|(a, b)| a == b);
            let from = same.map(|(c, _)| c.len_utf8()).sum::<usize>();
            text += &mark(*learned, visible(&whole[from..]));
            before = whole;
            let names = ids.iter().map(|&id| match tokenizer.token(id) {
                Some(name) => visible(&name).replace('\n', "\\n"),
                None => "?".into(),
            });
            tokens.push(mark(*learned, names.collect::<Vec<_>>().join(" ")));
        }
        // What is one token and what only reads so is to be seen.
        out += &format!("token {}\ntext  {text}\n", tokens.join(" "));
    }
    Ok(out)
}
