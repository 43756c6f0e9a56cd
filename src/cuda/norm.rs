//! RMSNorm on a card: see `kernels/rms_norm.cu`, and `nn::RmsNorm` for what it is.
use super::call::{Call, Kernels, Source, suffix, threads};
use crate::Result;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("rms_norm");

/// What [`Kernels::rms_norm`] gives.
#[derive(Debug)]
pub struct Normed {
    /// `x + added`, if something was added.
    pub sum: Option<Tensor>,
    /// `w (r x)`.
    pub y: Tensor,
    /// r, a number to a row, for backward.
    pub r: Tensor,
}

impl Kernels {
    /// The norm of the rows of `x` [.., D], or of `x + added`.
    pub fn rms_norm(
        &self,
        x: &Tensor,
        added: Option<&Tensor>,
        w: &Tensor,
        eps: f64,
    ) -> Result<Normed> {
        let (x, w) = (x.contiguous(), w.contiguous());
        let added = added.map(Tensor::contiguous);
        let (n, d) = (x.numel() as i64, w.numel() as i64);
        for t in [&x].into_iter().chain(&added) {
            self.check("RMSNorm", t, n, self.kind)?;
        }
        self.check("RMSNorm's weight", &w, d, self.kind)?;
        let (y, sum) = (x.empty_like(), added.as_ref().map(Tensor::empty_like));
        let r = Tensor::empty([n / d], (Kind::Float, x.device()));
        let call = Call::new(SOURCE, format!("rms_norm_{}", suffix(self.kind)));
        let call = call.over(n / d, 1, threads(d))?;
        let call = call.arg(&x).arg(added.as_ref()).arg(sum.as_ref());
        self.run(&call.arg(&w).arg(&y).arg(&r).arg(d).arg(eps as f32))?;
        Ok(Normed { sum, y, r })
    }

    /// `dL/dx` of what [`Kernels::rms_norm`] normed, given `dL/dy`; plus `beside`.
    pub fn rms_norm_backward(
        &self,
        dy: &Tensor,
        (x, r): (&Tensor, &Tensor),
        w: &Tensor,
        beside: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (dy, x, w) = (dy.contiguous(), x.contiguous(), w.contiguous());
        let beside = beside.map(Tensor::contiguous);
        let (n, d) = (x.numel() as i64, w.numel() as i64);
        for t in [&dy, &x].into_iter().chain(&beside) {
            self.check("RMSNorm's backward", t, n, self.kind)?;
        }
        self.check("RMSNorm's r", r, n / d, Kind::Float)?;
        let dx = x.empty_like();
        let kernel = format!("rms_norm_backward_{}", suffix(self.kind));
        let call = Call::new(SOURCE, kernel).over(n / d, 1, threads(d))?;
        let call = call.arg(&dy).arg(&x).arg(&w).arg(r).arg(beside.as_ref());
        self.run(&call.arg(&dx).arg(d))?;
        Ok(dx)
    }

    /// `dL/dw` [D].
    pub fn rms_norm_weight(
        &self,
        dy: &Tensor,
        (x, r): (&Tensor, &Tensor),
        w: &Tensor,
    ) -> Result<Tensor> {
        let (dy, x) = (dy.contiguous(), x.contiguous());
        let (n, d) = (x.numel() as i64, w.numel() as i64);
        for t in [&dy, &x] {
            self.check("RMSNorm's backward", t, n, self.kind)?;
        }
        self.check("RMSNorm's r", r, n / d, Kind::Float)?;
        let (rows, threads) = (n / d, threads(d));
        // Many blocks of rows, and their sums summed after: enough work in flight, and
        // the same order of additions in every run.
        let parts = (rows / 16).clamp(1, 128);
        let part = Tensor::empty([parts, d], (Kind::Float, x.device()));
        let kernel = format!("rms_norm_weight_{}", suffix(self.kind));
        let across = (d as u64).div_ceil(4 * u64::from(threads)) as i64;
        let call = Call::new(SOURCE, kernel).over(across, parts, threads)?;
        self.run(&call.arg(&dy).arg(&x).arg(r).arg(&part).arg(rows).arg(d))?;
        let dw = part.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?;
        Ok(dw.to_kind(w.kind()).view_as(w))
    }
}
