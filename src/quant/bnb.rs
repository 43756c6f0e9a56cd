//! A 4-bit matrix as bitsandbytes stores it: tensors under names that begin with the
//! weight's, and a JSON text as bytes.
//!
//! | name | what |
//! |---|---|
//! | `X.weight` | the codes, u8 `[n / 2, 1]`, or the same bytes seen as 16- or 32-bit floats |
//! | `X.weight.absmax` | f32 `[blocks]`; u8 with double quantization |
//! | `X.weight.quant_map` | the 16 levels |
//! | `X.weight.nested_absmax`, `.nested_quant_map` | with double quantization |
//! | `X.weight.quant_state.bitsandbytes__nf4` | the rest, as JSON |
//!
//! Source: bitsandbytes, `functional.py`, `QuantState.as_dict(packed=True)`.
use super::{Absmax, Nf4Tensor, double, nf4};
use crate::{Error, Result};
use serde::Deserialize;
use tch::{Kind, Tensor};

/// What follows a weight's name in that of its JSON part.
pub const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// The same for the codes that are not read.
pub const FOREIGN: [&str; 2] = [".quant_state.bitsandbytes__fp4", ".SCB"];

const ABSMAX: &str = ".absmax";
const MAP: &str = ".quant_map";
const NESTED_ABSMAX: &str = ".nested_absmax";
const NESTED_MAP: &str = ".nested_quant_map";

/// A matrix with what its file says besides, so that it can be written again to the
/// same bytes.
#[derive(Debug)]
pub struct Stored {
    /// The matrix.
    pub matrix: Nf4Tensor,
    /// Kind of the weights before they were quantized.
    pub dtype: Kind,
    /// Kind as which the bytes of the codes are stored; usually `Uint8`.
    pub storage: Kind,
}

/// The JSON part.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: [i64; 2],
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// Kinds by their names in Python; the weights' own, or those of the storage.
const KINDS: [(&str, Kind); 3] = [
    ("bfloat16", Kind::BFloat16),
    ("float16", Kind::Half),
    ("float32", Kind::Float),
];

/// A part is wrong: Err names it by its suffix, empty for the codes themselves.
fn wrong<T>(suffix: &str, what: String) -> Result<T> {
    Err(Error::setting(suffix, what))
}

impl Stored {
    /// Puts a matrix together again. `part` gives the tensor under a suffix of the
    /// weight's name, in host memory; `""` is the weight itself.
    ///
    /// # Errors
    /// What `part` returns; or [`Error::Setting`], whose name is the suffix of the part
    /// that is damaged, does not fit the others, or holds another code than NF4.
    pub fn read(part: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let state = State::parse(&part(STATE)?)?;
        let Some((_, dtype)) = KINDS.iter().find(|(name, _)| *name == state.dtype)
        else {
            let what = "expected bfloat16, float16 or float32";
            return wrong(STATE, format!("dtype `{}`; {what}", state.dtype));
        };
        let map = floats(MAP, &part(MAP)?)?;
        if map.iter().map(|x| x.to_bits()).ne(nf4::CODE.map(f32::to_bits)) {
            let what = "these are not the 16 levels of NF4";
            let first = &map[..map.len().min(nf4::CODE.len())];
            let found = format!("found {} levels, {first:?}", map.len());
            return wrong(MAP, format!("{found}; {what}"));
        }
        let weight = part("")?;
        let storage = weight.kind();
        let known = KINDS.iter().any(|(_, kind)| *kind == storage);
        let packed = match storage {
            Kind::Uint8 => weight,
            _ if known => weight.f_reshape([-1])?.f_view_dtype(Kind::Uint8)?,
            other => {
                let what =
                    "expected Uint8, or BFloat16, Half or Float as its storage";
                return wrong("", format!("kind {other:?}; {what}"));
            }
        };
        let absmax = match state.offset()? {
            None => Absmax::Plain(part(ABSMAX)?),
            Some(offset) => Absmax::Double {
                codes: part(ABSMAX)?,
                nested_absmax: part(NESTED_ABSMAX)?,
                code: part(NESTED_MAP)?,
                offset,
            },
        };
        let whole =
            Nf4Tensor::from_parts(packed, absmax, state.shape, state.blocksize);
        let matrix = whole.map_err(|e| match e {
            Error::Setting { name, what } => Error::setting(suffix_of(&name), what),
            other => other,
        })?;
        if !bool::try_from(matrix.absmax().isfinite().all())? {
            let what = "a scale that is not a finite number";
            return wrong(ABSMAX, what.into());
        }
        Ok(Self { matrix, dtype: *dtype, storage })
    }

