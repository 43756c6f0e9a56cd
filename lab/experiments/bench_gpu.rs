//! Our side of `cargo xtask bench gpu`: the fine-tune of a model of a true shape with
//! random weights, made where it runs, by the loop of `downhill finetune`; where the
//! time of its step goes; how fast it writes; and what the card and the 4-bit code
//! reach by themselves. Prints JSON.
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use downhill::checkpoint::Checkpoint;
use downhill::data::RowEncoder;
use downhill::generate::{Sampling, generate};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::{self, Decoder, LoadOptions, Weights};
use downhill::nn::{Linear, Mode, Weight};
use downhill::optim::clip_grad_norm_late;
use downhill::plot::Bars;
use downhill::quant::Nf4Tensor;
use downhill::train::{
    Base, Origin, Rows, Run, Settings, Switch, Task, batch_loss, fit,
};
use downhill::{Result as Ours, device};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::{Cuda, Device, Kind, Tensor, no_grad};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take the steps that the flags of `downhill finetune` say; --model needs no
    /// weights
    Train(Box<Settings>),
    /// Write greedily after a prompt, one text at a time, the weights in 4 bits: those
    /// of a checkpoint, or random ones where the folder has a config.json alone
    Decode {
        #[arg(long)]
        model: PathBuf,
        #[arg(long, default_value = "cuda")]
        device: String,
        /// Tokens of the prompt
        #[arg(long, default_value = "512")]
        prompt: i64,
        #[arg(long, default_value = "64")]
        tokens: usize,
        /// Ranks of an adapter on all linears, one after another; 0: none
        #[arg(long, value_delimiter = ',', default_value = "0,16")]
        lora_r: Vec<i64>,
        /// Threads of a CPU; 0: as many as libtorch takes
        #[arg(long, default_value = "0")]
        threads: i32,
    },
    /// Copying, a matrix product, and NF4
    Kernels {
        #[arg(long, default_value = "cuda")]
        device: String,
        /// Sides of the matrix product, and of the 4-bit matrix
        #[arg(long, value_delimiter = ',', default_value = "8192,4096,11008")]
        sizes: Vec<i64>,
    },
}

fn main() -> Result<()> {
    let found = match Args::parse().command {
        Command::Train(settings) => train(*settings)?,
        Command::Decode { model, device, prompt, tokens, lora_r, threads } => {
            if threads > 0 {
                tch::set_num_threads(threads);
            }
            let home = device::parse(&device)?;
            decode(&model, home, (prompt, tokens), &lora_r)?
        }
        Command::Kernels { device, sizes } => {
            kernels(device::parse(&device)?, &sizes)?
        }
    };
    println!("{found}");
    Ok(())
}

/// Random weights, made on the device; the linears of the blocks in NF4.
struct Noise {
    /// Block size, and whether scales are quantized too; none: as they are.
    four_bit: Option<(usize, bool)>,
    like: (Kind, Device),
}

impl Weights for Noise {
    fn tensor(&mut self, _: &str, shape: &[i64]) -> Ours<Tensor> {
        Ok(match shape {
            [_] => Tensor::f_ones(shape, self.like)?,
            _ => Tensor::f_randn(shape, self.like)? * 0.02,
        })
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], bias: bool) -> Ours<Linear> {
        let w = self.tensor(name, &shape)?;
        let weight = match self.four_bit {
            None => Weight::Dense(w),
            Some((size, double)) => {
                Weight::Nf4(Nf4Tensor::quantize(&w, size, double)?)
            }
        };
        let bias = bias.then(|| Tensor::zeros([shape[0]], self.like));
        Ok(Linear { weight, bias, lora: None })
    }
}

