//! Amounts side by side, each a bar with its name and number.
use super::{COLOURS, Figure};

/// A bar chart in the making.
#[derive(Clone, Debug)]
pub struct Bars {
    title: String,
    bars: Vec<(String, f64, String)>,
}

const LEFT: f64 = 240.; // where the bars begin
const LONGEST: f64 = 320.;
const STEP: usize = 34;

impl Bars {
    /// An empty chart; say units in the title.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), bars: vec![] }
    }

    /// Adds a bar below the others, with `text` at its end.
    pub fn bar(mut self, name: &str, value: f64, text: &str) -> Self {
        self.bars.push((name.into(), value, text.into()));
        self
    }

    /// Draws it. What is not a positive number has no length.
    pub fn draw(&self) -> Figure {
        let length = |v: f64| if v.is_finite() { v.max(0.) } else { 0. };
        let most = self.bars.iter().map(|b| length(b.1)).fold(0., f64::max);
        let height = 60 + STEP * self.bars.len();
        let mut svg = format!(
            "<svg width=\"700\" height=\"{height}\" viewBox=\"0 0 700 {height}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" \
             font-size=\"14\" fill=\"#000000\">\n<rect width=\"700\" \
             height=\"{height}\" fill=\"#FFFFFF\"/>\n<text x=\"350\" y=\"28\" \
             text-anchor=\"middle\" font-size=\"20\">{}</text>\n",
            escaped(&self.title)
        );
        for (i, (name, value, text)) in self.bars.iter().enumerate() {
            let y = 46 + STEP * i;
            let width = length(*value) / most.max(f64::MIN_POSITIVE) * LONGEST;
            let colour = COLOURS[i % COLOURS.len()];
            let (middle, after) = (y + 17, LEFT + width + 8.);
            svg += &format!(
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"24\" \
                 fill=\"#{:02X}{:02X}{:02X}\"/>\
                 <text x=\"{after:.1}\" y=\"{middle}\">{}</text>\n",
                LEFT - 8.,
                escaped(name),
                colour.0,
                colour.1,
                colour.2,
                escaped(text)
            );
        }
        Figure { svg: svg + "</svg>\n" }
    }
}

/// Text that XML and HTML show as it is.
pub fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}
