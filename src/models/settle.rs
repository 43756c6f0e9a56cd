//! Quantizing on the way. On a card nothing waits between two tensors, so that the
//! disk, the copy and the quantizing of different ones overlap; whether all were sound
//! is seen at the end.
use super::decoder::Decoder;
use super::load::{FromDisk, sent};
use crate::nn::Weight;
use crate::quant::{Nf4Tensor, bnb};
use crate::{Error, Result};
use tch::{Kind, Tensor};

impl FromDisk<'_> {
    /// Quantizes a weight of the file's kind; what shall be copied must be complete.
    pub(super) fn quantize(
        &mut self,
        weight: &str,
        w: &Tensor,
    ) -> Result<bnb::Stored> {
        let (options, dtype) = (self.options, w.kind());
        // Every kind fits into f32, and need not be made so beforehand.
        let w = match options.kind {
            Kind::Float => sent(w, options.device)?,
            kind => sent(&w.f_to_kind(kind)?, options.device)?,
        };
        let (size, double) = (options.blocksize, options.double_quant);
        let matrix = match self.late && self.copy.is_none() {
            false => Nf4Tensor::quantize(&w, size, double),
            true => Nf4Tensor::queued(&w, size, double).map(|(q, late)| {
                self.queued.insert(weight.into(), late);
                q
            }),
        };
        let file = self.checkpoint.file_of(weight);
        let failed = |e: Error| Error::tensor(file, weight, e.to_string());
        let matrix = matrix.map_err(failed)?;
        Ok(bnb::Stored { matrix, dtype, storage: Kind::Uint8 })
    }

    /// Waits for the weights that were queued, and completes them. One that is not
    /// finite is read again, and quantized as where nothing is late: that says which
    /// number it is.
    pub(super) fn settle(&mut self, model: &mut Decoder) -> Result<()> {
        self.late = false;
        for (name, linear) in model.linears_mut() {
            let weight = format!("{name}.weight");
            let late = self.queued.remove(&weight);
            if let (Weight::Nf4(q), Some(late)) = (&mut linear.weight, late)
                && !q.settle(&late)?
            {
                let w = self.again(&weight)?;
                *q = self.quantize(&weight, &w)?.matrix;
            }
        }
        Ok(())
    }

    /// What was read of it before.
    fn again(&self, name: &str) -> Result<Tensor> {
        match self.checkpoint.is_fp8(name) {
            true => self.checkpoint.fp8(name, self.options.kind),
            false => self.checkpoint.tensor(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, Writer};
    use crate::models::{LoadOptions, read_config};
    use std::path::Path;
    use tch::Device;
    use tempfile::TempDir;

    fn options(double_quant: bool) -> LoadOptions {
        LoadOptions {
            quantize: true,
            blocksize: 64,
            double_quant,
            kind: Kind::Float,
            device: Device::Cpu,
        }
    }

    fn read(dir: &Path, options: &LoadOptions, late: bool) -> Result<Decoder> {
        let checkpoint = Checkpoint::open(dir)?;
        let quiet = &mut |_, _| ();
        let mut disk = FromDisk::new(&checkpoint, options, dir, quiet)?;
        disk.late = late;
        disk.decoder(read_config(dir)?)
    }

    /// The checkpoint `of`, but one number of the tensor `name` is not finite.
    fn damaged(of: &str, name: &str, [row, column]: [i64; 2]) -> TempDir {
        let (from, to) = (Path::new(of), TempDir::new().unwrap());
        let config = "config.json";
        std::fs::copy(from.join(config), to.path().join(config)).unwrap();
        let checkpoint = Checkpoint::open(from).unwrap();
        let file = checkpoint.files().next().unwrap();
        let copy = to.path().join(file.file_name().unwrap());
        let change = &mut |found: &str| {
            Ok((found == name).then(|| {
                let t = checkpoint.tensor(name).unwrap();
                let _ = t.get(row).get(column).fill_(f64::INFINITY);
                t
            }))
        };
        checkpoint.rewrite(file, &copy, change).unwrap();
        to
    }

    #[test]
    fn late_or_not_a_model_is_the_same() {
        for of in ["llama_gqa", "v2_lite", "v3_fp8", "bnb_plain"] {
            let dir = Path::new("tests/golden").join(of);
            for double_quant in [false, true] {
                let options = options(double_quant);
                let model = |late| read(&dir, &options, late).unwrap();
                let (mut at_once, mut late) = (model(false), model(true));
                let pairs = at_once.linears_mut().into_iter();
                let pairs = pairs.zip(late.linears_mut());
                let mut count = 0;
                for ((name, a), (_, b)) in pairs {
                    let (Weight::Nf4(a), Weight::Nf4(b)) = (&a.weight, &b.weight)
                    else {
                        continue;
                    };
                    count += 1;
                    assert!(a.packed().equal(b.packed()), "{of}: {name}");
                    assert!(a.absmax().equal(&b.absmax()), "{of}: {name}");
                    let all = a.absmax().isfinite().all();
                    assert!(bool::try_from(all).unwrap(), "{of}: {name}");
                }
                assert!(count > 5, "{of}: {count}");
            }
        }
    }

    #[test]
    fn late_or_not_it_says_which_number_is_not_finite() {
        let q = "model.layers.0.self_attn.q_proj.weight";
        let a = "model.layers.0.self_attn.o_proj.weight";
        let scale = format!("{a}_scale_inv");
        for (of, name, spoilt, at) in
            [("llama_gqa", q, q, [3, 5]), ("v3_fp8", a, scale.as_str(), [0, 0])]
        {
            let dir = damaged(&format!("tests/golden/{of}"), spoilt, at);
            for double_quant in [false, true] {
                let options = options(double_quant);
                let said = |late| {
                    let failed = read(dir.path(), &options, late);
                    failed.expect_err("not finite").to_string()
                };
                let text = said(true);
                assert_eq!(text, said(false));
                for part in [name, &format!("{at:?}"), ".safetensors", "inf"] {
                    assert!(text.contains(part), "no {part}: {text}");
                }
            }
        }
    }

    #[test]
    fn what_is_written_again_is_not_late() {
        let q = "model.layers.0.self_attn.q_proj.weight";
        let dir = damaged("tests/golden/llama_gqa", q, [3, 5]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let out = TempDir::new().unwrap();
        let (mut read, mut total) = (0, 0);
        let note = &mut |a, b| (read, total) = (a, b);
        let options = options(true);
        let disk = FromDisk::new(&checkpoint, &options, dir.path(), note);
        let mut disk = disk.unwrap();
        let copy = Writer::new(out.path(), 1 << 30, checkpoint.names());
        (disk.copy, disk.late) = (Some(copy), true);
        let config = read_config(dir.path()).unwrap();
        disk.decoder(config).expect_err("not finite");
        drop(disk);
        assert!(read < total / 2, "{read} of {total} were read");
    }
}
