//! Matrix products in f32 on the CPU, by the faster of two libraries in libtorch.
//!
//! libtorch gives products in f32 to MKL, which takes AVX-512 on Intel's processors
//! only. On others that have it, oneDNN, which libtorch keeps for bf16, is twice as
//! fast (`cargo xtask bench peers` shows what that makes of a training step). The two
//! add in different orders and differ in the last bits.
use super::ffi;
use crate::Result;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// Which library multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Library {
    /// Whichever libtorch takes by itself.
    Libtorch,
    /// oneDNN.
    OneDnn,
}

impl Library {
    /// The faster one in f32 on this processor.
    pub fn fastest() -> Self {
        static FASTEST: LazyLock<Library> =
            LazyLock::new(|| match avx512_not_intel() {
                true => Library::OneDnn,
                false => Library::Libtorch,
            });
        *FASTEST
    }

    /// For products `x W` of the rows of `x` [.., in]. For a few rows the work is to
    /// read W, and both are as fast.
    pub fn of(x: &Tensor) -> Self {
        let here = x.device() == Device::Cpu && x.kind() == Kind::Float;
        let rows = x.numel() as i64 / x.size().last().copied().unwrap_or(1).max(1);
        if here && rows >= 4 { Self::fastest() } else { Self::Libtorch }
    }

    /// `out = a b`, or `out += a b`; matrices of any strides. Records nothing.
    pub fn mm(
        self,
        a: &Tensor,
        b: &Tensor,
        out: &mut Tensor,
        add: bool,
    ) -> Result<()> {
        match (self, add) {
            (Self::OneDnn, _) => ffi::onednn_mm(a, b, out, f32::from(add))?,
            (Self::Libtorch, true) => drop(out.f_addmm_(a, b)?),
            (Self::Libtorch, false) => drop(a.f_mm_out(out, b)?),
        }
        Ok(())
    }
}

/// `out = a b`, or with `add` `out += a b`; matrices of any strides. Records nothing.
pub fn mm_into(a: &Tensor, b: &Tensor, out: &mut Tensor, add: bool) -> Result<()> {
    Library::of(a).mm(a, b, out, add)
}

/// `a b`, matrices. Records nothing.
pub fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out =
        Tensor::f_empty([a.size()[0], b.size()[1]], (a.kind(), a.device()))?;
    mm_into(a, b, &mut out, false)?;
    Ok(out)
}

/// Whether oneDNN, which compiles each product anew, multiplies in this kind on the CPU:
/// in 16 bits it is libtorch that asks it.
pub fn compiles(kind: Kind) -> bool {
    kind != Kind::Float || Library::fastest() == Library::OneDnn
}

/// Whether this processor is known to multiply in bf16 by itself.
pub fn bf16_units() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn avx512_not_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let maker = std::arch::x86_64::__cpuid(0);
        let intel = u32::from_le_bytes(*b"Genu"); // of "GenuineIntel"
        is_x86_feature_detected!("avx512f") && maker.ebx != intel
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
