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
            LazyLock::new(|| match avx512_not_intel() && Library::OneDnn.works() {
                true => Library::OneDnn,
                false => Library::Libtorch,
            });
        *FASTEST
    }

    /// Whether this library multiplies in f32 on this processor. libtorch hands a
    /// product to oneDNN only where `mkldnn_bf16_device_check` of its sources holds,
    /// which asks for AVX-512 with BW, VL and DQ, or for AVX-NE-CONVERT; a small
    /// product is tried as well, so that a libtorch which asks for more is heard.
    pub fn works(self) -> bool {
        static ONEDNN: LazyLock<bool> = LazyLock::new(|| {
            let one = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
            onednn_units()
                && ffi::onednn_mm(&one, &one, &one.zeros_like(), 0.).is_ok()
        });
        self == Self::Libtorch || *ONEDNN
    }

    /// For products `x W` of the rows of `x` [.., in]. For a few rows the work is to
    /// read W, and both are as fast.
    pub fn of(x: &Tensor) -> Self {
        let here = x.device() == Device::Cpu && x.kind() == Kind::Float;
        let rows = x.numel() as i64 / x.size().last().copied().unwrap_or(1).max(1);
        if here && rows >= 4 { Self::fastest() } else { Self::Libtorch }
    }

    /// `out = a b`, or `out += a b`; matrices of any strides. Records nothing. What
    /// oneDNN refuses, whatever the reason, libtorch multiplies.
    pub fn mm(
        self,
        a: &Tensor,
        b: &Tensor,
        out: &mut Tensor,
        add: bool,
    ) -> Result<()> {
        let beta = f32::from(add);
        if self == Self::OneDnn && ffi::onednn_mm(a, b, out, beta).is_ok() {
            return Ok(());
        }
        match add {
            true => drop(out.f_addmm_(a, b)?),
            false => drop(a.f_mm_out(out, b)?),
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

/// What libtorch asks of a processor before it calls oneDNN's product.
fn onednn_units() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        wide || is_x86_feature_detected!("avxneconvert")
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
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