fn train(settings: Settings) -> Result<Value> {
    settings.check()?;
    let home = device::parse(&settings.device)?;
    let kind = settings.compute_dtype.kind(home);
    // A first tensor: what libtorch itself takes is not the model's.
    let _ = Tensor::zeros([1], (kind, home));
    let free = || device::memory(home).map(|m| m.free as i64);
    let at_first = free();
    tch::manual_seed(settings.seed as i64);
    let config = models::read_config(&settings.model)?;
    let rows = RowEncoder::new(None, settings.max_length, config.vocab_size);
    let rows = Rows::load(&settings.train_file, Task::CausalLm, &rows, None)?;
    let size = settings.bnb_4bit_blocksize;
    let form = (size, settings.bnb_4bit_use_double_quant);
    let four_bit = settings.load_in_4bit.then_some(form);
    let mut noise = Noise { four_bit, like: (kind, home) };
    let mut model = no_grad(|| Decoder::new(config, &mut noise))?;
    if settings.cache_dequant {
        model.hold_dequantized();
    }
    model.offload = settings.gradient_checkpointing == Switch::Offload;
    model.checkpointing =
        matches!(settings.gradient_checkpointing, Switch::True | Switch::Offload);
    let weights = model.bytes();
    let origin = Origin::default();
    let base =
        Base { model, head: None, tokenizer: None, train: rows, eval: None, origin };
    let mut run = Run::start(base, settings, &mut |line| eprintln!("{line}"))?;
    device::peak(home, true);
    fit(&mut run, &AtomicBool::new(false))?;
    let peak = device::peak(home, false);
    let all = |key: &str| -> Vec<f64> {
        run.log.history.iter().filter_map(|e| e[key].as_f64()).collect()
    };
    let (losses, speeds) = (all("loss"), all("tokens_per_second"));
    let held = at_first.zip(free()).map(|(before, after)| before - after);
    let profile = profile(&mut run)?;
    let title = "Where the time of a step goes (ms)";
    let parts = profile.as_object().into_iter().flatten();
    let bars = parts.fold(Bars::new(title), |bars, (name, ms)| {
        let ms = ms.as_f64().unwrap_or(f64::NAN);
        bars.bar(name, ms, &format!("{ms:.2}"))
    });
    let drawn = run.settings.output_dir.join("profile.svg");
    std::fs::write(&drawn, bars.draw().svg())?;
    Ok(json!({
        "losses": losses,
        "tokens_per_second": median(&speeds[speeds.len() / 3..]),
        "tokens_per_second_by_step": speeds,
        "weight_bytes": weights,
        "device_bytes": held,
        "allocated_peak_bytes": peak.map(|[allocated, _]| allocated),
        "reserved_peak_bytes": peak.map(|[_, reserved]| reserved),
        "profile_ms": profile,
    }))
}

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Milliseconds until the device has done what `f` asks of it: the median of some.
fn timed(
    home: Device,
    repeats: usize,
    f: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    let wait = || {
        if let Device::Cuda(i) = home {
            Cuda::synchronize(i as i64);
        }
    };
    f()?; // warm
    let mut all = vec![];
    for _ in 0..repeats {
        wait();
        let began = Instant::now();
        f()?;
        wait();
        all.push(1e3 * began.elapsed().as_secs_f64());
    }
    Ok(median(&all))
}

/// Where a step's time goes: its parts by themselves, each waited for, and of the two
/// largest what the 4-bit code and the head take.
fn profile(run: &mut Run) -> Result<Value> {
    const TIMES: usize = 3;
    let home = run.model.device();
    let s = &run.settings;
    let numbers: Vec<usize> = (0..s.per_device_train_batch_size).collect();
    let batch = run.train.batch(&numbers)?.context("no row")?;
    let mode = Mode::Train { seed: s.seed, step: 0 };
    let fetch = timed(home, TIMES, &mut || {
        drop(batch.to(home));
        Ok(())
    })?;
    let batch = batch.to(home);
    let model = &run.model;
    let forward = timed(home, TIMES, &mut || {
        drop(batch_loss(model, &batch, mode)?);
        Ok(())
    })?;
    let optimizer = &mut run.optimizer;
    let both = timed(home, TIMES, &mut || {
        optimizer.zero_grad();
        Ok(batch_loss(model, &batch, mode)?.f_backward()?)
    })?;
    let one = Tensor::ones([], (Kind::Float, home));
    let clip = timed(home, TIMES, &mut || {
        let _ = clip_grad_norm_late(optimizer.params(), 1e9, &one);
        Ok(())
    })?;
    let step = timed(home, TIMES, &mut || {
        optimizer.step(0.);
        Ok(())
    })?;
    let hidden = Tensor::randn(
        [batch.supervised(), model.config.hidden_size],
        (model.kind(), home),
    );
    let hidden = hidden.set_requires_grad(true);
    let head = timed(home, TIMES, &mut || {
        Ok(model.loss(&hidden, &batch.targets)?.f_backward()?)
    })?;
    let linears = run.model.linears_mut();
    let four_bit = linears.iter().filter_map(|(_, l)| match &l.weight {
        Weight::Nf4(q) => Some(q),
        Weight::Dense(_) => None,
    });
    let four_bit: Vec<_> = four_bit.collect();
    let kind = hidden.kind();
    let most = four_bit.iter().map(|q| q.shape()[0] * q.shape()[1]).max();
    let room = Tensor::empty([most.unwrap_or(0)], (kind, home));
    let dequantize = timed(home, TIMES, &mut || {
        for q in &four_bit {
            let [out, input] = q.shape();
            q.dequantize_into(&room.narrow(0, 0, out * input))?;
        }
        Ok(())
    })?;
    Ok(json!({
        "batch": fetch,
        "forward": forward,
        "backward": both - forward,
        "clip": clip,
        "optimizer": step,
        "of them, head with its backward": head,
        "of them, dequantizing every weight once": dequantize,
    }))
}

