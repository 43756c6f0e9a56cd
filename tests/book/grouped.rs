//! Experts side by side, as they are on a card, are experts in turn: on the CPU, where
//! libtorch's grouped product takes one after another itself, with the kernels around
//! it by the emulator, and on a card where there is one.
use crate::common::{cuda, wave};
use crate::cuda_host::{BACKWARDS, EMULATOR, have_run};
use crate::golden::{gap, same_bits};
use downhill::cuda::{capability, emulated};
use downhill::lora::{LoraConfig, Modules, attach};
use downhill::models::{LoadOptions, Survey, load, published};
use downhill::nn::grouped::on_cpu;
use downhill::nn::{
    Adapter, Dora, Linear, Mode, Moe, Router, Routing, Score, SwiGlu, Weight,
};
use downhill::optim::{AdamW, Driver, Optimizer, Param};
use downhill::quant::Nf4Tensor;
use downhill::train::{Memory, Sketch};
use std::path::Path;
use tch::{Device, Kind, Tensor};

const CPU: Device = Device::Cpu;
/// What sums in another order explain in f32.
const F32: f64 = 2e-6;
const TRAIN: Mode = Mode::Train { seed: 3, step: 5 };

/// Experts for a test.
#[derive(Clone)]
struct Case {
    kind: Kind,
    quantized: bool,
    /// E, k, D and F.
    sizes: [i64; 4],
    /// Of the adapters, if there are some; and what they drop.
    rank: Option<i64>,
    dropout: f64,
    /// Added to the merit of each expert.
    bias: Vec<f32>,
}

/// What a pass gives: the result, and the gradients of x, the router and all adapters,
/// where there is one.
type Found = Vec<Option<Tensor>>;

impl Case {
    fn linear(&self, out: i64, input: i64, place: u32, device: Device) -> Linear {
        // No two alike.
        let w = (wave(&[out, input], Kind::Float) + f64::from(place)).sin();
        let w = ((w - 0.1) * 0.3).to_device(device);
        let weight = match self.quantized {
            true => Weight::Nf4(Nf4Tensor::quantize(&w, 64, true).unwrap()),
            false => Weight::Dense(w.to_kind(self.kind)),
        };
        let lora = self.rank.map(|r| {
            let leaf = |shape: [i64; 2], by: f64| {
                let x = (wave(&shape, Kind::Float) * 7. + f64::from(place)).cos();
                (x * by).to_device(device).set_requires_grad(true)
            };
            let pair = [leaf([r, input], 0.2), leaf([out, r], 0.2)];
            let [a, b] = pair;
            let dropout = self.dropout;
            Adapter { dropout, place, ..Adapter::new(a, b, 1.7) }
        });
        Linear { weight, bias: None, lora }
    }

    fn moe(&self, device: Device) -> Moe {
        let [experts, chosen, d, f] = self.sizes;
        let mlp = |e: i64| {
            let place = 11 + 3 * e as u32;
            SwiGlu {
                gate: self.linear(f, d, place, device),
                up: self.linear(f, d, place + 1, device),
                down: self.linear(d, f, place + 2, device),
            }
        };
        let routing = Routing {
            chosen,
            groups: 1,
            kept_groups: 1,
            score: Score::Softmax,
            normalize: true,
            scale: 1.5,
        };
        let weight = (wave(&[experts, d], Kind::Float) - 0.5).to_device(device);
        let bias = Tensor::from_slice(&self.bias).to_device(device);
        let router = Router {
            weight: weight.set_requires_grad(true),
            bias: Some(bias),
            routing,
        };
        Moe { router, experts: (0..experts).map(mlp).collect(), shared: None }
    }

    /// Of `moe`, for so many tokens.
    fn pass(&self, moe: &Moe, tokens: i64, mode: Mode) -> Found {
        let device = moe.router.weight.device();
        let x = ((wave(&[tokens, self.sizes[2]], Kind::Float) - 0.5) * 2.)
            .to_kind(self.kind)
            .to_device(device)
            .set_requires_grad(true);
        let y = moe.forward(&x, mode).expect("a pass");
        let w = wave(&y.size(), Kind::Float).to_kind(y.kind()).to_device(device);
        (&y * (w - 0.4)).sum(Kind::Float).backward();
        let linears = moe.experts.iter().flat_map(SwiGlu::linears);
        let adapters = linears.filter_map(|(_, l)| l.lora.as_ref());
        let pairs = adapters.flat_map(|l| [l.a.grad(), l.b.grad()]);
        let first = [y.detach(), x.grad(), moe.router.weight.grad()];
        let all = first.into_iter().chain(pairs);
        all.map(|t| t.defined().then(|| t.to_device(CPU))).collect()
    }

