//! Tables: what chapter 11 trains on them, and how it keeps its numbers honest.
use downhill::data::{Encoder, Features, Scale, Table};
use downhill::models::{FtConfig, FtTransformer};
use downhill::nn::Mode;
use downhill::nn::dropout::{normal, uniform};
use downhill::optim::{AdamW, Driver, Optimizer, Param};
use downhill::{Error, Result};
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Reduction, Tensor, no_grad};

/// A table, what is learned from it, and whether that is a class or a number.
#[derive(Debug)]
pub struct Task {
    /// The table.
    pub table: Table,
    /// The column to learn.
    pub target: &'static str,
    /// Whether it is one of two classes, and not a number.
    pub classes: bool,
}

impl Task {
    /// `examples/data/tables/NAME.csv`, looked for from the working folder upwards.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn read(
        name: &str,
        target: &'static str,
        categories: &[&str],
    ) -> Result<Self> {
        let file =
            Path::new("examples/data/tables").join(name).with_extension("csv");
        let here = std::env::current_dir().map_err(|e| Error::io(".", e))?;
        let found = here.ancestors().map(|d| d.join(&file)).find(|p| p.is_file());
        let table = Table::read(found.unwrap_or(file), categories)?;
        let classes = table.classes(target).is_ok();
        Ok(Self { table, target, classes })
    }
}

// ANCHOR: split
/// Rows to learn from, to choose by, and to report: 60, 20 and 20 of a hundred.
pub fn split(rows: usize, seed: u64) -> [Vec<usize>; 3] {
    let keys = uniform(rows, 1., seed, 40);
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
    let test = order.split_off(rows * 4 / 5);
    let validation = order.split_off(rows * 3 / 5);
    [order, validation, test]
}
// ANCHOR_END: split

/// What to train, and how.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Number of blocks; none is a linear model.
    pub blocks: usize,
    /// Learning rate of AdamW.
    pub lr: f64,
    /// Its decay.
    pub wd: f64,
    /// Rows in a batch.
    pub batch: usize,
    /// What is done to the numbers once.
    pub scale: Scale,
    /// What is done to the numbers of a batch.
    pub augment: Augment,
    /// Epochs at most.
    pub epochs: usize,
    /// Epochs without a lower validation loss after which it stops.
    pub patience: usize,
}

/// What is done to the numbers of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Augment {
    /// Nothing.
    None,
    /// Adds N(0, 0.1²).
    Noise,
    /// Mixes each row, its answer included, with another.
    Mixup,
}

/// A FT-Transformer, or a linear model of all features.
#[derive(Debug)]
pub enum Model {
    /// With blocks.
    Ft(Box<FtTransformer>),
    /// Without.
    Linear {
        /// Of all numbers and all values of all categories, [1, ..].
        weight: Tensor,
        /// [1].
        bias: Tensor,
        /// Of each category, how many there are.
        values: Vec<i64>,
    },
}

impl Model {
    /// A start for features such as the encoder makes: width 32, four heads.
    ///
    /// # Errors
    /// None in practice: the sizes are fixed.
    pub fn new(encoder: &Encoder, blocks: usize, seed: u64) -> Result<Self> {
        let (numbers, values) =
            (encoder.n_cont_features(), encoder.cat_cardinalities());
        if blocks == 0 {
            let like = (Kind::Float, Device::Cpu);
            let width = numbers + values.iter().sum::<i64>();
            let weight = Tensor::zeros([1, width], like).set_requires_grad(true);
            let bias = Tensor::zeros([1], like).set_requires_grad(true);
            return Ok(Self::Linear { weight, bias, values });
        }
        let mut config = FtConfig::of_blocks(blocks, numbers, &values, 1);
        (config.d_block, config.attention_n_heads) = (32, 4);
        Ok(Self::Ft(Box::new(FtTransformer::random(config, seed)?)))
    }

    /// What is trained.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        match self {
            Self::Ft(model) => model.named_parameters(),
            Self::Linear { weight, bias, .. } => vec![
                ("linear.weight".into(), weight.shallow_clone()),
                ("linear.bias".into(), bias.shallow_clone()),
            ],
        }
    }

    /// One number per row.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(&self, x: &Features, mode: Mode) -> Result<Tensor> {
        match self {
            Self::Ft(model) => {
                Ok(model.forward(&x.numbers, &x.categories, mode)?.squeeze_dim(1))
            }
            Self::Linear { weight, bias, values } => {
                let mut all = vec![x.numbers.shallow_clone()];
                for (n, i) in values.iter().zip(0..) {
                    let column = x.categories.select(1, i);
                    all.push(column.one_hot(*n).to_kind(Kind::Float));
                }
                let y = Tensor::cat(&all, 1).f_linear(weight, Some(bias))?;
                Ok(y.squeeze_dim(1))
            }
        }
    }
}

