//! The joint norm of many tensors and their scaling, on a card: see `kernels/clip.cu`,
//! and `optim::clip_grad_norm_late` for what they are for.
use super::call::{Call, Kernels, Source};
use crate::Result;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("clip");
const THREADS: u32 = 256;
/// Tensors of one launch: as many as its arguments have room for.
const AT_ONCE: usize = 128;
/// Blocks of threads to a tensor.
const BLOCKS: i64 = 16;

impl Kernels {
    /// `√Σ x²` over the elements of all of `tensors`, which are f32: `[]`, f64.
    pub fn norm(&self, tensors: &[Tensor]) -> Result<Tensor> {
        let count = tensors.len() as i64;
        let like = (Kind::Float, self.device);
        let part = Tensor::f_empty([count, BLOCKS], like)?;
        for (i, some) in tensors.chunks(AT_ONCE).enumerate() {
            let start = (i * AT_ONCE) as i64;
            let call = self.over_many("squares", some)?;
            self.run(&call.arg(&part.f_narrow(0, start, some.len() as i64)?))?;
        }
        Ok(part.f_sum(Kind::Double)?.f_sqrt()?)
    }

    /// Multiplies each of `tensors`, which are f32, by `factor` `[]`. Where that is 0
    /// they become 0, whatever they were.
    pub fn scale(&self, tensors: &[Tensor], factor: &Tensor) -> Result<()> {
        self.check("the factor", factor, 1, Kind::Float)?;
        for some in tensors.chunks(AT_ONCE) {
            self.run(&self.over_many("scale", some)?.arg(factor))?;
        }
        Ok(())
    }

    fn over_many(&self, kernel: &str, tensors: &[Tensor]) -> Result<Call> {
        let mut words = Vec::with_capacity(2 * AT_ONCE);
        for t in tensors {
            let n = t.numel() as i64;
            self.check("a gradient", t, n, Kind::Float)?;
            words.extend([t.data_ptr() as u64, n as u64]);
        }
        words.resize(2 * AT_ONCE, 0);
        let call = Call::new(SOURCE, kernel.into());
        Ok(call.over(BLOCKS, tensors.len() as i64, THREADS)?.words(words))
    }
}
