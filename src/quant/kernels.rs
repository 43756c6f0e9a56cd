//! The CPU kernels: `nf4::encode` and `nf4::decode` bit for bit, at the speed of
//! memory. To quantize is one plain body, compiled once per instruction set; the
//! look-up of dequantizing is a permutation of the table inside a register.
#![allow(unsafe_code)]
use super::nf4::THRESHOLDS;
use super::simd::{Blocks, Float, STEP, Simd};
use super::{Absmax, Nf4Tensor};
use crate::autograd::parallel_for;
use half::{bf16, f16};
use std::ops::Range;
use std::{array, slice};
use tch::{Device, Kind, Tensor};

/// Weights below which a second thread costs more than it brings.
const GRAIN: usize = 1 << 15;

/// Bytes of output above which it would not stay in the cache: it is then written
/// past it, which spares the reading of each line before its first write.
const STREAM: usize = 32 << 20;

/// `nf4::encode` for a contiguous f32 or bf16 tensor on the CPU. A block with a
/// number that is not finite gets an absmax that is not finite.
pub(super) fn quantize(
    simd: Simd,
    w: &Tensor,
    blocksize: usize,
) -> (Tensor, Tensor) {
    match w.kind() {
        Kind::BFloat16 => quantize_from(simd, elements::<bf16>(w), blocksize),
        _ => quantize_from(simd, elements::<f32>(w), blocksize),
    }
}

fn quantize_from<T: Float>(simd: Simd, w: &[T], size: usize) -> (Tensor, Tensor) {
    let (n, blocks) = (w.len(), w.len().div_ceil(size));
    let packed =
        Tensor::empty([n.div_ceil(2) as i64, 1], (Kind::Uint8, Device::Cpu));
    let absmax = Tensor::empty([blocks as i64], (Kind::Float, Device::Cpu));
    let (codes, scales) = (Parts::<u8>::of(&packed), Parts::<f32>::of(&absmax));
    parallel_for(blocks, GRAIN / size, |part| {
        let weights = part.start * size..n.min(part.end * size);
        // SAFETY: sizes of blocks are even, so no two parts share a byte; and
        // `simd` is what the machine has.
        let codes =
            unsafe { codes.part(weights.start / 2..weights.end.div_ceil(2)) };
        let (w, scales) = (&w[weights], unsafe { scales.part(part) });
        match simd {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => unsafe { quantize_avx512(w, size, codes, scales) },
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => unsafe { quantize_avx2(w, size, codes, scales) },
            _ => quantize_blocks(w, size, codes, scales),
        }
    });
    (packed, absmax)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quantize_avx512<T: Float>(w: &[T], size: usize, to: &mut [u8], max: &mut [f32]) {
    quantize_blocks(w, size, to, max);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_avx2<T: Float>(w: &[T], size: usize, to: &mut [u8], max: &mut [f32]) {
    quantize_blocks(w, size, to, max);
}

#[inline(always)]
fn quantize_blocks<T: Float>(w: &[T], size: usize, to: &mut [u8], max: &mut [f32]) {
    let blocks = w.chunks(size).zip(to.chunks_mut(size / 2)).zip(max);
    for ((w, codes), absmax) in blocks {
        // Without its sign, a float is ordered as the integer of its bits, infinity
        // and NaN on top: one maximum finds the scale and what is not finite.
        let magnitude = |x: &T| (x.widen().to_bits() & 0x7fff_ffff) as i32;
        *absmax = f32::from_bits(w.iter().map(magnitude).fold(0, i32::max) as u32);
        let scale = 1.0 / *absmax;
        let (whole, rest) = w.as_chunks::<STEP>();
        let (bytes, last) = codes.split_at_mut(whole.len() * STEP / 2);
        for (w, bytes) in whole.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = encode(w, scale);
        }
        if !rest.is_empty() {
            let mut padded = [T::default(); STEP];
            padded[..rest.len()].copy_from_slice(rest);
            last.copy_from_slice(&encode(&padded, scale)[..last.len()]);
        }
    }
}

/// For each weight the number of borders below it, two to a byte.
#[inline(always)]
fn encode<T: Float>(w: &[T; STEP], scale: f32) -> [u8; STEP / 2] {
    let mut code = [0; STEP];
    for (code, w) in code.iter_mut().zip(w) {
        let x = w.widen() * scale;
        for border in THRESHOLDS {
            *code = i32::wrapping_add(*code, i32::from(x > border));
        }
    }
    array::from_fn(|i| (code[2 * i] << 4 | code[2 * i + 1]) as u8)
}

/// `nf4::decode` into `out`: contiguous, as many elements as `q`, on the CPU, f32,
/// bf16 or f16. The 16 products of a block are rounded before they are looked up.
pub(super) fn dequantize(simd: Simd, q: &Nf4Tensor, out: &Tensor) {
    match out.kind() {
        Kind::BFloat16 => dequantize_to::<bf16>(simd, q, out),
        Kind::Half => dequantize_to::<f16>(simd, q, out),
        _ => dequantize_to::<f32>(simd, q, out),
    }
}

fn dequantize_to<T: Float>(simd: Simd, q: &Nf4Tensor, out: &Tensor) {
    let codes = elements::<u8>(&q.packed);
    let scales = &Scales::of(&q.absmax);
    let (n, size) = (out.numel(), q.blocksize);
    let out = Parts::<T>::of(out);
    let stream = n * size_of::<T>() >= STREAM && out.0.addr().is_multiple_of(64);
    parallel_for(n.div_ceil(size), GRAIN / size, |part| {
        let weights = part.start * size..n.min(part.end * size);
        let codes = &codes[weights.start / 2..weights.end.div_ceil(2)];
        // SAFETY: parts are disjoint; `simd` is what the machine has; and `stream`
        // has been granted to aligned outputs only, of which blocks are multiples
        // of 64 bytes.
        let out = unsafe { out.part(weights) };
        let blocks = Blocks { size, first: part.start, scales, codes, out };
        match (simd, stream) {
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, true) => unsafe { blocks.avx512::<true>() },
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, false) => unsafe { blocks.avx512::<false>() },
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx2, _) => unsafe { blocks.avx2() },
            _ => blocks.plain(),
        }
    });
}

