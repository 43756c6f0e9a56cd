//! Chapter 12, data: `cargo run --example ch12_data`. With `--out DIR` it writes the
//! page's figures and numbers; `--quick` does less of everything.
use downhill::checkpoint::PromptFrees;
use downhill::data::{
    Batch, Dataset, Example, Grouping, Message, Plan, RowEncoder, Tokenizer, check,
};
use downhill::generate::{Sampling, generate};
use downhill::lora::{self, LoraConfig, Modules};
use downhill::models::Decoder;
use downhill::nn::{Mode, dropout::normal};
use downhill::optim::{AdamW, Driver, Optimizer, Param, clip_grad_norm};
use downhill::plot::{Chart, panels};
use downhill::schedule::{Schedule, cosine};
use downhill::train::{batch_loss, mean_loss};
use downhill_lab::batches::{
    Choice, batches, compare, padding, picture, run_together, seconds,
};
use downhill_lab::rows::{BAD, marked, mask_by_id, passages, scratch, tiny};
use downhill_lab::{
    Recorded, Report, Shipped, Spread, by_seed, find, parallel, peak,
};
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::time::Instant;
use tch::Device;

// NOTEBOOK: skip
#[derive(clap::Parser)]
struct Args {
    /// Where to write the figures and the numbers.
    #[arg(long)]
    out: Option<PathBuf>,
    /// First of the seeds.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fewer seeds and steps, a smaller file.
    #[arg(long)]
    quick: bool,
}
// NOTEBOOK: end

const MIB: f64 = 1024. * 1024.;
/// Tokens of a pack, about as many as the small checkpoint was trained on at once; and
/// packs in a step.
const PACK: usize = 128;
const PACKS: usize = 2;
const RATES: [f64; 3] = [4e-3, 1e-2, 2e-2];

/// A file that ships.
fn data(name: &str) -> downhill::Result<PathBuf> {
    find(&format!("examples/data/{name}"))
}

// ANCHOR: learn
/// The checkpoint that ships after a short fine-tune on packed rows, behind walls or not.
fn learn(
    rows: &Dataset,
    walls: bool,
    rate: f64,
    steps: usize,
    seed: u64,
) -> downhill::Result<Decoder> {
    let mut model = tiny()?;
    let config = LoraConfig {
        r: 8,
        alpha: 16.,
        dropout: 0.,
        target_modules: Modules::AllLinear,
        ..LoraConfig::default()
    };
    let adapters = lora::attach(model.linears_mut(), &config, seed, Device::Cpu)?;
    let adapters = Param::with_decay(adapters, |_, _| 0.);
    let mut optimizer = Driver::new(AdamW::default(), adapters);
    let (n, lengths) = (rows.len(), rows.lengths()?);
    let plan = Plan::new(n, lengths, Grouping::Packed(PACK), seed, true);
    let schedule = cosine(rate, steps as i64 / 10, steps as i64);
    for step in 0..steps {
        let pack = |k| plan.pack((step * PACKS + k) % plan.packs());
        let packs: Vec<&[u32]> = (0..PACKS).map(pack).collect();
        let row = |i: &u32| &rows.examples[*i as usize];
        let mut batch =
            Batch::collate(&packs.concat().iter().map(row).collect::<Vec<_>>());
        if !walls {
            let sizes = packs.iter().map(|pack| pack.len());
            batch = run_together(&batch, &sizes.collect::<Vec<_>>());
        }
        optimizer.zero_grad();
        let mode = Mode::Train { seed, step: step as u64 };
        let loss = batch_loss(&model, &batch, mode)? / batch.supervised() as f64;
        loss.backward();
        clip_grad_norm(optimizer.params(), 1.);
        optimizer.step(schedule.lr(step as i64));
    }
    Ok(model)
}
// ANCHOR_END: learn

/// Of the answers to so many rows: the shares that end, and that begin with what was
/// expected; the mean number of tokens written; and the first answer.
fn answers(
    model: &Decoder,
    tokenizer: &Tokenizer,
    rows: &[Example],
) -> downhill::Result<([f64; 3], String)> {
    let sampling = Sampling { max_new_tokens: 40, ..Sampling::default() };
    let (mut sums, mut first) = ([0.; 3], None);
    for row in rows {
        let go_on = &mut |_| Ok(ControlFlow::Continue(()));
        let stop = tokenizer.stop_ids();
        let found = generate(model, row.prompt(), stop, &sampling, go_on)?;
        let expected = row.target();
        let expected = &expected[..expected.len() - 1];
        sums[0] += f64::from(found.len() < sampling.max_new_tokens);
        sums[1] += f64::from(found.starts_with(expected));
        sums[2] += found.len() as f64;
        first = first.or(Some(tokenizer.decode(&found)?));
    }
    Ok((sums.map(|s| s / rows.len() as f64), first.unwrap_or_default()))
}

