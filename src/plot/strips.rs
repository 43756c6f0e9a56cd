//! Rows of a batch as strips: what is computed, and what of it is padding.
use super::{COLOURS, Figure, escaped};

/// Groups of strips below each other, each strip made of pieces end to end. What a strip
/// lacks to its width is drawn hollow.
#[derive(Clone, Debug)]
pub struct Strips {
    title: String,
    groups: Vec<(String, Vec<Strip>)>,
}

/// The lengths of a strip's pieces, and its width.
type Strip = (Vec<usize>, usize);

const LEFT: f64 = 20.;
const WIDTH: f64 = 660.;
const HEIGHT: f64 = 13.;
const STEP: f64 = 17.;

impl Strips {
    /// An empty drawing.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), groups: vec![] }
    }

    /// Adds strips under a heading, each by the lengths of its pieces and its width.
    pub fn group(mut self, heading: &str, strips: &[(Vec<usize>, usize)]) -> Self {
        self.groups.push((heading.into(), strips.to_vec()));
        self
    }

    /// Draws it, all groups to one scale.
    pub fn draw(&self) -> Figure {
        let all = self.groups.iter().flat_map(|(_, strips)| strips);
        let widest = all.map(|(_, width)| *width).max().unwrap_or(0);
        let scale = WIDTH / widest.max(1) as f64;
        let (mut body, mut y) = (String::new(), 66.);
        for (heading, strips) in &self.groups {
            body += &format!(
                "<text x=\"{LEFT}\" y=\"{y:.0}\" font-size=\"14\">{}</text>\n",
                escaped(heading)
            );
            y += 10.;
            for (pieces, width) in strips {
                let mut x = LEFT;
                for (i, piece) in pieces.iter().enumerate() {
                    let width = *piece as f64 * scale;
                    let c = COLOURS[i % COLOURS.len()];
                    let fill = format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
                    body += &piece_of(x, y, width, &fill, &fill);
                    x += width;
                }
                let rest = LEFT + *width as f64 * scale - x;
                if rest > 1e-6 {
                    body += &piece_of(x, y, rest, "#FFFFFF", "#999999");
                }
                y += STEP;
            }
            y += 26.;
        }
        let height = y - 16.;
        let svg = format!(
            "<svg width=\"700\" height=\"{height:.0}\" viewBox=\"0 0 700 {height:.0}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" \
             fill=\"#000000\">\n<rect width=\"700\" height=\"{height:.0}\" \
             fill=\"#FFFFFF\"/>\n<text x=\"350\" y=\"30\" text-anchor=\"middle\" \
             font-size=\"20\">{}</text>\n{body}</svg>\n",
            escaped(&self.title)
        );
        Figure { svg }
    }
}

/// A rectangle, a little shorter than what it stands for, so that neighbours part.
fn piece_of(x: f64, y: f64, width: f64, fill: &str, line: &str) -> String {
    let width = (width - 2.).max(0.5);
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" \
         fill=\"{fill}\" stroke=\"{line}\" stroke-width=\"0.8\"/>\n"
    )
}
