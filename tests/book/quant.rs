//! NF4 and double quantization against their formulas, written plainly here: the
//! search trees of bitsandbytes' CUDA kernels, one number at a time.
use downhill::Error;
use downhill::quant::{Absmax, BLOCKSIZES, Nf4Tensor, double, nf4};
use tch::{Device, Kind, Tensor};

/// `dQuantizeNF4` of `csrc/kernels.cu`, with its 15 literals.
#[allow(clippy::excessive_precision)]
fn code_of(x: f32) -> u8 {
    let (a, b, c, d): (f32, [f32; 2], [f32; 4], [f32; 8]) = (
        0.03979014977812767,
        [-0.33967943489551544, 0.3893125355243683],
        [
            -0.6106329262256622,
            -0.13791173323988914,
            0.2035212516784668,
            0.6427869200706482,
        ],
        [
            -0.8480964004993439,
            -0.4599952697753906,
            -0.23460740596055984,
            -0.045525018125772476,
            0.1202552504837513,
            0.2920137718319893,
            0.5016634166240692,
            0.8614784178118011,
        ],
    );
    let i = usize::from(x > a);
    let i = 2 * i + usize::from(x > b[i]);
    let i = 2 * i + usize::from(x > c[i]);
    (2 * i + usize::from(x > d[i])) as u8
}

/// Packed bytes and scales of `w`.
fn quantized(w: &[f32], blocksize: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for block in w.chunks(blocksize) {
        let absmax = block.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        let inverse = 1.0 / absmax;
        codes.extend(block.iter().map(|x| code_of(x * inverse)));
        // The half byte that an odd count leaves over holds the code of a zero.
        if block.len() % 2 == 1 {
            codes.push(code_of(0.0 * inverse));
        }
        scales.push(absmax);
    }
    (codes.chunks(2).map(|two| two[0] << 4 | two[1]).collect(), scales)
}

/// `dQuantize` of `csrc/kernels.cu`.
fn nested_code_of(map: &[f32], x: f32) -> u8 {
    let (mut pivot, mut lower, mut upper) = (127, 0, 255);
    for step in [64, 32, 16, 8, 4, 2, 1] {
        if x > map[pivot] {
            lower = pivot;
            pivot += step;
        } else {
            upper = pivot;
            pivot -= step;
        }
    }
    if x > map[pivot] {
        if x > (map[upper] + map[pivot]) * 0.5 { upper as u8 } else { pivot as u8 }
    } else if x < (map[lower] + map[pivot]) * 0.5 {
        lower as u8
    } else {
        pivot as u8
    }
}

/// Numbers in (-1, 1), roughly normal, the same at every run.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n)
        .map(|_| (uniform() + uniform() + uniform() + uniform()) / 2.0 - 1.0)
        .collect()
}

fn matrix(values: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(values).view([rows as i64, (values.len() / rows) as i64])
}

fn floats(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.flatten(0, -1).to_kind(Kind::Float)).unwrap()
}

