//! A small Transformer that learns to spell, on a real book.
use super::{Make, Spread, by_seed};
use downhill::models::{Decoder, DecoderConfig};
use downhill::nn::Mode;
use downhill::nn::dropout::{Rates, uniform};
use downhill::optim::{Param, state_bytes};
use downhill::schedule::Schedule;
use downhill::{Error, Result};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

/// Where the books are, from the root of the repository.
const BOOKS: &str = "examples/data/corpus";
/// T of every batch.
const CONTEXT: usize = 32;

/// A file that ships, looked for from the working folder upwards.
///
/// # Errors
/// It is in none of these folders.
pub fn find(name: &str) -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|e| Error::io(".", e))?;
    let path = here.ancestors().map(|d| d.join(name)).find(|p| p.is_file());
    path.ok_or_else(|| {
        let what = "not found from here; run this inside the repository";
        Error::file(name, what)
    })
}

/// The text of a book that ships.
pub(super) fn read(book: &str) -> Result<String> {
    let path = find(&format!("{BOOKS}/{book}.txt"))?;
    std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))
}

/// A text as numbers, one per distinct character. Its last tenth is held out.
#[derive(Debug)]
pub struct Text {
    ids: Vec<i64>,
    /// The character of each number.
    alphabet: Vec<char>,
    vocabulary: i64,
    batch: usize,
    /// Where the part that is learned from ends.
    learned: usize,
    dropout: Rates,
}

impl Text {
    /// *Alice's Adventures in Wonderland*, looked for in the working folder and those
    /// above it.
    ///
    /// # Errors
    /// It is in none of them.
    pub fn alice() -> Result<Self> {
        Ok(Self::new(&read("alice_in_wonderland")?))
    }

    /// Any text.
    pub fn new(text: &str) -> Self {
        let mut alphabet: Vec<char> = text.chars().collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        let id = |c| alphabet.binary_search(&c).unwrap_or_default() as i64;
        let ids: Vec<i64> = text.chars().map(id).collect();
        let learned = 9 * (ids.len() / 10);
        let (vocabulary, dropout) = (alphabet.len() as i64, Rates::default());
        Self { ids, alphabet, vocabulary, batch: 8, learned, dropout }
    }

    /// The same, of which only the first `characters` are learned from. What is held
    /// out stays.
    pub fn with_first(self, characters: usize) -> Self {
        Self { learned: characters.min(self.learned), ..self }
    }

    /// The same, whose models drop so much in training.
    pub fn with_dropout(&self, dropout: Rates) -> Self {
        let (ids, alphabet) = (self.ids.clone(), self.alphabet.clone());
        Self { dropout, ids, alphabet, ..*self }
    }

    /// The same, with batches of B rows instead of eight.
    pub fn with_batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// Number of distinct characters: the loss of blind guessing is its logarithm.
    pub fn vocabulary(&self) -> i64 {
        self.vocabulary
    }

    /// Loss of guessing by the frequency of each character alone: `−Σ p ln p`, nats.
    pub fn entropy(&self) -> f64 {
        let ids = Tensor::from_slice(&self.ids);
        let count = ids.bincount(None::<Tensor>, 0).to_kind(Kind::Double);
        let p = &count / self.ids.len() as f64;
        -(&p * p.log()).sum(Kind::Double).double_value(&[])
    }

    /// Characters [B, T] and those that follow them [B·T], from places that depend on
    /// `seed` and `step` alone.
    pub fn batch(&self, seed: u64, step: i64, held_out: bool) -> (Tensor, Tensor) {
        let (tenth, end) = (self.ids.len() / 10, self.ids.len() - CONTEXT - 1);
        let Range { start, end } = match held_out {
            true => 9 * tenth..end,
            false => 0..self.learned - CONTEXT - 1,
        };
        let (mut x, mut y): (Vec<i64>, Vec<i64>) = (vec![], vec![]);
        let place = 2 * step as u32 + u32::from(held_out);
        for u in uniform(self.batch, 0.5, seed, place) {
            let at = start + ((f64::from(u) + 0.5) * (end - start) as f64) as usize;
            x.extend(&self.ids[at..at + CONTEXT]);
            y.extend(&self.ids[at + 1..at + CONTEXT + 1]);
        }
        let shape = [self.batch as i64, CONTEXT as i64];
        (Tensor::from_slice(&x).view(shape), Tensor::from_slice(&y))
    }

    /// A Llama of two layers and width 64 for this text.
    ///
    /// # Errors
    /// None in practice: the sizes are fixed.
    pub fn model(&self, seed: u64) -> Result<Decoder> {
        Decoder::random(self.config(), seed)
    }

    /// The same with half as many heads of keys and values as of queries.
    ///
    /// # Errors
    /// None in practice: the sizes are fixed.
    pub fn grouped(&self, seed: u64) -> Result<Decoder> {
        let config = DecoderConfig { num_key_value_heads: 2, ..self.config() };
        Decoder::random(config, seed)
    }

    fn config(&self) -> DecoderConfig {
        DecoderConfig {
            vocab_size: self.vocabulary,
            hidden_size: 64,
            intermediate_size: 176,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 16,
            max_position_embeddings: CONTEXT as i64,
            dropout: self.dropout,
            ..DecoderConfig::default()
        }
    }

    /// The numbers of these characters; one that the text lacks counts as its first.
    pub fn encode(&self, text: &str) -> Vec<i64> {
        let id = |c| self.alphabet.binary_search(&c).unwrap_or_default() as i64;
        text.chars().map(id).collect()
    }

