//! NF4 beside bitsandbytes: its CUDA rule byte for byte, and how far its CPU strays.
use crate::golden::{gap, metadata, same_bits, tensors};
use downhill::quant::{Absmax, Nf4Tensor};
use serde_json::Value;
use tch::{Kind, Tensor};

const FILE: &str = "ch14_nf4.safetensors";

fn about() -> Value {
    let text = metadata(FILE)["about"].as_str().expect("about").to_string();
    serde_json::from_str(&text).expect("about")
}

fn codes(q: &Nf4Tensor) -> (&Tensor, &Tensor, &Tensor, f32) {
    match q.stored_absmax() {
        Absmax::Double { codes, nested_absmax, code, offset } => {
            (codes, nested_absmax, code, *offset)
        }
        Absmax::Plain(_) => panic!("no double quantization"),
    }
}

#[test]
fn every_byte_is_the_cuda_rules() {
    let (golden, about) = (tensors(FILE), about());
    let about = about.as_object().expect("cases");
    let mut seen = 0;
    for (key, case) in about {
        let Some(name) = key.strip_suffix(".plain").filter(|n| *n != "large") else {
            continue;
        };
        seen += 1;
        let get = |k: &str| &golden[&format!("{name}.{k}")];
        let size = case["blocksize"].as_u64().expect("blocksize") as usize;
        let same = |what: &str, found: &Tensor, expected: &Tensor| {
            assert!(same_bits(found, expected), "{name}: {what}");
        };
        let q = Nf4Tensor::quantize(get("weight"), size, false).expect(name);
        same("packed", q.packed(), get("plain.packed"));
        same("absmax", &q.absmax(), get("plain.absmax"));
        same("f32", &q.dequantize(Kind::Float), get("plain.dequantized"));
        same("bf16", &q.dequantize(Kind::BFloat16), get("plain.bf16"));

        let q = Nf4Tensor::quantize(get("weight"), size, true).expect(name);
        let (codes, nested, code, offset) = codes(&q);
        same("packed", q.packed(), get("plain.packed"));
        same("map", code, &golden["dynamic_map"]);
        same("codes", codes, get("double.absmax"));
        same("nested absmax", nested, get("double.nested_absmax"));
        same("offset", &Tensor::from_slice(&[offset]), get("double.offset"));
        same("absmax again", &q.absmax(), get("double.absmax_f32"));
        same("bf16 again", &q.dequantize(Kind::BFloat16), get("double.bf16"));
    }
    assert_eq!(seen, 11);
}

/// SplitMix64 of (seed << 32) + i, as `bits` in `tests/golden/ch14_nf4.py`.
fn draw(seed: u64, i: u64) -> u64 {
    const GOLD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = ((seed << 32) + i).wrapping_mul(GOLD).wrapping_add(GOLD);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `coarse(bell(n, 11))` of the script.
fn large(n: u64) -> Vec<f32> {
    let fields =
        |z: u64| (0..4).map(|k| (z >> (16 * k) & 0xFFFF) as i64).sum::<i64>();
    let mut w: Vec<f32> =
        (0..n).map(|i| (fields(draw(11, i)) - 131_070) as f32 / 65_536.).collect();
    for block in w.chunks_mut(64) {
        let top = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        let i = block.iter().position(|x| x.abs() == top).expect("a largest");
        block[i] = ((top * 256.).ceil() / 256.).copysign(block[i]);
    }
    w
}

/// FNV-1a of a tensor's bytes, as the script writes it.
fn fnv(t: &Tensor) -> String {
    let mut bytes = vec![0u8; t.numel() * t.kind().elt_size_in_bytes()];
    t.contiguous().copy_data_u8(&mut bytes, t.numel());
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3);
    format!("{:016x}", bytes.iter().fold(0xCBF2_9CE4_8422_2325, step))
}

#[test]
fn bitsandbytes_on_the_cpu_strays_where_we_say() {
    let (golden, about) = (tensors(FILE), about());
    let plain = &about["large.plain"];
    let w = Tensor::from_slice(&large(1024 * 1280)).view([1024, 1280]);
    assert_eq!(fnv(&w), plain["fnv_weight"], "not the script's weight");
    let q = Nf4Tensor::quantize(&w, 64, true).expect("large");
    let (codes, ..) = codes(&q);
    assert_eq!(fnv(q.packed()), plain["fnv_packed"]);
    assert_eq!(fnv(codes), plain["fnv_codes"]);
    assert!(same_bits(codes, &golden["large.double.absmax"]));
    let flat = q.dequantize(Kind::Float).view([-1]);
    assert_eq!(fnv(&flat), plain["fnv_dequantized"]);
    // Its CPU library rounds to a table of 65,536 bins first: some 0.2 % of the codes
    // of absmax come out next door. The weights themselves hardly notice.
    let theirs = &golden["large.absmax_codes_cpu"];
    let apart = (codes.to_kind(Kind::Int) - theirs.to_kind(Kind::Int)).abs();
    let off = apart.ne(0).sum(Kind::Int64).int64_value(&[]);
    assert_eq!(off, about["large.double"]["codes_off_cpu"].as_i64().expect("count"));
    let share = off as f64 / codes.numel() as f64;
    assert!((0.0005..0.004).contains(&share), "{share}");
    let Absmax::Double { nested_absmax, code, offset, .. } = q.stored_absmax()
    else {
        unreachable!("checked above")
    };
    let parts = Absmax::Double {
        codes: theirs.shallow_clone(),
        nested_absmax: nested_absmax.shallow_clone(),
        code: code.shallow_clone(),
        offset: *offset,
    };
    let cpu =
        Nf4Tensor::from_parts(q.packed().shallow_clone(), parts, q.shape(), 64);
    let cpu = cpu.expect("its tensors fit").dequantize(Kind::Float);
    let far = gap(&cpu, &q.dequantize(Kind::Float));
    assert!(far > 0. && far < 0.02, "{far}");
}
