//! A new token's queries, keys and values on a card: see `kernels/decode.cu`.
use super::call::{Call, Kernels, Source, suffix};
use crate::Result;
use tch::Tensor;

pub(super) const SOURCE: Source = super::source!("decode");
const THREADS: u32 = 256;

impl Kernels {
    /// Turns queries [N, H, K] and keys [N, G, K] by the angles of `cos` and `sin`
    /// [N, .., K], the two of a pair K/2 apart; returns the queries, and writes keys and
    /// values [N, G, K] side by side to `room` (B, G, T, 2K), whose tokens may lie apart.
    pub fn turn_and_store(
        &self,
        [q, k, v]: [&Tensor; 3],
        (cos, sin): (&Tensor, &Tensor),
        room: &Tensor,
    ) -> Result<Tensor> {
        let [q, k, v] = [q, k, v].map(Tensor::contiguous);
        let (n, h, width) = q.size3()?;
        let (b, g, t, _) = room.size4()?;
        for (name, x, heads) in [("keys", &k, g), ("values", &v, g), ("cos", cos, 1)]
        {
            self.check(name, x, n * heads * width, self.kind)?;
        }
        self.check("sin", sin, n * width, self.kind)?;
        let (found, strides) = (room.size(), room.stride());
        let lies = (b * t, found[3], strides[3], room.kind(), room.device());
        if lies != (n, 2 * width, 1, self.kind, q.device()) {
            let what = format!("{lies:?}; expected {n} tokens of {}", 2 * width);
            return Err(crate::Error::setting("the cache's room", what));
        }
        let y = Tensor::f_empty([n, h, width], (self.kind, q.device()))?;
        let half = width / 2;
        let work = (n * (h + 2 * g)) as u64 * (half as u64).div_ceil(4);
        let call =
            Call::new(SOURCE, format!("turn_and_store_{}", suffix(self.kind)));
        let call = call.over(work.div_ceil(THREADS.into()) as i64, 1, THREADS)?;
        let call = call.arg(&q).arg(&k).arg(&v).arg(cos).arg(sin).arg(&y).arg(room);
        let call = call.arg(strides[0]).arg(strides[1]).arg(strides[2]);
        self.run(&call.arg(n).arg(t).arg(h).arg(g).arg(half))?;
        Ok(y)
    }
}
