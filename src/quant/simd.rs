//! The look-up of 16 levels by 4-bit codes: a permutation of the table inside a
//! register, where the machine has one.
#![allow(unsafe_code)]

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

/// `out[2 i]` from the high half of `codes[i]`, `out[2 i + 1]` from the low one.
#[inline(always)]
pub(super) fn look_up<W: Word>(codes: &[u8], table: &[W; 16], out: &mut [W]) {
    for (pair, byte) in out.chunks_mut(2).zip(codes) {
        pair[0] = table[usize::from(byte >> 4)];
        if let [_, second] = pair {
            *second = table[usize::from(byte & 15)];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn look_up_avx512<'a, W: Word, const STREAM: bool>(
    blocks: impl Iterator<Item = (&'a [u8], [W; 16], &'a mut [W])>,
) {
    for (codes, table, out) in blocks {
        let (whole, rest) = out.as_chunks_mut();
        let (bytes, last) = codes.split_at(whole.len() * STEP / 2);
        for (bytes, out) in bytes.as_chunks().0.iter().zip(whole) {
            unsafe { W::avx512::<STREAM>(bytes, &table, out) };
        }
        look_up(last, &table, rest);
    }
    if STREAM {
        _mm_sfence();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) fn look_up_avx2<'a, W: Word>(
    blocks: impl Iterator<Item = (&'a [u8], [W; 16], &'a mut [W])>,
) {
    for (codes, table, out) in blocks {
        let (whole, rest) = out.as_chunks_mut();
        let (bytes, last) = codes.split_at(whole.len() * STEP / 2);
        for (bytes, out) in bytes.as_chunks().0.iter().zip(whole) {
            unsafe { W::avx2(bytes, &table, out) };
        }
        look_up(last, &table, rest);
    }
}

/// A dequantized weight, and the look-up of [`STEP`] of them.
pub(super) trait Word: Copy + Send + Sync + 'static {
    /// Needs AVX-512 F, BW and VL, and with `STREAM` an `out` aligned to 64 bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[u8; STEP / 2],
        table: &[Self; 16],
        out: &mut [Self; STEP],
    );
    /// Needs AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx2(
        codes: &[u8; STEP / 2],
        table: &[Self; 16],
        out: &mut [Self; STEP],
    );
}

impl Word for f32 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[u8; STEP / 2],
        table: &[f32; 16],
        out: &mut [f32; STEP],
    ) {
        let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        for (codes, out) in
            codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut().0)
        {
            let byte =
                _mm512_cvtepu8_epi64(_mm_set1_epi64x(i64::from_le_bytes(*codes)));
            // Of each 64 bits, the high code into the lower half and the low code
            // into the upper; the permutation looks at four bits and no others.
            let (high, low) =
                (_mm512_srli_epi64::<4>(byte), _mm512_slli_epi64::<32>(byte));
            let words = _mm512_permutexvar_ps(_mm512_or_si512(high, low), table);
            let out: &mut [f32; 16] = out;
            match STREAM {
                true => unsafe { _mm512_stream_ps(out.as_mut_ptr(), words) },
                false => unsafe { _mm512_storeu_ps(out.as_mut_ptr(), words) },
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(
        codes: &[u8; STEP / 2],
        table: &[f32; 16],
        out: &mut [f32; STEP],
    ) {
        let lower = unsafe { _mm256_loadu_ps(table.as_ptr()) };
        let upper = unsafe { _mm256_loadu_ps(table[8..].as_ptr()) };
        for (codes, out) in
            codes.as_chunks::<4>().0.iter().zip(out.as_chunks_mut().0)
        {
            let byte =
                _mm256_cvtepu8_epi64(_mm_set1_epi32(i32::from_le_bytes(*codes)));
            let (high, low) =
                (_mm256_srli_epi64::<4>(byte), _mm256_slli_epi64::<32>(byte));
            let index = _mm256_or_si256(high, low);
            // Eight entries to a register: the fourth bit of a code says which one.
            let which = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            let lower = _mm256_permutevar8x32_ps(lower, index);
            let upper = _mm256_permutevar8x32_ps(upper, index);
            let words = _mm256_blendv_ps(lower, upper, which);
            let out: &mut [f32; 8] = out;
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), words) };
        }
    }
}

impl Word for u16 {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn avx512<const STREAM: bool>(
        codes: &[u8; STEP / 2],
        table: &[u16; 16],
        out: &mut [u16; STEP],
    ) {
        // Twice over, so that the fifth bit of an index does not matter.
        let table = unsafe { _mm256_loadu_si256(table.as_ptr().cast()) };
        let table = _mm512_broadcast_i64x4(table);
        let byte =
            _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
        let (high, low) =
            (_mm512_srli_epi32::<4>(byte), _mm512_slli_epi32::<16>(byte));
        let words = _mm512_permutexvar_epi16(_mm512_or_si512(high, low), table);
        match STREAM {
            true => unsafe { _mm512_stream_si512(out.as_mut_ptr().cast(), words) },
            false => unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(
        codes: &[u8; STEP / 2],
        table: &[u16; 16],
        out: &mut [u16; STEP],
    ) {
        look_up(codes, table, out);
    }
}
