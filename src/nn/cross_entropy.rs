//! The loss of a language model's head, without its table of scores.
use crate::{Result, autograd, cuda};
use tch::{Kind, Tensor, no_grad};

/// Scores computed at a time: 64 MiB of them in f32.
const CHUNK: i64 = 1 << 24;
/// The same on a GPU, 128 MiB in bf16. Every part reads all of W, twice, and that takes
/// longer than the products do where a part has less than 300 tokens or so.
const CUDA_CHUNK: i64 = 1 << 26;
/// No target is left out.
const NONE: i64 = i64::MIN;

/// Cross-entropy of the scores `z = W h` against the targets, summed over S tokens:
/// `L = Σ −log softmax(z)[target]`, in f32 at least, whatever the kind of `h` [S, D] and
/// `W` [V, D]; targets [S] i64.
///
/// With `p = softmax(z)`: `dL/dh = Wᵀ p − W[target]`, `dL/dW = p hᵀ`, less `h` in the
/// target's row. Both are computed in the forward pass, some tokens at a time, so that
/// no table [S, V] of scores is kept, let alone libtorch's four: at 2000 tokens and a
/// vocabulary of 100,000 each would take 0.8 GB.
///
/// Source: the idea is that of Liger Kernel (Hsu et al. 2024, arXiv 2410.10989, §3.2).
pub fn cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    // A view is recorded only where gradients are.
    let recorded = |t: &Tensor| t.alias().requires_grad();
    let (learns_h, learns_w) = (recorded(hidden), recorded(weight));
    let (h, w) = (hidden.detach(), weight.detach());
    let (tokens, vocabulary) = (h.size()[0], w.size()[0]);
    let chunk = tokens_at_once(tokens, vocabulary, h.device().is_cuda());
    let kind = if h.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let mut loss = Tensor::zeros([], (kind, h.device()));
    let (mut dh, mut dw) = (vec![], learns_w.then(|| w.zeros_like()));
    no_grad(|| -> Result<()> {
        // ANCHOR: chunks
        for start in (0..tokens).step_by(chunk as usize) {
            let part = |t: &Tensor| t.f_narrow(0, start, chunk.min(tokens - start));
            let (h, target) = (part(&h)?, part(targets)?);
            if let Some(kernels) = cuda::kernels(&[&h, &w]) {
                let mut z = h.f_mm(&w.tr())?; // [.., V]
                let learns = learns_h || learns_w;
                let lost = kernels.cross_entropy(&mut z, &target, NONE, learns)?;
                loss += lost.sum(kind);
                if learns_h {
                    dh.push(z.f_mm(&w)?); // z is its own gradient now
                }
                if let Some(dw) = &mut dw {
                    let _ = dw.f_addmm_(&z.tr(), &h)?;
                }
                continue;
            }
            let mut log_p = autograd::mm(&h, &w.tr())?.f_log_softmax(-1, kind)?; // [.., V]
            loss -= log_p.f_gather(1, &target.unsqueeze(1), false)?.sum(kind);
            if learns_h || learns_w {
                let p = log_p.exp_().to_kind(w.kind());
                if learns_h {
                    dh.push(autograd::mm(&p, &w)? - w.f_index_select(0, &target)?);
                }
                if let Some(dw) = &mut dw {
                    autograd::mm_into(&p.tr(), &h, dw, true)?;
                    let _ = dw.f_index_add_(0, &target, &h.neg())?;
                }
            }
        }
        // ANCHOR_END: chunks
        Ok(())
    })?;
    let dh = (learns_h && tokens > 0).then(|| Tensor::cat(&dh, 0));
    let forward = || Ok(vec![loss]);
    let mut loss = autograd::custom(&[hidden, weight], forward, move |dy| {
        let Some(dy) = &dy[0] else { return Ok(vec![None, None]) };
        let times =
            |d: &Option<Tensor>| d.as_ref().map(|d| d * dy.to_kind(d.kind()));
        Ok(vec![times(&dh), times(&dw)])
    })?;
    Ok(loss.remove(0))
}

/// Of how many tokens the scores are computed at a time. On a GPU the parts are of about
/// one length, a multiple of the 128 rows that its matrix products take together.
pub fn tokens_at_once(tokens: i64, vocabulary: i64, cuda: bool) -> i64 {
    let most = |scores: i64| (scores / vocabulary.max(1)).max(1);
    if !cuda {
        return most(CHUNK);
    }
    let parts = (tokens as u64).div_ceil(most(CUDA_CHUNK) as u64).max(1);
    let even = (tokens as u64).div_ceil(parts).max(1);
    even.next_multiple_of(128) as i64
}
