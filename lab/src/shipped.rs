//! The checkpoint that ships, and the pages that it has not read.
use super::text::{find, read};
use downhill::Result;
use downhill::data::{Dataset, Example, Labelled, LabelledRow, Labels, Tokenizer};
use downhill::models::{Decoder, LoadOptions, load};
use downhill::nn::Mode;
use tch::{Device, Kind, Tensor, no_grad};

/// Tokens of a page.
const PAGE: usize = 128;
/// Pages at the end of each book; twice as many were kept from the model.
const PAGES: usize = 8;
pub(super) const BOOKS: [&str; 3] =
    ["pride_and_prejudice", "persuasion", "alice_in_wonderland"];

/// The tiny checkpoint, unquantized in f32, with the pages of its books that were kept
/// from it in training.
#[derive(Debug)]
pub struct Shipped {
    /// The model.
    pub model: Decoder,
    /// [pages, 1 + 128], each after a BOS.
    pages: Tensor,
    /// The probabilities that it gives as it was loaded, [tokens, V].
    first: Tensor,
    /// Their entropy, nats per token.
    entropy: f64,
}

impl Shipped {
    /// From `examples/data`, looked for in the working folder and those above it.
    ///
    /// # Errors
    /// It is in none of them; what is wrong with it.
    pub fn load() -> Result<Self> {
        let model = checkpoint(false)?;
        let tokenizer = tokenizer()?;
        let mut pages: Vec<i64> = vec![];
        for book in BOOKS {
            // As `lab/make_tiny` joins and divides it.
            let join = |p: &str| p.split_whitespace().collect::<Vec<_>>().join(" ");
            let text: Vec<String> = read(book)?.split("\n\n").map(join).collect();
            let ids = tokenizer.encode(&text.join("\n"), false)?;
            for page in ids[ids.len() - PAGES * PAGE..].chunks(PAGE) {
                pages.extend(tokenizer.bos_id());
                pages.extend(page);
            }
        }
        let pages = Tensor::from_slice(&pages).view([-1, 1 + PAGE as i64]);
        let mut shipped = Self { model, pages, first: Tensor::new(), entropy: 0. };
        let says = shipped.says()?;
        shipped.first = says.exp();
        shipped.entropy = shipped.cross(&says);
        Ok(shipped)
    }

    // ANCHOR: after
    /// The loss of each token of a page but the first, by its place, where pages begin
    /// with `start` instead of the BOS: means over the pages.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn losses_after(&self, start: &[i64]) -> Result<Vec<f64>> {
        let text = self.pages.narrow(1, 1, PAGE as i64);
        let (n, s) = (text.size()[0], start.len() as i64);
        let start = Tensor::from_slice(start).repeat([n, 1]);
        let x = Tensor::cat(&[&start, &text.narrow(1, 0, PAGE as i64 - 1)], 1);
        no_grad(|| {
            let hidden = self.model.hidden(&x, Mode::Eval, None)?;
            let hidden = hidden.narrow(1, s, PAGE as i64 - 1);
            let says = self.model.logits(&hidden)?.log_softmax(-1, Kind::Double);
            let next = text.narrow(1, 1, PAGE as i64 - 1).unsqueeze(-1);
            let loss = -says.gather(-1, &next, false).squeeze_dim(-1);
            let mean = loss.mean_dim([0i64].as_slice(), false, Kind::Double);
            Ok(Vec::try_from(mean)?)
        })
    }
    // ANCHOR_END: after

    /// Logarithms of the probability of each token after each token, [tokens, V].
    fn says(&self) -> Result<Tensor> {
        no_grad(|| {
            let x = self.pages.narrow(1, 0, PAGE as i64);
            let hidden = self.model.hidden(&x, Mode::Eval, None)?;
            let logits = self.model.logits(&hidden)?.flatten(0, 1);
            Ok(logits.log_softmax(-1, Kind::Float))
        })
    }

    // ANCHOR: judge
    /// Of the model as it is now, per token and in nats: the loss on the unread pages,
    /// and how far its predictions are from those it had when it was loaded (the
    /// Kullback-Leibler divergence).
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn judge(&self) -> Result<[f64; 2]> {
        let now = self.says()?;
        let next = self.pages.narrow(1, 1, PAGE as i64).reshape([-1, 1]);
        let loss = -now.gather(1, &next, false).mean(Kind::Double);
        Ok([loss.double_value(&[]), self.cross(&now) - self.entropy])
    }
    // ANCHOR_END: judge

    /// Cross-entropy of the first predictions and these.
    fn cross(&self, says: &Tensor) -> f64 {
        let rows =
            (&self.first * says).sum_dim_intlist([1].as_slice(), false, Kind::Float);
        -rows.mean(Kind::Double).double_value(&[])
    }

    /// Linear layers of the blocks with their names and their weights.
    pub fn weights(&mut self) -> Vec<(String, Tensor)> {
        use downhill::nn::Weight;
        let linears = self.model.linears_mut().into_iter();
        let named = linears.filter_map(|(name, l)| match &l.weight {
            Weight::Dense(w) => Some((name, w.shallow_clone())),
            Weight::Nf4(_) => None,
        });
        named.collect()
    }
}

