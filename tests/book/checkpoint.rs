//! Checkpoints on disk: written and read again, sharded, and every damaged one refused
//! by name. (`malformed` has many more broken files, through the command.)
use crate::common::{refused, safetensors, wave};
use crate::golden::same_bits;
use downhill::checkpoint::{Checkpoint, atomic, read_safetensors, save_safetensors};
use serde_json::json;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// What lies in a folder, sorted.
fn listing(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn named(list: &[(&str, Tensor)]) -> Vec<(String, Tensor)> {
    list.iter().map(|(n, t)| (n.to_string(), t.shallow_clone())).collect()
}

#[test]
fn every_kind_comes_back_to_the_bit() {
    let dir = folder();
    let kinds = [
        Kind::Double,
        Kind::Float,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    let all: Vec<_> = kinds
        .iter()
        .map(|&k| (format!("{k:?}"), (wave(&[3, 5], Kind::Float) * 100.).to_kind(k)))
        .collect();
    let path = dir.path().join("all.safetensors");
    save_safetensors(&path, &all, &[("format", "pt")]).unwrap();
    let back = read_safetensors(&path).unwrap();
    assert_eq!(back.len(), kinds.len());
    for (name, t) in &all {
        assert!(same_bits(&back[name], t), "{name}");
    }
    // NaN payloads, infinities, denormals, -0.
    let strange = [0x7fc0_1234, 0xff80_0000, 1, 0x8000_0000u32].map(f32::from_bits);
    let all = named(&[
        ("strange", Tensor::from_slice(&strange)),
        ("scalar", Tensor::from(2.5f32)),
        ("empty", Tensor::zeros([0, 3], (Kind::Float, tch::Device::Cpu))),
        ("turned", wave(&[4, 6], Kind::Float).tr()),
        ("narrowed", wave(&[9], Kind::Float).narrow(0, 2, 5)),
    ]);
    save_safetensors(&path, &all, &[]).unwrap();
    let back = read_safetensors(&path).unwrap();
    for (name, t) in &all {
        assert!(same_bits(&back[name], t), "{name}");
    }
    let complex = wave(&[2], Kind::Float).to_kind(Kind::ComplexFloat);
    let failed = save_safetensors(&path, &named(&[("z", complex)]), &[]);
    refused(failed, &["tensor `z`", "ComplexFloat"]);
    assert_eq!(read_safetensors(&path).unwrap().len(), 5, "the old file is gone");
}

#[test]
fn the_metadata_is_what_transformers_expects() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let all = named(&[("x", wave(&[2], Kind::Float))]);
    save_safetensors(&path, &all, &[("format", "pt")]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    assert_eq!(header["__metadata__"], json!({"format": "pt"}));
    assert_eq!(header["x"]["dtype"], "F32");
    assert_eq!(header["x"]["data_offsets"], json!([0, 8]));
}

/// Two shards and their index.
fn shards(dir: &Path) -> Vec<(String, Tensor)> {
    let all = named(&[
        ("a", wave(&[2, 3], Kind::Float)),
        ("b", wave(&[4], Kind::Half)),
        ("c", wave(&[5], Kind::BFloat16)),
    ]);
    let name = |i: usize| format!("model-{i:05}-of-00002.safetensors");
    save_safetensors(&dir.join(name(1)), &all[..1], &[]).unwrap();
    save_safetensors(&dir.join(name(2)), &all[1..], &[]).unwrap();
    write_index(dir, &[("a", &name(1)), ("b", &name(2)), ("c", &name(2))]);
    all
}

fn write_index(dir: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> =
        map.iter().map(|(t, f)| (t.to_string(), json!(f))).collect();
    let index = json!({"metadata": {"total_size": 42}, "weight_map": map});
    let path = dir.join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
}

const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn shards_are_one_checkpoint() {
    let dir = folder();
    let all = shards(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.dir(), dir.path());
    for (name, t) in &all {
        assert!(checkpoint.contains(name));
        assert_eq!(checkpoint.shape(name).unwrap(), t.size());
        assert!(same_bits(&checkpoint.tensor(name).unwrap(), t), "{name}");
    }
    assert!(checkpoint.file_of("a").ends_with(ONE));
    assert!(checkpoint.file_of("c").ends_with(TWO));
    assert_eq!(checkpoint.file_of("none"), dir.path());
    refused(checkpoint.tensor("none"), &["tensor `none`", "missing"]);
    refused(checkpoint.shape("none"), &["tensor `none`", "missing"]);
}

/// Download caches keep blobs elsewhere and link to them.
#[cfg(unix)]
#[test]
fn links_to_files_elsewhere_are_followed() {
    let (blobs, dir) = (folder(), folder());
    let all = shards(blobs.path());
    for name in listing(blobs.path()) {
        let blob = blobs.path().join(&name);
        std::os::unix::fs::symlink(blob, dir.path().join(&name)).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(same_bits(&checkpoint.tensor("b").unwrap(), &all[1].1));
    // One that leads nowhere is a missing shard.
    fs::remove_file(blobs.path().join(TWO)).unwrap();
    refused(Checkpoint::open(dir.path()).map(drop), &[INDEX, TWO, "absent"]);
}

#[test]
fn what_is_no_checkpoint_is_said() {
    let dir = folder();
    let open = |dir: &Path| Checkpoint::open(dir).map(drop);
    refused(open(&dir.path().join("nowhere")), &["nowhere", "no such folder"]);
    refused(open(dir.path()), &["model.safetensors", INDEX]);
    fs::write(dir.path().join("pytorch_model.bin"), b"pickle").unwrap();
    refused(
        open(dir.path()),
        &["pytorch_model.bin", "executes", "convert", "save_pretrained"],
    );
    let file = dir.path().join("pytorch_model.bin");
    refused(open(&file), &["pytorch_model.bin", "folder"]);
}

#[test]
fn a_wrong_index_is_refused() {
    let dir = folder();
    let open = || Checkpoint::open(dir.path()).map(drop);
    shards(dir.path());
    fs::remove_file(dir.path().join(TWO)).unwrap();
    refused(open(), &[INDEX, TWO, "absent"]);

    for bad in [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "./a/../../x",
    ] {
        write_index(dir.path(), &[("a", bad)]);
        let quoted = format!("`{bad}`");
        refused(open(), &[INDEX, &quoted, "plain file name"]);
    }

    shards(dir.path());
    write_index(dir.path(), &[("a", ONE), ("b", TWO), ("c", ONE)]);
    refused(open(), &["tensor `c`", ONE, "lacks"]);
    write_index(dir.path(), &[("a", ONE), ("b", TWO)]);
    refused(open(), &["tensor `c`", TWO, INDEX]);
    for text in ["", "{", "[]", "{}", r#"{"weight_map": 7}"#, "\u{feff}{}"] {
        fs::write(dir.path().join(INDEX), text).unwrap();
        refused(open(), &[INDEX, "weight_map"]);
    }
    fs::write(dir.path().join(INDEX), [0xff, 0xfe, 0]).unwrap();
    refused(open(), &[INDEX]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_is_cut() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let all = named(&[("a", wave(&[16], Kind::Float))]);
    save_safetensors(&path, &all, &[]).unwrap();
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    // Every length there is: the head, the header's length, the header, the body.
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        refused(Checkpoint::open(dir.path()).map(drop), &["model.safetensors"]);
        refused(read_safetensors(&path).map(drop), &["model.safetensors"]);
    }
    for cut in [0, 4, 8, 8 + header / 2, 8 + header, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        refused(read_safetensors(&path).map(drop), &["fetch it again"]);
    }
    fs::write(&path, &whole).unwrap();
    assert!(same_bits(&read_safetensors(&path).unwrap()["a"], &all[0].1));
}

#[test]
fn a_kind_that_libtorch_lacks_is_refused_by_name() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    for dtype in ["F8_E8M0", "F8_E5M2", "U16"] {
        let size = if dtype == "U16" { 4 } else { 2 };
        let header = format!(
            r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{size}]}}}}"#
        );
        fs::write(&path, safetensors(&header, &[0; 4][..size])).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        refused(checkpoint.tensor("w"), &["tensor `w`", dtype]);
    }
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let dir = folder();
    let path = dir.path().join("state.bin");
    atomic::bytes(&path, b"old").unwrap();
    let failed = atomic::file(&path, |partial| {
        assert_eq!(partial.parent(), path.parent(), "beside, so that rename works");
        fs::write(partial, b"half").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old", "untouched until the end");
        Err(downhill::Error::setting("disk", "full"))
    });
    refused(failed, &["disk"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(dir.path()), ["state.bin"]);
    atomic::bytes(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(dir.path()), ["state.bin"]);

    let nowhere = dir.path().join("no/such/folder/x");
    refused(atomic::bytes(&nowhere, b"x"), &["no/such/folder/x"]);
    let all = named(&[("x", wave(&[2], Kind::Float))]);
    refused(save_safetensors(&nowhere, &all, &[]), &["no/such/folder/x"]);
}

