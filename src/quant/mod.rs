//! Weights in 4 bits: NF4 with double quantization, byte for byte what bitsandbytes
//! stores (QLoRA, arXiv 2305.14314).
//!
//! A weight is `CODE[code] absmax`: 4 bits say which of 16 levels ([`nf4`]), and a
//! block of 64 shares its scale, which itself is kept in 8 bits ([`double`]). In all
//! `4 + 8 / 64 + 32 / (64 * 256)`, about 4.127 bits per weight; or 4.5 with plain
//! scales.
//!
//! Where bitsandbytes disagrees with itself, this follows its CUDA kernels, which
//! wrote the published checkpoints: see [`nf4::encode`] and [`double::encode`].
pub mod bnb;
pub mod double;
mod kernels;
pub mod nf4;
mod product;
mod simd;

use crate::autograd::upload;
use crate::cuda::{Kernels, Nf4Matrix, Nf4Scales};
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// The block sizes that bitsandbytes knows; 64 is the usual one.
pub const BLOCKSIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// A matrix in NF4: rows `[out, in]`, quantized over its flattened elements.
#[derive(Debug)]
pub struct Nf4Tensor {
    packed: Tensor,
    absmax: Absmax,
    shape: [i64; 2],
    blocksize: usize,
}

/// The scales of the blocks: one per `blocksize` weights.
#[derive(Debug)]
pub enum Absmax {
    /// As they are: f32 `[blocks]`.
    Plain(Tensor),
    /// Quantized in their turn: `code[codes] nested_absmax + offset`.
    Double {
        /// u8 `[blocks]`.
        codes: Tensor,
        /// One scale for 256 of them, f32 `[ceil(blocks / 256)]`.
        nested_absmax: Tensor,
        /// The 256 levels, f32 `[256]`.
        code: Tensor,
        /// The mean of the scales.
        offset: f32,
    },
}

impl Nf4Tensor {
    /// Quantizes a matrix; see [`nf4::encode`] and [`double::encode`] for the
    /// formulas.
    ///
    /// `w`: `[out, in]`, any float kind, any device, at least one element.
    /// `blocksize`: one of [`BLOCKSIZES`]. Errors for any other, and for weights
    /// that are not a matrix, not floats, or not finite in f32.
    pub fn quantize(
        w: &Tensor,
        blocksize: usize,
        double_quant: bool,
    ) -> Result<Self> {
        let (mut q, late) = Self::queued(w, blocksize, double_quant)?;
        match q.settle(&late)? {
            true => Ok(q),
            false => Err(Error::setting("weight", non_finite(w))),
        }
    }

    /// The same without waiting for the device of `w`: the matrix cannot be used until
    /// [`Nf4Tensor::settle`] has read the number that comes with it, and whether the
    /// weights are finite is not known before. Errors as [`Nf4Tensor::quantize`] else.
    pub fn queued(
        w: &Tensor,
        blocksize: usize,
        double_quant: bool,
    ) -> Result<(Self, Tensor)> {
        check_blocksize(blocksize)?;
        let shape = match w.size()[..] {
            [rows, columns] if rows > 0 && columns > 0 => [rows, columns],
            ref other => {
                let what = "expected a matrix [out, in] with at least one element";
                return Err(Error::setting(
                    "weight",
                    format!("found shape {other:?}; {what}"),
                ));
            }
        };
        if !w.is_floating_point() {
            let what = format!("found kind {:?}; expected a float kind", w.kind());
            return Err(Error::setting("weight", what));
        }
        let _no_grad = tch::no_grad_guard();
        let w = w.detach().contiguous();
        let w = match w.kind() {
            Kind::Float | Kind::BFloat16 => w,
            _ => w.to_kind(Kind::Float),
        };
        let by_kernel = Kernels::at(w.device(), w.kind());
        let (packed, absmax) = match (by_kernel, w.device()) {
            (Some(kernels), _) => kernels.nf4_quantize(&w, blocksize)?,
            (_, Device::Cpu) => kernels::quantize(simd::best(), &w, blocksize),
            _ => nf4::encode(&w, blocksize),
        };
        let (absmax, late) = match double_quant {
            true => {
                let (codes, nested_absmax, mean) = double::encode(&absmax);
                let code = Tensor::from_slice(&double::dynamic_map());
                let code = upload(&code, w.device());
                let offset = f32::NAN; // until it is read
                (Absmax::Double { codes, nested_absmax, code, offset }, mean)
            }
            false => {
                let largest = absmax.amax([0], false);
                (Absmax::Plain(absmax), largest)
            }
        };
        Ok((Self { packed, absmax, shape, blocksize }, late))
    }

    /// Completes a matrix that was [`Nf4Tensor::queued`] with the number that came with
    /// it, and waits for that: the mean of the scales, or the largest one. Returns
    /// whether it is finite, as it is if all weights are; if not, the matrix is of no
    /// use.
    ///
    /// Errors if libtorch cannot read from the device.
    pub fn settle(&mut self, late: &Tensor) -> Result<bool> {
        let number = f32::try_from(late)?;
        if let Absmax::Double { offset, .. } = &mut self.absmax {
            *offset = number;
        }
        Ok(number.is_finite())
    }

