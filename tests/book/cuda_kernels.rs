//! The CUDA kernels against their twins in libtorch's operations: on the CPU, by the
//! emulator of `cuda_host`, and on a card where there is one.
use crate::common::{cuda, wave};
use crate::cuda_host::{BACKWARDS, EMULATOR, Emulator, have_run};
use crate::golden::{gap, same_bits};
use downhill::cuda::{Mask, MaskedRows, emulated, kernels};
use downhill::nn::dropout::dropout;
use downhill::nn::{
    Adapter, Linear, Mode, RmsNorm, Rope, RopeScaling, SwiGlu, cross_entropy,
    tokens_at_once,
};
use downhill::optim::{
    Adam, AdamW, Driver, Optimizer, Param, Rule, clip_grad_norm_late,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{Device, Kind, Tensor};

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];
const CPU: Device = Device::Cpu;

/// Where kernels run: by the emulator, or on a card.
#[derive(Clone, Copy)]
pub enum On {
    Emulator(&'static Emulator),
    Card(Device),
}

impl On {
    /// What `f` gives with kernels; and without, on the CPU, which is what they have to
    /// give.
    fn both<T>(self, f: impl Fn(Device) -> T) -> (T, T) {
        let found = match self {
            Self::Emulator(emulator) => emulated(emulator, || f(CPU)),
            Self::Card(device) => f(device),
        };
        (found, f(CPU))
    }
}

/// Every case by the emulator, the threads of a block in one order and in the other.
fn on_the_host(case: impl Fn(On)) {
    case(On::Emulator(&EMULATOR));
    case(On::Emulator(&BACKWARDS));
}

fn on_a_card(case: impl Fn(On)) {
    if let Some(device) = cuda() {
        case(On::Card(device));
    }
}

/// The largest gap that rounding explains: in f32 that of sums in another order, in
/// bf16, whose numbers have 8 bits, one unit in the last place of the largest number.
fn bound(kind: Kind) -> f64 {
    if kind == Kind::BFloat16 { 2f64.powi(-7) } else { 2e-6 }
}

#[track_caller]
fn close(what: &str, (found, expected): &(Vec<Tensor>, Vec<Tensor>)) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.kind(), expected.kind(), "{what}: result {i}");
        let (far, found) = (bound(found.kind()), found.to_device(CPU));
        let away = gap(&found, expected);
        assert!(away <= far, "{what}: result {i} is {away:.1e} away");
    }
}

/// Numbers without a pattern, so many that no two places have the same.
fn numbers(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    let x = wave(shape, Kind::Double) * 3. - 0.3;
    x.to_kind(kind).to_device(device)
}

fn leaf(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    numbers(shape, kind, device).set_requires_grad(true)
}

/// `Σ w y` with unequal w, so that no two places of a gradient are alike.
fn weighed(y: &Tensor) -> Tensor {
    let w = numbers(&y.size(), Kind::Float, CPU).cos().to_kind(y.kind());
    (y * w.to_device(y.device())).sum(Kind::Float)
}

/// What was computed, and the gradients of what it was computed from.
fn results<const N: usize>(found: [Tensor; N], leaves: &[&Tensor]) -> Vec<Tensor> {
    found.into_iter().chain(leaves.iter().map(|x| x.grad())).collect()
}

