//! `gdo restore`

use std::path::PathBuf;

use git_devops::error::{Context, Kind, Result};
use git_devops::progress::Progress;
use git_devops::repo::Repo;
use git_devops::repo::restore::{self, Action, RestoreOptions, Restored};
use git_devops::safepath::Dir;
use serde_json::{Value, json};

use super::fetch::{finish, repo_within_reach};
use crate::exit;
use crate::places::{GlobalArgs, render};
use crate::ui::{Ui, bytes, json_path, shown_path};

/// Write stored files back, with everything that was recorded about them
///
/// What is right already is left alone, what is not owned is kept. Each file is replaced whole, in one step. Content of large files that is not here
/// comes from the remotes.
#[derive(clap::Args)]
pub struct RestoreArgs {
    /// Only these files and directories [default: everything]
    paths: Vec<PathBuf>,
    /// The commit to take them from [default: what is staged, which is the last commit if nothing is]
    #[arg(short, long, value_name = "REV")]
    source: Option<String>,
    /// Write below DIR instead of into the work tree; made if missing
    #[arg(short, long, value_name = "DIR")]
    target: Option<PathBuf>,
    /// Take recorded numbers of owners and groups, whatever their names are here
    #[arg(long)]
    numeric_ids: bool,
    /// On a system, let directories take the place of symlinks, and other things that of top-level directories
    #[arg(long)]
    allow_type_change: bool,
    /// Tell what would be written, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Name each path that is written
    #[arg(short, long)]
    verbose: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &RestoreArgs) -> Result<()> {
    let mut repo = repo_within_reach(global, true)?;
    render(&mut repo)?;
    let options = RestoreOptions {
        paths: global.work_paths(&repo.places, &args.paths)?,
        dry_run: args.dry_run,
        numeric_ids: args.numeric_ids,
        allow_type_change: args.allow_type_change,
    };
    let progress = ui.progress();
    progress.stage("restoring", 0, 0);
    let restored = restored(&repo, global, args, &options, &progress);
    let warnings = ui.warnings();
    let hosts = finish(&repo);
    let restored = restored?;
    ui.json(|| {
        json!({
            "steps": restored.steps.iter().map(|step| json!({"path": json_path(&step.path), "action": name(step.action)})).collect::<Value>(),
            "files_seen": restored.n_seen, "bytes_written": restored.n_bytes,
            "partial": restored.is_partial, "dry_run": args.dry_run, "warnings": warnings,
            "hosts": hosts.iter().map(|host| json!({"name": host.name, "chunks": host.n_chunks, "bytes": host.n_bytes})).collect::<Value>(),
        })
    })?;
    if args.dry_run || args.verbose {
        for step in &restored.steps {
            ui.line(format_args!("{} {}", name(step.action), shown_path(&step.path)))?;
        }
    }
    for host in hosts.iter().filter(|host| host.n_chunks > 0) {
        ui.note(format_args!("{}: {} chunks, {}", host.name, host.n_chunks, bytes(host.n_bytes)))?;
    }
    let (n, seen, written) = (restored.steps.len(), restored.n_seen, bytes(restored.n_bytes));
    match args.dry_run {
        true => ui.note(format_args!("would change {n} of {seen} files and directories"))?,
        false => ui.note(format_args!("changed {n} of {seen} files and directories, wrote {written}"))?,
    }
    if restored.is_damaged {
        ui.exit_with(exit::INTEGRITY);
    } else if restored.is_refused {
        ui.exit_with(exit::REFUSED);
    } else if restored.is_partial {
        ui.exit_with(exit::PARTIAL);
    }
    Ok(())
}

fn restored(
    repo: &Repo,
    global: &GlobalArgs,
    args: &RestoreArgs,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<Restored> {
    let Some(target) = &args.target else {
        return restore::into_work_tree(repo, args.source.as_deref(), options, progress);
    };
    let target = global.cwd()?.join(target);
    let dir = match args.dry_run {
        true => Dir::open(&target).map(Some).or_else(|error| if error.kind() == Kind::NotFound { Ok(None) } else { Err(error) }),
        false => Dir::open_or_make(&target).map(Some),
    };
    let dir = dir.context(|| format!("cannot use '{}'", target.display()))?;
    restore::restore(repo, repo.source_tree(args.source.as_deref())?, dir.as_ref(), options, progress)
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Replace => "replace",
        Action::Metadata => "metadata",
        Action::Remove => "remove",
    }
}
