//! Where the memory of a run goes, and what to do where it does not suffice.
use super::{Settings, Switch};
use crate::models::Decoder;
use crate::optim::{Optimizer, state_bytes};
use crate::plot::{Bars, Figure};

/// Bytes by part. All are computed from the tensors but the rest, most of it
/// activations, which is measured, on a CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory(pub Vec<(&'static str, usize)>);

impl Memory {
    /// Of a model in training. `grown`: by how much the memory of the process was
    /// larger after a forward pass than before the first, at most.
    pub fn of(
        model: &Decoder,
        optimizer: &dyn Optimizer,
        grown: Option<usize>,
    ) -> Self {
        let bytes = |t: &tch::Tensor| t.numel() * t.kind().elt_size_in_bytes();
        let (mut ends, mut linears, mut rest) = (0, 0, 0);
        for (name, t) in model.named_parameters() {
            let outer = ["model.embed_tokens.weight", "lm_head.weight"];
            match t.dim() {
                _ if outer.contains(&name.as_str()) => ends += bytes(&t),
                1 => rest += bytes(&t),
                _ => linears += bytes(&t),
            }
        }
        let nf4 = model.bytes() - ends - linears - rest;
        let trained = optimizer.params().iter().map(|p| bytes(&p.tensor)).sum();
        let state = state_bytes(optimizer);
        let mut parts = vec![
            ("embedding and head", ends),
            ("linear layers, NF4", nf4),
            ("linear layers, dense", linears),
            ("norms and biases", rest),
            ("adapters", trained),
            ("gradients", trained),
            ("optimizer state", state),
        ];
        // From the second step on the growth has these in it.
        let later = trained + state;
        if let Some(grown) = grown {
            parts.push(("the rest (measured)", grown.saturating_sub(later)));
        }
        parts.retain(|(_, bytes)| *bytes > 0);
        Self(parts)
    }

    /// The part of this name, 0 if there is none.
    pub fn part(&self, name: &str) -> usize {
        self.0.iter().find(|(n, _)| *n == name).map_or(0, |(_, bytes)| *bytes)
    }

    /// All parts together.
    pub fn total(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    /// A bar for each part.
    pub fn draw(&self) -> Figure {
        let bars = Bars::new("Memory by part (MiB)");
        let add = |bars: Bars, (name, bytes): &(&str, usize)| {
            let mib = *bytes as f64 / 1024f64.powi(2);
            bars.bar(name, mib, &format!("{mib:.2}"))
        };
        self.0.iter().fold(bars, add).draw()
    }
}

/// What of the process is in memory now, where the system says so.
pub(super) fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The settings that take less memory, with their values.
pub(super) fn lower(s: &Settings) -> String {
    let mut help = vec![];
    if s.per_device_train_batch_size > 1 {
        help.push(format!(
            "--per-device-train-batch-size ({}; with more \
             --gradient-accumulation-steps it learns the same)",
            s.per_device_train_batch_size
        ));
    }
    help.push(format!("--max-length ({})", s.max_length));
    let mut help = format!("Lower {}", help.join(" or "));
    let mut add = |needed: bool, flag: &str| {
        if needed {
            help.push_str(&format!(", or try {flag}"));
        }
    };
    add(s.cache_dequant, "--cache-dequant false");
    add(!s.load_in_4bit, "--load-in-4bit true");
    match s.gradient_checkpointing {
        Switch::Offload => {}
        Switch::True => add(true, "--gradient-checkpointing offload"),
        _ => add(true, "--gradient-checkpointing true"),
    }
    add(s.compute_dtype == super::ComputeDtype::F32, "--compute-dtype bf16");
    help
}
