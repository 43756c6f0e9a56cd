//! The flags of the kinds of LoRA, by PEFT's names.
use crate::lora::{Init, LoraConfig, Modules};
use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

/// How an adapter departs from plain LoRA.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub struct AdapterFlags {
    /// Linears of the target modules that get no adapter
    #[arg(long, value_delimiter = ',')]
    pub exclude_modules: Vec<String>,
    /// Of target modules given by name, only those of these layers
    #[arg(long, value_delimiter = ',')]
    pub layers_to_transform: Vec<i64>,
    /// Other ranks, as q_proj=8,layers\.0\..*=4: for names that end so
    #[arg(long, value_delimiter = ',', value_parser = pair::<i64>)]
    pub rank_pattern: Vec<(String, i64)>,
    /// Other alphas, likewise
    #[arg(long, value_delimiter = ',', value_parser = pair::<f64>)]
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale the adapters' update by alpha / sqrt(r)
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub use_rslora: bool,
    /// Train the length of each row apart from its direction (DoRA)
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub use_dora: bool,
    /// Train a bias beside each B
    #[arg(long, action = ArgAction::Set, default_value_t = false,
          num_args = 0..=1, default_missing_value = "true")]
    pub lora_bias: bool,
    /// What the adapters start from; pissa needs --load-in-4bit false
    #[arg(long, value_enum, default_value_t = InitType::Default)]
    pub init_lora_weights: InitType,
    /// Modules that are trained whole and saved with the adapter, as lm_head
    #[arg(long, value_delimiter = ',')]
    pub modules_to_save: Vec<String>,
    /// With --task classification: the classes in the order of the scores. Not given,
    /// they are those of the adapter that a run goes on from, or of the rows, sorted
    #[arg(long, value_delimiter = ',')]
    pub labels: Vec<String>,
}

/// What A and B start from; see [`crate::lora::init`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ValueEnum)]
#[allow(missing_docs)]
pub enum InitType {
    #[default]
    Default,
    Gaussian,
    Pissa,
}

/// `name=value`; the name may hold `=`.
fn pair<V: std::str::FromStr>(text: &str) -> Result<(String, V), String> {
    let expected = || format!("`{text}`; expected PATTERN=NUMBER, as q_proj=8");
    let (name, value) = text.rsplit_once('=').ok_or_else(expected)?;
    let value = value.trim().parse().map_err(|_| expected())?;
    match name.is_empty() {
        true => Err(expected()),
        false => Ok((name.into(), value)),
    }
}

impl AdapterFlags {
    /// `plain`, with what the flags say.
    pub fn apply(&self, plain: LoraConfig) -> LoraConfig {
        let layers = &self.layers_to_transform;
        LoraConfig {
            exclude_modules: Modules::parse(&self.exclude_modules),
            layers_to_transform: (!layers.is_empty()).then(|| layers.clone()),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            lora_bias: self.lora_bias,
            init: match self.init_lora_weights {
                InitType::Default => Init::Default,
                InitType::Gaussian => Init::Gaussian,
                InitType::Pissa => Init::Pissa,
            },
            modules_to_save: self.modules_to_save.clone(),
            ..plain
        }
    }
}
