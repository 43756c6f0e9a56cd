//! `downhill doctor`: what it says is what loading then takes.
use crate::common::{self, refused};
use crate::golden::path;
use crate::parity_llama::F32;
use downhill::models::{LoadOptions, load, survey};
use std::process::Command;
use tch::Kind;

const NF4: LoadOptions = LoadOptions { quantize: true, ..F32 };

#[test]
fn planned_bytes_are_the_loaded_models() {
    for name in
        ["llama_gqa", "llama_tied", "llama_bias", "llama_sharded", "bnb_nested"]
    {
        let dir = path(name);
        let survey = survey(&dir).expect(name);
        let bytes = |o: &LoadOptions| {
            load(&dir, o, &mut |_, _| ()).expect(name).bytes() as u64
        };
        assert_eq!(survey.quantized, name.starts_with("bnb"));
        for kind in [Kind::Float, Kind::BFloat16] {
            let planned = survey.weight_bytes(Some(64), kind);
            assert_eq!(
                planned,
                bytes(&LoadOptions { kind, ..NF4 }),
                "{name} {kind:?}"
            );
            let planned = survey.weight_bytes(None, kind);
            assert_eq!(
                planned,
                bytes(&LoadOptions { kind, ..F32 }),
                "{name} {kind:?}"
            );
        }
        if name == "llama_gqa" {
            assert_eq!(survey.file_bytes, survey.parameters * 2);
        }
    }
}

#[test]
fn adapters_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = common::write_checkpoint(dir.path(), 2);
    let survey = survey(dir.path()).unwrap();
    assert_eq!((survey.family.as_str(), survey.linears.len()), ("llama", 14));
    for targets in [&["q_proj", "v_proj"][..], &["all-linear"]] {
        let config = common::lora(targets, 0.);
        let device = tch::Device::Cpu;
        let named = downhill::lora::attach(model.linears_mut(), &config, 1, device);
        let numbers: usize = named.unwrap().iter().map(|(_, t)| t.numel()).sum();
        assert_eq!(survey.adapter_parameters(4, targets), numbers as u64);
    }
    // The headers say enough to find what loading would refuse.
    let path = dir.path().join("model.safetensors");
    let all = model.named_parameters();
    let some: Vec<_> =
        all.into_iter().filter(|(n, _)| n != "model.norm.weight").collect();
    downhill::checkpoint::save_safetensors(&path, &some, &[]).unwrap();
    refused(downhill::models::survey(dir.path()), &["model.norm.weight", "missing"]);
}

#[test]
fn the_command_says_what_there_is() {
    let run = |args: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        let output = c.arg("doctor").args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (fine, text, errors) = run(&[]);
    assert!(fine, "{errors}");
    for part in
        ["device", "libtorch    2.11", "tch         0.24.0", "threads", "memory"]
    {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    if common::cuda().is_none() {
        assert!(text.contains("CPU, not CUDA: "), "{text}");
    }
    let manifest = include_str!("../../Cargo.toml");
    assert!(manifest.contains("tch = \"=0.24.0\""), "doctor says another version");
    let model = path("llama_gqa");
    let (fine, text, errors) = run(&["--model", model.to_str().unwrap()]);
    assert!(fine, "{errors}");
    println!("{text}");
    for part in
        ["family      llama", "parameters", "--load-in-4bit true", "all-linear"]
    {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let (fine, _, errors) = run(&["--model", "nowhere"]);
    assert!(!fine && errors.contains("no such folder"), "{errors}");
}
