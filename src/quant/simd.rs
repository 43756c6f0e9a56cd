//! The look-up of 16 levels by 4-bit codes: a permutation of the table inside a
//! register, where the machine has one.
#![allow(unsafe_code)]
use super::kernels::Scales;
use super::nf4::CODE;
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Weights handled at once: 16 bytes of codes.
pub(super) const STEP: usize = 32;

/// The instruction sets for which there is code.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) enum Simd {
    Plain,
    Avx2,
    Avx512,
}

/// The best one that this machine has.
pub(super) fn best() -> Simd {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
        return Simd::Avx512;
    } else if is_x86_feature_detected!("avx2") {
        return Simd::Avx2;
    }
    Simd::Plain
}

/// A stored float, and the look-up of [`STEP`] codes at a time.
pub(super) trait Float: Copy + Default + Send + Sync {
    fn widen(self) -> f32;
    /// To nearest, ties to even.
    fn round(x: f32) -> Self;
    /// Needs AVX-512 F, BW and VL, and for `STREAM`, which writes past the cache, an
    /// `out` aligned to 64 bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[[u8; STEP / 2]],
        absmax: f32,
        out: &mut [[Self; STEP]],
    );
    /// Needs AVX2.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn avx2(codes: &[[u8; STEP / 2]], absmax: f32, out: &mut [[Self; STEP]]) {
        look_up(codes.as_flattened(), absmax, out.as_flattened_mut());
    }
}

/// Consecutive blocks of `size` weights, the first of which is `first`, with their
/// codes and the place for them.
pub(super) struct Blocks<'a, T> {
    pub size: usize,
    pub first: usize,
    pub scales: &'a Scales<'a>,
    pub codes: &'a [u8],
    pub out: &'a mut [T],
}

impl<T: Float> Blocks<'_, T> {
    /// Calls `dequantize` for each whole block, and does the rest of the last one.
    #[inline(always)]
    fn each(self, dequantize: impl Fn(&[u8], f32, &mut [T])) {
        let whole = self.out.len() / self.size;
        let (codes, last_codes) = self.codes.split_at(whole * self.size / 2);
        let (out, last_out) = self.out.split_at_mut(whole * self.size);
        let blocks = out.chunks_exact_mut(self.size);
        let blocks = codes.chunks_exact(self.size / 2).zip(blocks);
        for (block, (codes, out)) in (self.first..).zip(blocks) {
            dequantize(codes, self.scales.at(block), out);
        }
        if !last_out.is_empty() {
            look_up(last_codes, self.scales.at(self.first + whole), last_out);
        }
    }

    pub(super) fn plain(self) {
        self.each(look_up);
    }

    /// Needs, beyond what is said here, what [`Float::avx512`] says of `STREAM`.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn avx512<const STREAM: bool>(self) {
        self.each(|codes, absmax, out| {
            let (codes, out) = (codes.as_chunks().0, out.as_chunks_mut().0);
            unsafe { T::avx512::<STREAM>(codes, absmax, out) };
        });
        if STREAM {
            _mm_sfence();
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(self) {
        self.each(|codes, absmax, out| {
            let (codes, out) = (codes.as_chunks().0, out.as_chunks_mut().0);
            unsafe { T::avx2(codes, absmax, out) };
        });
    }
}

/// `out[2 i]` from the high half of `codes[i]`, `out[2 i + 1]` from the low one.
#[inline(always)]
fn look_up<T: Float>(codes: &[u8], absmax: f32, out: &mut [T]) {
    let table = CODE.map(|level| T::round(level * absmax));
    for (pair, byte) in out.chunks_mut(2).zip(codes) {
        pair[0] = table[usize::from(byte >> 4)];
        if let [_, second] = pair {
            *second = table[usize::from(byte & 15)];
        }
    }
}

/// The 16 products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn products(absmax: f32) -> __m512 {
    let levels = unsafe { _mm512_loadu_ps(const { &CODE }.as_ptr()) };
    _mm512_mul_ps(levels, _mm512_set1_ps(absmax))
}

