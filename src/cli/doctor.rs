//! `downhill doctor`: what there is to compute with, and what a checkpoint will take,
//! before anything of it is loaded.
use anyhow::Result;
use clap::Args;
use downhill::autograd::{Library, bf16_units};
use downhill::models::{self, Survey};
use downhill::nn::grouped::known;
use downhill::train::{Memory, Sketch};
use downhill::{device, tch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::{Device, Kind};

/// The flags.
#[derive(Args)]
pub(super) struct Doctor {
    /// Checkpoint folder, or its name on the hub
    #[arg(long)]
    model: Option<PathBuf>,
    /// Rank of the adapters to plan for
    #[arg(long, default_value_t = 16,
          value_parser = clap::value_parser!(i64).range(1..65_536))]
    lora_r: i64,
    /// Rows in one forward pass
    #[arg(long, default_value_t = 4,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    per_device_train_batch_size: u64,
    /// Tokens per row
    #[arg(long, default_value_t = 1024,
          value_parser = clap::value_parser!(u64).range(1..))]
    max_length: u64,
}

/// The version that Cargo.toml pins.
const TCH: &str = "0.24.0";
/// A number of an adapter in training: itself, its gradient, and two averages, in f32.
const TRAINED: u64 = 16;

impl Doctor {
    pub(super) fn run(self) -> Result<ExitCode> {
        examine(&self)
    }
}

fn examine(args: &Doctor) -> Result<ExitCode> {
    let problem = device::problem();
    match &problem {
        None => println!("device      CUDA, {} of them", tch::Cuda::device_count()),
        Some(why) => println!("device      CPU, not CUDA: {why}"),
    }
    let on_cuda = problem.is_none();
    let cards: Vec<_> = (0..tch::Cuda::device_count().max(0) as usize)
        .filter_map(|i| Some((i, device::memory(Device::Cuda(i))?)))
        .filter(|_| on_cuda)
        .collect();
    for (i, m) in &cards {
        println!(
            "cuda:{i}      {}, {} GiB, {} GiB free",
            m.name,
            gib(m.total),
            gib(m.free)
        );
        match downhill::cuda::unavailable(*i) {
            None => println!("            with the kernels of src/cuda"),
            Some(why) => {
                println!("            by libtorch's operations alone: {why}")
            }
        }
    }
    println!("libtorch    {}", libtorch());
    println!("tch         {TCH}");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("threads     {} on {cores} cores", tch::get_num_threads());
    println!("processor   {}", processor());
    let memory = memory();
    if let Some((total, free)) = memory {
        println!("memory      {} GiB, {} GiB free", gib(total), gib(free));
    }
    let Some(model) = &args.model else { return Ok(ExitCode::SUCCESS) };
    let dir = super::resolve(model)?;
    let survey = models::survey(&dir)?;
    let device = if on_cuda { Device::Cuda(0) } else { Device::Cpu };
    let free = match on_cuda {
        true => cards.first().map(|(_, m)| m.free),
        false => memory.map(|m| m.1),
    };
    println!();
    describe(&dir, &survey);
    survey.notes.iter().for_each(|note| println!("note        {note}"));
    plan(&survey, args.lora_r, device, free);
    step(&survey, args, device, auto(device));
    Ok(ExitCode::SUCCESS)
}

fn processor() -> String {
    let library = match Library::fastest() {
        Library::OneDnn => "oneDNN",
        Library::Libtorch => "libtorch's own choice",
    };
    let bf16 = match bf16_units() {
        true => "multiplies in bf16: --compute-dtype bf16 is faster",
        false => "no units for bf16 known: --compute-dtype f32 is faster",
    };
    format!("{bf16}; f32 by {library}")
}