/// Some rows of `q` into `out`, on this thread: f32, contiguous, of their size. Each
/// row must begin a block.
pub(super) fn dequantize_rows(q: &Nf4Tensor, rows: Range<usize>, out: &Tensor) {
    let (size, width) = (q.blocksize, q.shape[1] as usize);
    let weights = rows.start * width..rows.end * width;
    assert!(weights.start.is_multiple_of(size) && out.numel() == weights.len());
    let out = Parts::<f32>::of(out);
    // SAFETY: nobody else has the output; `best` is what the machine has.
    let out = unsafe { out.part(0..weights.len()) };
    let scales = Scales::of(&q.absmax);
    let codes =
        &elements::<u8>(&q.packed)[weights.start / 2..weights.end.div_ceil(2)];
    let blocks =
        Blocks { size, first: weights.start / size, scales: &scales, codes, out };
    match super::simd::best() {
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 => unsafe { blocks.avx512::<false>() },
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => unsafe { blocks.avx2() },
        _ => blocks.plain(),
    }
}

/// The scale of each block, in either form.
pub(super) enum Scales<'a> {
    Plain(&'a [f32]),
    Double { codes: &'a [u8], nested: &'a [f32], code: &'a [f32], offset: f32 },
}

impl<'a> Scales<'a> {
    fn of(absmax: &'a Absmax) -> Self {
        match absmax {
            Absmax::Plain(absmax) => Self::Plain(elements(absmax)),
            Absmax::Double { codes, nested_absmax, code, offset } => Self::Double {
                codes: elements(codes),
                nested: elements(nested_absmax),
                code: elements(code),
                offset: *offset,
            },
        }
    }

    #[inline(always)]
    pub(super) fn at(&self, block: usize) -> f32 {
        match self {
            Self::Plain(absmax) => absmax[block],
            Self::Double { codes, nested, code, offset } => {
                let nested = nested[block / super::double::NESTED_BLOCKSIZE];
                code[usize::from(codes[block])] * nested + offset
            }
        }
    }
}

/// The elements of a contiguous tensor on the CPU whose kind is `T`'s.
fn elements<T>(t: &Tensor) -> &[T] {
    debug_assert!(t.is_contiguous() && t.device() == Device::Cpu);
    debug_assert_eq!(t.kind().elt_size_in_bytes(), size_of::<T>());
    // SAFETY: as asserted; and the borrow of `t` keeps its memory.
    unsafe { slice::from_raw_parts(t.data_ptr().cast(), t.numel()) }
}

/// The same, to be written by several threads.
struct Parts<T>(*mut T, usize);

// SAFETY: threads reach the elements through `part` alone.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    fn of(t: &Tensor) -> Self {
        let all = elements::<T>(t);
        Self(t.data_ptr().cast(), all.len())
    }

    /// Parts given out must not overlap.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: inside the tensor, and the caller sees to the overlap.
        unsafe { slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The compilations for older machines, which the tests elsewhere never reach.
    #[test]
    fn instruction_sets_agree() {
        for (n, kind) in [(70_001, Kind::Float), (4_096 * 9, Kind::BFloat16)] {
            let values: Vec<f32> = (0..n)
                .map(|i| (i as f32 * 0.7).sin() * (i as f32 * 0.01).cos() + 1e-3)
                .collect();
            let w = Tensor::from_slice(&values).to_kind(kind).view([1, -1]);
            for double_quant in [false, true] {
                let q = Nf4Tensor::quantize(&w, 64, double_quant).unwrap();
                for simd in [Simd::Plain, Simd::Avx2, Simd::Avx512] {
                    if simd > crate::quant::simd::best() {
                        continue;
                    }
                    let (packed, _) = quantize(simd, &w, 64);
                    assert_eq!(packed, q.packed, "{simd:?}");
                    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                        let out = Tensor::empty([n as i64], (kind, Device::Cpu));
                        dequantize(simd, &q, &out);
                        let whole = q.absmax();
                        let expected = crate::quant::nf4::decode(
                            &q.packed, &whole, 64, n as i64,
                        );
                        assert_eq!(out, expected.to_kind(kind), "{simd:?} {kind:?}");
                    }
                }
            }
        }
    }
}
