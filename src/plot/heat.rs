//! A table of numbers as colours: how a result depends on two settings.
use super::{Drawn, Figure};
use crate::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A heat map in the making: a named column for each setting along the x axis, a named
/// row for each along the y axis, the number written into each cell.
#[derive(Clone, Debug)]
pub struct Heat {
    title: String,
    labels: [String; 2],
    columns: Vec<String>,
    rows: Vec<(String, Vec<f64>)>,
    high_is_dark: bool,
}

impl Heat {
    /// An empty map; say units in the labels.
    pub fn new(
        title: &str,
        x_label: &str,
        y_label: &str,
        columns: &[impl ToString],
    ) -> Self {
        let labels = [x_label.into(), y_label.into()];
        let columns = columns.iter().map(|c| c.to_string()).collect();
        let (rows, high_is_dark) = (vec![], false);
        Self { title: title.into(), labels, columns, rows, high_is_dark }
    }

    /// Adds a row above the others: a number per column.
    pub fn row(mut self, name: &str, values: &[f64]) -> Self {
        self.rows.push((name.into(), values.to_vec()));
        self
    }

    /// The highest number darkest.
    pub fn high_is_dark(mut self) -> Self {
        self.high_is_dark = true;
        self
    }

    /// Draws it, with two digits in each cell: the lowest number darkest unless said
    /// otherwise, what is not finite grey.
    ///
    /// # Errors
    /// No rows or columns; what plotters says.
    pub fn draw(&self) -> Result<Figure> {
        let mut svg = String::new();
        let size = (640, 150 + 52 * self.rows.len() as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        self.draw_on(&root).map_err(|e| Error::setting("figure", e.to_string()))?;
        drop(root);
        Ok(Figure { svg })
    }

    fn draw_on(
        &self,
        root: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    ) -> Drawn {
        let (width, height) = (self.columns.len(), self.rows.len());
        if width == 0 || height == 0 {
            return Err("a heat map without rows or columns".into());
        }
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(root)
            .caption(&self.title, ("sans-serif", 20))
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(84)
            .build_cartesian_2d(
                (0..width - 1).into_segmented(),
                (0..height - 1).into_segmented(),
            )?;
        let name = |names: &[&String], v: &SegmentValue<usize>| match v {
            SegmentValue::Exact(i) | SegmentValue::CenterOf(i) => {
                names.get(*i).map_or(String::new(), |s| s.to_string())
            }
            SegmentValue::Last => String::new(),
        };
        let columns: Vec<_> = self.columns.iter().collect();
        let rows: Vec<_> = self.rows.iter().map(|(name, _)| name).collect();
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(width)
            .y_labels(height)
            .x_desc(&self.labels[0])
            .y_desc(&self.labels[1])
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .x_label_formatter(&|v| name(&columns, v))
            .y_label_formatter(&|v| name(&rows, v))
            .draw()?;
        let all = self.rows.iter().flat_map(|(_, values)| values);
        let finite = all.filter(|v| v.is_finite());
        let (low, high) = finite
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| {
                (a.min(v), b.max(v))
            });
        for (j, (_, values)) in self.rows.iter().enumerate() {
            for (i, &value) in values.iter().enumerate().take(width) {
                let share = (high - value) / (high - low).max(f64::MIN_POSITIVE);
                let share = if self.high_is_dark { 1. - share } else { share };
                let (colour, ink) = match value.is_finite() {
                    true if share > 0.6 => (RGBColor(0, 114, 178).mix(share), WHITE),
                    true => (RGBColor(0, 114, 178).mix(share), BLACK),
                    false => (RGBColor(200, 200, 200).mix(1.), BLACK),
                };
                let corner = |i: usize, n: usize| match i < n {
                    true => SegmentValue::Exact(i),
                    false => SegmentValue::Last,
                };
                let cell = [
                    (corner(i, width), corner(j, height)),
                    (corner(i + 1, width), corner(j + 1, height)),
                ];
                chart.draw_series([Rectangle::new(cell, colour.filled())])?;
                let text = match value.is_finite() {
                    true => format!("{value:.2}"),
                    false => "diverged".into(),
                };
                let style = ("sans-serif", 15).into_font().color(&ink);
                let style = style.pos(Pos::new(HPos::Center, VPos::Center));
                let center = (SegmentValue::CenterOf(i), SegmentValue::CenterOf(j));
                chart.draw_series([Text::new(text, center, style)])?;
            }
        }
        root.present()?;
        Ok(())
    }
}