fn norms(on: On) {
    let shapes = [[1, 1], [3, 7], [2, 64], [5, 130], [1, 1028], [40, 33], [3, 2048]];
    for (kind, shape) in KINDS.iter().flat_map(|&k| shapes.map(|s| (k, s))) {
        let what = format!("{kind:?} {shape:?}");
        let norm = |x: &Tensor| RmsNorm { weight: x.shallow_clone(), eps: 1e-5 };
        let alone = on.both(|device| {
            let (x, w) =
                (leaf(&shape, kind, device), leaf(&shape[1..], kind, device));
            let y = norm(&w).forward(&x).expect("a norm");
            weighed(&y).backward();
            results([y.detach()], &[&x, &w])
        });
        close(&what, &alone);
        // The stream beside it: gradients come by the sum, by the norm, and by both.
        for (by_sum, by_norm, adds) in [
            (true, true, true),
            (false, true, true),
            (true, false, true),
            (true, true, false),
        ] {
            let joined = on.both(|device| {
                let x = leaf(&shape, kind, device);
                let more = (numbers(&shape, kind, device) * 0.7 + 0.1).detach();
                let more = more.set_requires_grad(true);
                let w = numbers(&shape[1..], kind, device);
                let (s, y) =
                    norm(&w).join(&x, adds.then_some(&more)).expect("a norm");
                let parts =
                    [by_sum.then(|| weighed(&s)), by_norm.then(|| weighed(&y))];
                parts.into_iter().flatten().reduce(|a, b| a + b).unwrap().backward();
                let inputs = if adds { vec![&x, &more] } else { vec![&x] };
                results([s.detach(), y.detach()], &inputs)
            });
            close(&format!("{what} {by_sum} {by_norm} {adds}"), &joined);
        }
    }
}

fn rotations(on: On) {
    let shapes = [[1, 1, 2], [3, 2, 6], [5, 4, 8], [7, 3, 64], [33, 5, 34]];
    // The second is the kind of the angles: f32 as well where x is in 16 bits, in
    // DeepSeek-V2 and V3.
    let kinds =
        [[Kind::Float; 2], [Kind::BFloat16; 2], [Kind::BFloat16, Kind::Float]];
    for ([kind, angles], [n, h, k]) in
        kinds.iter().flat_map(|&k| shapes.map(|s| (k, s)))
    {
        for (neighbours, part) in [(false, false), (true, false), (false, true)] {
            let turned = on.both(|device| {
                let positions: Vec<i64> = (0..n).map(|i| 3 * i + 1).collect();
                let rope = Rope { theta: 100., scaling: RopeScaling::Default };
                let rotation = rope.rotation(&positions, k, angles, device);
                // Or as a part of wider rows, as latent attention has it.
                let wide = leaf(&[n, h, k + 3], kind, device);
                let x = match part {
                    true => wide.narrow(2, 2, k),
                    false => wide.narrow(2, 2, k).contiguous(),
                };
                let y = match neighbours {
                    true => rotation.apply_to_neighbours(&x),
                    false => rotation.apply(&x),
                };
                let y = y.expect("a rotation");
                weighed(&y).backward();
                vec![y.detach(), wide.grad()]
            });
            let what =
                format!("{kind:?} {angles:?} {n} {h} {k} {neighbours} {part}");
            close(&what, &turned);
            // A card has cosines of its own; by the same ones, it is the same bits.
            if let On::Emulator(_) = on {
                let (found, expected) = &turned;
                for (found, expected) in found.iter().zip(expected) {
                    assert!(same_bits(found, expected), "{what}");
                }
            }
        }
    }
}

fn gates(on: On) {
    let shapes = [[1, 1], [1, 3], [5, 7], [3, 64], [9, 129], [4, 1024]];
    for (kind, [n, f]) in KINDS.iter().flat_map(|&k| shapes.map(|s| (k, s))) {
        let gated = on.both(|device| {
            let x = numbers(&[n, 3], kind, device);
            let dense = |shape: [i64; 2], by: f64| {
                let w = (numbers(&shape, kind, device) * by).detach();
                Linear::dense(w.set_requires_grad(true), None)
            };
            let down = dense([2, f], 0.1);
            let mlp =
                SwiGlu { gate: dense([f, 3], 1.), up: dense([f, 3], 0.9), down };
            let y = mlp.forward(&x, Mode::Eval).expect("a layer");
            weighed(&y).backward();
            let leaves = mlp.linears().map(|(_, l)| match &l.weight {
                downhill::nn::Weight::Dense(w) => w.grad(),
                _ => unreachable!(),
            });
            [y.detach()].into_iter().chain(leaves).collect()
        });
        close(&format!("{kind:?} {n} {f}"), &gated);
    }
}

