//! `gdo diff`

use std::ffi::OsString;
use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::Repo;
use git_devops::repo::diff::{Prepared, Side, prepare, stored_paths};
use git_devops::repo::status::compare_trees;
use serde_json::{Value, json};

use super::changes::to_json;
use super::git::{for_people, hand_over};
use crate::places::GlobalArgs;
use crate::ui::Ui;

/// Show what differs between commits, or between a commit and the work tree
///
/// Without revisions: the work tree against the index. With one: the work tree against it. With two: one against the other. Metadata shows as lines
/// of '.git-devops/meta', large files as lines of their chunk index. Paths follow after '--'.
#[derive(clap::Args)]
pub struct DiffArgs {
    /// Up to two revisions
    #[arg(value_name = "REV", num_args = 0..=2)]
    revs: Vec<String>,
    /// Only these files and directories
    #[arg(last = true)]
    paths: Vec<PathBuf>,
    /// Name only the paths that differ
    #[arg(long)]
    name_only: bool,
    /// Sum up instead of showing lines
    #[arg(long)]
    stat: bool,
    /// End with code 1 if anything differs
    #[arg(long)]
    exit_code: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &DiffArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let progress = ui.progress();
    let (a, b) = match args.revs.as_slice() {
        [] => (Side::Index, Side::WorkTree),
        [a] => (Side::Revision(a), Side::WorkTree),
        [a, b, ..] => (Side::Revision(a), Side::Revision(b)),
    };
    let prepared = prepare(&repo, &a, &b, &progress).map_err(|error| global.or_path(&repo, "gdo diff", &args.revs, error))?;
    let warnings = ui.warnings();
    show(ui, &repo, args, &prepared, &paths, &warnings)?;
    if prepared.is_partial {
        ui.exit_with(crate::exit::PARTIAL);
    }
    Ok(())
}

fn show(ui: &mut Ui, repo: &Repo, args: &DiffArgs, prepared: &Prepared, paths: &[Vec<u8>], warnings: &[Value]) -> Result<()> {
    if ui.is_json() {
        let mut changes = compare_trees(repo, prepared.a, prepared.b)?;
        changes.retain(|change| paths.is_empty() || paths.iter().any(|path| is_at_or_below(&change.path, path)));
        if args.exit_code && !changes.is_empty() {
            ui.exit_with(crate::exit::DIFFERENCES);
        }
        return ui.json(|| json!({"changes": to_json(&changes), "partial": prepared.is_partial, "warnings": warnings}));
    }
    let mut command: Vec<OsString> = for_people(&["diff", "--no-renames", "--no-ext-diff", "--no-textconv"]);
    let flags = [(args.name_only, "--name-only"), (args.stat, "--stat"), (args.exit_code, "--exit-code")];
    command.extend(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| OsString::from(flag)));
    command.extend([prepared.a.to_string(), prepared.b.to_string(), "--".to_owned()].map(OsString::from));
    command.extend(stored_paths(paths));
    hand_over(ui, repo, &command)
}

/// Says whether `path` is `scope` or below it.
fn is_at_or_below(path: &[u8], scope: &[u8]) -> bool {
    scope.is_empty() || path.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}