fn bytes(t: &Tensor) -> Vec<u8> {
    Vec::try_from(t.flatten(0, -1)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Compares with the formulas, in both implementations, and back to weights.
fn check(values: &[f32], rows: usize, blocksize: usize) {
    let context =
        format!("{} values, {rows} rows, blocks of {blocksize}", values.len());
    let w = matrix(values, rows);
    let q = Nf4Tensor::quantize(&w, blocksize, false).unwrap();
    let (packed, scales) = quantized(values, blocksize);
    assert_eq!(bytes(q.packed()), packed, "{context}");
    assert_eq!(bits(&floats(&q.absmax())), bits(&scales), "{context}");
    assert_eq!(q.packed().size(), [packed.len() as i64, 1]);

    let (by_operations, its_scales) = nf4::encode(&w, blocksize);
    assert_eq!(bytes(&by_operations), packed, "operations, {context}");
    assert_eq!(bits(&floats(&its_scales)), bits(&scales), "operations, {context}");

    let code = |i: usize| {
        if i.is_multiple_of(2) { packed[i / 2] >> 4 } else { packed[i / 2] & 15 }
    };
    let expected: Vec<f32> = (0..values.len())
        .map(|i| nf4::CODE[usize::from(code(i))] * scales[i / blocksize])
        .collect();
    let back = q.dequantize(Kind::Float);
    assert_eq!(back.size(), w.size());
    assert_eq!(bits(&floats(&back)), bits(&expected), "{context}");
    let n = values.len() as i64;
    let by_operations = nf4::decode(q.packed(), &q.absmax(), blocksize, n);
    assert_eq!(
        bits(&floats(&by_operations)),
        bits(&expected),
        "operations, {context}"
    );

    let halved: Vec<u32> = expected
        .iter()
        .map(|x| half::bf16::from_f32(*x).to_f32().to_bits())
        .collect();
    assert_eq!(bits(&floats(&q.dequantize(Kind::BFloat16))), halved, "{context}");
    let halved: Vec<u32> = expected
        .iter()
        .map(|x| half::f16::from_f32(*x).to_f32().to_bits())
        .collect();
    assert_eq!(bits(&floats(&q.dequantize(Kind::Half))), halved, "{context}");
}

#[test]
#[allow(clippy::excessive_precision)]
fn levels_and_borders_are_bitsandbytes_literals() {
    let code: [f32; 16] = [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ];
    assert_eq!(bits(&nf4::CODE), bits(&code));
    for (i, border) in nf4::THRESHOLDS.into_iter().enumerate() {
        assert_eq!(
            usize::from(code_of(border)),
            i,
            "a border takes the lower level"
        );
        assert_eq!(usize::from(code_of(border.next_up())), i + 1);
    }
    // Where bitsandbytes disagrees with itself: its Python, used on the CPU, takes the
    // means of levels in f32. On these numbers alone the two give different codes.
    let differ = (0..15).filter(|&i| {
        let mean = (nf4::CODE[i] + nf4::CODE[i + 1]) / 2.0;
        assert!((mean.to_bits().abs_diff(nf4::THRESHOLDS[i].to_bits())) <= 1);
        mean != nf4::THRESHOLDS[i]
    });
    assert_eq!(differ.collect::<Vec<_>>(), [0, 8, 12, 14]);
}

#[test]
fn every_block_size_and_odd_shapes_match_the_formulas() {
    for (seed, blocksize) in BLOCKSIZES.into_iter().enumerate() {
        for n in [1, 2, 31, 33, 63, 64, 65, 127, 4095, 4097, 3 * 4096 + 37] {
            check(&noise(n, seed as u64), 1, blocksize);
        }
    }
    // Rows that no block fits into; and enough for several threads.
    check(&noise(7 * 13, 20), 7, 32);
    check(&noise(35 * 1001, 21), 35, 64);
    check(&noise(301 * 999, 22), 301, 64);
}

#[test]
fn borders_zeros_and_the_ends_of_the_range_match_the_formulas() {
    let mut borders = vec![1.0];
    for border in nf4::THRESHOLDS {
        borders.extend([border.next_down(), border, border.next_up()]);
    }
    for scale in [1.0, 0.5, 3.0, 1e-3, 1e-30, f32::MAX] {
        let scaled: Vec<f32> = borders.iter().map(|x| x * scale).collect();
        check(&scaled, 1, 64);
    }
    check(&[0.0; 200], 2, 64);
    check(&[-0.0; 65], 1, 64);
    let tiny = f32::from_bits(1);
    // Where 1 / absmax overflows: the formula as it stands, infinities and NaN.
    check(&[tiny, -tiny, 0.0, 2.0 * tiny], 1, 64);
    check(&[1e-39, 0.0, -1e-39, 5e-40], 1, 64);
    check(&[f32::MIN_POSITIVE, -1e-38, 2e-38, 0.0], 2, 64);
    check(&[f32::MAX, f32::MIN, 1.0, tiny], 1, 64);
}

#[test]
fn a_block_of_zeros_is_code_0_and_minus_zero() {
    let q = Nf4Tensor::quantize(&matrix(&[0.0; 64], 1), 64, false).unwrap();
    assert_eq!(bytes(q.packed()), [0; 32]);
    assert_eq!(bits(&floats(&q.dequantize(Kind::Float))), [(-0.0f32).to_bits(); 64]);
}

#[test]
fn any_float_kind_and_any_layout_quantizes_alike() {
    let w = matrix(&noise(96 * 70, 30), 96).to_kind(Kind::BFloat16);
    let expected = quantized(&floats(&w), 64);
    for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
        let q = Nf4Tensor::quantize(&w.to_kind(kind), 64, false).unwrap();
        assert_eq!((bytes(q.packed()), floats(&q.absmax())), expected, "{kind:?}");
    }
    let half = w.to_kind(Kind::Half);
    let q = Nf4Tensor::quantize(&half, 64, false).unwrap();
    assert_eq!(
        (bytes(q.packed()), floats(&q.absmax())),
        quantized(&floats(&half), 64)
    );

    let turned = w.to_kind(Kind::Float).transpose(0, 1).set_requires_grad(true);
    let q = Nf4Tensor::quantize(&turned, 64, true).unwrap();
    assert_eq!(bytes(q.packed()), quantized(&floats(&turned.detach()), 64).0);
    assert_eq!(q.shape(), [70, 96]);
    assert!(!q.dequantize(Kind::Float).requires_grad());
}

#[test]
fn scales_in_eight_bits_match_the_formulas() {
    let map = double::dynamic_map();
    assert!(map.is_sorted() && map[127] == 0.0 && map[255] == 1.0);
    // A block on all borders: 1, so that the scale is 1, then both sides of each.
    let mut borders = vec![-1.0, 1.0];
    for pair in map.windows(2) {
        let middle = (pair[0] + pair[1]) * 0.5;
        borders.extend([middle.next_down(), middle, middle.next_up()]);
    }
    let mut cases = vec![vec![0.25], vec![3.0; 256], vec![1.0, 2.0], borders];
    for n in [255, 256, 257, 5_000, 70_000] {
        cases.push(noise(n, n as u64).iter().map(|x| x.abs() + 1e-3).collect());
    }
    for absmax in cases {
        let (codes, nested_absmax, offset) =
            double::encode(&Tensor::from_slice(&absmax));
        let offset = f32::try_from(offset).unwrap();
        let code = Tensor::from_slice(&map);
        let centred: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
        let mean =
            absmax.iter().map(|x| f64::from(*x)).sum::<f64>() / absmax.len() as f64;
        assert!((f64::from(offset) - mean).abs() <= 1e-5 * mean.abs() + 1e-7);
        let (mut expected, mut nested, mut back) =
            (Vec::new(), Vec::new(), Vec::new());
        for block in centred.chunks(256) {
            let top = block.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            nested.push(top);
            for x in block {
                let q = nested_code_of(&map, x * (1.0 / top));
                expected.push(q);
                let product = map[usize::from(q)] * top;
                back.push(product + offset);
            }
        }
        assert_eq!(bytes(&codes), expected);
        assert_eq!(bits(&floats(&nested_absmax)), bits(&nested));
        let decoded = double::decode(&codes, &nested_absmax, &code, offset);
        assert_eq!(bits(&floats(&decoded)), bits(&back));
    }
}

#[test]
fn equal_scales_survive_their_quantization_exactly() {
    let one = [0.5; 64 * 300];
    let q = Nf4Tensor::quantize(&matrix(&one, 300), 64, true).unwrap();
    assert_eq!(floats(&q.dequantize(Kind::Float)), one);
}

#[test]
fn double_quantized_weights_use_the_decoded_scales() {
    for blocksize in [32, 64, 4096] {
        let w = matrix(&noise(257 * 1023, 40), 257);
        let q = Nf4Tensor::quantize(&w, blocksize, true).unwrap();
        let plain = Nf4Tensor::quantize(&w, blocksize, false).unwrap();
        assert_eq!(bytes(q.packed()), bytes(plain.packed()));
        let n = w.numel() as i64;
        let expected = nf4::decode(q.packed(), &q.absmax(), blocksize, n);
        let expected = expected.view(q.shape());
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            let back = q.dequantize(kind);
            assert_eq!(back.kind(), kind);
            assert_eq!(back, expected.to_kind(kind), "{blocksize} {kind:?}");
        }
    }
}

