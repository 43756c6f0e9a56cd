//! Products with a 4-bit matrix, which is dequantized for the moment of its use.
//!
//! On the CPU each thread takes some rows of W and dequantizes as many at a time as
//! stay in its cache, multiplies, and goes on: a whole dequantized matrix would be
//! written to one core's cache and then fetched from there by the others, which costs
//! as much as a third of the product.
#![allow(unsafe_code)] // tensors shared with the threads of `parallel_for`
use super::{Nf4Tensor, kernels};
use crate::Result;
use crate::autograd::{mm, mm_into, parallel_for};
use crate::cuda::Kernels;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor, no_grad};

/// Bytes of dequantized rows at a time: a part of a core's second-level cache, which
/// holds the other factor as well.
const PANEL: usize = 384 << 10;

thread_local! {
    /// Room for dequantized weights: fresh memory for each would cost more time than
    /// the arithmetic, since the system clears every page of it.
    static SCRATCH: RefCell<Tensor> = RefCell::new(Tensor::new());
}

/// A tensor or matrix that threads may read, or write in disjoint parts.
struct Shared<'a, T>(&'a T);

// SAFETY: libtorch counts handles atomically, and the products below write to parts
// that no other thread touches.
unsafe impl<T> Sync for Shared<'_, T> {}

impl<T> Shared<'_, T> {
    fn get(&self) -> &T {
        self.0
    }
}

impl Shared<'_, Tensor> {
    fn columns(&self, rows: &Range<usize>) -> Tensor {
        self.0.narrow(1, rows.start as i64, rows.len() as i64)
    }
}

impl Nf4Tensor {
    /// `x Wᵀ`: `x` `[.., in]`, f32, bf16 or f16, to `[.., out]`. Records nothing.
    pub fn matmul_t(&self, x: &Tensor) -> Result<Tensor> {
        let [out, input] = self.shape;
        no_grad(|| {
            if let Some(kernels) = Kernels::at(self.device(), x.kind()) {
                let y = kernels.nf4_products(x, &[self.matrix()])?;
                if let Some(y) = y.and_then(|mut y| y.pop()) {
                    return Ok(y);
                }
            }
            if !self.by_panels(x) {
                return with_room(self, x.kind(), |w| {
                    Ok(x.f_linear(w, None::<Tensor>)?)
                });
            }
            let flat = x.f_reshape([-1, input])?;
            let y =
                Tensor::f_empty([flat.size()[0], out], (Kind::Float, Device::Cpu))?;
            let (a, b) = (Shared(&flat), Shared(&y));
            self.panels(|rows, w| {
                mm_into(a.get(), &w.tr(), &mut b.columns(&rows), false)
            })?;
            let mut shape = x.size();
            shape.pop();
            shape.push(out);
            Ok(y.view(shape.as_slice()))
        })
    }

    /// `y W`: `y` `[.., out]`, f32, bf16 or f16, to `[.., in]`. Records nothing.
    pub fn matmul(&self, y: &Tensor) -> Result<Tensor> {
        let [out, input] = self.shape;
        no_grad(|| {
            if !self.by_panels(y) {
                return with_room(self, y.kind(), |w| Ok(y.f_matmul(w)?));
            }
            let flat = y.f_reshape([-1, out])?;
            let (a, q) = (Shared(&flat), Shared(self));
            // Sums over rows of W: one per thread, by the row it began with.
            let parts: Mutex<Vec<(usize, Tensor)>> = Mutex::new(vec![]);
            self.split(|range| {
                let mut sum: Option<Tensor> = None;
                q.get().walk(range.clone(), &mut |rows, w| {
                    let part = a.columns(&rows);
                    match &mut sum {
                        None => sum = Some(mm(&part, w)?),
                        Some(sum) => mm_into(&part, w, sum, true)?,
                    }
                    Ok(())
                })?;
                let mut parts = parts.lock().unwrap_or_else(|e| e.into_inner());
                parts.extend(sum.map(|sum| (range.start, sum)));
                Ok(())
            })?;
            let mut parts = parts.into_inner().unwrap_or_else(|e| e.into_inner());
            parts.sort_by_key(|(row, _)| *row); // the same order of sums in each run
            let mut sums = parts.into_iter().map(|(_, sum)| sum);
            let mut total = sums.next().unwrap_or_else(Tensor::new);
            for sum in sums {
                total += sum;
            }
            let mut shape = y.size();
            shape.pop();
            shape.push(input);
            Ok(total.view(shape.as_slice()))
        })
    }

    /// Rows can be dequantized by themselves if each begins a block.
    fn by_panels(&self, x: &Tensor) -> bool {
        self.device() == Device::Cpu
            && x.kind() == Kind::Float
            && (self.shape[1] as usize).is_multiple_of(self.blocksize)
    }

    fn panels(
        &self,
        f: impl Fn(Range<usize>, &Tensor) -> Result<()> + Sync,
    ) -> Result<()> {
        let q = Shared(self);
        self.split(|range| q.get().walk(range, &mut |rows, w| f(rows, w)))
    }

    /// Gives each thread a range of rows; the first error, if any.
    fn split(&self, f: impl Fn(Range<usize>) -> Result<()> + Sync) -> Result<()> {
        let failed = Mutex::new(None);
        parallel_for(self.shape[0] as usize, 32, |range| {
            if let Err(e) = no_grad(|| f(range)) {
                *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(e);
            }
        });
        let failed = failed.into_inner().unwrap_or_else(|e| e.into_inner());
        failed.map_or(Ok(()), Err)
    }

    /// Dequantizes the rows of `range` a panel at a time for `f`.
    fn walk(
        &self,
        range: Range<usize>,
        f: &mut dyn FnMut(Range<usize>, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let input = self.shape[1] as usize;
        // Panels of one height, a multiple of 16 as the matrix kernels like it.
        let most = (PANEL / (input * size_of::<f32>())).max(32) / 16 * 16;
        let count = range.len().div_ceil(most);
        let height = range.len().div_ceil(count.max(1)).next_multiple_of(16);
        let mut start = range.start;
        while start < range.end {
            let rows = start..range.end.min(start + height);
            start = rows.end;
            with_scratch(rows.len() * input, (Kind::Float, Device::Cpu), |room| {
                let w = room.view([rows.len() as i64, input as i64]);
                kernels::dequantize_rows(self, rows.clone(), &w);
                f(rows, &w)
            })?;
        }
        Ok(())
    }
}

/// Calls `f` with the whole matrix in `kind`, which is gone afterwards.
fn with_room(
    q: &Nf4Tensor,
    kind: Kind,
    f: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let n = (q.shape[0] * q.shape[1]) as usize;
    with_scratch(n, (kind, q.device()), |room| {
        let w = room.view(q.shape);
        q.dequantize_into(&w)?;
        f(&w)
    })
}

fn with_scratch<R>(
    n: usize,
    like: (Kind, Device),
    f: impl FnOnce(&Tensor) -> Result<R>,
) -> Result<R> {
    SCRATCH.with_borrow_mut(|room| {
        let fits = room.defined()
            && (room.kind(), room.device()) == like
            && room.numel() >= n;
        if !fits {
            *room = Tensor::new(); // the old one goes first
            *room = Tensor::f_empty([n as i64], like)?;
        }
        f(&room.narrow(0, 0, n as i64))
    })
}
