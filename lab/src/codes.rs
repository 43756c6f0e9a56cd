//! Codes for weights in blocks: a few numbers of [-1, 1], of which each weight takes
//! one, times the largest magnitude of its block. NF4 is such a code; these are others
//! to hold beside it, and the best there can be.
use downhill::Result;
use tch::{Device, Kind, Tensor};

/// Levels, ascending, and the borders between them.
#[derive(Clone, Debug)]
pub struct Code {
    /// What a weight may become, as a part of its block's largest magnitude.
    pub levels: Vec<f64>,
    /// A value takes the level whose index is the number of borders below it.
    pub borders: Vec<f64>,
}

/// Weights as parts of their block's largest magnitude, ascending, each with the square
/// of that magnitude: what an error there counts for in the weight itself.
pub type Scaled = Vec<(f64, f64)>;

// ANCHOR: normal_float
/// The 16 levels of NF4: eight quantiles of the normal distribution above zero, seven
/// below, zero itself, and all of it scaled to [-1, 1].
pub fn normal_float(offset: f64) -> Vec<f64> {
    let quantiles = |n: i64| {
        let p = Tensor::linspace(0.5, offset, n, (Kind::Double, Device::Cpu));
        let q: Tensor = p.special_ndtri() / p.special_ndtri().max();
        (1..n).map(move |i| q.double_value(&[i]))
    };
    let mut levels: Vec<f64> = quantiles(8).map(|q| -q).collect();
    levels.push(0.);
    levels.extend(quantiles(9));
    levels.sort_by(f64::total_cmp);
    levels
}
// ANCHOR_END: normal_float

/// What rounds a matrix in blocks of a size.
pub type Rounding = Box<dyn Fn(&Tensor, i64) -> Result<Tensor>>;

/// Rounding by a code.
pub fn by(code: &Code) -> Rounding {
    let code = code.clone();
    Box::new(move |w, size| Ok(code.round(w, size)))
}

// ANCHOR: placed
/// Rounds with the blocks begun `shift` weights later, which is as good a choice as any
/// other: what differs is chance.
///
/// # Errors
/// Those of `round`.
pub fn placed(round: &Rounding, w: &Tensor, shift: i64) -> Result<Tensor> {
    let moved = w.flatten(0, -1).roll([-shift], [0]).view_as(w);
    Ok(round(&moved, 64)?.flatten(0, -1).roll([shift], [0]).view_as(w))
}
// ANCHOR_END: placed

impl Code {
    /// Everything to the nearest level. A value on a border takes the lower one.
    pub fn nearest(levels: &[f64]) -> Self {
        let borders = levels.windows(2).map(|w| (w[0] + w[1]) / 2.).collect();
        Self { levels: levels.to_vec(), borders }
    }

    /// Four bits as integers: the usual symmetric ones, -7 to 7, in even steps. The
    /// sixteenth code is not used.
    pub fn int4() -> Self {
        let levels: Vec<f64> = (-7..=7).map(|i| f64::from(i) / 7.).collect();
        Self::nearest(&levels)
    }

    /// Four bits as a float, of bitsandbytes: a sign, two bits of exponent, one of
    /// mantissa. Zero has two codes.
    pub fn fp4() -> Self {
        let half = [0.0625, 2., 3., 4., 6., 8., 12.].map(|x| x / 12.);
        let below = half.iter().rev().map(|x| -x);
        let levels: Vec<f64> = below.chain([0.]).chain(half).collect();
        Self::nearest(&levels)
    }

    /// AF4, for blocks of 64, as bitsandbytes has it (after Yoshida, arXiv 2306.06965).
    pub fn af4() -> Self {
        Self::nearest(&[
            -1.,
            -0.69441008,
            -0.51243739,
            -0.3736951,
            -0.25607552,
            -0.14982478,
            -0.04934812,
            0.,
            0.04273164,
            0.12934483,
            0.21961274,
            0.31675666,
            0.42563882,
            0.55496234,
            0.72424863,
            1.,
        ])
    }

