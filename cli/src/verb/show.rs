//! `gdo show`

use std::ffi::OsString;

use git_devops::error::Result;
use serde_json::json;

use super::changes::to_json;
use super::git::{for_people, hand_over};
use crate::places::GlobalArgs;
use crate::ui::Ui;

/// Show a commit and what it changed
#[derive(clap::Args)]
pub struct ShowArgs {
    /// The commit
    #[arg(value_name = "REV", default_value = "HEAD")]
    rev: String,
    /// Sum up instead of showing lines
    #[arg(long)]
    stat: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &ShowArgs) -> Result<()> {
    let repo = global.repo()?;
    let oid = repo.git.resolve(&args.rev);
    let oid = oid.map_err(|error| global.or_path(&repo, "gdo log --name-status", std::slice::from_ref(&args.rev), error))?;
    if ui.is_json() {
        let commit = repo.objects.commit(&oid)?;
        let before = match commit.parents.first().copied() {
            Some(parent) => repo.objects.commit(&parent)?.tree,
            None => git_devops::git::empty_tree(),
        };
        let changes = git_devops::repo::status::compare_trees(&repo, before, commit.tree)?;
        return ui.json(|| json!({"commit": oid.to_string(), "message": String::from_utf8_lossy(&commit.message), "changes": to_json(&changes)}));
    }
    let mut command: Vec<OsString> = for_people(&["show", "--no-renames", "--no-ext-diff", "--no-textconv"]);
    if args.stat {
        command.push("--stat".into());
    }
    command.extend([oid.to_string(), "--".to_owned()].map(OsString::from));
    hand_over(ui, &repo, &command)
}
