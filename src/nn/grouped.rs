//! Experts side by side: one product for all of them, each with the rows of its own.
//!
//! In turn they would be some thirty small kernels for each expert, and the host would
//! have to know how many rows each has. libtorch's grouped product takes the rows
//! sorted by expert, all matrices as [E, out, in], and where the rows of each end, on
//! the device; nobody waits.
//!
//! Not measured on a GPU. On a CPU libtorch does it in turn itself, so there it is for
//! tests ([`on_cpu`]): the same results, within rounding.
use super::mlp::gated;
use super::stack::Stack;
use super::{Linear, Mode, SwiGlu};
use crate::Result;
use crate::cuda::{self, Kernels};
use std::cell::Cell;
use tch::{Device, Kind, Tensor};

/// Most bytes of the weights of one projection, unpacked; with more, experts go in turn.
pub const MOST_BYTES: i64 = 1 << 30;
/// Most experts, one thread for each in libtorch's kernel.
pub(super) const MOST_EXPERTS: usize = 1024;
/// Rows for each expert, on average, from which on it pays to unpack all of them: one
/// token only goes to a few.
const ROWS: i64 = 4;

thread_local! {
    static ON_CPU: Cell<bool> = const { Cell::new(false) };
}

/// For tests: while `f` runs, experts of this thread on the CPU are side by side too, in
/// f32 and bf16, and however few the rows are.
pub fn on_cpu<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ON_CPU.set(self.0);
        }
    }
    let _restore = Restore(ON_CPU.replace(true));
    f()
}

/// Whether experts in `kind` on `device` can be side by side: where libtorch has a
/// grouped product that does not wait, and there are our kernels, which unpack many
/// weights at once.
///
/// Source: libtorch 2.11, `_grouped_mm_cuda`: bf16 on cards of compute capability 9 and
/// 10. Elsewhere it asks how many rows each expert has, and multiplies in turn.
pub fn known(device: Device, kind: Kind) -> bool {
    match device {
        Device::Cpu => ON_CPU.get() && matches!(kind, Kind::Float | Kind::BFloat16),
        Device::Cuda(index) if kind == Kind::BFloat16 => {
            let new = |[major, _]: [i32; 2]| (9..=10).contains(&major);
            cuda::capability(index).is_some_and(new)
                && Kernels::at(device, kind).is_some()
        }
        _ => false,
    }
}

/// Whether so many rows are enough to unpack all experts for them.
fn pays(device: Device, rows: i64, experts: usize) -> bool {
    device == Device::Cpu || rows >= ROWS * experts as i64
}

/// The rows of all experts, sorted by them.
pub(super) struct Groups {
    /// Whose a row is: [R].
    pub(super) owner: Tensor,
    /// Where the rows of each end: [E], i32.
    pub(super) ends: Tensor,
}

impl Groups {
    /// `owner`: sorted, each of the experts at least once. A group without rows would
    /// be a sum of no products, which libtorch's kernel for Blackwell leaves unwritten.
    pub(super) fn new(owner: Tensor, experts: i64) -> Result<Self> {
        let each = Tensor::f_arange(experts, (Kind::Int64, owner.device()))?;
        let ends =
            each.f_searchsorted(&owner, true, true, "right", None::<&Tensor>)?;
        Ok(Self { owner, ends })
    }

    /// The rows of `x` [R, n], each times the matrix of its expert, [E, n, m].
    pub(super) fn product(&self, x: &Tensor, matrices: &Tensor) -> Result<Tensor> {
        let (ends, none) = (Some(&self.ends), None::<&Tensor>);
        Ok(x.f_internal_grouped_mm(matrices, ends, none, None::<Kind>)?)
    }

    /// `Σ aᵀ b` over the rows of each expert: [E, n, m] of [R, n] and [R, m].
    pub(super) fn sums(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.product(&a.tr(), b)
    }

    pub(super) fn shallow_clone(&self) -> Self {
        let [owner, ends] = [&self.owner, &self.ends].map(Tensor::shallow_clone);
        Self { owner, ends }
    }
}

/// Experts that can be computed side by side.
pub(super) struct Grouped<'a> {
    gate: Stack<'a>,
    up: Stack<'a>,
    down: Stack<'a>,
}

impl<'a> Grouped<'a> {
    /// For so many rows, which come in the kind and on the device of `x`. None where
    /// the experts have to go in turn: they differ in more than their numbers, have
    /// DoRA, a bias or a weight that learns, or a size that libtorch's kernel does not
    /// take.
    pub(super) fn of(
        experts: &'a [SwiGlu],
        x: &Tensor,
        rows: i64,
        mode: Mode,
    ) -> Option<Self> {
        let (device, kind) = (x.device(), x.kind());
        if rows == 0 || !pays(device, rows, experts.len()) || !known(device, kind) {
            return None;
        }
        let stack = |of: fn(&SwiGlu) -> &Linear| {
            Stack::of(experts.iter().map(of).collect(), (kind, device), mode)
        };
        let (gate, up) = (stack(|e| &e.gate)?, stack(|e| &e.up)?);
        Some(Self { gate, up, down: stack(|e| &e.down)? })
    }

    /// [R, D] to [R, D].
    ///
    /// An expert that no token goes to gets gradients of zero, where in turn it gets
    /// none: the optimizer does not pass it over then, but moves its adapter on by
    /// momentum, and lets it decay.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        groups: &Groups,
        mode: Mode,
    ) -> Result<Tensor> {
        let gate = self.gate.forward(x, groups, mode)?; // [R, F]
        let up = self.up.forward(x, groups, mode)?;
        self.down.forward(&gated(gate, up)?, groups, mode)
    }
}

/// Bytes of the weights [out, in] of so many experts, `size` bytes a number.
pub fn scratch(experts: i64, [n, m]: [i64; 2], size: i64) -> i64 {
    experts * n * m * size
}

/// Whether rows of so many numbers begin at multiples of 16 bytes, as libtorch's kernel
/// needs them.
pub(super) fn aligned(n: i64, kind: Kind) -> bool {
    n % (16 / kind.elt_size_in_bytes() as i64) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_go_in_turn() {
        // One token to 6 of 64 experts; a batch.
        let card = Device::Cuda(63);
        assert!(!pays(card, 6, 64) && pays(card, 6 * 2048, 64));
        // Nobody asks in vain for a card that is not there.
        assert!(!known(card, Kind::BFloat16) && !known(card, Kind::Float));
        assert!(!known(Device::Cuda(640), Kind::BFloat16));
        assert!(!known(Device::Cpu, Kind::Float));
        on_cpu(|| assert!(known(Device::Cpu, Kind::Float)));
    }
}
