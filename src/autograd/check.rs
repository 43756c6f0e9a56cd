//! Gradients against finite differences.
use crate::{Error, Result};
use tch::{Kind, Tensor, no_grad};

/// Compares the gradient that backward gives with central finite differences,
/// `(L(x + h) - L(x - h)) / 2h` with `L = sum(w * f(x))` and fixed weights `w`, for
/// every element of every input that requires a gradient. Inputs must be f64.
///
/// # Errors
/// The first element that differs by more than `atol + rtol * |numeric|`, by input,
/// index and both values.
///
/// Source: `torch.autograd.gradcheck`.
pub fn gradcheck(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    h: f64,
    atol: f64,
    rtol: f64,
) -> Result<()> {
    if let Some(x) = inputs.iter().find(|x| x.kind() != Kind::Double) {
        let kind = x.kind();
        return Err(Error::setting("gradcheck", format!("{kind:?}; needs Double")));
    }
    let loss = |xs: &[Tensor]| -> Result<Tensor> {
        let y = f(xs)?;
        // Unequal weights: a permuted gradient would pass with equal ones.
        let w = Tensor::linspace(0.5, 1.5, y.numel() as i64, (y.kind(), y.device()));
        Ok((y.reshape([-1]) * w).sum(Kind::Double))
    };
    let used: Vec<&Tensor> = inputs.iter().filter(|x| x.requires_grad()).collect();
    let exact = Tensor::f_run_backward(&[loss(inputs)?], &used, false, false)?;
    let mut exact = exact.into_iter();
    for (i, x) in inputs.iter().enumerate().filter(|(_, x)| x.requires_grad()) {
        let grad = exact.next().unwrap_or_else(Tensor::new);
        let grad = if grad.defined() { grad } else { x.zeros_like() };
        let (flat, grad) = (x.detach().reshape([-1]), grad.reshape([-1]));
        for j in 0..flat.numel() as i64 {
            let at = |d: f64| -> Result<f64> {
                let moved = flat.copy();
                let _ = moved.get(j).f_add_scalar_(d)?;
                let mut xs: Vec<_> =
                    inputs.iter().map(|x| x.detach().copy()).collect();
                xs[i] = moved.reshape(x.size());
                no_grad(|| loss(&xs)).map(|l| l.double_value(&[]))
            };
            let numeric = (at(h)? - at(-h)?) / (2. * h);
            let given = grad.double_value(&[j]);
            let close = (given - numeric).abs() <= atol + rtol * numeric.abs();
            if !close {
                return Err(Error::Autograd(format!(
                    "input {i}, element {j}: backward says {given}, finite \
                     differences say {numeric}"
                )));
            }
        }
    }
    Ok(())
}