/// Some rows, encoded, and their answers: 0 or 1, or a number in units of its spread.
#[derive(Debug)]
pub struct Rows {
    /// Features.
    pub x: Features,
    /// Answers.
    pub y: Tensor,
}

impl Rows {
    /// Some of them, by their places.
    pub fn pick(&self, rows: &Tensor) -> Self {
        let x = Features {
            numbers: self.x.numbers.index_select(0, rows),
            categories: self.x.categories.index_select(0, rows),
        };
        Self { x, y: self.y.index_select(0, rows) }
    }
}

/// Mean loss: cross-entropy, or half the squared error.
pub fn loss(task: &Task, y: &Tensor, expected: &Tensor) -> Tensor {
    let (none, mean) = (None::<&Tensor>, Reduction::Mean);
    match task.classes {
        true => y.binary_cross_entropy_with_logits(expected, none, none, mean),
        false => y.mse_loss(expected, mean) / 2.,
    }
}

/// What is reported: the share of wrong answers, or the root of the mean squared error.
pub fn score(task: &Task, y: &Tensor, expected: &Tensor) -> f64 {
    let error = match task.classes {
        true => {
            y.gt(0.).to_kind(Kind::Float).ne_tensor(expected).to_kind(Kind::Float)
        }
        false => (y - expected).square(),
    };
    let mean = error.mean(Kind::Double).double_value(&[]);
    if task.classes { mean } else { mean.sqrt() }
}

/// The end of a run: scores at the epoch that was best on the validation rows.
#[derive(Clone, Debug)]
pub struct Done {
    /// Score on the validation rows.
    pub validation: f64,
    /// Score on the test rows, at the same epoch.
    pub test: f64,
    /// Which epoch that was.
    pub epochs: usize,
    /// Epochs in all.
    pub ran: usize,
    /// Of the whole run.
    pub seconds: f64,
    /// Validation loss of the best epoch, which decides between settings.
    pub loss: f64,
    /// Of each epoch: mean loss of its batches, and the validation loss after it.
    pub losses: Vec<[f64; 2]>,
    /// Score on the test rows after the last epoch.
    pub last: f64,
}

/// The three parts of a task, by an encoder that has seen the first alone.
///
/// # Errors
/// A column that cannot be encoded.
pub fn parts(task: &Task, scale: Scale, seed: u64) -> Result<(Encoder, [Rows; 3])> {
    let rows = split(task.table.rows(), seed);
    let encoder = Encoder::fit(&task.table, task.target, &rows[0], scale)?;
    let answers: Vec<f64> = match task.classes {
        true => {
            let (_, codes) = task.table.classes(task.target)?;
            codes.iter().map(|c| *c as f64).collect()
        }
        false => {
            let all = task.table.numbers(task.target)?;
            let n = rows[0].len() as f64;
            let mean = rows[0].iter().map(|r| all[*r]).sum::<f64>() / n;
            let square = |r: &usize| (all[*r] - mean).powi(2);
            let std = (rows[0].iter().map(square).sum::<f64>() / n).sqrt();
            all.iter().map(|y| (y - mean) / std).collect()
        }
    };
    let part = |rows: &Vec<usize>| -> Result<Rows> {
        let y: Vec<f32> = rows.iter().map(|r| answers[*r] as f32).collect();
        Ok(Rows { x: encoder.encode(&task.table, rows)?, y: Tensor::from_slice(&y) })
    };
    let [a, b, c] = &rows;
    let all = [part(a)?, part(b)?, part(c)?];
    Ok((encoder, all))
}