fn losses(on: On) {
    let shapes = [[1, 1, 2], [3, 5, 7], [4, 8, 128], [9, 6, 1029]];
    for (kind, [s, d, v]) in KINDS.iter().flat_map(|&k| shapes.map(|s| (k, s))) {
        for (learns_h, learns_w) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let lost = on.both(|device| {
                let h = numbers(&[s, d], kind, device).set_requires_grad(learns_h);
                let w = numbers(&[v, d], kind, device).set_requires_grad(learns_w);
                let targets =
                    (Tensor::arange(s, (Kind::Int64, device)) * 5).remainder(v);
                let loss = cross_entropy(&h, &w, &targets).expect("a loss");
                if learns_h || learns_w {
                    (&loss * 0.5).backward();
                }
                let of = [(learns_h, &h), (learns_w, &w)];
                let found = of.iter().filter(|(learns, _)| *learns);
                let found = found.map(|(_, t)| t.grad());
                std::iter::once(loss.detach()).chain(found).collect::<Vec<_>>()
            });
            // Products in bf16 of what was rounded to bf16: two roundings apart.
            let (found, expected) = &lost;
            for (found, expected) in found.iter().zip(expected) {
                let away = gap(&found.to_device(CPU), expected);
                let most = if kind == Kind::Float { 2e-6 } else { 2f64.powi(-6) };
                assert!(away <= most, "{kind:?} {s} {d} {v}: {away:.1e}");
            }
        }
    }
    // The kernel alone, on what does not come from a product.
    let device = if let On::Card(device) = on { device } else { CPU };
    let run = |z: &Tensor, targets: &[i64], gradient| {
        let mut z = z.copy().to_device(device);
        let targets = Tensor::from_slice(targets).to_device(device);
        let mut loss = || {
            let kernels = kernels(&[&z.shallow_clone()]).expect("kernels");
            kernels.cross_entropy(&mut z, &targets, -100, gradient).expect("a loss")
        };
        let loss = match on {
            On::Emulator(emulator) => emulated(emulator, loss),
            On::Card(_) => loss(),
        };
        (Vec::<f32>::try_from(loss.to_device(CPU)).unwrap(), z.to_device(CPU))
    };
    let z = numbers(&[4, 301], Kind::Float, CPU);
    let (loss, dz) = run(&z, &[0, -100, 300, 301], true);
    let log_p = z.log_softmax(-1, None);
    let expected = [-log_p.double_value(&[0, 0]), -log_p.double_value(&[2, 300])];
    assert!((f64::from(loss[0]) - expected[0]).abs() < 1e-5);
    assert!((f64::from(loss[2]) - expected[1]).abs() < 1e-5);
    // Left out: nothing lost, nothing learned. No class: not a number.
    assert_eq!(loss[1], 0.);
    assert_eq!(dz.get(1).abs().max().double_value(&[]), 0.);
    assert!(loss[3].is_nan());
    let p = log_p.exp();
    let _ = p.get(0).get(0).f_sub_scalar_(1.).unwrap();
    assert!(gap(&dz.get(0), &p.get(0)) < 1e-6);
    // Without a gradient the scores stay.
    assert!(same_bits(&run(&z, &[0, 1, 2, 3], false).1, &z));
    // Scores that would overflow, and classes that cannot be.
    let z = Tensor::from_slice(&[1000f32, f32::NEG_INFINITY, 999., -1000.]);
    let (loss, dz) = run(&z.view([1, 4]), &[2], true);
    assert!((loss[0] - 1.313_261_6).abs() < 1e-6, "{loss:?}");
    assert_eq!(dz.double_value(&[0, 1]), 0.);
    // What is not a number stays none.
    for bad in [f32::NAN, f32::INFINITY] {
        let z = Tensor::from_slice(&[0f32, bad, 1., 2., 3.]).view([1, 5]);
        assert!(run(&z, &[0], true).0[0].is_nan());
    }
}

