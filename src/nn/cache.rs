//! What attention keeps of the tokens seen so far.
use super::{Rotation, Rows};
use crate::{Result, autograd, cuda};
use tch::{Tensor, no_grad};

/// Keys and values of the tokens seen so far, one entry per layer.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// One layer's. In memory with room for tokens to come, (B, G, room, W), where a token
/// has W numbers side by side: a key and a value, or with latent attention the latent
/// and the turned key from which those of all heads come (G is 1 then). To append the
/// new ones to a tensor that just holds the old ones would copy these every time; here
/// a token is copied when the room is doubled, about once.
#[derive(Debug, Default)]
pub struct LayerCache {
    room: Option<Tensor>,
    seen: i64,
}

/// Tokens that the first room holds at least.
const LEAST: i64 = 64;

impl KvCache {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerCache::default()).collect() }
    }

    /// Tokens seen so far: the position of the next one.
    pub fn len(&self) -> i64 {
        self.layers.first().map_or(0, |first| first.seen)
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn layer(&mut self, i: usize) -> Option<&mut LayerCache> {
        self.layers.get_mut(i)
    }
}

impl LayerCache {
    /// Room for `t` more tokens, (B, G, t, W), to be written.
    fn grow(&mut self, [b, g, t, w]: [i64; 4], like: &Tensor) -> Result<Tensor> {
        let (seen, needed) = (self.seen, self.seen + t);
        let room = match self.room.take() {
            Some(room) if room.size()[2] >= needed => room,
            old => {
                let size = LEAST.max((needed as u64 + 1).next_power_of_two() as i64);
                let like = (like.kind(), like.device());
                let room = Tensor::f_empty([b, g, size, w], like)?;
                if let Some(old) = old {
                    let old = old.f_narrow(2, 0, seen)?;
                    room.f_narrow(2, 0, seen)?.f_copy_(&old)?;
                }
                room
            }
        };
        let new = room.f_narrow(2, seen, t)?;
        (self.room, self.seen) = (Some(room), needed);
        Ok(new)
    }

    /// All that has been seen, (B, G, T', W), where it lies.
    fn all(&self) -> Result<Tensor> {
        match &self.room {
            Some(room) => Ok(room.f_narrow(2, 0, self.seen)?),
            None => Ok(Tensor::new()),
        }
    }

    /// Appends the two parts of each token, (B, G, T, ..), and returns all that has been
    /// seen. What is kept has no history.
    pub(super) fn extend(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        no_grad(|| {
            let (mut shape, first) = (<[i64; 4]>::from(a.size4()?), a.size()[3]);
            let second = b.size()[3];
            shape[3] = first + second;
            let new = self.grow(shape, a)?;
            new.f_narrow(3, 0, first)?.f_copy_(a)?;
            new.f_narrow(3, first, second)?.f_copy_(b)?;
            self.all()
        })
    }

    /// Turns queries [N, H, K] and keys [N, G, K] by their positions, appends keys and
    /// values [N, G, K], and returns queries (B, H, T, K) and all keys and values
    /// (B, G, T', K).
    pub(super) fn turned(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        rows: &Rows,
        rotation: &Rotation,
    ) -> Result<[Tensor; 3]> {
        let heads =
            |x: &Tensor| Ok::<_, crate::Error>(rows.grid(x)?.transpose(1, 2));
        let (cos, sin) = rotation.angles();
        let kernels = cuda::kernels(&[q, k, v, cos, sin]);
        let kernels = kernels.filter(|_| !autograd::recording());
        let (q, all) = match kernels {
            Some(kernels) => {
                let (t, k_size) = (rows.longest(), k.size());
                let shape = [k_size[0] / t, k_size[1], t, 2 * k_size[2]];
                let new = self.grow(shape, k)?;
                let q = kernels.turn_and_store([q, k, v], (cos, sin), &new)?;
                (heads(&q)?, self.all()?)
            }
            None => {
                let (k, v) = (heads(&rotation.apply(k)?)?, heads(v)?);
                (heads(&rotation.apply(q)?)?, self.extend(&k, &v)?)
            }
        };
        let width = all.size()[3] / 2;
        Ok([q, all.f_narrow(3, 0, width)?, all.f_narrow(3, width, width)?])
    }
}
