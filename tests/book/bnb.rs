//! Folders that transformers + bitsandbytes quantized: read with their logits, written
//! again to the same bytes, ours written as theirs; and the block sizes.
use crate::common::{refused, wave};
use crate::golden::{gap, path, same_bits, tensors};
use crate::parity_llama::{F32, logits, read};
use downhill::checkpoint::{Checkpoint, Writer, read_safetensors};
use downhill::models::{LoadOptions, QuantizeOptions, load, quantize};
use downhill::nn::Weight;
use downhill::quant::{BLOCKSIZES, Nf4Tensor, bnb};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const NF4: LoadOptions = LoadOptions { quantize: true, ..F32 };
/// See `tests/golden/ch14_bnb.py`.
const NAMES: [&str; 5] = ["nested", "plain", "storage", "skip", "ours"];
const USUAL: QuantizeOptions = QuantizeOptions {
    blocksize: 64,
    double_quant: true,
    max_shard_size: 5_000_000_000,
    device: Device::Cpu,
};

fn all(dir: &Path) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(dir).expect("a checkpoint");
    let tensor = |name: &str| checkpoint.tensor(name).expect("a tensor");
    checkpoint.names().map(|name| (name.to_string(), tensor(name))).collect()
}

#[track_caller]
fn same_tensors(found: &Path, expected: &Path) {
    let (found, expected) = (all(found), all(expected));
    assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
    for (name, t) in &expected {
        assert!(same_bits(&found[name], t), "{name}");
    }
}

/// All of a linear's codes and scales.
fn four_bit(w: &Weight) -> Option<&Nf4Tensor> {
    match w {
        Weight::Nf4(q) => Some(q),
        Weight::Dense(_) => None,
    }
}

#[test]
fn logits_are_bitsandbytes() {
    for name in NAMES {
        let folder = format!("bnb_{name}");
        let golden = tensors(&format!("{folder}/expected.safetensors"));
        // In 4 bits, and dequantized at once.
        for options in [NF4, F32] {
            let model = read(&folder, &options);
            let far = gap(&logits(&model, &golden["ids"]), &golden["logits"]);
            println!("{name}: {far:.1e}");
            assert!(far < 1e-5, "{name}: logits {far:e} from bitsandbytes");
        }
    }
}

#[test]
fn what_was_skipped_stays_as_it_is() {
    let mut model = read("bnb_skip", &NF4);
    let quantized = |(name, l): (String, &mut downhill::nn::Linear)| {
        (name, four_bit(&l.weight).is_some())
    };
    let linears: Vec<_> = model.linears_mut().into_iter().map(quantized).collect();
    for (name, quantized) in linears {
        let skipped = name.ends_with("o_proj") || name.contains("layers.1.mlp");
        assert_eq!(quantized, !skipped, "{name}");
    }
    // Dequantized where the flag says so: nothing in 4 bits is left.
    let mut model = read("bnb_skip", &F32);
    assert!(model.linears_mut().iter().all(|(_, l)| four_bit(&l.weight).is_none()));
}

#[test]
fn read_and_written_again_every_tensor_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for name in NAMES {
        let (from, to) = (path(&format!("bnb_{name}")), dir.path().join(name));
        let sizes = quantize(&from, &to, &USUAL, &mut |_, _| ()).expect(name);
        assert_eq!(sizes.from, sizes.to);
        same_tensors(&to, &from);
        let config = |dir: &Path| json(&dir.join("config.json"));
        assert_eq!(config(&to), config(&from));
    }
    // Two gigabytes or two kilobytes a file: the same tensors.
    let to = dir.path().join("sharded");
    let small = QuantizeOptions { max_shard_size: 9000, ..USUAL };
    quantize(&path("bnb_nested"), &to, &small, &mut |_, _| ()).unwrap();
    let shards = fs::read_dir(&to).unwrap().flatten();
    let sizes: Vec<u64> = shards
        .filter(|f| f.path().extension().is_some_and(|e| e == "safetensors"))
        .map(|f| f.metadata().unwrap().len())
        .collect();
    assert!(sizes.len() > 5, "{sizes:?}");
    same_tensors(&to, &path("bnb_nested"));
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The folder that a golden one was quantized from.
fn source_of(name: &str, dir: &Path) -> PathBuf {
    let (golden, source) = (path(name), dir.join("source"));
    fs::create_dir(&source).unwrap();
    fs::copy(golden.join("source.safetensors"), source.join("model.safetensors"))
        .unwrap();
    let mut config = json(&golden.join("config.json"));
    config.as_object_mut().unwrap().shift_remove("quantization_config");
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    source
}

