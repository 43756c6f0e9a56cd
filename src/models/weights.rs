//! Where a decoder's tensors come from: a checkpoint, or a random start.
use super::{Decoder, DecoderConfig, tied};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::nn::Linear;
use tch::{Kind, Tensor, no_grad};

/// Gives tensors by their checkpoint names.
pub trait Weights {
    /// The tensor `name`, which must have this shape.
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor>;

    /// The tensor `name` in f32 whatever the kind of the others, and never trained.
    fn buffer(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(self.tensor(name, shape)?.detach().to_kind(Kind::Float))
    }

    /// The linear layer `name` (`name.weight`, and `name.bias` if `bias`).
    fn linear(
        &mut self,
        name: &str,
        [out, input]: [i64; 2],
        bias: bool,
    ) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, input])?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{name}.bias"), &[out])?),
            false => None,
        };
        Ok(Linear::dense(weight, bias))
    }
}

/// A random start in f32, all of it trainable: N(0, `std`²) for matrices, ones for
/// norms, zeros for biases. The numbers depend on `seed` and the name alone.
pub(super) struct Random {
    pub(super) seed: u64,
    pub(super) std: f64,
}

// ANCHOR: random
impl Weights for Random {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let like = (Kind::Float, tch::Device::Cpu);
        let t = match (shape.len(), name.ends_with("bias")) {
            (1, true) => Tensor::zeros(shape, like),
            (1, false) => Tensor::ones(shape, like),
            _ => no_grad(|| {
                let n = shape.iter().product::<i64>() as usize;
                let z = crate::nn::dropout::normal(n, self.seed, fnv1a(name));
                Tensor::from_slice(&z).view_(shape) * self.std
            }),
        };
        Ok(t.set_requires_grad(true))
    }
}
// ANCHOR_END: random

/// No numbers, but how many there would be.
struct Counted(i128);

impl Weights for Counted {
    fn tensor(&mut self, _: &str, shape: &[i64]) -> Result<Tensor> {
        self.0 += shape.iter().map(|n| i128::from(*n)).product::<i128>();
        Ok(Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)))
    }
}

/// The names that are asked for, in order; of a checkpoint, if one is given, only as
/// far as it has them: what a description asks for may be endless.
struct Listed<'a> {
    names: Vec<String>,
    of: Option<(&'a Checkpoint, bool)>,
}

impl Weights for Listed<'_> {
    fn tensor(&mut self, name: &str, _: &[i64]) -> Result<Tensor> {
        let stored = match self.of {
            Some((checkpoint, tied)) => {
                let stored = tied::stored(name, tied, checkpoint);
                checkpoint.shape(stored)?;
                stored
            }
            None => name,
        };
        self.names.push(stored.into());
        Ok(Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)))
    }
}

impl DecoderConfig {
    /// The tensors that a model of this shape is built from, in the order in which it
    /// asks for them.
    ///
    /// # Errors
    /// None in practice.
    pub fn tensor_names(&self) -> Result<Vec<String>> {
        let mut names = Listed { names: vec![], of: None };
        Decoder::new(self.clone(), &mut names)?;
        Ok(names.names)
    }

    /// The same, as `checkpoint` has them.
    ///
    /// # Errors
    /// The first one that is missing, by name.
    pub(super) fn tensors_of(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let of = Some((checkpoint, self.tie_word_embeddings));
        let mut names = Listed { names: vec![], of };
        Decoder::new(self.clone(), &mut names)?;
        Ok(names.names)
    }

    /// Numbers in the checkpoint of a model of this shape, without building it.
    ///
    /// # Errors
    /// None in practice.
    pub fn parameters(&self) -> Result<i128> {
        let mut count = Counted(0);
        Decoder::new(self.clone(), &mut count)?;
        Ok(count.0)
    }
}

/// A number per name (FNV-1a, 32 bits).
pub(crate) fn fnv1a(name: &str) -> u32 {
    let mix = |h: u32, b: u8| (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
    name.bytes().fold(0x811C_9DC5, mix)
}
