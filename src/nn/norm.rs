//! Normalization, by the root mean square and by mean and variance.
use crate::{Result, autograd, cuda};
use tch::{Kind, Tensor, no_grad};

/// `y = x / √(mean(x²) + ε) · w`, over the last dimension.
///
/// Source: Zhang & Sennrich 2019, arXiv 1910.07467. As in transformers the mean is
/// taken in f32 whatever the kind of `x`, and the result has the kind of `x`.
#[derive(Debug)]
pub struct RmsNorm {
    /// w, [D].
    pub weight: Tensor,
    /// ε, beside the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// Normalizes `x` [.., D].
    ///
    /// With `r = 1/√(mean(x²) + ε)`, `n = r x` and `g = w ⊙ dL/dy`:
    /// `dL/dx = r (g − n · mean(g ⊙ n))`, `dL/dw = Σ dL/dy ⊙ n`. By hand, because
    /// libtorch would record seven operations and keep five results for it.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(kernels) = cuda::kernels(&[x, &self.weight]) {
            return Ok(self.by_kernel(kernels, x, None)?.1);
        }
        // ANCHOR: rms
        let (w, kind) = (self.weight.shallow_clone(), x.kind());
        let x32 = wide(x);
        let mean = |t: Tensor| t.mean_dim([-1].as_slice(), true, t.kind());
        let r = no_grad(|| (mean(x32.square()) + self.eps).rsqrt()); // [.., 1]
        let kept = (x32.detach(), r.shallow_clone());
        let forward = || Ok(vec![&self.weight * (&x32 * &r).to_kind(kind)]);
        // ANCHOR_END: rms
        let mut y = autograd::custom(&[x, &self.weight], forward, move |dy| {
            let Some(dy) = dy[0].as_ref().map(wide) else {
                return Ok(vec![None, None]);
            };
            let (x, r) = &kept;
            let n = wide(x) * r;
            let dw = w.requires_grad().then(|| {
                let dw = (&dy * &n).view([-1, w.numel() as i64]);
                dw.sum_dim_intlist([0].as_slice(), false, dw.kind())
                    .to_kind(w.kind())
            });
            let g = dy * &w;
            let along = mean(&g * &n);
            let dx = (g - n * along) * r;
            Ok(vec![Some(dx.to_kind(kind)), dw])
        })?;
        Ok(y.remove(0))
    }

    /// The stream `s = x + added`, and its norm. One kernel on a card, where the
    /// gradients of both also meet in one.
    pub fn join(
        &self,
        x: &Tensor,
        added: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let all = [x, &self.weight].into_iter().chain(added);
        if let Some(kernels) = cuda::kernels(&all.collect::<Vec<_>>()) {
            return self.by_kernel(kernels, x, added);
        }
        let s = added.map_or_else(|| x.shallow_clone(), |added| x + added);
        let y = self.forward(&s)?;
        Ok((s, y))
    }

    fn by_kernel(
        &self,
        kernels: cuda::Kernels,
        x: &Tensor,
        added: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let w = self.weight.detach();
        let learns_w = self.weight.requires_grad();
        let found = no_grad(|| kernels.rms_norm(x, added, &w, self.eps))?;
        let s = found.sum.unwrap_or_else(|| x.detach());
        let (kept, r) = (s.detach(), found.r);
        let inputs = [x, &self.weight].into_iter().chain(added).collect::<Vec<_>>();
        let forward = || Ok(vec![s, found.y]);
        let adds = added.is_some();
        let mut found = autograd::custom(&inputs, forward, move |dy| {
            let (beside, dy) = (dy[0].as_ref(), dy[1].as_ref());
            let (mut ds, mut dw) = (beside.map(Tensor::shallow_clone), None);
            if let Some(dy) = dy {
                let x = (&kept, &r);
                ds = Some(kernels.rms_norm_backward(dy, x, &w, beside)?);
                let of_w = || kernels.rms_norm_weight(dy, x, &w);
                dw = learns_w.then(of_w).transpose()?;
            }
            // Both summands get the gradient of the sum.
            let again = adds.then(|| ds.as_ref().map(Tensor::shallow_clone));
            Ok([ds, dw].into_iter().chain(again).collect())
        })?;
        let y = found.pop().unwrap_or_else(Tensor::new);
        Ok((found.remove(0), y))
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

/// `y = (x − mean) / √(variance + ε) · w + b`, over the last dimension.
///
/// Source: Ba, Kiros & Hinton 2016, arXiv 1607.06450; libtorch's.
#[derive(Debug)]
pub struct LayerNorm {
    /// w, [D].
    pub weight: Tensor,
    /// b, [D].
    pub bias: Tensor,
    /// ε, beside the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Normalizes `x` [.., D].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (w, b) = (Some(&self.weight), Some(&self.bias));
        Ok(x.f_layer_norm(self.weight.size(), w, b, self.eps, true)?)
    }
}

/// At least f32.
fn wide(x: &Tensor) -> Tensor {
    match x.kind() {
        Kind::Half | Kind::BFloat16 => x.to_kind(Kind::Float),
        _ => x.shallow_clone(),
    }
}
