//! The settings of an adapter, and PEFT's rules of which module they mean.
use super::pattern::Pattern;
use crate::{Error, Result};

/// The settings of a LoRA adapter, by PEFT's names. The default is PEFT's.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank r.
    pub r: i64,
    /// α; the update is scaled by α / r.
    pub alpha: f64,
    /// Probability of dropping an input element in training.
    pub dropout: f64,
    /// Which linears get an adapter.
    pub target_modules: Modules,
    /// Which of them do not.
    pub exclude_modules: Modules,
    /// Of modules meant by the end of their name, only those in these layers.
    pub layers_to_transform: Option<Vec<i64>>,
    /// What stands before the layer's number; empty: whatever does.
    pub layers_pattern: Vec<String>,
    /// Other ranks for the modules whose name ends so; the first that matches.
    pub rank_pattern: Vec<(String, i64)>,
    /// Other α, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale by α / √r: the update then keeps its size when r grows (Kalajdzievski
    /// 2023, arXiv 2312.03732).
    pub use_rslora: bool,
    /// Train the length of each row apart from its direction: see
    /// [`crate::nn::Dora`].
    pub use_dora: bool,
    /// A trained bias beside B.
    pub lora_bias: bool,
    /// What A and B start from.
    pub init: Init,
    /// Modules of the model that are trained whole and saved with the adapter.
    pub modules_to_save: Vec<String>,
    /// Linears that PEFT shall adapt by the names of their weights, beside the target
    /// modules: see [`super::fused`].
    pub target_parameters: Vec<String>,
    /// What the model is for.
    pub task_type: TaskType,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.,
            dropout: 0.,
            target_modules: Modules::default(),
            exclude_modules: Modules::default(),
            layers_to_transform: None,
            layers_pattern: vec![],
            rank_pattern: vec![],
            alpha_pattern: vec![],
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            init: Init::Default,
            modules_to_save: vec![],
            target_parameters: vec![],
            task_type: TaskType::CausalLm,
        }
    }
}

/// A choice of modules.
#[derive(Clone, Debug, PartialEq)]
pub enum Modules {
    /// Every linear layer but the head.
    AllLinear,
    /// Those of this name, or whose name ends in it after a dot.
    Names(Vec<String>),
    /// Those whose whole name this regular expression matches.
    Pattern(String),
}

impl Default for Modules {
    fn default() -> Self {
        Self::Names(vec![])
    }
}

impl Modules {
    /// From a flag or key: `all-linear` anywhere means each. What holds signs that no
    /// name has, such as `*` or `|`, is one regular expression, its commas included.
    pub fn parse<S: AsRef<str>>(list: &[S]) -> Self {
        let list = list.iter().map(|s| s.as_ref().trim().to_string());
        let list: Vec<String> = list.filter(|s| !s.is_empty()).collect();
        if list.iter().any(|s| s.eq_ignore_ascii_case("all-linear")) {
            return Self::AllLinear;
        }
        match list.iter().any(|s| s.contains(|c| r"\^$*+?()[]{}|".contains(c))) {
            true => Self::Pattern(list.join(",")),
            false => Self::Names(list),
        }
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }
}

/// What A and B start from; see [`super::init`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// A from U(−1/√in, 1/√in), B zero.
    Default,
    /// A from N(0, 1/r²), B zero.
    Gaussian,
    /// The largest r singular values of the weight, which is left without them.
    Pissa,
}

/// What the model is for: PEFT's `task_type`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TaskType {
    /// Continuing text.
    CausalLm,
    /// Scores for a whole text: classes, or a number.
    SeqCls,
}

/// A rank beyond that of any weight.
pub(super) const MAX_RANK: i64 = 65_535;

