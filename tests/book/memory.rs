//! No dequantized weight outlives its use, and no table of all scores is ever there.
//! Measured as the peak of resident memory of
//! a process of its own, which runs this very test with an environment variable set.
#![cfg(target_os = "linux")]
use crate::common::wave;
use downhill::nn::{Adapter, Linear, Mode, Weight, cross_entropy};
use downhill::quant::Nf4Tensor;
use std::path::Path;
use std::process::Command;
use tch::{Device, Kind, Tensor};

const LAYERS: usize = 24;
const WIDTH: i64 = 1024;
/// One dequantized weight, f32.
const WEIGHT: usize = (WIDTH * WIDTH * 4) as usize;
const MODE: &str = "DOWNHILL_TEST_MEMORY";

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|l| l.starts_with(key)).expect(key);
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// One 4-bit layer with an adapter, made from weights that are freed again.
fn layer(place: u32) -> Linear {
    let w = wave(&[WIDTH, WIDTH], Kind::Float) * 0.05;
    let q = Nf4Tensor::quantize(&w, 64, true).unwrap();
    let like = (Kind::Float, Device::Cpu);
    let a = wave(&[8, WIDTH], Kind::Float).set_requires_grad(true);
    let b = Tensor::zeros([WIDTH, 8], like).set_requires_grad(true);
    let lora = Some(Adapter { dropout: 0.1, place, ..Adapter::new(a, b, 2.) });
    Linear { weight: Weight::Nf4(q), bias: None, lora }
}

/// Forward and backward through the stack. `recorded` is the mistake: the dequantized
/// weight as a plain operand, which libtorch saves for backward.
fn pass(stack: &[Linear], recorded: bool) {
    let mut x = wave(&[4, WIDTH], Kind::Float).set_requires_grad(true);
    let leaf = x.shallow_clone();
    for linear in stack {
        let mode = Mode::Train { seed: 1, step: 1 };
        let y = match (&linear.weight, recorded) {
            (Weight::Nf4(q), true) => {
                let w = q.dequantize(Kind::Float);
                x.f_linear(&w, None::<&Tensor>).unwrap()
            }
            _ => linear.forward(&x, mode).unwrap(),
        };
        x = &x + y.tanh();
    }
    x.sum(Kind::Float).backward();
    assert!(leaf.grad().defined());
}

/// In the process of its own: prints the growth and the size of the quantized model.
fn measure(recorded: bool) {
    tch::set_num_threads(1); // fewer arenas of malloc
    let warm = [layer(0)];
    pass(&warm, recorded);
    drop(warm);
    let before = status("VmRSS");
    let stack: Vec<_> = (0..LAYERS as u32).map(layer).collect();
    let model: usize = stack
        .iter()
        .map(|l| {
            let lora = l.lora.as_ref().unwrap();
            // The adapters and their gradients.
            l.weight.bytes() + 2 * 4 * (lora.a.numel() + lora.b.numel())
        })
        .sum();
    // "5" makes the peak start again from what is resident now: to make the weights
    // took more.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    pass(&stack, recorded);
    println!("\ngrowth {} model {model}", status("VmHWM").saturating_sub(before));
}

/// (growth of the peak, bytes of the model) of a run in a process of its own.
fn child(name: &str, mode: &str, dir: Option<&Path>) -> (usize, usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(MODE, mode);
    match dir {
        // As a user's.
        Some(dir) => command.env(FOLDER, dir),
        // Freed blocks of any size go back to the system at once.
        None => command
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .env("MALLOC_TRIM_THRESHOLD_", "65536"),
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|l| l.starts_with("growth")).expect("a line");
    let number = |i| line.split(' ').nth(i).unwrap().parse().unwrap();
    (number(1), number(3))
}

const SHAPE: (i64, i64, i64, i64) = (8192, 512, 1408, 8); // V, D, F, layers
const FOLDER: &str = "DOWNHILL_TEST_FOLDER";