/// The folder from which transformers + bitsandbytes computed bnb_ours' logits is
/// still the one that we write.
#[test]
fn what_bitsandbytes_read_is_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_of("bnb_ours", dir.path());
    let to = dir.path().join("quantized");
    let options = QuantizeOptions { blocksize: 32, ..USUAL };
    quantize(&source, &to, &options, &mut |_, _| ()).unwrap();
    same_tensors(&to, &path("bnb_ours"));
    let config = |dir: &Path| json(&dir.join("config.json"));
    assert_eq!(config(&to), config(&path("bnb_ours")));
}

/// Without double quantization bitsandbytes' CPU and CUDA libraries agree (but for
/// values on a border), and so do we: the whole folder.
#[test]
fn ours_is_written_as_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("quantized");
    let (source, theirs) = (source_of("bnb_plain", dir.path()), path("bnb_plain"));
    let expected = json(&theirs.join("config.json"));
    fs::write(source.join("tokenizer.json"), "{}").unwrap();
    fs::write(source.join("optimizer.pt"), "none of ours").unwrap();
    let options = QuantizeOptions { double_quant: false, ..USUAL };
    quantize(&source, &to, &options, &mut |_, _| ()).unwrap();
    same_tensors(&to, &theirs);
    let mut found = json(&to.join("config.json"));
    // The kind to compute in is for us to choose: that of the weights.
    let compute = &mut found["quantization_config"]["bnb_4bit_compute_dtype"];
    assert_eq!(compute.take(), "float16");
    *compute = "float32".into();
    assert_eq!(found, expected);
    assert!(to.join("tokenizer.json").exists() && !to.join("optimizer.pt").exists());
    // Loaded, it is the model that quantizing on the way makes.
    let ids = &tensors("bnb_plain/expected.safetensors")["ids"];
    let on_the_way = LoadOptions { double_quant: false, ..NF4 };
    let model = |dir: &Path, o: &LoadOptions| load(dir, o, &mut |_, _| ()).unwrap();
    let found = logits(&model(&to, &NF4), ids);
    assert!(same_bits(&found, &logits(&model(&source, &on_the_way), ids)));
}

