//! FT-Transformer: each cell of a table's row becomes a token, and a Transformer looks
//! at all of them at once.
//!
//! Shapes: B rows, F features, T = 1 + F tokens, D width, H heads.
use super::weights::{Weights, fnv1a};
use crate::nn::dropout::{dropout, uniform};
use crate::nn::{LayerNorm, Linear, Mode, Weight};
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// What an [`FtTransformer`] is made of, in the names of the reference package.
#[derive(Clone, Debug, PartialEq)]
pub struct FtConfig {
    /// Number of numeric features.
    pub n_cont_features: i64,
    /// For each categorical feature, the number of its values.
    pub cat_cardinalities: Vec<i64>,
    /// Numbers per row that come out.
    pub d_out: i64,
    /// Number of blocks.
    pub n_blocks: usize,
    /// D.
    pub d_block: i64,
    /// H.
    pub attention_n_heads: i64,
    /// Probability of dropping an attention probability in training.
    pub attention_dropout: f64,
    /// Width of the feed-forward part, as a multiple of D, rounded down.
    pub ffn_d_hidden_multiplier: f64,
    /// Probability of dropping an element of its hidden layer.
    pub ffn_dropout: f64,
    /// Probability of dropping an element of what a part adds to the stream.
    pub residual_dropout: f64,
}

impl FtConfig {
    /// The reference's defaults for 1 to 6 blocks; other numbers get the nearest.
    pub fn of_blocks(
        n_blocks: usize,
        n_cont_features: i64,
        cat_cardinalities: &[i64],
        d_out: i64,
    ) -> Self {
        let i = n_blocks.clamp(1, 6) - 1;
        Self {
            n_cont_features,
            cat_cardinalities: cat_cardinalities.to_vec(),
            d_out,
            n_blocks,
            d_block: [96, 128, 192, 256, 320, 384][i],
            attention_n_heads: 8,
            attention_dropout: [0.1, 0.15, 0.2, 0.25, 0.3, 0.35][i],
            ffn_d_hidden_multiplier: 4. / 3.,
            ffn_dropout: [0., 0.05, 0.1, 0.15, 0.2, 0.25][i],
            residual_dropout: 0.,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |name: &str, what: String| Err(Error::setting(name, what));
        if self.n_cont_features < 0
            || self.n_cont_features == 0 && self.cat_cardinalities.is_empty()
        {
            return wrong("n_cont_features", "there is no feature at all".into());
        }
        if let Some(n) = self.cat_cardinalities.iter().find(|n| **n < 1) {
            return wrong("cat_cardinalities", format!("{n} is not positive"));
        }
        let (d, h) = (self.d_block, self.attention_n_heads);
        if d < 1 || h < 1 || d % h != 0 {
            return wrong("d_block", format!("{d} is no multiple of the {h} heads"));
        }
        if self.d_out < 1 || self.hidden() < 1 {
            return wrong("d_out", "an output or hidden layer of no width".into());
        }
        let rates =
            [self.attention_dropout, self.ffn_dropout, self.residual_dropout];
        match rates.iter().find(|p| !(0. ..1.).contains(*p)) {
            Some(p) => wrong("dropout", format!("{p} is not in [0, 1)")),
            None => Ok(()),
        }
    }

    fn hidden(&self) -> i64 {
        (self.d_block as f64 * self.ffn_d_hidden_multiplier) as i64
    }
}

/// Source: Gorishniy, Rubachev, Khrulkov & Babenko 2021, arXiv 2106.11959, §3.3, as in
/// the authors' package `rtdl_revisiting_models` 0.0.2, whose tensor names it has.
/// Departures: no Linformer compression; dropout masks are functions of the step.
#[derive(Debug)]
pub struct FtTransformer {
    config: FtConfig,
    cls: Tensor,                               // (D)
    numbers: Option<(Tensor, Tensor)>,         // weight and bias, (F, D) each
    categories: Option<(Vec<Tensor>, Tensor)>, // tables (values, D), bias (F, D)
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Debug)]
struct Block {
    /// None in the first block: the paper found that crucial.
    attention_norm: Option<LayerNorm>,
    q: Linear,
    k: Linear,
    v: Linear,
    /// None with one head.
    out: Option<Linear>,
    ffn_norm: LayerNorm,
    ffn1: Linear,
    ffn2: Linear,
}

