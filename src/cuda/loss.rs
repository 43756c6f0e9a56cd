//! Cross-entropy on a card: see `kernels/cross_entropy.cu`, and `nn::cross_entropy` for
//! what it is.
use super::call::{Call, Kernels, Source, suffix, threads};
use crate::Result;
use tch::{Kind, Tensor};

pub(super) const SOURCE: Source = super::source!("cross_entropy");

impl Kernels {
    /// `−log softmax(z)[target]` of each row of the scores `z` [S, V], in f32: [S], and
    /// 0 where the target is `ignored`, NaN where it is no class. Where `gradient`,
    /// `z` becomes its own: `softmax(z) − 1[target]`, or 0.
    pub fn cross_entropy(
        &self,
        z: &mut Tensor,
        targets: &Tensor,
        ignored: i64,
        gradient: bool,
    ) -> Result<Tensor> {
        let (rows, v) = z.size2()?;
        let targets = targets.contiguous();
        self.check("the scores", z, rows * v, self.kind)?;
        self.check("the targets", &targets, rows, Kind::Int64)?;
        let loss = Tensor::f_empty([rows], (Kind::Float, z.device()))?;
        let call = Call::new(SOURCE, format!("cross_entropy_{}", suffix(self.kind)));
        let call = call.over(rows, 1, threads(v))?.arg(&*z).arg(&targets);
        self.run(&call.arg(&loss).arg(v).arg(ignored).arg(gradient))?;
        Ok(loss)
    }
}