#[test]
fn a_folder_with_something_in_it_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine"), "keep").unwrap();
    let tried = quantize(&path("llama_gqa"), dir.path(), &USUAL, &mut |_, _| ());
    refused(tried.map(drop), &["not empty"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // An empty one will do.
    let empty = tempfile::tempdir().unwrap();
    quantize(&path("llama_gqa"), empty.path(), &USUAL, &mut |_, _| ()).unwrap();
    assert!(empty.path().join("model.safetensors").exists());
}

/// Every size through files and back, where blocks straddle rows, an odd count leaves
/// half a byte over, and whole blocks are zeros.
#[test]
fn every_block_size_and_odd_shapes_come_back_from_files() {
    let dir = tempfile::tempdir().unwrap();
    for (i, blocksize) in BLOCKSIZES.into_iter().enumerate() {
        for (shape, dtype) in [
            ([33, 17], Kind::Float),
            ([5, 1021], Kind::BFloat16),
            ([128, 64], Kind::Half),
        ] {
            let mut w = wave(&shape, Kind::Float) * 0.1;
            let zeros = w.flatten(0, -1).narrow(0, 0, 2 * 64);
            drop(zeros.shallow_clone().zero_());
            w = w.to_kind(dtype);
            for double in [false, true] {
                let matrix = Nf4Tensor::quantize(&w, blocksize, double).unwrap();
                let stored = bnb::Stored { matrix, dtype, storage: Kind::Uint8 };
                let to = dir.path().join(format!("{i}{}{double}", shape[0]));
                fs::create_dir(&to).unwrap();
                let mut writer = Writer::new(&to, 1 << 20, ["w"].into_iter());
                for (suffix, t) in stored.parts().unwrap() {
                    writer.push(&format!("w{suffix}"), &t).unwrap();
                }
                writer.finish().unwrap();
                let files = read_safetensors(&to.join("model.safetensors")).unwrap();
                let part =
                    &mut |suffix: &str| Ok(files[&format!("w{suffix}")].copy());
                let back = bnb::Stored::read(part).unwrap();
                assert_eq!((back.dtype, back.storage), (dtype, Kind::Uint8));
                assert_eq!(back.matrix.blocksize(), blocksize);
                let weights = |q: &Nf4Tensor| q.dequantize(Kind::Float);
                assert!(same_bits(&weights(&back.matrix), &weights(&stored.matrix)));
                for ((name, a), (_, b)) in
                    back.parts().unwrap().iter().zip(stored.parts().unwrap())
                {
                    assert!(same_bits(a, &b), "{name} of {shape:?} by {blocksize}");
                }
            }
        }
    }
}

#[test]
fn codes_stored_as_floats_are_the_same_bytes() {
    let matrix = || Nf4Tensor::quantize(&wave(&[16, 64], Kind::Float), 64, true);
    for storage in [Kind::BFloat16, Kind::Half, Kind::Float] {
        let matrix = matrix().unwrap();
        let stored = bnb::Stored { matrix, dtype: Kind::Half, storage };
        let parts = stored.parts().unwrap();
        let width = storage.elt_size_in_bytes() as i64;
        assert_eq!(parts[0].1.size(), [512 / width, 1]);
        let part = &mut |suffix: &str| {
            let found = parts.iter().find(|(name, _)| *name == suffix);
            Ok(found.expect(suffix).1.copy())
        };
        let back = bnb::Stored::read(part).unwrap();
        assert_eq!(back.storage, storage);
        assert!(same_bits(back.matrix.packed(), stored.matrix.packed()));
    }
    let matrix = matrix().unwrap();
    let odd = bnb::Stored { matrix, dtype: Kind::Int, storage: Kind::Uint8 };
    refused(odd.parts().map(drop), &["Int"]);
}

/// Every tensor begins at a multiple of its element's size: readers map them.
#[test]
fn what_is_written_piece_by_piece_is_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d", "e"];
    let mut writer = Writer::new(dir.path(), 1 << 20, names.into_iter());
    let kinds = [Kind::Uint8, Kind::Float, Kind::Half, Kind::Double, Kind::Float];
    let tensors: Vec<Tensor> = kinds
        .iter()
        .map(|k| (wave(&[7, 3], Kind::Float) * 50.).to_kind(*k))
        .collect();
    for (name, t) in names.iter().zip(&tensors) {
        writer.push(name, t).unwrap();
    }
    writer.finish().unwrap();
    let path = dir.path().join("model.safetensors");
    let back = read_safetensors(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    assert_eq!((8 + n) % 8, 0);
    for (name, t) in names.iter().zip(&tensors) {
        assert!(same_bits(&back[*name], t), "{name}");
        let start = header[*name]["data_offsets"][0].as_u64().unwrap() as usize;
        assert_eq!(start % t.kind().elt_size_in_bytes(), 0, "{name}");
    }
    let empty = tempfile::tempdir().unwrap();
    let none = Writer::new(empty.path(), 1, [].into_iter());
    refused(none.finish(), &["no tensors"]);
}
