//! The pretraining: predict the next token, with the library's own decoder, AdamW,
//! cosine schedule and clipping.
use super::rng::Rng;
use super::text::register_entry;
use super::tokenizer::{BOS, EOS, PAD, decode, encode, id};
use super::{balance, shape};
use anyhow::Result;
use downhill::checkpoint::save_safetensors;
use downhill::generate::{Sampling, generate};
use downhill::models::{Decoder, DecoderConfig};
use downhill::nn::Mode;
use downhill::optim::{Adam, AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::schedule::{Schedule, cosine};
use downhill::tch::{Kind, Reduction, Tensor, no_grad};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use tokenizers::Tokenizer;

/// What can be set from outside.
pub struct Recipe {
    pub steps: i64,
    pub learning_rate: f64,
    pub seed: u64,
}

/// Tokens of a page.
const PAGE: usize = 128;

/// Token ids, and from which of them on they are to be predicted.
struct Row {
    ids: Vec<i64>,
    from: usize,
}

/// Gives the model its reading.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    books: Vec<i64>, // end to end
    special: [i64; 3],
    rng: Rng,
}

impl Reader<'_> {
    /// Pages of the books, each after a BOS.
    fn pages(&mut self) -> Vec<Row> {
        let mut page = || {
            let at = self.rng.below(self.books.len() - PAGE);
            let ids = [&self.special[..1], &self.books[at..at + PAGE]].concat();
            Row { ids, from: 1 }
        };
        (0..8).map(|_| page()).collect()
    }

    /// Entries of the register, of which the fair copy is to be predicted.
    fn entries(&mut self) -> Result<Vec<Row>> {
        let [bos, eos, _] = self.special;
        let mut row = || {
            let (entry, copy) = register_entry(&mut self.rng);
            let entry = encode(self.tokenizer, &entry)?;
            let copy = encode(self.tokenizer, &copy)?;
            let from = 1 + entry.len();
            Ok(Row { ids: [&[bos][..], &entry, &copy, &[eos]].concat(), from })
        };
        (0..16).map(|_| row()).collect()
    }
}

/// Mean cross-entropy of the tokens to be predicted, in nats; and how uneven the load
/// of the experts was, if there are some.
fn loss(model: &Decoder, rows: &[Row], pad: i64) -> Result<(Tensor, Tensor)> {
    let t = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let (mut ids, mut targets) = (Vec::<i64>::new(), Vec::<i64>::new());
    for row in rows {
        let fill = t - row.ids.len();
        ids.extend(row.ids.iter().chain(std::iter::repeat_n(&pad, fill)));
        targets.extend(std::iter::repeat_n(&IGNORED, row.from));
        targets.extend(row.ids[row.from..].iter());
        targets.extend(std::iter::repeat_n(&IGNORED, fill));
    }
    let shape = [rows.len() as i64, t as i64];
    let before = shape[1] - 1;
    let ids = Tensor::from_slice(&ids).view(shape).narrow(1, 0, before);
    let targets = Tensor::from_slice(&targets).view(shape).narrow(1, 1, before);
    let (ids, targets) = (ids.reshape([-1]), targets.reshape([-1]));
    let mut seen = Vec::new();
    let mut see = |name: &str, x: &Tensor| {
        seen.extend(
            balance::router_of(name).map(|router| (router, x.shallow_clone())),
        )
    };
    let lengths = vec![before; rows.len()];
    let hidden = model.hidden_rows(&ids, &lengths, Mode::Eval, &mut see)?;
    let logits = model.logits(&hidden)?;
    let none: Option<Tensor> = None;
    let loss =
        logits.cross_entropy_loss(&targets, none, Reduction::Mean, IGNORED, 0.);
    let real = ids.ne(pad).nonzero().view([-1]);
    Ok((loss, balance::unevenness(model, &seen, &real)?))
}

/// The target that is not to be predicted.
const IGNORED: i64 = -100;

