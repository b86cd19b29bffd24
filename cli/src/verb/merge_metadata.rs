//! `gdo merge-metadata`: the merge driver that git calls for metadata files.

use std::path::PathBuf;

use git_devops::error::{Context, Result};
use git_devops::{durable, metadata};

use crate::exit;
use crate::ui::{Ui, complain, shown};

/// Merge three versions of a metadata file, for git
#[derive(clap::Args)]
pub struct MergeMetadataArgs {
    /// The common ancestor
    base: PathBuf,
    /// Our version; takes the result
    ours: PathBuf,
    /// Their version
    theirs: PathBuf,
    /// What the file is called in the tree
    path: String,
}

pub fn run(ui: &mut Ui, args: &MergeMetadataArgs) -> Result<()> {
    let read = |path: &PathBuf| std::fs::read(path).context(|| format!("cannot read '{}'", path.display()));
    let merged = metadata::merge(&read(&args.base)?, &read(&args.ours)?, &read(&args.theirs)?)
        .context(|| format!("cannot merge metadata '{}'", args.path))?;
    durable::publish(&args.ours, &merged.bytes, 0o600)?;
    if !merged.conflicts.is_empty() {
        for name in &merged.conflicts {
            complain(format_args!("conflict in the metadata of '{}' ({})", shown(name), args.path));
        }
        ui.exit_with(exit::DIFFERENCES);
    }
    Ok(())
}