/// A sharded f32 checkpoint of about 130 MB, written piece by piece.
fn write_sharded(dir: &Path) {
    let (v, d, f, layers) = SHAPE;
    let mut config = crate::common::config_json();
    for (key, n) in [
        ("vocab_size", v),
        ("hidden_size", d),
        ("intermediate_size", f),
        ("num_hidden_layers", layers),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 8),
    ] {
        config[key] = n.into();
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![v, d]),
        ("model.norm.weight".into(), vec![d]),
        ("lm_head.weight".into(), vec![v, d]),
    ];
    for layer in 0..layers {
        for (part, shape) in [
            ("input_layernorm", vec![d]),
            ("post_attention_layernorm", vec![d]),
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![d, d]),
            ("self_attn.v_proj", vec![d, d]),
            ("self_attn.o_proj", vec![d, d]),
            ("mlp.gate_proj", vec![f, d]),
            ("mlp.up_proj", vec![f, d]),
            ("mlp.down_proj", vec![d, f]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    let names = tensors.iter().map(|(name, _)| name.as_str());
    let mut writer = downhill::checkpoint::Writer::new(dir, 40_000_000, names);
    for (name, shape) in &tensors {
        writer.push(name, &(wave(shape, Kind::Float) * 0.05)).unwrap();
    }
    writer.finish().unwrap();
}

/// In a process of its own: loads, or writes again, and prints how far the peak rose
/// and the bytes of the model.
fn measure_files(dir: &Path, mode: &str) {
    tch::set_num_threads(1);
    drop(layer(0)); // libtorch's own memory
    let before = status("VmRSS");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let device = Device::Cpu;
    let options = downhill::models::LoadOptions {
        quantize: mode != "dense",
        blocksize: 64,
        double_quant: true,
        kind: Kind::Float,
        device,
    };
    let model = match mode {
        "quantize" => {
            let to = dir.with_extension("small");
            let options = downhill::models::QuantizeOptions {
                blocksize: 64,
                double_quant: true,
                max_shard_size: 10_000_000,
                device,
            };
            downhill::models::quantize(dir, &to, &options, &mut |_, _| ()).unwrap();
            0
        }
        _ => downhill::models::load(dir, &options, &mut |_, _| ()).unwrap().bytes(),
    };
    println!("\ngrowth {} model {model}", status("VmHWM").saturating_sub(before));
}

/// The memory of loading is the quantized model, not the files; and that of quantizing
/// files is a tensor's.
#[test]
fn loading_and_quantizing_take_no_more_than_they_must() {
    const NAME: &str = "memory::loading_and_quantizing_take_no_more_than_they_must";
    if let Ok(dir) = std::env::var(FOLDER) {
        return measure_files(dir.as_ref(), &std::env::var(MODE).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("model");
    std::fs::create_dir(&at).unwrap();
    write_sharded(&at);
    let (v, d, ..) = SHAPE;
    let largest = (v * d * 4) as usize;
    let mib = |n: usize| n as f64 / f64::from(1 << 20);
    for mode in ["load", "quantize"] {
        let (growth, model) = child(NAME, mode, Some(&at));
        let bound = model + 2 * largest + (16 << 20);
        println!(
            "{mode}: peak {:.1} MiB, model {:.1} MiB, largest tensor {:.1} MiB",
            mib(growth),
            mib(model),
            mib(largest)
        );
        assert!(growth <= bound, "{mode}: {:.1} MiB", mib(growth));
    }
    // The check can fail: unquantized, the model is more than that.
    let (growth, _) = child(NAME, "dense", Some(&at));
    assert!(growth > 100 << 20, "{:.1} MiB", mib(growth));
}

#[test]
fn no_dequantized_weight_outlives_its_use() {
    const NAME: &str = "memory::no_dequantized_weight_outlives_its_use";
    if let Ok(mode) = std::env::var(MODE) {
        return measure(mode == "recorded");
    }
    let bound = |model: usize| model + 4 * WEIGHT;
    let (growth, model) = child(NAME, "ours", None);
    let mib = |n: usize| n as f64 / f64::from(1 << 20);
    println!("peak {:.1} MiB, model {:.1} MiB", mib(growth), mib(model));
    assert!(
        growth <= bound(model),
        "peak {:.1} MiB for a quantized model of {:.1} MiB",
        mib(growth),
        mib(model)
    );
    // The check can fail: recorded as a plain operation, every weight stays.
    let (growth, model) = child(NAME, "recorded", None);
    println!("recorded: peak {:.1} MiB", mib(growth));
    assert!(growth > bound(model) && growth > LAYERS * WEIGHT * 9 / 10);
}

const TOKENS: i64 = 2000;
const VOCABULARY: i64 = 60_000;
/// All scores in f32: what must never be in memory.
const SCORES: usize = (TOKENS * VOCABULARY * 4) as usize;

/// In the process of its own: the loss of all tokens with its gradients, prints the
/// growth and the size of the head.
fn measure_scores(ours: bool) {
    tch::set_num_threads(1);
    let h = wave(&[TOKENS, 16], Kind::Float).set_requires_grad(true);
    let w = wave(&[VOCABULARY, 16], Kind::Float);
    let targets = Tensor::arange(TOKENS, (Kind::Int64, Device::Cpu));
    let before = status("VmRSS");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let loss = match ours {
        true => cross_entropy(&h, &w, &targets).unwrap(),
        false => {
            let (none, sum) = (None::<Tensor>, tch::Reduction::Sum);
            let scores = h.linear(&w, None::<Tensor>);
            scores.cross_entropy_loss(&targets, none, sum, -100, 0.)
        }
    };
    loss.backward();
    assert!(h.grad().defined());
    let growth = status("VmHWM").saturating_sub(before);
    println!("\ngrowth {growth} model {}", w.numel() * 4);
}

#[test]
fn the_loss_never_holds_all_scores() {
    if let Ok(mode) = std::env::var(MODE) {
        return measure_scores(mode == "ours");
    }
    let name = "memory::the_loss_never_holds_all_scores";
    let mib = |n: usize| n >> 20;
    let (ours, _) = child(name, "ours", None);
    let (plain, _) = child(name, "plain", None);
    println!("{} MiB, libtorch {} MiB of {}", mib(ours), mib(plain), mib(SCORES));
    assert!(ours < SCORES / 2, "{} MiB", mib(ours));
    // The check can fail.
    assert!(plain > SCORES, "{} MiB", mib(plain));
}

/// In the process of its own: the forward pass of a model with adapters; prints what it
/// keeps, and what was computed for it.
fn measure_kept() {
    use downhill::models::{Decoder, DecoderConfig};
    tch::set_num_threads(1);
    let config = DecoderConfig {
        vocab_size: 512,
        hidden_size: 256,
        intermediate_size: 704,
        num_hidden_layers: 6,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 32,
        ..crate::common::config()
    };
    let mut model = Decoder::random(config, 1).unwrap();
    for (_, t) in model.named_parameters() {
        let _ = t.set_requires_grad(false);
    }
    let lora = crate::common::lora(&["all-linear"], 0.1);
    downhill::lora::attach(model.linears_mut(), &lora, 1, Device::Cpu).unwrap();
    let pass = |tokens: i64| {
        let ids = Tensor::arange(4 * tokens, (Kind::Int64, Device::Cpu));
        let ids = ids.remainder(512).view([4, tokens]);
        model.hidden(&ids, Mode::Train { seed: 1, step: 1 }, None).unwrap()
    };
    drop(pass(8)); // libtorch's own memory
    let before = status("VmRSS");
    let hidden = pass(256);
    let growth = status("VmRSS").saturating_sub(before);
    assert!(hidden.requires_grad());
    let counted = model.config.activation_bytes(4 * 256, Kind::Float);
    println!("\ngrowth {growth} model {counted}");
}

/// `--gradient-checkpointing auto` must not take a forward pass for smaller than it is.
#[test]
fn a_forward_keeps_no_more_than_is_counted_for_it() {
    if std::env::var(MODE).is_ok() {
        return measure_kept();
    }
    let name = "memory::a_forward_keeps_no_more_than_is_counted_for_it";
    let (growth, counted) = child(name, "kept", None);
    println!("{} MiB kept, {} MiB counted", growth >> 20, counted >> 20);
    assert!(growth <= counted, "{} MiB, {}", growth >> 20, counted >> 20);
    assert!(growth > counted / 4, "{} MiB, {}", growth >> 20, counted >> 20);
}

/// In the process of its own: 400 products of as many shapes, as rows of unequal lengths
/// bring them.
fn measure_shapes() {
    use downhill::autograd::Library;
    tch::set_num_threads(1);
    let (x, w) = (wave(&[800, 256], Kind::Float), wave(&[256, 256], Kind::Float));
    let y = Tensor::zeros([800, 256], (Kind::Float, Device::Cpu));
    let product = |rows: i64| {
        let (x, mut y) = (x.narrow(0, 0, rows), y.narrow(0, 0, rows));
        Library::OneDnn.mm(&x, &w, &mut y, false).unwrap();
    };
    product(800);
    let before = status("VmRSS");
    (300..700).for_each(product);
    println!("\ngrowth {} model 0", status("VmRSS").saturating_sub(before));
}

/// oneDNN and libtorch keep what they compiled for a shape: so many of them and no more.
#[test]
fn products_of_many_shapes_are_not_all_kept() {
    if std::env::var(MODE).is_ok() {
        return measure_shapes();
    }
    if !downhill::autograd::Library::OneDnn.works() {
        let why = "oneDNN does not multiply in f32 here, so it compiles nothing";
        return crate::common::skipped("processor", why);
    }
    let name = "memory::products_of_many_shapes_are_not_all_kept";
    let (growth, _) = child(name, "shapes", None);
    println!("{} MiB for 400 shapes", growth >> 20);
    assert!(growth < 64 << 20, "{} MiB", growth >> 20);
}