/// Every operation rounds as in the rule. But libtorch's square root on the CPU is
/// MKL's, which is not always the nearest number: what comes after one, which are the
/// parameters and where decay is part of the gradient also the moments, may differ in
/// the last place.
fn steps_of(on: On) {
    fn compare<R: Rule<2> + Copy + 'static>(on: On, rule: R, exact: bool) {
        let (found, expected) = on.both(|device| {
            let sizes = (0..70).map(|i| [1, 3, 4, 31, 1025, 4096][i % 6] + i as i64);
            let named = sizes.enumerate().map(|(i, n)| {
                let x = (numbers(&[n], Kind::Float, device) + i as f64).detach();
                (format!("{i:02}"), x.set_requires_grad(true))
            });
            let decay = |name: &str, _: &Tensor| {
                if name.ends_with('3') { 0. } else { 0.1 }
            };
            let params = Param::with_decay(named.collect::<Vec<_>>(), decay);
            let mut driver = Driver::new(rule, params);
            for step in 1..5 {
                driver.zero_grad();
                for (i, p) in driver.params().iter().enumerate() {
                    // Some have no gradient now and then: their own steps differ.
                    if (i + step) % 4 > 0 {
                        let by = 1e-3 * step as f64 * (i as f64 - 30.);
                        (weighed(&p.tensor) * by).backward();
                    }
                }
                driver.step(1e-2 / step as f64);
            }
            let params = driver.params().iter();
            let params = params.map(|p| (p.name.clone(), p.tensor.detach()));
            driver.state().into_iter().chain(params).collect::<Vec<_>>()
        });
        assert_eq!(found.len(), 70 * 4);
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            let moment = name.ends_with(".m") || name.ends_with(".v");
            let found = found.to_device(CPU);
            match on {
                On::Emulator(_) if exact && moment => {
                    assert!(same_bits(&found, expected), "{name}");
                }
                _ => {
                    let away = gap(&found, expected);
                    assert!(away < 3e-7, "{name} is {away:.1e} away");
                }
            }
        }
    }
    let climb = Adam { beta1: 0.8, beta2: 0.95, eps: 1e-6, maximize: true };
    compare(on, AdamW::default(), true);
    compare(on, AdamW(climb), true);
    compare(on, Adam::default(), false);
    compare(on, climb, false);
}

