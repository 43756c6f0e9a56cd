//! The small checkpoints that ship, built again with one thing changed, and read at
//! any length.
use super::shipped::BOOKS;
use super::text::{find, read};
use downhill::data::Tokenizer;
use downhill::models::{Decoder, DecoderConfig, LoadOptions, Weights, load};
use downhill::nn::{Mode, dropout::uniform};
use downhill::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor, no_grad};

/// Tokens at the end of each book that `lab/make_tiny` kept from the models.
const KEPT: usize = 16 * 128;
/// Rows that are computed at a time.
const ROWS: i64 = 8;

/// A checkpoint of `examples/data` and what it reads.
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
            // As `lab/make_tiny` joins and divides it.
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