fn norm(w: &mut dyn Weights, name: &str, d: i64) -> Result<LayerNorm> {
    let weight = w.tensor(&format!("{name}.weight"), &[d])?;
    let bias = w.tensor(&format!("{name}.bias"), &[d])?;
    Ok(LayerNorm { weight, bias, eps: 1e-5 })
}

impl Block {
    fn new(w: &mut dyn Weights, i: usize, c: &FtConfig) -> Result<Self> {
        let (at, d) = (format!("backbone.blocks.{i}"), c.d_block);
        let first = i == 0;
        let attention_norm = (!first)
            .then(|| norm(w, &format!("{at}.attention_normalization"), d))
            .transpose()?;
        let mut linear = |part: &str, shape: [i64; 2]| {
            w.linear(&format!("{at}.{part}"), shape, true)
        };
        let q = linear("attention.W_q", [d, d])?;
        let k = linear("attention.W_k", [d, d])?;
        let v = linear("attention.W_v", [d, d])?;
        let many = c.attention_n_heads > 1;
        let out = many.then(|| linear("attention.W_out", [d, d])).transpose()?;
        let ffn1 = linear("ffn.linear1", [2 * c.hidden(), d])?;
        let ffn2 = linear("ffn.linear2", [d, c.hidden()])?;
        let ffn_norm = norm(w, &format!("{at}.ffn_normalization"), d)?;
        Ok(Self { attention_norm, q, k, v, out, ffn_norm, ffn1, ffn2 })
    }

    /// [B, T, D] to [B, T, D], or to [B, 1, D] in the last block, of which only the
    /// first token is wanted.
    fn forward(
        &self,
        x: &Tensor,
        c: &FtConfig,
        (place, last): (u32, bool),
        mode: Mode,
    ) -> Result<Tensor> {
        let drop = |y: Tensor, p: f64, which| match p > 0. {
            true => dropout(&y, p, mode, place + which),
            false => y,
        };
        let normed = match &self.attention_norm {
            Some(norm) => norm.forward(x)?,
            None => x.shallow_clone(),
        };
        let asking =
            |t: &Tensor| if last { t.narrow(1, 0, 1) } else { t.shallow_clone() };
        let heads =
            |y: Tensor| y.unflatten(-1, [c.attention_n_heads, -1]).transpose(1, 2);
        let q = heads(self.q.forward(&asking(&normed), mode)?); // (B, H, T or 1, K)
        let k = heads(self.k.forward(&normed, mode)?);
        let v = heads(self.v.forward(&normed, mode)?);
        let scale = (c.d_block as f64 / c.attention_n_heads as f64).sqrt();
        let p = (q.f_matmul(&k.transpose(2, 3))? / scale).softmax(-1, None);
        let p = drop(p, c.attention_dropout, 0);
        let y = p.f_matmul(&v)?.transpose(1, 2).flatten(2, 3);
        let y = match &self.out {
            Some(out) => out.forward(&y, mode)?,
            None => y,
        };
        let x = asking(x) + drop(y, c.residual_dropout, 1);
        let y = self.ffn1.forward(&self.ffn_norm.forward(&x)?, mode)?;
        let halves = y.chunk(2, -1);
        let y = &halves[0] * halves[1].relu(); // ReGLU
        let y = self.ffn2.forward(&drop(y, c.ffn_dropout, 2), mode)?;
        Ok(&x + drop(y, c.residual_dropout, 3))
    }

