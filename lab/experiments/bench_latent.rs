//! What one new token costs latent attention after a text of so many tokens: one layer
//! of DeepSeek-V2-Lite's shape in 4 bits, on a CPU. `absorbed`: the token by itself.
//! `expanded`: two tokens at once, which make keys and values of all latents as one
//! would without absorption (the second adds little). Prints the median of each in
//! milliseconds, and the ratio.
use downhill::nn::{
    Attention, Dropping, LayerCache, Linear, Mla, Mode, Query, RmsNorm, Rope,
    RopeScaling, Rows, Weight,
};
use downhill::quant::Nf4Tensor;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const HIDDEN: i64 = 2048;
const RANK: i64 = 512;
const ROPE: i64 = 64;

fn linear(out: i64, input: i64) -> downhill::Result<Linear> {
    let w = Tensor::randn([out, input], CPU) * 0.02;
    let weight = Weight::Nf4(Nf4Tensor::quantize(&w, 64, true)?);
    Ok(Linear { weight, bias: None, lora: None })
}

fn layer() -> downhill::Result<Attention> {
    let (heads, nope, value) = (16, 128, 128);
    Ok(Attention::Mla(Mla {
        q: Query::Direct(linear(heads * (nope + ROPE), HIDDEN)?),
        kv_a: linear(RANK + ROPE, HIDDEN)?,
        kv_norm: RmsNorm { weight: Tensor::ones([RANK], CPU), eps: 1e-6 },
        kv_b: linear(heads * (nope + value), RANK)?,
        o: linear(HIDDEN, heads * value)?,
        heads,
        rope_dim: ROPE,
        nope_dim: nope,
        interleaved: true,
        scale: 1. / ((nope + ROPE) as f64).sqrt(),
        dropping: Dropping { p: 0., place: 0 },
    }))
}

/// Milliseconds that `count` tokens take after the `seen` ones of the cache.
fn step(
    layer: &Attention,
    cache: &mut LayerCache,
    seen: i64,
    count: i64,
) -> downhill::Result<f64> {
    let rope = Rope { theta: 1e4, scaling: RopeScaling::Default };
    let rows = Rows::new(&[count], Device::Cpu);
    let positions = rows.positions(seen);
    let rotation = rope.rotation(&positions, ROPE, Kind::Float, Device::Cpu);
    let x = Tensor::randn([count, HIDDEN], CPU);
    let began = Instant::now();
    let _ = layer.forward(&x, &rows, &rotation, Some(cache), Mode::Eval)?;
    Ok(1e3 * began.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> anyhow::Result<()> {
    tch::manual_seed(0);
    let _no_grad = tch::no_grad_guard();
    let layer = layer()?;
    println!("  tokens  expanded  absorbed  ratio");
    for text in [256, 1024, 4096] {
        let (mut cache, mut seen) = (LayerCache::default(), text);
        step(&layer, &mut cache, 0, text)?;
        let mut times = [vec![], vec![]];
        for _ in 0..7 {
            for (count, times) in [2, 1].into_iter().zip(&mut times) {
                times.push(step(&layer, &mut cache, seen, count)?);
                seen += count;
            }
        }
        let [expanded, absorbed] = times.map(median);
        let ratio = expanded / absorbed;
        println!("{text:8} {expanded:9.2} {absorbed:9.2} {ratio:6.1}");
    }
    Ok(())
}