#[test]
fn dequantize_into_fills_what_it_is_given() {
    let w = matrix(&noise(65 * 129, 50), 65);
    for double_quant in [false, true] {
        let q = Nf4Tensor::quantize(&w, 64, double_quant).unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            // One of a longer scratch buffer, at an odd place in it.
            let scratch =
                Tensor::full([65 * 129 + 9], f64::NAN, (kind, Device::Cpu));
            let out = scratch.narrow(0, 3, 65 * 129);
            q.dequantize_into(&out).unwrap();
            assert_eq!(out.view([65, 129]), q.dequantize(kind));
            let around = [0, 2, 65 * 129 + 3, 65 * 129 + 8];
            assert!(around.iter().all(|&i| scratch.double_value(&[i]).is_nan()));
        }
    }
    let q = Nf4Tensor::quantize(&w, 64, true).unwrap();
    for out in [
        Tensor::empty([65 * 129 - 1], (Kind::Float, Device::Cpu)),
        Tensor::empty([129, 65], (Kind::Float, Device::Cpu)).transpose(0, 1),
        Tensor::empty([65, 129], (Kind::Int, Device::Cpu)),
    ] {
        let message = q.dequantize_into(&out).unwrap_err().to_string();
        assert!(message.starts_with("out: found ["), "{message}");
        assert!(message.contains("contiguous float tensor of 8385"), "{message}");
    }
}

