//! NF4, the 4-bit "normal float": 16 levels, one scale per block of weights. Here it
//! is in libtorch operations, for any device; `kernels.rs` on a CPU and
//! `cuda/kernels/nf4.cu` on a card do the same at the speed of memory, bit for bit.
use tch::{Kind, Tensor};

/// The 16 levels: quantiles of the standard normal distribution scaled to [-1, 1],
/// made asymmetric so that 0 is one of them (QLoRA, arXiv 2305.14314, appendix E).
///
/// The literals are bitsandbytes', whose files we read and write.
pub const CODE: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// The 15 borders between neighbouring levels: the midpoints, as bitsandbytes' CUDA
/// kernel has them. Its Python takes the mean of two levels in f32 instead, which is
/// the next float for the 1st, 9th, 13th and 15th; tests name the numbers concerned.
pub const THRESHOLDS: [f32; 15] = [
    -0.84809643,
    -0.6106329,
    -0.45999527,
    -0.33967942,
    -0.2346074,
    -0.13791174,
    -0.045525018,
    0.03979015,
    0.120255254,
    0.20352125,
    0.29201376,
    0.38931254,
    0.5016634,
    0.6427869,
    0.8614784,
];

// ANCHOR: encode
/// Quantizes `w`, flattened, in blocks of `blocksize` consecutive elements:
/// `absmax = max |w|` over the block and
/// `code = #{t in THRESHOLDS : w (1 / absmax) > t}`.
///
/// `w`: any shape, n elements, a float kind. Returns the codes two to a byte, the
/// first in the high half, u8 `[(n + 1) / 2, 1]`, and absmax, f32
/// `[ceil(n / blocksize)]`.
///
/// This is the rule of bitsandbytes' CUDA kernel (`csrc/kernels.cu`,
/// `kQuantizeBlockwise`): a product with the reciprocal, not a quotient; a value on
/// a border takes the lower level; in a block of zeros `0 * inf` is NaN, which
/// exceeds no border, hence code 0, which stands for `-1 * 0`.
pub fn encode(w: &Tensor, blocksize: usize) -> (Tensor, Tensor) {
    let n = w.numel() as i64;
    let blocks = in_blocks(&w.to_kind(Kind::Float).flatten(0, -1), blocksize);
    let absmax = blocks.abs().amax([1], false);
    let scaled = blocks * absmax.reciprocal().unsqueeze(1);
    let borders = Tensor::from_slice(&THRESHOLDS).to_device(w.device());
    // libtorch sorts NaN above every border; -1 lies below them all.
    let code = scaled.nan_to_num(-1.0, None, None).bucketize(&borders, true, false);
    let code = code.to_kind(Kind::Uint8).view([-1, 2]);
    let packed = code.select(1, 0) * 16 + code.select(1, 1);
    (packed.narrow(0, 0, (n + 1) / 2).contiguous().view([-1, 1]), absmax)
}
// ANCHOR_END: encode

// ANCHOR: decode
/// The inverse of [`encode`]: `CODE[code] absmax`, a product in f32.
///
/// `packed`: u8, `(n + 1) / 2` bytes. `absmax`: f32 `[ceil(n / blocksize)]`. Returns
/// f32 `[n]`.
pub fn decode(packed: &Tensor, absmax: &Tensor, blocksize: usize, n: i64) -> Tensor {
    // One look-up yields the two levels of a byte.
    let pairs: Vec<f32> =
        (0..256).flat_map(|byte| [CODE[byte >> 4], CODE[byte & 15]]).collect();
    let pairs = Tensor::from_slice(&pairs).view([256, 2]).to_device(packed.device());
    let index = packed.flatten(0, -1).to_kind(Kind::Int);
    let levels = pairs.index_select(0, &index).flatten(0, -1);
    let values = in_blocks(&levels, blocksize) * absmax.unsqueeze(1);
    values.flatten(0, -1).narrow(0, 0, n)
}
// ANCHOR_END: decode

/// `flat`, 1-D, as rows of `blocksize`, the last one filled up with zeros.
pub(super) fn in_blocks(flat: &Tensor, blocksize: usize) -> Tensor {
    let size = blocksize as i64;
    let missing = (size - flat.numel() as i64 % size) % size;
    match missing {
        0 => flat.view([-1, size]),
        _ => flat.constant_pad_nd([0, missing]).view([-1, size]),
    }
}
