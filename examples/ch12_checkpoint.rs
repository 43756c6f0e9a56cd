//! Chapter 12, a checkpoint: `cargo run --example ch12_checkpoint`. With `--out DIR` it
//! writes the page's figures and numbers; `--quick` does less of everything.
use downhill::checkpoint::Checkpoint;
use downhill::generate::{Sampling, generate};
use downhill::lab::small::{
    Small, beam, choices, counts, information, losses, mean_loss, scores,
    seconds_for_one, shuffled,
};
use downhill::lab::{Report, Spread};
use downhill::models::{Decoder, survey};
use downhill::nn::{Mode, RopeScaling};
use downhill::plot::{Bars, Chart, Heat, panels};
use std::ops::ControlFlow;
use tch::{Kind, Tensor, no_grad};

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    /// Of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer prompts and pages.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

// ANCHOR: published
/// Of a published `config.json`: layers, heads, key-value heads, the width of a head
/// (of its key and its value), and with latent attention the latent and the turned key.
struct Shape(&'static str, [i64; 5], Option<[i64; 2]>);

const SHAPES: [Shape; 7] = [
    Shape("deepseek-llm-7b", [30, 32, 32, 128, 128], None),
    Shape("deepseek-llm-67b", [95, 64, 8, 128, 128], None),
    Shape("R1-Distill-Llama-8B", [32, 32, 8, 128, 128], None),
    Shape("R1-Distill-Qwen-7B", [28, 28, 4, 128, 128], None),
    Shape("R1-0528-Qwen3-8B", [36, 32, 8, 128, 128], None),
    Shape("DeepSeek-V2-Lite", [27, 16, 16, 192, 128], Some([512, 64])),
    Shape("DeepSeek-V3, R1", [61, 128, 128, 192, 128], Some([512, 64])),
];

impl Shape {
    /// Bytes in 16 bits that a token leaves in the cache; and if every head kept its
    /// own key and value.
    fn bytes(&self) -> [f64; 2] {
        let [layers, heads, kv_heads, key, value] = self.1;
        let per_head = key + value;
        let kept = self.2.map_or(kv_heads * per_head, |[latent, key]| latent + key);
        [kept, heads * per_head].map(|n| (2 * layers * n) as f64)
    }
}
// ANCHOR_END: published

/// What kind of a piece a token is.
const KINDS: [&str; 6] = ["word", "Name", "piece", "mark", "digit", "other"];

fn kind_of(piece: &str) -> i64 {
    let bare = piece.trim_start();
    let first = bare.chars().next().unwrap_or(' ');
    match (bare.len() < piece.len(), first) {
        (_, c) if c.is_uppercase() => 1,
        (true, c) if c.is_alphabetic() => 0,
        (false, c) if c.is_alphabetic() => 2,
        (_, c) if c.is_ascii_digit() => 4,
        (_, c) if c.is_ascii_punctuation() || "“”‘’—".contains(c) => 3,
        _ => 5,
    }
}

/// Text after a prompt.
fn written(
    model: &Decoder,
    prompt: &[i64],
    s: &Sampling,
) -> downhill::Result<Vec<i64>> {
    generate(model, prompt, &[], s, &mut |_| Ok(ControlFlow::Continue(())))
}

// ANCHOR: without
/// The same without a cache: all of the text again for every token.
fn written_slowly(
    model: &Decoder,
    prompt: &[i64],
    tokens: usize,
) -> downhill::Result<Vec<i64>> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let all = Tensor::from_slice(&ids).unsqueeze(0);
        let logits = no_grad(|| {
            let hidden = model.hidden(&all, Mode::Eval, None)?;
            model.logits(&hidden.select(1, -1))
        })?;
        ids.push(logits.argmax(1, false).int64_value(&[0]));
    }
    Ok(ids[prompt.len()..].to_vec())
}
// ANCHOR_END: without

/// The share of runs of four tokens that stand there for the first time.
fn fresh(ids: &[i64]) -> f64 {
    let runs: Vec<&[i64]> = ids.windows(4).collect();
    let first = (0..runs.len()).filter(|i| !runs[..*i].contains(&runs[*i]));
    first.count() as f64 / runs.len() as f64
}

