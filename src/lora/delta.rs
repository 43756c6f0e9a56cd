//! One layer's update, as an adapter file holds it.
use super::config::{LoraConfig, Rules};
use super::keys::{self, Key};
use super::peft::{CONFIG, PREFIX, WEIGHTS};
use crate::checkpoint::read_safetensors;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

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

/// The tensors of an adapter file that have not been taken yet, by the names that
/// [`keys::read`] gives them.
pub(super) struct Saved {
    path: PathBuf,
    /// Each with the key under which the file holds it.
    tensors: BTreeMap<String, (String, Tensor)>,
}

impl Saved {
    /// Those in the folder `dir`.
    ///
    /// # Errors
    /// No such file, or another program's in its place; one that is damaged; two
    /// adapters in one file.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = weights(dir)?;
        let wrong = |key: &str, what: String| Err(Error::tensor(&path, key, what));
        let (mut tensors, mut adapters) = (BTreeMap::new(), BTreeMap::new());
        let all: BTreeMap<_, _> = read_safetensors(&path)?.into_iter().collect();
        for (key, t) in all {
            let Some(Key { name, adapter }) = keys::read(&key) else { continue };
            if let Some(adapter) = adapter {
                adapters.entry(adapter).or_insert_with(|| key.clone());
            }
            if let Some((other, _)) = tensors.insert(name, (key.clone(), t)) {
                let what = format!(
                    "has the same place as `{other}`; which of them is meant? Save \
                     one adapter, by save_pretrained of PEFT"
                );
                return wrong(&key, what);
            }
        }
        if let [(one, _), (two, key), ..] = &Vec::from_iter(&adapters)[..] {
            let what = format!(
                "of the adapter `{two}`, and others are of `{one}`; save each by \
                 itself, with save_pretrained of PEFT, which makes a folder for each"
            );
            return wrong(key, what);
        }
        Ok(Self { path, tensors })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
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
            self.tensors.contains_key(&format!("{name}.lora_{half}.weight"))
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

    /// The update of the head or of the embedding, whose weight is `w`, if there is one.
    pub(super) fn update(
        &mut self,
        rules: &Rules,
        module: &str,
        w: &Tensor,
    ) -> Result<Option<Tensor>> {
        let [out, input] = w.size()[..] else { return Ok(None) };
        let has =
            |half: &str| self.tensors.contains_key(&format!("{module}.{half}"));
        // One half alone is nobody's, and is named as what is left.
        let looked_up = has("lora_embedding_A") && has("lora_embedding_B");
        let beside = has("lora_A.weight") && has("lora_B.weight");
        if !looked_up && !beside {
            return Ok(None);
        }
        let as_ours =
            |e: Error| Error::file(self.path.with_file_name(CONFIG), e.to_string());
        let (r, scale) = rules.rank_and_scale(module).map_err(as_ours)?;
        let mut take = |half: &str, shape: &[i64]| -> Result<Tensor> {
            let t = self.take(&format!("{module}.{half}"), shape, Some(r))?;
            Ok(t.to_kind(Kind::Float))
        };
        // A row of an embedding is what a column of a linear is.
        let update = match looked_up {
            true => {
                let a = take("lora_embedding_A", &[r, out])?;
                let b = take("lora_embedding_B", &[input, r])?;
                b.f_mm(&a)?.tr()
            }
            false => {
                let a = take("lora_A.weight", &[r, input])?;
                take("lora_B.weight", &[out, r])?.f_mm(&a)?
            }
        };
        Ok(Some(update * scale))
    }

    /// Rows of `score.weight`, if it is there.
    pub(super) fn head_scores(&self) -> Result<Option<i64>> {
        let Some((key, t)) = self.tensors.get("score.weight") else {
            return Ok(None);
        };
        match t.size()[..] {
            [scores, _] => Ok(Some(scores)),
            ref found => {
                let what = format!("shape {found:?}, expected two sizes");
                Err(Error::tensor(&self.path, key, what))
            }
        }
    }

    /// One tensor, which must have this shape; of an adapter, under this rank.
    pub(super) fn take(
        &mut self,
        name: &str,
        shape: &[i64],
        r: Option<i64>,
    ) -> Result<Tensor> {
        let Some((key, t)) = self.tensors.remove(name) else {
            let key = format!("{PREFIX}{name}");
            return Err(Error::tensor(&self.path, key, "missing"));
        };
        let wrong = |what: String| Err(Error::tensor(&self.path, &key, what));
        let found = t.size();
        if t.numel() == 0 {
            return wrong(format!("shape {found:?}: {NOT_GATHERED}"));
        }
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

    /// Refuses a file with a tensor that nothing took, and says what it is. The base's
    /// own `parameters`, which PEFT saves beside an adapter of them or when it is told
    /// to, may be there if they are the base's.
    ///
    /// # Errors
    /// There is such a tensor.
    pub(super) fn nothing_left(
        mut self,
        parameters: &dyn Fn(&str) -> Option<Tensor>,
        else_: &str,
    ) -> Result<()> {
        let mut left: Vec<_> =
            std::mem::take(&mut self.tensors).into_iter().collect();
        // What says most of what was trained comes first.
        left.sort_by_key(|(name, _)| {
            !name.contains("lora_") && !name.contains("delta")
        });
        for (name, (key, t)) in left {
            let own = name.replace(".base_layer.", ".");
            // A tied head is the embedding.
            let base = parameters(&own).or_else(|| match own == "lm_head.weight" {
                true => parameters("model.embed_tokens.weight"),
                false => None,
            });
            if base.as_ref().is_some_and(|base| equal(base, &t)) {
                continue;
            }
            let shape = base.map(|base| base.size());
            let what = keys::explain(&own, &t.size(), shape.as_deref());
            let what = what.unwrap_or_else(|| else_.into());
            return Err(Error::tensor(&self.path, key, what));
        }
        Ok(())
    }
}

/// Of the same shape, and the same numbers in the kind of either.
fn equal(a: &Tensor, b: &Tensor) -> bool {
    if a.size() != b.size() || !a.is_floating_point() || !b.is_floating_point() {
        return false;
    }
    let [a, b] = [a, b].map(|t| t.detach().to_device(Device::Cpu));
    a.to_kind(b.kind()).equal(&b) || b.to_kind(a.kind()).equal(&a)
}

/// Why an adapter file may be empty.
pub(super) const NOT_GATHERED: &str = "nothing was saved; of a model that DeepSpeed's \
    ZeRO-3 or FSDP had spread, gather the parameters before save_pretrained";

/// The adapter's file in `dir`.
fn weights(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(WEIGHTS);
    let pickle = dir.join("adapter_model.bin");
    if path.exists() || path.is_symlink() || !pickle.exists() {
        return Ok(path);
    }
    let at = dir.display();
    let what = format!(
        "not there, only adapter_model.bin, a pickle, and to read one executes the code \
         in it. If you trust it, convert it with Python: python -c \"import torch; \
         from safetensors.torch import save_file; t = torch.load('{at}/\
         adapter_model.bin', map_location='cpu', weights_only=True); save_file({{k: \
         v.clone().contiguous() for k, v in t.items()}}, '{at}/{WEIGHTS}')\""
    );
    Err(Error::file(path, what))
}
