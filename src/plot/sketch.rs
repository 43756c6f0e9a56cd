//! Drawings that are no charts: boxes, arrows, cells and words, placed in pixels.
use super::{COLOURS, Figure, escaped};
use plotters::style::RGBColor;

/// A drawing in the making. Places are (x, y) from the upper left corner; colours are
/// those of the charts, by their number, and pale grey beyond.
#[derive(Clone, Debug)]
pub struct Sketch {
    size: (u32, u32),
    body: String,
}

/// Where a text stands in relation to its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Align {
    /// It begins there.
    Left,
    /// It is centred there.
    Middle,
    /// It ends there.
    Right,
}

impl Sketch {
    /// An empty drawing of so many pixels.
    pub fn new(width: u32, height: u32) -> Self {
        Self { size: (width, height), body: String::new() }
    }

    /// A text of `size` pixels around or beside a place, its middle at that height.
    pub fn text(
        mut self,
        (x, y): (f64, f64),
        size: u32,
        align: Align,
        text: &str,
    ) -> Self {
        let anchor = match align {
            Align::Left => "start",
            Align::Middle => "middle",
            Align::Right => "end",
        };
        let y = y + 0.35 * f64::from(size);
        self.body += &format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" \
             text-anchor=\"{anchor}\">{}</text>\n",
            escaped(text)
        );
        self
    }

    /// A box [x, y, width, height] with its name in the middle.
    pub fn block(
        mut self,
        [x, y, w, h]: [f64; 4],
        colour: usize,
        name: &str,
    ) -> Self {
        let ink = hex(colour);
        self.body += &format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" \
             rx=\"6\" fill=\"{ink}\" fill-opacity=\"0.12\" stroke=\"{ink}\" \
             stroke-width=\"2\"/>\n"
        );
        self.text((x + w / 2., y + h / 2.), 15, Align::Middle, name)
    }

    /// A square [x, y, side] filled to a share from 0 to 1, with a text in it.
    pub fn cell(
        mut self,
        [x, y, side]: [f64; 3],
        colour: usize,
        share: f64,
        text: &str,
    ) -> Self {
        let (ink, share) = (hex(colour), share.clamp(0., 1.));
        self.body += &format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" \
             height=\"{side:.1}\" fill=\"{ink}\" fill-opacity=\"{share:.3}\" \
             stroke=\"#DDDDDD\" stroke-width=\"0.5\"/>\n"
        );
        if text.is_empty() {
            return self;
        }
        let begin = self.body.len();
        let middle = (x + side / 2., y + side / 2.);
        self = self.text(middle, 13, Align::Middle, text);
        if share > 0.6 {
            let white =
                self.body[begin..].replace("<text", "<text fill=\"#FFFFFF\"");
            self.body.replace_range(begin.., &white);
        }
        self
    }

    /// A line through these places, with a head at its end if it is an `arrow`.
    pub fn line(
        mut self,
        places: &[(f64, f64)],
        colour: usize,
        arrow: bool,
    ) -> Self {
        let ink = hex(colour);
        let at: Vec<_> =
            places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.body += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{ink}\" \
             stroke-width=\"2\"/>\n",
            at.join(" ")
        );
        if let (true, [.., (x0, y0), (x, y)]) = (arrow, places) {
            let length = (x - x0).hypot(y - y0).max(f64::MIN_POSITIVE);
            let (dx, dy) = (8. * (x - x0) / length, 8. * (y - y0) / length);
            let corner =
                |side: f64| (x - dx - side * dy / 2., y - dy + side * dx / 2.);
            let ((ax, ay), (bx, by)) = (corner(1.), corner(-1.));
            self.body += &format!(
                "<polygon points=\"{x:.1},{y:.1} {ax:.1},{ay:.1} {bx:.1},{by:.1}\" \
                 fill=\"{ink}\"/>\n"
            );
        }
        self
    }

    /// The drawing on white.
    pub fn draw(&self) -> Figure {
        let ((w, h), body) = (self.size, &self.body);
        let svg = format!(
            "<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" \
             fill=\"#000000\">\n<rect width=\"{w}\" height=\"{h}\" \
             fill=\"#FFFFFF\"/>\n{body}</svg>\n"
        );
        Figure { svg }
    }
}

/// A chart's colour; beyond the last one, the pale grey of references.
fn hex(colour: usize) -> String {
    let c = COLOURS.get(colour).copied().unwrap_or(RGBColor(190, 190, 190));
    format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2)
}
