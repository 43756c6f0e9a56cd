//! The small checkpoints that ship, taken apart: built again with one thing changed,
//! read at any length, asked which experts they choose.
use super::shipped::BOOKS;
use super::text::{find, read};
use crate::data::Tokenizer;
use crate::models::{Decoder, DecoderConfig, LoadOptions, Weights, load};
use crate::nn::{Mode, dropout::uniform};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor, no_grad};

/// Tokens at the end of each book that `examples/make_tiny` kept from the models.
const KEPT: usize = 16 * 128;
/// Rows that are computed at a time.
const ROWS: i64 = 8;

/// A checkpoint of `examples/data` and what it reads.
#[derive(Debug)]
pub struct Small {
    /// As loaded.
    pub model: Decoder,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Where it lies.
    pub folder: PathBuf,
}

/// Named tensors, as a decoder asks for them.
struct Named(BTreeMap<String, Tensor>);

// ANCHOR: named
impl Weights for Named {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let t = self.0.get(name).map(Tensor::shallow_clone);
        // What a file lacks, some loaders begin at random.
        let random = || {
            let n = shape.iter().product::<i64>() as usize;
            Tensor::from_slice(&uniform(n, 0.035, 12, 0)).view(shape)
        };
        Ok(t.unwrap_or_else(random))
    }
}
// ANCHOR_END: named

impl Small {
    /// `tiny` or `tiny_moe`, looked for in the working folder and those above it; not
    /// quantized, computing in `kind`.
    ///
    /// # Errors
    /// It is in none of them; what is wrong with it.
    pub fn load(name: &str, kind: Kind) -> Result<Self> {
        let config = find(&format!("examples/data/{name}/config.json"))?;
        let folder = config.parent().unwrap_or(&config).to_path_buf();
        let options = LoadOptions {
            quantize: false,
            blocksize: 64,
            double_quant: false,
            kind,
            device: Device::Cpu,
        };
        let model = load(&folder, &options, &mut |_, _| ())?;
        Ok(Self { model, tokenizer: Tokenizer::from_dir(&folder)?, folder })
    }

    // ANCHOR: changed
    /// The same model with `change` made to its description or its tensors. The one
    /// that was loaded stays as it is.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn changed(
        &self,
        change: impl FnOnce(&mut DecoderConfig, &mut BTreeMap<String, Tensor>),
    ) -> Result<Decoder> {
        let mut config = self.model.config.clone();
        let mut tensors = self.model.named_parameters().into_iter().collect();
        no_grad(|| change(&mut config, &mut tensors));
        Decoder::new(config, &mut Named(tensors))
    }
    // ANCHOR_END: changed

    /// What was kept from the models at the end of each of the three books: rows
    /// [R, 1 + length] that begin every `stride` tokens, each after a BOS.
    ///
    /// # Errors
    /// A book is missing.
    pub fn unread(&self, length: usize, stride: usize) -> Result<Vec<Tensor>> {
        let rows = |book: &&str| {
            // As `examples/make_tiny` joins and divides it.
            let join = |p: &str| p.split_whitespace().collect::<Vec<_>>().join(" ");
            let text: Vec<String> = read(book)?.split("\n\n").map(join).collect();
            let ids = self.tokenizer.encode(&text.join("\n"), false)?;
            let kept = &ids[ids.len() - KEPT..];
            let mut rows: Vec<i64> = vec![];
            for start in (0..=KEPT - length).step_by(stride) {
                rows.extend(self.tokenizer.bos_id());
                rows.extend(&kept[start..start + length]);
            }
            Ok(Tensor::from_slice(&rows).view([-1, 1 + length as i64]))
        };
        BOOKS.iter().map(rows).collect()
    }

    /// Rows of some texts, each cut to `length` tokens after a BOS; shorter ones are
    /// left out.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn rows(&self, texts: &[String], length: usize) -> Result<Tensor> {
        let mut rows: Vec<i64> = vec![];
        for text in texts {
            let ids = self.tokenizer.encode(text, true)?;
            rows.extend(ids.get(..=length).unwrap_or_default());
        }
        Ok(Tensor::from_slice(&rows).view([-1, 1 + length as i64]))
    }
}

/// The prompts of a file of rows of `examples/data`.
///
/// # Errors
/// It is not there, or a row has no prompt.
pub fn prompts(name: &str) -> Result<Vec<String>> {
    let path = find(&format!("examples/data/{name}"))?;
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let prompt = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        row["prompt"].as_str().map(str::to_string)
    };
    let rows = text.lines().map(|line| {
        prompt(line).ok_or_else(|| Error::file(&path, "a row without a prompt"))
    });
    rows.collect()
}

/// Scores [R·T, V] of what follows each token of `rows` [R, 1 + T], and what follows.
///
/// # Errors
/// What libtorch refuses.
pub fn scores(model: &Decoder, rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let t = rows.size()[1] - 1;
    no_grad(|| {
        let hidden = model.hidden(&rows.narrow(1, 0, t), Mode::Eval, None)?;
        let logits = model.logits(&hidden)?.flatten(0, 1).to_kind(Kind::Float);
        Ok((logits, rows.narrow(1, 1, t).reshape([-1])))
    })
}

/// The loss of every token of `rows` [R, 1 + T] but the first, [R, T] in nats.
///
/// # Errors
/// What libtorch refuses.
pub fn losses(model: &Decoder, rows: &Tensor) -> Result<Tensor> {
    let parts = rows.split(ROWS, 0).into_iter().map(|rows| {
        let (logits, next) = scores(model, &rows)?;
        let says = logits.log_softmax(-1, Kind::Float);
        let loss = -says.gather(1, &next.unsqueeze(1), false);
        Ok(loss.view([rows.size()[0], -1]))
    });
    Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0))
}

