//! Products with 4-bit matrices that are never written out: see `kernels/nf4.cu`.
use super::call::{Call, Kernels, suffix};
use super::nf4::{Nf4Scales, SOURCE};
use crate::Result;
use tch::{Kind, Tensor};

/// Rows of `x` that the kernels have room for.
const MOST_ROWS: i64 = 8;
/// As in the kernels: matrices of one launch, and what each takes in their arguments.
const TOGETHER: usize = 3;
const WORDS: usize = 12;
/// Weights that a thread multiplies at a time.
const AT_ONCE: i64 = 32;

/// One of the matrices that [`Kernels::nf4_products`] multiplies by, and what its layer
/// adds to `x Wᵀ`, each sum rounded as libtorch would.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Matrix<'a> {
    /// The codes of W.
    pub packed: &'a Tensor,
    /// Their scales.
    pub scales: Nf4Scales<'a>,
    /// [out, in].
    pub shape: [i64; 2],
    /// [out], of the kind of `x`.
    pub bias: Option<&'a Tensor>,
    /// A [r, in] and B [out, r], f32, which are rounded to the kind of `x`, and s: a
    /// low-rank update `B (s A x)`.
    pub low_rank: Option<(&'a Tensor, &'a Tensor, f64)>,
}

impl Nf4Matrix<'_> {
    fn rank(&self) -> i64 {
        self.low_rank.map_or(0, |(a, ..)| a.size()[0])
    }
}

impl Kernels {
    /// `x Wᵀ` for each of up to three W, with what their layers add, in one launch, or
    /// two if there is a low-rank update. W is read in 4 bits and never written out,
    /// which pays where `x` has few rows, as in generation. `None` if it has more than
    /// eight, or if W's rows do not begin where the kernel can read.
    pub fn nf4_products(
        &self,
        x: &Tensor,
        all: &[Nf4Matrix],
    ) -> Result<Option<Vec<Tensor>>> {
        let Some((x, rows)) = readable(x, all) else { return Ok(None) };
        let room = room(rows);
        let blocks =
            all.iter().map(|w| (w.shape[0] as u64).div_ceil(4 / room.min(4)));
        let blocks = blocks.sum::<u64>() as i64;
        let each = all.iter().map(|w| result(&x, w.shape[0]));
        let each = each.collect::<Result<Vec<_>>>()?;
        self.multiply("matvec", &x, all, &each, (rows, room, blocks))?;
        Ok(Some(each))
    }

    /// `silu(gate) ⊙ up` of the two products, rounded as there and as
    /// [`Kernels::swiglu`] rounds.
    pub fn nf4_swiglu(
        &self,
        x: &Tensor,
        pair: &[Nf4Matrix],
    ) -> Result<Option<Tensor>> {
        let Some((x, rows)) = readable(x, pair) else { return Ok(None) };
        let [gate, up] = pair else { return Ok(None) };
        let served = matches!(x.kind(), Kind::Float | Kind::BFloat16);
        if !served || gate.shape != up.shape {
            return Ok(None);
        }
        let (room, out) = (room(rows), gate.shape[0]);
        let blocks = (out as u64).div_ceil(if room == 1 { 2 } else { 1 }) as i64;
        let y = result(&x, out)?;
        let both = [y.shallow_clone(), y.shallow_clone()];
        self.multiply("swiglu", &x, pair, &both, (rows, room, blocks))?;
        Ok(Some(y))
    }

    fn multiply(
        &self,
        name: &str,
        x: &Tensor,
        all: &[Nf4Matrix],
        each: &[Tensor],
        (rows, room, blocks): (i64, u64, i64),
    ) -> Result<()> {
        let (input, kind) = (all[0].shape[1], x.kind());
        self.check("x", x, rows * input, kind)?;
        let ranks = all.iter().map(Nf4Matrix::rank).sum::<i64>();
        let h = (ranks > 0)
            .then(|| Tensor::f_empty([ranks * rows], (Kind::Float, x.device())));
        let h = h.transpose()?;
        let (mut words, mut before) = (Vec::with_capacity(TOGETHER * WORDS), 0);
        for (w, y) in all.iter().zip(each) {
            let h = h.as_ref().map_or(0, |h| h.data_ptr() as u64 + 4 * before);
            before += (w.rank() * rows) as u64;
            words.extend(self.words(w, kind, h, y)?);
        }
        words.resize(TOGETHER * WORDS, 0);
        if ranks > 0 {
            let call = Call::new(SOURCE, format!("nf4_lower_{}", suffix(kind)));
            let call = call.over(ranks, rows, super::call::threads(input))?;
            self.run(&call.words(words.iter().copied()).arg(x).arg(input))?;
        }
        let name = format!("nf4_{name}{room}_{}", suffix(kind));
        let call = Call::new(SOURCE, name).over(blocks, 1, threads(input))?;
        self.run(&call.words(words).arg(x).arg(rows as u32).arg(input))
    }

