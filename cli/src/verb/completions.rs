//! `gdo completions`

use std::io::Write;

use clap::CommandFactory;
use git_devops::error::{Context, Result};

use crate::ui::Ui;

/// Print the completions for a shell
///
/// For example: gdo completions bash > /etc/bash_completion.d/gdo
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

pub fn run(ui: &mut Ui, args: &CompletionsArgs) -> Result<()> {
    for name in ["gdo", "git-devops"] {
        // The generator panics where it cannot write.
        let mut text = Vec::new();
        clap_complete::generate(args.shell, &mut crate::Cli::command(), name, &mut text);
        ui.raw().write_all(&text).context(|| "cannot write to standard output")?;
    }
    Ok(())
}