    fn found(&self, tokens: i64, mode: Mode) -> Found {
        self.pass(&self.moe(CPU), tokens, mode)
    }
}

/// Gradients that are not there are zeros. Those of all experts' A of one projection are
/// measured together, by the largest of them: a gradient of one token is a sum in which
/// much may cancel. So are those of B.
#[track_caller]
fn close(found: &Found, expected: &Found, bound: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    let zeros = |(a, b): (&Option<Tensor>, &Option<Tensor>)| {
        let known = a.as_ref().or(b.as_ref()).expect("neither has a gradient");
        let of = |t: &Option<Tensor>| match t {
            Some(t) => t.flatten(0, -1),
            None => known.zeros_like().flatten(0, -1),
        };
        [of(a), of(b)]
    };
    let pairs: Vec<_> = found.iter().zip(expected).map(zeros).collect();
    let (first, adapters) = pairs.split_at(3);
    let together = |i: usize| {
        let each: Vec<_> = adapters.iter().skip(i).step_by(6).collect();
        [0, 1].map(|side| {
            let all: Vec<_> = each.iter().map(|pair| &pair[side]).collect();
            Tensor::cat(&all, 0)
        })
    };
    let adapters: Vec<_> = (0..adapters.len().min(6)).map(together).collect();
    for (i, [found, expected]) in first.iter().chain(&adapters).enumerate() {
        let away = gap(found, expected);
        assert!(away <= bound, "{what}: result {i} is {away:.1e} away");
    }
}

/// Whether every expert had a gradient, those without tokens too.
fn side_by_side(found: &Found) -> bool {
    found.iter().all(Option::is_some)
}