/// Tokens a second after the first one, which ends the prompt's time; for each rank.
fn decode(
    dir: &Path,
    home: Device,
    (prompt, tokens): (i64, usize),
    ranks: &[i64],
) -> Result<Value> {
    let kind = if home.is_cuda() { Kind::BFloat16 } else { Kind::Float };
    tch::manual_seed(0);
    let mut model = match Checkpoint::open(dir).is_ok() {
        true => {
            let (blocksize, device) = (64, home);
            let options = LoadOptions {
                quantize: true,
                double_quant: true,
                blocksize,
                kind,
                device,
            };
            models::load(dir, &options, &mut |_, _| ())?
        }
        false => {
            let mut noise = Noise { four_bit: Some((64, true)), like: (kind, home) };
            no_grad(|| Decoder::new(models::read_config(dir)?, &mut noise))?
        }
    };
    let vocabulary = model.config.vocab_size;
    let text: Vec<i64> = (0..prompt).map(|i| (i * 7 + 3) % vocabulary).collect();
    let mut found = vec![];
    for &r in ranks {
        adapt(&mut model, r)?;
        let write = |tokens| {
            let sampling = Sampling { max_new_tokens: tokens, ..Default::default() };
            let (mut came, began) = (vec![], Instant::now());
            let ids = generate(&model, &text, &[], &sampling, &mut |_| {
                came.push(began.elapsed().as_secs_f64());
                Ok(ControlFlow::Continue(()))
            })?;
            Ours::Ok((ids, came))
        };
        write(4)?; // warm
        let (ids, came) = write(tokens)?;
        let (first, last) =
            (came.first().context("no token")?, came[came.len() - 1]);
        found.push(json!({
            "lora_r": r,
            "prompt_ms": 1e3 * first,
            "tokens_per_second": (came.len() - 1) as f64 / (last - first),
            "ids": ids,
        }));
    }
    Ok(json!({ "decode": found }))
}

/// Gives all linears an adapter of rank `r`, or none for 0.
fn adapt(model: &mut Decoder, r: i64) -> Result<()> {
    let home = model.device();
    if r == 0 {
        model.linears_mut().into_iter().for_each(|(_, l)| l.lora = None);
        return Ok(());
    }
    let (alpha, target_modules) = (2. * r as f64, Modules::AllLinear);
    let config = LoraConfig { r, alpha, target_modules, ..Default::default() };
    let named = lora::attach(model.linears_mut(), &config, 0, home)?;
    let b = named.iter().filter(|(name, _)| name.contains("lora_B"));
    // As after training: B is not zero.
    no_grad(|| b.for_each(|(_, b)| drop(b.shallow_clone().normal_(0., 0.01))));
    Ok(())
}

/// Billions of bytes or operations a second.
fn kernels(home: Device, sizes: &[i64]) -> Result<Value> {
    const TIMES: usize = 20;
    let &[side, out, input] = sizes else {
        anyhow::bail!("--sizes takes three numbers");
    };
    let random = |shape: &[i64], kind| Tensor::randn(shape, (kind, home));
    let kind = if home.is_cuda() { Kind::BFloat16 } else { Kind::Float };
    let (a, b) = (random(&[side, side], kind), random(&[side, side], kind));
    let product = timed(home, TIMES, &mut || {
        drop(a.f_mm(&b)?);
        Ok(())
    })?;
    // Large enough to leave no cache behind; read once and written once.
    let from = random(&[16 * out, input], kind);
    let mut to = from.empty_like();
    let bytes = (from.numel() * kind.elt_size_in_bytes()) as f64;
    let copy = timed(home, TIMES, &mut || {
        to.copy_(&from);
        Ok(())
    })?;
    let w = random(&[out, input], kind) * 0.02;
    let quantize = timed(home, 5, &mut || {
        Nf4Tensor::quantize(&w, 64, true)?;
        Ok(())
    })?;
    // Several matrices in turn, as a model has them: none is left in the cache.
    let q = Nf4Tensor::quantize(&w, 64, true)?;
    let copies: Vec<_> = (0..8).map(|_| random(&[out, input], kind)).collect();
    let rooms: Vec<_> = (0..8).map(|_| w.empty_like()).collect();
    let each: Vec<_> = copies
        .iter()
        .map(|w| Nf4Tensor::quantize(w, 64, true))
        .collect::<Ours<_>>()?;
    // So many at a time that what it takes to start and to wait is small beside them.
    const ROUNDS: usize = 4;
    let dequantize = timed(home, TIMES, &mut || {
        for (q, room) in (0..ROUNDS).flat_map(|_| each.iter().zip(&rooms)) {
            q.dequantize_into(room)?;
        }
        Ok(())
    })?;
    let moved = (8 * ROUNDS) as f64;
    let moved = moved * (q.bytes() + w.numel() * kind.elt_size_in_bytes()) as f64;
    let rate = |bytes: f64, ms: f64| bytes / ms / 1e6;
    let (copied, dequantized) = (rate(2. * bytes, copy), rate(moved, dequantize));
    Ok(json!({
        "kind": format!("{kind:?}"),
        "sizes": sizes,
        "matmul_tflops": 2. * (side as f64).powi(3) / product / 1e9,
        "copy_gb_s": copied,
        "dequantize_gb_s": dequantized,
        "dequantize_of_copy": dequantized / copied,
        "quantize_ms": quantize,
    }))
}
