//! One layer's update, as an adapter file holds it.
use super::config::{LoraConfig, Rules};
use super::peft::{CONFIG, PREFIX};
use crate::checkpoint::read_safetensors;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// The update of one linear, in f32 in host memory.
#[derive(Debug)]
pub(super) struct Delta {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) magnitude: Option<Tensor>,
    pub(super) r: i64,
    pub(super) scale: f64,
}

impl Delta {
    // ANCHOR: onto
    /// The weight W [out, in] with the update: `W + s B A`, its rows at the lengths of
    /// DoRA if there are any.
    pub(super) fn onto(&self, w: &Tensor) -> Result<Tensor> {
        let sum = w + self.b.f_mm(&self.a)? * self.scale;
        let Some(magnitude) = &self.magnitude else { return Ok(sum) };
        let norm = sum.square().sum_dim_intlist(1, true, Kind::Float);
        let norm = norm.clamp_min(f64::from(f32::MIN_POSITIVE)).sqrt(); // [out, 1]
        Ok(sum * (magnitude.unsqueeze(1) / norm))
    }
    // ANCHOR_END: onto
}

/// The tensors of an adapter file that have not been taken yet.
pub(super) struct Saved<'a> {
    path: &'a Path,
    tensors: HashMap<String, Tensor>,
}

impl<'a> Saved<'a> {
    pub(super) fn read(path: &'a Path) -> Result<Self> {
        Ok(Self { path, tensors: read_safetensors(path)? })
    }

    /// The update of the linear `name`, if it has or must have one.
    pub(super) fn delta(
        &mut self,
        rules: &Rules,
        config: &LoraConfig,
        name: &str,
        [out, input]: [i64; 2],
    ) -> Result<Option<Delta>> {
        let as_ours =
            |e: Error| Error::file(self.path.with_file_name(CONFIG), e.to_string());
        let there = ["A", "B"].iter().any(|half| {
            self.tensors.contains_key(&format!("{PREFIX}{name}.lora_{half}.weight"))
        });
        if !there && !rules.targets(name).map_err(as_ours)? {
            return Ok(None);
        }
        let (r, scale) = rules.rank_and_scale(name).map_err(as_ours)?;
        let mut take = |half: &str, shape: &[i64]| -> Result<Tensor> {
            let t = self.take(&format!("{name}.{half}"), shape, Some(r))?;
            Ok(t.to_kind(Kind::Float))
        };
        Ok(Some(Delta {
            a: take("lora_A.weight", &[r, input])?,
            b: take("lora_B.weight", &[out, r])?,
            bias: match config.lora_bias {
                true => Some(take("lora_B.bias", &[out])?),
                false => None,
            },
            magnitude: match config.use_dora {
                true => Some(take("lora_magnitude_vector", &[out])?),
                false => None,
            },
            r,
            scale,
        }))
    }

    /// One tensor, which must have this shape; of an adapter, under this rank.
    pub(super) fn take(
        &mut self,
        name: &str,
        shape: &[i64],
        r: Option<i64>,
    ) -> Result<Tensor> {
        let key = format!("{PREFIX}{name}");
        let wrong = |what: String| Err(Error::tensor(self.path, &key, what));
        let Some(t) = self.tensors.remove(&key) else {
            return wrong("missing".into());
        };
        let found = t.size();
        if found != shape {
            let by =
                r.map(|r| format!(" (r = {r} in {CONFIG})")).unwrap_or_default();
            return wrong(format!("shape {found:?}, expected {shape:?}{by}"));
        }
        if !t.is_floating_point() {
            return wrong(format!("dtype {:?}; F32, F16 or BF16", t.kind()));
        }
        Ok(t)
    }

    /// Refuses a file with a tensor that nothing took; `why` says what that means.
    pub(super) fn nothing_left(&self, why: &str) -> Result<()> {
        match self.tensors.keys().min() {
            Some(key) => Err(Error::tensor(self.path, key, why)),
            None => Ok(()),
        }
    }
}
