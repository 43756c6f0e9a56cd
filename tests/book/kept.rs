//! The 4-bit form that is kept on disk: the same model, noticed when it is damaged or
//! of other files, made again.
use crate::common::write_checkpoint;
use crate::golden::same_bits;
use crate::parity_llama::{F32, logits};
use downhill::models::{Decoder, LoadOptions, load, load_cached};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};
use tempfile::TempDir;

const NF4: LoadOptions = LoadOptions { quantize: true, ..F32 };

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        write_checkpoint(&dir.path().join("model"), 5);
        Self(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn start(&self, options: &LoadOptions) -> (Decoder, String) {
        let mut said = String::new();
        let say = &mut |line: &str| said += &format!("{line}\n");
        let cache = self.at("cache");
        let (dir, progress) = (self.at("model"), &mut |_, _| ());
        let model = load_cached(&dir, Some(&cache), options, say, progress).unwrap();
        (model, said)
    }

    /// The folders that are kept.
    fn kept(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.at("cache")).into_iter().flatten().flatten();
        all.map(|e| e.path()).collect()
    }
}

fn score(model: &Decoder) -> Tensor {
    logits(model, &crate::common::ids(2, 9))
}

fn made(said: &str) -> bool {
    assert!(
        said.contains("kept for the next start") != said.contains("of an earlier")
    );
    said.contains("kept for the next start")
}

#[test]
fn the_second_start_is_the_same_model() {
    let b = Bench::new();
    let plain = score(&load(&b.at("model"), &NF4, &mut |_, _| ()).unwrap());
    let (first, said) = b.start(&NF4);
    assert!(made(&said), "{said}");
    let (second, said) = b.start(&NF4);
    assert!(!made(&said), "{said}");
    for model in [first, second] {
        assert!(same_bits(&score(&model), &plain));
    }
    // Other settings have forms of their own, and these are theirs.
    for options in [
        LoadOptions { blocksize: 128, ..NF4 },
        LoadOptions { double_quant: false, ..NF4 },
        LoadOptions { kind: Kind::BFloat16, ..NF4 },
    ] {
        let plain = score(&load(&b.at("model"), &options, &mut |_, _| ()).unwrap());
        for expected in [true, false] {
            let (model, said) = b.start(&options);
            assert_eq!(made(&said), expected);
            assert!(same_bits(&score(&model), &plain), "{options:?}");
        }
    }
    assert_eq!(b.kept().len(), 4);
    // Not quantized: nothing to keep.
    let (_, said) = b.start(&F32);
    assert_eq!((said.as_str(), b.kept().len()), ("", 4));
}

#[test]
fn a_changed_checkpoint_is_noticed() {
    let b = Bench::new();
    b.start(&NF4);
    // The same size, other weights; a clock may be coarse.
    std::thread::sleep(std::time::Duration::from_millis(20));
    write_checkpoint(&b.at("model"), 6);
    let (model, said) = b.start(&NF4);
    assert!(made(&said) && said.contains("files have changed"), "{said}");
    let plain = load(&b.at("model"), &NF4, &mut |_, _| ()).unwrap();
    assert!(same_bits(&score(&model), &score(&plain)));
    assert!(!made(&b.start(&NF4).1));
}

type Damage = fn(&Path);

#[test]
fn damage_is_noticed_and_mended() {
    fn change(path: &Path, f: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        f(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
    const WEIGHTS: &str = "model.safetensors";
    let cases: [(&str, Damage); 9] = [
        ("one bit at the end", |d| {
            change(&d.join(WEIGHTS), |b| *b.last_mut().unwrap() ^= 1);
        }),
        ("one bit inside", |d| {
            change(&d.join(WEIGHTS), |b| {
                let at = b.len() - 5000;
                b[at] ^= 64;
            });
        }),
        ("two words changed places", |d| {
            change(&d.join(WEIGHTS), |b| {
                let at = b.len() - 4096;
                let (x, y) = b.split_at_mut(at);
                x[at - 800..at - 792].swap_with_slice(&mut y[..8]);
            });
        }),
        ("cut", |d| change(&d.join(WEIGHTS), |b| b.truncate(b.len() - 100))),
        ("empty", |d| change(&d.join(WEIGHTS), Vec::clear)),
        ("no weights", |d| fs::remove_file(d.join(WEIGHTS)).unwrap()),
        ("no cache.json", |d| fs::remove_file(d.join("cache.json")).unwrap()),
        ("half of cache.json", |d| {
            change(&d.join("cache.json"), |b| b.truncate(b.len() / 2));
        }),
        ("nothing in cache.json", |d| {
            fs::write(d.join("cache.json"), "{}").unwrap()
        }),
    ];
    let b = Bench::new();
    let plain = score(&b.start(&NF4).0);
    for (name, damage) in cases {
        damage(&b.kept()[0]);
        let (model, said) = b.start(&NF4);
        assert!(made(&said) && said.contains("made again"), "{name}: {said}");
        assert!(same_bits(&score(&model), &plain), "{name}");
        assert!(!made(&b.start(&NF4).1), "{name}: not mended");
        assert_eq!(b.kept().len(), 1, "{name}: something is left over");
    }
}

#[test]
fn where_nothing_can_be_kept_the_model_is_read_all_the_same() {
    let b = Bench::new();
    fs::write(b.at("cache"), "a file, no folder").unwrap();
    let (model, said) = b.start(&NF4);
    assert!(said.contains("not kept"), "{said}");
    let plain = load(&b.at("model"), &NF4, &mut |_, _| ()).unwrap();
    assert!(same_bits(&score(&model), &score(&plain)));
    // And a checkpoint that is broken is an error, and leaves nothing.
    fs::remove_file(b.at("cache")).unwrap();
    let path = b.at("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (cache, say) = (b.at("cache"), &mut |_: &str| ());
    let failed =
        load_cached(&b.at("model"), Some(&cache), &NF4, say, &mut |_, _| ());
    crate::common::refused(failed.map(drop), &["model.safetensors", "truncated"]);
    assert!(b.kept().is_empty());
}
