//! A mixture of experts: a router sends each token to a few of many feed-forward
//! layers.
use super::grouped::{Grouped, Groups};
use super::{Linear, Mode, SwiGlu};
use crate::{Result, autograd};
use tch::{Device, Kind, Tensor, no_grad};

/// The feed-forward part of one layer.
#[derive(Debug)]
pub enum FeedForward {
    /// One for all tokens.
    Dense(SwiGlu),
    /// Experts.
    Moe(Moe),
}

/// `Σ w_e(x) · expert_e(x) + shared(x)` over the few experts e chosen for the token x.
///
/// Source: Dai et al. 2024, arXiv 2401.06066 (DeepSeekMoE).
#[derive(Debug)]
pub struct Moe {
    /// Chooses.
    pub router: Router,
    /// The E to choose from.
    pub experts: Vec<SwiGlu>,
    /// What sees every token.
    pub shared: Option<SwiGlu>,
}

/// Which experts a token goes to, and with what weights.
#[derive(Debug)]
pub struct Router {
    /// [E, D].
    pub weight: Tensor,
    /// [E], f32: moves the choice, not the weights, so that all experts stay in use
    /// (DeepSeek-V3).
    pub bias: Option<Tensor>,
    /// See [`Routing`].
    pub routing: Routing,
}

/// How a [`Router`] chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub chosen: i64,
    /// The experts stand in so many groups of neighbours,
    pub groups: i64,
    /// of which the best so many take part.
    pub kept_groups: i64,
    /// See [`Score`].
    pub score: Score,
    /// Divide the weights of the chosen by their sum.
    pub normalize: bool,
    /// Multiply them by it.
    pub scale: f64,
}

/// What a router makes of its products, and how it judges a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// Over all experts; a group by its best one (DeepSeek-V2).
    Softmax,
    /// Each for itself; a group by the sum of its best two (DeepSeek-V3).
    Sigmoid,
}

impl Router {
    // ANCHOR: route
    /// The weights [N, k] and the numbers [N, k] of the experts chosen for `x` [N, D].
    /// In f32 whatever the kind of `x`, as a near tie must not be lost.
    pub fn route(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let r = &self.routing;
        let float = |t: &Tensor| t.to_kind(Kind::Float);
        let logits = float(x).f_linear(&float(&self.weight), None::<Tensor>)?;
        let scores = match r.score {
            Score::Softmax => logits.softmax(-1, None),
            Score::Sigmoid => logits.sigmoid(),
        }; // (N, E)
        let chosen = no_grad(|| self.choose(&scores))?;
        let weights = scores.f_gather(1, &chosen, false)?;
        let weights = match r.normalize {
            true => {
                let sum = weights.sum_dim_intlist([-1].as_slice(), true, None);
                weights / (sum + 1e-20)
            }
            false => weights,
        };
        Ok((weights * r.scale, chosen))
    }
    // ANCHOR_END: route

    fn choose(&self, scores: &Tensor) -> Result<Tensor> {
        let r = &self.routing;
        let mut merit = scores.shallow_clone();
        if let Some(bias) = &self.bias {
            merit = merit.f_add(bias)?;
        }
        if r.kept_groups < r.groups {
            let groups = merit.f_unflatten(1, [r.groups, -1])?; // (N, groups, E/groups)
            let best = match r.score {
                Score::Softmax => 1,
                Score::Sigmoid => 2,
            };
            let (best, _) = groups.f_topk(best, -1, true, false)?;
            let best = best.sum_dim_intlist([-1].as_slice(), false, None);
            let (_, kept) = best.f_topk(r.kept_groups, 1, true, false)?;
            let out = best.ones_like().scatter_value(1, &kept, 0.);
            // 0, not −∞, as in transformers: an expert of another group comes before
            // one whose bias has made its merit negative.
            let out = out.to_kind(Kind::Bool).unsqueeze(-1);
            merit = groups.masked_fill(&out, 0.).flatten(1, 2);
        }
        Ok(merit.f_topk(r.chosen, 1, true, false)?.1)
    }
}

