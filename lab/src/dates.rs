//! Short fine-tunes of the checkpoint that ships on the rows of dates: what chapter 15
//! compares adapters by.
use super::{Spread, parallel, text::find};
use downhill::Result;
use downhill::data::{Batch, Dataset, Example, Tokenizer, order};
use downhill::lora::{self, LoraConfig};
use downhill::models::{Decoder, LoadOptions, load};
use downhill::nn::{Mode, Weight};
use downhill::optim::{AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::schedule::{Schedule, cosine};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, no_grad};

/// The tiny checkpoint and the shortest of its rows, some to learn and some to ask.
#[derive(Debug)]
pub struct Dates {
    dir: PathBuf,
    learn: Vec<Example>,
    held_out: Vec<Example>,
}

/// A short fine-tune.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// The adapters; without, the linear layers themselves are trained.
    pub lora: Option<LoraConfig>,
    /// Over weights that have been in NF4, in f32 again: the same numbers, faster.
    pub nf4: bool,
    /// Peak of the learning rate, AdamW's; a cosine to zero.
    pub lr: f64,
    /// Of the optimizer.
    pub steps: i64,
}

/// A model that was tuned.
#[derive(Debug)]
pub struct Tuned {
    /// With its adapters.
    pub model: Decoder,
    /// Loss of each step's batch, nats per learned token. A run that diverges ends
    /// early.
    pub losses: Vec<f64>,
    /// See [`Dates::judge`].
    pub held_out: [f64; 2],
    /// How many numbers were trained.
    pub trained: usize,
}

/// Rows of a step.
const BATCH: usize = 4;

impl Dates {
    /// The `learn` and `held_out` shortest rows of the two files in `examples/data`,
    /// looked for in the working folder and those above it.
    ///
    /// # Errors
    /// It is in none of them; what is wrong with it.
    pub fn load(learn: usize, held_out: usize) -> Result<Self> {
        let dir = find("examples/data/tiny/config.json")?;
        let dir = dir.parent().unwrap_or(Path::new("")).to_path_buf();
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let shortest = |name: &str, count: usize| -> Result<Vec<Example>> {
            let path = dir.with_file_name(name);
            let mut rows =
                Dataset::load(path, Some(&tokenizer), 512, 2048)?.examples;
            rows.sort_by_key(|row| (row.ids.len(), row.line));
            rows.truncate(count);
            Ok(rows)
        };
        let learn = shortest("dates_train.jsonl", learn)?;
        let held_out = shortest("dates_eval.jsonl", held_out)?;
        Ok(Self { dir, learn, held_out })
    }

    /// The model in f32; its linear layers as they are, or as NF4 leaves them.
    ///
    /// # Errors
    /// As [`load`].
    pub fn model(&self, nf4: bool) -> Result<Decoder> {
        let options = LoadOptions {
            quantize: nf4,
            blocksize: 64,
            double_quant: true,
            kind: Kind::Float,
            device: Device::Cpu,
        };
        let mut model = load(&self.dir, &options, &mut |_, _| ())?;
        for (_, linear) in model.linears_mut() {
            if let Weight::Nf4(q) = &linear.weight {
                linear.weight = Weight::Dense(q.dequantize(Kind::Float));
            }
        }
        Ok(model)
    }

    /// The rows of a step, or of any step's number.
    pub fn batch(&self, seed: u64, step: i64) -> Batch {
        let per_epoch = (self.learn.len() / BATCH).max(1) as i64;
        let order = order(self.learn.len(), seed, (step / per_epoch) as u64, true);
        let from = (step % per_epoch) as usize * BATCH;
        let rows: Vec<_> = order[from..].iter().take(BATCH).collect();
        Batch::collate(&rows.iter().map(|i| &self.learn[**i]).collect::<Vec<_>>())
    }

    // ANCHOR: tune
    /// Tunes. The seed decides A and the order of the rows.
    ///
    /// # Errors
    /// As [`lora::attach`]; what libtorch refuses.
    pub fn tune(&self, t: &Tuning, seed: u64) -> Result<Tuned> {
        let mut model = self.model(t.nf4)?;
        let named = match &t.lora {
            Some(config) => {
                lora::attach(model.linears_mut(), config, seed, Device::Cpu)?
            }
            None => whole(&mut model),
        };
        let trained = named.iter().map(|(_, t)| t.numel()).sum();
        let mut optimizer =
            Driver::new(AdamW::default(), Param::with_decay(named, |_, _| 0.));
        let schedule = cosine(t.lr, t.steps / 20, t.steps);
        let mut losses = vec![];
        for step in 0..t.steps {
            let batch = self.batch(seed, step);
            let loss = loss(&model, &batch)?;
            losses.push(loss.double_value(&[]));
            if losses.last().is_none_or(|l| !l.is_finite()) {
                break;
            }
            optimizer.zero_grad();
            loss.backward();
            clip_grad_norm(optimizer.params(), 1.);
            optimizer.step(schedule.lr(step));
        }
        let held_out = self.judge(&model)?;
        Ok(Tuned { model, losses, held_out, trained })
    }
    // ANCHOR_END: tune