/// Trains a new model. Prints the loss on the last pages of each book, which it has
/// not read.
pub fn run(
    config: DecoderConfig,
    tokenizer: &Tokenizer,
    books: &[Vec<String>],
    recipe: &Recipe,
) -> Result<Decoder> {
    let special = [id(tokenizer, BOS)?, id(tokenizer, EOS)?, id(tokenizer, PAD)?];
    let mut read = Vec::new();
    let mut unread = Vec::new();
    for book in books {
        let mut ids = encode(tokenizer, &book.join("\n"))?;
        let last = ids.split_off(ids.len() - 16 * PAGE);
        let page =
            |page: &[i64]| Row { ids: [&special[..1], page].concat(), from: 1 };
        unread.push((&book[0], last.chunks(PAGE).map(page).collect::<Vec<_>>()));
        read.append(&mut ids);
    }
    let model = Decoder::random(config, recipe.seed)?;
    let mut named = model.named_parameters();
    // Decoder::random draws from N(0, 0.02²), which suits a width of 1/0.02² = 2500.
    // Narrow layers need wider draws, or attention stays even for too long.
    let widen = 1. / (0.02 * (model.config.hidden_size as f64).sqrt());
    for (_, t) in named.iter_mut().filter(|(_, t)| t.dim() > 1) {
        let _ = no_grad(|| t.g_mul_scalar_(widen));
    }
    let count: usize = named.iter().map(|(_, t)| t.numel()).sum();
    println!("{count} parameters; {} tokens of books", read.len());
    let decay = |_: &str, t: &Tensor| if t.dim() > 1 { 0.1 } else { 0. };
    let rule = AdamW(Adam { beta2: 0.95, ..Adam::default() });
    let mut optimizer = Driver::new(rule, Param::with_decay(named, decay));
    let schedule = cosine(recipe.learning_rate, recipe.steps / 20, recipe.steps);

    let mut reader =
        Reader { tokenizer, books: read, special, rng: Rng(recipe.seed) };
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len}{msg}, {eta} left")?;
    let bar = ProgressBar::new(recipe.steps as u64).with_style(style);
    let mut mean = [f64::NAN; 2]; // of the losses on pages and on entries
    for step in 0..recipe.steps {
        // Looking back is learned soonest alone; afterwards one step in three keeps it.
        let register = step < recipe.steps / 4 || step % 3 == 0;
        let rows = if register { reader.entries()? } else { reader.pages() };
        let (loss, uneven) = loss(&model, &rows, special[2])?;
        (&loss + &uneven * balance::ALPHA).backward();
        clip_grad_norm(optimizer.params(), 1.0);
        optimizer.step(schedule.lr(step));
        optimizer.zero_grad();
        let (part, loss) = (&mut mean[register as usize], loss.double_value(&[]));
        *part = if part.is_nan() { loss } else { 0.96 * *part + 0.04 * loss };
        let mut text =
            format!(" loss: books {:.3}, register {:.3}", mean[0], mean[1]);
        if model.config.experts.is_some() {
            text += &format!(", unevenness {:.3}", uneven.double_value(&[]));
        }
        bar.inc(1);
        if bar.is_hidden() && (step + 1) % 50 == 0 {
            println!("step {}:{text}", step + 1);
        }
        bar.set_message(text);
    }
    bar.finish();
    for (book, rows) in &unread {
        let nats = no_grad(|| loss(&model, rows, special[2]))?.0.double_value(&[]);
        println!("unread pages of {book}: {nats:.3} nats a token");
    }
    Ok(model)
}

/// The text and 60 tokens that the model puts after it.
pub fn continued(
    model: &Decoder,
    tokenizer: &Tokenizer,
    text: &str,
    seed: u64,
) -> Result<String> {
    let mut ids = vec![id(tokenizer, BOS)?];
    ids.append(&mut encode(tokenizer, text)?);
    let sampling =
        Sampling { max_new_tokens: 60, temperature: 0.7, top_p: 0.9, seed };
    let stop = [id(tokenizer, EOS)?];
    let mut on = |_| Ok(ControlFlow::Continue(()));
    ids.append(&mut generate(model, &ids.clone(), &stop, &sampling, &mut on)?);
    decode(tokenizer, &ids)
}

/// Writes `model.safetensors` (bf16), `config.json` and `generation_config.json`.
pub fn write(model: &Decoder, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let halved = |(name, t): (String, Tensor)| (name, t.to_kind(Kind::BFloat16));
    let tensors: Vec<_> = model.named_parameters().into_iter().map(halved).collect();
    save_safetensors(
        &folder.join("model.safetensors"),
        &tensors,
        &[("format", "pt")],
    )?;
    let ids = [id(tokenizer, BOS)?, id(tokenizer, EOS)?, id(tokenizer, PAD)?];
    let config = shape::json(&model.config, ids);
    super::write_json(&folder.join("config.json"), &config)?;
    let generation = json!({ "bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": ids[2] });
    super::write_json(&folder.join("generation_config.json"), &generation)
}
