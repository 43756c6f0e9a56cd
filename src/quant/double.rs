//! Double quantization: the scales of the blocks are numbers too, and 32 bits for
//! every 64 weights is half a bit per weight. Stored in 8 bits, themselves with one
//! scale per 256, they cost an eighth of one (QLoRA, arXiv 2305.14314, section 3).
use super::nf4::in_blocks;
use crate::autograd::upload;
use tch::{Kind, Tensor};

/// Scales that share one scale of their own.
pub const NESTED_BLOCKSIZE: usize = 256;

/// The 256 levels of the 8-bit "dynamic" type (arXiv 1511.04561): 0, 1, and for
/// each decade `10^(i-6)`, i = 0 to 6, the `2^i` midpoints of an even division of
/// [0.1, 1], with both signs. Small values thus keep a small relative error.
///
/// Bit for bit bitsandbytes' `create_dynamic_map()` on a CPU with fused
/// multiply-add: its `linspace` fuses, and without that some levels differ in the
/// last bit.
pub fn dynamic_map() -> [f32; 256] {
    let mut levels = vec![0.0, 1.0];
    for (i, decade) in
        [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate()
    {
        let parts = 1 << i;
        let step = (1.0 - 0.1f32) / parts as f32;
        // Counted from both ends, as libtorch's linspace counts.
        let point = |k: i32| {
            if k < (parts + 1) / 2 {
                step.mul_add(k as f32, 0.1)
            } else {
                (-step).mul_add((parts - k) as f32, 1.0)
            }
        };
        for k in 0..parts {
            let level = (point(k) + point(k + 1)) / 2.0 * decade;
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&levels);
    map
}

/// The 255 borders: a value takes the level whose index is the number of borders
/// that it exceeds.
///
/// They lie midway between levels, and a value on a border takes the even index:
/// the CUDA kernel (`csrc/kernels.cu`, `dQuantize`) searches from level 127 in
/// steps that end on an even one, and leaves it only for something strictly nearer.
fn borders(map: &[f32; 256]) -> [f32; 255] {
    std::array::from_fn(|i| {
        let middle = (map[i] + map[i + 1]) * 0.5;
        if i % 2 == 0 { middle } else { middle.next_down() }
    })
}

// ANCHOR: encode
/// Quantizes block scales to 8 bits: `offset = mean(absmax)`, and `absmax - offset`
/// in blocks of [`NESTED_BLOCKSIZE`] over the levels of [`dynamic_map`].
///
/// `absmax`: f32 `[blocks]`, any device. Returns on it the codes, u8 `[blocks]`; their
/// scales, f32 `[ceil(blocks / 256)]`; and the offset, f32 `[]`. Nothing waits for the
/// device. The mean is libtorch's, whose last bit depends on the device and, above
/// 32,768 scales, on the number of threads.
pub fn encode(absmax: &Tensor) -> (Tensor, Tensor, Tensor) {
    let offset = absmax.mean(Kind::Float);
    let blocks = in_blocks(&(absmax - &offset), NESTED_BLOCKSIZE);
    let nested_absmax = blocks.abs().amax([1], false);
    let scaled = blocks * nested_absmax.reciprocal().unsqueeze(1);
    let borders = Tensor::from_slice(&borders(&dynamic_map()));
    let borders = upload(&borders, absmax.device());
    // If all scales of a block are the mean, 0 * inf is NaN, and its code 0.
    let codes = scaled.nan_to_num(-2.0, None, None).bucketize(&borders, true, false);
    let codes = codes.to_kind(Kind::Uint8).flatten(0, -1);
    (codes.narrow(0, 0, absmax.numel() as i64), nested_absmax, offset)
}
// ANCHOR_END: encode

// ANCHOR: decode
/// The scales again: `code[codes] nested_absmax + offset`, rounded to f32 after the
/// product and after the sum, as the CUDA kernels round.
///
/// `codes`: u8 `[blocks]`. Returns f32 `[blocks]`.
pub fn decode(
    codes: &Tensor,
    nested_absmax: &Tensor,
    code: &Tensor,
    offset: f32,
) -> Tensor {
    let levels = code.index_select(0, &codes.to_kind(Kind::Int));
    let scales = in_blocks(&levels, NESTED_BLOCKSIZE) * nested_absmax.unsqueeze(1);
    scales.flatten(0, -1).narrow(0, 0, codes.numel() as i64) + f64::from(offset)
}
// ANCHOR_END: decode
