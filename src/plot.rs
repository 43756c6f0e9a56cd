//! Charts as SVG, over plotters: one type that a program saves, the book shows, and a
//! notebook displays.
mod bars;
mod heat;
mod sketch;
mod strips;

pub use bars::{Bars, escaped};
pub use heat::Heat;
pub use sketch::{Align, Sketch};
pub use strips::Strips;

use crate::checkpoint::atomic;
use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::path::Path;

/// Okabe and Ito's colours, which colour-blind readers can tell apart.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

/// A finished drawing.
#[derive(Clone, Debug)]
pub struct Figure {
    svg: String,
}

impl Figure {
    /// The SVG text.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// Writes the drawing to a file, whose folder is made where it is missing.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        if let Some(folder) = path.as_ref().parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        atomic::bytes(path.as_ref(), self.svg.as_bytes())
    }

    /// Shows it as the result of an evcxr notebook cell.
    pub fn evcxr_display(&self) {
        println!("EVCXR_BEGIN_CONTENT image/svg+xml");
        println!("{}\nEVCXR_END_CONTENT", self.svg);
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    Line,
    Dashed,
    Points,
    Band,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    mark: Mark,
    colour: usize,
    points: Vec<(f64, f64)>,
}

/// A chart in the making: title, axes with units, series with a legend.
#[derive(Clone, Debug)]
pub struct Chart {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
    colour: usize,
    /// Names stand at the ends of lines.
    at_ends: bool,
}

#[derive(Clone, Debug)]
struct Axis {
    label: String,
    log: bool,
    range: Option<(f64, f64)>,
}

impl Axis {
    fn new(label: &str) -> Self {
        Self { label: label.into(), log: false, range: None }
    }

    /// The range given, or that of the finite values with a little room.
    fn span(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let usable = |v: &f64| v.is_finite() && (!self.log || *v > 0.);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(usable) {
            (low, high) = (low.min(v), high.max(v));
        }
        if let Some((a, b)) = self.range {
            (low, high) = (a, b);
        } else if low > high {
            (low, high) = (1., 10.); // nothing to show
        } else if self.log {
            (low, high) = (low / 1.2, high * 1.2);
        } else {
            let room = if high > low { (high - low) * 0.04 } else { 1. };
            (low, high) = (low - room, high + room);
        }
        (low, high)
    }

    /// What stands at a tick. A logarithmic axis has one at each digit, too close for
    /// as many numbers: those with a one, a two or a five in front get theirs, and in
    /// less than a decade also the three and the seven.
    fn tick(&self, v: f64, wide: bool) -> String {
        let digit = v / 10f64.powf((v.log10() + 1e-9).floor());
        let shown: &[f64] = if wide { &[1., 2., 5.] } else { &[1., 2., 3., 5., 7.] };
        match !self.log || shown.iter().any(|d| (digit - d).abs() < 1e-6) {
            true => number(v, self.log),
            false => String::new(),
        }
    }
}

impl Chart {
    /// An empty chart; say units in the labels.
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Self {
        let (x, y) = (Axis::new(x_label), Axis::new(y_label));
        Self { title: title.into(), x, y, series: vec![], colour: 0, at_ends: false }
    }

    /// A logarithmic x axis.
    pub fn log_x(mut self) -> Self {
        self.x.log = true;
        self
    }

    /// A logarithmic y axis.
    pub fn log_y(mut self) -> Self {
        self.y.log = true;
        self
    }

    /// Writes the name of each series at its last point instead of in a legend.
    pub fn at_ends(mut self) -> Self {
        self.at_ends = true;
        self
    }

    /// Shows x from `low` to `high`.
    pub fn x_range(mut self, low: f64, high: f64) -> Self {
        self.x.range = Some((low, high));
        self
    }

    /// Shows y from `low` to `high`.
    pub fn y_range(mut self, low: f64, high: f64) -> Self {
        self.y.range = Some((low, high));
        self
    }

    fn add(mut self, name: &str, mark: Mark, points: Vec<(f64, f64)>) -> Self {
        // A band goes with the line after it, nameless dots with the one before.
        let after = mark == Mark::Points && name.is_empty();
        let colour = self.colour.saturating_sub(after as usize);
        self.colour += (mark != Mark::Band && !after) as usize;
        let name = name.into();
        self.series.push(Series { name, mark, colour, points });
        self
    }

    /// A line; an empty name keeps it out of the legend.
    pub fn line(self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.add(name, Mark::Line, points)
    }

    /// A dashed line.
    pub fn dashed(self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.add(name, Mark::Dashed, points)
    }

    /// Dots; without a name, in the colour of the line before.
    pub fn points(self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.add(name, Mark::Points, points)
    }

    /// A shaded band from (x, low, high), in the colour of the next line.
    pub fn band(self, range: &[(f64, f64, f64)]) -> Self {
        let there = range.iter().map(|&(x, low, _)| (x, low));
        let back = range.iter().rev().map(|&(x, _, high)| (x, high));
        self.add("", Mark::Band, there.chain(back).collect())
    }

    /// A thin grey line without legend, for contours and references.
    pub fn faint(mut self, points: Vec<(f64, f64)>) -> Self {
        let (mark, colour) = (Mark::Line, COLOURS.len());
        self.series.push(Series { name: String::new(), mark, colour, points });
        self
    }

    /// Draws it alone.
    pub fn draw(&self) -> Result<Figure> {
        panels(std::slice::from_ref(self), 1)
    }

