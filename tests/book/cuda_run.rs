//! The whole loop on a GPU: the same numbers as on the CPU, the same bits again, memory
//! that runs out for real. Skipped, and counted, where there is none.
use crate::common;
use crate::late::{history, start};
use downhill::models::{LoadOptions, load, survey};
use downhill::nn::Mode;
use downhill::train::{Run, fit};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

fn losses(device: &str, flags: &[&str]) -> Vec<f64> {
    let dir = TempDir::new().unwrap();
    let usual = [
        "--max-steps",
        "20",
        "--save-strategy",
        "no",
        "--target-modules",
        "all-linear",
        "--learning-rate",
        "5e-3",
    ];
    let mut run: Run =
        start(dir.path(), device, &[&usual[..], flags].concat()).unwrap();
    assert_eq!(run.late, device != "cpu");
    fit(&mut run, &AtomicBool::new(false)).unwrap();
    history(&run).iter().map(|e| e["loss"].as_f64().unwrap()).collect()
}

#[test]
fn twenty_steps_on_cuda_have_the_cpus_losses() {
    if common::cuda().is_none() {
        return;
    }
    for (kind, tolerance) in [("f32", 1e-4), ("bf16", 0.02)] {
        for checkpointing in ["false", "true", "offload"] {
            let here = losses("cpu", &["--compute-dtype", "f32"]);
            let flags =
                ["--compute-dtype", kind, "--gradient-checkpointing", checkpointing];
            let there = losses("cuda", &flags);
            assert_eq!(there.len(), 20);
            for (step, (a, b)) in here.iter().zip(&there).enumerate() {
                let apart = (a - b).abs() / a;
                assert!(apart < tolerance, "{kind} step {}: {a} {b}", step + 1);
            }
        }
    }
}

#[test]
fn a_run_on_cuda_again_has_the_same_bits() {
    if common::cuda().is_none() {
        return;
    }
    // Rows longer than what attention's backward takes at a time: from there on libtorch
    // adds in the order of chance unless it is asked not to.
    let dir = TempDir::new().unwrap();
    let row = |i: i64| {
        let ids: Vec<i64> = (0..300).map(|t| 3 + (i * 7 + t * t) % 60).collect();
        format!("{{\"input_ids\": {ids:?}, \"labels\": {ids:?}}}\n")
    };
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, (0..80).map(row).collect::<String>()).unwrap();
    let flags = [
        "--compute-dtype",
        "bf16",
        "--lora-dropout",
        "0.1",
        "--full-determinism",
        "--train-file",
        rows.to_str().unwrap(),
    ];
    assert_eq!(losses("cuda", &flags), losses("cuda", &flags));
}

#[test]
fn memory_of_cuda_runs_out_as_an_error() {
    let Some(device) = common::cuda() else { return };
    downhill::device::quiet_when_out_of_memory();
    let memory = downhill::device::memory(device).expect("the driver tells");
    assert!(memory.free <= memory.total && memory.total > 1 << 30, "{memory:?}");
    let too_much = (memory.total * 2) as i64;
    let error = Tensor::f_zeros([too_much], (Kind::Uint8, device)).unwrap_err();
    assert!(downhill::device::is_out_of_memory(&error.to_string()), "{error}");
    let next = Tensor::ones([8], (Kind::Float, device)).sum(Kind::Float);
    assert_eq!(next.double_value(&[]), 8., "nothing works after it");
}

#[test]
fn batches_and_positions_reach_cuda_whole() {
    let Some(device) = common::cuda() else { return };
    for n in [1, 7, 4096, 1_000_003] {
        let t = Tensor::arange(n, (Kind::Int64, Device::Cpu));
        let there = downhill::autograd::upload(&t, device);
        drop(t.copy());
        assert!(there.to_device(Device::Cpu).equal(&t), "{n}");
    }
}

#[test]
fn a_model_on_cuda_is_the_model() {
    let Some(device) = common::cuda() else { return };
    let dir = Path::new(crate::train::MODEL);
    for quantize in [true, false] {
        let options = |device| LoadOptions {
            quantize,
            blocksize: 64,
            double_quant: true,
            kind: Kind::Float,
            device,
        };
        let there = load(dir, &options(device), &mut |_, _| ()).unwrap();
        let here = load(dir, &options(Device::Cpu), &mut |_, _| ()).unwrap();
        assert_eq!(there.bytes(), here.bytes());
        let planned = survey(dir).unwrap();
        let planned = planned.weight_bytes(quantize.then_some(64), Kind::Float);
        assert_eq!(there.bytes() as u64, planned);
        let ids = Tensor::arange(40, (Kind::Int64, Device::Cpu)).view([2, 20]);
        let run = |m: &downhill::models::Decoder| {
            let ids = ids.to_device(m.device());
            let hidden = m.hidden(&ids, Mode::Eval, None).unwrap();
            m.logits(&hidden).unwrap().to_device(Device::Cpu)
        };
        let (a, b) = (run(&here), run(&there));
        let apart = (&a - b).abs().max().double_value(&[]);
        assert!(apart < 1e-3 * a.abs().max().double_value(&[]), "{apart}");
    }
}