/// Outputs of 32 MiB and more are written past the cache, by other instructions.
#[test]
fn large_outputs_are_the_same() {
    let columns = 4096 + 64;
    let w = matrix(&noise(64 * columns, 60), 64).repeat([64, 1]);
    let q = Nf4Tensor::quantize(&w, 64, false).unwrap();
    let first = Nf4Tensor::quantize(&w.narrow(0, 0, 64), 64, false).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let whole = q.dequantize(kind);
        assert!(whole.numel() * kind.elt_size_in_bytes() >= 32 << 20);
        assert_eq!(whole, first.dequantize(kind).repeat([64, 1]));
        let off = Tensor::empty([whole.numel() as i64 + 1], (kind, Device::Cpu));
        let off = off.narrow(0, 1, whole.numel() as i64);
        q.dequantize_into(&off).unwrap();
        assert_eq!(off.view(q.shape()), whole, "where stores cannot be aligned");
    }
}

#[test]
fn the_error_is_at_most_half_a_gap() {
    let w = noise(64 * 1000, 70);
    let q = Nf4Tensor::quantize(&matrix(&w, 1000), 64, false).unwrap();
    let (back, scales) = (floats(&q.dequantize(Kind::Float)), floats(&q.absmax()));
    let gap = nf4::CODE.windows(2).map(|c| c[1] - c[0]).fold(0.0, f32::max);
    for (i, (x, y)) in w.iter().zip(&back).enumerate() {
        let bound = gap / 2.0 * scales[i / 64] * (1.0 + 1e-6);
        assert!((x - y).abs() <= bound, "element {i}: {x} became {y}");
    }
    // The largest of each block is exact.
    for (block, (w, back)) in w.chunks(64).zip(back.chunks(64)).enumerate() {
        let i = (0..64).max_by(|&i, &j| w[i].abs().total_cmp(&w[j].abs())).unwrap();
        assert_eq!(w[i], back[i], "block {block}");
    }
}

