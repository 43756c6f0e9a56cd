//! How fast NF4 is on this CPU, against the speed of its memory: the largest matrix of
//! a 7B model, and one that fits into the cache. Run it on an idle machine.
use anyhow::Result;
use downhill::quant::Nf4Tensor;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const LARGE: [i64; 2] = [4096, 11008];
/// One of a 135M model: its output stays in the cache.
const SMALL: [i64; 2] = [576, 1536];
const REPEATS: usize = 25;

fn main() -> Result<()> {
    tch::manual_seed(1);
    println!("{} threads, best of {REPEATS}", tch::get_num_threads());
    for (shape, kind) in [
        (LARGE, Kind::Float),
        (LARGE, Kind::BFloat16),
        (SMALL, Kind::Float),
        (SMALL, Kind::BFloat16),
    ] {
        measure(shape, kind)?;
    }
    Ok(())
}

fn measure(shape: [i64; 2], kind: Kind) -> Result<()> {
    let w = (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.02).to_kind(kind);
    let mut out = Tensor::zeros(shape, (kind, Device::Cpu));
    let bytes = (w.numel() * kind.elt_size_in_bytes()) as f64;
    println!("\n{shape:?} {kind:?}, {:.1} MB", bytes / 1e6);
    println!("{:24}{:>9}{:>12}", "", "ms", "GB/s of it");
    let time = |what: &str, f: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let mut best = f64::INFINITY;
        for _ in 0..REPEATS {
            let start = Instant::now();
            f()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{what:<24}{:9.3}{:12.1}", best * 1e3, bytes / best / 1e9);
        Ok(())
    };
    time("write (fill_)", &mut || {
        let _ = out.fill_(1.5);
        Ok(())
    })?;
    time("read and write (copy_)", &mut || {
        out.copy_(&w);
        Ok(())
    })?;
    for (double_quant, name) in [(false, ""), (true, ", double")] {
        time(&format!("quantize{name}"), &mut || {
            Nf4Tensor::quantize(&w, 64, double_quant)?;
            Ok(())
        })?;
        let q = Nf4Tensor::quantize(&w, 64, double_quant)?;
        time(&format!("dequantize into{name}"), &mut || {
            Ok(q.dequantize_into(&out)?)
        })?;
        time(&format!("dequantize{name}"), &mut || {
            drop(q.dequantize(kind));
            Ok(())
        })?;
    }
    Ok(())
}
