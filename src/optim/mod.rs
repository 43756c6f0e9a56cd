//! Optimizers: a rule per algorithm over one driver.
//!
//! A [`Rule`] is one algorithm box of a paper and knows nothing but a parameter, its
//! gradient and its remembered tensors. The [`Driver`] owns everything else, once:
//! state by parameter name, the step count of each parameter, skipping parameters
//! without a gradient, saving and loading. The learning rate is an argument of
//! [`Optimizer::step`]; schedules are functions beside ([`crate::schedule`]).
//!
//! tch's own `nn::Optimizer` cannot save its state, so no run of it can be resumed.

mod adagrad;
mod adam;
mod clip;
mod fused;
mod rmsprop;
mod sgd;

pub use adagrad::Adagrad;
pub use adam::{Adam, AdamW, AmsGrad};
pub use clip::{
    clip_grad_adaptive, clip_grad_norm, clip_grad_norm_late, clip_grad_value,
};
pub use rmsprop::RmsProp;
pub use sgd::Sgd;

use crate::autograd::for_each;
use crate::{Error, Result};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, no_grad};

/// A trainable tensor, its name in checkpoints, and how strongly it decays.
#[derive(Debug)]
pub struct Param {
    /// Unique; optimizer state is saved under it.
    pub name: String,
    /// The leaf tensor that is trained.
    pub tensor: Tensor,
    /// λ of this parameter: 0 for norms and biases in most recipes.
    pub weight_decay: f64,
}

impl Param {
    /// A tensor that does not decay. The optimizer moves the tensor of the caller: both
    /// are one.
    pub fn new(name: &str, tensor: &Tensor) -> Self {
        let (name, tensor) = (name.to_string(), tensor.shallow_clone());
        Self { name, tensor, weight_decay: 0. }
    }

    /// Named tensors, none of which decays.
    pub fn all(named: impl IntoIterator<Item = (String, Tensor)>) -> Vec<Self> {
        Self::with_decay(named, |_, _| 0.)
    }

    /// Named tensors with the decay that `decay(name, tensor)` gives to each.
    pub fn with_decay(
        named: impl IntoIterator<Item = (String, Tensor)>,
        decay: impl Fn(&str, &Tensor) -> f64,
    ) -> Vec<Self> {
        let param = |(name, tensor): (String, Tensor)| {
            let weight_decay = decay(&name, &tensor);
            Self { name, tensor, weight_decay }
        };
        named.into_iter().map(param).collect()
    }
}

/// What a rule is told beside the tensors.
#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    /// This parameter's own steps, counted from 1.
    pub t: i32,
    /// Learning rate of this step.
    pub lr: f64,
    /// Weight decay λ of this parameter.
    pub wd: f64,
}

// ANCHOR: rule
/// One algorithm box of a paper; `N` tensors are remembered per parameter.
pub trait Rule<const N: usize>: Sync {
    /// Names of the remembered tensors, in checkpoints: `["m", "v"]`.
    const SLOTS: [&'static str; N];

    /// What is remembered before the first step: zeros like the parameter.
    fn init(&self, theta: &Tensor) -> [Tensor; N] {
        std::array::from_fn(|_| theta.zeros_like())
    }

    /// Changes `theta` in place by one step along the gradient `g`.
    fn update(
        &self,
        theta: &mut Tensor,
        g: &Tensor,
        slots: [&mut Tensor; N],
        h: Hyper,
    );
}
// ANCHOR_END: rule

/// What the training loop sees of an optimizer.
pub trait Optimizer {
    /// One step with this learning rate. Parameters without a gradient are passed
    /// over: neither they, nor their state, nor their step count change.
    fn step(&mut self, lr: f64);
    /// Forgets all gradients (PyTorch's `set_to_none=True`).
    fn zero_grad(&mut self);
    /// The parameters, in the order given.
    fn params(&self) -> &[Param];
    /// Everything needed to go on later, as `name.slot` and `name.t`.
    fn state(&self) -> Vec<(String, Tensor)>;
    /// Puts back what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// A key of no parameter, a missing slot, a wrong shape. Nothing is changed then.
    fn load_state(&mut self, saved: &HashMap<String, Tensor>) -> Result<()>;
}

/// Whether a step is taken beside others, each on a core of its own: what a large
/// tensor needs, libtorch shares out among the cores by itself.
fn is_small(p: &Param) -> bool {
    p.tensor.numel() < 1 << 18 && p.tensor.device() == Device::Cpu
}

/// Gives [`Optimizer`] to any [`Rule`].
pub struct Driver<R, const N: usize> {
    rule: R,
    params: Vec<Param>,
    /// Beside each parameter: its slots and its step count, once it has had a step.
    state: Vec<Option<([Tensor; N], i32)>>,
}

impl<R: Rule<N>, const N: usize> Driver<R, N> {
    /// A driver for these parameters; their state is made at their first step.
    pub fn new(rule: R, params: Vec<Param>) -> Self {
        let state = params.iter().map(|_| None).collect();
        Self { rule, params, state }
    }
}

impl<R: Rule<N> + 'static, const N: usize> Optimizer for Driver<R, N> {
    // ANCHOR: step
    fn step(&mut self, lr: f64) {
        let rule = &self.rule;
        let one = |(p, state): (&mut Param, &mut Option<([Tensor; N], i32)>)| {
            let g = p.tensor.grad();
            if !g.defined() {
                return;
            }
            no_grad(|| {
                let (slots, t) =
                    state.get_or_insert_with(|| (rule.init(&p.tensor), 0));
                *t += 1;
                let h = Hyper { t: *t, lr, wd: p.weight_decay };
                rule.update(&mut p.tensor, &g, slots.each_mut(), h);
            })
        };
        let all = self.params.iter_mut().zip(&mut self.state).collect();
        let all = fused::step(rule, all, lr).into_iter(); // a card's are done
        let (small, large): (Vec<_>, Vec<_>) = all.partition(|(p, _)| is_small(p));
        large.into_iter().for_each(one);
        for_each(small, one);
    }
    // ANCHOR_END: step

