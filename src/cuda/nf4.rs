//! 4-bit weights on a card: see `kernels/nf4.cu`, and `quant` for what they are.
use super::call::{Call, Kernels, Source, suffix};
use crate::Result;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("nf4");

/// Threads of a block that dequantizes.
const THREADS: u32 = 256;
/// As in the kernels: rounds of 16 bytes that a thread of `dequantize` writes.
const ROUNDS: i64 = 4;
/// Matrices of one launch: as many as its arguments have room for.
const AT_ONCE: usize = 64;

/// The scales of blocks of weights, as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Scales<'a> {
    /// f32: one for a block, or for 256 codes.
    pub absmax: &'a Tensor,
    /// The codes, u8, one for a block; their 256 levels, f32; and the offset.
    pub codes: Option<(&'a Tensor, &'a Tensor, f32)>,
    /// Weights that share one: a power of two.
    pub blocksize: usize,
}

impl Nf4Scales<'_> {
    fn add_to(&self, call: Call) -> Call {
        let shift = self.blocksize.trailing_zeros();
        match self.codes {
            None => {
                let none = None::<&Tensor>;
                call.arg(none).arg(self.absmax).arg(none).arg(0f32).arg(shift)
            }
            Some((codes, level, offset)) => {
                call.arg(codes).arg(self.absmax).arg(level).arg(offset).arg(shift)
            }
        }
    }

    /// The words of a `Scales` in `kernels/nf4.cu`.
    pub(super) fn words(&self) -> [u64; 4] {
        let address = |t: &Tensor| t.data_ptr() as u64;
        let (codes, level, offset) = match self.codes {
            None => (0, 0, 0f32),
            Some((codes, level, offset)) => (address(codes), address(level), offset),
        };
        let shift = u64::from(self.blocksize.trailing_zeros());
        let last = u64::from(offset.to_bits()) | shift << 32;
        [codes, address(self.absmax), level, last]
    }

    /// Fails unless these are the scales of `n` weights, where the kernels are.
    pub(super) fn check(&self, kernels: &Kernels, n: i64) -> Result<()> {
        let blocks = (n as u64).div_ceil(self.blocksize as u64) as i64;
        let Some((codes, level, _)) = self.codes else {
            return kernels.check("absmax", self.absmax, blocks, Kind::Float);
        };
        let nested = (blocks + 255) / 256;
        kernels.check("absmax", codes, blocks, Kind::Uint8)?;
        kernels.check("nested_absmax", self.absmax, nested, Kind::Float)?;
        kernels.check("nested_quant_map", level, 256, Kind::Float)
    }
}

impl Kernels {
    /// `nf4::encode`: codes u8 `[ceil(n / 2), 1]` and absmax f32 of the blocks.
    ///
    /// `w`: contiguous, f32 or bf16.
    pub fn nf4_quantize(
        &self,
        w: &Tensor,
        blocksize: usize,
    ) -> Result<(Tensor, Tensor)> {
        let n = w.numel() as i64;
        self.served("the weight", w.kind())?;
        self.check("the weight", w, n, w.kind())?;
        let blocks = (n as u64).div_ceil(blocksize as u64) as i64;
        let packed = Tensor::f_empty([(n + 1) / 2, 1], (Kind::Uint8, w.device()))?;
        let absmax = Tensor::f_empty([blocks], (Kind::Float, w.device()))?;
        const THREADS: u32 = 512; // eight weights each: one block of 4096
        let grid = (n as u64).div_ceil(8 * u64::from(THREADS)) as i64;
        let call = Call::new(SOURCE, format!("nf4_quantize_{}", suffix(w.kind())));
        let call = call.over(grid, 1, THREADS)?.arg(w).arg(&packed).arg(&absmax);
        self.run(&call.arg(blocksize as u32).arg(n))?;
        Ok((packed, absmax))
    }

    /// `nf4::decode` into `out`, rounded once to its kind: f32, bf16 or f16.
    pub fn nf4_dequantize(
        &self,
        packed: &Tensor,
        scales: &Nf4Scales,
        out: &Tensor,
    ) -> Result<()> {
        let (n, kind) = (out.numel() as i64, out.kind());
        self.check("packed", packed, (n + 1) / 2, Kind::Uint8)?;
        self.check("out", out, n, kind)?;
        scales.check(self, n)?;
        let call = Call::new(SOURCE, format!("nf4_dequantize_{}", suffix(kind)));
        let call = call.over(blocks(n, kind), 1, THREADS)?.arg(packed);
        self.run(&scales.add_to(call).arg(out).arg(n))
    }

    /// The same for matrices of one size, one after another in `out`, in one launch for
    /// every 64 of them: each is its codes and its scales.
    pub fn nf4_dequantize_all(
        &self,
        matrices: &[(&Tensor, Nf4Scales)],
        out: &Tensor,
    ) -> Result<()> {
        let (all, kind) = (out.numel() as i64, out.kind());
        let count = matrices.len().max(1) as i64;
        let n = all / count;
        self.check("out", out, n * count, kind)?;
        let grid = blocks(n, kind);
        for (first, some) in (0..).step_by(AT_ONCE).zip(matrices.chunks(AT_ONCE)) {
            let mut words = Vec::with_capacity(5 * AT_ONCE);
            for (packed, scales) in some {
                self.check("packed", packed, (n + 1) / 2, Kind::Uint8)?;
                scales.check(self, n)?;
                words.push(packed.data_ptr() as u64);
                words.extend(scales.words());
            }
            words.resize(5 * AT_ONCE, 0);
            let here = some.len() as i64;
            let out = out.view([-1]).narrow(0, first * n, here * n);
            let name = format!("nf4_dequantize_all_{}", suffix(kind));
            let call = Call::new(SOURCE, name).over(grid, here, THREADS)?;
            self.run(&call.words(words).arg(&out).arg(n))?;
        }
        Ok(())
    }
}

/// Blocks of threads that dequantize `n` weights.
fn blocks(n: i64, kind: Kind) -> i64 {
    let wide = 16 / kind.elt_size_in_bytes() as i64;
    (n as u64).div_ceil((i64::from(THREADS) * wide * ROUNDS) as u64) as i64
}