/// Whether a module's name is `part`, or ends in it after a dot.
pub(super) fn ends_in(name: &str, part: &str) -> bool {
    name.strip_suffix(part)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl LoraConfig {
    /// The rank and the scale s of the adapter beside the linear `name`, if it gets one.
    ///
    /// # Errors
    /// A setting out of range; a pattern that is none.
    pub fn adapter_for(&self, name: &str) -> Result<Option<(i64, f64)>> {
        let rules = Rules::new(self)?;
        match rules.targets(name)? {
            true => rules.rank_and_scale(name).map(Some),
            false => Ok(None),
        }
    }

    /// Refuses what cannot work, by flag.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, what: String| Err(Error::setting(name, what));
        let ranks = self.rank_pattern.iter().map(|(_, r)| ("rank-pattern", *r));
        for (flag, r) in ranks.chain([("lora-r", self.r)]) {
            if !(1..=MAX_RANK).contains(&r) {
                return wrong(flag, format!("{r}; from 1 to {MAX_RANK}"));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(_, a)| ("alpha-pattern", *a));
        for (flag, alpha) in alphas.chain([("lora-alpha", self.alpha)]) {
            if !alpha.is_finite() {
                return wrong(flag, format!("{alpha}; a finite number"));
            }
            if self.init == Init::Pissa && alpha <= 0. {
                return wrong(flag, format!("{alpha}; above 0 for PiSSA"));
            }
        }
        if !(0. ..1.).contains(&self.dropout) {
            let what = format!("{}; from 0 to below 1", self.dropout);
            return wrong("lora-dropout", what);
        }
        if self.lora_bias && self.use_dora {
            let what = "not together with use-dora, of which PEFT has no such form";
            return wrong("lora-bias", what.into());
        }
        if self.lora_bias && self.init != Init::Default {
            let what = "only with the default init-lora-weights, as in PEFT";
            return wrong("lora-bias", what.into());
        }
        let by_name = matches!(self.target_modules, Modules::Names(_));
        if self.layers_to_transform.is_some() && !by_name {
            let what = "needs target-modules as a list of names; a regular \
                        expression can name the layers itself";
            return wrong("layers-to-transform", what.into());
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_none() {
            return wrong("layers-pattern", "needs layers-to-transform".into());
        }
        Ok(())
    }
}

/// A checked configuration with its patterns compiled.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    config: &'a LoraConfig,
    target: Option<Pattern>,
    exclude: Option<Pattern>,
    saved: Vec<Pattern>,
    layers: Vec<Pattern>,
    ranks: Vec<(Pattern, i64)>,
    alphas: Vec<(Pattern, f64)>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(config: &'a LoraConfig) -> Result<Self> {
        config.check()?;
        let whole = |flag, modules: &Modules| match modules {
            Modules::Pattern(text) => Pattern::whole(flag, text).map(Some),
            _ => Ok(None),
        };
        fn each<V: Copy>(
            flag: &'static str,
            patterns: &[(String, V)],
        ) -> Result<Vec<(Pattern, V)>> {
            let compile =
                |(text, v): &(String, V)| Ok((Pattern::end(flag, text)?, *v));
            patterns.iter().map(compile).collect()
        }
        let saved = config.modules_to_save.iter();
        let layers = config.layers_pattern.iter();
        Ok(Self {
            config,
            target: whole("target-modules", &config.target_modules)?,
            exclude: whole("exclude-modules", &config.exclude_modules)?,
            saved: saved
                .map(|m| Pattern::parts("modules-to-save", m))
                .collect::<Result<_>>()?,
            layers: layers
                .map(|p| Pattern::layer("layers-pattern", p))
                .collect::<Result<_>>()?,
            ranks: each("rank-pattern", &config.rank_pattern)?,
            alphas: each("alpha-pattern", &config.alpha_pattern)?,
        })
    }

    /// Whether the linear `name` gets an adapter.
    ///
    /// Source: `check_target_module_exists` in PEFT's `tuners/tuners_utils.py`.
    pub(super) fn targets(&self, name: &str) -> Result<bool> {
        let excluded = match (&self.exclude, &self.config.exclude_modules) {
            (Some(pattern), _) => pattern.matches(name)?,
            (None, Modules::Names(list)) => list.iter().any(|m| ends_in(name, m)),
            (None, _) => false,
        };
        if excluded {
            return Ok(false);
        }
        for pattern in &self.saved {
            if pattern.matches(name)? {
                return Ok(false);
            }
        }
        let parameter = format!("{name}.weight");
        if self.config.target_parameters.iter().any(|p| ends_in(&parameter, p)) {
            return Ok(true);
        }
        match (&self.target, &self.config.target_modules) {
            (Some(pattern), _) => pattern.matches(name),
            (None, Modules::Names(list)) => {
                if list.iter().any(|m| name == m) {
                    return Ok(true);
                }
                Ok(list.iter().any(|m| ends_in(name, m)) && self.in_layers(name)?)
            }
            (None, _) => Ok(true),
        }
    }

    fn in_layers(&self, name: &str) -> Result<bool> {
        let Some(layers) = &self.config.layers_to_transform else { return Ok(true) };
        let number = match self.layers.is_empty() {
            // The first number after at least two parts: a layer's, not an expert's.
            true => {
                let parts: Vec<&str> = name.split('.').collect();
                let inner = parts.get(2..parts.len().saturating_sub(1));
                inner.unwrap_or_default().iter().find_map(|p| p.parse().ok())
            }
            false => {
                let mut found = None;
                for pattern in &self.layers {
                    found = pattern.number(name)?;
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
        };
        Ok(number.is_some_and(|n| layers.contains(&n)))
    }

    /// r and the scale s of the adapter beside `name`.
    ///
    /// Source: `get_pattern_key` in PEFT's `utils/other.py`; `lora/layer.py`.
    pub(super) fn rank_and_scale(&self, name: &str) -> Result<(i64, f64)> {
        fn first<V: Copy>(of: &[(Pattern, V)], name: &str) -> Result<Option<V>> {
            for (pattern, value) in of {
                if pattern.matches(name)? {
                    return Ok(Some(*value));
                }
            }
            Ok(None)
        }
        // ANCHOR: scale
        let r = first(&self.ranks, name)?.unwrap_or(self.config.r);
        let alpha = first(&self.alphas, name)?.unwrap_or(self.config.alpha);
        let scale = match self.config.use_rslora {
            true => alpha / (r as f64).sqrt(),
            false => alpha / r as f64,
        };
        // ANCHOR_END: scale
        Ok((r, scale))
    }

    /// Refuses patterns for ranks and α that none of the adapted `names` matches.
    pub(super) fn all_used(&self, names: &[&str]) -> Result<()> {
        let ranks = self.ranks.iter().map(|(p, _)| ("rank-pattern", p));
        let alphas = self.alphas.iter().map(|(p, _)| ("alpha-pattern", p));
        for (flag, pattern) in ranks.chain(alphas) {
            let mut used = false;
            for name in names {
                used |= pattern.matches(name)?;
            }
            if !used {
                let text = pattern.text();
                let first = names.first().unwrap_or(&"none");
                let what = format!(
                    "`{text}` matches no adapted module; it is a regular expression \
                     for the last parts of a name such as {first}"
                );
                return Err(Error::setting(flag, what));
            }
        }
        Ok(())
    }
}