    /// The characters of these numbers.
    pub fn decode(&self, ids: &[i64]) -> String {
        ids.iter().filter_map(|id| self.alphabet.get(*id as usize)).collect()
    }

    /// `count` characters that the model writes after `start`, each drawn from its
    /// prediction at this temperature; the draws depend on the seed.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn continued(
        &self,
        model: &Decoder,
        start: &str,
        (count, temperature): (usize, f64),
        seed: u64,
    ) -> Result<String> {
        let mut ids = self.encode(start);
        for u in uniform(count, 0.5, seed, 0) {
            let seen = &ids[ids.len().saturating_sub(CONTEXT)..];
            let x = Tensor::from_slice(seen).unsqueeze(0);
            let logits =
                no_grad(|| model.logits(&model.hidden(&x, Mode::Eval, None)?))?;
            let p = (logits.select(1, -1) / temperature).softmax(-1, Kind::Double);
            // How many characters end below the draw.
            let below = p.cumsum(-1, Kind::Double).lt(f64::from(u) + 0.5);
            let next = below.sum(Kind::Int64).int64_value(&[]);
            ids.push(next.min(self.vocabulary - 1));
        }
        Ok(self.decode(&ids))
    }

    /// Mean cross-entropy of the next character, in nats, without dropout.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn loss(&self, model: &Decoder, batch: (Tensor, Tensor)) -> Result<Tensor> {
        self.loss_in(model, batch, Mode::Eval)
    }

    /// The same with the dropout of a step.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn loss_in(
        &self,
        model: &Decoder,
        (x, y): (Tensor, Tensor),
        mode: Mode,
    ) -> Result<Tensor> {
        let logits = model.logits(&model.hidden(&x, mode, None)?)?;
        Ok(logits.view([-1, self.vocabulary]).cross_entropy_for_logits(&y))
    }
}

/// What a training run leaves behind.
#[derive(Clone, Debug)]
pub struct Run {
    /// Loss of each step's batch, before the step. A run that diverges ends early.
    pub losses: Vec<f64>,
    /// Loss on held-out text after the last step; not finite if the run diverged.
    pub held_out: f64,
    /// Of the average step.
    pub seconds_per_step: f64,
    /// How many numbers were trained.
    pub parameters: usize,
    /// What the optimizer remembered at the end.
    pub state_bytes: usize,
}

/// Trains [`Text::model`]; the learning rate is a number, or a schedule. The seed
/// decides the start and the batches.
///
/// # Errors
/// What libtorch refuses.
// ANCHOR: train
pub fn train(
    text: &Text,
    make: Make,
    lr: impl Schedule,
    steps: i64,
    seed: u64,
) -> Result<Run> {
    let model = text.model(seed)?;
    let mut optimizer = make(Param::with_decay(model.named_parameters(), |_, _| 0.));
    let (mut losses, began) = (vec![], Instant::now());
    for step in 0..steps {
        let mode = Mode::Train { seed, step: step as u64 };
        let loss = text.loss_in(&model, text.batch(seed, step, false), mode)?;
        losses.push(loss.double_value(&[]));
        if losses.last().is_none_or(|l| !l.is_finite()) {
            break;
        }
        optimizer.zero_grad();
        loss.backward();
        optimizer.step(lr.lr(step));
    }
    // ANCHOR_END: train
    let seconds_per_step = began.elapsed().as_secs_f64() / losses.len() as f64;
    let held_out = no_grad(|| -> Result<f64> {
        let loss = |i| text.loss(&model, text.batch(seed, i, true));
        let losses = (0..8).map(loss).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&losses, 0).mean(Kind::Double).double_value(&[]))
    })?;
    let parameters = optimizer.params().iter().map(|p| p.tensor.numel()).sum();
    let state_bytes = state_bytes(optimizer.as_ref());
    Ok(Run { losses, held_out, seconds_per_step, parameters, state_bytes })
}

/// Trains with each of `jobs` (optimizer and learning rate) on each seed, one run per
/// core at a time, under a progress bar; the runs of a job come back together.
///
/// # Errors
/// What libtorch refuses.
pub fn train_all<S: Schedule + Sync>(
    text: &Text,
    jobs: &[(Make, S)],
    steps: i64,
    seeds: Range<u64>,
) -> Result<Vec<Vec<Run>>> {
    by_seed(jobs.len(), seeds, |i, seed| {
        let (make, lr) = &jobs[i];
        train(text, *make, |t: i64| lr.lr(t), steps, seed)
    })
}

impl Run {
    /// Held-out losses of several runs.
    pub fn held_out(runs: &[Self]) -> Spread {
        Spread::of(runs.iter().map(|r| r.held_out))
    }

    /// Training losses of several runs, as means over `window` steps: (step, spread).
    pub fn curve(runs: &[Self], window: usize) -> Vec<(f64, Spread)> {
        let steps = runs.iter().map(|r| r.losses.len()).min().unwrap_or_default();
        let mean = |r: &Self, from: usize| {
            r.losses[from..from + window].iter().sum::<f64>() / window as f64
        };
        let windows = (0..steps / window).map(|i| i * window);
        windows
            .map(|from| {
                let middle = from as f64 + window as f64 / 2.;
                (middle, Spread::of(runs.iter().map(|r| mean(r, from))))
            })
            .collect()
    }
}
