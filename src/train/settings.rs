//! The settings of a run: names from transformers, PEFT and bitsandbytes, defaults
//! from the classic recipe.
use super::{AdapterFlags, InitType};
use crate::data::Grouping;
use crate::lora::{LoraConfig, Modules};
use crate::models::BLOCKSIZES;
use crate::{Error, Result};
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::{Device, Kind};

/// Everything `downhill finetune` can be told.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Settings {
    /// Checkpoint folder (config.json, model.safetensors or shards, tokenizer.json), or
    /// its name on the hub
    #[arg(long)]
    pub model: PathBuf,
    /// Rows to learn from: JSON Lines, or CSV with a header
    #[arg(long)]
    pub train_file: PathBuf,
    /// Rows to measure the loss on
    #[arg(long)]
    pub eval_file: Option<PathBuf>,
    /// Instead of an eval file: this share of the rows, drawn by the seed, is kept for
    /// measuring
    #[arg(long, default_value_t = 0.)]
    pub validation_split: f64,
    /// What the rows teach
    #[arg(long, value_enum, default_value_t = Task::CausalLm)]
    pub task: Task,
    /// Where adapter, checkpoints and trainer_state.json go
    #[arg(long, default_value = "results")]
    pub output_dir: PathBuf,
    /// Where the TensorBoard event file goes
    #[arg(long, default_value = "logs")]
    pub logging_dir: PathBuf,
    /// Passes over the rows
    #[arg(long, default_value_t = 3.)]
    pub num_train_epochs: f64,
    /// Steps to take, instead of epochs; -1: by epochs
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub max_steps: i64,
    /// Rows in one forward pass
    #[arg(long, default_value_t = 4)]
    pub per_device_train_batch_size: usize,
    /// Forward passes per step
    #[arg(long, default_value_t = 4)]
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-4)]
    pub learning_rate: f64,
    /// Course of the learning rate
    #[arg(long, value_enum, default_value_t = SchedulerType::Cosine)]
    pub lr_scheduler_type: SchedulerType,
    /// More numbers for it, as JSON: num_cycles; lr_end, power; num_decay_steps
    #[arg(long)]
    pub lr_scheduler_kwargs: Option<String>,
    /// Share of the steps in which the learning rate rises
    #[arg(long, default_value_t = 0.03)]
    pub warmup_ratio: f64,
    /// Optimizer
    #[arg(long, value_enum, default_value_t = OptimizerType::Adamw)]
    pub optim: OptimizerType,
    /// Weight decay λ of the adapters
    #[arg(long, default_value_t = 0.)]
    pub weight_decay: f64,
    /// Largest gradient norm; larger ones are scaled down to it. 0: no limit
    #[arg(long, default_value_t = 1.)]
    pub max_grad_norm: f64,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    pub lora_r: i64,
    /// The adapters' update is scaled by alpha / r
    #[arg(long, default_value_t = 32.)]
    pub lora_alpha: f64,
    /// Dropout before the adapters
    #[arg(long, default_value_t = 0.05)]
    pub lora_dropout: f64,
    /// Linears that get an adapter: names, or a regular expression for the whole
    /// name, or all-linear
    #[arg(long, value_delimiter = ',', default_value = "q_proj,v_proj")]
    pub target_modules: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub adapters: AdapterFlags,
    /// Hold the base model in 4 bits
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    pub load_in_4bit: bool,
    /// The 4-bit code
    #[arg(long, value_enum, default_value_t = QuantType::Nf4)]
    pub bnb_4bit_quant_type: QuantType,
    /// Quantize the scales of the blocks as well
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    pub bnb_4bit_use_double_quant: bool,
    /// Weights that share a scale
    #[arg(long, default_value_t = 64)]
    pub bnb_4bit_blocksize: usize,
    /// Folder that keeps the 4-bit form for the next start, or off
    #[arg(long, default_value = "off")]
    #[serde(skip)]
    pub quantized_cache: PathBuf,
    /// Dequantize the 4-bit weights once instead of in each product: faster, in the
    /// memory that 4 bits saved
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub cache_dequant: bool,
    /// Kind to compute in; auto: bf16 on a GPU, f32 on a CPU
    #[arg(long, value_enum, default_value_t = ComputeDtype::Auto)]
    pub compute_dtype: ComputeDtype,
    /// Recompute each block in backward; auto: on a GPU whose free memory is too small
    /// without; offload: and keep each block's input in host memory until then
    #[arg(long, value_enum, default_value_t = Switch::Auto)]
    pub gradient_checkpointing: Switch,
    /// Tokens per row; longer rows are cut
    #[arg(long, default_value_t = 1024)]
    pub max_length: usize,
    /// Put whole rows together up to --max-length tokens; the batch size then counts
    /// these packs. No row sees another
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub packing: bool,
    /// Rows of similar length in one forward pass
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub group_by_length: bool,
    /// Learn of {prompt, completion} the completion alone
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    pub completion_only_loss: bool,
    /// Learn of {messages} the assistant's turns alone
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    pub assistant_only_loss: bool,
    /// Take the rows in a new order each epoch
    #[arg(long, action = ArgAction::Set, default_value_t = true,
          num_args = 0..=1, default_missing_value = "true")]
    pub shuffle: bool,
    /// Start from the adapter in this folder; its rank, alpha and modules hold
    #[arg(long)]
    pub init_adapter: Option<PathBuf>,
    /// When to save a checkpoint
    #[arg(long, value_enum, default_value_t = When::Epoch)]
    pub save_strategy: When,
    /// With --save-strategy steps: every so many
    #[arg(long, default_value_t = 500)]
    pub save_steps: i64,
    /// When to measure the loss on the eval file
    #[arg(long, value_enum, default_value_t = When::Epoch)]
    pub eval_strategy: When,
    /// With --eval-strategy steps: every so many
    #[arg(long, default_value_t = 500)]
    pub eval_steps: i64,
    /// Log every so many steps (their mean loss)
    #[arg(long, default_value_t = 1)]
    pub logging_steps: i64,
    /// Answer the prompts of the eval file before and after, and count exact matches
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub predict_with_generate: bool,
    /// Seed of adapters, dropout and row order
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// On a GPU as on a CPU: the same bits in every run (attention's backward is slower)
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub full_determinism: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Go on from a checkpoint of this run: a folder, or the newest in the output
    /// folder; at the start if there is none yet
    #[arg(long, num_args = 0..=1, default_missing_value = "latest")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
}

