//! The pretraining: predict the next token, with the library's own decoder, AdamW,
//! cosine schedule and clipping.
use super::rng::Rng;
use super::text::register_entry;
use super::tokenizer::{BOS, EOS, PAD, VOCABULARY, decode, encode, id};
use anyhow::Result;
use downhill::checkpoint::save_safetensors;
use downhill::generate::{Sampling, generate};
use downhill::models::{Decoder, DecoderConfig};
use downhill::nn::{Mode, Rope, RopeScaling};
use downhill::optim::{Adam, AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::schedule::{Schedule, cosine};
use downhill::tch::{Kind, Tensor, no_grad};
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

/// Tokens of a row that are predicted, and rows of a batch.
const WINDOW: usize = 128;
const BATCH: usize = 8;

/// The shape of the checkpoint: a deepseek-llm in small.
fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: VOCABULARY as i64,
        hidden_size: 192,
        intermediate_size: 512,
        num_hidden_layers: 4,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 32,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000., scaling: RopeScaling::Default },
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
    }
}

/// The rows that the model reads: BOS and WINDOW tokens each.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    pages: Vec<i64>, // the books, end to end
    bos: i64,
    eos: i64,
    rng: Rng,
}

impl Reader<'_> {
    /// Of three rows, two are a page of a book and one is entries of the register.
    fn row(&mut self) -> Result<Vec<i64>> {
        if self.rng.below(3) > 0 {
            let at = self.rng.below(self.pages.len() - WINDOW);
            return Ok([&[self.bos], &self.pages[at..at + WINDOW]].concat());
        }
        let mut ids = Vec::new();
        while ids.len() <= WINDOW {
            ids.push(self.bos);
            let entry = register_entry(&mut self.rng);
            ids.append(&mut encode(self.tokenizer, &entry)?);
            ids.push(self.eos);
        }
        ids.truncate(WINDOW + 1);
        Ok(ids)
    }
}

/// Mean cross-entropy of each next token, in nats. Rows of equal length.
fn loss(model: &Decoder, rows: &[Vec<i64>]) -> Result<Tensor> {
    let ids = Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1]);
    let (_, t) = ids.size2()?;
    let hidden = model.hidden(&ids.narrow(1, 0, t - 1), Mode::Eval, None)?;
    let logits = model.logits(&hidden)?.flatten(0, 1);
    Ok(logits.cross_entropy_for_logits(&ids.narrow(1, 1, t - 1).reshape([-1])))
}

/// Trains a new model. Prints the loss on the last pages of each book, which it has
/// not read.
pub fn run(
    tokenizer: &Tokenizer,
    books: &[Vec<String>],
    recipe: &Recipe,
) -> Result<Decoder> {
    let (bos, eos) = (id(tokenizer, BOS)?, id(tokenizer, EOS)?);
    let mut pages = Vec::new();
    let mut unread = Vec::new();
    for book in books {
        let mut ids = encode(tokenizer, &book.join("\n"))?;
        let last = ids.split_off(ids.len() - 16 * WINDOW);
        let rows = last.chunks(WINDOW).map(|page| [&[bos], page].concat());
        unread.push((&book[0], rows.collect::<Vec<_>>()));
        pages.append(&mut ids);
    }
    let model = Decoder::random(config(), recipe.seed)?;
    let mut named = model.named_parameters();
    // Decoder::random draws from N(0, 0.02²), which suits a width of 1/0.02² = 2500.
    // Narrow layers need wider draws, or attention stays even for too long.
    let widen = 1. / (0.02 * (model.config.hidden_size as f64).sqrt());
    for (_, t) in named.iter_mut().filter(|(_, t)| t.dim() > 1) {
        let _ = no_grad(|| t.g_mul_scalar_(widen));
    }
    let count: usize = named.iter().map(|(_, t)| t.numel()).sum();
    println!("{count} parameters; {} tokens of books", pages.len());
    let decay = |_: &str, t: &Tensor| if t.dim() > 1 { 0.1 } else { 0. };
    let rule = AdamW(Adam { beta2: 0.95, ..Adam::default() });
    let mut optimizer = Driver::new(rule, Param::with_decay(named, decay));
    let schedule = cosine(recipe.learning_rate, recipe.steps / 20, recipe.steps);

    let mut reader = Reader { tokenizer, pages, bos, eos, rng: Rng(recipe.seed) };
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len}{msg}, {eta} left")?;
    let bar = ProgressBar::new(recipe.steps as u64).with_style(style);
    let mut mean = 0.;
    for step in 0..recipe.steps {
        let rows = (0..BATCH).map(|_| reader.row()).collect::<Result<Vec<_>>>()?;
        let loss = loss(&model, &rows)?;
        loss.backward();
        clip_grad_norm(optimizer.params(), 1.0);
        optimizer.step(schedule.lr(step));
        optimizer.zero_grad();
        mean += (loss.double_value(&[]) - mean) / (step + 1).min(50) as f64;
        bar.set_message(format!(" loss {mean:.3}"));
        bar.inc(1);
        if bar.is_hidden() && (step + 1) % 50 == 0 {
            println!("step {}: loss {mean:.3}", step + 1);
        }
    }
    bar.finish();
    for (book, rows) in &unread {
        let nats = no_grad(|| loss(&model, rows))?.double_value(&[]);
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
    let c = &model.config;
    let ids = [id(tokenizer, BOS)?, id(tokenizer, EOS)?, id(tokenizer, PAD)?];
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": c.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": ids[0],
        "eos_token_id": ids[1],
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
        "mlp_bias": c.mlp_bias,
        "model_type": "llama",
        "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "pad_token_id": ids[2],
        "pretraining_tp": 1,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": null,
        "rope_theta": c.rope.theta,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": c.vocab_size,
    });
    super::write_json(&folder.join("config.json"), &config)?;
    let generation = json!({ "bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": ids[2] });
    super::write_json(&folder.join("generation_config.json"), &generation)
}
