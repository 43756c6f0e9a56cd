//! Cuts a chapter's program into notebook cells, by marks in its comments:
//!
//! - `// CELL: Title`, at the margin or at the first level of `main`, begins a cell;
//! - `// NOTEBOOK: skip` ... `// NOTEBOOK: end` is the program's alone;
//! - `// NOTEBOOK: code` is a line of the notebook's alone.
//!
//! What stands in `main` before the first `// CELL:` (reading flags) is the program's
//! alone, and so are `//!` lines, `ANCHOR` lines, test modules and the last `Ok(())`.
//! `ensure!` at the first level of `main` becomes `assert!`.

use anyhow::{Result, bail};

/// A code cell, with the title that its text is looked up by.
#[derive(Debug, PartialEq)]
pub struct Cell {
    pub title: Option<String>,
    pub code: String,
}

/// The cells of a program: its items first, then the body of `main`.
pub fn cut(program: &str) -> Result<Vec<Cell>> {
    let mut items = Cutter::default();
    let mut body = Cutter::default();
    let (mut seen_main, mut in_main, mut in_tests) = (false, false, false);
    for line in program.lines() {
        if in_tests {
            in_tests = line != "}";
        } else if in_main {
            match line {
                "}" => in_main = false,
                _ => body.line(line.strip_prefix("    ").unwrap_or(line))?,
            }
        } else if line.starts_with("fn main(") {
            (seen_main, in_main) = (true, true);
        } else if line == "#[cfg(test)]" {
            in_tests = true;
        } else if !line.starts_with("//!") {
            items.line(line)?;
        }
    }
    if !seen_main || in_main {
        bail!("no `fn main(` that ends with a `}}` at the margin");
    }
    if !body.cells.iter().any(|c| c.title.is_some()) {
        bail!("main has no `// CELL: Title`");
    }
    // Before the first mark only lines that are the notebook's alone remain.
    let mut cells = items.finish()?;
    let mut body = body.finish_body()?;
    cells.append(&mut body);
    cells.retain(|c| !c.code.is_empty());
    Ok(cells)
}

#[derive(Default)]
struct Cutter {
    cells: Vec<Cell>,
    skipping: bool,
    /// Lines written for the notebook before the first title.
    settings: Vec<String>,
}

impl Cutter {
    fn line(&mut self, line: &str) -> Result<()> {
        let text = line.trim_start();
        let indent = &line[..line.len() - text.len()];
        if let Some(rest) = text.strip_prefix("// NOTEBOOK:") {
            match rest.trim() {
                "skip" if self.skipping => bail!("`// NOTEBOOK: skip` twice"),
                "end" if !self.skipping => {
                    bail!("`// NOTEBOOK: end` without a skip")
                }
                "skip" => self.skipping = true,
                "end" => self.skipping = false,
                code => {
                    if self.cells.iter().all(|c| c.title.is_none()) {
                        self.settings.push(code.to_string());
                    }
                    self.push(&format!("{indent}{code}"));
                }
            }
        } else if self.skipping || text.starts_with("// ANCHOR") {
        } else if let (Some(title), "") = (text.strip_prefix("// CELL:"), indent) {
            let title = Some(title.trim().to_string());
            self.cells.push(Cell { title, code: String::new() });
        } else {
            self.push(line);
        }
        Ok(())
    }

    fn push(&mut self, line: &str) {
        if self.cells.is_empty() {
            self.cells.push(Cell { title: None, code: String::new() });
        }
        let cell = self.cells.last_mut().expect("pushed above");
        cell.code += line.trim_end();
        cell.code += "\n";
    }

    fn finish(mut self) -> Result<Vec<Cell>> {
        if self.skipping {
            bail!("`// NOTEBOOK: skip` without an end");
        }
        for cell in &mut self.cells {
            cell.code = tidy(&cell.code);
        }
        Ok(self.cells)
    }

    fn finish_body(mut self) -> Result<Vec<Cell>> {
        if self.cells.first().is_some_and(|c| c.title.is_none()) {
            self.cells[0].code = self.settings.join("\n");
        }
        let mut cells = self.finish()?;
        if let Some(last) = cells.last_mut() {
            last.code = tidy(last.code.strip_suffix("Ok(())").unwrap_or(&last.code));
        }
        for cell in &mut cells {
            // A cell is no function that returns a Result, which `ensure!` wants.
            let assert = |line: &str| match line.strip_prefix("ensure!(") {
                Some(rest) => format!("assert!({rest}\n"),
                None => format!("{line}\n"),
            };
            cell.code = cell.code.lines().map(assert).collect::<String>();
            cell.code.truncate(cell.code.trim_end().len());
            // A block at the end would print its `()`.
            if cell.code.ends_with('}') {
                cell.code.push(';');
            }
        }
        Ok(cells)
    }
}

/// No blank lines around, and never two in a row.
fn tidy(code: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for line in code.lines() {
        if !(line.is_empty() && out.last().is_none_or(|l| l.is_empty())) {
            out.push(line);
        }
    }
    out.join("\n").trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = r#"//! Chapter 5.
use downhill::optim;
// NOTEBOOK: skip
use clap::Parser;
// NOTEBOOK: end

// ANCHOR: f
fn f() {
}
// ANCHOR_END: f

fn main() -> anyhow::Result<()> {
    let seed = Args::parse().seed;
    // NOTEBOOK: let seed = 1;
    // CELL: The valley
    let x = f();
    for i in 0..3 {
        // CELL: not a mark in here
        println!("{i}");
    }
    // CELL: Done
    let figure = draw();
    ensure!(x > 0, "low");
    // NOTEBOOK: skip
    figure.save()?;
    // NOTEBOOK: end
    // NOTEBOOK: figure

    Ok(())
}

#[cfg(test)]
mod tests {
    fn t() {}
}
"#;

    #[test]
    fn a_program_becomes_cells() {
        let cells = cut(PROGRAM).unwrap();
        let codes: Vec<&str> = cells.iter().map(|c| c.code.as_str()).collect();
        assert_eq!(codes[0], "use downhill::optim;\n\nfn f() {\n}");
        assert_eq!(codes[1], "let seed = 1;");
        assert_eq!(cells[2].title.as_deref(), Some("The valley"));
        assert!(codes[2].starts_with("let x = f();") && codes[2].ends_with("};"));
        assert!(codes[2].contains("    // CELL: not a mark in here"));
        assert_eq!(
            codes[3],
            "let figure = draw();\nassert!(x > 0, \"low\");\nfigure"
        );
        assert_eq!(codes.len(), 4);
    }

    #[test]
    fn programs_that_cannot_be_cut_say_why() {
        for (program, word) in [
            ("fn f() {}\n", "fn main("),
            ("fn main() {\n    1;\n}\n", "CELL"),
            ("// NOTEBOOK: end\nfn main() {\n    // CELL: a\n}\n", "without a skip"),
            (
                "// NOTEBOOK: skip\nfn main() {\n    // CELL: a\n}\n",
                "without an end",
            ),
        ] {
            let error = cut(program).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