    /// A matrix that was quantized before, from its stored parts.
    ///
    /// `packed`: u8, `ceil(n / 2)` bytes in any shape, n the product of `shape`.
    /// Errors where a kind, length, device or `blocksize` does not fit the rest.
    pub fn from_parts(
        packed: Tensor,
        absmax: Absmax,
        shape: [i64; 2],
        blocksize: usize,
    ) -> Result<Self> {
        check_blocksize(blocksize)?;
        let n = match shape[0].checked_mul(shape[1]) {
            Some(n) if shape[0] > 0 && shape[1] > 0 => n as usize,
            _ => {
                let what = format!("found {shape:?}; expected two positive sizes");
                return Err(Error::setting("shape", what));
            }
        };
        let blocks = n.div_ceil(blocksize);
        let device = packed.device();
        let part = |name: &str, t: &Tensor, kind: Kind, len: usize| {
            if (t.kind(), t.numel(), t.device()) == (kind, len, device) {
                return Ok(t.detach().contiguous().flatten(0, -1));
            }
            let found =
                format!("{} of {:?} on {:?}", t.numel(), t.kind(), t.device());
            let what = format!("expected {len} of {kind:?} on {device:?}");
            let why = format!("for shape {shape:?} in blocks of {blocksize}");
            Err(Error::setting(name, format!("found {found}; {what}, {why}")))
        };
        let packed =
            part("packed", &packed, Kind::Uint8, n.div_ceil(2))?.view([-1, 1]);
        let absmax = match absmax {
            Absmax::Plain(absmax) => {
                Absmax::Plain(part("absmax", &absmax, Kind::Float, blocks)?)
            }
            Absmax::Double { codes, nested_absmax, code, offset } => {
                let nested = blocks.div_ceil(double::NESTED_BLOCKSIZE);
                Absmax::Double {
                    codes: part("absmax", &codes, Kind::Uint8, blocks)?,
                    nested_absmax: part(
                        "nested_absmax",
                        &nested_absmax,
                        Kind::Float,
                        nested,
                    )?,
                    code: part("nested_quant_map", &code, Kind::Float, 256)?,
                    offset,
                }
            }
        };
        Ok(Self { packed, absmax, shape, blocksize })
    }