/// Mean loss of rows of all books, in nats a token.
///
/// # Errors
/// What libtorch refuses.
pub fn mean_loss(model: &Decoder, books: &[Tensor]) -> Result<f64> {
    Ok(losses(model, &Tensor::cat(books, 0))?.mean(Kind::Double).double_value(&[]))
}

// ANCHOR: choices
/// The experts that each token of `rows` [R, 1 + T] but the last goes to: [R·T, k] for
/// every layer that has experts.
///
/// # Errors
/// What libtorch refuses.
pub fn choices(model: &Decoder, rows: &Tensor) -> Result<Vec<Tensor>> {
    let t = rows.size()[1] - 1;
    let k = model.config.experts.as_ref().map_or(1, |e| e.routing.chosen);
    let weights: BTreeMap<_, _> = model.named_parameters().into_iter().collect();
    let mut chosen = vec![];
    let mut see = |name: &str, x: &Tensor| {
        let layer = name.strip_suffix(".post_attention_layernorm");
        let router =
            layer.and_then(|l| weights.get(&format!("{l}.mlp.gate.weight")));
        if let Some(router) = router {
            let [x, router] = [x, router].map(|t| t.to_kind(Kind::Float));
            chosen.push(x.matmul(&router.tr()).topk(k, 1, true, false).1);
        }
    };
    let ids = rows.narrow(1, 0, t).reshape([-1]);
    let lengths = vec![t; rows.size()[0] as usize];
    no_grad(|| model.hidden_rows(&ids, &lengths, Mode::Eval, &mut see))?;
    Ok(chosen)
}
// ANCHOR_END: choices

/// How often each of `e` experts [e] was chosen by tokens of each of `l` labels: the
/// counts [l, e] of choices [N, k] under labels [N].
pub fn counts(chosen: &Tensor, labels: &Tensor, l: i64, e: i64) -> Tensor {
    let pairs = labels.unsqueeze(1) * e + chosen;
    pairs.reshape([-1]).bincount(None::<Tensor>, l * e).view([l, e])
}

// ANCHOR: information
/// What the chosen expert and the label tell about each other, in bits a choice:
/// `Σ p(l, e) log₂ p(l, e) / (p(l) p(e))`, from counts [l, e].
pub fn information(counts: &Tensor) -> f64 {
    let p = counts.to_kind(Kind::Double);
    let p = &p / p.sum(Kind::Double);
    let sum = |dim: i64| p.sum_dim_intlist([dim].as_slice(), true, Kind::Double);
    let even = sum(1) * sum(0);
    let terms = &p * (&p / even).log2();
    terms
        .nan_to_num(0., None::<f64>, None::<f64>)
        .sum(Kind::Double)
        .double_value(&[])
}
// ANCHOR_END: information

/// The labels in an order that has nothing to do with theirs.
pub fn shuffled(labels: &Tensor, seed: u64) -> Tensor {
    let order = Tensor::from_slice(&uniform(labels.numel(), 1., seed, 12));
    labels.index_select(0, &order.argsort(0, false))
}

// ANCHOR: beam
/// `tokens` tokens after `prompt` and the logarithm of their probability, by a search
/// that keeps the `width` likeliest beginnings. With a width of 1 it is greedy.
///
/// # Errors
/// What libtorch refuses.
pub fn beam(
    model: &Decoder,
    prompt: &[i64],
    tokens: usize,
    width: i64,
) -> Result<(Vec<i64>, f64)> {
    let mut rows = Tensor::from_slice(prompt).unsqueeze(0);
    let mut sums = Tensor::zeros([1], (Kind::Double, Device::Cpu));
    for _ in 0..tokens {
        let hidden = no_grad(|| model.hidden(&rows, Mode::Eval, None))?;
        let logits = no_grad(|| model.logits(&hidden.select(1, -1)))?;
        let says = logits.log_softmax(-1, Kind::Double) + sums.unsqueeze(1); // (W, V)
        let (best, place) = says.view([-1]).topk(width, 0, true, true);
        let vocabulary = logits.size()[1];
        let (from, next) =
            (place.divide_scalar_mode(vocabulary, "floor"), place.fmod(vocabulary));
        rows = Tensor::cat(&[rows.index_select(0, &from), next.unsqueeze(1)], 1);
        sums = best;
    }
    let ids = Vec::<i64>::try_from(&rows.get(0))?;
    Ok((ids[prompt.len()..].to_vec(), sums.double_value(&[0])))
}
// ANCHOR_END: beam

/// Seconds for the one token at each place of `at` in `row` [1, ..], after what stands
/// before it: from a cache that holds that already, or computed with all of it. The
/// shortest of some runs.
///
/// # Errors
/// What libtorch refuses.
pub fn seconds_for_one(
    model: &Decoder,
    row: &Tensor,
    at: i64,
    cached: bool,
) -> Result<f64> {
    let mut cache = model.cache();
    let score = |ids: Range<i64>, cache| {
        let ids = row.narrow(1, ids.start, ids.end - ids.start);
        let hidden = model.hidden(&ids, Mode::Eval, cache)?;
        model.logits(&hidden.select(1, -1))
    };
    no_grad(|| {
        if cached {
            score(0..at, Some(&mut cache))?;
        }
        let mut best = f64::INFINITY;
        for i in 0..if cached { 12 } else { 3 } {
            let began = Instant::now();
            match cached {
                true => score(at + i..at + i + 1, Some(&mut cache))?,
                false => score(0..at + 1, None)?,
            };
            best = best.min(began.elapsed().as_secs_f64());
        }
        Ok(best)
    })
}