#[test]
fn a_failed_folder_leaves_the_old_folder() {
    let dir = folder();
    let path = dir.path().join("checkpoint-4");
    let put = |text: &'static str| {
        atomic::dir(&path, |d| {
            fs::write(d.join("a"), text).unwrap();
            Ok(())
        })
    };
    put("old").unwrap();
    let failed = atomic::dir(&path, |d| {
        fs::write(d.join("a"), "half").unwrap();
        Err(downhill::Error::setting("disk", "full"))
    });
    refused(failed, &["disk"]);
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "old");
    put("new").unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "new");
    assert_eq!(listing(dir.path()), ["checkpoint-4"]);
}

#[test]
fn sweeping_removes_what_the_dead_left_and_nothing_else() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    // No process can have this number: it is above the kernel's limit.
    let dead = 4_194_305;
    fs::write(at(&format!(".model.safetensors.partial-{dead}")), b"x").unwrap();
    fs::create_dir(at(&format!(".checkpoint-2.partial-{dead}"))).unwrap();
    let kept = [
        format!(".a.partial-{}", std::process::id()), // ours: alive
        format!("a.partial-{dead}"),                  // no dot: not ours
        ".a.partial-x1".into(),
        "model.safetensors".into(),
    ];
    for name in &kept {
        fs::write(at(name), b"x").unwrap();
    }
    atomic::sweep(dir.path());
    let mut expected = kept.to_vec();
    expected.sort();
    assert_eq!(listing(dir.path()), expected);
    atomic::sweep(&at("no such folder"));
}
