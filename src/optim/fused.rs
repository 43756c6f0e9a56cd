//! Adam's step for many parameters in one kernel, on a card.
use super::{Adam, AdamW, Param, Rule};
use crate::cuda::{self, AT_ONCE, AdamStep, AdamTensor};
use std::any::Any;
use tch::{Kind, Tensor, no_grad};

/// A parameter, and its slots and steps.
pub(super) type Item<'a, const N: usize> =
    (&'a mut Param, &'a mut Option<([Tensor; N], i32)>);

/// The rule, and whether its decay is decoupled, if it is Adam or AdamW.
fn adam(rule: &dyn Any) -> Option<(Adam, bool)> {
    let coupled = rule.downcast_ref::<Adam>().map(|adam| (*adam, false));
    coupled.or_else(|| rule.downcast_ref::<AdamW>().map(|w| (w.0, true)))
}

/// Takes the step of those parameters for which there is a kernel, and returns the
/// others.
pub(super) fn step<'a, R: Rule<N> + 'static, const N: usize>(
    rule: &R,
    all: Vec<Item<'a, N>>,
    lr: f64,
) -> Vec<Item<'a, N>> {
    let Some((adam, decoupled)) = adam(rule) else { return all };
    let device = all.first().map(|(p, _)| p.tensor.device());
    let fits = |(p, _): &Item<N>| {
        let (x, g) = (&p.tensor, p.tensor.grad());
        let plain = x.kind() == Kind::Float && x.is_contiguous();
        plain
            && g.defined()
            && Some(x.device()) == device
            && cuda::kernels(&[x, &g]).is_some()
    };
    let (mut fit, mut rest): (Vec<_>, Vec<_>) = all.into_iter().partition(fits);
    let Adam { beta1, beta2, eps, maximize } = adam;
    let step = AdamStep { lr, beta: [beta1, beta2], eps, maximize };
    while !fit.is_empty() {
        let mut some: Vec<_> = fit.drain(..fit.len().min(AT_ONCE)).collect();
        match launch(rule, &step, decoupled, &mut some) {
            Some(()) => some.iter_mut().for_each(|(_, state)| {
                state.iter_mut().for_each(|(_, t)| *t += 1);
            }),
            // Nothing was changed: the rule itself can still do it.
            None => rest.append(&mut some),
        }
    }
    rest
}

fn launch<R: Rule<N>, const N: usize>(
    rule: &R,
    step: &AdamStep,
    decoupled: bool,
    items: &mut [Item<N>],
) -> Option<()> {
    let tensor = |(p, state): &'_ mut Item<N>| {
        let init = || (rule.init(&p.tensor), 0);
        let (slots, t) = no_grad(|| state.get_or_insert_with(init));
        let [m, v] = [0, 1].map(|slot| slots[slot].shallow_clone());
        let (decay, t) = (p.weight_decay, *t + 1);
        let (l2, decoupled) = if decoupled { (0., decay) } else { (decay, 0.) };
        let theta = p.tensor.detach();
        AdamTensor { theta, g: p.tensor.grad(), m, v, t, l2, decoupled }
    };
    let tensors: Vec<_> = items.iter_mut().map(tensor).collect();
    let kernels = cuda::kernels(&[&tensors.first()?.theta])?;
    no_grad(|| kernels.adam(step, &tensors)).ok()
}
