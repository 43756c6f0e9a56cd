//! A model's linear layers by name, without its weights.
use super::config::read_config;
use super::decoder::Decoder;
use super::weights::Weights;
use crate::Result;
use crate::nn::Linear;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The names of the linear layers that [`super::load`] quantizes, from `config.json`
/// alone.
///
/// # Errors
/// As [`read_config`].
pub fn linear_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Names(vec![]);
    Decoder::new(read_config(dir)?, &mut names)?;
    Ok(names.0)
}

/// Gives one zero in the guise of every tensor, and notes what is a linear.
struct Names(Vec<String>);

impl Weights for Names {
    fn tensor(&mut self, _: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::zeros([1], (Kind::Float, Device::Cpu)).f_expand(shape, false)?)
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], _: bool) -> Result<Linear> {
        self.0.push(name.into());
        Ok(Linear::dense(self.tensor(name, &shape)?, None))
    }
}
