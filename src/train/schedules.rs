//! The learning rate and the optimizer that the flags mean, by transformers' names.
use super::{OptimizerType, SchedulerType, Settings};
use crate::optim::{Adagrad, Adam, AdamW, Driver, Optimizer, Param, RmsProp, Sgd};
use crate::schedule::{self, Schedule};
use crate::{Error, Result};
use serde_json::{Map, Value};

/// Numbers that a schedule takes beside peak, warmup and length.
struct Extra(Map<String, Value>);

impl Extra {
    /// Of `--lr-scheduler-kwargs`, whose keys must be among `known`.
    fn of(settings: &Settings, known: &[&str]) -> Result<Self> {
        let wrong =
            |what: String| Err(Error::setting("--lr-scheduler-kwargs", what));
        let Some(text) = &settings.lr_scheduler_kwargs else {
            return Ok(Self(Map::new()));
        };
        let Ok(Value::Object(map)) = serde_json::from_str(text) else {
            let example = "{\"num_cycles\": 3}";
            return wrong(format!("`{text}`; a JSON object such as {example}"));
        };
        for (key, value) in &map {
            if !known.contains(&key.as_str()) {
                let name = settings.lr_scheduler_type;
                let known = match known {
                    [] => "no keys".into(),
                    keys => keys.join(", "),
                };
                return wrong(format!("`{key}`; {name:?} takes {known}"));
            }
            if !value.as_f64().is_some_and(|x| x >= 0.) {
                return wrong(format!("`{key}` is {value}; a number from 0 up"));
            }
        }
        Ok(Self(map))
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.0.get(key).and_then(Value::as_f64).unwrap_or(default)
    }

    fn steps(&self, key: &str, default: i64) -> Result<i64> {
        let x = self.number(key, default as f64);
        match x.fract() == 0. && x >= 1. {
            true => Ok(x as i64),
            false => {
                let what = format!("`{key}` is {x}; a whole number, at least 1");
                Err(Error::setting("--lr-scheduler-kwargs", what))
            }
        }
    }
}

impl Settings {
    /// The learning rate over `total` steps, as transformers' `get_scheduler` gives it
    /// for this name, with its defaults.
    ///
    /// # Errors
    /// A key of `--lr-scheduler-kwargs` that this schedule does not take.
    pub fn schedule(&self, total: i64) -> Result<Box<dyn Schedule>> {
        let peak = self.learning_rate;
        let warmup = (total as f64 * self.warmup_ratio).ceil() as i64;
        let known: &[&str] = match self.lr_scheduler_type {
            SchedulerType::CosineWithRestarts => &["num_cycles"],
            SchedulerType::Polynomial => &["lr_end", "power"],
            SchedulerType::WarmupStableDecay => &["num_decay_steps"],
            _ => &[],
        };
        let extra = Extra::of(self, known)?;
        Ok(match self.lr_scheduler_type {
            SchedulerType::Cosine => Box::new(schedule::cosine(peak, warmup, total)),
            SchedulerType::Linear => Box::new(schedule::linear(peak, warmup, total)),
            SchedulerType::Constant => Box::new(schedule::constant(peak)),
            SchedulerType::ConstantWithWarmup => {
                Box::new(schedule::constant_with_warmup(peak, warmup))
            }
            SchedulerType::CosineWithRestarts => {
                let cycles = extra.steps("num_cycles", 1)?;
                Box::new(schedule::cosine_restarts(peak, warmup, total, cycles))
            }
            SchedulerType::Polynomial => {
                let (end, power) =
                    (extra.number("lr_end", 1e-7), extra.number("power", 1.));
                if end >= peak {
                    let what =
                        format!("`lr_end` is {end}; below --learning-rate {peak}");
                    return Err(Error::setting("--lr-scheduler-kwargs", what));
                }
                Box::new(schedule::polynomial(peak, warmup, total, power, end))
            }
            SchedulerType::InverseSqrt => {
                let timescale = if warmup > 0 { warmup } else { 10_000 };
                Box::new(schedule::inverse_sqrt(peak, warmup, timescale))
            }
            // transformers has no default for the decay: a tenth, as in its paper.
            SchedulerType::WarmupStableDecay => {
                let decay = extra.steps("num_decay_steps", (total / 10).max(1))?;
                let stable = (total - warmup - decay).max(0);
                Box::new(schedule::wsd(peak, warmup, stable, decay))
            }
        })
    }

    /// The optimizer over `params`, with PyTorch's defaults beside rate and weight
    /// decay: the latter decoupled for adamw, an L2 term of the gradient for the others.
    pub fn optimizer(&self, params: Vec<Param>) -> Box<dyn Optimizer> {
        match self.optim {
            OptimizerType::Adamw => Box::new(Driver::new(AdamW::default(), params)),
            OptimizerType::Adam => Box::new(Driver::new(Adam::default(), params)),
            OptimizerType::Sgd => Box::new(Driver::new(Sgd::default(), params)),
            OptimizerType::Adagrad => {
                Box::new(Driver::new(Adagrad::default(), params))
            }
            OptimizerType::Rmsprop => {
                Box::new(Driver::new(RmsProp::default(), params))
            }
        }
    }
}