// ANCHOR: fit
/// Trains until the validation loss has not fallen for `patience` epochs.
///
/// # Errors
/// As [`parts`]; what libtorch refuses.
pub fn fit(task: &Task, s: Setting, seed: u64) -> Result<Done> {
    let (encoder, [learn, validation, test]) = parts(task, s.scale, seed)?;
    let model = Model::new(&encoder, s.blocks, seed)?;
    let decay = |name: &str, _: &Tensor| {
        if FtTransformer::decays(name) { s.wd } else { 0. }
    };
    let params = Param::with_decay(model.parameters(), decay);
    let mut optimizer = Driver::new(AdamW::default(), params);
    let rows = learn.y.size()[0];
    let mut best = Done {
        validation: f64::NAN,
        test: f64::NAN,
        epochs: 0,
        ran: 0,
        seconds: 0.,
        loss: f64::INFINITY,
        losses: vec![],
        last: f64::NAN,
    };
    let answers = |rows: &Rows| no_grad(|| model.forward(&rows.x, Mode::Eval));
    let (began, mut step) = (Instant::now(), 0);
    for epoch in 1..=s.epochs {
        let order = uniform(rows as usize, 1., seed, 100 + epoch as u32);
        let order = Tensor::from_slice(&order).argsort(0, false);
        let mut learned = 0.;
        for batch in order.split(s.batch as i64, 0) {
            step += 1;
            let batch = augmented(learn.pick(&batch), s.augment, seed, step as u32);
            optimizer.zero_grad();
            let y = model.forward(&batch.x, Mode::Train { seed, step })?;
            let loss = loss(task, &y, &batch.y);
            loss.backward();
            optimizer.step(s.lr);
            learned +=
                loss.double_value(&[]) * batch.y.size()[0] as f64 / rows as f64;
        }
        let seen = answers(&validation)?;
        let now = loss(task, &seen, &validation.y).double_value(&[]);
        best.losses.push([learned, now]);
        if now < best.loss {
            best.loss = now;
            best.epochs = epoch;
            best.validation = score(task, &seen, &validation.y);
            best.test = score(task, &answers(&test)?, &test.y);
        }
        best.ran = epoch;
        if epoch >= best.epochs + s.patience {
            break;
        }
    }
    best.last = score(task, &answers(&test)?, &test.y);
    best.seconds = began.elapsed().as_secs_f64();
    Ok(best)
}
// ANCHOR_END: fit

// ANCHOR: augmented
fn augmented(rows: Rows, how: Augment, seed: u64, step: u32) -> Rows {
    let Rows { x, y } = rows;
    let n = y.size()[0];
    match how {
        Augment::None => Rows { x, y },
        Augment::Noise => {
            let z = Tensor::from_slice(&normal(x.numbers.numel(), seed, step));
            let numbers = &x.numbers + z.view_as(&x.numbers) * 0.1;
            Rows { x: Features { numbers, ..x }, y }
        }
        Augment::Mixup => {
            // The row before it; the shares from U(0, ½). Categories stay.
            let share = uniform(n as usize, 0.25, seed, step);
            let share: Tensor = Tensor::from_slice(&share) + 0.25;
            let mix =
                |t: &Tensor, share: &Tensor| t + (t.roll([1], [0]) - t) * share;
            let numbers = mix(&x.numbers, &share.unsqueeze(1));
            Rows { x: Features { numbers, ..x }, y: mix(&y, &share) }
        }
    }
}
// ANCHOR_END: augmented

// ANCHOR: ahead
/// Test error of a linear model on `columns` columns of pure noise, of which it gets the
/// `chosen` that go best with the answers: of all rows, if it looks ahead, or of the
/// learned ones.
///
/// # Errors
/// As [`parts`].
pub fn on_noise(
    task: &Task,
    (columns, chosen): (i64, i64),
    ahead: bool,
    seed: u64,
) -> Result<f64> {
    let (_, [learn, validation, test]) = parts(task, Scale::Standard, seed)?;
    let y = Tensor::cat(&[&learn.y, &validation.y, &test.y], 0);
    let (n, learned) = (y.size()[0], learn.y.size()[0]);
    let x = normal((n * columns) as usize, seed, 55);
    let x = Tensor::from_slice(&x).view([n, columns]);
    let seen = if ahead { n } else { learned };
    let together = x.narrow(0, 0, seen).tr().mv(&y.narrow(0, 0, seen)).abs();
    let (_, best) = together.topk(chosen, 0, true, true);
    let x = x.index_select(1, &best);
    // Least squares on the learned rows.
    let a = x.narrow(0, 0, learned);
    let (square, right) = (a.tr().matmul(&a), a.tr().matmul(&learn.y.unsqueeze(1)));
    let w = Tensor::f_linalg_solve(&square, &right, true)?;
    let rows = test.y.size()[0];
    let answers = x.narrow(0, n - rows, rows).matmul(&w).squeeze_dim(1);
    Ok(score(task, &answers, &test.y))
}
// ANCHOR_END: ahead