    // ANCHOR: lloyd
    /// Lloyd and Max: each border midway between its levels, each level the mean of what
    /// it stands for, in turn, until nothing moves: the least squared error. `keep` says
    /// which levels stay.
    pub fn lloyd(start: &[f64], values: &Scaled, keep: fn(f64) -> bool) -> Self {
        let sums = sums(values);
        Self::settle(start, keep, |code| code.means(values, &sums))
    }

    /// The same with medians: the least absolute error, in units of the block's largest.
    pub fn lloyd_absolute(
        start: &[f64],
        values: &Scaled,
        keep: fn(f64) -> bool,
    ) -> Self {
        Self::settle(start, keep, |code| {
            let cuts = code.cuts(values);
            let median =
                |c: &[usize]| values[c[0].midpoint(c[1]).min(values.len() - 1)].0;
            cuts.windows(2).map(median).collect()
        })
    }

    fn settle(
        start: &[f64],
        keep: fn(f64) -> bool,
        centers: impl Fn(&Self) -> Vec<f64>,
    ) -> Self {
        let mut code = Self::nearest(start);
        for _ in 0..3000 {
            let moved =
                |(new, old): (f64, &f64)| if keep(*old) { *old } else { new };
            let levels: Vec<f64> =
                centers(&code).into_iter().zip(&code.levels).map(moved).collect();
            let far = |(a, b): (&f64, &f64)| (a - b).abs();
            let most = levels.iter().zip(&code.levels).map(far).fold(0., f64::max);
            code = Self::nearest(&levels);
            if most < 1e-7 {
                break;
            }
        }
        code
    }
    // ANCHOR_END: lloyd

    /// `n` levels that are used equally often: borders at the quantiles of `values`, and
    /// between two borders the mean.
    pub fn equal_use(n: usize, values: &Scaled) -> Self {
        let border = |i: usize| values[i * values.len() / n].0;
        let borders: Vec<f64> = (1..n).map(border).collect();
        let mut code = Self { levels: vec![0.; n], borders };
        code.levels = code.means(values, &sums(values));
        code
    }

    /// Where among the values those of each level begin, and the end of the last.
    fn cuts(&self, values: &Scaled) -> Vec<usize> {
        let cut = |b: &f64| values.partition_point(|(x, _)| x <= b);
        let inner = self.borders.iter().map(cut);
        [0].into_iter().chain(inner).chain([values.len()]).collect()
    }

    /// The mean of what each level stands for; a level that stands for nothing, itself.
    fn means(&self, values: &Scaled, sums: &[(f64, f64)]) -> Vec<f64> {
        let cuts = self.cuts(values);
        let mean = |(i, level): (usize, &f64)| {
            let ((w0, x0), (w1, x1)) = (sums[cuts[i]], sums[cuts[i + 1]]);
            if w1 > w0 { (x1 - x0) / (w1 - w0) } else { *level }
        };
        self.levels.iter().enumerate().map(mean).collect()
    }

    /// The mean distance of a weight to its level, as a part of its block's largest.
    pub fn absolute_error(&self, w: &Tensor, blocksize: i64) -> f64 {
        let (_, absmax) = blocks(w, blocksize);
        let (back, _) = blocks(&(self.round(w, blocksize) - w), blocksize);
        (back.abs() / absmax).mean(Kind::Double).double_value(&[])
    }

    /// Which level each weight takes, in blocks of `blocksize` consecutive ones: Int64,
    /// a block a row. The number of weights must be a multiple of `blocksize`.
    pub fn indices(&self, w: &Tensor, blocksize: i64) -> Tensor {
        let (blocks, absmax) = blocks(w, blocksize);
        let borders = Tensor::from_slice(&self.borders);
        (blocks / absmax).bucketize(&borders, false, false)
    }

    /// How large a part of all these weights takes each level.
    pub fn shares(&self, all: &[Tensor], blocksize: i64) -> Vec<f64> {
        let levels = self.levels.len() as i64;
        let count = |w: &Tensor| {
            let indices = self.indices(w, blocksize).flatten(0, -1);
            indices.bincount(None::<Tensor>, levels).to_kind(Kind::Double)
        };
        let counts: Tensor = all.iter().map(count).sum();
        let shares = &counts / counts.sum(Kind::Double);
        (0..levels).map(|i| shares.double_value(&[i])).collect()
    }