/// What the rows teach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ValueEnum)]
#[allow(missing_docs)]
pub enum Task {
    CausalLm,
    Classification,
    Regression,
}

impl Task {
    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal-lm",
            Self::Classification => "classification",
            Self::Regression => "regression",
        }
    }
}

/// Course of the learning rate; see [`crate::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SchedulerType {
    Cosine,
    Linear,
    Constant,
    ConstantWithWarmup,
    CosineWithRestarts,
    Polynomial,
    InverseSqrt,
    WarmupStableDecay,
}

/// Optimizer; see [`crate::optim`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[allow(missing_docs)]
pub enum OptimizerType {
    #[value(alias = "adamw_torch", alias = "adamw_torch_fused")]
    Adamw,
    Adam,
    Sgd,
    Adagrad,
    Rmsprop,
}

/// The 4-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ValueEnum)]
#[allow(missing_docs)]
pub enum QuantType {
    Nf4,
}

/// Kind to compute in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ValueEnum)]
#[allow(missing_docs)]
pub enum ComputeDtype {
    Auto,
    Bf16,
    F32,
}

/// Gradient checkpointing: on, off, or as the machine suggests; on with its
/// checkpoints in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[allow(missing_docs)]
pub enum Switch {
    Auto,
    True,
    False,
    Offload,
}

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ValueEnum)]
#[allow(missing_docs)]
pub enum When {
    No,
    Steps,
    Epoch,
}

impl ComputeDtype {
    /// The kind on this device: `auto` is bf16 on a GPU and f32 on a CPU, most of
    /// which have no bf16 units.
    pub fn kind(self, device: Device) -> Kind {
        match (self, device.is_cuda()) {
            (Self::Bf16, _) | (Self::Auto, true) => Kind::BFloat16,
            (Self::F32, _) | (Self::Auto, false) => Kind::Float,
        }
    }
}

