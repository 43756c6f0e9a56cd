//! The memory of a run, computed before anything of it is loaded.
use super::Memory;
use crate::models::{DecoderConfig, Survey};
use crate::nn::grouped;
use crate::nn::tokens_at_once as at_once;
use tch::Kind;

/// A run, as far as its memory goes.
#[derive(Clone, Debug)]
pub struct Sketch<'a> {
    /// Rows in one forward pass.
    pub rows: u64,
    /// Tokens of each, every one of them learned: the most it can be.
    pub length: u64,
    /// In which it computes.
    pub kind: Kind,
    /// Block size of the 4-bit weights; None: not quantized.
    pub nf4: Option<usize>,
    /// Rank of the adapters.
    pub r: i64,
    /// As [`Survey::adapter_parameters`] takes them.
    pub targets: &'a [&'a str],
    /// Whether the adapters drop.
    pub dropout: bool,
    /// Each block is computed again in backward.
    pub checkpointing: bool,
    /// On a GPU a weight is unpacked whole, and attention keeps no table.
    pub cuda: bool,
    /// A card on which all experts of a layer are unpacked at once:
    /// [`crate::nn::grouped::known`].
    pub side_by_side: bool,
}

/// Scores that the loss computes at a time on a CPU; see `nn::cross_entropy`.
const SCORES: u64 = 1 << 24;
/// Bytes of f32.
const F32: u64 = 4;

impl Memory {
    /// Name of the part that [`Memory::planned`] gives to what is largest for a moment.
    pub const HIGHEST: &str = "scores, or a layer in backward";
    /// Name of the part for weights in the kind that is computed in.
    pub const UNPACKED: &str = "weights, unpacked for a product";

    /// Name of the part that [`Memory::planned`] gives to what oneDNN compiles.
    pub const COMPILED: &str = "products, compiled";

    /// Of a run at its highest: the same parts as [`Memory::of`], but nothing is
    /// measured. What backward needs of a layer is counted from the tensors that the
    /// functions in `nn` keep.
    pub fn planned(model: &Survey, run: &Sketch) -> Self {
        let c = &model.config;
        let (w, tokens) = (run.width(), run.rows * run.length);
        let (d, v) = (c.hidden_size as u64, c.vocab_size as u64);
        let layers = c.num_hidden_layers as u64;
        let each = (0..c.num_hidden_layers).map(|i| run.of_layer(c, i));
        let (all, one) = each.fold((0, 0), |(all, one), n| (all + n, n.max(one)));
        // What the last norm keeps, its result, the learned part of that and its
        // gradient; cosines and sines.
        let ends = d * (F32 + 3 * w) + 2 * c.head_dim as u64 * w;
        let kept = match run.checkpointing {
            true => layers * d * w,
            false => all,
        };
        // Gradients on their way through one feed-forward layer.
        let passing = w * (3 * run.widest(c) + 2 * d);
        let again = if run.checkpointing { one } else { 0 };
        let scores = match run.cuda {
            true => {
                tokens.min(at_once(tokens as i64, v as i64, true) as u64) * v * w
            }
            false => (tokens * v).min(SCORES.max(v)) * (w + F32),
        };
        let highest = scores.max(tokens * (again + passing));
        let trained = model.adapter_parameters(run.r, run.targets) * F32;
        let sizes = model.linears.iter().map(|(_, [n, m])| (n * m) as u64);
        let unpacked = match (run.cuda, run.nf4) {
            (true, Some(_)) => sizes.max().unwrap_or(0) * w,
            _ => 0,
        };
        let compiled = if run.cuda { 0 } else { model.compiled_bytes(run.kind) };
        // What adapters multiply by, if not by themselves.
        let cast = match run.kind {
            Kind::Float => 0,
            _ if run.checkpointing => trained / F32 * w / layers.max(1),
            _ => trained / F32 * w,
        };
        let unpacked = unpacked.max(run.of_experts(c));
        let parts = [
            ("weights", model.weight_bytes(run.nf4, run.kind)),
            ("adapters", trained),
            ("gradients", trained),
            ("optimizer state", 2 * trained),
            ("activations", tokens * (kept + ends) + cast),
            (Self::HIGHEST, highest),
            (Self::UNPACKED, unpacked),
            (Self::COMPILED, compiled),
        ];
        let parts = parts.map(|(name, bytes)| (name, bytes as usize));
        Self(parts.into_iter().filter(|(_, bytes)| *bytes > 0).collect())
    }
}