impl Moe {
    /// [N, D] to [N, D], all experts served by one sort.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        // ANCHOR: moe
        let (weights, ids) = self.router.route(x)?;
        let ids = ids.view([-1]); // (N·k)
        let (chosen, experts) = (self.router.routing.chosen, &self.experts);
        let outputs = match Grouped::of(experts, x, ids.numel() as i64, mode) {
            // On a card side by side. Each expert gets a row of zeros more, so that
            // none is without.
            Some(grouped) => {
                let all = experts.len() as i64;
                let sorted = Sorted::new(&ids, chosen, all)?;
                let groups = Groups::new(sorted.owner.shallow_clone(), all)?;
                let outputs = grouped.forward(&sorted.spread(x)?, &groups, mode)?;
                sorted.back(&outputs)?
            }
            None => {
                let sorted = Sorted::new(&ids, chosen, 0)?;
                sorted.back(&self.in_turn(&sorted.spread(x)?, &ids, mode)?)?
            }
        }; // (N, k, D)
        let sum = outputs.f_mul(&weights.unsqueeze(-1))?; // f32
        let sum = sum.sum_dim_intlist([1].as_slice(), false, None).to_kind(x.kind());
        match &self.shared {
            Some(shared) => Ok(sum + shared.forward(x, mode)?),
            None => Ok(sum),
        }
        // ANCHOR_END: moe
    }

    // ANCHOR: in_turn
    /// The rows `x` [N·k, D], sorted by the experts `ids`, through one expert after
    /// another. Those that no token goes to are not touched: in 4 bits they are not
    /// dequantized, and their adapters get no gradient. How many tokens each gets is
    /// all that the host asks a GPU for.
    fn in_turn(&self, x: &Tensor, ids: &Tensor, mode: Mode) -> Result<Tensor> {
        let counts = ids.f_bincount(None::<Tensor>, self.experts.len() as i64)?;
        let counts = Vec::<i64>::try_from(&counts.to_device(Device::Cpu))?;
        let inputs = x.f_split_with_sizes(counts, 0)?;
        let each = self.experts.iter().zip(&inputs);
        let busy = each.filter(|(_, x)| x.size()[0] > 0);
        let outputs = busy.map(|(expert, x)| expert.forward(x, mode));
        Ok(Tensor::f_cat(&outputs.collect::<Result<Vec<_>>>()?, 0)?)
    }
    // ANCHOR_END: in_turn

    fn shallow_clone(&self) -> Self {
        let router = Router {
            weight: self.router.weight.shallow_clone(),
            bias: self.router.bias.as_ref().map(Tensor::shallow_clone),
            routing: self.router.routing,
        };
        Self {
            router,
            experts: self.experts.iter().map(SwiGlu::shallow_clone).collect(),
            shared: self.shared.as_ref().map(SwiGlu::shallow_clone),
        }
    }
}

/// The k copies of every token in the order of their experts, and the way back. Each
/// is the other's backward: libtorch's own, `index_add`, would add in the order of
/// chance on a GPU, and a recomputed layer could route otherwise.
struct Sorted {
    /// k.
    chosen: i64,
    /// Rows of zeros, one for each expert, the last of its rows; or none: S.
    spare: i64,
    /// Of which expert a row is: [N·k + S].
    owner: Tensor,
    /// Which copy, or spare row, stands where: [N·k + S].
    order: Tensor,
    /// Where a copy stands: [N·k].
    place: Tensor,
}

impl Sorted {
    /// By the experts `ids` of the copies, [N·k].
    fn new(ids: &Tensor, chosen: i64, spare: i64) -> Result<Self> {
        let rows = match spare {
            0 => ids.shallow_clone(),
            n => {
                let each = Tensor::f_arange(n, (ids.kind(), ids.device()))?;
                Tensor::f_cat(&[ids, &each], 0)?
            }
        };
        let order = rows.f_argsort_stable(true, 0, false)?;
        let place = order.f_argsort_stable(true, 0, false)?;
        let place = place.f_narrow(0, 0, ids.size()[0])?;
        let owner = rows.f_index_select(0, &order)?;
        Ok(Self { chosen, spare, owner, order, place })
    }

