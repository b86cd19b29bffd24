//! The program: `git-devops`, `git devops` and `gdo` are the same.
//!
//! A file in `verb` is one verb: its arguments (their doc comments are the help text) and `run`, which calls the library and prints the outcome.
//! Only this crate reads the environment, writes to the terminal and ends the process.

use std::process::ExitCode;

use clap::Parser;

mod exit;
mod places;
mod ui;
mod verb;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whole machines in an ordinary git repository
#[derive(Parser)]
#[command(name = "gdo", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: places::GlobalArgs,
    #[command(subcommand)]
    verb: verb::Verb,
}

/// Runs the program as the process was called, and returns how it ended: `docs/formats/exit-codes.md`.
pub fn main() -> ExitCode {
    ui::restore_default_streams();
    ui::raise_open_file_limit();
    ui::survive_file_size_limit();
    ui::do_without_huge_pages();
    let outcome = std::panic::catch_unwind(|| {
        let cli = Cli::parse();
        let mut ui = ui::Ui::new(cli.global.json, cli.global.quiet);
        let result = verb::run(&cli.verb, &cli.global, &mut ui);
        ui.finish(result)
    });
    outcome.unwrap_or_else(|_| ExitCode::from(exit::BUG))
}
