//! The 4-bit kernels against their twin, the operations of `quant::nf4` and
//! `quant::double`: on the CPU, by the emulator of `cuda_host`, and on a card where
//! there is one.
use crate::common::{cuda, refused, wave};
use crate::cuda_host::{BACKWARDS, EMULATOR, Emulator, have_run};
use downhill::cuda::{Nf4Matrix, emulated, kernels};
use downhill::quant::{Absmax, BLOCKSIZES, Nf4Tensor, double, nf4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{Device, Kind, Tensor};

const CPU: Device = Device::Cpu;
const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

/// Runs `f` where kernels are: under the emulator, threads in both orders, or on a card.
fn by_emulator(f: impl Fn(Device)) {
    for emulator in [&EMULATOR, &BACKWARDS] {
        emulated(emulator, || f(CPU));
    }
}

fn by_card(f: impl Fn(Device)) {
    if let Some(device) = cuda() {
        assert_eq!(downhill::cuda::unavailable(0), None);
        f(device);
    }
}

#[track_caller]
fn same(found: &Tensor, expected: &Tensor, what: &str) {
    let bits = |t: &Tensor| {
        let t = t.to_device(CPU).flatten(0, -1).contiguous();
        let size = t.kind().elt_size_in_bytes();
        let mut bytes = vec![0u8; t.numel() * size];
        t.copy_data_u8(&mut bytes, t.numel());
        bytes.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let (found, expected) = (bits(found), bits(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    let differ = found.iter().zip(&expected).position(|(a, b)| a != b);
    if let Some(i) = differ {
        panic!(
            "{what}: element {i} is {:x?}, expected {:x?}",
            found[i], expected[i]
        );
    }
}

/// A matrix with all that is awkward: zero blocks, borders, denormals, equal blocks.
fn awkward(shape: [i64; 2]) -> Tensor {
    let n = shape[0] * shape[1];
    let mut w = Vec::<f32>::try_from(wave(&[n], Kind::Float) * 0.1).unwrap();
    for (i, x) in w.iter_mut().enumerate() {
        let (block, border) = (i / 64, nf4::THRESHOLDS[i % 15]);
        // Borders, in a block whose scale they are given for.
        let borders = |scale| if i % 64 == 0 { scale } else { border * scale };
        match block % 7 {
            1 => *x = 0.,
            2 => *x = borders(1.),
            3 => *x *= 1e-40,
            4 => *x = 1.,
            5 => *x *= -1e30,
            6 => *x = borders(0.3 + 0.37 * block as f32),
            _ => {}
        }
    }
    Tensor::from_slice(&w).view(shape)
}

/// Sizes: one, odd, less than a block, not of whole blocks, and more than a block of
/// threads takes (8,192 weights in 16 bits, 4,096 in f32).
const SHAPES: [[i64; 2]; 8] =
    [[1, 1], [1, 7], [3, 11], [5, 64], [7, 129], [64, 96], [33, 257], [96, 190]];

fn quantizes(device: Device) {
    for shape in SHAPES {
        for kind in [Kind::Float, Kind::BFloat16] {
            for blocksize in BLOCKSIZES {
                let w = awkward(shape).to_kind(kind);
                let (packed, absmax) = nf4::encode(&w, blocksize);
                let q = Nf4Tensor::quantize(&w.to_device(device), blocksize, false);
                let q = q.unwrap();
                let what = format!("{shape:?} {kind:?} in blocks of {blocksize}");
                same(q.packed(), &packed, &what);
                same(&q.absmax(), &absmax, &what);
            }
        }
    }
}

fn dequantizes(device: Device) {
    for shape in SHAPES {
        for blocksize in BLOCKSIZES {
            for double_quant in [false, true] {
                let (packed, absmax) = nf4::encode(&awkward(shape), blocksize);
                let (stored, scales) = match double_quant {
                    false => (Absmax::Plain(absmax.copy()), absmax),
                    true => {
                        let (codes, nested_absmax, mean) = double::encode(&absmax);
                        let code = Tensor::from_slice(&double::dynamic_map());
                        let offset = f32::try_from(mean).unwrap();
                        let scales =
                            double::decode(&codes, &nested_absmax, &code, offset);
                        let stored =
                            Absmax::Double { codes, nested_absmax, code, offset };
                        (stored, scales)
                    }
                };
                let n = shape[0] * shape[1];
                let twin = nf4::decode(&packed, &scales, blocksize, n);
                let q = Nf4Tensor::from_parts(packed, stored, shape, blocksize);
                let q = q.unwrap().to_device(device);
                for kind in KINDS {
                    let what = format!(
                        "{shape:?} {kind:?} in blocks of {blocksize}, {double_quant}"
                    );
                    same(&q.dequantize(kind), &twin.to_kind(kind), &what);
                    // Off the grid of 16 bytes.
                    let room = Tensor::zeros([n + 1], (kind, device));
                    let out = room.narrow(0, 1, n);
                    q.dequantize_into(&out).unwrap();
                    same(&out, &twin.to_kind(kind), &what);
                    assert_eq!(room.double_value(&[0]), 0., "{what}: one before");
                }
            }
        }
    }
}

/// More matrices than one launch takes, all of one size, of two kinds.
fn dequantizes_all(device: Device) {
    for (shape, blocksize) in [([3, 11], 32), ([8, 40], 64), ([96, 190], 64)] {
        let w = awkward(shape);
        let made = [(w.copy(), true), (-w, false)].map(|(w, double_quant)| {
            let q = Nf4Tensor::quantize(&w, blocksize, double_quant).unwrap();
            q.to_device(device)
        });
        let all: Vec<_> = (0..67).map(|i| &made[(i / 3) % 2]).collect();
        for kind in KINDS {
            let [n, m] = shape;
            let out = Tensor::empty([67, n, m], (kind, device));
            Nf4Tensor::dequantize_all(&all, &out).unwrap();
            let each: Vec<_> = all.iter().map(|q| q.dequantize(kind)).collect();
            let expected = Tensor::stack(&each, 0);
            same(&out, &expected, &format!("67 of {shape:?} {kind:?}"));
        }
    }
    let q = Nf4Tensor::quantize(&awkward([4, 64]), 64, true).unwrap();
    let q = q.to_device(device);
    let out = Tensor::empty([2, 4, 63], (Kind::Float, device));
    refused(Nf4Tensor::dequantize_all(&[&q, &q], &out), &["63", "[2, 4, 64]"]);
}

fn multiplies(device: Device) {
    for [out, input] in [[1, 32], [5, 64], [9, 352], [6, 1408], [3, 8224]] {
        let w = wave(&[out, input], Kind::Float) - 0.5;
        let q = Nf4Tensor::quantize(&w, 64, true).unwrap().to_device(device);
        let dense = q.dequantize(Kind::Float).to_device(CPU);
        for rows in 1..=9 {
            for kind in KINDS {
                // Nine are left to libtorch, which rounds the weights to the kind.
                if rows == 9 && kind != Kind::Float {
                    continue;
                }
                let x = (wave(&[1, rows, input], Kind::Float) - 0.5).to_kind(kind);
                let y = q.matmul_t(&x.to_device(device)).unwrap();
                assert_eq!((y.size(), y.kind()), (vec![1, rows, out], kind));
                let exact = x.to_kind(Kind::Double);
                let exact = exact.matmul(&dense.to_kind(Kind::Double).tr());
                // Sums of `input` terms in f32, and one rounding to `kind`.
                let terms = x.to_kind(Kind::Double).abs();
                let terms = terms.matmul(&dense.to_kind(Kind::Double).abs().tr());
                let of_kind = match kind {
                    Kind::Float => 0.,
                    Kind::BFloat16 => 2f64.powi(-8),
                    _ => 2f64.powi(-11),
                };
                let allowed = terms * 2e-6 + exact.abs() * of_kind * 1.01;
                let gap = (y.to_device(CPU).to_kind(Kind::Double) - exact).abs();
                let most = (gap / allowed).max().double_value(&[]);
                assert!(most <= 1., "{rows} x [{out}, {input}] {kind:?}: {most}");
            }
        }
    }
}

/// What a layer may add to its product: a bias; A, B and s.
type Added = (Option<Tensor>, Option<(Tensor, Tensor, f64)>);

/// Layers [out, in] with all that they may add, and with ranks that differ.
fn layers(outs: &[i64], input: i64, kind: Kind) -> Vec<(Nf4Tensor, Added)> {
    let layer = |(i, &out): (usize, &i64)| {
        let some = |shape: &[i64]| wave(shape, Kind::Float) - 0.5 + 0.01 * i as f64;
        let q = Nf4Tensor::quantize(&some(&[out, input]), 64, i != 1).unwrap();
        let bias = (i != 1).then(|| (some(&[out]) * 3.).to_kind(kind));
        let rank = [3, 0, 5][i];
        let pair = (rank > 0)
            .then(|| (some(&[rank, input]), some(&[out, rank]) * 2., 0.75));
        (q, (bias, pair))
    };
    outs.iter().enumerate().map(layer).collect()
}

fn there((q, (bias, pair)): &(Nf4Tensor, Added), to: Device) -> (Nf4Tensor, Added) {
    let q = q.to_device(to);
    let pair = pair.as_ref().map(|(a, b, s)| (a.to_device(to), b.to_device(to), *s));
    (q, (bias.as_ref().map(|b| b.to_device(to)), pair))
}

fn matrix((q, (bias, pair)): &(Nf4Tensor, Added)) -> Nf4Matrix<'_> {
    let low_rank = pair.as_ref().map(|(a, b, s)| (a, b, *s));
    Nf4Matrix { bias: bias.as_ref(), low_rank, ..q.matrix() }
}

/// What the layer gives for `x` in the order of its definition, every result rounded to
/// `kind`, in f64 otherwise; and how far rounding may lead from it.
fn by_hand(x: &Tensor, (q, (bias, pair)): &(Nf4Tensor, Added)) -> [Tensor; 2] {
    let kind = x.kind();
    let wide = |t: &Tensor| t.to_kind(Kind::Double);
    let round = |t: &Tensor| t.to_kind(kind).to_kind(Kind::Double);
    let of_kind = match kind {
        Kind::Float => 2f64.powi(-24),
        Kind::BFloat16 => 2f64.powi(-8),
        _ => 2f64.powi(-11),
    };
    let (x, w) = (wide(x), wide(&q.dequantize(Kind::Float)));
    let exact = x.matmul(&w.tr());
    let mut y = round(&exact);
    let mut far = x.abs().matmul(&w.abs().tr()) * 2e-6 + y.abs() * of_kind * 1.01;
    if let Some(bias) = bias {
        y = round(&(&y + wide(bias)));
        far += y.abs() * of_kind * 1.01;
    }
    if let Some((a, b, s)) = pair {
        let (a, b) = (round(a), round(b));
        let h = round(&(round(&x.matmul(&a.tr())) * *s));
        y = round(&(&y + h.matmul(&b.tr())));
        // h is rounded twice.
        let terms = x.abs().matmul(&a.abs().tr()) * (2e-6 * s);
        let off = terms + h.abs() * of_kind * 2.1;
        far += off.matmul(&b.abs().tr()) + h.abs().matmul(&b.abs().tr()) * 2e-6;
        far += y.abs() * of_kind * 1.01;
    }
    [y, far]
}

#[track_caller]
fn within(found: &Tensor, expected: &Tensor, far: &Tensor, what: &str) {
    let gap = (found.to_device(CPU).to_kind(Kind::Double) - expected).abs();
    let most = (gap / (far + 1e-30)).max().double_value(&[]);
    assert!(most <= 1., "{what}: {most} times what rounding explains");
}

/// Several matrices in one launch, with what their layers add.
fn multiplies_together(device: Device) {
    for outs in [&[5][..], &[6, 9], &[9, 2, 4], &[1, 1, 8]] {
        for (rows, kind) in (1..=8).flat_map(|r| KINDS.map(|k| (r, k))) {
            let input = 96;
            let here = layers(outs, input, kind);
            let moved: Vec<_> = here.iter().map(|l| there(l, device)).collect();
            let x = (wave(&[rows, input], Kind::Float) - 0.4).to_kind(kind);
            let there = x.to_device(device);
            let at = Tensor::zeros([1], (Kind::Float, device));
            let kernels = kernels(&[&at]).expect("kernels");
            let all: Vec<_> = moved.iter().map(matrix).collect();
            let found = kernels.nf4_products(&there, &all).unwrap().expect("served");
            assert_eq!(found.len(), outs.len());
            for (i, y) in found.iter().enumerate() {
                let what = format!("{i} of {outs:?}, {rows} rows in {kind:?}");
                assert_eq!((y.size(), y.kind()), (vec![rows, outs[i]], kind));
                let [expected, far] = by_hand(&x, &here[i]);
                within(y, &expected, &far, &what);
                let alone = kernels.nf4_products(&there, &all[i..=i]).unwrap();
                same(y, &alone.expect("served")[0], &what);
            }
        }
    }
}

/// A gate and what it gates.
fn gates(device: Device) {
    for (rows, kind) in (1..=8).flat_map(|r| KINDS.map(|k| (r, k))) {
        let here = layers(&[7, 7], 96, kind);
        let moved: Vec<_> = here.iter().map(|l| there(l, device)).collect();
        let x = (wave(&[rows, 96], Kind::Float) - 0.4).to_kind(kind);
        let at = Tensor::zeros([1], (Kind::Float, device));
        let kernels = kernels(&[&at]).expect("kernels");
        let all: Vec<_> = moved.iter().map(matrix).collect();
        let found = kernels.nf4_swiglu(&x.to_device(device), &all).unwrap();
        let Some(found) = found else {
            assert_eq!(kind, Kind::Half, "only f16 is left to others");
            continue;
        };
        let [[g, g_far], [u, u_far]] = [0, 1].map(|i| by_hand(&x, &here[i]));
        let round = |t: &Tensor| t.to_kind(kind).to_kind(Kind::Double);
        let s = round(&(g.sigmoid() * &g));
        let y = round(&(&s * &u));
        let of_kind =
            if kind == Kind::Float { 2f64.powi(-22) } else { 2f64.powi(-8) };
        // The slope of silu is at most 1.1.
        let s_far = g_far * 1.1 + s.abs() * of_kind * 2.;
        let far =
            (s_far * (u.abs() + &u_far)) + s.abs() * u_far + y.abs() * of_kind * 2.;
        within(&found, &y, &far, &format!("{rows} rows in {kind:?}"));
    }
}

#[test]
fn emulated_products_together_are_the_twin() {
    by_emulator(multiplies_together);
    by_emulator(gates);
    for name in ["nf4_lower_f32", "nf4_lower_bf16", "nf4_lower_f16"] {
        assert!(have_run().contains(name), "{name} has not run");
    }
    for (kind, room) in
        ["f32", "bf16"].iter().flat_map(|k| [1, 2, 4, 8].map(|r| (k, r)))
    {
        let name = format!("nf4_swiglu{room}_{kind}");
        assert!(have_run().contains(&name), "{name} has not run");
    }
}

#[test]
fn products_together_on_a_card() {
    by_card(multiplies_together);
    by_card(gates);
}

#[test]
fn emulated_quantization_is_the_twin() {
    by_emulator(quantizes);
}

#[test]
fn emulated_dequantization_is_the_twin() {
    by_emulator(dequantizes);
    by_emulator(dequantizes_all);
    dequantizes_all(CPU);
}

#[test]
fn emulated_products_are_close_and_of_the_kernel() {
    by_emulator(multiplies);
    for kind in ["f32", "bf16", "f16"] {
        for room in [1, 2, 4, 8] {
            let name = format!("nf4_matvec{room}_{kind}");
            assert!(have_run().contains(&name), "{name} has not run");
        }
    }
}

#[test]
fn quantization_on_a_card() {
    by_card(quantizes);
}

#[test]
fn dequantization_on_a_card() {
    by_card(dequantizes);
    by_card(dequantizes_all);
}

#[test]
fn products_on_a_card() {
    by_card(multiplies);
}

/// The comparisons above see each of these.
#[test]
fn faults_are_found() {
    type Case = fn(Device);
    let faults: [(&str, &str, Case); 16] = [
        ("0.0795803f,   0.1609302f", "0.07958031f,  0.1609302f", dequantizes),
        (
            "__fadd_rn(__fmul_rn(level[codes[block]], absmax[block >> 8]), offset)",
            "__fmaf_rn(level[codes[block]], absmax[block >> 8], offset)",
            dequantizes,
        ),
        ("block >> 8", "block >> 9", dequantizes),
        ("4 * (e ^ 1)", "4 * e", dequantizes),
        ("out + blockIdx.y * n", "out + blockIdx.x * n", dequantizes_all),
        ("code += x > border[i]", "code += x >= border[i]", quantizes),
        ("__fmul_rn(x[e], inverse)", "x[e] / scale", quantizes),
        (
            "for (int k = 0; k < groups; ++k) total",
            "for (int k = 1; k < groups; ++k) total",
            multiplies,
        ),
        ("own < out ? own : out - 1", "row", multiplies),
        ("row -= all", "row -= group.at[first].out", multiplies_together),
        ("w.h + m * w.rank", "w.h", multiplies_together),
        ("rounded<T>(sum + more)", "sum", multiplies_together),
        ("w.h[blockIdx.y * w.rank + row]", "w.h[row]", multiplies_together),
        ("rounded<T>(sum * w.scale)", "rounded<T>(sum)", multiplies_together),
        ("group.at[first + of], total", "group.at[first], total", gates),
        ("up[t];", "up[0];", gates),
    ];
    for (is, becomes, case) in faults {
        let fault = Some([is, becomes]);
        let emulator = Box::leak(Box::new(Emulator { backwards: false, fault }));
        let run = || emulated(emulator, || case(CPU));
        let found = catch_unwind(AssertUnwindSafe(run)).is_err();
        assert!(found, "nobody minds `{becomes}`");
    }
}

#[test]
fn wrong_tensors_are_refused() {
    emulated(&EMULATOR, || {
        let w = wave(&[4, 64], Kind::Float);
        let kernels = kernels(&[&w]).expect("kernels");
        refused(kernels.nf4_quantize(&w.tr(), 64), &["the weight", "false", "true"]);
        let half = w.to_kind(Kind::Half);
        refused(kernels.nf4_quantize(&half, 64), &["the weight", "Half"]);
        let (packed, absmax) = kernels.nf4_quantize(&w, 64).unwrap();
        let scales = |absmax| downhill::cuda::Nf4Scales {
            absmax,
            codes: None,
            blocksize: 64,
        };
        let out = Tensor::empty([5, 64], (Kind::Float, CPU));
        let found = kernels.nf4_dequantize(&packed, &scales(&absmax), &out);
        refused(found, &["packed", "128", "160"]);
        let few = absmax.narrow(0, 0, 3);
        let found = kernels.nf4_dequantize(&packed, &scales(&few), &w);
        refused(found, &["absmax", "3", "4"]);
    });
}
