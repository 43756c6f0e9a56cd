//! Reading the golden files that the scripts in `tests/golden` write.
use downhill::checkpoint::read_safetensors;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// `tests/golden/<name>`.
pub fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

pub fn json(name: &str) -> Value {
    let text = std::fs::read(path(name)).expect(name);
    serde_json::from_slice(&text).expect(name)
}

pub fn tensors(name: &str) -> HashMap<String, Tensor> {
    read_safetensors(&path(name)).expect(name)
}

/// The `__metadata__` of a safetensors file.
pub fn metadata(name: &str) -> Value {
    let bytes = std::fs::read(path(name)).expect(name);
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("a header")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).expect(name);
    header["__metadata__"].clone()
}

pub fn floats(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Largest difference, relative to the largest magnitude expected. Not a number, or
/// another shape, is infinitely far.
pub fn gap(found: &Tensor, expected: &Tensor) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let [found, expected] = [found, expected].map(|t| t.to_kind(Kind::Double));
    let far = (found - &expected).abs().max().double_value(&[]);
    let scale = expected.abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
    if far.is_nan() { f64::INFINITY } else { far / scale }
}

/// As [`gap`], for slices.
pub fn gap_of(found: &[f64], expected: &[f64]) -> f64 {
    gap(&Tensor::from_slice(found), &Tensor::from_slice(expected))
}

/// Bit for bit the same, -0 and 0 told apart.
pub fn same_bits(found: &Tensor, expected: &Tensor) -> bool {
    let bytes = |t: &Tensor| {
        let t = t.contiguous();
        let mut out = vec![0u8; t.numel() * t.kind().elt_size_in_bytes()];
        t.copy_data_u8(&mut out, t.numel());
        out
    };
    found.kind() == expected.kind()
        && found.size() == expected.size()
        && bytes(found) == bytes(expected)
}