    /// Of the rows that are not learned: the loss per token of the answer, and the share
    /// of answers that greedy decoding would get right to the last character: those
    /// whose every token, after the right ones before it, is the likeliest.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn judge(&self, model: &Decoder) -> Result<[f64; 2]> {
        let rows: Vec<_> = self.held_out.iter().collect();
        let batch = Batch::collate(&rows);
        no_grad(|| {
            let logits = model.logits(&answers(model, &batch)?)?;
            let says = logits.log_softmax(-1, Kind::Float);
            let loss = -says.gather(1, &batch.targets.unsqueeze(1), false);
            let right = says.argmax(-1, false).eq_tensor(&batch.targets);
            let lengths: Vec<i64> =
                rows.iter().map(|r| r.supervised() as i64).collect();
            let right = right.split_with_sizes(&lengths, 0).into_iter();
            let right =
                right.filter(|row| bool::try_from(row.all()).unwrap_or(false));
            let loss = loss.mean(Kind::Double).double_value(&[]);
            Ok([loss, right.count() as f64 / rows.len() as f64])
        })
    }
}

/// Mean loss per learned token.
///
/// # Errors
/// What libtorch refuses.
pub fn loss(model: &Decoder, batch: &Batch) -> Result<Tensor> {
    let sum = model.loss(&answers(model, batch)?, &batch.targets)?;
    Ok(sum / batch.supervised() as f64)
}

/// Hidden states before the tokens of the answers.
fn answers(model: &Decoder, batch: &Batch) -> Result<Tensor> {
    let (ids, lengths) = (&batch.ids, &batch.lengths);
    let hidden = model.hidden_rows(ids, lengths, Mode::Eval, &mut |_, _| ())?;
    Ok(hidden.index_select(0, &batch.learned))
}

/// The weights of the linear layers, to be trained.
fn whole(model: &mut Decoder) -> lora::Named {
    let linears = model.linears_mut().into_iter();
    let weights = linears.filter_map(|(name, linear)| match &linear.weight {
        Weight::Dense(w) => Some((name, w.shallow_clone().set_requires_grad(true))),
        Weight::Nf4(_) => None,
    });
    weights.collect()
}

/// One way of tuning among those compared.
#[derive(Clone, Debug)]
pub struct Arm {
    /// In the report.
    pub key: &'static str,
    /// In tables and legends.
    pub name: &'static str,
    /// The adapters; without, the linear layers themselves are trained.
    pub lora: Option<LoraConfig>,
}

/// What came of an arm.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Rate and held-out loss, on the seed of the search.
    pub rates: Vec<(f64, f64)>,
    /// The rate with the lowest.
    pub best: f64,
    /// Held-out loss at that rate, on the other seeds.
    pub loss: Spread,
    /// Share of right answers there.
    pub exact: Spread,
    /// How many numbers were trained.
    pub trained: usize,
}

// ANCHOR: compare
/// Each arm at each rate on the first seed; then at its best rate on the others.
///
/// # Errors
/// As [`Dates::tune`].
pub fn compare(
    dates: &Dates,
    arms: &[Arm],
    rates: &[f64],
    steps: i64,
    seeds: Range<u64>,
) -> Result<Vec<Outcome>> {
    let run = |arm: &Arm, lr: f64, seed: u64| {
        let tuning = Tuning { lora: arm.lora.clone(), nf4: false, lr, steps };
        dates.tune(&tuning, seed)
    };
    let n = rates.len();
    let search = parallel(arms.len() * n, |i| {
        let tuned = run(&arms[i / n], rates[i % n], seeds.start)?;
        Ok((rates[i % n], tuned.held_out[0]))
    })?;
    let lowest = |all: &[(f64, f64)]| {
        all.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(f64::NAN, |best| best.0)
    };
    let best: Vec<f64> = search.chunks(n).map(lowest).collect();
    let others: Vec<u64> = seeds.skip(1).collect();
    let k = others.len();
    let finals = parallel(arms.len() * k, |i| {
        let tuned = run(&arms[i / k], best[i / k], others[i % k])?;
        Ok((tuned.held_out, tuned.trained))
    })?;
    // ANCHOR_END: compare
    let outcomes = search.chunks(n).zip(best).zip(finals.chunks(k));
    let outcome =
        |((rates, best), runs): ((&[_], f64), &[([f64; 2], usize)])| Outcome {
            rates: rates.to_vec(),
            best,
            loss: Spread::of(runs.iter().map(|r| r.0[0])),
            exact: Spread::of(runs.iter().map(|r| r.0[1])),
            trained: runs[0].1,
        };
    Ok(outcomes.map(outcome).collect())
}
