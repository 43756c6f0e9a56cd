//! The report of a run: one HTML page that needs nothing else.
use super::{Memory, Metrics, Prediction, Run};
use crate::Result;
use crate::checkpoint::atomic;
use crate::plot::{Chart, Figure, escaped};
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto;
  padding: 0 1rem; color: #1b1b1b; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid #ccc }
td.n { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0; background: #fff }
svg { max-width: 100%; height: auto }
pre { white-space: pre-wrap; margin: 0 }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616 }
  td, th { border-color: #444 }
}";

/// The only one that a tch 0.24 binary runs with.
const LIBTORCH: &str = "2.11.0";

/// Sample answers on the page, at most.
const SAMPLES: usize = 8;

impl Run {
    /// Writes figures and `report.html` into the output folder. `answers`: what the
    /// model wrote before and after, if it was asked.
    ///
    /// # Errors
    /// The system's, and what drawing says.
    pub fn report(
        &self,
        answers: Option<(&[Prediction], &[Prediction])>,
    ) -> Result<()> {
        let out = &self.settings.output_dir;
        let memory = Memory::of(&self.model, &*self.optimizer, self.grown);
        let mut figures = vec![("loss", self.curve()?)];
        figures
            .push(("learning_rate", self.series("learning_rate", "learning rate")?));
        figures.push(("grad_norm", self.series("grad_norm", "gradient norm")?));
        figures.push(("memory", memory.draw()));
        if let Some(found) = &self.after
            && let Metrics::Classes(..) = found.metrics
        {
            figures.push(("confusion", found.confusion()?));
        }
        for (name, figure) in &figures {
            figure.save(out.join(format!("{name}.svg")))?;
        }
        let page = self.page(&figures, answers);
        atomic::bytes(&out.join("report.html"), page.as_bytes())
    }

    fn page(
        &self,
        figures: &[(&str, Figure)],
        answers: Option<(&[Prediction], &[Prediction])>,
    ) -> String {
        let model = self.settings.model.display().to_string();
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>Fine-tune of {0}</title>\n<style>{STYLE}\n</style>\n\
             <h1>Fine-tune of {0}</h1>\n<p>{1} of {2} steps, {3:.2} epochs.</p>\n",
            escaped(&model),
            self.step,
            self.total,
            self.epoch()
        );
        page += &self.numbers(answers);
        for (name, figure) in figures {
            let svg = figure.svg();
            let _ = writeln!(
                page,
                "<figure role=\"img\" aria-label=\"{name}\">{svg}</figure>"
            );
        }
        if let Some((before, after)) = answers {
            page += &samples(before, after);
        }
        page += "<h2>Data</h2>\n<table>\n";
        let files = [
            (Some(&self.settings.train_file), Some(&self.train)),
            (self.settings.eval_file.as_ref(), self.eval.as_ref()),
        ];
        for (path, rows) in files {
            if let (Some(path), Some(rows)) = (path, rows) {
                row(&mut page, &[&path.display().to_string(), &rows.to_string()]);
            }
        }
        page += "</table>\n<h2>Settings</h2>\n<table>\n";
        let settings = serde_json::to_value(&self.settings).unwrap_or_default();
        for (key, value) in settings.as_object().into_iter().flatten() {
            let flag = format!("--{}", key.replace('_', "-"));
            row(&mut page, &[&flag, &plain(value)]);
        }
        page += "</table>\n<h2>Versions</h2>\n<table>\n";
        row(&mut page, &["downhill", env!("CARGO_PKG_VERSION")]);
        row(&mut page, &["libtorch", LIBTORCH]);
        let device = format!("{:?}, {:?}", self.model.device(), self.model.kind());
        row(&mut page, &["computed on", &device]);
        page + "</table>\n</html>\n"
    }

    /// The metrics before and after, as a table.
    fn numbers(&self, answers: Option<(&[Prediction], &[Prediction])>) -> String {
        let Some(after) = &self.after else {
            return "<p>No rows were held out.</p>\n".into();
        };
        let mut table = String::from("<h2>Held-out rows</h2>\n<table>\n");
        table += "<tr><th></th><th>before</th><th>after</th></tr>\n";
        let mut line = |name: &str, before: Option<f64>, after: f64| {
            let before = before.map_or("not measured".into(), |x| format!("{x:.4}"));
            let _ = writeln!(
                table,
                "<tr><td>{}</td><td class=\"n\">{before}</td>\
                 <td class=\"n\">{after:.4}</td></tr>",
                name.replace('_', " ")
            );
        };
        for (name, value) in [&[("loss", after.loss)], &after.named()[..]].concat() {
            line(name, self.before[format!("eval_{name}")].as_f64(), value);
        }
        if let Some((before, after)) = answers {
            let share = super::exact_match;
            line("exact match", Some(share(before)), share(after));
        }
        table + "</table>\n"
    }

    /// One number of the log by step.
    fn series(&self, key: &str, name: &str) -> Result<Figure> {
        let point = |e: &Value| Some((e["step"].as_f64()?, e[key].as_f64()?));
        let points = self.log.history.iter().filter_map(point).collect();
        Chart::new(name, "step", name).line("", points).draw()
    }
}

fn samples(before: &[Prediction], after: &[Prediction]) -> String {
    let mut text = String::from("<h2>Sample answers</h2>\n<table>\n");
    text +=
        "<tr><th>prompt</th><th>expected</th><th>before</th><th>after</th></tr>\n";
    for (old, new) in before.iter().zip(after).take(SAMPLES) {
        let cells = [&new.prompt, &new.expected, &old.answer, &new.answer];
        row(&mut text, &cells.map(String::as_str));
    }
    text + "</table>\n"
}

fn row(page: &mut String, cells: &[&str]) {
    *page += "<tr>";
    for cell in cells {
        let _ = write!(page, "<td><pre>{}</pre></td>", escaped(cell));
    }
    *page += "</tr>\n";
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