    fn named(&self, at: &str) -> Vec<(String, Tensor)> {
        let mut all = vec![];
        let linears = [
            ("attention.W_q", Some(&self.q)),
            ("attention.W_k", Some(&self.k)),
            ("attention.W_v", Some(&self.v)),
            ("attention.W_out", self.out.as_ref()),
            ("ffn.linear1", Some(&self.ffn1)),
            ("ffn.linear2", Some(&self.ffn2)),
        ];
        for (part, l) in linears {
            all.extend(
                l.into_iter().flat_map(|l| named(l, &format!("{at}.{part}"))),
            );
        }
        let norms = [
            ("attention_normalization", self.attention_norm.as_ref()),
            ("ffn_normalization", Some(&self.ffn_norm)),
        ];
        for (part, n) in norms {
            all.extend(
                n.into_iter().flat_map(|n| named_norm(n, &format!("{at}.{part}"))),
            );
        }
        all
    }
}

fn named(l: &Linear, at: &str) -> Vec<(String, Tensor)> {
    let weight = match &l.weight {
        Weight::Dense(w) => Some((format!("{at}.weight"), w.shallow_clone())),
        Weight::Nf4(_) => None,
    };
    let bias = l.bias.as_ref().map(|b| (format!("{at}.bias"), b.shallow_clone()));
    weight.into_iter().chain(bias).collect()
}

fn named_norm(n: &LayerNorm, at: &str) -> [(String, Tensor); 2] {
    [("weight", &n.weight), ("bias", &n.bias)]
        .map(|(part, t)| (format!("{at}.{part}"), t.shallow_clone()))
}

impl FtTransformer {
    /// Builds the model from named tensors.
    ///
    /// # Errors
    /// A setting that cannot be; what `w` refuses.
    pub fn new(config: FtConfig, w: &mut dyn Weights) -> Result<Self> {
        config.check()?;
        let (c, d) = (&config, config.d_block);
        let cls = w.tensor("cls_embedding.weight", &[d])?;
        let f = c.n_cont_features;
        let mut pair = || -> Result<(Tensor, Tensor)> {
            let weight = w.tensor("cont_embeddings.weight", &[f, d])?;
            Ok((weight, w.tensor("cont_embeddings.bias", &[f, d])?))
        };
        let numbers = (f > 0).then(&mut pair).transpose()?;
        let mut tables = || -> Result<(Vec<Tensor>, Tensor)> {
            let table = |(i, n): (usize, &i64)| {
                let name = format!("cat_embeddings.embeddings.{i}.weight");
                w.tensor(&name, &[*n, d])
            };
            let each = c.cat_cardinalities.iter().enumerate().map(table);
            let each = each.collect::<Result<Vec<_>>>()?;
            let shape = [each.len() as i64, d];
            Ok((each, w.tensor("cat_embeddings.bias", &shape)?))
        };
        let some = !c.cat_cardinalities.is_empty();
        let categories = some.then(&mut tables).transpose()?;
        let blocks = (0..c.n_blocks)
            .map(|i| Block::new(w, i, c))
            .collect::<Result<Vec<_>>>()?;
        let norm = norm(w, "backbone.output.normalization", d)?;
        let head = w.linear("backbone.output.linear", [c.d_out, d], true)?;
        Ok(Self { config, cls, numbers, categories, blocks, norm, head })
    }

    /// A random, trainable start, distributed as the reference's.
    ///
    /// # Errors
    /// As [`FtTransformer::new`].
    pub fn random(config: FtConfig, seed: u64) -> Result<Self> {
        Self::new(config, &mut Start { seed })
    }

