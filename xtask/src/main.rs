//! `cargo xtask <command>`: everything around the library that is not the library.
//! Needs no libtorch itself; the commands that do run the set-up first.

mod bench;
mod book;
mod bundle;
mod cells;
mod checks;
mod figures;
mod html;
mod kernel;
mod notebooks;
mod nvrtc;
mod preprocess;
mod processors;
mod run;
mod selftest;
mod setup;
mod sh;
#[cfg(unix)]
mod soak;
mod sources;
mod tools;

use anyhow::Result;

/// A subcommand: its name, its arguments, what it does, and the function.
struct Command(
    &'static str,
    &'static str,
    &'static str,
    fn(&[String]) -> Result<()>,
);

const COMMANDS: &[Command] = &[
    Command(
        "setup",
        "[--cpu|--cuda|--nvrtc]",
        "install libtorch 2.11 into .libtorch (nothing to do if it is there)",
        setup::main,
    ),
    Command(
        "finetune",
        "[FLAGS]",
        "the main job: 4-bit LoRA on the checkpoint and data that ship",
        run::finetune,
    ),
    Command("test", "[ARGS]", "every test, with a count at the end", run::test),
    Command("run", "[SLUG [ARGS]]", "run a chapter's program", run::run),
    Command(
        "book",
        "[--serve|--check-only|--self-test]",
        "build the book and check it; the self-test plants one fault per rule",
        book::main,
    ),
    Command(
        "notebooks",
        "[--check|--setup|--open|--run [SLUG]]",
        "generate the notebooks; compare, install a kernel, open, execute",
        notebooks::main,
    ),
    Command(
        "figures",
        "[--check] [SLUG]",
        "run the experiments and write, or compare, their figures and numbers",
        figures::main,
    ),
    Command(
        "bench",
        "peers|optim|latent|gpu [ARGS]",
        "speed side by side with others",
        bench::main,
    ),
    #[cfg(unix)]
    Command(
        "soak",
        "[--minutes N] [--seed S] [--only PART]",
        "kills, full disks, hostile files, signals: what a run must survive",
        soak::main,
    ),
    Command(
        "processors",
        "[MODEL ...]",
        "the command and the numeric tests on other processors, by qemu-user",
        processors::main,
    ),
    Command(
        "gpu-bundle",
        "[FOLDER] [--wheels DIR]",
        "a folder that checks and measures on a GPU machine without Rust",
        bundle::main,
    ),
    Command(
        "preprocess",
        "",
        "the book's preprocessor (mdBook calls it)",
        preprocess::main,
    ),
    Command("help", "", "this list", help),
];

fn help(_: &[String]) -> Result<()> {
    println!("{}", usage());
    Ok(())
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask <command>\n");
    for Command(name, args, what, _) in COMMANDS {
        text += &format!("\n  {:<46} {what}", format!("{name} {args}"));
    }
    text
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map(String::as_str).unwrap_or("help");
    let name = if name == "--help" || name == "-h" { "help" } else { name };
    let Some(Command(_, _, _, run)) = COMMANDS.iter().find(|c| c.0 == name) else {
        eprintln!("error: there is no command `{name}`\n\n{}", usage());
        std::process::exit(2);
    };
    if let Err(error) = run(args.get(1..).unwrap_or_default()) {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