/// Rows of a matrix of heads of size `k`, put as if neighbours had been halves.
fn as_neighbours(w: &Tensor, k: i64) -> Tensor {
    let (rows, columns) = w.size2().unwrap_or_default();
    w.view([rows / k, k / 2, 2, columns]).transpose(1, 2).reshape([rows, columns])
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<std::path::PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: A folder, by its bytes
    let mut report = Report::new("ch12_checkpoint", out)?;
    let moe: Small = Small::load("tiny_moe", Kind::Float)?;
    let tiny: Small = Small::load("tiny", Kind::Float)?;
    let bytes: Vec<u8> = std::fs::read(moe.folder.join("model.safetensors"))?;
    let mut length: [u8; 8] = [0; 8];
    length.copy_from_slice(&bytes[..8]);
    let header: usize = u64::from_le_bytes(length) as usize;
    let text = String::from_utf8_lossy(&bytes[8..8 + header]).into_owned();
    let file = Checkpoint::open(&moe.folder)?;
    let names: usize = file.names().count();
    let mut shown: String = text.chars().take(240).collect();
    shown = shown.replace("},", "},\n");
    println!("{:02x?} = {header}, then\n{shown}...", &bytes[..8]);
    println!("{} bytes in all, {} of {names} tensors", bytes.len(), file.bytes());
    let all = [
        ("bytes", bytes.len() as f64),
        ("header", header as f64),
        ("tensors", names as f64),
        ("data", file.bytes() as f64),
    ];
    report.numbers("file", all);
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
    // NOTEBOOK: figure

    // CELL: What a token leaves behind
    let mut chart = Bars::new("What a token leaves in the cache, KiB in 16 bits");
    for shape in &SHAPES {
        let [kept, apart] = shape.bytes().map(|b| b / 1024.);
        let ratio = apart / kept;
        println!("{:20} {kept:6.1} KiB, {apart:7.1} if apart", shape.0);
        let end = format!("{kept:.0}, {ratio:.0} × less than by head");
        let plain = format!("{kept:.0}, every head its own");
        chart = chart.bar(shape.0, kept, if ratio > 1. { &end } else { &plain });
        let key = shape.0.split(',').next().unwrap_or("").to_lowercase();
        let key = key.replace('.', "_");
        report.numbers(&format!("cache.{key}"), [("kib", kept), ("ratio", ratio)]);
        report.number(&format!("cache.{key}.gib_128k"), kept * 128. / 1024.);
    }
    let [lite, llm] = [&SHAPES[5], &SHAPES[0]].map(|s| s.bytes()[0]);
    report.number("cache.llm_over_lite", llm / lite);
    assert!(llm / lite > 15. && SHAPES[6].bytes()[0] < SHAPES[3].bytes()[0] * 1.3);
    let figure = chart.draw();
    report.figure("memory", &figure)?;
    // NOTEBOOK: figure

    // CELL: With and without a cache
    let row: Tensor = moe.unread(511, 511)?[0].narrow(0, 0, 1);
    let start: Vec<i64> = moe.tokenizer.encode("Elizabeth was", true)?;
    let tokens: usize = if quick { 40 } else { 120 };
    let greedy = Sampling { max_new_tokens: tokens, ..Sampling::default() };
    let mut chart = Chart::new("Time for one more token", "after tokens", "ms");
    for (key, name, small) in
        [("tiny", "grouped", &tiny), ("moe", "latent, experts", &moe)]
    {
        let quickly = written(&small.model, &start, &greedy)?;
        assert_eq!(quickly, written_slowly(&small.model, &start, tokens)?);
        let (mut with, mut without): (Vec<_>, Vec<_>) = (vec![], vec![]);
        for at in [16, 64, 128, 256, 480] {
            let [fast, slow] = [true, false]
                .map(|cached| seconds_for_one(&small.model, &row, at, cached));
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
    let figure = chart.log_y().draw()?;
    report.figure("time", &figure)?;
    // NOTEBOOK: figure

    // CELL: Longer than it was trained for
    let long: Tensor =
        Tensor::cat(&tiny.unread(512, if quick { 512 } else { 128 })?, 0);
    let mut chart = Chart::new("Pages of 128 were read", "position", "loss, nats");
    let scaled = [
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
        let part = |from: i64, n: i64| {
            by_place.narrow(0, from, n).mean(Kind::Double).double_value(&[])
        };
        let line: Vec<(f64, f64)> =
            (0..16).map(|i| ((32 * i + 16) as f64, part(32 * i, 32))).collect();
        let (within, far) = (part(32, 96), part(384, 128));
        println!("{name:10} {within:.3} up to 128, {far:.3} from 384 on");
        report.numbers(&format!("long.{key}"), [("within", within), ("far", far)]);
        ends.push([within, far]);
        chart = chart.line(name, line);
    }
    // The same tokens as those from 384 on, after no more than 128 others.
    let short: Tensor = long.narrow(1, 257, 256);
    let short = losses(&tiny.model, &short)?.narrow(1, 127, 128);
    let short: f64 = short.mean(Kind::Double).double_value(&[]);
    println!("cut to 128 {short:.3}");
    report.number("long.cut", short);
    let figure =
        chart.dashed("only the last 128", vec![(384., short), (512., short)]);
    let figure = figure.draw()?;
    report.figure("long", &figure)?;
    // NOTEBOOK: figure

    // CELL: Whom the router picks
    let almanac = downhill::lab::small::prompts("dates_eval.jsonl")?;
    let almanac: Tensor = moe.rows(&almanac, 32)?;
    let mut ids: Vec<Tensor> = vec![];
    let mut source: Vec<Tensor> = vec![];
    let mut picked: Vec<Vec<Tensor>> = vec![vec![]; 3];
    for (i, rows) in pages.iter().chain([&almanac]).enumerate() {
        for (layer, chosen) in choices(&moe.model, rows)?.into_iter().enumerate() {
            picked[layer].push(chosen);
        }
        let t = rows.size()[1] - 1;
        let read = rows.narrow(1, 0, t).reshape([-1]);
        source.push(read.full_like(i as i64));
        ids.push(read);
    }
    let (ids, source) = (Tensor::cat(&ids, 0), Tensor::cat(&source, 0));
    let kinds: Vec<i64> = (0..moe.model.config.vocab_size)
        .map(|id| Ok(kind_of(&moe.tokenizer.decode(&[id])?)))
        .collect::<downhill::Result<_>>()?;
    let kind = Tensor::from_slice(&kinds).index_select(0, &ids);
    let picked: Vec<Tensor> = picked.iter().map(|p| Tensor::cat(p, 0)).collect();
    let numbers: Vec<usize> = (0..16).collect();
    let title = "Layer 2: how often each expert is chosen, 1 is even";
    let mut heat = Heat::new(title, "expert", "", &numbers).high_is_dark();
    let even = |counts: &Tensor| -> Vec<f64> {
        let share = counts / counts.sum(Kind::Double) * 16.;
        (0..16).map(|e| share.double_value(&[e])).collect()
    };
    let by_source = counts(&picked[1], &source, 4, 16).to_kind(Kind::Double);
    let by_kind = counts(&picked[1], &kind, 6, 16).to_kind(Kind::Double);
    for (i, name) in KINDS.iter().enumerate().take(5).rev() {
        heat = heat.row(name, &even(&by_kind.get(i as i64)));
    }
    for (i, name) in
        ["Pride", "Persuasion", "Alice", "almanac"].iter().enumerate().rev()
    {
        heat = heat.row(name, &even(&by_source.get(i as i64)));
    }
    let figure = heat.draw()?;
    report.figure("experts", &figure)?;
    println!("bits a choice tells: source, kind, token (by chance); load");
    let books = source.lt(3).nonzero().view([-1]);
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
        let counts = counts(&of_books, &of_books.select(1, 0).zeros_like(), 1, 16);
        let load = even(&counts.to_kind(Kind::Double));
        let [most, least] = [f64::max, f64::min]
            .map(|f| load.iter().copied().reduce(f).unwrap_or(0.));
        println!("  {layer} {line:.3?} {least:.2} to {most:.2}");
        report.numbers(&key, [("most", most), ("least", least)]);
        assert!(line[4] > line[0] && line[2] > line[0], "{line:?}");
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
        let same = same.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        let loss = |logits: &Tensor| {
            let says = logits.log_softmax(-1, Kind::Double);
            let said = says.gather(1, &next.unsqueeze(1), false);
            -said.mean(Kind::Double).double_value(&[])
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
            moved.mean(Kind::Double).double_value(&[]) / layers
        });
        let moved: f64 = moved.sum();
        println!(
            "{key:5} off {off:.4}, same {same:.3}, loss {more:+.5}, {moved:.4}"
        );
        let all = [("off", off), ("same", same), ("loss", more), ("moved", moved)];
        report.numbers(&format!("half.{key}"), all);
    }
    report.tolerance("half", Some(0.5));

    // CELL: What goes wrong
    let half_turn = |name: &str| {
        name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight")
    };
    println!("loss with one thing wrong, nats a token");
    let mut wrong: Vec<(&str, &str, f64)> = vec![];
    let mut told = |key: &'static str, name: &'static str, model: Decoder| {
        let loss = mean_loss(&model, &pages)?;
        println!("  {name:40} {loss:.3}");
        report.number(&format!("wrong.{key}"), loss);
        wrong.push((key, name, loss));
        downhill::Result::Ok(())
    };
    told("tiny.right", "tiny as it is", tiny.changed(|_, _| ())?)?;
    let model = tiny.changed(|c, tensors| {
        for (_, w) in tensors.iter_mut().filter(|(name, _)| half_turn(name)) {
            *w = as_neighbours(w, c.head_dim);
        }
    })?;
    told("tiny.layout", "halves turned as neighbours", model)?;
    let model = tiny.changed(|c, _| c.rope.theta = 500_000.)?;
    told("tiny.theta", "theta 500000 for 10000", model)?;
    let model = tiny.changed(|_, tensors| {
        for (_, w) in
            tensors.iter_mut().filter(|(n, _)| n.ends_with("o_proj.weight"))
        {
            *w = w.tr();
        }
    })?;
    told("tiny.transpose", "o_proj transposed", model)?;
    let model = tiny.changed(|c, _| c.tie_word_embeddings = false)?;
    told("tiny.head", "tied head forgotten", model)?;
    let model = tiny.changed(|c, _| c.rms_norm_eps = 1e-2)?;
    told("tiny.eps", "epsilon 1e-2 for 1e-6", model)?;
    let bare: Vec<Tensor> = pages.iter().map(|p| p.narrow(1, 1, 128)).collect();
    let whole = losses(&tiny.model, &Tensor::cat(&pages, 0))?.narrow(1, 1, 127);
    let cut = losses(&tiny.model, &Tensor::cat(&bare, 0))?;
    let first =
        |x: &Tensor, n: i64| x.narrow(1, 0, n).mean(Kind::Double).double_value(&[]);
    for (key, n) in [("all", 127), ("first8", 8)] {
        let more = first(&cut, n) - first(&whole, n);
        println!("  no BOS: {more:+.3} over the first {n} tokens");
        report.number(&format!("wrong.bos.{key}"), more);
    }
    told("moe.right", "tiny_moe as it is", moe.changed(|_, _| ())?)?;
    let latent = |f: fn(&mut downhill::models::LatentConfig)| {
        moe.changed(|c, _| c.latent.iter_mut().for_each(f))
    };
    let experts = |f: fn(&mut downhill::models::ExpertsConfig)| {
        moe.changed(|c, _| c.experts.iter_mut().for_each(f))
    };
    told(
        "moe.layout",
        "neighbours turned as halves",
        latent(|l| l.interleaved = false)?,
    )?;
    told(
        "moe.score",
        "scores over the root of 32, not 48",
        latent(|l| l.scale = 1. / 32f64.sqrt())?,
    )?;
    told(
        "moe.scale",
        "routed_scaling_factor forgotten",
        experts(|e| e.routing.scale = 1.)?,
    )?;
    told(
        "moe.norm",
        "weights of the chosen made to add to 1",
        experts(|e| {
            (e.routing.normalize, e.routing.scale) = (true, 1.);
        })?,
    )?;
    told("moe.fewer", "2 experts for 4", experts(|e| e.routing.chosen = 2)?)?;
    told("moe.more", "8 experts for 4", experts(|e| e.routing.chosen = 8)?)?;
    let model = moe.changed(|_, tensors| {
        for (_, w) in
            tensors.iter_mut().filter(|(n, _)| n.contains("shared_experts.down"))
        {
            *w = w.zeros_like();
        }
    })?;
    told("moe.shared", "shared experts left out", model)?;
    let model = moe.changed(|_, tensors| {
        for (_, w) in
            tensors.iter_mut().filter(|(n, _)| n.ends_with("mlp.gate.weight"))
        {
            *w = w.roll([1], [0]);
        }
    })?;
    told("moe.shift", "experts numbered from 1", model)?;
    report.tolerance("wrong", Some(0.02));
    for (key, name, loss) in &wrong {
        let right = if key.starts_with("tiny") { wrong[0].2 } else { wrong[6].2 };
        assert!(key.ends_with("right") || *loss > right - 0.02, "{name}: {loss}");
    }
    // NOTEBOOK: figure

    // CELL: Check the folklore
    let prompts: Vec<Vec<i64>> = Tensor::cat(&pages, 0)
        .split(1, 0)
        .iter()
        .step_by(if quick { 4 } else { 2 })
        .map(|row| Ok(Vec::<i64>::try_from(&row.narrow(1, 0, 24).view([-1]))?))
        .collect::<downhill::Result<_>>()?;
    for (key, tokens) in [("t5", 5), ("t10", 10), ("t20", 20)] {
        let mut gains: Vec<f64> = vec![];
        for prompt in &prompts {
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
        println!("{tokens:3} tokens: greedy beaten in {beaten:.2}, {gain:.2} times");
        report.numbers(
            &format!("greedy.{key}"),
            [("beaten", beaten), ("times", gain.median)],
        );
    }
    report.number("greedy.prompts", prompts.len() as f64);
    let texts: usize = if quick { 2 } else { 6 };
    for (key, temperature) in [("greedy", 0.), ("warm", 0.7), ("hot", 1.)] {
        let all = prompts.iter().take(texts).map(|prompt| {
            let s = Sampling { max_new_tokens: 200, temperature, top_p: 1., seed };
            Ok(fresh(&written(&tiny.model, prompt, &s)?))
        });
        let all = Spread::of(all.collect::<downhill::Result<Vec<f64>>>()?);
        println!("temperature {temperature}: {all:.2} of runs of four are new");
        report.spread(&format!("fresh.{key}"), all);
    }
    // The same greedy text in 16 bits: how long it stays the same.
    let half: Small = Small::load("tiny", Kind::BFloat16)?;
    let long = Sampling {
        max_new_tokens: if quick { 20 } else { 60 },
        ..Sampling::default()
    };
    let mut parts: Vec<f64> = vec![];
    for prompt in prompts.iter().take(texts) {
        let a = written(&tiny.model, prompt, &long)?;
        let b = written(&half.model, prompt, &long)?;
        let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        parts.push(same as f64);
    }
    let left = parts.iter().filter(|n| **n < long.max_new_tokens as f64).count();
    println!("in bf16 {left} of {texts} texts part, after {parts:?} tokens");
    report.numbers("parts", [("left", left as f64), ("texts", texts as f64)]);
    report.number("parts.tokens", long.max_new_tokens as f64);
    report
        .number("parts.first", parts.iter().copied().fold(f64::INFINITY, f64::min));
    report.tolerance("parts", Some(0.5));
    report.finish()?;
    // NOTEBOOK: figure

    Ok(())
}