#[test]
fn powers_of_two_scale_through() {
    let w = matrix(&noise(64 * 77, 80), 77);
    let q = Nf4Tensor::quantize(&w, 64, false).unwrap();
    for power in [-60, -7, 1, 90] {
        let factor = 2f64.powi(power);
        let scaled = Nf4Tensor::quantize(&(&w * factor), 64, false).unwrap();
        assert_eq!(bytes(scaled.packed()), bytes(q.packed()), "2^{power}");
        assert_eq!(scaled.absmax(), q.absmax() * factor);
        let (back, once) =
            (scaled.dequantize(Kind::Float), q.dequantize(Kind::Float));
        assert_eq!(back, once * factor);
    }
}

#[test]
fn quantizing_again_changes_nothing() {
    let mut w = noise(64 * 500, 90);
    w[640..704].fill(0.0);
    for blocksize in BLOCKSIZES {
        let q = Nf4Tensor::quantize(&matrix(&w, 500), blocksize, false).unwrap();
        let again = q.dequantize(Kind::Float);
        let again = Nf4Tensor::quantize(&again, blocksize, false).unwrap();
        assert_eq!(bytes(again.packed()), bytes(q.packed()));
        assert_eq!(again.absmax(), q.absmax());
    }
}

#[test]
fn a_large_matrix_takes_4_127_bits_per_weight() {
    let (rows, columns) = (1024, 4096);
    let w = Tensor::ones([rows, columns], (Kind::BFloat16, Device::Cpu));
    let n = (rows * columns) as usize;
    let q = Nf4Tensor::quantize(&w, 64, true).unwrap();
    let map_and_offset = 256 * 4 + 4;
    assert_eq!(q.bytes(), n / 2 + n / 64 + n / 64 / 256 * 4 + map_and_offset);
    let per_weight = (q.bytes() - map_and_offset) as f64 * 8.0 / n as f64;
    assert_eq!(per_weight, 4.0 + 8.0 / 64.0 + 32.0 / (64.0 * 256.0));
    assert_eq!(format!("{per_weight:.3}"), "4.127");
    let plain = Nf4Tensor::quantize(&w, 64, false).unwrap();
    assert_eq!(plain.bytes() as f64 * 8.0 / n as f64, 4.5);
}

fn parts(q: &Nf4Tensor) -> (Tensor, Absmax) {
    let absmax = match q.stored_absmax() {
        Absmax::Plain(absmax) => Absmax::Plain(absmax.copy()),
        Absmax::Double { codes, nested_absmax, code, offset } => Absmax::Double {
            codes: codes.copy(),
            nested_absmax: nested_absmax.copy(),
            code: code.copy(),
            offset: *offset,
        },
    };
    (q.packed().copy(), absmax)
}

#[test]
fn parts_make_the_same_matrix() {
    let w = matrix(&noise(33 * 1001, 100), 33);
    for double_quant in [false, true] {
        let q = Nf4Tensor::quantize(&w, 64, double_quant).unwrap();
        let (packed, absmax) = parts(&q);
        let flat = packed.flatten(0, -1);
        let same = Nf4Tensor::from_parts(flat, absmax, q.shape(), 64).unwrap();
        assert_eq!(same.packed().size(), q.packed().size());
        for other in [same, q.shallow_clone(), q.to_device(Device::Cpu)] {
            assert_eq!(other.dequantize(Kind::Float), q.dequantize(Kind::Float));
            assert_eq!((other.shape(), other.bytes()), (q.shape(), q.bytes()));
            assert_eq!((other.blocksize(), other.device()), (64, Device::Cpu));
        }
        assert_eq!(q.shallow_clone().packed().data_ptr(), q.packed().data_ptr());
    }
}