/// The tiny checkpoint, in f32.
pub(super) fn checkpoint(quantize: bool) -> Result<Decoder> {
    let file = find("examples/data/tiny/config.json")?;
    let options = LoadOptions {
        quantize,
        blocksize: 64,
        double_quant: quantize,
        kind: Kind::Float,
        device: Device::Cpu,
    };
    load(file.parent().unwrap_or(&file), &options, &mut |_, _| ())
}

/// The tiny checkpoint, its linear layers in NF4 with double quantization.
///
/// # Errors
/// As [`Shipped::load`].
pub fn in_four_bits() -> Result<Decoder> {
    checkpoint(true)
}

/// Its tokenizer.
///
/// # Errors
/// As [`Shipped::load`].
pub fn tokenizer() -> Result<Tokenizer> {
    let file = find("examples/data/tiny/tokenizer.json")?;
    Tokenizer::from_dir(file.parent().unwrap_or(&file))
}

/// The date rows: those to learn (`train`), or those of the examination (`eval`).
///
/// # Errors
/// As [`Shipped::load`].
pub fn dates(part: &str) -> Result<Dataset> {
    let file = find(&format!("examples/data/dates_{part}.jsonl"))?;
    let tokenizer = tokenizer()?;
    Dataset::load(file, Some(&tokenizer), 256, tokenizer.vocab_size())
}

/// Paragraphs of *Alice's Adventures in Wonderland*, all of which is learned: rows of
/// very different lengths.
///
/// # Errors
/// As [`Shipped::load`].
pub fn paragraphs(count: usize) -> Result<Vec<Example>> {
    let (text, tokenizer) = (read("alice_in_wonderland")?, tokenizer()?);
    let long = text.split("\n\n").filter(|p| p.len() > 40);
    let row = |(line, paragraph): (usize, &str)| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        let mut ids = tokenizer.encode(&words.join(" "), true)?;
        ids.push(tokenizer.eos_id());
        Ok(Example { labels: ids.clone(), ids, line: line + 1 })
    };
    long.skip(20).take(count).enumerate().map(row).collect()
}

/// Tokens of a paragraph, from its first.
const BEGINNING: usize = 32;
/// Paragraphs of each book, to learn and for the examination.
const EACH: [usize; 2] = [250, 28];

/// The beginnings of long paragraphs, labelled with the book that they are from: to
/// learn, and from the last tenth of each book for the examination.
///
/// # Errors
/// As [`Shipped::load`].
pub fn books() -> Result<[Labelled; 2]> {
    let tokenizer = tokenizer()?;
    let mut parts = [vec![], vec![]];
    for (class, book) in BOOKS.iter().enumerate() {
        let text = read(book)?;
        let long: Vec<&str> = text.split("\n\n").filter(|p| p.len() > 150).collect();
        let (learn, exam) = long.split_at(long.len() - long.len() / 10);
        for ((part, some), each) in parts.iter_mut().zip([learn, exam]).zip(EACH) {
            // Evenly spread: paragraph i·n/each.
            for i in 0..each.min(some.len()) {
                let line = i * some.len() / each.min(some.len());
                let words: Vec<&str> = some[line].split_whitespace().collect();
                let mut ids = tokenizer.encode(&words.join(" "), true)?;
                ids.truncate(BEGINNING);
                let target = class as f64;
                part.push(LabelledRow { ids, target, line: line + 1 });
            }
        }
    }
    let names = ["Pride", "Persuasion", "Alice"];
    let labels = Labels::Classes(names.map(String::from).to_vec());
    Ok(parts.map(|rows| with_labels(rows, &labels)))
}

/// The prompts of [`dates`] with their years as numbers, in centuries from 1850.
///
/// # Errors
/// As [`Shipped::load`].
pub fn years() -> Result<[Labelled; 2]> {
    let tokenizer = tokenizer()?;
    let of = |part: &str| -> Result<Labelled> {
        let mut rows = vec![];
        for e in dates(part)?.examples {
            let date = tokenizer.decode(&e.target())?;
            let year = date.trim().split('-').next().and_then(|y| y.parse().ok());
            let year: f64 = year.unwrap_or(f64::NAN);
            let (ids, target) = (e.prompt().to_vec(), (year - 1850.) / 100.);
            rows.push(LabelledRow { ids, target, line: e.line });
        }
        Ok(with_labels(rows, &Labels::Numbers))
    };
    Ok([of("train")?, of("eval")?])
}

fn with_labels(rows: Vec<LabelledRow>, labels: &Labels) -> Labelled {
    let (path, labels) = ("examples/data".into(), labels.clone());
    Labelled { path, rows, labels, truncated: vec![] }
}
