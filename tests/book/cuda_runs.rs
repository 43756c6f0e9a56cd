//! Whole runs with the CUDA kernels: the losses are those without them.
use crate::common::cuda;
use crate::cuda_host::{EMULATOR, have_run};
use downhill::cuda::emulated;
use downhill::data::{Batch, Dataset, Tokenizer};
use downhill::lora::{LoraConfig, Modules, attach};
use downhill::models::{LoadOptions, load};
use downhill::nn::Mode;
use downhill::optim::{AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::train::batch_loss;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// So many steps of the small checkpoint that ships, in 4 bits, with adapters on all its
/// linear layers: the loss of each step, and the adapters after the last.
fn train(
    device: Device,
    kind: Kind,
    checkpointing: bool,
    steps: usize,
) -> (Vec<f64>, Vec<Tensor>) {
    let data: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "examples/data"].iter().collect();
    let options = LoadOptions {
        quantize: true,
        blocksize: 64,
        double_quant: true,
        kind,
        device,
    };
    let mut model =
        load(&data.join("tiny"), &options, &mut |_, _| ()).expect("a checkpoint");
    model.checkpointing = checkpointing;
    let target_modules = Modules::AllLinear;
    let config =
        LoraConfig { r: 8, dropout: 0.1, target_modules, ..Default::default() };
    let named = attach(model.linears_mut(), &config, 1, device).expect("adapters");
    let kept: Vec<_> = named.iter().map(|(_, t)| t.shallow_clone()).collect();
    let mut optimizer =
        Driver::new(AdamW::default(), Param::with_decay(named, |_, _| 0.01));
    let tokenizer = Tokenizer::from_dir(data.join("tiny")).expect("a tokenizer");
    let (rows, vocabulary) =
        (data.join("dates_train.jsonl"), model.config.vocab_size);
    let rows = Dataset::load(rows, Some(&tokenizer), 64, vocabulary).expect("rows");
    let rows: Vec<_> = rows.examples.iter().collect();
    let losses = rows.chunks(2).take(steps).enumerate().map(|(step, rows)| {
        let batch = Batch::collate(rows).to(device);
        let mode = Mode::Train { seed: 3, step: step as u64 };
        optimizer.zero_grad();
        let loss = batch_loss(&model, &batch, mode).expect("a loss");
        let loss = loss / batch.supervised() as f64;
        loss.backward();
        clip_grad_norm(optimizer.params(), 1.);
        optimizer.step(1e-3);
        loss.double_value(&[])
    });
    (
        losses.collect(),
        kept.iter().map(|t| t.detach().to_device(Device::Cpu)).collect(),
    )
}

#[track_caller]
fn same_losses(found: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    // It learns: the same numbers would mean little if nothing happened.
    assert!(expected[expected.len() - 1] < 0.9 * expected[0], "{expected:?}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let away = (found - expected).abs() / expected;
        assert!(away < bound, "step {step}: {found}, not {expected}: {away:.1e}");
    }
}

#[test]
fn twenty_steps_by_the_kernels_are_twenty_steps() {
    let f32 = |again| train(Device::Cpu, Kind::Float, again, 20);
    let expected = f32(false).0;
    let found = emulated(&EMULATOR, || f32(false).0);
    same_losses(&found, &expected, 1e-5);
    // All of them were on the way: none fell back.
    let run = have_run();
    for kernel in
        ["adam", "cross_entropy", "dropout_f32", "rms_norm", "rope", "swiglu"]
    {
        assert!(run.iter().any(|k| k.starts_with(kernel)), "{kernel} has not run");
    }
    for kernel in ["rms_norm_backward_f32", "swiglu_backward_f32"] {
        assert!(run.contains(kernel), "{kernel} has not run");
    }
    let bf16 = || train(Device::Cpu, Kind::BFloat16, false, 3).0;
    for (found, expected) in emulated(&EMULATOR, bf16).iter().zip(&expected) {
        let away = (found - expected).abs() / expected;
        assert!(away < 0.02, "{found}, not {expected}: {away:.1e}");
    }
    assert!(have_run().contains("dropout_bf16"));
}

/// Recomputed layers draw the same masks and round alike.
#[test]
fn checkpointing_changes_no_bit_of_the_kernels() {
    let run =
        |again| emulated(&EMULATOR, || train(Device::Cpu, Kind::Float, again, 3));
    assert_eq!(run(true).0, run(false).0);
}

#[test]
fn on_cuda_twenty_steps_are_the_cpus() {
    let Some(device) = cuda() else { return };
    let expected = train(Device::Cpu, Kind::Float, false, 20).0;
    for again in [false, true] {
        let f32 = train(device, Kind::Float, again, 20).0;
        same_losses(&f32, &expected, 1e-4);
        let bf16 = train(device, Kind::BFloat16, again, 20).0;
        same_losses(&bf16, &expected, 0.02);
    }
}

/// Nothing of ours adds in the order of chance, and one stream keeps the order of all
/// else: the same bits again.
#[test]
fn on_cuda_a_run_repeats_bit_for_bit() {
    let Some(device) = cuda() else { return };
    for kind in [Kind::Float, Kind::BFloat16] {
        let run = || train(device, kind, true, 10);
        let (once, again) = (run(), run());
        assert_eq!(once.0, again.0, "{kind:?}");
        for (once, again) in once.1.iter().zip(&again.1) {
            assert!(crate::golden::same_bits(once, again), "{kind:?}");
        }
    }
}
