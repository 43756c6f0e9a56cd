//! Every kernel through the real compiler, NVRTC, which needs no card; what it makes of
//! them; and the cache of what it makes.
use crate::common::{refused, skipped};
use downhill::cuda::{Compiled, SOURCES, Source, compile, kept};
use std::collections::BTreeMap;
use std::fs;

/// Compiles all sources, or says that there is no compiler here.
fn all(architecture: &str, options: &[&str]) -> Option<Vec<(Source, Compiled)>> {
    let one = |source| match compile(source, architecture, options) {
        Ok(compiled) => Some((source, compiled)),
        Err(e) if e.to_string().contains("no NVRTC") => {
            skipped("nvrtc", &e.to_string());
            None
        }
        Err(e) => panic!("{e}"),
    };
    SOURCES.into_iter().map(one).collect()
}

/// The bodies of the kernels in PTX, by name.
fn bodies(ptx: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(ptx).into_owned();
    let entries = text.split(".entry ").skip(1);
    let name =
        |body: &str| body.split(['(', '\n']).next().unwrap().trim().to_string();
    entries.map(|body| (name(body), body.to_string())).collect()
}

#[test]
fn for_each_kind_of_card_without_a_warning() {
    // Turing, Ampere, Hopper, both Blackwells; and as text.
    let machines = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"];
    let texts = ["compute_90"];
    for architecture in machines.into_iter().chain(texts) {
        let Some(found) = all(architecture, &[]) else { return };
        for (source, compiled) in found {
            let name = source.name;
            assert!(compiled.log.is_empty(), "{name}: {}", compiled.log);
            let start = &compiled.code[..4];
            match architecture.starts_with("sm_") {
                true => assert_eq!(start, b"\x7fELF", "{name}: a cubin"),
                false => assert!(!bodies(&compiled.code).is_empty(), "{name}"),
            }
        }
    }
}

/// A kernel that spills registers to memory, or needs more of them than a block's share
/// of 65,536, would run slowly or not at all.
#[test]
fn registers_suffice_on_hopper() {
    let Some(found) = all("sm_90", &["--ptxas-options=-v"]) else { return };
    for (source, compiled) in found {
        let mut kernel = "";
        let mut seen = 0;
        for line in compiled.log.lines() {
            if let Some((_, rest)) = line.split_once("entry function '") {
                kernel = rest.split('\'').next().unwrap();
            }
            if line.contains("spill stores") {
                assert!(line.contains(" 0 bytes spill stores"), "{kernel}: {line}");
                assert!(line.contains(" 0 bytes stack"), "{kernel}: {line}");
            }
            if let Some((_, rest)) = line.split_once(": Used ") {
                let registers: u32 =
                    rest.split(' ').next().unwrap().parse().unwrap();
                let block = if kernel.contains("quantize_") { 512 } else { 256 };
                assert!(registers * block <= 65_536, "{kernel}: {line}");
                // Bound by memory: eight blocks of 256 threads shall fit.
                if kernel.starts_with("nf4_dequantize") {
                    assert!(registers <= 32, "{kernel}: {line}");
                }
                seen += 1;
            }
        }
        assert!(seen > 0, "{}: {}", source.name, compiled.log);
    }
}

/// What keeps the 4-bit kernels bit for bit, and fast.
#[test]
fn the_4_bit_kernels_round_twice_and_write_16_bytes() {
    let Some(found) = all("compute_90", &[]) else { return };
    let (_, nf4) = found.iter().find(|(s, _)| s.name == "nf4").expect("nf4.cu");
    let bodies = bodies(&nf4.code);
    for kind in ["f32", "bf16", "f16"] {
        let body = &bodies[&format!("nf4_dequantize_{kind}")];
        assert!(!body.contains("fma.rn.f32"), "{kind}: a fused operation");
        assert_eq!(body.matches("st.global.v4").count(), 4, "{kind}");
        for room in [1, 2, 4, 8] {
            let wide = |l: &&str| l.contains("ld.global") && l.contains("v4");
            for name in ["matvec", "swiglu"] {
                let name = format!("nf4_{name}{room}_{kind}");
                let Some(body) = bodies.get(&name) else {
                    assert_eq!(kind, "f16", "no {name}");
                    continue;
                };
                assert!(body.lines().filter(wide).count() >= 5, "{name}");
            }
        }
    }
    for kind in ["f32", "bf16"] {
        let body = &bodies[&format!("nf4_quantize_{kind}")];
        assert!(!body.contains("fma.rn.f32"), "{kind}: a fused operation");
        assert!(!body.contains(".approx"), "{kind}: an approximate reciprocal");
        let wide = |l: &str| l.contains("ld.global") && l.contains("v4");
        assert!(body.lines().any(wide), "{kind}: not 16 bytes at a time");
    }
}

#[test]
fn errors_carry_the_compilers_words() {
    if all("compute_90", &[]).is_none() {
        return;
    }
    let broken = Source { name: "broken", parts: &["int f() { return nothing; }"] };
    refused(compile(broken, "sm_90", &[]), &["broken.cu", "sm_90", "nothing"]);
    let found = compile(SOURCES[0], "sm_12", &[]);
    refused(found, &[SOURCES[0].name, "sm_12"]);
}

#[test]
fn the_cache_keeps_what_is_whole_and_current() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("not/there/yet");
    let make = |code: &'static [u8], parts: &[&str]| {
        let mut made = false;
        let found = kept(Some(&folder), "nf4-sm_90", parts, || {
            made = true;
            Ok::<_, String>(code.to_vec())
        });
        (found.unwrap(), made)
    };
    assert_eq!(make(b"one", &["text", "sm_90"]), (b"one".to_vec(), true));
    assert_eq!(make(b"two", &["text", "sm_90"]), (b"one".to_vec(), false), "kept");
    assert_eq!(
        make(b"two", &["text", "sm_80"]),
        (b"two".to_vec(), true),
        "other parts"
    );
    assert_eq!(make(b"three", &["texts", "m_90"]), (b"three".to_vec(), true));
    let files: Vec<_> = fs::read_dir(&folder).unwrap().collect();
    assert_eq!(files.len(), 3, "and nothing half-written");
    // Damaged in every way a disk has: cut short, changed, emptied.
    for damage in [&b"short"[..], b"0123456789abcdefone", b""] {
        for file in &files {
            fs::write(file.as_ref().unwrap().path(), damage).unwrap();
        }
        assert_eq!(make(b"new", &["text", "sm_90"]), (b"new".to_vec(), true));
        assert_eq!(make(b"two", &["text", "sm_90"]), (b"new".to_vec(), false));
    }
    // A failure is no entry; a folder that cannot be is no failure.
    let fails = || Err("no compiler".to_string());
    assert_eq!(kept(Some(&folder), "x", &[], fails), Err("no compiler".to_string()));
    let file = folder.join("a-file");
    fs::write(&file, "").unwrap();
    let found = kept(Some(&file), "x", &[], || Ok::<_, String>(vec![1]));
    assert_eq!(found, Ok(vec![1]));
}