fn setting(result: downhill::Result<Nf4Tensor>) -> (String, String) {
    match result {
        Err(Error::Setting { name, what }) => (name, what),
        other => panic!("expected Error::Setting, found {other:?}"),
    }
}

#[test]
fn wrong_parts_are_named() {
    let q =
        Nf4Tensor::quantize(&matrix(&noise(64 * 64, 110), 64), 64, true).unwrap();
    let build = |change: &dyn Fn(&mut Tensor, &mut Absmax), shape, blocksize| {
        let (mut packed, mut absmax) = parts(&q);
        change(&mut packed, &mut absmax);
        setting(Nf4Tensor::from_parts(packed, absmax, shape, blocksize))
    };
    let keep = |_: &mut Tensor, _: &mut Absmax| ();
    let (name, what) = build(&|p, _| *p = p.narrow(0, 1, 2000), [64, 64], 64);
    assert_eq!(name, "packed");
    assert!(what.contains("found 2000 of Uint8") && what.contains("2048"), "{what}");
    assert_eq!(build(&|p, _| *p = p.to_kind(Kind::Int8), [64, 64], 64).0, "packed");
    assert_eq!(build(&keep, [64, 65], 64).0, "packed");
    assert_eq!(build(&keep, [64, 64], 128).0, "absmax");
    assert_eq!(build(&keep, [64, 64], 65).0, "blocksize");
    assert_eq!(build(&keep, [-64, -64], 64).0, "shape");
    assert_eq!(build(&keep, [i64::MAX, 2], 64).0, "shape");
    let swap = |name: &'static str| {
        move |_: &mut Tensor, a: &mut Absmax| {
            if let Absmax::Double { codes, nested_absmax, code, .. } = a {
                match name {
                    "absmax" => *codes = codes.to_kind(Kind::Float),
                    "nested_absmax" => *nested_absmax = nested_absmax.repeat([2]),
                    _ => *code = code.narrow(0, 0, 255),
                }
            }
        }
    };
    for name in ["absmax", "nested_absmax", "nested_quant_map"] {
        assert_eq!(build(&swap(name), [64, 64], 64).0, name);
    }
}

#[test]
fn wrong_weights_are_named() {
    let w = matrix(&noise(6 * 100, 120), 6);
    for blocksize in [0, 1, 48, 63, 8192] {
        let (name, what) = setting(Nf4Tensor::quantize(&w, blocksize, true));
        assert_eq!(name, "blocksize");
        assert!(what.starts_with(&format!("found {blocksize}; expected")), "{what}");
    }
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -f64::NAN] {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            let damaged = w.to_kind(kind);
            let _ = damaged.get(4).get(37).fill_(bad);
            let (name, what) = setting(Nf4Tensor::quantize(&damaged, 64, true));
            assert_eq!(name, "weight");
            let found = format!("found {bad} at [4, 37]").replace("-NaN", "NaN");
            assert!(what.starts_with(&found), "{what}");
        }
    }
    let too_large = w.to_kind(Kind::Double) * 1e300;
    assert!(
        setting(Nf4Tensor::quantize(&too_large, 64, true)).1.contains("inf at [")
    );
    // Each is finite; the mean of their scales is not.
    let huge = matrix(&[3e38; 64 * 16], 16);
    assert!(Nf4Tensor::quantize(&huge, 64, false).is_ok());
    assert!(setting(Nf4Tensor::quantize(&huge, 64, true)).1.contains("3e38"));
    for shape in [vec![0, 5], vec![5, 0], vec![5], vec![2, 2, 2], vec![]] {
        let odd = Tensor::ones(&shape, (Kind::Float, Device::Cpu));
        let (name, what) = setting(Nf4Tensor::quantize(&odd, 64, true));
        assert_eq!(name, "weight");
        assert!(what.contains(&format!("{shape:?}")), "{what}");
    }
    let (_, what) = setting(Nf4Tensor::quantize(&w.to_kind(Kind::Int64), 64, true));
    assert!(what.contains("Int64"), "{what}");
}
