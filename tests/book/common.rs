//! What several test modules share: small models, temporary folders, the GPU if any.
use downhill::lora::{LoraConfig, Modules, Named, attach};
use downhill::models::{Decoder, DecoderConfig};
use std::io::Write;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The first CUDA device. Where there is none, says so, and counts the test as skipped.
pub fn cuda() -> Option<Device> {
    match downhill::device::load_cuda() {
        Ok(()) => Some(Device::Cuda(0)),
        Err(why) => {
            skipped("cuda", &format!("no CUDA device ({why})"));
            None
        }
    }
}

/// Before `main`, and so before any test: libtorch remembers for good that it saw no
/// CUDA when it was first asked, and every backward on the CPU asks.
#[allow(unsafe_code)] // the list of what the loader calls
#[used]
#[unsafe(link_section = ".init_array")]
static LOAD_CUDA: extern "C" fn() = load_cuda;

extern "C" fn load_cuda() {
    let _ = downhill::device::load_cuda();
}

/// Says that the running test lacks something, and adds it to
/// `target/<what>-skipped.txt`, so that a run without cannot pass for one with.
pub fn skipped(what: &str, why: &str) {
    println!("skipped: {why}");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let list = target.join(format!("{what}-skipped.txt"));
    let mut open = std::fs::OpenOptions::new();
    let mut file = open.create(true).append(true).open(list).expect("the list");
    let thread = std::thread::current();
    writeln!(file, "{}", thread.name().unwrap_or("?")).expect("the list");
}

/// Whether libtorch computes by kernels with vectors: the processor has AVX2, and nobody
/// switched them off by `ATEN_CPU_CAPABILITY`.
pub fn vector_kernels() -> bool {
    let off = std::env::var("ATEN_CPU_CAPABILITY").is_ok_and(|c| c == "default");
    #[cfg(target_arch = "x86_64")]
    return !off && is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return !off;
}

/// Two layers, four heads on two key-value heads.
pub fn config() -> DecoderConfig {
    DecoderConfig {
        vocab_size: 61,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 128,
        ..DecoderConfig::default()
    }
}

/// A random model whose own weights are not trained.
pub fn frozen(seed: u64) -> Decoder {
    let model = Decoder::random(config(), seed).expect("a model");
    for (_, t) in model.named_parameters() {
        let _ = t.set_requires_grad(false);
    }
    model
}

pub fn lora(targets: &[&str], dropout: f64) -> LoraConfig {
    let target_modules = Modules::parse(targets);
    LoraConfig { r: 4, alpha: 8., dropout, target_modules, ..Default::default() }
}

/// A frozen model with an adapter that changes something: B is not zero.
pub fn adapted(seed: u64, config: &LoraConfig) -> (Decoder, Named) {
    let mut model = frozen(seed);
    let named = attach(model.linears_mut(), config, seed, Device::Cpu);
    let named = named.expect("attached");
    tch::no_grad(|| {
        for (name, t) in &named {
            if name.ends_with("lora_B.weight") {
                let wave =
                    Tensor::arange(t.numel() as i64, (Kind::Float, Device::Cpu));
                t.shallow_clone().copy_(&(wave.sin() * 0.1).view_as(t));
            }
        }
    });
    (model, named)
}

/// Fixed token ids [rows, T] below the vocabulary's size.
pub fn ids(rows: i64, t: i64) -> Tensor {
    let n = Tensor::arange(rows * t, (Kind::Int64, Device::Cpu));
    (n * 7 + 3).remainder(61).view([rows, t])
}

/// Numbers that look random and are the same everywhere.
pub fn wave(shape: &[i64], kind: Kind) -> Tensor {
    let n = shape.iter().product::<i64>();
    let x = Tensor::arange(n, (Kind::Double, Device::Cpu));
    ((x * 12.9898).sin() * 43_758.545_3).frac().to_kind(kind).view(shape)
}

/// The text of an error that must be there, with every part of it that must be.
#[track_caller]
pub fn refused<T>(result: downhill::Result<T>, parts: &[&str]) -> String {
    let text = match result {
        Ok(_) => panic!("accepted; expected an error with {parts:?}"),
        Err(e) => e.to_string(),
    };
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    text
}

/// The bytes of a safetensors file with this header, whatever it says.
pub fn safetensors(header: &str, body: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), body].concat()
}

/// `config.json` of [`config`], in transformers' spelling of version 4.
pub fn config_json() -> serde_json::Value {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
    })
}

/// Writes the checkpoint of a random model into `dir`, and returns the model.
pub fn write_checkpoint(dir: &Path, seed: u64) -> Decoder {
    let model = frozen(seed);
    let config = config_json().to_string();
    std::fs::write(dir.join("config.json"), config).expect("config.json");
    let weights = model.named_parameters();
    let path = dir.join("model.safetensors");
    downhill::checkpoint::save_safetensors(&path, &weights, &[("format", "pt")])
        .expect("model.safetensors");
    model
}