/// Even; three experts without tokens; and all tokens to the same two.
fn routes() -> [(&'static str, Vec<f32>); 3] {
    let some = |n: usize, by| (0..6).map(|e| if e < n { by } else { 0. }).collect();
    [("even", vec![0.; 6]), ("some", some(3, 9.)), ("two", some(2, 9.))]
}

fn cases(kind: Kind) -> Vec<(String, Case)> {
    let mut all = vec![];
    for (route, bias) in routes() {
        for quantized in [false, true] {
            for (rank, dropout) in [(None, 0.), (Some(8), 0.), (Some(8), 0.25)] {
                let bias = bias.clone();
                let sizes = [6, 2, 128, 256];
                let what =
                    format!("{kind:?} {route} {quantized} {rank:?} {dropout}");
                let case = Case { kind, quantized, sizes, rank, dropout, bias };
                all.push((what, case));
            }
        }
    }
    all
}

#[test]
fn side_by_side_is_in_turn() {
    for (what, case) in cases(Kind::Float) {
        for tokens in [1, 2, 37] {
            let expected = case.found(tokens, TRAIN);
            let found = on_cpu(|| case.found(tokens, TRAIN));
            close(&found, &expected, F32, &format!("{what}, {tokens} tokens"));
            assert!(side_by_side(&found), "{what}");
            let adapted = case.rank.is_some();
            let idle = tokens < 3 || case.bias[0] > 0.;
            assert_eq!(side_by_side(&expected), !(adapted && idle), "{what}");
        }
    }
    // Widths that the kernel for masks does not take are nothing to the CPU.
    let [_, (_, bias), _] = routes();
    let (kind, rank) = (Kind::Float, Some(4));
    let sizes = [6, 4, 20, 12];
    let case = Case { kind, quantized: true, sizes, rank, dropout: 0.4, bias };
    let found = on_cpu(|| case.found(9, TRAIN));
    close(&found, &case.found(9, TRAIN), F32, "narrow");
    assert!(side_by_side(&found));
    // Nothing falls in evaluation.
    let found = on_cpu(|| case.found(9, Mode::Eval));
    close(&found, &case.found(9, Mode::Eval), F32, "evaluation");
}

/// In bf16 all that is stored has 8 bits, and side by side some more is stored in it:
/// A, B, and what is between them. So it is further from the exact result than in turn:
/// on average at most twice, and no result more than four times as far.
#[test]
fn in_bf16_it_is_within_rounding() {
    for (what, case) in cases(Kind::BFloat16) {
        let exact = Case { kind: Kind::Float, ..case.clone() };
        let exact = exact.found(37, TRAIN);
        let in_turn = case.found(37, TRAIN);
        let found = on_cpu(|| case.found(37, TRAIN));
        assert!(side_by_side(&found), "{what}");
        let mut sums = [0.; 2];
        for ((found, in_turn), exact) in found.iter().zip(&in_turn).zip(&exact) {
            let (Some(found), Some(in_turn), Some(exact)) = (found, in_turn, exact)
            else {
                let zero = found.as_ref().expect("side by side").abs().max();
                assert_eq!(zero.double_value(&[]), 0., "{what}: no tokens");
                continue;
            };
            assert_eq!(found.kind(), in_turn.kind(), "{what}");
            let [far, usual] = [found, in_turn].map(|t| gap(t, exact));
            sums = [sums[0] + far, sums[1] + usual];
            assert!(far <= 4. * usual + 2f64.powi(-8), "{what}: {far:e} {usual:e}");
        }
        println!("{what}: {:.2} times as far as in turn", sums[0] / sums[1]);
        assert!(sums[0] <= 2. * sums[1], "{what}: {sums:?}");
    }
}

/// The kernels that only this way uses: the masks of all experts, and their weights.
#[test]
fn with_the_kernels_around_it() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (what, case) in cases(kind).into_iter().filter(|(_, c)| c.dropout > 0.) {
            let expected = on_cpu(|| case.found(9, TRAIN));
            for emulator in [&EMULATOR, &BACKWARDS] {
                let run = || on_cpu(|| case.found(9, TRAIN));
                let bound = if kind == Kind::Float { F32 } else { 2f64.powi(-6) };
                close(&emulated(emulator, run), &expected, bound, &what);
            }
        }
    }
    for name in ["dropout_rows", "nf4_dequantize_all"] {
        for kind in ["f32", "bf16"] {
            let name = format!("{name}_{kind}");
            assert!(have_run().contains(&name), "{name} has not run");
        }
    }
}

/// What goes in turn wherever it is: seen by an expert without tokens, which then has
/// no gradient.
#[test]
fn what_differs_goes_in_turn() {
    let [_, (_, bias), _] = routes();
    let sizes = [6, 2, 128, 64];
    let case = Case {
        kind: Kind::Float,
        quantized: false,
        sizes,
        rank: Some(4),
        dropout: 0.,
        bias,
    };
    type Change = fn(&mut Moe);
    fn lora(moe: &mut Moe) -> &mut Adapter {
        moe.experts[4].up.lora.as_mut().unwrap()
    }
    let changes: [(&str, Change); 9] = [
        ("no adapter", |m| m.experts[1].down.lora = None),
        ("another scale", |m| lora(m).scale = 1.),
        ("another rank", |m| {
            let l = lora(m);
            let [a, b] = [l.a.repeat([2, 1]), l.b.repeat([1, 2])];
            (l.a, l.b) = (a.detach(), b.detach());
        }),
        ("another place", |m| lora(m).place += 1),
        ("a bias of the adapter", |m| {
            lora(m).bias = Some(Tensor::zeros([64], (Kind::Float, CPU)));
        }),
        ("DoRA", |m| {
            let up = &mut m.experts[4].up;
            let dora = Dora::new(&up.weight, up.lora.as_ref().unwrap()).unwrap();
            up.lora.as_mut().unwrap().dora = Some(dora);
        }),
        ("a bias", |m| {
            m.experts[2].gate.bias = Some(Tensor::zeros([64], (Kind::Float, CPU)));
        }),
        ("one in 4 bits", |m| {
            let gate = &mut m.experts[2].gate;
            let Weight::Dense(w) = &gate.weight else { unreachable!() };
            gate.weight = Weight::Nf4(Nf4Tensor::quantize(w, 64, false).unwrap());
        }),
        ("a weight that learns", |m| {
            let Weight::Dense(w) = &m.experts[2].gate.weight else { unreachable!() };
            let _ = w.set_requires_grad(true);
        }),
    ];
    let idle = |moe: &Moe, mode| {
        let _ = on_cpu(|| case.pass(moe, 9, mode));
        moe.experts[5].down.lora.as_ref().unwrap().a.grad().defined()
    };
    assert!(idle(&case.moe(CPU), TRAIN), "nothing differs");
    for (what, change) in changes {
        let mut moe = case.moe(CPU);
        change(&mut moe);
        assert!(!idle(&moe, TRAIN), "{what}");
    }
    // Ranks that are not whole groups of 16 bytes, and rows that are not.
    for (rank, sizes) in [(3, sizes), (4, [6, 2, 128, 66])] {
        let odd = Case { rank: Some(rank), sizes, ..case.clone() };
        assert!(!idle(&odd.moe(CPU), TRAIN), "{rank} {sizes:?}");
    }
    // Masks by a kernel want rows of whole groups of draws; without masks none does.
    let narrow = Case { dropout: 0.1, ..case.clone() };
    for (mode, together) in [(TRAIN, false), (Mode::Eval, true)] {
        let moe = narrow.moe(CPU);
        assert_eq!(emulated(&EMULATOR, || idle(&moe, mode)), together);
    }
    // And without being asked to, a CPU.
    let moe = case.moe(CPU);
    let _ = case.pass(&moe, 9, TRAIN);
    assert!(!moe.experts[5].down.lora.as_ref().unwrap().a.grad().defined());
}