impl Settings {
    /// Refuses values that cannot work, by flag.
    pub fn check(&self) -> Result<()> {
        let wrong = |flag: &str, what: String| Err(Error::setting(flag, what));
        if self.task != Task::CausalLm && self.predict_with_generate {
            let what = "only with --task causal-lm: the others write no text";
            return wrong("--predict-with-generate", what.into());
        }
        if self.predict_with_generate
            && self.eval_file.is_none()
            && self.validation_split == 0.
        {
            let what = "needs prompts to answer: --eval-file or --validation-split";
            return wrong("--predict-with-generate", what.into());
        }
        if self.packing && self.group_by_length {
            let what =
                "packing puts rows together by length already; give one of both";
            return wrong("--group-by-length", what.into());
        }
        if self.validation_split != 0. {
            if !(self.validation_split > 0. && self.validation_split < 1.) {
                let what = format!("{}; a share such as 0.1", self.validation_split);
                return wrong("--validation-split", what);
            }
            if self.eval_file.is_some() {
                let what = "there is --eval-file already; give one of both";
                return wrong("--validation-split", what.into());
            }
        }
        // Far above any use, and low enough that products of them are numbers.
        const MANY: u64 = 1_000_000;
        let sizes = [
            ("--per-device-train-batch-size", self.per_device_train_batch_size),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps),
        ];
        for (flag, n) in sizes {
            if !(1..=MANY).contains(&(n as u64)) {
                return wrong(flag, format!("{n}; from 1 to {MANY}"));
            }
        }
        if self.max_length as u64 > 1000 * MANY {
            let what = format!("{}; at most {}", self.max_length, 1000 * MANY);
            return wrong("--max-length", what);
        }
        let at_least_one = [
            ("--save-steps", self.save_steps),
            ("--eval-steps", self.eval_steps),
            ("--logging-steps", self.logging_steps),
            ("--lora-r", self.lora_r),
        ];
        for (flag, n) in at_least_one {
            if n < 1 {
                return wrong(flag, format!("{n}; at least 1"));
            }
        }
        let never_negative = [
            ("--learning-rate", self.learning_rate),
            ("--weight-decay", self.weight_decay),
            ("--max-grad-norm", self.max_grad_norm),
            ("--num-train-epochs", self.num_train_epochs),
        ];
        for (flag, x) in never_negative {
            if !(x >= 0. && x.is_finite()) {
                return wrong(flag, format!("{x}; a finite number from 0 up"));
            }
        }
        if self.max_steps == 0 || self.max_steps < -1 {
            let what = format!("{}; at least 1, or -1 for epochs", self.max_steps);
            return wrong("--max-steps", what);
        }
        if self.max_steps == -1 && self.num_train_epochs == 0. {
            return wrong(
                "--num-train-epochs",
                "0: nothing would be trained".into(),
            );
        }
        for (flag, x) in [
            ("--warmup-ratio", self.warmup_ratio),
            ("--lora-dropout", self.lora_dropout),
        ] {
            if !(0. ..1.).contains(&x) {
                return wrong(flag, format!("{x}; from 0 to below 1"));
            }
        }
        if !BLOCKSIZES.contains(&self.bnb_4bit_blocksize) {
            let what = format!("{}; one of {BLOCKSIZES:?}", self.bnb_4bit_blocksize);
            return wrong("--bnb-4bit-blocksize", what);
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.) {
            return wrong("--lora-alpha", format!("{}; above 0", self.lora_alpha));
        }
        if self.adapters.init_lora_weights == InitType::Pissa && self.load_in_4bit {
            let what = "pissa splits each weight by its singular values, which it must \
                        have in full: add --load-in-4bit false";
            return wrong("--init-lora-weights", what.into());
        }
        self.lora().check()?;
        self.schedule(100).map(drop)
    }

    /// How rows are put together.
    pub fn grouping(&self) -> Grouping {
        match (self.packing, self.group_by_length) {
            (true, _) => Grouping::Packed(self.max_length),
            (_, true) => Grouping::ByLength(self.per_device_train_batch_size),
            _ => Grouping::Alone,
        }
    }

    /// The adapter's settings.
    pub fn lora(&self) -> LoraConfig {
        self.adapters.apply(LoraConfig {
            r: self.lora_r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            target_modules: Modules::parse(&self.target_modules),
            ..LoraConfig::default()
        })
    }
}
