//! Chapter 13, a checkpoint: `cargo run --example ch13_checkpoint`.
//! A published model by its bytes, as a decoder, as text, and read slightly wrong.
use anyhow::Result;
use downhill::nn::Mode;
use downhill::plot::Bars;
use downhill_lab::published::{COMPARED, shape_of};
use downhill_lab::small::{Small, mean_loss};
use downhill_lab::writing::beam;
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

fn main() -> Result<()> {
    let quick = std::env::args().any(|a| a == "--quick");
    let tiny = Small::load("tiny", Kind::Float)?;

    // # A folder, by its bytes
    // Eight bytes say how long a JSON text is, the text names each tensor and where its
    // numbers lie, and then come the numbers.
    let bytes = std::fs::read(tiny.folder.join("model.safetensors"))?;
    let mut length = [0; 8];
    length.copy_from_slice(&bytes[..8]);
    let length = u64::from_le_bytes(length) as usize;
    let header = String::from_utf8_lossy(&bytes[8..8 + length]);
    println!("{length} bytes of header, {} in all", bytes.len());
    println!("{}...", header.chars().take(160).collect::<String>());

    // The description of the model stands beside it, in config.json.
    let c = &tiny.model.config;
    println!("{} layers of width {}", c.num_hidden_layers, c.hidden_size);
    println!("{} heads of {}", c.num_attention_heads, c.head_dim);
    let weights: usize =
        tiny.model.named_parameters().iter().map(|(_, w)| w.numel()).sum();
    println!("{weights} weights");

    // # What a token leaves behind
    // Keys and values of each layer are kept, so that earlier tokens need not be computed
    // again. Grouped heads share them; latent attention keeps one vector for all heads.
    let mut bars = Bars::new("KiB that a token leaves in the cache, 16 bits");
    for name in COMPARED {
        let c = shape_of(name)?;
        let numbers = match &c.latent {
            None => 2 * c.num_key_value_heads * c.head_dim,
            Some(latent) => latent.kv_lora_rank + c.head_dim, // and the turned key
        };
        let kib = (2 * c.num_hidden_layers * numbers) as f64 / 1024.;
        println!("{name:20} {kib:6.1} KiB");
        bars = bars.bar(name, kib, &format!("{kib:.0}"));
    }

    // # With and without a cache
    // Greedy text: the likeliest next token, again and again. With the cache the model
    // reads the prompt once and then one token at a time.
    let prompt = tiny.tokenizer.encode("Elizabeth was", true)?;
    let tokens = if quick { 10 } else { 80 };
    let mut texts = vec![];
    for cached in [true, false] {
        let began = Instant::now();
        let mut cache = tiny.model.cache();
        let mut ids = prompt.clone();
        let mut next = prompt.clone();
        for _ in 0..tokens {
            let logits = no_grad(|| {
                let read = if cached { &next } else { &ids };
                let x = Tensor::from_slice(read).unsqueeze(0); // (1, T)
                let cache = cached.then_some(&mut cache);
                let hidden = tiny.model.hidden(&x, Mode::Eval, cache)?; // (1, T, D)
                tiny.model.logits(&hidden.select(1, -1)) // (1, V)
            })?;
            next = vec![logits.argmax(1, false).int64_value(&[0])];
            ids.extend(&next);
        }
        let ms = began.elapsed().as_secs_f64() * 1e3 / f64::from(tokens);
        println!("cache {cached}: {ms:.1} ms a token");
        texts.push(ids);
    }
    println!("{}", tiny.tokenizer.decode(&texts[0])?);
    println!("the same text without the cache: {}", texts[0] == texts[1]);

    // # What goes wrong
    // None of these stops with an error. The text is still English, only worse; the loss
    // on pages that the model has not read tells.
    let mut pages = tiny.unread(128, 128)?;
    if quick {
        pages.truncate(1);
    }
    println!("as it is: {:.3} nats a token", mean_loss(&tiny.model, &pages)?);
    let wrong = tiny.changed(|c, _| c.rope.theta = 500_000.)?;
    println!("rope_theta 500,000 for 10,000: {:.3}", mean_loss(&wrong, &pages)?);
    let wrong = tiny.changed(|c, _| c.rms_norm_eps = 1e-3)?;
    println!("rms_norm_eps 1e-3 for 1e-6: {:.3}", mean_loss(&wrong, &pages)?);
    let wrong = tiny.changed(|_, tensors| {
        for (name, w) in tensors.iter_mut() {
            if name.ends_with("o_proj.weight") {
                *w = w.tr(); // it is square, so that every shape fits
            }
        }
    })?;
    println!("o_proj transposed: {:.3}", mean_loss(&wrong, &pages)?);

    // # Check the folklore
    // "Temperature 0 gives the likeliest text." It gives the likeliest next token, each
    // time. A search that keeps eight beginnings finds a likelier text.
    for (name, width) in [("greedy", 1), ("of eight", 8)] {
        let (ids, log_p) = beam(&tiny.model, &prompt, 10, width)?;
        println!("{name:8} ln p {log_p:.2}: {:?}", tiny.tokenizer.decode(&ids)?);
    }

    let figure = bars.draw();
    figure.save("target/figures/ch13_checkpoint.svg")?;
    println!("figure: target/figures/ch13_checkpoint.svg");
    Ok(())
}