/// The departure. How an A moves in a step in which its expert has no token: before the
/// step, and by how much; `had`: in a step before it had some.
fn idle_step(lambda: f64, had: bool) -> (Tensor, Tensor) {
    let case = Case {
        kind: Kind::Float,
        quantized: false,
        sizes: [6, 2, 16, 8],
        rank: Some(4),
        dropout: 0.,
        bias: vec![0.; 6],
    };
    let mut moe = case.moe(CPU);
    let a = moe.experts[5].down.lora.as_ref().unwrap().a.shallow_clone();
    let named = [("a".to_string(), a.shallow_clone())];
    let params = Param::with_decay(named, |_, _| lambda);
    let mut driver = Driver::new(AdamW::default(), params);
    let mut step = |moe: &Moe| {
        driver.zero_grad();
        let _ = case.pass(moe, 40, TRAIN);
        driver.step(0.01);
    };
    if had {
        step(&moe);
    }
    moe.router.bias = Some(Tensor::from_slice(&[9f32, 9., 9., 0., 0., 0.]));
    let before = a.detach().copy();
    step(&moe);
    let moved = a.detach() - &before;
    (before, moved)
}

#[test]
fn idle_experts_move_on_by_momentum_and_decay() {
    let most = |t: &Tensor| t.abs().max().double_value(&[]);
    for (lambda, had) in [(0., true), (0.1, true), (0.1, false), (0., false)] {
        // In turn there is no gradient, and the optimizer passes the adapter over.
        assert_eq!(most(&idle_step(lambda, had).1), 0., "{lambda} {had}");
        let (before, moved) = on_cpu(|| idle_step(lambda, had));
        let decay = &before * (-0.01 * lambda);
        match had {
            // Adam's second step is about 0.67 of the first, which was the rate.
            true => assert!(most(&(moved - decay)) > 0.005, "momentum"),
            false => assert!(most(&(moved - decay)) < 1e-7, "decay alone"),
        }
    }
}

