//! Damage to safetensors files: to the header as JSON, to its length, to the data, and
//! rewritten files that are whole but hold something else.

use super::json;
use super::random::Rng;
use serde_json::{Map, Value, json};

struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The header's text, and where the data begin.
fn header(bytes: &[u8]) -> Option<(Map<String, Value>, usize)> {
    let n = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let end = usize::try_from(n).ok()?.checked_add(8)?;
    let map = serde_json::from_slice(bytes.get(8..end)?).ok()?;
    Some((map, end))
}

fn put_header(bytes: &mut Vec<u8>, end: usize, text: &str) {
    let mut new = (text.len() as u64).to_le_bytes().to_vec();
    new.extend_from_slice(text.as_bytes());
    bytes.splice(..end, new);
}

/// Whether the file is whole: its header can be read and its data reach to its end.
pub fn whole(bytes: &[u8]) -> bool {
    let Some((map, start)) = header(bytes) else { return false };
    let ends = map.iter().filter(|(name, _)| *name != "__metadata__");
    let ends = ends.map(|(_, t)| t["data_offsets"][1].as_u64().unwrap_or(u64::MAX));
    ends.max().unwrap_or(0).saturating_add(start as u64) == bytes.len() as u64
}

/// Changes one thing.
pub fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) -> String {
    let Some((map, end)) = header(bytes) else {
        return json::mutate(bytes, rng);
    };
    match rng.below(10) {
        0..=3 => {
            let mut value = Value::Object(map);
            let done = json::edit(&mut value, rng);
            put_header(bytes, end, &json::text(&value));
            format!("header: {done}")
        }
        4 => {
            let n = end as u64 - 8;
            let near = [n + 1, n - 1, 0, 1, 7, n * 2, u64::MAX, i64::MAX as u64];
            let near = [&near[..], &[1 << 32, 100_000_001, u64::MAX - 8]].concat();
            let new = *rng.of(&near);
            bytes[..8].copy_from_slice(&new.to_le_bytes());
            format!("header of {new} bytes")
        }
        5 => {
            let at = rng.below(end);
            bytes.truncate(at);
            format!("cut within the header, at {at}")
        }
        6 => {
            bytes.extend_from_slice(&[0xff; 13]);
            "13 more bytes".into()
        }
        _ => rewritten(bytes, map, end, rng),
    }
}

fn rewritten(
    bytes: &mut Vec<u8>,
    map: Map<String, Value>,
    end: usize,
    rng: &mut Rng,
) -> String {
    let about = map.get("__metadata__").cloned();
    let mut all = Vec::new();
    for (name, t) in map.iter().filter(|(name, _)| *name != "__metadata__") {
        let at =
            |i: usize| t["data_offsets"][i].as_u64().unwrap_or(0) as usize + end;
        let data = bytes.get(at(0)..at(1)).unwrap_or_default().to_vec();
        let shape = t["shape"].as_array().into_iter().flatten();
        let shape = shape.filter_map(|n| n.as_u64().map(|n| n as usize)).collect();
        let dtype = t["dtype"].as_str().unwrap_or_default().to_string();
        all.push(Tensor { name: name.clone(), dtype, shape, data });
    }
    if all.is_empty() {
        return "nothing: it holds no tensor".into();
    }
    let done = change(&mut all, rng);
    let (mut header, mut data) = (Map::new(), Vec::new());
    if let Some(about) = about {
        header.insert("__metadata__".into(), about);
    }
    for t in all {
        let offsets = [data.len(), data.len() + t.data.len()];
        let entry =
            json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets});
        header.insert(t.name, entry);
        data.extend(t.data);
    }
    bytes.truncate(end);
    bytes.extend(data);
    put_header(bytes, end, &Value::Object(header).to_string());
    done
}

fn width(dtype: &str) -> usize {
    match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    }
}

/// Changes one tensor so that the file stays a safetensors file.
fn change(all: &mut Vec<Tensor>, rng: &mut Rng) -> String {
    // The states of quantized matrices are JSON in a tensor.
    let states: Vec<usize> =
        (0..all.len()).filter(|i| all[*i].name.contains("quant_state")).collect();
    if !states.is_empty() && rng.once_in(2) {
        let t = &mut all[*rng.of(&states)];
        let done = json::mutate(&mut t.data, rng);
        t.shape = vec![t.data.len()];
        return format!("{}: {done}", t.name);
    }
    let (at, other) = (rng.below(all.len()), rng.below(all.len()));
    let name = all[at].name.clone();
    let t = &mut all[at];
    let done = match rng.below(9) {
        0 => {
            all.remove(at);
            "gone".to_string()
        }
        1 => {
            let new = super::mutate::string(rng);
            t.name = if rng.once_in(2) { format!("{name}.{new}") } else { new };
            "has another name".into()
        }
        2 => {
            let n: usize = t.shape.iter().product();
            let mut turned = t.shape.clone();
            turned.reverse();
            let shapes = [turned, vec![n], vec![1, n], vec![n, 1], vec![1, 1, n]];
            t.shape = rng.of(&shapes).clone();
            format!("of shape {:?}", t.shape)
        }
        3 => {
            t.shape = rng.of(&[vec![0], vec![0, 4], vec![4, 0], vec![]]).clone();
            let size: usize = t.shape.iter().product();
            t.data.truncate(size * width(&t.dtype));
            format!("of shape {:?}", t.shape)
        }
        4 | 5 => {
            let kinds = [
                "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8",
                "BOOL", "F8_E4M3", "F8_E5M2", "U16", "U32", "U64",
            ];
            t.dtype = (*rng.of(&kinds)).to_string();
            let n = t.data.len() / width(&t.dtype);
            t.data.truncate(n * width(&t.dtype));
            let rows =
                t.shape.first().copied().filter(|r| *r > 0 && n.is_multiple_of(*r));
            t.shape = rows.map_or(vec![n], |r| vec![r, n / r]);
            format!("of dtype {} and shape {:?}", t.dtype, t.shape)
        }
        6 => {
            let fill = *rng.of(&[0u8, 0xff, 0x7f, 0x80]);
            t.data.fill(fill);
            format!("filled with {fill:#04x}")
        }
        7 => {
            let nan = f32::NAN.to_le_bytes();
            let n = t.data.len() / 4;
            if n > 0 {
                let at = 4 * rng.below(n);
                t.data[at..at + 4].copy_from_slice(&nan);
            }
            "with a NaN".into()
        }
        _ => {
            let (a, b) = (all[at].data.clone(), all[other].data.clone());
            let (c, d) = (all[at].shape.clone(), all[other].shape.clone());
            (all[at].data, all[at].shape) = (b, d);
            (all[other].data, all[other].shape) = (a, c);
            format!("has changed places with {}", all[other].name)
        }
    };
    format!("{name:.80} {done}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tensors of F32.
    pub fn file() -> Vec<u8> {
        let text = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
        let mut bytes = vec![0; 8];
        bytes.extend([1; 12]);
        put_header(&mut bytes, 8, text);
        bytes
    }

    #[test]
    fn a_file_is_whole_until_a_byte_is_lost() {
        let bytes = file();
        assert!(whole(&bytes));
        for n in [0, 4, 8, 40, bytes.len() - 1] {
            assert!(!whole(&bytes[..n]), "{n} bytes");
        }
    }

    #[test]
    fn rewritten_files_are_whole_again() {
        for case in 0..200 {
            let mut bytes = file();
            let (map, end) = header(&bytes).unwrap();
            let rng = &mut Rng::new(1, "tensors", case);
            let done = rewritten(&mut bytes, map, end, rng);
            assert!(whole(&bytes), "{done}");
        }
    }
}
