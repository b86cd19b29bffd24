//! `gdo cat`

use std::path::PathBuf;

use git_devops::error::Result;

use super::fetch::{finish, repo_within_reach};
use crate::places::GlobalArgs;
use crate::ui::{Ui, usage};

/// Write the content of a stored file to standard output
///
/// A large file is streamed: it need not fit into memory or onto the disk. What is not here comes from the remotes as it is written.
#[derive(clap::Args)]
pub struct CatArgs {
    /// The file, as REV:PATH; the path starts at the top of the work tree, or, with './', from here
    #[arg(value_name = "REV:PATH")]
    object: String,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &CatArgs) -> Result<()> {
    let Some((rev, path)) = args.object.split_once(':') else {
        return Err(usage(format!("'{}' has no colon: write REV:PATH, for example HEAD:etc/fstab", args.object)));
    };
    let repo = repo_within_reach(global, true)?;
    let rev = if rev.is_empty() { "HEAD" } else { rev };
    let path = match path.starts_with("./") || path.starts_with("../") {
        true => global.work_paths(&repo.places, &[PathBuf::from(path)])?.remove(0),
        false => path.trim_start_matches('/').as_bytes().to_vec(),
    };
    let done = repo.cat(rev, &path, ui.raw());
    finish(&repo);
    done
}