    /// Weights that went through the code and came back, f32, of the shape of `w`. The
    /// number of weights must be a multiple of `blocksize`.
    pub fn round(&self, w: &Tensor, blocksize: i64) -> Tensor {
        let (_, absmax) = blocks(w, blocksize);
        let index = self.indices(w, blocksize);
        let levels = Tensor::from_slice(&self.levels).take(&index);
        (levels * absmax).to_kind(Kind::Float).view_as(w)
    }
}

/// `w` in f64, a block a row, and the largest magnitude of each, [blocks, 1].
fn blocks(w: &Tensor, blocksize: i64) -> (Tensor, Tensor) {
    let blocks = w.to_kind(Kind::Double).reshape([-1, blocksize]);
    let absmax = blocks.abs().amax([1], true).clamp_min(f64::MIN_POSITIVE);
    (blocks, absmax)
}

/// See [`Scaled`].
pub fn scaled(w: &Tensor, blocksize: i64) -> Scaled {
    let (blocks, absmax) = blocks(w, blocksize);
    let list = |t: Tensor| Vec::<f64>::try_from(t.flatten(0, -1));
    let weight = absmax.square().expand_as(&blocks).contiguous();
    let pairs = (list(blocks / &absmax), list(weight));
    let (Ok(values), Ok(weights)) = pairs else { return vec![] };
    let mut all: Scaled = values.into_iter().zip(weights).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

/// Sums of the weights, and of weight times value, before each element and at the end.
fn sums(values: &Scaled) -> Vec<(f64, f64)> {
    let mut sums = vec![(0., 0.)];
    let mut sum = (0., 0.);
    for (x, w) in values {
        sum = (sum.0 + w, sum.1 + w * x);
        sums.push(sum);
    }
    sums
}

/// The information of a code that is used so, in bits: 4 for sixteen equal shares.
pub fn bits(shares: &[f64]) -> f64 {
    shares.iter().filter(|p| **p > 0.).map(|p| -p * p.log2()).sum()
}

/// The error over several matrices together, as a part of them.
///
/// # Errors
/// Those of `round`.
pub fn error(all: &[Tensor], round: &Rounding, blocksize: i64) -> Result<f64> {
    let flat = |t: &Tensor| t.flatten(0, -1);
    let back = all.iter().map(|w| Ok(flat(&round(w, blocksize)?)));
    let back = back.collect::<Result<Vec<_>>>()?;
    let all: Vec<Tensor> = all.iter().map(flat).collect();
    Ok(relative_error(&Tensor::cat(&all, 0), &Tensor::cat(&back, 0)))
}

/// How much of `update` is in what stands there now and did not before: 1 is all of it.
pub fn kept(update: &Tensor, now: &Tensor, before: &Tensor) -> f64 {
    let part = ((now - before) * update).sum(Kind::Double);
    (part / update.square().sum(Kind::Double)).double_value(&[])
}

/// One weight of each of these blocks `[blocks, n]` grows: its size, and the error of
/// the others as a part of them.
pub fn outliers(code: &Code, w: &Tensor) -> Vec<(f64, f64)> {
    let (w, size) = (w.copy(), w.size()[1]);
    let others = |t: &Tensor| t.narrow(1, 1, size - 1);
    let sizes = (0..=24).map(|i| 3. * 10f64.powf(f64::from(i) / 16.));
    let error = |far: f64| {
        let _ = w.narrow(1, 0, 1).fill_(far);
        (far, relative_error(&others(&w), &others(&code.round(&w, size))))
    };
    sizes.map(error).collect()
}

/// `|w - back| / |w|`: the error as a part of the weights.
pub fn relative_error(w: &Tensor, back: &Tensor) -> f64 {
    let w = w.to_kind(Kind::Double);
    let off = (back.to_kind(Kind::Double) - &w).norm();
    (off / w.norm()).double_value(&[])
}
