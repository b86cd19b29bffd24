//! `gdo rm`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::remove::{RemoveOptions, remove};

use super::changes::{letter, to_json};
use crate::places::GlobalArgs;
use crate::ui::{Ui, shown_path};

/// Stop owning paths, and remove them from the disk unless --cached
///
/// What differs from its stored state is not removed from the disk, unless --force. What --cached leaves there is not taken again by a snapshot, until
/// it, or a directory above it, is named to 'gdo add' or 'gdo snapshot'.
#[derive(clap::Args)]
pub struct RmArgs {
    /// Files and directories
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Leave the files on the disk
    #[arg(long)]
    cached: bool,
    /// Remove also what was changed since it was stored
    #[arg(short, long)]
    force: bool,
    /// Tell what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &RmArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let options = RemoveOptions { keep_files: args.cached, force: args.force, dry_run: args.dry_run };
    let progress = ui.progress();
    let removed = remove(&repo, &paths, &options, &progress)?;
    let warnings = ui.warnings();
    ui.json(|| serde_json::json!({"changes": to_json(&removed), "warnings": warnings}))?;
    removed.iter().try_for_each(|change| ui.line(format_args!("{} {}", letter(change.what), shown_path(&change.path))))
}
