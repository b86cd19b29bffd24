//! `gdo drop`

use std::path::PathBuf;

use git_devops::error::{Context, Result};
use git_devops::remote::ask::Line;
use git_devops::repo::drop::{DropOptions, Dropped, What, drop_copies};
use git_devops::repo::remotes;
use serde_json::json;

use super::fetch::{connect, fetch_all, tell_failure};
use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, bytes, complain, shown, time, usage};

/// Give up copies of large files' content that enough other hosts hold
///
/// Nothing is dropped unless as many others as 'devops.copies' says are reached, promise to keep it, and prove that they can read it. What this host
/// promised itself goes only when that is over: the first run lets the promise lapse and says when to come back, and without PATH a later run
/// finishes that. Files of the work tree stay as they are.
#[derive(clap::Args)]
pub struct DropArgs {
    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// All that is not this holder's share
    #[arg(long, conflicts_with = "paths")]
    surplus: bool,
    /// Of the files in this commit, instead of those that are staged
    #[arg(short, long, value_name = "REV", requires = "paths")]
    source: Option<String>,
    /// What large files at and below these paths have, and no other file
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &DropArgs) -> Result<()> {
    let repo = global.repo()?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let what = match (args.surplus, args.paths.is_empty()) {
        (true, _) => What::Surplus,
        (_, true) => What::Lapsing,
        _ => What::Files(repo.source_tree(args.source.as_deref())?, paths),
    };
    if matches!(what, What::Lapsing) && !git_devops::repo::holders::is_lapsing(&repo)? {
        return Err(usage("nothing lapses here; say what to drop: paths, or '--surplus'"));
    }
    let mut hosts = connect(ui, &repo, &remotes::list(&repo)?);
    // What they know of us counts.
    fetch_all(ui, &repo, &hosts);
    let (links, unreachable) = hosts.links();
    unreachable.iter().flat_map(|served| &served.failure).for_each(|error| tell_failure(ui, error));
    let mut lines = Vec::new();
    for link in links {
        match Line::new(link) {
            Ok(line) => lines.push(line),
            Err(error) => tell_failure(ui, &error),
        }
    }
    let progress = ui.progress();
    let options = DropOptions { dry_run: args.dry_run, clock: &moment };
    let dropped = drop_copies(&repo, &what, lines, &options, &progress).context(|| "nothing more is dropped")?;
    ui.warnings();
    tell(ui, &dropped, args.dry_run)
}

fn tell(ui: &mut Ui, dropped: &Dropped, dry_run: bool) -> Result<()> {
    let Dropped { n_asked, n_share, n_lapsing, due, n_kept, n_left, n_removed, n_bytes, asked } = dropped;
    for (name, failure) in asked {
        if let Some(failure) = failure {
            complain(format_args!("warning: '{name}' was not counted: {}", shown(format!("{failure:#}").as_bytes())));
        }
    }
    ui.json(|| {
        json!({
            "chunks": n_asked, "share": n_share, "lapsing": n_lapsing, "due": (*n_lapsing > 0).then_some(due), "kept": n_kept,
            "left": n_left, "removed": n_removed, "freed_bytes": n_bytes, "dry_run": dry_run,
            "asked": asked.iter().map(|(name, failure)| json!({"name": name, "failure": failure.as_ref().map(|error| format!("{error:#}"))})).collect::<Vec<_>>(),
        })
    })?;
    if *n_share > 0 {
        ui.note(format_args!("{n_share} chunks are this host's share; they stay"))?;
    }
    if *n_lapsing > 0 {
        let (lapse, when) = (if dry_run { "would lapse" } else { "lapse now" }, time(*due));
        ui.note(format_args!(
            "{n_lapsing} chunks were promised to other hosts: the promises {lapse}; 'gdo drop' after {when} removes them"
        ))?;
    }
    match dry_run {
        true => ui.note(format_args!("would ask other hosts about {} chunks", n_asked - n_share - n_lapsing - n_kept))?,
        false => ui.note(format_args!("{n_removed} chunks removed, {} free", bytes(*n_bytes)))?,
    }
    if *n_left > 0 {
        ui.exit_with(exit::PARTIAL);
        complain(format_args!(
            "warning: {n_left} chunks could go and are here still: their packs are damaged ('gdo check --repair'), or the disk has no room to rewrite them"
        ));
    }
    if *n_kept > 0 {
        ui.exit_with(exit::PARTIAL);
        complain(format_args!(
            "warning: {n_kept} chunks stay: not enough other hosts were reached that hold, promise and prove them; see 'gdo whereis'"
        ));
    }
    Ok(())
}