fn masks(on: On) {
    let mode = |step| Mode::Train { seed: 7 + (9 << 32), step };
    for n in [1, 15, 16, 17, 127, 128, 129, 4099] {
        for (kind, step) in [(Kind::Float, 3), (Kind::BFloat16, 5 + (1 << 33))] {
            let (found, expected) = on.both(|device| {
                let x = leaf(&[n], kind, device);
                let y = dropout(&x, 0.3, mode(step), (1 << 31) + 2);
                weighed(&y).backward();
                [y.detach(), x.grad()].map(|t| t.to_device(CPU))
            });
            for (found, expected) in found.iter().zip(&expected) {
                assert!(same_bits(found, expected), "{n} {kind:?}");
            }
        }
    }
    // Rows of several dropouts: each has the mask that it would have by itself.
    let counts = [3, 1, 40, 2];
    for (kind, width) in [(Kind::Float, 128), (Kind::BFloat16, 384)] {
        let rows = counts.iter().sum::<i64>();
        let (found, expected) = on.both(|device| {
            let x = numbers(&[rows, width], kind, device);
            let ends = Tensor::from_slice(&[3i32, 4, 44, 46]).to_device(device);
            let owner = (0..).zip(counts).flat_map(|(e, n)| vec![e; n as usize]);
            let owner = Tensor::from_slice(&owner.collect::<Vec<i64>>());
            let owner = &owner.to_device(device);
            let Some(kernels) = kernels(&[&x]) else {
                let parts = (5..).step_by(3).zip(x.split_with_sizes(counts, 0));
                let each = parts.map(|(place, x)| {
                    dropout(&x.to_kind(Kind::Float), 0.3, mode(8), place)
                });
                return Tensor::cat(&each.collect::<Vec<_>>(), 0).to_kind(kind);
            };
            let rows = MaskedRows { owner, ends: &ends, apart: 3 };
            let below = (0.3f64 * 65536.).round() as u32;
            let kept = (1. / (1. - f64::from(below) / 65536.)) as f32;
            let Mode::Train { seed, step } = mode(8) else { unreachable!() };
            let mask = Mask { seed, step, place: 5, below, kept };
            let found = kernels.dropout_rows(&x, &rows, mask).expect("a kernel");
            found.to_device(CPU)
        });
        assert!(same_bits(&found, &expected), "rows of {width} {kind:?}");
    }
    // In an adapter: the mask is drawn again in backward.
    for (x_kind, a_kind) in [
        (Kind::Float, Kind::Float),
        (Kind::BFloat16, Kind::Float),
        (Kind::BFloat16, Kind::BFloat16),
        (Kind::Float, Kind::BFloat16),
    ] {
        for p in [0., 0.4] {
            let adapted = on.both(|device| {
                let x = leaf(&[2, 5, 33], x_kind, device);
                let w = numbers(&[6, 33], x_kind, device);
                let [a, b] = [[4, 33], [6, 4]].map(|s| leaf(&s, a_kind, device));
                let mut linear = Linear::dense(w, None);
                let adapter =
                    Adapter::new(a.shallow_clone(), b.shallow_clone(), 0.5);
                linear.lora = Some(Adapter { dropout: p, place: 3, ..adapter });
                let y = linear.forward(&x, mode(8)).expect("a layer");
                weighed(&y).backward();
                results([y.detach()], &[&x, &a, &b])
            });
            close(&format!("{x_kind:?} {a_kind:?} {p}"), &adapted);
        }
    }
}

/// The joint norm and the scaling of more gradients than one launch takes, of one number
/// and of more than one round of all threads.
fn clips(on: On) {
    let params = |device: Device, count: i64, by: f64| {
        let size = |i: i64| [1, 3, 4, 31, 1025, 20_000][i as usize % 6] + i % 4;
        let named = (0..count).map(|i| {
            let x = leaf(&[size(i)], Kind::Float, device);
            (weighed(&x) * by).backward();
            (format!("{i}"), x)
        });
        Param::with_decay(named.collect::<Vec<_>>(), |_, _| 0.)
    };
    let grads = |params: &[Param]| -> Vec<Tensor> {
        params.iter().map(|p| p.tensor.grad()).collect()
    };
    // Where a number is none, all become zero.
    for (by, loss) in [(f64::INFINITY, 1.), (f64::NAN, 1.), (1., f64::NAN)] {
        let (found, _) = on.both(|device| {
            let params = params(device, 6, by);
            let loss = Tensor::from(loss).to_device(device);
            let _ = clip_grad_norm_late(&params, 1., &loss);
            grads(&params).iter().map(|g| g.abs().max()).collect::<Vec<_>>()
        });
        assert!(
            found.iter().all(|most| most.double_value(&[]) == 0.),
            "{by} {loss}"
        );
    }
    for (count, max) in [(6, 1.), (7, 250.), (8, f64::INFINITY), (130, 1.)] {
        let clipped = on.both(|device| {
            let params = params(device, count, 1.);
            let one = Tensor::ones([], (Kind::Float, device));
            let norm = clip_grad_norm_late(&params, max, &one);
            [norm].into_iter().chain(grads(&params)).collect::<Vec<_>>()
        });
        close(&format!("{count} {max}"), &clipped);
    }
}

