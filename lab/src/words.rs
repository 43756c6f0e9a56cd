//! Two books as bags of words: real features of which most are zero most of the time.
use downhill::nn::dropout::{normal, uniform};
use downhill::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use tch::Tensor;

/// Paragraphs, each with the words that are in it and the book that it is from.
#[derive(Debug)]
pub struct Words {
    /// Which words are in a paragraph, 0 or 1, paragraph after paragraph. Numbers and
    /// not a tensor, so that threads can share them.
    x: Vec<f32>,
    /// 1 if a paragraph is from the second book.
    y: Vec<f32>,
    width: usize,
    /// The words, the most frequent first.
    pub names: Vec<String>,
    /// Rows to learn from; the others, a fifth, are held out.
    pub learn: usize,
}

impl Words {
    /// The two books, text with an empty line between paragraphs. Words that are in
    /// fewer than `least` paragraphs are left out, and paragraphs of fewer than ten.
    ///
    /// # Errors
    /// What the operating system says of the files; two books with no word in common.
    pub fn of(books: [&str; 2], least: usize) -> Result<Self> {
        let mut rows: Vec<(BTreeSet<String>, f32)> = vec![];
        for (book, label) in books.iter().zip([0., 1.]) {
            let text = super::text::read(book)?;
            let found = text.split("\n\n").map(words);
            rows.extend(found.filter(|w| w.len() >= 10).map(|w| (w, label)));
        }
        // An order of its own for the rows, the same in every run.
        let keys = uniform(rows.len(), 1., 0, 0);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
        let mut count: HashMap<&str, usize> = HashMap::new();
        for word in rows.iter().flat_map(|(words, _)| words) {
            *count.entry(word).or_default() += 1;
        }
        let mut names: Vec<(&str, usize)> =
            count.into_iter().filter(|(_, n)| *n >= least).collect();
        names.sort_by_key(|(word, n)| (std::cmp::Reverse(*n), *word));
        if names.is_empty() {
            let what = format!("no word is in {least} paragraphs");
            return Err(Error::file(books[0], what));
        }
        let place: HashMap<&str, usize> =
            names.iter().enumerate().map(|(i, (word, _))| (*word, i)).collect();
        let (height, width) = (rows.len(), names.len());
        let mut x = vec![0f32; height * width];
        let mut y = vec![];
        for (r, &i) in order.iter().enumerate() {
            let (words, label) = &rows[i];
            for word in words.iter().filter_map(|w| place.get(w.as_str())) {
                x[r * width + word] = 1.;
            }
            y.push(*label);
        }
        Ok(Self {
            x,
            y,
            width,
            names: names.iter().map(|(word, _)| word.to_string()).collect(),
            learn: height * 4 / 5,
        })
    }

    /// The same paragraphs with `width` features, each a random mixture of all words:
    /// none of them is ever zero.
    pub fn mixed(&self, width: usize, seed: u64) -> Self {
        let mix = normal(self.width * width, seed, 0);
        let mix = Tensor::from_slice(&mix).view([self.width as i64, width as i64]);
        let x = self.rows(0..self.y.len()).0.matmul(&mix) / (width as f64).sqrt();
        let mut flat = vec![0f32; x.numel()];
        x.copy_data(&mut flat, x.numel());
        let y = self.y.clone();
        Self { x: flat, y, width, names: vec![], learn: self.learn }
    }

    /// Number of features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of paragraphs.
    pub fn len(&self) -> usize {
        self.y.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.y.is_empty()
    }

    /// In what share of the paragraphs each word is.
    pub fn share(&self) -> Vec<f64> {
        let count = |w: usize| {
            self.x.iter().skip(w).step_by(self.width).filter(|x| **x != 0.).count()
        };
        (0..self.width).map(|w| count(w) as f64 / self.len() as f64).collect()
    }

    /// Features `[rows, V]` and labels `[rows]` of some paragraphs to learn from, which
    /// depend on seed and step alone.
    pub fn batch(&self, rows: usize, seed: u64, step: i64) -> (Tensor, Tensor) {
        let (mut x, mut y): (Vec<f32>, Vec<f32>) = (vec![], vec![]);
        for u in uniform(rows, 0.5, seed, step as u32) {
            let at = ((u + 0.5) * self.learn as f32) as usize;
            let at = at.min(self.learn.saturating_sub(1));
            x.extend(&self.x[at * self.width..(at + 1) * self.width]);
            y.push(self.y[at]);
        }
        (
            Tensor::from_slice(&x).view([-1, self.width as i64]),
            Tensor::from_slice(&y),
        )
    }

    /// All paragraphs to learn from.
    pub fn learned(&self) -> (Tensor, Tensor) {
        self.rows(0..self.learn)
    }

    /// The paragraphs that are held out.
    pub fn held_out(&self) -> (Tensor, Tensor) {
        self.rows(self.learn..self.len())
    }

    fn rows(&self, rows: Range<usize>) -> (Tensor, Tensor) {
        let x = &self.x[rows.start * self.width..rows.end * self.width];
        let x = Tensor::from_slice(x).view([-1, self.width as i64]);
        (x, Tensor::from_slice(&self.y[rows]))
    }
}

/// The distinct words of a paragraph, in small letters.
fn words(paragraph: &str) -> BTreeSet<String> {
    let split = |c: char| !c.is_alphabetic();
    let words = paragraph.split(split).filter(|w| w.len() > 1);
    words.map(str::to_lowercase).collect()
}