    /// `Layer` of the kernels.
    fn words(
        &self,
        w: &Nf4Matrix,
        kind: Kind,
        h: u64,
        y: &Tensor,
    ) -> Result<[u64; WORDS]> {
        let [out, input] = w.shape;
        self.check("packed", w.packed, out * input / 2, Kind::Uint8)?;
        w.scales.check(self, out * input)?;
        if let Some(bias) = w.bias {
            self.check("bias", bias, out, kind)?;
        }
        let rank = w.rank();
        let (mut a, mut b, mut scale) = (0, 0, 0f32);
        if let Some((down, up, s)) = w.low_rank {
            self.check("A", down, rank * input, Kind::Float)?;
            self.check("B", up, out * rank, Kind::Float)?;
            (a, b) = (down.data_ptr() as u64, up.data_ptr() as u64);
            scale = s as f32;
        }
        let address = |t: Option<&Tensor>| t.map_or(0, |t| t.data_ptr() as u64);
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [codes, absmax, level, last] = w.scales.words();
        Ok([
            address(Some(w.packed)),
            codes,
            absmax,
            level,
            last,
            address(w.bias),
            a,
            b,
            h,
            address(Some(y)),
            out as u64,
            pair(rank as u32, scale.to_bits()),
        ])
    }
}

/// `x` in a row, and how many rows it has, if the kernels can read all of it.
fn readable(x: &Tensor, all: &[Nf4Matrix]) -> Option<(Tensor, i64)> {
    let aligned = |t: &Tensor| (t.data_ptr() as usize).is_multiple_of(16);
    let input = all.first().filter(|_| all.len() <= TOGETHER)?.shape[1];
    let (rows, kind) = (x.numel() as i64 / input, x.kind());
    let served = (1..=MOST_ROWS).contains(&rows)
        && input % AT_ONCE == 0
        && matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half)
        && all.iter().all(|w| w.shape[1] == input && aligned(w.packed))
        && all.iter().all(|w| w.shape[0] <= i32::MAX.into()); // counted in 32 bits
    let x = served.then(|| x.contiguous())?;
    aligned(&x).then_some((x, rows))
}

/// Room for so many rows of x that there is a kernel for. It takes as many rows of W at
/// a time as make four sums of it, or one.
fn room(rows: i64) -> u64 {
    match rows {
        1 => 1,
        2 => 2,
        3..=4 => 4,
        _ => 8,
    }
}

/// [.., in] to [.., out], not yet computed.
fn result(x: &Tensor, out: i64) -> Result<Tensor> {
    let mut shape = x.size();
    shape.pop();
    shape.push(out);
    Ok(Tensor::f_empty(shape.as_slice(), (x.kind(), x.device()))?)
}

/// Threads that go over a row in as few rounds as 256 would, all of them busy in each:
/// 32 weights to a thread and round.
fn threads(input: i64) -> u32 {
    let work = (input as u64).div_ceil(32);
    let rounds = work.div_ceil(256).max(1);
    work.div_ceil(rounds).next_multiple_of(32).clamp(32, 256) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_cover_a_row_in_even_rounds() {
        // Widths of the published checkpoints.
        for (input, expected) in
            [(32, 32), (1408, 64), (2048, 64), (4096, 128), (8192, 256)]
        {
            assert_eq!(threads(input), expected, "{input}");
        }
        for input in (32..30_000).step_by(32) {
            let t = u64::from(threads(input));
            let work = input as u64 / 32;
            assert!(t.is_multiple_of(32) && t <= 256);
            assert_eq!(
                work.div_ceil(t),
                work.div_ceil(256),
                "{input}: as few rounds"
            );
        }
    }
}