    /// The tensors with their suffixes, in the order in which bitsandbytes writes them.
    ///
    /// # Errors
    /// A `dtype` or `storage` that bitsandbytes does not know, or codes whose number
    /// is odd for the storage.
    pub fn parts(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let name = |kind: Kind| KINDS.iter().find(|k| k.1 == kind).map(|k| k.0);
        let Some(dtype) = name(self.dtype) else {
            return wrong(STATE, format!("dtype {:?} has no name", self.dtype));
        };
        let packed = self.matrix.packed();
        let weight = match self.storage {
            Kind::Uint8 => packed.shallow_clone(),
            kind if name(kind).is_some() => {
                let width = kind.elt_size_in_bytes() as i64;
                packed.f_view([-1, width])?.f_view_dtype(kind)?
            }
            other => return wrong("", format!("storage {other:?} is not known")),
        };
        let map = Tensor::from_slice(&nf4::CODE);
        let mut parts = vec![("", weight)];
        let offset = match self.matrix.stored_absmax() {
            Absmax::Plain(absmax) => {
                parts.extend([(ABSMAX, absmax.shallow_clone()), (MAP, map)]);
                None
            }
            Absmax::Double { codes, nested_absmax, code, offset } => {
                parts.extend([
                    (ABSMAX, codes.shallow_clone()),
                    (MAP, map),
                    (NESTED_ABSMAX, nested_absmax.shallow_clone()),
                    (NESTED_MAP, code.shallow_clone()),
                ]);
                Some(*offset)
            }
        };
        let (shape, blocksize) = (self.matrix.shape(), self.matrix.blocksize());
        let json = State::to_json(blocksize, dtype, shape, offset);
        parts.push((STATE, Tensor::from_slice(json.as_bytes())));
        Ok(parts)
    }
}

/// Which part [`Nf4Tensor::from_parts`] complains of.
fn suffix_of(name: &str) -> &'static str {
    match name {
        "packed" => "",
        "absmax" => ABSMAX,
        "nested_absmax" => NESTED_ABSMAX,
        "nested_quant_map" => NESTED_MAP,
        _ => STATE,
    }
}

fn floats(suffix: &str, t: &Tensor) -> Result<Vec<f32>> {
    match t.kind() {
        Kind::Float => Ok(Vec::try_from(t.flatten(0, -1))?),
        other => wrong(suffix, format!("kind {other:?}; expected Float")),
    }
}

impl State {
    fn parse(t: &Tensor) -> Result<Self> {
        if t.kind() != Kind::Uint8 {
            let what = "expected the bytes of a JSON text";
            return wrong(STATE, format!("kind {:?}; {what}", t.kind()));
        }
        let bytes = Vec::<u8>::try_from(t.flatten(0, -1))?;
        let state: Self = serde_json::from_slice(&bytes).or_else(|e| {
            wrong(STATE, format!("{e}; expected JSON as bitsandbytes writes it"))
        })?;
        if state.quant_type != "nf4" {
            let found = &state.quant_type;
            return wrong(STATE, format!("quant_type `{found}`; only nf4 is read"));
        }
        Ok(state)
    }

    /// The mean of the scales, if these are quantized in their turn.
    fn offset(&self) -> Result<Option<f32>> {
        let size = double::NESTED_BLOCKSIZE;
        match (self.nested_blocksize, &self.nested_dtype, self.nested_offset) {
            (None, None, None) => Ok(None),
            (Some(blocks), Some(dtype), Some(offset)) => {
                if blocks != size || dtype != "float32" {
                    let what = format!("nested blocks of {blocks} of {dtype}");
                    return wrong(STATE, format!("{what}; only {size} of float32"));
                }
                if !(offset as f32).is_finite() {
                    return wrong(STATE, format!("nested_offset: {offset}"));
                }
                Ok(Some(offset as f32))
            }
            _ => {
                let what = "nested_blocksize, nested_dtype and nested_offset go \
                            together; some are missing";
                wrong(STATE, what.into())
            }
        }
    }

    /// As Python's `json.dumps` writes it.
    fn to_json(
        blocksize: usize,
        dtype: &str,
        [rows, columns]: [i64; 2],
        offset: Option<f32>,
    ) -> String {
        let nested = offset.map_or(String::new(), |offset| {
            format!(
                ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \
                 \"nested_offset\": {}",
                double::NESTED_BLOCKSIZE,
                python_float(offset.into())
            )
        });
        format!(
            "{{\"quant_type\": \"nf4\", \"blocksize\": {blocksize}, \
             \"dtype\": \"{dtype}\", \"shape\": [{rows}, {columns}]{nested}}}"
        )
    }
}

/// Python's `repr`: as Rust's, but an exponent has a sign and two digits.
fn python_float(x: f64) -> String {
    let text = format!("{x:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, power)) => {
            let (sign, power) = match power.strip_prefix('-') {
                Some(power) => ('-', power),
                None => ('+', power),
            };
            format!("{digits}e{sign}{power:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        for (x, text) in [
            (0.0, "0.0"),
            (3.0, "3.0"),
            (0.015625, "0.015625"),
            (0.0001, "0.0001"),
            (0.00009, "9e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e-100, "-2.5e-100"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }
}