    /// The weights again: `CODE[code] absmax` in f32, rounded once to `kind`.
    ///
    /// Returns `[out, in]` on the same device, a new tensor; where it is used up at
    /// once, [`Nf4Tensor::dequantize_into`] a reused one is several times faster.
    pub fn dequantize(&self, kind: Kind) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let out = Tensor::empty(self.shape, (kind, self.device()));
        if self.by_kernel(&out).is_ok_and(|done| done) {
            return out;
        }
        self.decoded(kind)
    }

    /// The same into `out`, of its kind and on the same device: no memory is asked
    /// for, so none has to be mapped in and cleared, which would take longer than
    /// the arithmetic.
    ///
    /// `out`: contiguous, as many elements as the matrix. Errors if it is not.
    pub fn dequantize_into(&self, out: &Tensor) -> Result<()> {
        let n = (self.shape[0] * self.shape[1]) as usize;
        let fits = out.numel() == n && out.is_contiguous();
        if !fits || !out.is_floating_point() || out.device() != self.device() {
            let found = format!("{:?} of {:?}", out.size(), out.kind());
            let what = format!("a contiguous float tensor of {n} elements");
            let whereabouts = format!("on {:?}", self.device());
            return Err(Error::setting(
                "out",
                format!(
                    "found {found} on {:?}; expected {what} {whereabouts}",
                    out.device()
                ),
            ));
        }
        let _no_grad = tch::no_grad_guard();
        if !self.by_kernel(out)? {
            out.view(self.shape).copy_(&self.decoded(out.kind()));
        }
        Ok(())
    }

    /// Matrices of one shape into `out` [E, out, in], contiguous, as
    /// [`Nf4Tensor::dequantize_into`] would one by one; where there are kernels, in one
    /// launch for many.
    pub fn dequantize_all(matrices: &[&Self], out: &Tensor) -> Result<()> {
        let Some(first) = matrices.first() else { return Ok(()) };
        let [rows, columns] = first.shape;
        let size = [matrices.len() as i64, rows, columns];
        let alike = matrices.iter().all(|q| q.shape == first.shape);
        if out.size() != size || !alike {
            let what = format!("found {:?}; expected {size:?}", out.size());
            return Err(Error::setting("out", what));
        }
        let known = matches!(out.kind(), Kind::Float | Kind::BFloat16 | Kind::Half);
        let kernels = Kernels::at(out.device(), out.kind());
        if let Some(kernels) = kernels.filter(|_| known) {
            let parts = matrices.iter().map(|q| (&q.packed, q.scales()));
            let parts: Vec<_> = parts.collect();
            return kernels.nf4_dequantize_all(&parts, out);
        }
        let mut each = (0..).zip(matrices);
        each.try_for_each(|(i, q)| q.dequantize_into(&out.f_get(i)?))
    }

    /// The same by a kernel, where there is one; whether there was.
    fn by_kernel(&self, out: &Tensor) -> Result<bool> {
        if !matches!(out.kind(), Kind::Float | Kind::BFloat16 | Kind::Half) {
            return Ok(false);
        }
        match (Kernels::at(out.device(), out.kind()), out.device()) {
            (Some(kernels), _) => {
                kernels.nf4_dequantize(&self.packed, &self.scales(), out)?;
            }
            (_, Device::Cpu) => kernels::dequantize(simd::best(), self, out),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn decoded(&self, kind: Kind) -> Tensor {
        let n = self.shape[0] * self.shape[1];
        let flat = nf4::decode(&self.packed, &self.absmax(), self.blocksize, n);
        flat.view(self.shape).to_kind(kind)
    }

    fn scales(&self) -> Nf4Scales<'_> {
        let (absmax, codes) = match &self.absmax {
            Absmax::Plain(absmax) => (absmax, None),
            Absmax::Double { codes, nested_absmax, code, offset } => {
                (nested_absmax, Some((codes, code, *offset)))
            }
        };
        Nf4Scales { absmax, codes, blocksize: self.blocksize }
    }

    /// As a kernel takes it, with nothing added to its products.
    pub fn matrix(&self) -> Nf4Matrix<'_> {
        let (packed, scales, shape) = (&self.packed, self.scales(), self.shape);
        Nf4Matrix { packed, scales, shape, bias: None, low_rank: None }
    }

    /// The scale of each block, f32 `[ceil(n / blocksize)]`.
    pub fn absmax(&self) -> Tensor {
        match &self.absmax {
            Absmax::Plain(absmax) => absmax.shallow_clone(),
            Absmax::Double { codes, nested_absmax, code, offset } => {
                double::decode(codes, nested_absmax, code, *offset)
            }
        }
    }

    /// The codes, two to a byte, the first in the high half: u8 `[ceil(n / 2), 1]`.
    pub fn packed(&self) -> &Tensor {
        &self.packed
    }

    /// The scales as they are stored.
    pub fn stored_absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [i64; 2] {
        self.shape
    }

    /// Weights that share a scale.
    pub fn blocksize(&self) -> usize {
        self.blocksize
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.packed.device()
    }

    /// The memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let size = |t: &Tensor| t.numel() * t.kind().elt_size_in_bytes();
        size(&self.packed)
            + match &self.absmax {
                Absmax::Plain(absmax) => size(absmax),
                Absmax::Double { codes, nested_absmax, code, offset } => {
                    size(codes)
                        + size(nested_absmax)
                        + size(code)
                        + size_of_val(offset)
                }
            }
    }

    /// The same matrix on `device`; shares its memory where it lies there already.
    pub fn to_device(&self, device: Device) -> Self {
        // A card fetches by itself, in its turn; from one, all must have come.
        let by_itself = device.is_cuda();
        self.map(|t| t.to_device_(device, t.kind(), by_itself, false))
    }

    /// The same matrix, sharing its memory: for a backward function to keep.
    pub fn shallow_clone(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        let absmax = match &self.absmax {
            Absmax::Plain(absmax) => Absmax::Plain(f(absmax)),
            Absmax::Double { codes, nested_absmax, code, offset } => {
                Absmax::Double {
                    codes: f(codes),
                    nested_absmax: f(nested_absmax),
                    code: f(code),
                    offset: *offset,
                }
            }
        };
        let (shape, blocksize) = (self.shape, self.blocksize);
        Self { packed: f(&self.packed), absmax, shape, blocksize }
    }
}

fn check_blocksize(blocksize: usize) -> Result<()> {
    if BLOCKSIZES.contains(&blocksize) {
        return Ok(());
    }
    let what =
        format!("found {blocksize}; expected one of {BLOCKSIZES:?}, usually 64");
    Err(Error::setting("blocksize", what))
}

/// Names the first element of `w` that is not finite in f32; if there is none, the
/// mean of the scales is not.
fn non_finite(w: &Tensor) -> String {
    let w = w.detach().to_kind(Kind::Float);
    let bad = w.isfinite().logical_not().nonzero();
    if bad.numel() == 0 {
        let largest = w.abs().max().double_value(&[]) as f32;
        let what = "expected weights whose mean magnitude fits into f32";
        return format!("found magnitudes of up to {largest:e}; {what}");
    }
    let (row, column) = (bad.int64_value(&[0, 0]), bad.int64_value(&[0, 1]));
    let value = w.double_value(&[row, column]);
    let fix = "the checkpoint is damaged, or was saved after training had diverged";
    format!("found {value} at [{row}, {column}]; expected finite numbers: {fix}")
}