    fn zero_grad(&mut self) {
        self.params.iter().for_each(|p| crate::autograd::clear_grad(&p.tensor));
    }

    fn params(&self) -> &[Param] {
        &self.params
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let mut saved = Vec::new();
        for (p, state) in self.params.iter().zip(&self.state) {
            let Some((slots, t)) = state else { continue };
            for (slot, key) in slots.iter().zip(R::SLOTS) {
                saved.push((format!("{}.{key}", p.name), slot.shallow_clone()));
            }
            saved.push((format!("{}.t", p.name), Tensor::from(*t as i64)));
        }
        saved
    }

    fn load_state(&mut self, saved: &HashMap<String, Tensor>) -> Result<()> {
        let wrong = |key: &str, what: &str| {
            Error::setting("optimizer state", format!("`{key}`: {what}"))
        };
        let mut used = 0;
        let mut loaded = Vec::with_capacity(self.params.len());
        for p in &self.params {
            let count = format!("{}.t", p.name);
            let Some(t) = saved.get(&count) else {
                let slot =
                    |key: &&str| saved.contains_key(&format!("{}.{key}", p.name));
                if R::SLOTS.iter().any(slot) {
                    return Err(wrong(&count, "missing"));
                }
                loaded.push(None);
                continue;
            };
            let mut slots = self.rule.init(&p.tensor);
            for (slot, key) in slots.iter_mut().zip(R::SLOTS) {
                let key = format!("{}.{key}", p.name);
                let found = saved.get(&key).ok_or_else(|| wrong(&key, "missing"))?;
                if found.size() != slot.size() {
                    let (found, expected) = (found.size(), slot.size());
                    let what = format!("shape {found:?}, expected {expected:?}");
                    return Err(wrong(&key, &what));
                }
                slot.copy_(found);
            }
            used += N + 1;
            loaded.push(Some((slots, t.int64_value(&[]) as i32)));
        }
        if used != saved.len() {
            let known = |key: &str| {
                self.params.iter().any(|p| {
                    let slot = key.strip_prefix(&p.name);
                    slot.and_then(|s| s.strip_prefix('.'))
                        .is_some_and(|s| s == "t" || R::SLOTS.contains(&s))
                })
            };
            let mut strange: Vec<_> = saved.keys().filter(|k| !known(k)).collect();
            strange.sort();
            let key = strange.first().map_or("?", |k| k.as_str());
            return Err(wrong(key, "belongs to no parameter of this optimizer"));
        }
        self.state = loaded;
        Ok(())
    }
}

/// Bytes that an optimizer remembers, without its parameters.
pub fn state_bytes(optimizer: &dyn Optimizer) -> usize {
    let bytes = |(_, t): &(String, Tensor)| match t.kind() {
        Kind::Int64 => 0, // the step counts: a few bytes on the host
        kind => t.numel() * kind.elt_size_in_bytes(),
    };
    optimizer.state().iter().map(bytes).sum()
}