    fn draw_on(&self, area: &DrawingArea<SVGBackend, Shift>) -> Drawn {
        let xs = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
        let ys = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.1));
        let (x, y) = (self.x.span(xs), self.y.span(ys));
        let wide = (x.1 / x.0 > 10., y.1 / y.0 > 10.);
        let (x, y) = (x.0..x.1, y.0..y.1);
        match (self.x.log, self.y.log) {
            (false, false) => self.draw_in(area, x, y, wide),
            (true, false) => self.draw_in(area, x.log_scale(), y, wide),
            (false, true) => self.draw_in(area, x, y.log_scale(), wide),
            (true, true) => self.draw_in(area, x.log_scale(), y.log_scale(), wide),
        }
    }

    fn draw_in<X, Y>(
        &self,
        area: &DrawingArea<SVGBackend, Shift>,
        x: X,
        y: Y,
        (x_wide, y_wide): (bool, bool),
    ) -> Drawn
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let longest = self.series.iter().map(|s| s.name.chars().count()).max();
        let beside =
            if self.at_ends { 16 + 8 * longest.unwrap_or(0) as i32 } else { 0 };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 20))
            .margin(10)
            .margin_right(10 + beside)
            .x_label_area_size(44)
            .y_label_area_size(68)
            .build_cartesian_2d(x, y)?;
        let (x_log, y_log) = (self.x.log, self.y.log);
        chart
            .configure_mesh()
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .x_label_formatter(&|v| self.x.tick(*v, x_wide))
            .y_label_formatter(&|v| self.y.tick(*v, y_wide))
            .bold_line_style(RGBColor(225, 225, 225))
            .light_line_style(RGBColor(245, 245, 245))
            .draw()?;
        let mut ends = vec![];
        for s in &self.series {
            let colour = *COLOURS.get(s.colour).unwrap_or(&RGBColor(190, 190, 190));
            let width = if s.colour < COLOURS.len() { 2 } else { 1 };
            let usable = |&(x, y): &(f64, f64)| {
                x.is_finite()
                    && y.is_finite()
                    && !(x_log && x <= 0.)
                    && !(y_log && y <= 0.)
            };
            let points: Vec<_> = s.points.iter().copied().filter(usable).collect();
            let style = colour.stroke_width(width);
            let end = points.last().filter(|_| self.at_ends && !s.name.is_empty());
            ends.extend(end.map(|p| (*p, colour, s.name.clone())));
            let drawn = match s.mark {
                Mark::Line => chart.draw_series(LineSeries::new(points, style))?,
                Mark::Dashed => {
                    let dashes = DashedLineSeries::new(points, 6, 4, style);
                    chart.draw_series(dashes)?
                }
                Mark::Points => {
                    let dot = |p| Circle::new(p, 3, colour.filled());
                    chart.draw_series(points.into_iter().map(dot))?
                }
                Mark::Band => {
                    let fill = colour.mix(0.2).filled();
                    chart.draw_series([Polygon::new(points, fill)])?
                }
            };
            if !s.name.is_empty() && !self.at_ends {
                let key = move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3))
                };
                // plotters measures with another font: room for a wider one.
                drawn.label(format!("{}\u{a0}\u{a0}", s.name)).legend(key);
            }
        }
        // From top to bottom, none closer than a line of text to the one above.
        let height = |p: &(f64, f64)| chart.backend_coord(p).1;
        ends.sort_by_key(|(p, ..)| height(p));
        let mut free = i32::MIN;
        let mut places = vec![];
        for (p, ..) in &ends {
            let y = height(p).max(free);
            places.push(y - height(p) - 8);
            free = y + 16;
        }
        for ((p, colour, name), down) in ends.into_iter().zip(places) {
            let style = ("sans-serif", 14).into_font().color(&colour);
            let label = Text::new(name, (6, down), style);
            chart.draw_series([EmptyElement::at(p) + label])?;
        }
        if !self.at_ends && self.series.iter().any(|s| !s.name.is_empty()) {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .label_font(("sans-serif", 14))
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(200, 200, 200))
                .draw()?;
        }
        Ok(())
    }
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Short numbers for axes: 0.001, 250, 1e-6; powers of ten on a log axis.
fn number(v: f64, log: bool) -> String {
    let size = v.abs();
    if !log && size < 1e-12 {
        return "0".into(); // what adding up ticks leaves of it
    }
    if v == 0. || (0.001..10_000.).contains(&size) {
        let text = format!("{v:.4}");
        return text.trim_end_matches('0').trim_end_matches('.').into();
    }
    let digits = if log { 0 } else { 1 };
    format!("{v:.digits$e}")
}

/// Several charts in one figure, `columns` side by side.
///
/// # Errors
/// What plotters says, for a range without extent.
pub fn panels(charts: &[Chart], columns: usize) -> Result<Figure> {
    let columns = columns.clamp(1, charts.len().max(1));
    let rows = charts.len().div_ceil(columns).max(1);
    let size = (520 * columns as u32 + 120, 380 * rows as u32);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let draw = || -> Drawn {
            root.fill(&WHITE)?;
            let areas = root.split_evenly((rows, columns));
            for (chart, area) in charts.iter().zip(&areas) {
                chart.draw_on(area)?;
            }
            root.present()?;
            Ok(())
        };
        draw().map_err(|e| Error::setting("figure", e.to_string()))?;
    }
    Ok(Figure { svg })
}