impl Float for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[[u8; STEP / 2]],
        absmax: f32,
        out: &mut [[f32; STEP]],
    ) {
        let table = products(absmax);
        let codes = codes.as_flattened().as_chunks::<8>().0;
        let out = out.as_flattened_mut().as_chunks_mut::<16>().0;
        for (codes, out) in codes.iter().zip(out) {
            let byte =
                _mm512_cvtepu8_epi64(_mm_set1_epi64x(i64::from_le_bytes(*codes)));
            // Of each 64 bits, the high code into the lower half and the low code
            // into the upper; the permutation looks at four bits and no others.
            let (high, low) =
                (_mm512_srli_epi64::<4>(byte), _mm512_slli_epi64::<32>(byte));
            let words = _mm512_permutexvar_ps(_mm512_or_si512(high, low), table);
            match STREAM {
                true => unsafe { _mm512_stream_ps(out.as_mut_ptr(), words) },
                false => unsafe { _mm512_storeu_ps(out.as_mut_ptr(), words) },
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(codes: &[[u8; STEP / 2]], absmax: f32, out: &mut [[f32; STEP]]) {
        let absmax = _mm256_set1_ps(absmax);
        let [lower, upper] = [0, 8].map(|i| {
            let levels = unsafe { _mm256_loadu_ps(const { &CODE }[i..].as_ptr()) };
            _mm256_mul_ps(levels, absmax)
        });
        let codes = codes.as_flattened().as_chunks::<4>().0;
        let out = out.as_flattened_mut().as_chunks_mut::<8>().0;
        for (codes, out) in codes.iter().zip(out) {
            let byte =
                _mm256_cvtepu8_epi64(_mm_set1_epi32(i32::from_le_bytes(*codes)));
            let (high, low) =
                (_mm256_srli_epi64::<4>(byte), _mm256_slli_epi64::<32>(byte));
            let index = _mm256_or_si256(high, low);
            // Eight entries to a register: the fourth bit of a code says which one.
            let which = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            let first = _mm256_permutevar8x32_ps(lower, index);
            let second = _mm256_permutevar8x32_ps(upper, index);
            let words = _mm256_blendv_ps(first, second, which);
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), words) };
        }
    }
}

/// The look-up of 16-bit words, which lie at `out`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn words_avx512<const STREAM: bool>(
    codes: &[[u8; STEP / 2]],
    table: __m256i,
    out: *mut __m512i,
) {
    // Twice over, so that the fifth bit of an index does not matter.
    let table = _mm512_broadcast_i64x4(table);
    for (i, codes) in codes.iter().enumerate() {
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        let byte = _mm512_cvtepu8_epi32(codes);
        let (high, low) =
            (_mm512_srli_epi32::<4>(byte), _mm512_slli_epi32::<16>(byte));
        let words = _mm512_permutexvar_epi16(_mm512_or_si512(high, low), table);
        match STREAM {
            true => unsafe { _mm512_stream_si512(out.add(i), words) },
            false => unsafe { _mm512_storeu_si512(out.add(i), words) },
        }
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[[u8; STEP / 2]],
        absmax: f32,
        out: &mut [[bf16; STEP]],
    ) {
        // The upper half of the bits, after half a unit of it is added; a tie takes
        // it to the even neighbour. NaN, which this would spoil, stays what it is.
        let (products, one) = (products(absmax), _mm512_set1_epi32(1));
        let bits = _mm512_castps_si512(products);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), one);
        let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(products, products);
        let rounded = _mm512_mask_add_epi32(bits, number, bits, half);
        let table = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
        unsafe { words_avx512::<STREAM>(codes, table, out.as_mut_ptr().cast()) };
    }
}

impl Float for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn round(x: f32) -> f16 {
        f16::from_f32(x)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[[u8; STEP / 2]],
        absmax: f32,
        out: &mut [[f16; STEP]],
    ) {
        let table = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(products(absmax));
        unsafe { words_avx512::<STREAM>(codes, table, out.as_mut_ptr().cast()) };
    }
}