    /// Numbers [B, F'] and categories [B, F''] to outputs [B, d_out]; a kind of feature
    /// that the model has none of is not looked at.
    ///
    /// # Errors
    /// What libtorch refuses: another number of features, a category out of range.
    // ANCHOR: forward
    pub fn forward(
        &self,
        numbers: &Tensor,
        categories: &Tensor,
        mode: Mode,
    ) -> Result<Tensor> {
        let rows = match &self.numbers {
            Some(_) => numbers.size()[0],
            None => categories.size()[0],
        };
        let mut tokens = vec![self.cls.f_expand([rows, 1, -1], false)?];
        if let Some((weight, bias)) = &self.numbers {
            let each = numbers.unsqueeze(-1); // (B, F, 1)
            tokens.push(each.f_mul(weight)?.f_add(bias)?);
        }
        if let Some((tables, bias)) = &self.categories {
            let each = tables.iter().zip(0..).map(|(table, i)| {
                let ids = categories.f_select(1, i)?;
                Ok(Tensor::f_embedding(table, &ids, -1, false, false)?)
            });
            let each = each.collect::<Result<Vec<_>>>()?;
            tokens.push(Tensor::f_stack(&each, 1)?.f_add(bias)?);
        }
        let mut x = Tensor::f_cat(&tokens, 1)?; // (B, T, D)
        for (i, block) in self.blocks.iter().enumerate() {
            let last = i + 1 == self.blocks.len();
            x = block.forward(&x, &self.config, (4 * i as u32, last), mode)?;
        }
        let y = self.norm.forward(&x.f_select(1, 0)?)?.relu();
        self.head.forward(&y, mode)
    }
    // ANCHOR_END: forward

    /// All tensors by their names in the reference.
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        let mut all =
            vec![("cls_embedding.weight".to_string(), self.cls.shallow_clone())];
        if let Some((weight, bias)) = &self.numbers {
            all.push(("cont_embeddings.weight".into(), weight.shallow_clone()));
            all.push(("cont_embeddings.bias".into(), bias.shallow_clone()));
        }
        if let Some((tables, bias)) = &self.categories {
            for (i, table) in tables.iter().enumerate() {
                let name = format!("cat_embeddings.embeddings.{i}.weight");
                all.push((name, table.shallow_clone()));
            }
            all.push(("cat_embeddings.bias".into(), bias.shallow_clone()));
        }
        for (i, block) in self.blocks.iter().enumerate() {
            all.extend(block.named(&format!("backbone.blocks.{i}")));
        }
        all.extend(named_norm(&self.norm, "backbone.output.normalization"));
        all.extend(named(&self.head, "backbone.output.linear"));
        all
    }

    /// Whether the reference decays the parameter of this name: not embeddings, not the
    /// norms of the blocks, not biases. (It does decay the last norm's weight.)
    pub fn decays(name: &str) -> bool {
        let embedding =
            ["cls_", "cont_", "cat_"].iter().any(|p| name.starts_with(p));
        !embedding && !name.contains("_normalization") && !name.ends_with(".bias")
    }
}

/// The reference's start: embeddings from U(±1/√D), linear layers from U(±1/√fan-in)
/// with their biases, but zero biases in attention; norms at one and zero.
struct Start {
    seed: u64,
}

impl Start {
    fn uniform(&self, name: &str, shape: &[i64], bound: f64) -> Tensor {
        let n = shape.iter().product::<i64>() as usize;
        let draws = uniform(n, bound, self.seed, fnv1a(name));
        Tensor::from_slice(&draws).view(shape).set_requires_grad(true)
    }
}

impl Weights for Start {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let like = (Kind::Float, Device::Cpu);
        Ok(match (name.contains("normalization"), name.ends_with(".bias")) {
            (true, false) => Tensor::ones(shape, like).set_requires_grad(true),
            (true, true) => Tensor::zeros(shape, like).set_requires_grad(true),
            _ => {
                let d = shape.last().copied().unwrap_or(1) as f64;
                self.uniform(name, shape, 1. / d.sqrt())
            }
        })
    }

    fn linear(&mut self, name: &str, shape: [i64; 2], _: bool) -> Result<Linear> {
        let bound = 1. / (shape[1] as f64).sqrt();
        let weight = self.uniform(&format!("{name}.weight"), &shape, bound);
        let bound = if name.contains(".W_") { 0. } else { bound };
        let bias = self.uniform(&format!("{name}.bias"), &shape[..1], bound);
        Ok(Linear::dense(weight, Some(bias)))
    }
}
