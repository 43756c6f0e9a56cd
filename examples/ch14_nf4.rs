//! Chapter 14, NF4: `cargo run --example ch14_nf4`.
//! A block of weights in four bits by hand, the same by the library, and what it costs.
use anyhow::Result;
use downhill::nn::Weight;
use downhill::plot::Chart;
use downhill::quant::Nf4Tensor;
use downhill_lab::Shipped;
use downhill_lab::codes::normal_float;
use tch::{Kind, Tensor};

/// Size of the error as a share of the size of the weights.
fn error(w: &Tensor, back: &Tensor) -> f64 {
    ((w - back).norm() / w.norm()).double_value(&[])
}

/// Rounds the weights to sixteen levels, block by block: a scale per block, its largest
/// weight, and for each weight the nearest level.
fn round(w: &Tensor, levels: &[f64], block: i64) -> Tensor {
    let levels = Tensor::from_slice(levels).to_kind(Kind::Float);
    let blocks = w.reshape([-1, block]);
    let scale = blocks.abs().amax([1], true); // [blocks, 1]
    let scaled = (&blocks / &scale).unsqueeze(-1);
    let code = (scaled - &levels).abs().argmin(-1, false); // 0 to 15
    let nearest = levels.index_select(0, &code.flatten(0, -1));
    (nearest.view_as(&blocks) * scale).view_as(w)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");

    // # From quantiles to sixteen levels
    // Weights are nearly normal, so put the levels at the quantiles of a normal
    // distribution: eight steps on one side, seven on the other, and a zero.
    let delta = 1. - 0.5 * (1. / 32. + 1. / 30.);
    let nf4 = normal_float(delta);
    println!("NF4  {nf4:.3?}");
    let mut int4 = vec![];
    for k in -7..=7 {
        int4.push(f64::from(k) / 7.);
    }
    println!("int4 {int4:.3?}");

    // # The equation
    // One matrix of the checkpoint that ships, by hand and by the library, which packs two
    // codes into a byte.
    let mut shipped = Shipped::load()?;
    let weights = shipped.weights();
    let (name, w) = &weights[0];
    let by_hand = round(w, &nf4, 64);
    let packed = Nf4Tensor::quantize(w, 64, false)?;
    let back = packed.dequantize(Kind::Float);
    println!(
        "{name}: error {:.4} by hand, {:.4} packed",
        error(w, &by_hand),
        error(w, &back)
    );
    let same = by_hand.isclose(&back, 1e-5, 1e-7, false).to_kind(Kind::Double);
    println!("weights that agree: {:.4}", same.mean(Kind::Double).double_value(&[]));
    let zeros = round(&w.zeros_like(), &nf4, 64);
    // A block of zeros has the scale 0, and 0 / 0 is nearest to nothing: code 0.
    println!("a weight of a block of zeros: {}", zeros.double_value(&[0, 0]));

    // # Quantizing the scales
    // An f32 for 64 weights is half a bit per weight. The scales in 8 bits are an eighth,
    // and a table of their 256 values, which so small a matrix feels.
    for double in [false, true] {
        let q = Nf4Tensor::quantize(w, 64, double)?;
        let bits = 8. * q.bytes() as f64 / w.numel() as f64;
        let off = error(w, &q.dequantize(Kind::Float));
        println!("double quantization {double:5}: {bits:.2} bits, error {off:.4}");
    }

    // # The error, by block
    // All linear layers together. A longer block has a larger largest weight, and the
    // same sixteen places cover a wider range; even places suffer most.
    let some = if quick { 4 } else { weights.len() };
    let mut flat = vec![];
    for (_, w) in &weights[..some] {
        flat.push(w.flatten(0, -1));
    }
    let flat = Tensor::cat(&flat, 0);
    let mut chart = Chart::new("All linear layers", "weights in a block", "error");
    for (name, levels) in [("NF4", &nf4), ("int4", &int4)] {
        let mut line = vec![];
        for block in [32, 64, 256, 1024] {
            let off = error(&flat, &round(&flat, levels, block));
            println!("{name:4} blocks of {block:4}: error {off:.4}");
            line.push((block as f64, off));
        }
        chart = chart.line(name, line);
    }

    // # What it does to the loss
    // The loss on pages that were kept from the model, before and after all its linear
    // layers are in four bits, and how far its predictions have moved.
    let [before, _] = shipped.judge()?;
    for (_, linear) in shipped.model.linears_mut() {
        if let Weight::Dense(w) = &linear.weight {
            linear.weight = Weight::Nf4(Nf4Tensor::quantize(w, 64, true)?);
        }
    }
    let [after, moved] = shipped.judge()?;
    println!("loss {before:.3} in f32, {after:.3} in four bits");
    println!("predictions moved by {moved:.4} nats");

    // # What goes wrong
    // One weight that is too large sets the scale for all others of its block.
    let normal = Tensor::randn([64], (Kind::Float, w.device()));
    for size in [3., 30.] {
        let block = normal.copy();
        let _ = block.get(0).fill_(size);
        let others = round(&block, &nf4, 64).narrow(0, 1, 63);
        let off = error(&block.narrow(0, 1, 63), &others);
        println!("a weight of {size:2} sigma: error of the others {off:.2}");
    }

    let figure = chart.log_x().y_range(0., 0.2).draw()?;
    figure.save("target/figures/ch14_nf4.svg")?;
    println!("figure: target/figures/ch14_nf4.svg");
    Ok(())
}
