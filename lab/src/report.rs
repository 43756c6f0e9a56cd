//! What a chapter's program hands to its page: numbers and figures.
use downhill::checkpoint::atomic;
use downhill::plot::Figure;
use downhill::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Collects the numbers of a chapter under dotted keys (`valley.adam.steps`) and
/// writes them, with the figures, to a folder; without a folder nothing is written.
#[derive(Debug)]
pub struct Report {
    slug: String,
    out: Option<PathBuf>,
    numbers: Map<String, Value>,
    tolerance: Map<String, Value>,
}

impl Report {
    /// An empty report of the chapter `slug`; makes the folder `out`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(slug: &str, out: Option<PathBuf>) -> Result<Self> {
        if let Some(dir) = &out {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        }
        let (numbers, tolerance) = (Map::new(), Map::new());
        Ok(Self { slug: slug.into(), out, numbers, tolerance })
    }

    /// A number; a fraction is kept to four significant digits. One that is not finite is kept as a
    /// word, since JSON has no such numbers.
    pub fn number(&mut self, key: &str, value: f64) {
        let rounded = || format!("{value:.3e}").parse().unwrap_or(value);
        let value = match value {
            x if !x.is_finite() => json!(x.to_string()),
            x if x.fract() == 0. && x.abs() < 1e15 => json!(x as i64),
            _ => json!(rounded()),
        };
        insert(&mut self.numbers, key, value);
    }

    /// Several numbers under one key.
    pub fn numbers<const N: usize>(&mut self, key: &str, all: [(&str, f64); N]) {
        all.into_iter()
            .for_each(|(name, x)| self.number(&format!("{key}.{name}"), x));
    }

    /// Median, low and high of some runs under one key.
    pub fn spread(&mut self, key: &str, s: super::Spread) {
        let all = [("median", s.median), ("low", s.low), ("high", s.high)];
        self.numbers(key, all);
    }

    /// How far a rerun may be off, relative, for this key and all below it; `None`
    /// for values that are not compared, such as seconds.
    pub fn tolerance(&mut self, key: &str, relative: Option<f64>) {
        self.tolerance.insert(key.into(), json!(relative));
    }

    /// Saves `<slug>.svg`, or `<slug>_<part>.svg` if the part has a name.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn figure(&self, part: &str, figure: &Figure) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        let joint = if part.is_empty() { "" } else { "_" };
        figure.save(out.join(format!("{}{joint}{part}.svg", self.slug)))
    }

    /// Saves `<slug>_<part>.txt`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn text(&self, part: &str, text: &str) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        let text = format!("{}\n", text.trim_end());
        let path = out.join(format!("{}_{part}.txt", self.slug));
        atomic::bytes(&path, text.as_bytes())
    }

    /// Saves `<slug>.json`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn finish(&self) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        let mut all = self.numbers.clone();
        all.insert("tolerance".into(), Value::Object(self.tolerance.clone()));
        let text = format!("{:#}\n", Value::Object(all));
        atomic::bytes(&out.join(format!("{}.json", self.slug)), text.as_bytes())
    }
}

/// Puts `value` at a dotted key, making the objects on the way.
fn insert(map: &mut Map<String, Value>, key: &str, value: Value) {
    let Some((head, rest)) = key.split_once('.') else {
        map.insert(key.into(), value);
        return;
    };
    let below = map.entry(head).or_insert_with(|| json!({}));
    if !below.is_object() {
        *below = json!({});
    }
    if let Some(below) = below.as_object_mut() {
        insert(below, rest, value);
    }
}