#[test]
fn the_heads_parts_are_even_on_a_gpu() {
    for (tokens, vocabulary) in
        [(2044, 102_400), (8188, 102_400), (1, 102_400), (700, 50), (0, 7)]
    {
        let n = tokens_at_once(tokens, vocabulary, true);
        assert!(n > 0 && n % 128 == 0, "{n}");
        assert!((n - 127) * vocabulary <= 1 << 26, "{tokens} {vocabulary}: {n}");
        let few = (tokens * vocabulary + (1 << 26)) >> 26;
        assert!(
            tokens as f64 / n as f64 <= few as f64,
            "{tokens} {vocabulary}: {n}"
        );
    }
    assert_eq!(tokens_at_once(2044, 102_400, true), 512);
    assert_eq!(tokens_at_once(2044, 102_400, false), 163);
}

const CASES: [(&str, fn(On)); 7] = [
    ("clip", clips),
    ("rms_norm", norms),
    ("rope", rotations),
    ("swiglu", gates),
    ("cross_entropy", losses),
    ("adam", steps_of),
    ("dropout", masks),
];

/// And each of them leaves no kernel of its file out.
#[test]
fn kernels_are_their_twins() {
    for (name, case) in CASES {
        on_the_host(case);
        let source = downhill::cuda::SOURCES.iter().find(|s| s.name == name);
        let all = crate::cuda_host::kernels(&source.expect(name).text());
        assert!(!all.is_empty(), "{name}");
        let run = have_run();
        let not: Vec<_> = all.iter().filter(|k| !run.contains(*k)).collect();
        assert!(not.is_empty(), "{not:?} of {name} have not run");
    }
}

#[test]
fn on_cuda_kernels_are_their_twins() {
    for (_, case) in CASES {
        on_a_card(case);
    }
}

/// What the comparisons are worth: each fault makes one fail.
#[test]
fn faults_in_kernels_are_found() {
    let faults: [(fn(On), [&str; 2]); 13] = [
        (clips, ["factor == 0.0f ? 0.0f : x[j] * factor", "x[j] * factor"]),
        (clips, ["blockIdx.y * gridDim.x", "blockIdx.y"]),
        // A barrier is missing; some threads only come to one.
        (
            norms,
            [
                "    __syncthreads();\n    if (t < half) part[t] +=",
                "    if (t < half) part[t] +=",
            ],
        ),
        (
            norms,
            [
                "  __syncthreads();\n  float sum",
                "  if (t < 3) __syncthreads();\n  float sum",
            ],
        ),
        // Rounded once instead of twice; a row too far; a tail forgotten.
        (norms, ["+ more[j]", "+ more[j] * 1.01f"]),
        (norms, ["row < rows", "row < rows - 1"]),
        (
            gates,
            ["if (i >= n) return;\n  float g", "if (i + 4 > n) return;\n  float g"],
        ),
        (rotations, ["float across = sign * s[j]", "float across = s[j]"]),
        (losses, ["known ? -", "true ? -"]),
        (
            steps_of,
            [
                "__fadd_rn(__fmul_rn(m[j], beta1), __fmul_rn(rest1, g[j]))",
                "__fmaf_rn(m[j], beta1, __fmul_rn(rest1, g[j]))",
            ],
        ),
        (masks, ["round < 10", "round < 9"]),
        (masks, ["ends[e - 1]", "ends[e]"]),
        (masks, ["place + (u32)e * apart", "place + (u32)e"]),
    ];
    for (case, fault) in faults {
        let emulator = Emulator { backwards: false, fault: Some(fault) };
        let emulator = Box::leak(Box::new(emulator));
        // A fault that ends in the middle of a kernel leaves this thread without
        // gradients, for lack of which all that follow would be found.
        let run = || tch::with_grad(|| case(On::Emulator(emulator)));
        let run = AssertUnwindSafe(run);
        assert!(catch_unwind(run).is_err(), "{fault:?} went unnoticed");
    }
}