    /// [N, D] to [N·k + S, D].
    fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let token = self.order.f_divide_scalar_mode(self.chosen, "floor")?;
        let (chosen, place) = (self.chosen, self.place.shallow_clone());
        let zeros = (self.spare + chosen - 1) / chosen;
        let forward = || Ok(vec![below(x, zeros)?.f_index_select(0, &token)?]);
        let mut copies = autograd::custom(&[x], forward, move |dy| {
            let add = |dy: &Tensor| -> Result<Tensor> {
                let dy =
                    dy.f_index_select(0, &place)?.f_unflatten(0, [-1, chosen])?;
                Ok(dy.f_sum_dim_intlist([1].as_slice(), false, None)?)
            };
            Ok(vec![dy[0].as_ref().map(add).transpose()?])
        })?;
        Ok(copies.remove(0))
    }

    /// [N·k + S, D] to [N, k, D].
    fn back(&self, copies: &Tensor) -> Result<Tensor> {
        let (order, spare) = (self.order.shallow_clone(), self.spare);
        let forward = || Ok(vec![copies.f_index_select(0, &self.place)?]);
        let mut y = autograd::custom(&[copies], forward, move |dy| {
            let sort = |dy: &Tensor| -> Result<Tensor> {
                Ok(below(dy, spare)?.f_index_select(0, &order)?)
            };
            Ok(vec![dy[0].as_ref().map(sort).transpose()?])
        })?;
        Ok(y.remove(0).f_unflatten(0, [-1, self.chosen])?)
    }
}

/// `x`, and so many rows of zeros below it.
fn below(x: &Tensor, zeros: i64) -> Result<Tensor> {
    match zeros {
        0 => Ok(x.shallow_clone()),
        n => Ok(x.f_constant_pad_nd([0, 0, 0, n])?),
    }
}

impl FeedForward {
    /// [N, D] to [N, D].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, mode),
            Self::Moe(moe) => moe.forward(x, mode),
        }
    }

    /// The router, if there are experts.
    pub fn router(&self) -> Option<&Router> {
        match self {
            Self::Dense(_) => None,
            Self::Moe(moe) => Some(&moe.router),
        }
    }

    /// Its linear layers, by their names below `mlp`. The router is none of them: it
    /// stays as it is, and gets no adapter.
    pub fn linears(&self) -> Vec<(String, &Linear)> {
        let (experts, rest) = match self {
            Self::Dense(mlp) => (&[][..], Some((String::new(), mlp))),
            Self::Moe(m) => (&m.experts[..], m.shared.as_ref().map(shared)),
        };
        let all = (0..).map(expert).zip(experts).chain(rest);
        all.flat_map(|(at, mlp)| named(at, mlp.linears())).collect()
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let (experts, rest) = match self {
            Self::Dense(mlp) => (&mut [][..], Some((String::new(), mlp))),
            Self::Moe(m) => (&mut m.experts[..], m.shared.as_mut().map(shared)),
        };
        let all = (0..).map(expert).zip(experts).chain(rest);
        all.flat_map(|(at, mlp)| named(at, mlp.linears_mut())).collect()
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::Dense(mlp) => Self::Dense(mlp.shallow_clone()),
            Self::Moe(moe) => Self::Moe(moe.shallow_clone()),
        }
    }
}

fn expert(i: usize) -> String {
    format!("experts.{i}.")
}

fn shared<T>(mlp: T) -> (String, T) {
    ("shared_experts.".into(), mlp)
}

fn named<T>(at: String, parts: [(&str, T); 3]) -> [(String, T); 3] {
    parts.map(|(part, linear)| (format!("{at}{part}"), linear))
}