fn describe(dir: &Path, survey: &Survey) {
    let form = if survey.quantized { ", in 4 bits by bitsandbytes" } else { "" };
    println!("checkpoint  {}", dir.display());
    println!("family      {}", survey.family);
    let (count, unit) = match survey.parameters {
        n if n < 100_000_000 => (n as f64 / 1e6, "million"),
        n => (n as f64 / 1e9, "billion"),
    };
    println!("parameters  {count:.3} {unit}");
    println!("files       {}{form}", sized(survey.file_bytes));
    println!("longest     {} tokens", survey.max_position_embeddings);
}

/// Memory by setting. `auto` computes, and holds what is not quantized, in bf16 on a
/// GPU and in f32 on a CPU.
fn plan(survey: &Survey, r: i64, device: Device, free: Option<u64>) {
    let settings = [
        ("--load-in-4bit true", Some(64), auto(device)),
        ("--load-in-4bit true --compute-dtype bf16", Some(64), Kind::BFloat16),
        ("--load-in-4bit false --compute-dtype bf16", None, Kind::BFloat16),
        ("--load-in-4bit false --compute-dtype f32", None, Kind::Float),
    ];
    let usual = survey.adapter_parameters(r, &["q_proj", "v_proj"]);
    let all = survey.adapter_parameters(r, &["all-linear"]);
    println!("\nmemory, computed");
    println!("{:44}{:>10}{:>12}{:>12}", "", "weights", "q,v LoRA", "all-linear");
    for (flags, nf4, kind) in settings {
        let weights = survey.weight_bytes(nf4, kind);
        let fits = match free {
            Some(free) if weights > free => "  more than is free",
            _ => "",
        };
        println!(
            "{flags:44}{:>10}{:>12}{:>12}{fits}",
            sized(weights),
            sized(weights + usual * TRAINED),
            sized(weights + all * TRAINED),
        );
    }
    println!(
        "adapters of rank {r}: {usual} parameters on q_proj,v_proj; {all} on all"
    );
}

/// What `--compute-dtype auto` means.
fn auto(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}

/// What a step takes on top, with adapters on all linears.
fn step(survey: &Survey, args: &Doctor, device: Device, kind: Kind) {
    let rows = args.per_device_train_batch_size;
    let length = args.max_length.min(survey.max_position_embeddings as u64);
    println!("\nand for a step of {rows} rows of {length} tokens, computed");
    for checkpointing in [false, true] {
        let sketch = Sketch {
            rows,
            length,
            kind,
            nf4: Some(64),
            r: args.lora_r,
            targets: &["all-linear"],
            dropout: true,
            checkpointing,
            cuda: device.is_cuda(),
            side_by_side: device.is_cuda() && known(device, kind),
        };
        let need = Memory::planned(survey, &sketch);
        let parts =
            ["activations", Memory::HIGHEST, Memory::UNPACKED, Memory::COMPILED];
        let above: usize = parts.iter().map(|part| need.part(part)).sum();
        let flag = format!("--gradient-checkpointing {checkpointing}");
        println!("{flag:44}{:>10}", sized(above as u64));
    }
}

/// In GiB, or in MiB what is small.
fn sized(bytes: u64) -> String {
    match bytes {
        n if n < 1 << 27 => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
        n => format!("{} GiB", gib(n)),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 30))
}

/// Total and available memory, in bytes: the container's, where it has a limit.
fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = |key: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    let (total, free) = (line("MemTotal:")?, line("MemAvailable:")?);
    let group = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse().ok()
    };
    match (group("memory.max"), group("memory.current")) {
        (Some(limit), Some(used)) if limit < total => {
            Some((limit, free.min(limit.saturating_sub(used))))
        }
        _ => Some((total, free)),
    }
}

/// Version and place of the libtorch that this process has loaded.
fn libtorch() -> String {
    let Some((dir, version)) = device::libtorch() else {
        return "loaded from nowhere known".into();
    };
    let version = if version.is_empty() { "unknown" } else { &version };
    format!("{version} in {}", dir.parent().unwrap_or(&dir).display())
}
