//! `gdo man`

use std::path::PathBuf;

use clap::CommandFactory;
use git_devops::error::{Context, Result};

use crate::ui::Ui;

/// Write the man pages into a directory
///
/// For example: gdo man /usr/local/share/man/man1
#[derive(clap::Args)]
pub struct ManArgs {
    /// The directory
    dir: PathBuf,
}

pub fn run(ui: &mut Ui, args: &ManArgs) -> Result<()> {
    let what = || format!("cannot write man pages into '{}'", args.dir.display());
    std::fs::create_dir_all(&args.dir).context(what)?;
    let command = crate::Cli::command().name("gdo");
    clap_mangen::generate_to(command, &args.dir).context(what)?;
    ui.note(format_args!("wrote man pages into '{}'", args.dir.display()))
}