impl Sketch<'_> {
    fn width(&self) -> u64 {
        self.kind.elt_size_in_bytes() as u64
    }

    // ANCHOR: kept
    /// What adapters that share one input of so many numbers keep of a token: the input,
    /// or with dropout what each leaves of it and by what factors (a GPU draws them
    /// again), and `A x`. `held`: the input is kept anyway.
    fn inputs(&self, names: &[&str], numbers: u64, held: bool) -> u64 {
        let here = |n: &&&str| {
            self.targets.contains(&"all-linear") || self.targets.contains(*n)
        };
        let count = names.iter().filter(here).count() as u64;
        let w = self.width();
        let kept = match (count, self.dropout && !self.cuda) {
            (0, _) => 0,
            (_, true) => count * (w + F32),
            (_, false) if held => 0,
            (_, false) => w,
        };
        kept * numbers + count * self.r as u64 * w
    }

    /// Of a feed-forward layer F wide, and `result` bytes for each number of its
    /// result.
    fn of_feed(&self, c: &DecoderConfig, f: u64, result: u64) -> u64 {
        let d = c.hidden_size as u64;
        3 * f * self.width()
            + self.inputs(&["gate_proj", "up_proj"], d, false)
            + self.inputs(&["down_proj"], f, false)
            + d * result
    }
    // ANCHOR_END: kept

    /// Bytes per token that backward needs of a layer.
    fn of_layer(&self, c: &DecoderConfig, layer: i64) -> u64 {
        let w = self.width();
        let norms = 2 * c.hidden_size as u64 * F32;
        let feed = match c.experts_of(layer) {
            None => self.of_feed(c, c.intermediate_size as u64, 0),
            Some(e) => {
                let chosen = e.routing.chosen as u64;
                let router = 2 * e.routed as u64 * F32;
                let one = self.of_feed(c, e.intermediate_size as u64, w);
                let shared = (e.shared * e.intermediate_size) as u64;
                let shared = if shared > 0 { self.of_feed(c, shared, 0) } else { 0 };
                router + chosen * one + shared
            }
        };
        norms + self.of_attention(c) + feed
    }

    fn of_attention(&self, c: &DecoderConfig) -> u64 {
        let w = self.width();
        let (d, k) = (c.hidden_size as u64, c.head_dim as u64);
        let heads = c.num_attention_heads as u64;
        let Some(l) = &c.latent else {
            let (q, kv) = (heads * k, c.num_key_value_heads as u64 * k);
            let norms = if c.qk_norm { (q + kv) * F32 } else { 0 };
            let inner = (2 * q + 2 * kv) * w + heads * F32;
            return norms
                + inner
                + self.inputs(&["q_proj", "k_proj", "v_proj"], d, false)
                + self.inputs(&["o_proj"], q, true);
        };
        let [nope, value, latent] =
            [l.qk_nope_head_dim, l.v_head_dim, l.kv_lora_rank].map(|n| n as u64);
        let q = match l.q_lora_rank {
            None => 0,
            Some(r) => r as u64 * F32 + self.inputs(&["q_b_proj"], r as u64, false),
        };
        // Queries and keys, keys and values as they came, the result.
        let inner = heads * (2 * (nope + k) + nope + value + value) * w;
        // libtorch's fast attention on a CPU wants values of the keys' size; the
        // other one keeps scaled queries and keys, and all probabilities.
        let table = match self.cuda {
            true => heads * F32,
            false => heads * (2 * (nope + k) + self.length) * w,
        };
        let firsts = ["q_proj", "q_a_proj", "kv_a_proj_with_mqa"];
        let firsts = if l.q_lora_rank.is_none() {
            [firsts[0], firsts[2]]
        } else {
            [firsts[1], firsts[2]]
        };
        q + inner
            + table
            + (latent + k) * F32
            + self.inputs(&firsts, d, false)
            + self.inputs(&["kv_b_proj"], latent, false)
            + self.inputs(&["o_proj"], heads * value, true)
    }

    /// One weight of all experts of a layer, where they are computed side by side.
    fn of_experts(&self, c: &DecoderConfig) -> u64 {
        let Some(e) = c.experts.as_ref().filter(|_| self.side_by_side) else {
            return 0;
        };
        let shape = [e.intermediate_size, c.hidden_size];
        let bytes = grouped::scratch(e.routed, shape, self.width() as i64);
        if bytes <= grouped::MOST_BYTES { bytes as u64 } else { 0 }
    }

    /// Width of the widest feed-forward layer, with experts all that see a token.
    fn widest(&self, c: &DecoderConfig) -> u64 {
        let of = |layer| match c.experts_of(layer) {
            None => c.intermediate_size,
            Some(e) => (e.routing.chosen + e.shared) * e.intermediate_size,
        };
        (0..c.num_hidden_layers).map(of).max().unwrap_or(0) as u64
    }
}