fn main() -> anyhow::Result<()> {
    let Args { out, seed, quick } = clap::Parser::parse();
    // NOTEBOOK: let out: Option<PathBuf> = None;
    // NOTEBOOK: let seed: u64 = 0;
    // NOTEBOOK: let quick: bool = true;
    // CELL: What a row becomes
    let mut report = Report::new("ch12_data", out)?;
    let folder: PathBuf = data("tiny/config.json")?.with_file_name("");
    let tokenizer: Tokenizer = Tokenizer::from_dir(&folder)?;
    let encoder: RowEncoder = RowEncoder::new(Some(&tokenizer), 512, 2048);
    let file: PathBuf = data("dates_train.jsonl")?;
    let rows: Dataset = Dataset::read(&file, encoder.clone())?;
    let row: Example = rows.examples[1].clone();
    let shown = format!("ids     {:?}\nlabels  {:?}\n", row.ids, row.labels);
    let shown = shown + "text    " + &marked(&row, &tokenizer)?.replace('\n', "\\n");
    println!("{shown}");
    report.text("row", &shown)?;
    let learned = rows.summary.supervised as f64 / rows.summary.tokens as f64;
    report.numbers("rows", [("n", rows.len() as f64), ("learned", learned)]);
    // A conversation, by the template of DeepSeek-R1.
    let r1: PathBuf = find("tests/golden/ch12_r1/tokenizer.json")?;
    let r1: Tokenizer = Tokenizer::from_dir(r1.with_file_name(""))?;
    let messages: [Message; 3] = [
        Message::new("user", "1+1?"),
        Message::new("assistant", "<think>\none and one\n</think>\n\n2"),
        Message::new("user", "2+2?"),
    ];
    let asked: String = r1.chat_prompt(&messages)?.unwrap_or_default();
    let chat = scratch(
        "chat.jsonl",
        r#"{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\none and one\n</think>\n\n2"}]}"#,
    )?;
    let talk = Dataset::load(&chat, Some(&r1), 512, 129_280)?;
    let taught: String = marked(&talk.examples[0], &r1)?;
    std::fs::remove_file(chat)?;
    let [asked, taught]: [String; 2] =
        [asked, taught].map(|text| text.replace('\n', "\\n"));
    let both = format!("asked   {asked}\nlearned {taught}");
    println!("{both}");
    report.text("chat", &both)?;
    assert!(!asked.contains("one and one") && taught.contains("one and one"));

    // CELL: What a character costs
    let recorded: Recorded = Recorded::load()?;
    let ours: Vec<usize> = recorded
        .strings
        .iter()
        .map(|text| tokenizer.encode(text, false).map_or(0, |ids| ids.len()))
        .collect();
    println!("characters per token");
    for (key, name) in [
        ("tiny", ""),
        ("coder", "deepseek-coder-33b-base"),
        ("llm", "deepseek-llm-7b-base"),
        ("r1", "deepseek-r1"),
        ("llama", "deepseek-r1-distill-llama-8b"),
        ("qwen", "deepseek-r1-distill-qwen-7b"),
    ] {
        let known = recorded.counts.iter().find(|(n, _)| n == name);
        let counts = known.map_or(&ours, |(_, counts)| counts);
        let mut line = format!("  {key:6}");
        for (i, (_, some)) in Recorded::KINDS.into_iter().enumerate() {
            let each = recorded.characters(some, counts);
            line += &format!(" {each:5.2}");
            report.number(&format!("characters.{key}.k{i}"), each);
        }
        println!("{line}");
    }

    // CELL: The first token
    let shipped: Shipped = Shipped::load()?;
    let bos: i64 = tokenizer.bos_id().unwrap_or_default();
    let mut chart = Chart::new("Loss on unread pages", "token of the page", "nats");
    let mut means: Vec<[f64; 2]> = vec![];
    for (key, name, start) in [
        ("with", "after the BOS", vec![bos]),
        ("without", "without", vec![]),
        ("twice", "after two", vec![bos, bos]),
        ("eos", "after an EOS", vec![tokenizer.eos_id()]),
    ] {
        let losses = shipped.losses_after(&start)?;
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let all = [mean(&losses[..4]), mean(&losses[31..])];
        println!(
            "  {name:14} {:.3} in tokens 2 to 5, {:.3} from 33",
            all[0], all[1]
        );
        report.numbers(
            &format!("bos.{key}"),
            [("early", all[0]), ("late", all[1]), ("all", mean(&losses))],
        );
        means.push(all);
        let line = losses.chunks(4).enumerate().take(16);
        let line = line.map(|(i, part)| (4. * i as f64 + 3.5, mean(part)));
        chart = chart.line(name, line.collect());
    }
    report.tolerance("bos", Some(0.02));
    assert!((0..2).all(|i| means[1][i] > means[2][i] + 0.1), "{means:?}");
    let figure = chart.draw()?;
    report.figure("bos", &figure)?;
    // NOTEBOOK: figure

    // CELL: An index, not a copy
    let size: f64 = if quick { 2. } else { 8. } * MIB;
    let lines: String = std::fs::read_to_string(&file)?;
    let large: PathBuf =
        scratch("large.jsonl", &lines.repeat((size / lines.len() as f64) as usize))?;
    let frees = PromptFrees::new(); // what was freed before is not counted again
    for (key, streamed) in [("index", true), ("read", false)] {
        let began = Instant::now();
        let mut found: (usize, f64) = (0, 0.);
        let bytes = peak(|| {
            let rows = match streamed {
                true => Dataset::stream(&large, encoder.clone())?,
                false => Dataset::read(&large, encoder.clone())?,
            };
            rows.row(rows.len() / 2)?;
            found = (rows.len(), began.elapsed().as_secs_f64());
            Ok(())
        })?;
        let mib = bytes.unwrap_or(f64::NAN) / MIB;
        println!("{key}: row {} after {:.2} s, {mib:.1} MiB", found.0 / 2, found.1);
        report.numbers(
            &format!("file.{key}"),
            [("seconds", found.1), ("mib", mib), ("rows", found.0 as f64)],
        );
    }
    drop(frees);
    report.number("file.mib", std::fs::metadata(&large)?.len() as f64 / MIB);
    report.tolerance("file", None);
    std::fs::remove_file(large)?;

    // CELL: Padding
    let dates: Vec<u32> = rows.lengths()?;
    let tail: Vec<u32> = normal(4096, seed, 11)
        .into_iter()
        .map(|z| (f64::from(z) * 0.8 + 5.).exp().clamp(8., 2048.) as u32)
        .collect();
    let choices: [(&str, &str, Choice); 3] = [
        ("random", "at random", Choice::Random),
        ("grouped", "by length", Choice::Grouped),
        ("packed", "packed", Choice::Packed),
    ];
    let mut charts: Vec<Chart> = vec![];
    for (set, title, lengths) in [
        ("dates", "Rows of the date task", &dates),
        ("tail", "Lengths with a long tail", &tail),
    ] {
        let mut chart = Chart::new(title, "rows in a batch", "padding, share");
        let mean = f64::from(lengths.iter().sum::<u32>()) / lengths.len() as f64;
        println!("{title}: {mean:.0} tokens in a row");
        report.number(&format!("padding.{set}.mean"), mean);
        for (key, name, choice) in choices {
            let mut line: Vec<(f64, f64)> = vec![];
            for size in [1, 2, 4, 8, 16, 32, 64] {
                let plan = batches(lengths, size, choice, seed);
                // A strip is as wide as a pack may be, full or not.
                let full = u32::from(choice == Choice::Packed) * mean.ceil() as u32;
                let share = padding(lengths, &plan, size as u32 * full);
                report.number(&format!("padding.{set}.{key}.b{size}"), share);
                line.push((size as f64, share));
            }
            println!("  {name:10} {:.3} in batches of 16", line[4].1);
            chart = chart.line(name, line.clone()).points("", line);
        }
        charts.push(chart.log_x().y_range(0., 1.15)); // room for the legend
    }
    report.figure("", &picture(&tail, seed))?;
    let figure = panels(&charts, 2)?;
    report.figure("padding", &figure)?;
    let short: Vec<u32> = tail.iter().map(|n| (*n).min(512)).take(96).collect();
    println!("time of a forward; padded at random = 1");
    let mut first: f64 = 0.;
    for (key, choice, rectangles) in [
        ("random", Choice::Random, true),
        ("grouped", Choice::Grouped, true),
        ("packed", Choice::Packed, false),
        ("ends", Choice::Random, false),
    ] {
        let plan = batches(&short, 16, choice, seed);
        let taken = seconds(&shipped.model, &short, &plan, rectangles)?;
        first = if first == 0. { taken } else { first };
        println!("  {key:8} {:.2}", taken / first);
        report.number(&format!("time.{key}"), taken / first);
    }
    report.tolerance("time", None);
    // NOTEBOOK: figure

    // CELL: Packed is padded
    let passages: Vec<Example> = passages(&tokenizer)?;
    for (key, name, some) in [
        ("dates", "dates, answers learned", &rows.examples),
        ("books", "passages of three books", &passages),
    ] {
        let many = if quick { 4 } else { 16 };
        let pad = tokenizer.eos_id();
        let model = tiny()?;
        let found = compare(&model, some, (many, PACK), pad, seed)?;
        let [padded, packed, mixed] = found.loss;
        let off = (packed - padded).abs() / padded;
        println!("{name}: {found:.4?}");
        let exact = [("loss", off), ("gradient", found.gradient[0])];
        report.numbers(&format!("exact.{key}"), exact);
        let key = format!("walls.{key}");
        report.numbers(&key, [("padded", padded), ("mixed", mixed - padded)]);
        report.number(&format!("{key}.gradient"), found.gradient[1]);
        assert!(off < 1e-5 && found.gradient[0] < 1e-4, "{found:?}");
        assert!(found.gradient[1] > 0.05, "{found:?}");
    }
    report.tolerance("exact", None); // of f32's rounding
    report.tolerance("walls", Some(0.05));

    // CELL: What goes wrong
    let bad = scratch("bad.jsonl", BAD)?;
    let mut listed: Vec<String> = vec![];
    let wrong: usize = check(&bad, &encoder, &mut |row| {
        listed.push(format!("rows.jsonl:{}: {}", row.line, row.what));
    })?
    .0;
    std::fs::remove_file(bad)?;
    println!("{}", listed.join("\n"));
    report.text("bad", &listed.join("\n"))?;
    assert!(wrong == 4, "{listed:?}");
    // The end of a row, masked by its id.
    let mut by_id: Dataset = Dataset::read(&file, encoder.clone())?;
    mask_by_id(&mut by_id, tokenizer.eos_id());
    let eval = data("dates_eval.jsonl")?;
    let mut eval: Dataset = Dataset::read(eval, encoder.clone())?;
    eval.examples.truncate(60);
    let (pairs, steps): (usize, usize) = if quick { (1, 10) } else { (2, 80) };
    let ended: Vec<([f64; 3], String)> = parallel(2 * pairs, |i| {
        let rows = if i % 2 == 0 { &rows } else { &by_id };
        let model = learn(rows, true, 5e-3, steps, seed + i as u64 / 2)?;
        answers(&model, &tokenizer, &eval.examples[..20])
    })?;
    for (i, key) in ["position", "id"].into_iter().enumerate() {
        let mine = ended.iter().skip(i).step_by(2);
        let mean = |k: usize| {
            mine.clone().map(|(found, _)| found[k]).sum::<f64>() / pairs as f64
        };
        let (ends, right) = (mean(0), mean(1));
        println!("masked by {key}: {ends:.2} end, {right:.2} begin right");
        let all = [("ends", ends), ("right", right), ("tokens", mean(2))];
        report.numbers(&format!("end.{key}"), all);
        assert!(quick || (ends > 0.9) == (i == 0), "{ends}");
    }
    report.text("end", &format!("{}\n{}", ended[0].1, ended[1].1))?;
    report.tolerance("end", Some(0.2));

    // CELL: Check the folklore
    let whole: RowEncoder = RowEncoder { completion_only_loss: false, ..encoder };
    let whole: Dataset = Dataset::read(&file, whole)?;
    let (seeds, steps): (Range<u64>, usize) =
        if quick { (seed..seed + 2, 5) } else { (seed..seed + 5, 32) };
    let runs: Vec<Vec<f64>> = by_seed(3 * RATES.len(), seeds, |job, seed| {
        let (arm, rate) = (job / RATES.len(), RATES[job % RATES.len()]);
        let rows = if arm == 1 { &whole } else { &rows };
        mean_loss(&learn(rows, arm != 2, rate, steps, seed)?, &eval, 16)
    })?;
    println!("loss of held-out answers, the better of {RATES:?}");
    let mut best: Vec<Spread> = vec![];
    for (arm, key) in ["walls", "prompt", "mixed"].into_iter().enumerate() {
        let mine = runs[arm * RATES.len()..(arm + 1) * RATES.len()].iter();
        let mine: Vec<Spread> =
            mine.map(|losses| Spread::of(losses.iter().copied())).collect();
        let rate = Spread::best(&mine);
        println!("  {key:8} {:.4} at {}", mine[rate], RATES[rate]);
        report.spread(&format!("learned.{key}"), mine[rate]);
        report.number(&format!("learned.{key}.rate"), RATES[rate]);
        best.push(mine[rate]);
    }
    assert!(quick || Spread::best(&best) == 0, "{best:?}");
    report.number("learned.steps", steps as f64);
    report.tolerance("learned", Some(0.1));
    // NOTEBOOK: skip
    report.finish()?;
    // NOTEBOOK: end

    Ok(())
}