/// A whole model, four layers and sixteen experts of 4 bits, in the library's own way.
#[test]
fn a_model_learns_the_same() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny_moe");
    let run = |checkpointing: bool| {
        let options = LoadOptions {
            quantize: true,
            blocksize: 64,
            double_quant: true,
            kind: Kind::Float,
            device: CPU,
        };
        let mut model = load(&dir, &options, &mut |_, _| ()).expect("a checkpoint");
        model.checkpointing = checkpointing;
        let target_modules = Modules::AllLinear;
        let config =
            LoraConfig { r: 4, dropout: 0.1, target_modules, ..Default::default() };
        let named = attach(model.linears_mut(), &config, 1, CPU).expect("adapters");
        let mut optimizer =
            Driver::new(AdamW::default(), Param::with_decay(named, |_, _| 0.01));
        let ids = Tensor::arange(2 * 48, (Kind::Int64, CPU)) * 31 + 7;
        let ids = ids.remainder(2000).view([2, 48]);
        let losses = (0..4).map(|step| {
            optimizer.zero_grad();
            let mode = Mode::Train { seed: 1, step };
            let hidden = model.hidden(&ids, mode, None).expect("a pass");
            let hidden = hidden.narrow(1, 0, 47).flatten(0, 1);
            let targets = ids.narrow(1, 1, 47).flatten(0, 1);
            let loss = model.loss(&hidden, &targets).expect("a loss") / 94.;
            loss.backward();
            optimizer.step(1e-3);
            loss.double_value(&[])
        });
        losses.collect::<Vec<_>>()
    };
    let in_turn = run(false);
    let [found, again] = [false, true].map(|again| on_cpu(|| run(again)));
    println!("{in_turn:?}\n{found:?}");
    assert!(in_turn[3] < in_turn[0] - 0.1, "it learns");
    for (found, expected) in found.iter().zip(&in_turn) {
        // Few experts are idle for 96 tokens, if any, so that the steps are the same.
        assert!((found - expected).abs() < 1e-4 * expected);
    }
    assert_eq!(found, again, "checkpointing changes no bit");
}

/// The memory of a plan: all experts' weights of one projection, if they are few enough.
#[test]
fn a_plan_knows_what_is_unpacked() {
    let (_, config) =
        published().unwrap().into_iter().find(|(n, _)| n.contains("V2")).unwrap();
    let mut survey = Survey::of("V2-Lite", config).unwrap();
    let sketch = |side_by_side| Sketch {
        rows: 1,
        length: 512,
        kind: Kind::BFloat16,
        nf4: Some(64),
        r: 16,
        targets: &["all-linear"],
        dropout: true,
        checkpointing: true,
        cuda: true,
        side_by_side,
    };
    let part =
        |survey: &Survey, s| Memory::planned(survey, &s).part(Memory::UNPACKED);
    assert_eq!(part(&survey, sketch(true)), 64 * 1408 * 2048 * 2);
    assert_eq!(part(&survey, sketch(false)), 10944 * 2048 * 2);
    // More than a GiB: in turn.
    survey.config.experts.as_mut().unwrap().routed = 256;
    assert_eq!(part(&survey, sketch(true)), 10944 * 2048 * 2);
}

/// On a card: the results of the CPU, in turn.
#[test]
fn on_cuda_side_by_side_is_in_turn() {
    let Some(device) = cuda() else { return };
    let [major, _] = capability(0).expect("the driver tells");
    let grouped = (9..=10).contains(&major);
    for (what, case) in cases(Kind::BFloat16) {
        let exact = Case { kind: Kind::Float, ..case.clone() };
        let exact = exact.found(370, TRAIN);
        let in_turn = case.found(370, TRAIN);
        let moe = case.moe(device);
        let found = case.pass(&moe, 370, TRAIN);
        // Without adapters no gradient tells which way it went.
        assert_eq!(side_by_side(&found), grouped || side_by_side(&in_turn));
        for ((found, in_turn), exact) in found.iter().zip(&in_turn).zip(&exact) {
            let (Some(found), Some(in_turn), Some(exact)) = (found, in_turn, exact)
            else {
                let most = found.as_ref().map(|t| t.abs().max().double_value(&[]));
                assert!(most.is_none_or(|most| most == 0.), "{what}: no tokens");
                continue;
            };
            let [far, usual] = [found, in_turn].map(|t| gap(t, exact));
            assert!(far <= 4. * usual + 2f64.powi(-8), "{what}: {far:e} {usual:e}");
        }
        // Nothing adds in the order of chance.
        let again = case.pass(&case.moe(device), 370, TRAIN);
        for (found, again) in found.iter().flatten().zip(again.iter().flatten()) {
            assert!(same_bits(found, again), "{what}");
        }
    }
}
