//! Chapter 13, a checkpoint: `cargo run --example ch13_checkpoint`. With `--out DIR` it
//! writes the page's figures and numbers; `--quick` does less of everything.
use downhill::checkpoint::Checkpoint;
use downhill::generate::{Sampling, generate};
use downhill::models::{Decoder, survey};
use downhill::nn::RopeScaling;
use downhill::plot::{Bars, Chart, Heat};
use downhill_lab::faults::{of_deepseek, of_llama};
use downhill_lab::published::{COMPARED, cached, shape_of};
use downhill_lab::router::{
    KINDS, choices, counts, information, kind_of, load, shuffled,
};
use downhill_lab::small::{Small, losses, mean_loss, prompts, scores};
use downhill_lab::writing::{beam, fresh, seconds, without_cache};
use downhill_lab::{Report, Spread};
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer prompts and pages.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

/// What `generate` puts after a prompt.
fn written(
    model: &Decoder,
    prompt: &[i64],
    s: &Sampling,
) -> downhill::Result<Vec<i64>> {
    generate(model, prompt, &[], s, &mut |_| Ok(ControlFlow::Continue(())))
}

/// The mean of all numbers.
fn mean(t: &Tensor) -> f64 {
    t.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: A folder, by its bytes
    let mut report = Report::new("ch13_checkpoint", out)?;
    let moe: Small = Small::load("tiny_moe", Kind::Float)?;
    let tiny: Small = Small::load("tiny", Kind::Float)?;
    let bytes: Vec<u8> = std::fs::read(moe.folder.join("model.safetensors"))?;
    let mut length: [u8; 8] = [0; 8];
    length.copy_from_slice(&bytes[..8]);
    let header: usize = u64::from_le_bytes(length) as usize;
    let text: String = String::from_utf8_lossy(&bytes[8..8 + header]).into_owned();
    let file: Checkpoint = Checkpoint::open(&moe.folder)?;
    let names: usize = file.names().count();
    let shown: String =
        text.chars().take(240).collect::<String>().replace("},", "},\n");
    println!("{:02x?} = {header}, then\n{shown}...", &bytes[..8]);
    println!("{} bytes in all, {} of {names} tensors", bytes.len(), file.bytes());
    report
        .numbers("file", [("bytes", bytes.len() as f64), ("header", header as f64)]);
    report
        .numbers("file", [("tensors", names as f64), ("data", file.bytes() as f64)]);
    report.text("header", &format!("{:02x?}\n{shown}...", &bytes[..8]))?;
    assert_eq!(bytes.len() as u64, 8 + header as u64 + file.bytes());
    for (key, small) in [("tiny", &tiny), ("moe", &moe)] {
        let about = survey(&small.folder)?;
        let (n, linears) = (about.parameters as f64, about.linears.len() as f64);
        let active: f64 = match &small.model.config.experts {
            None => n,
            Some(e) => {
                let spared = e.routed - e.routing.chosen;
                let layers = small.model.config.num_hidden_layers - e.first_dense;
                let one = 3 * small.model.config.hidden_size * e.intermediate_size;
                n - (spared * layers * one) as f64
            }
        };
        println!("{:12} {n:.0} parameters, {active:.0} for a token", about.family);
        let all = [("parameters", n), ("linears", linears), ("active", active)];
        report.numbers(key, all);
        let nf4 = about.weight_bytes(Some(64), Kind::BFloat16) as f64;
        report.number(&format!("{key}.nf4"), nf4 / 1e6);
        report.number(&format!("{key}.f32"), 4. * n / 1e6);
    }
    let mut pages: Vec<Tensor> = moe.unread(128, 128)?;
    if quick {
        pages = pages.into_iter().map(|rows| rows.narrow(0, 0, 4)).collect();
    }
    for (key, small) in [("tiny", &tiny), ("moe", &moe)] {
        for (book, rows) in ["pride", "persuasion", "alice"].iter().zip(&pages) {
            let loss = mean_loss(&small.model, std::slice::from_ref(rows))?;
            report.number(&format!("{key}.{book}"), loss);
        }
        let loss = mean_loss(&small.model, &pages)?;
        println!("{key:5} {loss:.3} nats a token on unread pages");
        report.number(&format!("{key}.loss"), loss);
    }

    // CELL: What a token leaves behind
    let mut chart = Bars::new("KiB a token leaves in the cache / if none shared");
    let mut left: Vec<f64> = vec![];
    for name in COMPARED {
        let [kept, apart] = cached(&shape_of(name)?).map(|b| b / 1024.);
        println!("{name:20} {kept:6.1} KiB, {apart:7.1} if apart");
        chart = chart.bar(name, kept, &format!("{kept:.0} / {apart:.0}"));
        let at = format!("cache.{}", name.to_lowercase().replace('-', "_"));
        report.numbers(&at, [("kib", kept), ("ratio", apart / kept)]);
        report.number(&format!("{at}.gib_128k"), kept * 128. / 1024.);
        left.push(kept);
    }
    let (llm, qwen, lite, v3) = (left[0], left[3], left[5], left[6]);
    report.number("cache.llm_over_lite", llm / lite);
    assert!(llm / lite > 15. && v3 < qwen * 1.3);
    let figure = chart.draw();
    report.figure("", &figure)?;
    // NOTEBOOK: figure

    // CELL: With and without a cache
    let row: Tensor = moe.unread(511, 511)?[0].narrow(0, 0, 1);
    let start: Vec<i64> = moe.tokenizer.encode("Elizabeth was", true)?;
    let tokens: usize = if quick { 40 } else { 120 };
    let greedy: Sampling =
        Sampling { max_new_tokens: tokens, ..Sampling::default() };
    let mut chart = Chart::new("Time for one more token", "after tokens", "ms");
    for (key, name, small) in
        [("tiny", "grouped", &tiny), ("moe", "latent, experts", &moe)]
    {
        let quickly = written(&small.model, &start, &greedy)?;
        assert_eq!(quickly, without_cache(&small.model, &start, tokens)?);
        let (mut with, mut without): (Vec<_>, Vec<_>) = (vec![], vec![]);
        for at in [16, 64, 128, 256, 480] {
            let [fast, slow] =
                [true, false].map(|cached| seconds(&small.model, &row, at, cached));
            let (fast, slow) = (fast?, slow?);
            println!("{key:5} {at:4} {:7.2} {:7.2} ms", fast * 1e3, slow * 1e3);
            with.push((at as f64, fast * 1e3));
            without.push((at as f64, slow * 1e3));
            report.number(&format!("time.{key}.t{at}"), slow / fast);
        }
        assert!(without[4].1 > 2. * with[4].1, "a cache that saves nothing");
        chart = chart.line(&format!("{name}, cache"), with);
        chart = chart.dashed(&format!("{name}, none"), without);
    }
    report.number("time.tokens", tokens as f64);
    report.tolerance("time", None);
    let figure = chart.log_y().y_range(0.3, 1000.).draw()?;
    report.figure("time", &figure)?;
    // NOTEBOOK: figure

    // CELL: Longer than it was trained for
    let long: Tensor =
        Tensor::cat(&tiny.unread(512, if quick { 512 } else { 128 })?, 0);
    let mut chart = Chart::new("Pages of 128 were read", "position", "loss, nats");
    let scaled: [(&str, &str, RopeScaling); 3] = [
        ("plain", "as it is", RopeScaling::Default),
        ("linear", "linear, 4", RopeScaling::Linear { factor: 4. }),
        (
            "yarn",
            "YaRN, 4",
            RopeScaling::Yarn {
                factor: 4.,
                beta_fast: 32.,
                beta_slow: 1.,
                original_max_position_embeddings: 128,
                truncate: true,
                attention_factor: 0.1 * 4f64.ln() + 1.,
            },
        ),
    ];
    let mut ends: Vec<[f64; 2]> = vec![];
    for (key, name, scaling) in scaled {
        let model = tiny.changed(|c, _| c.rope.scaling = scaling)?;
        let by_place =
            losses(&model, &long)?.mean_dim(&[0i64][..], false, Kind::Float);
        let part = |from: i64, n: i64| mean(&by_place.narrow(0, from, n));
        let line: Vec<(f64, f64)> =
            (0..16).map(|i| ((32 * i + 16) as f64, part(32 * i, 32))).collect();
        let (within, far) = (part(32, 96), part(384, 128));
        println!("{name:10} {within:.3} up to 128, {far:.3} from 384 on");
        report.numbers(&format!("long.{key}"), [("within", within), ("far", far)]);
        ends.push([within, far]);
        chart = chart.line(name, line);
    }
    // The same tokens as those from 384 on, each after 64 to 127 others.
    let mut short: f64 = 0.;
    for at in [384, 448] {
        let part = losses(&tiny.model, &long.narrow(1, at - 63, 128))?;
        short += mean(&part.narrow(1, 63, 64)) / 2.;
    }
    println!("at most 127 before {short:.3}");
    let [plain, linear, yarn]: [[f64; 2]; 3] = [ends[0], ends[1], ends[2]];
    assert!(plain[1] > plain[0] + 0.1 && linear[0] > plain[0] + 0.1, "{ends:?}");
    assert!(yarn[1] < short && yarn[1] < plain[1], "{ends:?} {short}");
    report.number("long.cut", short);
    let line: Vec<(f64, f64)> = vec![(384., short), (512., short)];
    let figure = chart.dashed("at most 127 before", line);
    let figure = figure.y_range(4.1, 5.1).draw()?;
    report.figure("long", &figure)?;
    // NOTEBOOK: figure

    // CELL: Whom the router picks
    let almanac: Vec<String> = prompts("dates_eval.jsonl")?;
    let almanac: Tensor = moe.rows(&almanac, 32)?;
    let mut ids: Vec<Tensor> = vec![];
    let mut source: Vec<Tensor> = vec![];
    let mut picked: Vec<Vec<Tensor>> = vec![vec![], vec![], vec![]];
    for (i, rows) in pages.iter().chain([&almanac]).enumerate() {
        for (layer, chosen) in choices(&moe.model, rows)?.into_iter().enumerate() {
            picked[layer].push(chosen);
        }
        let t = rows.size()[1] - 1;
        let read = rows.narrow(1, 0, t).reshape([-1]);
        source.push(read.full_like(i as i64));
        ids.push(read);
    }
    let (ids, source): (Tensor, Tensor) =
        (Tensor::cat(&ids, 0), Tensor::cat(&source, 0));
    let kinds: Vec<i64> = (0..moe.model.config.vocab_size)
        .map(|id| Ok(kind_of(&moe.tokenizer.decode(&[id])?)))
        .collect::<downhill::Result<_>>()?;
    let kind: Tensor = Tensor::from_slice(&kinds).index_select(0, &ids);
    let picked: Vec<Tensor> = picked.iter().map(|p| Tensor::cat(p, 0)).collect();
    let numbers: Vec<usize> = (0..16).collect();
    let title = "Layer 2: how often each expert is chosen, 1 is even";
    let mut heat = Heat::new(title, "expert", "", &numbers).high_is_dark();
    let by_source: Tensor = counts(&picked[1], &source, 4, 16);
    let by_kind: Tensor = counts(&picked[1], &kind, 6, 16);
    for (i, name) in KINDS.iter().enumerate().take(4).rev() {
        heat = heat.row(name, &load(&by_kind.get(i as i64)));
    }
    for (i, name) in
        ["Pride", "Persuasion", "Alice", "almanac"].iter().enumerate().rev()
    {
        heat = heat.row(name, &load(&by_source.get(i as i64)));
    }
    let figure = heat.draw()?;
    report.figure("experts", &figure)?;
    println!("bits a choice tells: source, kind, token (by chance); load");
    let books: Tensor = source.lt(3).nonzero().view([-1]);
    for (layer, chosen) in picked.iter().enumerate() {
        let key = format!("router.l{}", layer + 1);
        let mut line: Vec<f64> = vec![];
        for (what, labels, n) in
            [("source", &source, 4), ("kind", &kind, 6), ("token", &ids, 2048)]
        {
            let chance =
                information(&counts(chosen, &shuffled(labels, seed), n, 16));
            let told = information(&counts(chosen, labels, n, 16));
            report.number(&format!("{key}.{what}"), told - chance);
            line.extend([told - chance, chance]);
        }
        let of_books = chosen.index_select(0, &books);
        let load = load(&of_books.reshape([-1]).bincount(None::<Tensor>, 16));
        let [most, least] = [f64::max, f64::min]
            .map(|f| load.iter().copied().reduce(f).unwrap_or(0.));
        println!("  {layer} {line:.3?} {least:.2} to {most:.2}");
        report.numbers(&key, [("most", most), ("least", least)]);
        assert!(line[4] > 3. * line[2] && line[2] > 2. * line[0], "{line:?}");
        assert!(least > 0.4 && most < 1.6, "{least} {most}");
    }
    // NOTEBOOK: figure

    // CELL: Sixteen bits
    let few: Tensor = Tensor::cat(&pages, 0).narrow(0, 0, if quick { 1 } else { 6 });
    for (key, name, small) in [("tiny", "tiny", &tiny), ("moe", "tiny_moe", &moe)] {
        let half: Small = Small::load(name, Kind::BFloat16)?;
        let (exact, next) = scores(&small.model, &few)?;
        let (rough, _) = scores(&half.model, &few)?;
        let off = (&rough - &exact).square().mean(Kind::Double).sqrt();
        let off = off.double_value(&[]) / exact.std(false).double_value(&[]);
        let same = rough.argmax(1, false).eq_tensor(&exact.argmax(1, false));
        let same = mean(&same);
        let loss = |logits: &Tensor| {
            let says = logits.log_softmax(-1, Kind::Double);
            let said = says.gather(1, &next.unsqueeze(1), false);
            -mean(&said)
        };
        let more = loss(&rough) - loss(&exact);
        let sets = |model: &Decoder| -> downhill::Result<Vec<Tensor>> {
            let all = choices(model, &few)?;
            Ok(all.iter().map(|c| c.sort(1, false).0).collect())
        };
        let (a, b) = (sets(&small.model)?, sets(&half.model)?);
        let layers = a.len().max(1) as f64;
        let moved = a.iter().zip(&b).map(|(a, b)| {
            let moved = a.ne_tensor(b).any_dim(1, false).to_kind(Kind::Double);
            mean(&moved) / layers
        });
        let moved: f64 = moved.sum();
        println!(
            "{key:5} off {off:.4}, same {same:.3}, loss {more:+.5}, {moved:.4}"
        );
        assert!(
            off < 0.03 && same > 0.9 && more.abs() < 0.01,
            "{off} {same} {more}"
        );
        let all = [("off", off), ("same", same), ("loss", more), ("moved", moved)];
        report.numbers(&format!("half.{key}"), all);
    }
    report.tolerance("half", Some(0.5));

    // CELL: What goes wrong
    println!("loss with one thing wrong, nats a token");
    for (model, faults) in [("tiny", of_llama(&tiny)?), ("moe", of_deepseek(&moe)?)]
    {
        let mut rows: Vec<(&str, f64)> = vec![];
        for (key, name, decoder) in faults {
            let loss = mean_loss(&decoder, &pages)?;
            println!("  {model:5} {name:40} {loss:.3}");
            report.number(&format!("wrong.{model}.{key}"), loss);
            rows.push((key, loss));
        }
        let right = rows[0].1;
        assert!(rows.iter().all(|(_, loss)| *loss > right - 0.01), "{rows:?}");
        let layout = rows.iter().find(|row| row.0 == "layout");
        assert!(layout.is_some_and(|row| row.1 > right + 0.5), "{rows:?}");
    }
    report.tolerance("wrong", Some(0.02));
    // Without the BOS, the same tokens are to be predicted.
    let all: Tensor = Tensor::cat(&pages, 0);
    let whole: Tensor = losses(&tiny.model, &all)?.narrow(1, 1, 127);
    let bare: Tensor = losses(&tiny.model, &all.narrow(1, 1, 128))?;
    for (key, from, n) in [("start", 0, 8), ("rest", 8, 119)] {
        let more = mean(&bare.narrow(1, from, n)) - mean(&whole.narrow(1, from, n));
        println!("  no BOS: {more:+.3} over {n} tokens from {from}");
        report.number(&format!("wrong.bos.{key}"), more);
        assert!(more > 0.1, "{more}");
    }

    // CELL: Check the folklore
    let starts: Vec<Vec<i64>> = Tensor::cat(&pages, 0)
        .split(1, 0)
        .iter()
        .step_by(if quick { 4 } else { 2 })
        .map(|row| Ok(Vec::<i64>::try_from(&row.narrow(1, 0, 24).view([-1]))?))
        .collect::<downhill::Result<_>>()?;
    for (key, tokens) in [("t5", 5), ("t10", 10), ("t20", 20)] {
        let mut gains: Vec<f64> = vec![];
        for prompt in &starts {
            let (first, greedy) = beam(&tiny.model, prompt, tokens, 1)?;
            let sampling =
                Sampling { max_new_tokens: tokens, ..Sampling::default() };
            assert_eq!(first, written(&tiny.model, prompt, &sampling)?);
            let (_, best) = beam(&tiny.model, prompt, tokens, 8)?;
            gains.push((best - greedy).max(0.));
        }
        let beaten = gains.iter().filter(|g| **g > 1e-6).count() as f64;
        let beaten = beaten / gains.len() as f64;
        let gain = Spread::of(gains.iter().map(|g| g.exp()));
        assert!(beaten > 0.5, "{beaten}");
        println!("{tokens:3} tokens: greedy beaten in {beaten:.2}, {gain:.2} times");
        let all = [("beaten", beaten), ("times", gain.median)];
        report.numbers(&format!("greedy.{key}"), all);
    }
    report.tolerance("greedy", Some(0.2));
    report.number("greedy.prompts", starts.len() as f64);
    let texts: usize = if quick { 2 } else { 6 };
    for (key, temperature) in [("greedy", 0.), ("warm", 0.7), ("hot", 1.)] {
        let all = starts.iter().take(texts).map(|prompt| {
            let s = Sampling { max_new_tokens: 200, temperature, top_p: 1., seed };
            Ok(fresh(&written(&tiny.model, prompt, &s)?))
        });
        let all = Spread::of(all.collect::<downhill::Result<Vec<f64>>>()?);
        println!("temperature {temperature}: {all:.2} of runs of four are new");
        report.spread(&format!("fresh.{key}"), all);
        assert!((all.median < 0.6) == (key == "greedy"), "{all:.2}");
    }
    // The same greedy text in 16 bits: how long it stays the same.
    let half: Small = Small::load("tiny", Kind::BFloat16)?;
    let long: Sampling = Sampling {
        max_new_tokens: if quick { 20 } else { 60 },
        ..Sampling::default()
    };
    let mut parts: Vec<f64> = vec![];
    for prompt in starts.iter().take(texts) {
        let a = written(&tiny.model, prompt, &long)?;
        let b = written(&half.model, prompt, &long)?;
        let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        parts.push(same as f64);
    }
    let left: usize =
        parts.iter().filter(|n| **n < long.max_new_tokens as f64).count();
    println!("in bf16 {left} of {texts} texts part, after {parts:?} tokens");
    report.numbers("parts", [("left", left as f64), ("texts", texts as f64)]);
    let first: f64 = parts.iter().copied().fold(f64::INFINITY, f64::min);
    let tokens = long.max_new_tokens as f64;
    report.numbers("parts", [("tokens", tokens), ("first", first)]);
    report.tolerance("parts", Some(0.5));
    report.finish()?;

    Ok(())
}
