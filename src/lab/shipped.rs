//! The checkpoint that ships, and the pages that it has not read.
use super::text::{find, read};
use crate::Result;
use crate::data::Tokenizer;
use crate::models::Decoder;
use crate::nn::Mode;
use tch::{Kind, Tensor, no_grad};

/// Tokens of a page.
const PAGE: usize = 128;
/// Pages at the end of each book; twice as many were kept from the model.
const PAGES: usize = 8;
const BOOKS: [&str; 3] =
    ["pride_and_prejudice", "persuasion", "alice_in_wonderland"];

/// The tiny checkpoint, unquantized in f32, with the pages of its books that were kept
/// from it in training.
#[derive(Debug)]
pub struct Shipped {
    /// The model.
    pub model: Decoder,
    /// [pages, 1 + 128], each after a BOS.
    pages: Tensor,
    /// The probabilities that it gives as it was loaded, [tokens, V].
    first: Tensor,
    /// Their entropy, nats per token.
    entropy: f64,
}

impl Shipped {
    /// From `examples/data`, looked for in the working folder and those above it.
    ///
    /// # Errors
    /// It is in none of them; what is wrong with it.
    pub fn load() -> Result<Self> {
        let dir = find("examples/data/tiny/config.json")?;
        let dir = dir.parent().unwrap_or(&dir);
        let model = super::rows::tiny()?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let mut pages: Vec<i64> = vec![];
        for book in BOOKS {
            // As `examples/make_tiny` joins and divides it.
            let join = |p: &str| p.split_whitespace().collect::<Vec<_>>().join(" ");
            let text: Vec<String> = read(book)?.split("\n\n").map(join).collect();
            let ids = tokenizer.encode(&text.join("\n"), false)?;
            for page in ids[ids.len() - PAGES * PAGE..].chunks(PAGE) {
                pages.extend(tokenizer.bos_id());
                pages.extend(page);
            }
        }
        let pages = Tensor::from_slice(&pages).view([-1, 1 + PAGE as i64]);
        let mut shipped = Self { model, pages, first: Tensor::new(), entropy: 0. };
        let says = shipped.says()?;
        shipped.first = says.exp();
        shipped.entropy = shipped.cross(&says);
        Ok(shipped)
    }

    // ANCHOR: after
    /// The loss of each token of a page but the first, by its place, where pages begin
    /// with `start` instead of the BOS: means over the pages.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn losses_after(&self, start: &[i64]) -> Result<Vec<f64>> {
        let text = self.pages.narrow(1, 1, PAGE as i64);
        let (n, s) = (text.size()[0], start.len() as i64);
        let start = Tensor::from_slice(start).repeat([n, 1]);
        let x = Tensor::cat(&[&start, &text.narrow(1, 0, PAGE as i64 - 1)], 1);
        no_grad(|| {
            let hidden = self.model.hidden(&x, Mode::Eval, None)?;
            let hidden = hidden.narrow(1, s, PAGE as i64 - 1);
            let says = self.model.logits(&hidden)?.log_softmax(-1, Kind::Double);
            let next = text.narrow(1, 1, PAGE as i64 - 1).unsqueeze(-1);
            let loss = -says.gather(-1, &next, false).squeeze_dim(-1);
            let mean = loss.mean_dim([0i64].as_slice(), false, Kind::Double);
            Ok(Vec::try_from(mean)?)
        })
    }
    // ANCHOR_END: after

    /// Logarithms of the probability of each token after each token, [tokens, V].
    fn says(&self) -> Result<Tensor> {
        no_grad(|| {
            let x = self.pages.narrow(1, 0, PAGE as i64);
            let hidden = self.model.hidden(&x, Mode::Eval, None)?;
            let logits = self.model.logits(&hidden)?.flatten(0, 1);
            Ok(logits.log_softmax(-1, Kind::Float))
        })
    }

    // ANCHOR: judge
    /// Of the model as it is now, per token and in nats: the loss on the unread pages,
    /// and how far its predictions are from those it had when it was loaded (the
    /// Kullback-Leibler divergence).
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn judge(&self) -> Result<[f64; 2]> {
        let now = self.says()?;
        let next = self.pages.narrow(1, 1, PAGE as i64).reshape([-1, 1]);
        let loss = -now.gather(1, &next, false).mean(Kind::Double);
        Ok([loss.double_value(&[]), self.cross(&now) - self.entropy])
    }
    // ANCHOR_END: judge

    /// Cross-entropy of the first predictions and these.
    fn cross(&self, says: &Tensor) -> f64 {
        let rows =
            (&self.first * says).sum_dim_intlist([1].as_slice(), false, Kind::Float);
        -rows.mean(Kind::Double).double_value(&[])
    }

    /// Linear layers of the blocks with their names and their weights.
    pub fn weights(&mut self) -> Vec<(String, Tensor)> {
        use crate::nn::Weight;
        let linears = self.model.linears_mut().into_iter();
        let named = linears.filter_map(|(name, l)| match &l.weight {
            Weight::Dense(w) => Some((name, w.shallow_clone())),
            Weight::Nf4(_) => None,
        });
        named.collect()
    }
}
